//! Streams out of the store. One thread walks the chunk list and plans, openers fetch and open blobs side by side, the
//! calling thread gets the plaintext in order. Everything is authenticated and re-hashed before anybody sees it.
//!
//! `parts` are pieces of opened blobs, `plan` decides what is read next, `chain` opens a blob after those that it rests on,
//! `kept` is what of them the plan comes back to, `taking` says how far ahead of the calling thread blobs are opened.

mod chain;
mod kept;
mod parts;
mod plan;
mod taking;

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::backend::BackendError;
use crate::format::manifest::{CHUNK_ENTRY_BYTES, ChunkEntry, Item, Manifest, StreamRef, bytes_of, decode_entries};
use crate::format::pack::BlobKind;
use crate::id::ChunkId;
use crate::limits::{
    BUSY_WINDOWS, FETCH_GAP_BYTES, ITEM_LINE_BYTES_MAX, NEIGHBOUR_WINDOWS, OPENED_BYTES, STREAM_DEPTH_MAX,
};
use crate::pipeline::fetch::{Extent, Fetcher};
use crate::pipeline::{PathHash, PipelineError, path_hash};
use crate::progress::Progress;
use crate::repo::index::{BlobRow, Location};
use crate::repo::local_packs::LocalPacks;
use crate::repo::{RepoError, Repository, pack_name};
use crate::seal::blob::Opener;

use kept::{Kept, SPARE_BUFFERS};
pub use parts::{Bytes, Joined, Part};
use plan::{Batch, Foreseen, Neighbours, Planned, Planner, WINDOW_BYTES, Window};
use taking::Taking;

/// Reads streams of one repository. Usable from several threads at once; they share the opened blobs.
pub struct Reader {
    repo: Arc<Repository>,
    openers: usize,
    progress: Progress,
    fetcher: Fetcher,
    /// What of opened blobs may be asked for again.
    kept: Mutex<Kept>,
    /// Notified when a blob has been opened.
    opened: Condvar,
    /// For single chunks, one after the other: what it has in memory is used again.
    opener: Mutex<Opener>,
}

/// Windows that one thread opens, one after the other, each with its place in the stream and where it goes.
type Job<'r> = Vec<(u64, (Window<'r>, Sender<Opened>))>;
/// The plaintext of a window, in order.
type Opened = Result<Vec<Bytes>, PipelineError>;

impl Reader {
    /// `openers` is the number of threads that fetch and open for one stream.
    pub fn new(repo: Arc<Repository>, openers: usize, progress: Progress) -> Self {
        let (fetcher, openers) = (Fetcher::new(repo.clone()), openers.max(1));
        let kept = Mutex::new(Kept::new(OPENED_BYTES * openers, SPARE_BUFFERS * openers));
        Self { repo, openers, progress, fetcher, kept, opened: Condvar::new(), opener: Mutex::default() }
    }

    /// Reads packs that this host wrote itself from its own disk, where they are still there. Not for who wants to know what
    /// the store has.
    pub fn with_written_packs(self) -> Self {
        let written = self.repo.written.clone();
        self.with_local_packs(written)
    }

    /// Reads packs that are there from this host's own disk.
    pub fn with_local_packs(mut self, packs: Option<Arc<LocalPacks>>) -> Self {
        self.fetcher.use_local(packs);
        self
    }

    /// Calls `each` with every entry that a stream leads to, depth first: list chunks with their depth, then what they
    /// list, at depth 0 the chunks of the stream itself, in order.
    pub fn walk(
        &self,
        stream: &StreamRef,
        each: &mut dyn FnMut(u32, ChunkEntry) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        if stream.depth > STREAM_DEPTH_MAX {
            return Err(stream_error("its chunk list is too deep"));
        }
        // List chunks are cut by content, so an entry may lie across two of them, at every depth.
        let mut carried = vec![Vec::new(); stream.depth as usize];
        for entry in &stream.entries {
            self.walk_entry(&mut carried, *entry, each)?;
        }
        if carried.iter().all(Vec::is_empty) {
            Ok(())
        } else {
            Err(stream_error("its chunk list ends within an entry"))
        }
    }

    fn walk_entry(
        &self,
        carried: &mut [Vec<u8>],
        entry: ChunkEntry,
        each: &mut dyn FnMut(u32, ChunkEntry) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        each(carried.len() as u32, entry)?;
        let Some((rest, deeper)) = carried.split_last_mut() else { return Ok(()) };
        let (bytes, range) = self.chunk(BlobKind::Meta, &entry)?;
        rest.extend_from_slice(&bytes[range]);
        let whole = rest.len() - rest.len() % CHUNK_ENTRY_BYTES;
        let listed = decode_entries(&rest[..whole]).map_err(|error| stream_error(&error.to_string()))?;
        rest.drain(..whole);
        listed.into_iter().try_for_each(|entry| self.walk_entry(deeper, entry, each))
    }

    /// Calls `out` with the plaintext of a stream, piece by piece, in order.
    pub fn read(
        &self,
        kind: BlobKind,
        stream: &StreamRef,
        out: &mut dyn FnMut(&[u8]) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        if stream.depth == 0 && bytes_of(&stream.entries) <= WINDOW_BYTES {
            let mut planner = Planner::new(self, kind);
            let mut opener = Opener::default();
            for entry in &stream.entries {
                if let Some(window) = planner.add(*entry)? {
                    self.hand_out(self.open_window(&mut opener, &window, None)?, out)?;
                }
            }
            return self.hand_out(self.open_window(&mut opener, &planner.rest(), None)?, out);
        }
        let taking = Taking::new(BUSY_WINDOWS * self.openers);
        std::thread::scope(|scope| {
            let (jobs, job_queue) = bounded::<Job>(self.openers);
            let (order, order_queue) = bounded::<Receiver<Opened>>(NEIGHBOUR_WINDOWS);
            let (ahead, pieces) = unbounded::<Extent>();
            if self.fetcher.is_far() {
                for _ in 0..self.repo.backend.properties().parallel_requests {
                    let pieces = pieces.clone();
                    scope.spawn(move || self.fetch_pieces(&pieces));
                }
            }
            let planner = scope.spawn(move || self.plan(kind, stream, &jobs, &order, &ahead));
            for _ in 0..self.openers {
                let job_queue = job_queue.clone();
                let taking = &taking;
                scope.spawn(move || {
                    let mut opener = Opener::default();
                    for (turn, (window, done)) in job_queue.into_iter().flatten() {
                        if taking.wait_for(turn) {
                            let opened = self.open_window(&mut opener, &window.parts, Some(window.number));
                            drop(window);
                            // The reader may have given up.
                            let _ = done.send(opened);
                        }
                    }
                });
            }
            drop(job_queue);
            let taker = taking.taker();
            let read = || -> Result<(), PipelineError> {
                for window in &order_queue {
                    let opened = taker.take(window.try_recv().ok().map(Ok), || window.recv());
                    let bytes = opened.map_err(|_| stream_error("a worker broke down"))??;
                    self.hand_out(bytes, out)?;
                }
                Ok(())
            };
            let read = { read }();
            drop((taker, order_queue));
            let planned = planner.join().unwrap_or_else(|_| Err(stream_error("a worker broke down")));
            read.and(planned)
        })
    }

    fn hand_out(
        &self,
        window: Vec<Bytes>,
        out: &mut dyn FnMut(&[u8]) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        for (bytes, range) in window {
            if self.progress.is_cancelled() {
                return Err(crate::progress::Cancelled.into());
            }
            out(&bytes[range])?;
            self.give_back(bytes);
        }
        Ok(())
    }

    fn plan<'r>(
        &'r self,
        kind: BlobKind,
        stream: &StreamRef,
        jobs: &Sender<Job<'r>>,
        order: &Sender<Receiver<Opened>>,
        ahead: &Sender<Extent>,
    ) -> Result<(), PipelineError> {
        let mut planner = Planner::new(self, kind);
        let mut planned = Planned { reader: self, ahead, next: Batch::default(), announced: Batch::default() };
        let mut foreseen = Foreseen::new(self);
        let mut neighbours = Neighbours::new(self);
        let mut turns = 0..;
        let mut send = |windows: Vec<Window<'r>>| -> Result<(), PipelineError> {
            let (done, results): (Vec<_>, Vec<_>) = windows.iter().map(|_| bounded(1)).unzip();
            // Either end hangs up only when the reader has given up; its error is the one that counts.
            let sent = jobs.send(turns.by_ref().zip(windows.into_iter().zip(done)).collect()).is_ok();
            let sent = sent && results.into_iter().all(|result| order.send(result).is_ok());
            if sent { Ok(()) } else { Err(crate::progress::Cancelled.into()) }
        };
        let mut open = |windows: Vec<Window<'r>>| {
            windows.into_iter().filter_map(|window| neighbours.add(window)).try_for_each(&mut send)
        };
        let mut hand_on = |window: Window<'r>| open(planned.add(window));
        let walked = self.walk(stream, &mut |depth, entry| {
            if depth > 0 {
                return Ok(());
            }
            let Some(window) = planner.add(entry)? else { return Ok(()) };
            foreseen.add(window).into_iter().try_for_each(&mut hand_on)
        });
        // What comes before a piece that cannot be found is handed out all the same.
        if walked.is_ok() {
            foreseen.push(planner.rest());
        }
        let sent = foreseen.into_rest().try_for_each(&mut hand_on);
        let sent = sent.and_then(|()| open(planned.announce())).and_then(|()| open(planned.announce()));
        walked.and(sent.and_then(|()| send(neighbours.rest())))
    }

    fn locate(&self, entry: &ChunkEntry, kind: BlobKind) -> Result<Location, PipelineError> {
        let find = || self.repo.index.find(&entry.id, |_| true);
        let found = match find() {
            Some(found) => found,
            // The local index may be behind: another host may have written or prune may have moved it.
            None => self.look_again(find)?.ok_or_else(|| missing_chunk(&entry.id))?,
        };
        let blob = &found.blob.contents;
        if blob.kind != kind || blob.chunks[found.position] != *entry {
            return Err(stream_error(&format!("chunk {} is stored with another length or kind", entry.id)));
        }
        Ok(found)
    }

    /// Looks for what the local index did not know: after it was brought up to date, then after it was made anew.
    fn look_again(&self, find: impl Fn() -> Option<Location>) -> Result<Option<Location>, RepoError> {
        let unreadable = self.repo.load_index(&Progress::default())?.into_iter().next();
        let found = match find() {
            None if self.repo.reload_index()? => find(),
            found => found,
        };
        match (found, unreadable) {
            // Most likely it is listed there.
            (None, Some((_, error))) => Err(error),
            (found, _) => Ok(found),
        }
    }

    /// The plaintext of one chunk: a range of its blob's.
    pub(crate) fn chunk(&self, kind: BlobKind, entry: &ChunkEntry) -> Result<Bytes, PipelineError> {
        let part = [Part::from(self.locate(entry, kind)?)];
        let mut shared = self.opener.try_lock();
        let opener: &mut Opener = match &mut shared {
            Ok(opener) => opener,
            Err(_) => &mut Opener::default(),
        };
        let mut bytes = self.open_window(opener, &part, None)?;
        Ok(bytes.pop().expect("one part in, one run of bytes out"))
    }

    /// The repository that is read.
    pub fn repo(&self) -> &Arc<Repository> {
        &self.repo
    }

    /// The plaintext of the parts of a window, which the plan calls by `number`. What cannot be had where the index says is
    /// looked for elsewhere.
    fn open_window(
        &self,
        opener: &mut Opener,
        parts: &[Part],
        number: Option<u64>,
    ) -> Result<Vec<Bytes>, PipelineError> {
        let mut pieces = self.pieces_kept(parts, number);
        let is_missing = |part: &Part, piece: &Option<Bytes>| piece.is_none() && !part.positions.is_empty();
        let mut blobs: Vec<Arc<BlobRow>> = Vec::new();
        for (part, piece) in parts.iter().zip(&pieces) {
            if is_missing(part, piece) && !blobs.iter().any(|blob| blob.is(&part.blob)) {
                blobs.push(part.blob.clone());
            }
        }
        let mut failures: Vec<(Arc<BlobRow>, PipelineError)> = Vec::new();
        let mut left = &blobs[..];
        while !left.is_empty() {
            let (run, rest) = left.split_at(run_length(left));
            left = rest;
            let rows: Vec<&BlobRow> = run.iter().map(|blob| &**blob).collect();
            match self.fetcher.get_run(&rows).map_err(RepoError::from) {
                Err(error @ RepoError::Backend(BackendError::Unreachable { .. } | BackendError::Denied { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    let detail = error.to_string();
                    failures.push((run[0].clone(), error.into()));
                    for blob in &run[1..] {
                        let name = pack_name(&blob.pack);
                        failures.push((blob.clone(), RepoError::Damaged { name, detail: detail.clone() }.into()));
                    }
                }
                Ok(sealed) => {
                    for (blob, sealed) in run.iter().zip(sealed) {
                        let wanted = parts.iter().zip(&mut pieces).filter(|(part, _)| part.blob.is(blob));
                        if let Err(error) = self.open_parts(opener, wanted, &sealed, number) {
                            failures.push((blob.clone(), error));
                        }
                    }
                }
            }
        }
        let mut out = Vec::with_capacity(parts.len());
        for (part, piece) in parts.iter().zip(pieces) {
            let wrong = match piece.map(|piece| self.verified(opener, part, Ok(piece))) {
                Some(Ok(bytes)) => {
                    out.push(bytes);
                    continue;
                }
                Some(Err(error)) => Some(error),
                None => None,
            };
            for entry in &part.blob.contents.chunks[part.positions.clone()] {
                let Some(bytes) = self.chunk_elsewhere(opener, entry, &part.blob) else {
                    // A blob fails once for all its parts, and those before this one were found elsewhere.
                    let failed = || failures.into_iter().find(|(blob, _)| blob.is(&part.blob));
                    return Err(wrong.or_else(|| Some(failed()?.1)).unwrap_or_else(|| missing_chunk(&entry.id)));
                };
                out.push(bytes);
            }
        }
        Ok(out)
    }

    /// What is kept of a window that is being opened.
    fn pieces_kept(&self, parts: &[Part], number: Option<u64>) -> Vec<Option<Bytes>> {
        let mut kept = self.kept();
        number.inspect(|number| kept.begin_window(*number));
        let piece = |part: &Part| {
            let piece = kept.get(part, false)?;
            number.inspect(|number| kept.ask(*number, part));
            Some(piece)
        };
        parts.iter().map(piece).collect()
    }

    /// Opens a blob for parts of it.
    fn open_parts<'p>(
        &self,
        opener: &mut Opener,
        parts: impl Iterator<Item = (&'p Part, &'p mut Option<Bytes>)>,
        sealed: &[u8],
        number: Option<u64>,
    ) -> Result<(), PipelineError> {
        let (wanted, pieces): (Vec<&Part>, Vec<&mut Option<Bytes>>) =
            parts.filter(|(_, piece)| piece.is_none()).unzip();
        match self.pieces(opener, &wanted, sealed, number) {
            Ok(opened) => pieces.into_iter().zip(opened).for_each(|(piece, opened)| *piece = Some(opened)),
            Err(error) => {
                // Opened again, it says which blob on the way is at fault.
                self.verified(opener, wanted[0], Err(error))?;
                for (part, piece) in wanted.iter().zip(pieces) {
                    *piece = Some(self.part(opener, part, usize::MAX)?);
                }
            }
        }
        Ok(())
    }

    /// A chunk from another pack than the one of `bad`, if there is a good copy; or from there, if what it rests on is found
    /// now.
    fn chunk_elsewhere(&self, opener: &mut Opener, entry: &ChunkEntry, bad: &BlobRow) -> Option<Bytes> {
        // Prune may have moved it since the index was loaded.
        self.repo.load_index(&Progress::default()).ok()?;
        let index = &self.repo.index;
        let found = index.find(&entry.id, |pack| *pack != bad.pack).or_else(|| index.find(&entry.id, |_| true))?;
        (found.blob.contents.chunks[found.position] == *entry)
            .then(|| self.part(opener, &found.into(), usize::MAX).ok())?
    }

    /// Calls `each` with every item of a manifest, in order. A path that comes twice is damage: the second would be
    /// restored over the first.
    pub fn each_item(
        &self,
        manifest: &Manifest,
        each: &mut dyn FnMut(Item) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let mut carried = Vec::new();
        let mut items = 0;
        let mut paths: HashSet<PathHash> = HashSet::new();
        self.read(BlobKind::Meta, &manifest.item_lines, &mut |bytes| {
            carried.extend_from_slice(bytes);
            let mut at = 0;
            while let Some(length) = carried[at..].iter().position(|&b| b == b'\n') {
                let item = Item::decode_line(&carried[at..at + length])
                    .map_err(|error| stream_error(&format!("item line {items}: {error}")))?;
                if items >= manifest.items {
                    return Err(stream_error(&format!("more than the {items} items that were written are listed")));
                }
                if !paths.insert(path_hash(&item.path)) {
                    return Err(stream_error(&format!("item {:?} is listed twice", item.path)));
                }
                each(item)?;
                items += 1;
                at += length + 1;
            }
            carried.drain(..at);
            if carried.len() > ITEM_LINE_BYTES_MAX {
                return Err(stream_error("an item line is too long"));
            }
            Ok(())
        })?;
        if !carried.is_empty() || items != manifest.items {
            return Err(stream_error(&format!("{items} items are listed, {} were written", manifest.items)));
        }
        Ok(())
    }

    /// Calls `out` with the plaintext of an item, then compares its length and hash.
    pub fn read_item(
        &self,
        item: &Item,
        out: &mut dyn FnMut(&[u8]) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let mut hash = blake3::Hasher::new();
        let mut bytes = 0;
        self.read(BlobKind::Data, &item.stream, &mut |piece| {
            hash.update(piece);
            bytes += piece.len() as u64;
            self.progress.add_bytes(piece.len() as u64);
            out(piece)
        })?;
        let wrong = |detail: String| PipelineError::Item { path: item.path.clone(), detail };
        if bytes != item.bytes {
            return Err(wrong(format!("has {bytes} bytes, {} were backed up", item.bytes)));
        }
        if hash.finalize().to_hex().as_str() != item.hash {
            return Err(wrong("does not hash to what was backed up".to_owned()));
        }
        Ok(())
    }
}

/// How many blobs from the first on lie close enough together, in order, to be fetched in one request.
fn run_length(blobs: &[Arc<BlobRow>]) -> usize {
    let next_to = |pair: &[Arc<BlobRow>]| {
        let (before, after) = (&pair[0], &pair[1]);
        let end = before.offset + before.stored;
        before.pack == after.pack && after.offset >= end && after.offset - end <= FETCH_GAP_BYTES
    };
    1 + blobs.windows(2).take_while(|pair| next_to(pair)).count()
}

fn missing_chunk(id: &ChunkId) -> PipelineError {
    let detail = "no pack that the index lists holds it".to_owned();
    RepoError::Damaged { name: format!("chunk {id}"), detail }.into()
}

fn stream_error(detail: &str) -> PipelineError {
    RepoError::Damaged { name: "a stream".to_owned(), detail: detail.to_owned() }.into()
}
