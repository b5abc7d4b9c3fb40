//! Walks what manifests lead to: item lines, items, chunk lists, chunks. What many manifests share is read once.
//!
//! Chunk lists and item lines are streams of their own, cut by content, so a backup that changed little shares nearly all
//! of their chunks with the one before. The walker remembers, for each such chunk, the few bytes at its edges that belong
//! to a record that lies across it, and the sums of what is inside; a second visit needs no more.

use std::collections::HashMap;

use crate::format::manifest::{CHUNK_ENTRY_BYTES, ChunkEntry, Item, Manifest, StreamRef, decode_entries};
use crate::format::pack::BlobKind;
use crate::id::ChunkId;
use crate::limits::{ITEM_LINE_BYTES_MAX, STREAM_DEPTH_MAX};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::repo::RepoError;

/// Who has been led to something: a manifest by number, or more than one of them.
pub type Owner = u32;
/// More than one.
pub const SHARED: Owner = Owner::MAX;

/// What a walk meets. Errors end the walk.
pub trait Visit {
    /// A chunk that the manifest leads to. Not called again for what was visited for the same owner, or for two others.
    fn chunk(&mut self, kind: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError>;

    /// The chunks of the item lines have all been visited; what follows belongs to items.
    fn lines_done(&mut self) {}

    /// An item, after its chunks. `walked` says whether its lists could be read and add up to its length.
    fn item(&mut self, _item: &Item, walked: Result<(), PipelineError>) -> Result<(), PipelineError> {
        walked
    }
}

/// Sums over what a walk led to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub items: u64,
    pub bytes: u64,
    pub rows: u64,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        // Saturating: the lines come from outside.
        self.items = self.items.saturating_add(other.items);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.rows = self.rows.saturating_add(other.rows);
    }
}

/// A chunk of a list of chunks of an item.
struct SeenList {
    owner: Owner,
    /// Bytes of its first entry that lie in the chunk before.
    phase: u8,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Plaintext bytes of the entries that lie wholly inside.
    bytes: u64,
}

/// A chunk of item lines.
struct SeenLines {
    owner: Owner,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// The lines that lie wholly inside.
    sums: Sums,
}

/// Walks manifests one after another.
pub struct Walker<'r> {
    reader: &'r Reader,
    lists: HashMap<ChunkId, SeenList>,
    lines: HashMap<ChunkId, SeenLines>,
    owner: Owner,
    remember: bool,
}

impl<'r> Walker<'r> {
    /// A walker that passes over what it has seen.
    pub fn new(reader: &'r Reader) -> Self {
        Self { reader, lists: HashMap::new(), lines: HashMap::new(), owner: 0, remember: true }
    }

    /// A walker that visits everything every time.
    pub fn thorough(reader: &'r Reader) -> Self {
        Self { remember: false, ..Self::new(reader) }
    }

    /// Visits all that a manifest leads to and returns the sums over its items.
    pub fn walk(&mut self, owner: Owner, manifest: &Manifest, visit: &mut dyn Visit) -> Result<Sums, PipelineError> {
        self.owner = owner;
        let mut entries = Vec::new();
        self.walk_stream(&manifest.item_lines, BlobKind::Meta, &mut |kind, entry, at_depth_0| {
            if at_depth_0 {
                entries.push(*entry);
            }
            visit.chunk(kind, entry)
        })?;
        visit.lines_done();
        let mut sums = Sums::default();
        let mut carried: Vec<u8> = Vec::new();
        for entry in entries {
            if let Some(seen) = self.lines.get(&entry.id).filter(|seen| seen.owner == owner || seen.owner == SHARED) {
                carried.extend_from_slice(&seen.head);
                let (tail, inside) = (seen.tail.clone(), seen.sums);
                sums.add(self.line(&carried, visit)?);
                sums.add(inside);
                carried = tail;
                continue;
            }
            let (blob, range) = self.reader.chunk(BlobKind::Meta, &entry)?;
            let text = &blob[range];
            let (Some(first), Some(last)) =
                (text.iter().position(|&b| b == b'\n'), text.iter().rposition(|&b| b == b'\n'))
            else {
                carried.extend_from_slice(text);
                if carried.len() > ITEM_LINE_BYTES_MAX {
                    return Err(damaged("item lines", "one of them is too long"));
                }
                continue;
            };
            carried.extend_from_slice(&text[..first]);
            sums.add(self.line(&carried, visit)?);
            let mut inside = Sums::default();
            if first < last {
                for line in text[first + 1..last].split(|&b| b == b'\n') {
                    inside.add(self.line(line, visit)?);
                }
            }
            sums.add(inside);
            carried = text[last + 1..].to_vec();
            if self.remember {
                let head = text[..first].to_vec();
                let owner = if self.lines.contains_key(&entry.id) { SHARED } else { owner };
                self.lines.insert(entry.id, SeenLines { owner, head, tail: carried.clone(), sums: inside });
            }
        }
        if carried.is_empty() { Ok(sums) } else { Err(damaged("item lines", "the last of them has no end")) }
    }

    fn line(&mut self, line: &[u8], visit: &mut dyn Visit) -> Result<Sums, PipelineError> {
        let item =
            Item::decode_line(line).map_err(|source| RepoError::Format { name: "an item line".to_owned(), source })?;
        let walked = self
            .walk_stream(&item.stream, BlobKind::Data, &mut |kind, entry, _| visit.chunk(kind, entry))
            .and_then(|bytes| match bytes == item.bytes {
                true => Ok(()),
                false => {
                    let detail = format!("has {} bytes, its chunks add up to {bytes}", item.bytes);
                    Err(PipelineError::Item { path: item.path.clone(), detail })
                }
            });
        visit.item(&item, walked)?;
        Ok(Sums { items: 1, bytes: item.bytes, rows: item.rows.unwrap_or(0) })
    }

    /// Visits the chunks of a stream and of its lists; returns the stream's plaintext bytes.
    pub fn walk_stream(
        &mut self,
        stream: &StreamRef,
        kind: BlobKind,
        visit: &mut dyn FnMut(BlobKind, &ChunkEntry, bool) -> Result<(), PipelineError>,
    ) -> Result<u64, PipelineError> {
        if stream.depth > STREAM_DEPTH_MAX {
            return Err(damaged("a chunk list", "it is too deep"));
        }
        let mut carried = vec![Vec::new(); stream.depth as usize];
        let mut bytes = 0u64;
        for entry in &stream.entries {
            bytes = bytes.saturating_add(self.entry(&mut carried, *entry, kind, visit)?);
        }
        if carried.iter().all(Vec::is_empty) {
            Ok(bytes)
        } else {
            Err(damaged("a chunk list", "it ends within an entry"))
        }
    }

    /// `carried` has, for each level of lists from the lowest to that of `entry`, the part of an entry read so far.
    fn entry(
        &mut self,
        carried: &mut [Vec<u8>],
        entry: ChunkEntry,
        kind: BlobKind,
        visit: &mut dyn FnMut(BlobKind, &ChunkEntry, bool) -> Result<(), PipelineError>,
    ) -> Result<u64, PipelineError> {
        let Some((rest, lower)) = carried.split_last_mut() else {
            visit(kind, &entry, true)?;
            return Ok(u64::from(entry.bytes));
        };
        visit(BlobKind::Meta, &entry, false)?;
        // Only lists of a stream's own chunks are remembered: above them there is one in 1,800 of those. Those of item
        // lines are read each time too: what is skipped there would be missing from the lines.
        let remember = self.remember && lower.is_empty() && kind == BlobKind::Data;
        let phase = u8::try_from(rest.len()).expect("less than an entry is carried");
        if remember {
            let known = self.lists.get(&entry.id).filter(|seen| seen.phase == phase);
            if let Some(seen) = known.filter(|seen| seen.owner == self.owner || seen.owner == SHARED) {
                let mut bytes = seen.bytes;
                rest.extend_from_slice(&seen.head);
                if !rest.is_empty() {
                    bytes += decode(rest)?.iter().try_fold(0, |sum, entry| {
                        visit(kind, entry, true)?;
                        Ok::<u64, PipelineError>(sum + u64::from(entry.bytes))
                    })?;
                }
                rest.clone_from(&seen.tail);
                return Ok(bytes);
            }
        }
        let (blob, range) = self.reader.chunk(BlobKind::Meta, &entry)?;
        let plaintext = &blob[range];
        let head_bytes = (CHUNK_ENTRY_BYTES - usize::from(phase)) % CHUNK_ENTRY_BYTES;
        rest.extend_from_slice(plaintext);
        let tail = rest.split_off(rest.len() - rest.len() % CHUNK_ENTRY_BYTES);
        let listed = decode(rest)?;
        *rest = tail;
        let tail = rest.clone();
        let mut bytes = 0u64;
        for entry in &listed {
            bytes = bytes.saturating_add(self.entry(lower, *entry, kind, visit)?);
        }
        if remember && plaintext.len() >= head_bytes {
            let across = if head_bytes > 0 { listed.first().map_or(0, |entry| u64::from(entry.bytes)) } else { 0 };
            let seen = SeenList {
                owner: self.owner,
                phase,
                head: plaintext[..head_bytes].to_vec(),
                tail,
                bytes: bytes - across,
            };
            match self.lists.get_mut(&entry.id) {
                Some(known) if known.phase == phase => known.owner = SHARED,
                Some(_) => {}
                None => {
                    self.lists.insert(entry.id, seen);
                }
            }
        }
        Ok(bytes)
    }
}

fn decode(raw: &[u8]) -> Result<Vec<ChunkEntry>, PipelineError> {
    decode_entries(raw).map_err(|error| damaged("a chunk list", &error.to_string()))
}

fn damaged(name: &str, detail: &str) -> PipelineError {
    RepoError::Damaged { name: name.to_owned(), detail: detail.to_owned() }.into()
}
