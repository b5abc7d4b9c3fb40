//! The manifest: what one backup wrote. Also the items and the stream references that it leads to.
//!
//! Layout and limits: format-spec/manifest.md.

use data_encoding::BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::format::FormatError;
use crate::id::{ChunkId, HostId, ObjectId};
use crate::limits::{
    CHUNK_BYTES_MAX, ITEM_LINE_BYTES_MAX, LIST_INLINE_ENTRIES_MAX, MANIFEST_BYTES_MAX, STREAM_DEPTH_MAX,
};

/// Version of the manifest's own fields.
pub const MANIFEST_VERSION: u32 = 1;

/// The root object of a snapshot. Its name, the BLAKE3 of its stored bytes, is the backup ID.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub vault: u32,
    /// When the backup began, by the clock of the host that made it.
    pub time: Timestamp,
    /// `postgres`, `stdin`, `files`...
    pub source: String,
    /// Which one of its kind: the database, the name given to a stream, the folder.
    pub name: String,
    /// Name of the host for people.
    pub host: String,
    /// Installation that made it; its manifests form a chain.
    pub host_id: HostId,
    /// 1 for the first manifest of `host_id` in this repository, then one more each.
    pub seq: u64,
    /// The manifest of `host_id` with `seq - 1`, if there was one.
    pub previous: Option<ObjectId>,
    /// The snapshot of the same source that this one was compared with.
    pub parent: Option<ObjectId>,
    pub tags: Vec<String>,
    /// Version of vault that wrote it.
    pub tool: String,
    /// Engine and tool versions of the source.
    pub engine: Map<String, Value>,
    /// The point in time that the items show.
    pub consistency: Map<String, Value>,
    pub warnings: Vec<String>,
    /// Options of the run that decide what is in it, e.g. `{"schema_only": true}`.
    pub options: Map<String, Value>,
    /// Number of items.
    pub items: u64,
    /// Sum over items that have rows.
    pub rows: u64,
    /// Plaintext bytes of all items.
    pub bytes: u64,
    /// Plaintext bytes of chunks that were not stored before.
    pub bytes_new: u64,
    /// Bytes of the packs and index objects that this backup added.
    pub bytes_stored: u64,
    /// How long it took, from start to the manifest.
    pub seconds: f64,
    /// Chunk geometries that item streams name by position.
    pub chunkers: Vec<ChunkerParams>,
    /// The stream of item lines: JSON objects ([`Item`]) in order, each ended by a newline.
    pub item_lines: StreamRef,
}

/// How a stream was cut. A stream can be read without it; the next backup cuts the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkerParams {
    /// 1: FastCDC of format-spec/chunking.md. 2 is kept for one with a keyed decision.
    pub chunker: u32,
    /// Smallest, normal and largest chunk in bytes.
    pub min: u32,
    pub avg: u32,
    pub max: u32,
}

/// One named byte stream of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Unique in the snapshot; see [`ItemSink::begin`](crate::source::ItemSink::begin).
    pub path: String,
    /// The source's word for what it is.
    pub kind: String,
    /// Plaintext bytes.
    pub bytes: u64,
    /// BLAKE3 of the plaintext, lower-case hex.
    pub hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Plaintext bytes of its chunks that were not stored before.
    #[serde(default)]
    pub bytes_new: u64,
    /// Position in the manifest's `chunkers`.
    #[serde(default)]
    pub chunker: u32,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub meta: Map<String, Value>,
    pub stream: StreamRef,
}

/// The chunks of a stream.
///
/// At depth 0 `entries` name the chunks of the stream itself, in order. At depth d > 0 they name list chunks whose
/// concatenated plaintext is the entries of depth d - 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "StreamRefText", into = "StreamRefText")]
pub struct StreamRef {
    pub depth: u32,
    pub entries: Vec<ChunkEntry>,
}

/// One chunk of a stream: its id and the length of its plaintext in bytes, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    pub id: ChunkId,
    pub bytes: u32,
}

/// Size of an encoded [`ChunkEntry`].
pub const CHUNK_ENTRY_BYTES: usize = 36;

impl ChunkEntry {
    /// Appends the entry: id, then length as `u32` little-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    /// Reads an entry. The length must be in `1..=CHUNK_BYTES_MAX`.
    pub fn decode(raw: &[u8; CHUNK_ENTRY_BYTES]) -> Result<Self, FormatError> {
        let (id, bytes) = raw.split_at(32);
        let bytes = u32::from_le_bytes(bytes.try_into().expect("36 - 32 is 4"));
        if bytes == 0 || bytes as usize > CHUNK_BYTES_MAX {
            return Err(FormatError::Range { what: "chunk length", value: u64::from(bytes) });
        }
        Ok(Self { id: ChunkId(id.try_into().expect("the split is at 32")), bytes })
    }
}

/// Reads a run of entries, of which there must be a whole number.
pub fn decode_entries(raw: &[u8]) -> Result<Vec<ChunkEntry>, FormatError> {
    let (entries, rest) = raw.as_chunks::<CHUNK_ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(FormatError::Truncated { what: "chunk list" });
    }
    entries.iter().map(ChunkEntry::decode).collect()
}

/// Bytes of plaintext that chunks have together.
pub fn bytes_of(chunks: &[ChunkEntry]) -> usize {
    chunks.iter().map(|chunk| chunk.bytes as usize).sum()
}

/// Appends the entries one after another.
pub fn encode_entries(entries: &[ChunkEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * CHUNK_ENTRY_BYTES);
    entries.iter().for_each(|entry| entry.encode(&mut out));
    out
}

#[derive(Serialize, Deserialize)]
struct StreamRefText {
    depth: u32,
    list: String,
}

impl From<StreamRef> for StreamRefText {
    fn from(stream: StreamRef) -> Self {
        Self { depth: stream.depth, list: BASE64.encode(&encode_entries(&stream.entries)) }
    }
}

impl TryFrom<StreamRefText> for StreamRef {
    type Error = FormatError;
    fn try_from(text: StreamRefText) -> Result<Self, FormatError> {
        if text.depth > STREAM_DEPTH_MAX {
            return Err(FormatError::Range { what: "stream depth", value: u64::from(text.depth) });
        }
        let raw = BASE64.decode(text.list.as_bytes()).map_err(|_| FormatError::Text { what: "chunk list" })?;
        if raw.len() > LIST_INLINE_ENTRIES_MAX * CHUNK_ENTRY_BYTES {
            return Err(FormatError::Range { what: "inline chunk list", value: raw.len() as u64 });
        }
        Ok(Self { depth: text.depth, entries: decode_entries(&raw)? })
    }
}

impl Manifest {
    /// Returns the JSON text that is sealed.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only string keys and finite numbers")
    }

    /// Reads the JSON text. Unknown fields are ignored; an unknown version is an error.
    pub fn decode(text: &[u8]) -> Result<Self, FormatError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(FormatError::Range { what: "manifest size", value: text.len() as u64 });
        }
        #[derive(Deserialize)]
        struct Head {
            vault: u32,
        }
        let json = |source| FormatError::Json { what: "manifest", source };
        // The version first: another one may have other fields.
        let head: Head = serde_json::from_slice(text).map_err(json)?;
        if head.vault != MANIFEST_VERSION {
            return Err(FormatError::Version { what: "manifest", found: head.vault, known: MANIFEST_VERSION });
        }
        serde_json::from_slice(text).map_err(json)
    }
}

impl Item {
    /// Appends the item's line with its newline.
    pub fn encode_line(&self, out: &mut Vec<u8>) {
        serde_json::to_writer(&mut *out, self).expect("an item has only string keys and finite numbers");
        out.push(b'\n');
    }

    /// Reads a line without its newline, and refuses paths that no source can have written.
    pub fn decode_line(line: &[u8]) -> Result<Self, FormatError> {
        if line.len() >= ITEM_LINE_BYTES_MAX {
            return Err(FormatError::Range { what: "length of an item line", value: line.len() as u64 });
        }
        let item: Self =
            serde_json::from_slice(line).map_err(|source| FormatError::Json { what: "item line", source })?;
        check_item_path(&item.path)?;
        if item.hash.parse::<ObjectId>().is_err() {
            return Err(FormatError::Text { what: "hash of an item" });
        }
        Ok(item)
    }
}

/// Longest item path in bytes.
pub const ITEM_PATH_BYTES_MAX: usize = 4096;

/// Refuses a path that is empty, absolute, too long, or has a component that is empty, `.`, `..` or holds a NUL.
pub fn check_item_path(path: &str) -> Result<(), FormatError> {
    let fine = path.len() <= ITEM_PATH_BYTES_MAX
        && path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
    if fine { Ok(()) } else { Err(FormatError::Path { path: path.chars().take(200).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seconds_of_a_manifest_stay_what_they_were() {
        // A parser that rounds the last digit makes another number of them each time.
        let raw = br#"{"vault":1,"time":"2026-11-21T12:00:00Z","source":"stdin","name":"orders","host":"db1",
            "host_id":"00112233445566778899aabbccddeeff","seq":1,"previous":null,"parent":null,"tags":[],"warnings":[],
            "tool":"0.1.0","engine":{},"consistency":{},"options":{},"items":0,"rows":0,"bytes":5,"bytes_new":0,
            "bytes_stored":5,"seconds":1.33333333333333333333333333325,
            "chunkers":[{"chunker":1,"min":16384,"avg":65536,"max":262144}],"item_lines":{"depth":0,"list":""}}"#;
        let once = Manifest::decode(raw).unwrap().encode();
        assert_eq!(Manifest::decode(&once).unwrap().encode(), once);
    }
}
