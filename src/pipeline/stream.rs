//! One stream of plaintext, cut into chunks. Chunks that are stored already end here.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use crate::chunk::{Chunker, Cut, Segments, cut_ahead};
use crate::format::manifest::{ChunkEntry, StreamRef, encode_entries};
use crate::format::pack::{BlobContents, BlobKind};
use crate::id::{ChunkId, ObjectId};
use crate::limits::{
    BASE_BYTES_MAX, BLOB_BASES_MAX, BLOB_BYTES_MAX, BLOB_CHUNKS_MAX, DELTA_BLOB_BYTES_MIN, LIST_INLINE_ENTRIES,
    SEGMENT_BYTES, SIMILAR_FRONT_CHUNKS, STANDING_BLOBS,
};
use crate::pipeline::PipelineError;
use crate::pipeline::delta::{Candidates, Guessed};
use crate::pipeline::packer::{Blob, Packer, Pending};
use crate::pipeline::snapshot::Counters;
use crate::pipeline::stream_hash::{SegmentHash, StreamHash};
use crate::progress::Progress;
use crate::repo::Repository;
use crate::repo::index::{BlobRow, Location};
use crate::seal::blob::name_of;

/// Below this a blob's rest at the end of a stream waits for the next stream, so that small items share blobs.
const TAIL_BYTES_MIN: usize = 1 << 20;
/// Less than this at the end of a stream is hashed and cut by one thread: a second would cost more than it saves.
const SIDE_BY_SIDE_BYTES_MIN: usize = 1 << 20;

/// What all streams of a snapshot share.
pub struct Shared {
    pub repo: Arc<Repository>,
    pub chunker: Chunker,
    pub packer: RwLock<Packer>,
    pub pending: Arc<Pending>,
    pub counters: Counters,
    pub progress: Progress,
    /// Packs that new backups must not rest on.
    pub marked: Arc<HashSet<ObjectId>>,
    /// Old packs that this backup rests on.
    pub rests_on: Arc<Mutex<HashSet<ObjectId>>>,
    /// Blobs that were looked at: if they have all their bases, the blob at the beginning of their chain.
    pub standing: Mutex<HashMap<BlobPlace, Option<BlobPlace>>>,
    /// Rests of streams, waiting to fill a blob: data, meta.
    pub tails: [Mutex<BlobBuilder>; 2],
    /// Threads that may still be begun to help with a stream, and buffers of [`SEGMENT_BYTES`] to be used again.
    pub helpers: AtomicUsize,
    pub segment_buffers: Mutex<Vec<Vec<u8>>>,
}

/// Chunks gathered for one blob.
pub struct BlobBuilder {
    kind: BlobKind,
    chunks: Vec<ChunkEntry>,
    plaintext: Vec<u8>,
    /// Candidates for bases, in order, and where they lie.
    bases: Vec<Base>,
    base_bytes: usize,
    guessed: Guessed,
}

/// A chunk that new ones may be compressed against.
pub struct Base {
    pub entry: ChunkEntry,
    pub place: Location,
    /// The blob at the beginning of the chain that leads to it.
    root: BlobPlace,
}

/// A blob: its pack, and where it begins there.
pub type BlobPlace = (ObjectId, u32);

impl BlobBuilder {
    pub fn new(kind: BlobKind) -> Self {
        let (chunks, plaintext, bases, base_bytes, guessed) = Default::default();
        Self { kind, chunks, plaintext, bases, base_bytes, guessed }
    }

    /// Whether a chunk of `bytes` with these bases is better begun in the next blob.
    ///
    /// A blob ends where the oldest version of it ends: so what changes again and again at a place rests on blobs of that
    /// place alone, and who reads a chain of them opens each once.
    fn ends_before(&self, bytes: usize, bases: &[Base]) -> bool {
        let base_bytes: usize = bases.iter().map(|base| base.entry.bytes as usize).sum();
        let is_full = self.plaintext.len() + bytes > BLOB_BYTES_MAX
            || self.chunks.len() >= BLOB_CHUNKS_MAX
            || self.bases.len() + bases.len() > BLOB_BASES_MAX
            || self.base_bytes + base_bytes > BASE_BYTES_MAX;
        let moves_on = || match (self.bases.last(), bases.first()) {
            (Some(last), Some(first)) => last.root != first.root,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        !self.chunks.is_empty() && (is_full || (self.plaintext.len() >= DELTA_BLOB_BYTES_MIN && moves_on()))
    }

    /// Adds what is not yet among the bases, as far as there is room.
    fn add_bases(&mut self, bases: Vec<Base>) {
        for base in bases {
            let bytes = self.base_bytes + base.entry.bytes as usize;
            let is_known = self.bases.iter().any(|known| known.entry == base.entry);
            if self.bases.len() < BLOB_BASES_MAX && bytes <= BASE_BYTES_MAX && !is_known {
                self.bases.push(base);
                self.base_bytes = bytes;
            }
        }
    }

    /// Sends what was gathered and starts anew.
    pub fn flush(&mut self, packer: &Packer) -> Result<(), PipelineError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let plaintext = std::mem::replace(&mut self.plaintext, packer.buffer());
        let chunks = std::mem::take(&mut self.chunks);
        let (candidates, guessed) = (std::mem::take(&mut self.bases), std::mem::take(&mut self.guessed));
        self.base_bytes = 0;
        let contents = BlobContents { kind: self.kind, depth: 0, chunks, bases: Vec::new() };
        packer.push(Blob::Plain { contents, plaintext, candidates, guessed })
    }
}

/// A stream being written.
pub struct StreamWriter {
    /// What came after the last whole segment that was taken in.
    gathered: Vec<u8>,
    hash: StreamHash,
    cutter: Cutter,
}

/// What is made of a segment before its turn.
pub struct Ahead {
    hash: SegmentHash,
    cuts: Vec<Cut<ChunkId>>,
}

/// The part of a stream's work that looks at chunks.
struct Cutter {
    shared: Arc<Shared>,
    kind: BlobKind,
    segments: Segments,
    blob: BlobBuilder,
    list: ListBuilder,
    candidates: Candidates,
    /// By these other items of the snapshot may be recognised as versions of this one.
    first_chunks: Vec<ChunkEntry>,
    bytes: u64,
    bytes_new: u64,
}

/// What came of a stream.
#[derive(Debug, Clone)]
pub struct StreamDone {
    pub stream: StreamRef,
    pub bytes: u64,
    pub bytes_new: u64,
    pub hash: blake3::Hash,
    pub first_chunks: Vec<ChunkEntry>,
}

impl StreamWriter {
    /// `candidates` is where bases are looked for.
    pub fn new(shared: Arc<Shared>, kind: BlobKind, candidates: Candidates) -> Self {
        let list = ListBuilder { shared: shared.clone(), entries: Vec::new(), deeper: None };
        let cutter = Cutter {
            shared,
            kind,
            segments: Segments::default(),
            blob: BlobBuilder::new(kind),
            list,
            candidates,
            first_chunks: Vec::new(),
            bytes: 0,
            bytes_new: 0,
        };
        Self { gathered: Vec::new(), hash: StreamHash::new(SEGMENT_BYTES), cutter }
    }

    /// Takes bytes in. Errors if storing failed or the run was cancelled.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), PipelineError> {
        while !bytes.is_empty() {
            let room = SEGMENT_BYTES - self.gathered.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if self.gathered.len() == SEGMENT_BYTES {
                self.end_segment()?;
            }
        }
        Ok(())
    }

    /// Takes in the segment that was gathered.
    fn end_segment(&mut self) -> Result<(), PipelineError> {
        let segment = std::mem::take(&mut self.gathered);
        let (first, second) = segment.split_at(SEGMENT_BYTES / 2);
        let at = self.hash.next_at();
        let (shared, kind) = self.shared();
        let (hash, ahead) = rayon::join(
            || self.cutter.take(first, Vec::new(), false).map(|()| SegmentHash::new(at, first)),
            || shared.look_ahead(kind, at + first.len() as u64, second),
        );
        self.hash.push(SegmentHash::of_halves(&hash?, &ahead.hash));
        self.cutter.take(second, ahead.cuts, false)?;
        self.gathered = segment;
        self.gathered.clear();
        Ok(())
    }

    /// What all streams of the snapshot share, and what this one is of.
    pub(super) fn shared(&self) -> (Arc<Shared>, BlobKind) {
        (self.cutter.shared.clone(), self.cutter.kind)
    }

    /// Where the next segment begins in the stream; none while something is gathered.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.gathered.is_empty().then(|| self.hash.next_at())
    }

    /// Takes in a segment in its turn.
    pub(super) fn push_segment(&mut self, segment: &[u8], ahead: Ahead) -> Result<(), PipelineError> {
        assert!(segment.len() == SEGMENT_BYTES && self.gathered.is_empty(), "it is a segment in its place");
        self.hash.push(ahead.hash);
        self.cutter.take(segment, ahead.cuts, false)
    }

    /// Ends the stream.
    pub fn finish(self) -> Result<StreamDone, PipelineError> {
        let Self { gathered, hash, mut cutter } = self;
        let (hash, taken) = if gathered.len() < SIDE_BY_SIDE_BYTES_MIN {
            (hash.finish(&gathered), cutter.take(&gathered, Vec::new(), true))
        } else {
            rayon::join(|| hash.finish(&gathered), || cutter.take(&gathered, Vec::new(), true))
        };
        taken?;
        let Cutter { bytes, bytes_new, list, first_chunks, .. } = cutter.finish()?;
        Ok(StreamDone { stream: list.finish()?, bytes, bytes_new, hash, first_chunks })
    }
}

impl Cutter {
    /// Takes in the next segment, or a part of one.
    fn take(&mut self, segment: &[u8], ahead: Vec<Cut<ChunkId>>, at_end: bool) -> Result<(), PipelineError> {
        let (shared, kind) = (self.shared.clone(), self.kind);
        let mut segments = std::mem::take(&mut self.segments);
        let name = |chunk: &[u8]| name_of(&shared.repo.keys, kind, chunk);
        let bytes = segments.take(&shared.chunker, segment, ahead, at_end, name, |id, chunk| self.chunk(id, chunk))?;
        self.segments = segments;
        self.count(bytes)
    }

    fn count(&self, bytes: usize) -> Result<(), PipelineError> {
        if self.kind == BlobKind::Data {
            self.shared.progress.add_bytes(bytes as u64);
        }
        if self.shared.progress.is_cancelled() { Err(crate::progress::Cancelled.into()) } else { Ok(()) }
    }

    fn chunk(&mut self, id: ChunkId, plaintext: &[u8]) -> Result<(), PipelineError> {
        let bytes = u32::try_from(plaintext.len()).expect("chunks are bounded");
        let entry = ChunkEntry { id, bytes };
        self.list.push(entry)?;
        let at = self.bytes;
        self.bytes += u64::from(bytes);
        if self.kind == BlobKind::Data && self.first_chunks.len() < SIMILAR_FRONT_CHUNKS {
            self.first_chunks.push(entry);
        }
        let is_stored = self.shared.is_stored(&entry) || !self.shared.pending.take(id);
        let bases = self.candidates.follow(&entry, at, is_stored, &|| self.shared.settle())?;
        if is_stored {
            return Ok(());
        }
        let bases: Vec<_> = bases.into_iter().filter_map(|entry| self.base(entry)).collect();
        if self.blob.ends_before(plaintext.len(), &bases) {
            self.blob.flush(&self.shared.packer())?;
        }
        self.bytes_new += u64::from(bytes);
        if let Some(guess) = self.candidates.guess() {
            let start = self.blob.plaintext.len();
            self.blob.guessed.add(guess, at, start..start + plaintext.len());
        }
        self.blob.add_bases(bases);
        self.blob.chunks.push(entry);
        self.blob.plaintext.extend_from_slice(plaintext);
        Ok(())
    }

    /// Where a candidate lies, if it may be rested on.
    fn base(&self, entry: ChunkEntry) -> Option<Base> {
        // Most often it is the next one of the same blob.
        let next = self.blob.bases.last().and_then(|last| last.place.next(&entry));
        let place =
            next.or_else(|| self.shared.repo.index.find(&entry.id, |pack| !self.shared.marked.contains(pack)))?;
        let contents = &place.blob.contents;
        let fits = contents.kind == BlobKind::Data && contents.chunks[place.position] == entry;
        let root = self.shared.root(&place.blob).filter(|_| fits)?;
        Some(Base { entry, place, root })
    }

    /// Hands on what is left in the blob.
    fn finish(mut self) -> Result<Self, PipelineError> {
        let shared = &self.shared;
        if self.blob.plaintext.len() >= TAIL_BYTES_MIN {
            self.blob.flush(&shared.packer())?;
        } else if !self.blob.chunks.is_empty() {
            let tail = &shared.tails[self.kind as usize - 1];
            let mut tail = tail.lock().expect("no code panics while it holds this lock");
            let chunks = tail.chunks.len() + self.blob.chunks.len();
            if chunks > BLOB_CHUNKS_MAX || tail.plaintext.len() + self.blob.plaintext.len() > BLOB_BYTES_MAX {
                tail.flush(&shared.packer())?;
            }
            tail.add_bases(std::mem::take(&mut self.blob.bases));
            tail.chunks.append(&mut self.blob.chunks);
            tail.plaintext.extend_from_slice(&self.blob.plaintext);
        }
        // Lists and item lines are ours, not the source's.
        if self.kind == BlobKind::Data {
            shared.counters.bytes_new.fetch_add(self.bytes_new, Relaxed);
        }
        Ok(self)
    }
}

impl io::Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Hashes and cuts a segment, or a half of one, that begins at byte `at` of its stream.
    pub(super) fn look_ahead(&self, kind: BlobKind, at: u64, segment: &[u8]) -> Ahead {
        let name = |chunk: &[u8]| name_of(&self.repo.keys, kind, chunk);
        Ahead { hash: SegmentHash::new(at, segment), cuts: cut_ahead(&self.chunker, segment, name) }
    }

    /// A buffer of [`SEGMENT_BYTES`].
    pub(super) fn segment_buffer(&self) -> Vec<u8> {
        let buffer = self.segment_buffers.lock().expect("no code panics while it holds this lock").pop();
        buffer.unwrap_or_else(|| vec![0; SEGMENT_BYTES])
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        self.segment_buffers.lock().expect("no code panics while it holds this lock").push(buffer);
    }

    /// To hand blobs on to.
    pub fn packer(&self) -> RwLockReadGuard<'_, Packer> {
        self.packer.read().expect("no code panics while it holds this lock")
    }

    /// Puts and lists all that was handed on until now, the rests of streams included, so that it can be read and rested on.
    /// Other streams wait meanwhile.
    fn settle(&self) -> Result<(), PipelineError> {
        // Whoever holds a rest may be waiting for the packer, so the rests come first.
        let mut tails = self.tails.each_ref().map(|tail| tail.lock().expect("no code panics while it holds this lock"));
        let mut packer = self.packer.write().expect("no code panics while it holds this lock");
        tails.iter_mut().try_for_each(|tail| tail.flush(&packer))?;
        packer.settle()
    }

    /// Whether a chunk is in a pack that this backup may rest on, and with it all that its blob rests on. Its length must
    /// agree too.
    pub fn is_stored(&self, entry: &ChunkEntry) -> bool {
        let found = self.repo.index.find(&entry.id, |pack| !self.marked.contains(pack));
        found.is_some_and(|found| {
            found.blob.contents.chunks[found.position] == *entry && self.root(&found.blob).is_some()
        })
    }

    /// The blob at the beginning of a chain, if all that the blob rests on is in packs that may be rested on. Then these packs
    /// and its own are rested on.
    fn root(&self, blob: &BlobRow) -> Option<BlobPlace> {
        let place = (blob.pack, blob.offset);
        let known = self.standing.lock().expect("no code panics while it holds this lock").get(&place).copied();
        known.unwrap_or_else(|| {
            let root = self.root_of_bases(blob);
            if root.is_some() {
                self.rests_on.lock().expect("no code panics while it holds this lock").insert(blob.pack);
            }
            let mut standing = self.standing.lock().expect("no code panics while it holds this lock");
            if standing.len() >= STANDING_BLOBS {
                standing.clear();
            }
            standing.insert(place, root);
            root
        })
    }

    fn root_of_bases(&self, blob: &BlobRow) -> Option<BlobPlace> {
        let usable = |pack: &ObjectId| !self.marked.contains(pack);
        let mut first = None;
        let mut last: Option<Location> = None;
        for base in &blob.contents.bases {
            last = match last.and_then(|last| last.next(base)) {
                Some(next) => Some(next),
                None => {
                    let found = self.repo.index.find_base(base, blob.contents.depth, usable)?;
                    let root = self.root(&found.blob)?;
                    first = first.or(Some(root));
                    Some(found)
                }
            };
        }
        Some(first.unwrap_or((blob.pack, blob.offset)))
    }
}

/// The chunk list of a stream, in memory while it is short, a stream of its own once it is not.
struct ListBuilder {
    shared: Arc<Shared>,
    entries: Vec<ChunkEntry>,
    deeper: Option<Box<StreamWriter>>,
}

impl ListBuilder {
    fn push(&mut self, entry: ChunkEntry) -> Result<(), PipelineError> {
        self.entries.push(entry);
        if self.entries.len() > LIST_INLINE_ENTRIES { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), PipelineError> {
        let shared = &self.shared;
        let deeper = self
            .deeper
            .get_or_insert_with(|| Box::new(StreamWriter::new(shared.clone(), BlobKind::Meta, Candidates::None)));
        deeper.push(&encode_entries(&self.entries))?;
        self.entries.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<StreamRef, PipelineError> {
        if self.deeper.is_none() {
            return Ok(StreamRef { depth: 0, entries: self.entries });
        }
        self.spill()?;
        let list = self.deeper.expect("it was there before the spill").finish()?.stream;
        Ok(StreamRef { depth: list.depth + 1, entries: list.entries })
    }
}
