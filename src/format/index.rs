//! Index objects: the directories of many packs in one sealed object. Pure.
//!
//! Layout: format-spec/index.md.

use crate::format::FormatError;
use crate::format::bytes::Reader;
use crate::format::pack::{Directory, PACK_TRAILER_BYTES, blobs_end, decode_directory, encode_directory};
use crate::id::ObjectId;
use crate::limits::{BOX_BYTES_MIN, PACK_BYTES_MAX};

/// What one index object says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// Index objects that this one takes the place of: whoever sees both ignores those.
    pub supersedes: Vec<ObjectId>,
    pub packs: Vec<PackIndex>,
}

/// One pack of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    pub pack: ObjectId,
    /// Size of the whole pack in bytes.
    pub bytes: u32,
    pub directory: Directory,
}

impl Index {
    /// Returns the plaintext that is sealed.
    pub fn encode(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).expect("index objects are bounded").to_le_bytes();
        let mut out = Vec::new();
        out.extend_from_slice(&count(self.supersedes.len()));
        self.supersedes.iter().for_each(|id| out.extend_from_slice(id.as_bytes()));
        out.extend_from_slice(&count(self.packs.len()));
        for pack in &self.packs {
            let directory = encode_directory(&pack.directory);
            out.extend_from_slice(pack.pack.as_bytes());
            out.extend_from_slice(&pack.bytes.to_le_bytes());
            out.extend_from_slice(&count(directory.len()));
            out.extend_from_slice(&directory);
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(raw: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("index", raw);
        let n_supersedes = reader.u32()? as usize;
        if reader.left() < n_supersedes.saturating_mul(ObjectId::LEN) {
            return Err(FormatError::Truncated { what: "index" });
        }
        let supersedes =
            (0..n_supersedes).map(|_| Ok(ObjectId(*reader.array()?))).collect::<Result<Vec<_>, FormatError>>()?;
        let n_packs = reader.u32()?;
        let mut packs = Vec::new();
        for _ in 0..n_packs {
            let pack = ObjectId(*reader.array()?);
            let bytes = reader.u32()?;
            if bytes as usize > PACK_BYTES_MAX {
                return Err(FormatError::Range { what: "pack size", value: u64::from(bytes) });
            }
            let directory_bytes = reader.u32()? as usize;
            let directory = decode_directory(reader.take(directory_bytes)?)?;
            // Behind the blobs the pack has at least an empty directory and its trailer.
            if blobs_end(&directory) + (BOX_BYTES_MIN + PACK_TRAILER_BYTES) as u64 > u64::from(bytes) {
                return Err(FormatError::Range { what: "end of a blob", value: blobs_end(&directory) });
            }
            packs.push(PackIndex { pack, bytes, directory });
        }
        reader.finish()?;
        Ok(Self { supersedes, packs })
    }
}
