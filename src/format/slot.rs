//! Key slots: the master key, wrapped under a password or a key file. The bytes only; the cryptography is `seal::slot`.
//!
//! Layout and limits: format-spec/keys.md.

use crate::format::FormatError;
use crate::format::bytes::Reader;
use crate::id::{RepoId, SlotId};
use crate::limits::{ARGON2_M_KIB_RANGE, ARGON2_P_RANGE, ARGON2_T_RANGE, SLOT_BYTES_MAX};

/// First bytes of a slot.
pub const SLOT_MAGIC: &[u8; 4] = b"VLTK";
/// Version that this code reads and writes.
pub const SLOT_VERSION: u8 = 1;
/// Longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 255;

/// How the secret that opens a slot becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kdf {
    /// A password, through Argon2id (RFC 9106) of this cost.
    Argon2id { m_kib: u32, t: u32, p: u32 },
    /// A key file of 32 random bytes.
    KeyFile,
}

/// A slot as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub repo: RepoId,
    pub id: SlotId,
    pub kdf: Kdf,
    /// Seconds since 1970.
    pub created: u64,
    pub salt: [u8; 32],
    pub nonce: [u8; 24],
    /// For people.
    pub label: String,
    /// Says whether a secret is the right one, before anything is opened with it.
    pub commit: [u8; 32],
    /// Master key and epoch under the key made of the secret.
    pub wrapped: [u8; 52],
}

impl Slot {
    /// Returns the part of the slot that the cryptography covers: everything before `commit`.
    pub fn header(&self) -> Vec<u8> {
        let (kdf, m_kib, t, p) = match self.kdf {
            Kdf::Argon2id { m_kib, t, p } => (1, m_kib, t, p),
            Kdf::KeyFile => (2, 0, 0, 0),
        };
        let mut out = Vec::with_capacity(SLOT_BYTES_MAX);
        out.extend_from_slice(SLOT_MAGIC);
        out.extend_from_slice(&[SLOT_VERSION, kdf]);
        out.extend_from_slice(&u16::try_from(self.label.len()).expect("labels are bounded").to_le_bytes());
        out.extend_from_slice(self.repo.as_bytes());
        out.extend_from_slice(self.id.as_bytes());
        [m_kib, t, p].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(self.label.as_bytes());
        out
    }

    /// Returns the object.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.header();
        out.extend_from_slice(&self.commit);
        out.extend_from_slice(&self.wrapped);
        out
    }

    /// Reads a slot. Costs beyond the accepted ranges are refused here, before anybody allocates for them.
    pub fn decode(raw: &[u8]) -> Result<Self, FormatError> {
        if raw.len() > SLOT_BYTES_MAX {
            return Err(FormatError::Range { what: "key slot size", value: raw.len() as u64 });
        }
        let mut reader = Reader::new("key slot", raw);
        if reader.array::<4>()? != SLOT_MAGIC {
            return Err(FormatError::Magic { what: "key slot" });
        }
        let version = reader.u8()?;
        if version != SLOT_VERSION {
            let (found, known) = (u32::from(version), u32::from(SLOT_VERSION));
            return Err(FormatError::Version { what: "key slot", found, known });
        }
        let kdf = reader.u8()?;
        let label_bytes = usize::from(reader.u16()?);
        if label_bytes > LABEL_BYTES_MAX {
            return Err(FormatError::Range { what: "key slot label", value: label_bytes as u64 });
        }
        let (repo, id) = (RepoId(*reader.array()?), SlotId(*reader.array()?));
        let (m_kib, t, p) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let kdf = match kdf {
            1 => {
                let fits =
                    ARGON2_M_KIB_RANGE.contains(&m_kib) && ARGON2_T_RANGE.contains(&t) && ARGON2_P_RANGE.contains(&p);
                if !fits {
                    return Err(FormatError::Range { what: "cost of Argon2id", value: u64::from(m_kib) });
                }
                Kdf::Argon2id { m_kib, t, p }
            }
            2 if (m_kib, t, p) == (0, 0, 0) => Kdf::KeyFile,
            _ => return Err(FormatError::Range { what: "key derivation of a slot", value: u64::from(kdf) }),
        };
        let created = reader.u64()?;
        let (salt, nonce) = (*reader.array()?, *reader.array()?);
        let label = std::str::from_utf8(reader.take(label_bytes)?)
            .map_err(|_| FormatError::Text { what: "key slot label" })?
            .to_owned();
        let (commit, wrapped) = (*reader.array()?, *reader.array()?);
        reader.finish()?;
        Ok(Self { repo, id, kdf, created, salt, nonce, label, commit, wrapped })
    }
}
