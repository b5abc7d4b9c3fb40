//! Packs: blobs back to back, then a sealed directory that says what they hold. Pure.
//!
//! Layout and limits: format-spec/pack.md; the blobs themselves: format-spec/blob.md.

use crate::format::FormatError;
use crate::format::bytes::Reader;
use crate::format::manifest::{CHUNK_ENTRY_BYTES, ChunkEntry, bytes_of};
use crate::limits::{
    BASE_BYTES_MAX, BLOB_BASES_MAX, BLOB_CHUNKS_MAX, BOX_BYTES_MIN, DELTA_DEPTH_MAX, PACK_BYTES_MAX, RAW_BYTES_MAX,
};

/// What a blob's chunks are part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum BlobKind {
    /// Plaintext of items.
    Data = 1,
    /// Item lines and chunk lists.
    Meta = 2,
}

impl BlobKind {
    /// Reads the wire value.
    pub fn from_u8(value: u8) -> Result<Self, FormatError> {
        match value {
            1 => Ok(Self::Data),
            2 => Ok(Self::Meta),
            _ => Err(FormatError::Range { what: "blob kind", value: u64::from(value) }),
        }
    }
}

/// What a blob holds: the list that its associated data names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobContents {
    pub kind: BlobKind,
    /// 0 without bases, else one more than the deepest blob that holds a base.
    pub depth: u8,
    /// The chunks, in order; their plaintexts concatenated are the blob's plaintext.
    pub chunks: Vec<ChunkEntry>,
    /// The chunks whose plaintexts concatenated are the prefix of its zstd frame.
    pub bases: Vec<ChunkEntry>,
}

impl BlobContents {
    /// Plaintext bytes of the blob.
    pub fn raw_bytes(&self) -> usize {
        bytes_of(&self.chunks)
    }

    /// Takes its bases from it.
    pub fn stand_alone(&mut self) {
        self.bases.clear();
        self.depth = 0;
    }

    /// Appends the list: kind, depth, counts, chunks, bases.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = |n: usize| u16::try_from(n).expect("a blob has at most BLOB_CHUNKS_MAX chunks and bases");
        out.push(self.kind as u8);
        out.push(self.depth);
        out.extend_from_slice(&count(self.chunks.len()).to_le_bytes());
        out.extend_from_slice(&count(self.bases.len()).to_le_bytes());
        self.chunks.iter().chain(&self.bases).for_each(|entry| entry.encode(out));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let kind = BlobKind::from_u8(reader.u8()?)?;
        let depth = reader.u8()?;
        let (n_chunks, n_bases) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        if n_chunks == 0 || n_chunks > BLOB_CHUNKS_MAX {
            return Err(FormatError::Range { what: "number of chunks in a blob", value: n_chunks as u64 });
        }
        if n_bases > BLOB_BASES_MAX {
            return Err(FormatError::Range { what: "number of bases of a blob", value: n_bases as u64 });
        }
        if depth > DELTA_DEPTH_MAX || (depth == 0) != (n_bases == 0) {
            return Err(FormatError::Range { what: "delta depth", value: u64::from(depth) });
        }
        if reader.left() < (n_chunks + n_bases) * CHUNK_ENTRY_BYTES {
            return Err(FormatError::Truncated { what: "blob contents" });
        }
        let mut entries = |n: usize| (0..n).map(|_| ChunkEntry::decode(reader.array()?)).collect::<Result<Vec<_>, _>>();
        let contents = Self { kind, depth, chunks: entries(n_chunks)?, bases: entries(n_bases)? };
        if contents.raw_bytes() > RAW_BYTES_MAX {
            return Err(FormatError::Range { what: "plaintext of a blob", value: contents.raw_bytes() as u64 });
        }
        let base_bytes = bytes_of(&contents.bases);
        if base_bytes > BASE_BYTES_MAX {
            return Err(FormatError::Range { what: "bases of a blob", value: base_bytes as u64 });
        }
        Ok(contents)
    }

    /// Reads one encoded list and nothing else.
    pub fn decode_exact(raw: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("blob contents", raw);
        let contents = Self::decode(&mut reader)?;
        reader.finish()?;
        Ok(contents)
    }
}

/// One blob of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobEntry {
    /// Bytes from the start of the pack.
    pub offset: u32,
    /// Stored bytes: header, ciphertext and tag.
    pub stored: u32,
    pub contents: BlobContents,
}

/// The blobs of one pack, in the order in which they lie.
pub type Directory = Vec<BlobEntry>;

/// Returns the plaintext of a directory.
pub fn encode_directory(entries: &[BlobEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&entry.offset.to_le_bytes());
        out.extend_from_slice(&entry.stored.to_le_bytes());
        entry.contents.encode(&mut out);
    }
    out
}

/// Reads a directory. Blobs must lie back to back from offset 0.
pub fn decode_directory(raw: &[u8]) -> Result<Directory, FormatError> {
    let mut reader = Reader::new("pack directory", raw);
    let mut entries = Vec::new();
    let mut end = 0u64;
    while reader.left() > 0 {
        let (offset, stored) = (reader.u32()?, reader.u32()?);
        if u64::from(offset) != end {
            return Err(FormatError::Range { what: "blob offset", value: u64::from(offset) });
        }
        if (stored as usize) < BOX_BYTES_MIN {
            return Err(FormatError::Range { what: "stored length of a blob", value: u64::from(stored) });
        }
        end += u64::from(stored);
        if end > PACK_BYTES_MAX as u64 {
            return Err(FormatError::Range { what: "end of a blob", value: end });
        }
        entries.push(BlobEntry { offset, stored, contents: BlobContents::decode(&mut reader)? });
    }
    Ok(entries)
}

/// Where the last blob ends.
pub fn blobs_end(directory: &[BlobEntry]) -> u64 {
    directory.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.stored))
}

/// Refuses a directory whose blobs do not end where it begins, at `start` in its pack.
pub fn check_filled(directory: &[BlobEntry], start: u64) -> Result<(), FormatError> {
    let end = blobs_end(directory);
    if end == start { Ok(()) } else { Err(FormatError::Range { what: "end of the blobs of a pack", value: end }) }
}

/// Last bytes of every pack.
pub const PACK_MAGIC: &[u8; 8] = b"VLTPACK1";
/// Size of what follows the sealed directory: its length as `u32`, then [`PACK_MAGIC`].
pub const PACK_TRAILER_BYTES: usize = 12;

/// Returns the trailer of a pack whose sealed directory has `directory_bytes`.
pub fn encode_trailer(directory_bytes: usize) -> [u8; PACK_TRAILER_BYTES] {
    let mut out = [0; PACK_TRAILER_BYTES];
    out[..4].copy_from_slice(&u32::try_from(directory_bytes).expect("directories are bounded").to_le_bytes());
    out[4..].copy_from_slice(PACK_MAGIC);
    out
}

/// Returns the range of the sealed directory in a pack of `pack_bytes`, from the pack's last bytes.
///
/// `tail` is the end of the pack, at least [`PACK_TRAILER_BYTES`] long.
pub fn directory_range(pack_bytes: u64, tail: &[u8]) -> Result<std::ops::Range<u64>, FormatError> {
    let trailer = tail.last_chunk::<PACK_TRAILER_BYTES>().ok_or(FormatError::Truncated { what: "pack" })?;
    if &trailer[4..] != PACK_MAGIC {
        return Err(FormatError::Magic { what: "pack trailer" });
    }
    let directory = u64::from(u32::from_le_bytes(trailer[..4].try_into().expect("4 bytes")));
    let end = pack_bytes.checked_sub(PACK_TRAILER_BYTES as u64).ok_or(FormatError::Truncated { what: "pack" })?;
    let fits = (BOX_BYTES_MIN as u64..=(BOX_BYTES_MIN + RAW_BYTES_MAX) as u64).contains(&directory);
    let start = end.checked_sub(directory).filter(|_| fits && pack_bytes <= PACK_BYTES_MAX as u64);
    Ok(start.ok_or(FormatError::Range { what: "directory length", value: directory })?..end)
}
