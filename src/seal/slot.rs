//! Wraps the master key under a password or key file, and unwraps it. Key-committing: a slot answers to one secret only.
//!
//! Layout: format-spec/keys.md. Commitment after Len, Grubbs, Ristenpart, "Partitioning Oracle Attacks", USENIX Security 2021.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use crate::format::slot::{Kdf, Slot};
use crate::huge_pages::in_huge_pages;
use crate::id::{RepoId, SlotId};
use crate::limits::{ARGON2_M_KIB, ARGON2_P, ARGON2_T};
use crate::seal::keys::MasterKey;

/// What opens a slot.
#[derive(Clone)]
pub enum Secret {
    /// Bytes of a password.
    Password(Zeroizing<Vec<u8>>),
    /// Contents of a key file.
    KeyFile(Zeroizing<[u8; 32]>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Secret::Password(_) => "Password([redacted])",
            Secret::KeyFile(_) => "KeyFile([redacted])",
        })
    }
}

/// Why a slot did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The secret is of another sort, or simply not the one.
    #[error("not the secret of this key slot")]
    WrongSecret,
    #[error("key slot {id}: the stored bytes were changed")]
    Authentication { id: SlotId },
    #[error("key slot {id}: Argon2id failed: {detail}")]
    Kdf { id: SlotId, detail: String },
}

/// The random bytes of a new slot.
pub struct SlotEntropy {
    pub id: [u8; 16],
    pub salt: [u8; 32],
    pub nonce: [u8; 24],
}

/// Wraps `master` under `secret`. `created` is in seconds since 1970.
pub fn make_slot(
    repo: RepoId,
    master: &MasterKey,
    secret: &Secret,
    label: &str,
    created: u64,
    entropy: SlotEntropy,
) -> Result<Slot, SlotError> {
    let kdf = match secret {
        Secret::Password(_) => Kdf::Argon2id { m_kib: ARGON2_M_KIB, t: ARGON2_T, p: ARGON2_P },
        Secret::KeyFile(_) => Kdf::KeyFile,
    };
    let mut slot = Slot {
        repo,
        id: SlotId(entropy.id),
        kdf,
        created,
        salt: entropy.salt,
        nonce: entropy.nonce,
        label: label.to_owned(),
        commit: [0; 32],
        wrapped: [0; 52],
    };
    let header = slot.header();
    let (kek, commit) = slot_keys(&slot, &header, secret)?;
    slot.commit = commit;
    slot.wrapped[..32].copy_from_slice(&master.secret);
    slot.wrapped[32..36].copy_from_slice(&master.epoch.to_le_bytes());
    let (plain, tag_at) = slot.wrapped.split_at_mut(36);
    let tag = XChaCha20Poly1305::new((&*kek).into())
        .encrypt_inout_detached(&XNonce::from(entropy.nonce), &header, plain.into())
        .expect("36 bytes are far below the cipher's limit");
    tag_at.copy_from_slice(&tag);
    Ok(slot)
}

/// Unwraps the master key. `WrongSecret` costs one run of the key derivation and says nothing else.
pub fn open_slot(slot: &Slot, secret: &Secret) -> Result<MasterKey, SlotError> {
    let header = slot.header();
    let (kek, commit) = slot_keys(slot, &header, secret)?;
    // blake3::Hash compares in constant time.
    if blake3::Hash::from_bytes(commit) != blake3::Hash::from_bytes(slot.commit) {
        return Err(SlotError::WrongSecret);
    }
    let (wrapped, tag) = slot.wrapped.split_at(36);
    let mut plain = Zeroizing::new(<[u8; 36]>::try_from(wrapped).expect("the split is at 36"));
    let tag = Tag::from(<[u8; 16]>::try_from(tag).expect("52 - 36 is 16"));
    XChaCha20Poly1305::new((&*kek).into())
        .decrypt_inout_detached(&XNonce::from(slot.nonce), &header, plain.as_mut_slice().into(), &tag)
        .map_err(|_| SlotError::Authentication { id: slot.id })?;
    Ok(MasterKey {
        secret: plain[..32].try_into().expect("32 bytes"),
        epoch: u32::from_le_bytes(plain[32..].try_into().expect("4 bytes")),
    })
}

/// Key that wraps, and commitment, both from the secret and the slot's header.
fn slot_keys(slot: &Slot, header: &[u8], secret: &Secret) -> Result<(Zeroizing<[u8; 32]>, [u8; 32]), SlotError> {
    let mut prk = Zeroizing::new([0; 32]);
    match (slot.kdf, secret) {
        (Kdf::Argon2id { m_kib, t, p }, Secret::Password(password)) => {
            let failed = |error: argon2::Error| SlotError::Kdf { id: slot.id, detail: error.to_string() };
            let params = Params::new(m_kib, t, p, Some(32)).map_err(failed)?;
            let (blocks, mut memory) = (params.block_count(), Vec::new());
            memory.try_reserve_exact(blocks).map_err(|_| failed(argon2::Error::OutOfMemory))?;
            // Argon2id reads all over it, and gets it a third sooner.
            in_huge_pages(&mut memory);
            // By all threads: until one has got these pages from the system takes a third as long as what follows.
            memory.par_extend((0..blocks).into_par_iter().map(|_| Block::new()));
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into_with_memory(password, &slot.salt, prk.as_mut_slice(), memory)
                .map_err(failed)?;
        }
        (Kdf::KeyFile, Secret::KeyFile(file)) => {
            let mut hasher = blake3::Hasher::new_derive_key("vault 2026-11 v1 slot key-file");
            *prk = *hasher.update(&**file).update(&slot.salt).finalize().as_bytes();
        }
        _ => return Err(SlotError::WrongSecret),
    }
    let header_hash = blake3::hash(header);
    let mut material = Zeroizing::new([0; 64]);
    material[..32].copy_from_slice(&*prk);
    material[32..].copy_from_slice(header_hash.as_bytes());
    let kek = blake3::derive_key("vault 2026-11 v1 slot kek", &*material);
    let commit = blake3::derive_key("vault 2026-11 v1 slot commit", &*material);
    material.zeroize();
    Ok((Zeroizing::new(kek), commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Secret {
        Secret::Password(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_slot_opens_with_its_own_secret_only_and_notices_every_change() {
        let (repo, master) = (RepoId([5; 16]), MasterKey { secret: [6; 32], epoch: 0 });
        let entropy = || SlotEntropy { id: [1; 16], salt: [2; 32], nonce: [3; 24] };
        let file = Secret::KeyFile(Zeroizing::new([9; 32]));
        let by_file = make_slot(repo, &master, &file, "file", 0, entropy()).unwrap();
        assert_eq!(open_slot(&by_file, &file).unwrap(), master);
        let other = Secret::KeyFile(Zeroizing::new([8; 32]));
        assert!(matches!(open_slot(&by_file, &other), Err(SlotError::WrongSecret)));
        assert!(matches!(open_slot(&by_file, &password("x")), Err(SlotError::WrongSecret)));
        let stored = by_file.encode();
        assert_eq!(Slot::decode(&stored).unwrap(), by_file);
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let opened = Slot::decode(&flipped).ok().and_then(|slot| open_slot(&slot, &file).ok());
            assert_eq!(opened, None, "bit {bit} flipped");
        }
        let by_password = make_slot(repo, &master, &password("correct horse"), "", 0, entropy()).unwrap();
        assert_eq!(open_slot(&by_password, &password("correct horse")).unwrap(), master);
        assert!(matches!(open_slot(&by_password, &password("correct hors")), Err(SlotError::WrongSecret)));
    }

    #[test]
    fn a_slot_that_asks_for_too_much_memory_is_refused_before_it_gets_any() {
        let (repo, master) = (RepoId([5; 16]), MasterKey { secret: [6; 32], epoch: 0 });
        let entropy = SlotEntropy { id: [1; 16], salt: [2; 32], nonce: [3; 24] };
        let mut slot = make_slot(repo, &master, &Secret::KeyFile(Zeroizing::new([9; 32])), "", 0, entropy).unwrap();
        for (m_kib, t, p) in [(u32::MAX, 3, 4), (8, 3, 4), (65536, 1000, 4), (65536, 3, 0)] {
            slot.kdf = Kdf::Argon2id { m_kib, t, p };
            assert!(Slot::decode(&slot.encode()).is_err(), "{m_kib} {t} {p}");
        }
    }
}
