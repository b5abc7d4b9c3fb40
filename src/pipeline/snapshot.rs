//! A snapshot being written: the [`ItemSink`] that sources push into, and the manifest at its end.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

use crate::chunk::Chunker;
use crate::format::manifest::{ChunkerParams, Item, Manifest, StreamRef, check_item_path};
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::limits::{DELTA_DEPTH_MAX, HELPERS_MAX, ITEM_LINE_BYTES_MAX};
use crate::pipeline::delta::{Candidates, Parent, Similar};
use crate::pipeline::packer::{Added, BaseFinder, Packer, Pending};
use crate::pipeline::read::Reader;
use crate::pipeline::stream::{BlobBuilder, Shared, StreamWriter};
use crate::pipeline::take_in::take_in;
use crate::pipeline::{PathHash, PipelineError, path_hash};
use crate::progress::Progress;
use crate::repo::{RepoError, Repository};
use crate::source::{ItemDone, ItemFacts, ItemSink, ItemStream, TakeInError};

/// Sums over the streams of a snapshot.
#[derive(Debug, Default)]
pub struct Counters {
    pub items: AtomicU64,
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    pub bytes_new: AtomicU64,
}

/// How a snapshot is written.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// Threads that compress and encrypt. As many, within bounds, hash and cut.
    pub sealers: usize,
    /// zstd level.
    pub level: i32,
    /// Whether new chunks are compressed against older ones that they resemble.
    pub delta: bool,
}

/// What was written, for the manifest.
#[derive(Debug, Clone)]
pub struct Written {
    pub items: u64,
    pub rows: u64,
    pub bytes: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    /// How many bytes more it would have taken without deltas.
    pub bytes_saved_estimate: u64,
    pub chunkers: Vec<ChunkerParams>,
    pub item_lines: StreamRef,
    /// Packs older than this snapshot that it rests on.
    pub rests_on: HashSet<ObjectId>,
    /// Packs that were written for it.
    pub packs: HashSet<ObjectId>,
}

/// Writes the items of one snapshot.
pub struct SnapshotWriter {
    shared: Arc<Shared>,
    added: Arc<Added>,
    lines: Mutex<Lines>,
    paths: Mutex<HashSet<PathHash>>,
    /// Items begun and neither finished nor given up.
    open: AtomicU64,
    /// Larger items of the same in an older snapshot, where bases are looked for.
    parent: Parent,
    /// Where they are looked for in items of other names; none if nothing is compressed against older chunks.
    similar: Option<Arc<Similar>>,
}

/// Older snapshots in which bases are looked for.
#[derive(Debug, Clone, Default)]
pub struct Older<'m> {
    /// The newest of the same: there an item is looked for by its path.
    pub same: Option<&'m Manifest>,
    /// Others, the most likely first: there an item is recognised by what it is like.
    pub others: Vec<&'m Manifest>,
}

/// Item lines in order. Items that finish early wait for those before them.
struct Lines {
    stream: StreamWriter,
    next: u64,
    early: BTreeMap<u64, Vec<u8>>,
}

impl SnapshotWriter {
    /// `marked` are packs that must not be rested on.
    pub fn new(
        repo: Arc<Repository>,
        older: Older<'_>,
        marked: HashSet<ObjectId>,
        options: WriteOptions,
        progress: Progress,
    ) -> Result<Self, PipelineError> {
        let chunker = Chunker::new(repo.config.chunker, repo.keys.cdc_table())
            .map_err(|error| RepoError::Refused { detail: error.to_string() })?;
        let (pending, added) = (Arc::<Pending>::default(), Arc::<Added>::default());
        let (marked, rests_on) = (Arc::new(marked), Arc::<Mutex<HashSet<ObjectId>>>::default());
        let reader = Arc::new(Reader::new(repo.clone(), 1, Progress::default()).with_written_packs());
        let depth_max = if options.delta { repo.config.delta.depth.min(DELTA_DEPTH_MAX) } else { 0 };
        let deltas = depth_max > 0;
        let same = older.same.filter(|_| deltas);
        let no_parent = || Parent::none(reader.clone());
        let parent = same.map_or_else(no_parent, |same| Parent::read(reader.clone(), same));
        let manifests: Vec<_> = older.same.into_iter().chain(older.others).cloned().collect();
        let bases = deltas.then(|| BaseFinder { reader: reader.clone(), marked: marked.clone(), depth_max });
        let similar = deltas.then(|| Arc::new(Similar::new(reader.clone(), manifests)));
        let packer = Packer::start(repo.clone(), pending.clone(), added.clone(), bases, options.sealers, options.level);
        let shared = Arc::new(Shared {
            repo,
            chunker,
            packer: RwLock::new(packer),
            pending,
            counters: Counters::default(),
            progress,
            marked,
            rests_on,
            standing: Mutex::default(),
            tails: [BlobKind::Data, BlobKind::Meta].map(|kind| Mutex::new(BlobBuilder::new(kind))),
            helpers: AtomicUsize::new(options.sealers.saturating_sub(1).min(HELPERS_MAX)),
            segment_buffers: Mutex::default(),
        });
        let stream = StreamWriter::new(shared.clone(), BlobKind::Meta, Candidates::None);
        let lines = Mutex::new(Lines { stream, next: 0, early: BTreeMap::new() });
        let (paths, open) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { shared, added, lines, paths, open, parent, similar })
    }

    /// Why storing failed, if it did.
    pub fn failure(&self) -> Option<PipelineError> {
        self.shared.packer().failure()
    }

    /// Ends the snapshot's data: when this returns, all of it is in packs that index objects list.
    pub fn finish(self) -> Result<Written, PipelineError> {
        let lines = self.lines.into_inner().expect("no code panics while it holds this lock");
        if !lines.early.is_empty() || self.open.load(Relaxed) != 0 {
            return Err(PipelineError::Unfinished);
        }
        // What stopped the packer is the better error.
        let why = |packer: &Packer, error| match error {
            PipelineError::Stopped => packer.failure().unwrap_or(error),
            error => error,
        };
        let finished = lines.stream.finish();
        let item_lines = finished.map_err(|error| why(&self.shared.packer(), error))?.stream;
        // An item stream that is still alive would write after the end.
        let shared = Arc::into_inner(self.shared).ok_or(PipelineError::Unfinished)?;
        let packer = shared.packer.into_inner().expect("no code panics while it holds this lock");
        for tail in &shared.tails {
            let mut tail = tail.lock().expect("no code panics while it holds this lock");
            tail.flush(&packer).map_err(|error| why(&packer, error))?;
        }
        packer.finish()?;
        let (counters, read) = (&shared.counters, |counter: &AtomicU64| counter.load(Relaxed));
        if read(&counters.items) != lines.next {
            return Err(PipelineError::Unfinished);
        }
        Ok(Written {
            items: read(&counters.items),
            rows: read(&counters.rows),
            bytes: read(&counters.bytes),
            bytes_new: read(&counters.bytes_new),
            bytes_stored: self.added.bytes_stored(),
            bytes_saved_estimate: read(&self.added.bytes_saved_estimate),
            chunkers: vec![shared.repo.config.chunker],
            item_lines,
            rests_on: std::mem::take(&mut shared.rests_on.lock().expect("no code panics while it holds this lock")),
            packs: self.added.packs.lock().expect("no code panics while it holds this lock").drain(..).collect(),
        })
    }

    fn check_path(&self, path: &str) -> Result<(), PipelineError> {
        let wrong = |detail: &str| PipelineError::Item { path: path.to_owned(), detail: detail.to_owned() };
        check_item_path(path).map_err(|_| wrong("is not a valid item path"))?;
        let fresh = self.paths.lock().expect("no code panics while it holds this lock").insert(path_hash(path));
        if fresh { Ok(()) } else { Err(wrong("comes twice")) }
    }

    fn add_line(&self, order: u64, item: &Item) -> Result<(), PipelineError> {
        let wrong = |detail: &str| PipelineError::Item { path: item.path.clone(), detail: detail.to_owned() };
        let mut line = Vec::new();
        item.encode_line(&mut line);
        if line.len() > ITEM_LINE_BYTES_MAX {
            return Err(wrong("has too many facts for its line"));
        }
        let mut lines = self.lines.lock().expect("no code panics while it holds this lock");
        if order < lines.next || lines.early.insert(order, line).is_some() {
            return Err(wrong("has an order that another item has"));
        }
        while let Some(line) = {
            let next = lines.next;
            lines.early.remove(&next)
        } {
            lines.stream.push(&line)?;
            lines.next += 1;
        }
        let counters = &self.shared.counters;
        counters.items.fetch_add(1, Relaxed);
        counters.rows.fetch_add(item.rows.unwrap_or(0), Relaxed);
        counters.bytes.fetch_add(item.bytes, Relaxed);
        Ok(())
    }
}

impl ItemSink for SnapshotWriter {
    fn makes_deltas(&self) -> bool {
        self.similar.is_some()
    }

    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
        self.check_path(path)?;
        let search = || self.similar.as_ref().map(|similar| Candidates::search(similar.clone(), path));
        let candidates = self.parent.candidates(path).or_else(search).unwrap_or(Candidates::None);
        let stream = StreamWriter::new(self.shared.clone(), BlobKind::Data, candidates);
        self.open.fetch_add(1, Relaxed);
        Ok(Box::new(ItemWriter { writer: self, order, path: path.to_owned(), kind: kind.to_owned(), stream }))
    }

    fn reuse(&self, order: u64, unchanged: &Item, facts: ItemFacts) -> io::Result<bool> {
        let shared = &self.shared;
        let mut stored = true;
        // The lists are reused as they stand, so their chunks must be stored as well.
        let walked =
            Reader::new(shared.repo.clone(), 1, shared.progress.clone()).walk(&unchanged.stream, &mut |_, entry| {
                stored = stored && shared.is_stored(&entry);
                Ok(())
            });
        if let Err(error) = walked {
            tracing::debug!("{} is read again: {error}", unchanged.path);
            stored = false;
        }
        if !stored {
            return Ok(false);
        }
        self.check_path(&unchanged.path)?;
        let item = Item { rows: facts.rows, meta: facts.meta, bytes_new: 0, ..unchanged.clone() };
        self.add_line(order, &item)?;
        shared.progress.add_bytes(item.bytes);
        Ok(true)
    }
}

struct ItemWriter<'s> {
    writer: &'s SnapshotWriter,
    order: u64,
    path: String,
    kind: String,
    stream: StreamWriter,
}

impl io::Write for ItemWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ItemStream for ItemWriter<'_> {
    fn take_in(&mut self, input: &mut (dyn io::Read + Send)) -> Result<u64, TakeInError> {
        take_in(&mut self.stream, input)
    }

    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<ItemDone> {
        let done = self.stream.finish()?;
        let item = Item {
            path: self.path,
            kind: self.kind,
            bytes: done.bytes,
            hash: done.hash.to_hex().to_string(),
            rows: facts.rows,
            bytes_new: done.bytes_new,
            chunker: 0,
            meta: facts.meta,
            stream: done.stream,
        };
        self.writer.add_line(self.order, &item)?;
        if let Some(similar) = &self.writer.similar {
            similar.add(&item, done.first_chunks);
        }
        self.writer.open.fetch_sub(1, Relaxed);
        Ok(ItemDone { bytes: done.bytes, hash: done.hash })
    }

    fn discard(self: Box<Self>) -> io::Result<()> {
        // Ended all the same: other items may rest already on chunks that this one was the first to bring.
        self.stream.finish()?;
        self.writer.paths.lock().expect("no code panics while it holds this lock").remove(&path_hash(&self.path));
        self.writer.open.fetch_sub(1, Relaxed);
        Ok(())
    }
}
