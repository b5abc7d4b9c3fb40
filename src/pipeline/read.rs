//! Streams out of the store. One thread walks the chunk list and plans, openers fetch and open blobs side by side, the
//! calling thread gets the plaintext in order. Everything is authenticated and re-hashed before anybody sees it.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::backend::BackendError;
use crate::format::manifest::{CHUNK_ENTRY_BYTES, ChunkEntry, Item, Manifest, StreamRef, decode_entries};
use crate::format::pack::BlobKind;
use crate::id::{ChunkId, ObjectId};
use crate::limits::{
    BLOB_BYTES_MAX, DELTA_DEPTH_MAX, FETCH_GAP_BYTES, ITEM_LINE_BYTES_MAX, OPENED_BYTES, PLANNED_BYTES,
    PLANNED_WINDOWS, STREAM_DEPTH_MAX,
};
use crate::pipeline::fetch::{Extent, Fetcher};
use crate::pipeline::stream::BlobPlace;
use crate::pipeline::{PathHash, PipelineError, path_hash};
use crate::progress::Progress;
use crate::repo::index::{BlobRow, Location};
use crate::repo::{RepoError, Repository, damaged, pack_name};
use crate::seal::blob::{Opener, compare_names};

/// A window of a stream is opened as one piece of work: at most this many blobs, and about this many bytes.
const WINDOW_BLOBS: usize = 4;
const WINDOW_BYTES: usize = 4 << 20;
/// Buffers that wait to be filled again.
const SPARE_BUFFERS: usize = 2 * WINDOW_BLOBS;
/// Others would have to grow, or hold more than they are needed for.
const SPARE_BYTES: Range<usize> = BLOB_BYTES_MAX / 2..BLOB_BYTES_MAX * 2;

/// Reads streams of one repository. Usable from several threads at once; they share the opened blobs.
pub struct Reader {
    repo: Arc<Repository>,
    openers: usize,
    progress: Progress,
    fetcher: Fetcher,
    /// Blobs that may be asked for again, the ones used last at the end.
    opened: Mutex<VecDeque<OpenedBlob>>,
    /// Buffers to be filled again, the ones used last at the end: they are still in the processor's cache.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// A blob that was opened.
struct OpenedBlob {
    pack: ObjectId,
    offset: u32,
    plaintext: Arc<Vec<u8>>,
    /// Whether its chunks were compared with their names.
    is_named: bool,
}

impl OpenedBlob {
    fn is(&self, blob: &BlobRow) -> bool {
        self.pack == blob.pack && self.offset == blob.offset
    }
}

/// A piece of an opened blob.
pub type Bytes = (Arc<Vec<u8>>, Range<usize>);

/// A run of chunks that lie in one blob.
pub struct Part {
    pub blob: Arc<BlobRow>,
    pub positions: Range<usize>,
}

impl From<Location> for Part {
    fn from(place: Location) -> Self {
        Self { blob: place.blob, positions: place.position..place.position + 1 }
    }
}

impl Part {
    /// Takes in the next chunk of the blob, if that is `entry`.
    pub fn extend(&mut self, entry: &ChunkEntry) -> bool {
        let is_next = self.blob.contents.chunks.get(self.positions.end) == Some(entry);
        self.positions.end += usize::from(is_next);
        is_next
    }

    /// Whether this is all of the blob, or nearly: who has read it rarely comes back for the rest.
    fn is_whole(&self) -> bool {
        self.positions.len() * 8 >= self.blob.contents.chunks.len() * 7
    }
}

/// The plaintext of parts, joined; that of one alone stays where it is.
#[derive(Default)]
pub struct Joined {
    alone: Option<Bytes>,
    joined: Vec<u8>,
    bytes_expected: usize,
}

impl Joined {
    /// Nothing yet, of what will be so many bytes.
    pub fn new(bytes_expected: usize) -> Self {
        Self { bytes_expected, ..Self::default() }
    }

    pub fn bytes(&self) -> &[u8] {
        self.alone.as_ref().map_or(&self.joined, |(bytes, range)| &bytes[range.clone()])
    }
}

/// Which blobs of a chain have their chunks compared with their names. Bytes that a wrong base leads to are found out either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// The one that was asked for.
    Last,
    All,
}

impl Compare {
    /// Whether the blob is one of them for which `depth` others wait.
    fn includes(self, depth: u8) -> bool {
        depth == 0 || self == Self::All
    }
}

struct Job {
    window: Vec<Part>,
    done: Sender<Result<Vec<Bytes>, PipelineError>>,
}

impl Reader {
    /// `openers` is the number of threads that fetch and open for one stream.
    pub fn new(repo: Arc<Repository>, openers: usize, progress: Progress) -> Self {
        let fetcher = Fetcher::new(repo.clone());
        Self { repo, openers: openers.max(1), progress, fetcher, opened: Mutex::default(), spare: Mutex::default() }
    }

    /// Reads packs that this host wrote itself from its own disk, where they are still there. Not for who wants to know what
    /// the store has.
    pub fn with_written_packs(mut self) -> Self {
        self.fetcher.use_written();
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
        if stream.depth == 0 && stream.entries.iter().map(|entry| entry.bytes as usize).sum::<usize>() <= WINDOW_BYTES {
            let mut planner = Planner::new(self, kind);
            let mut opener = Opener::default();
            for entry in &stream.entries {
                if let Some(window) = planner.add(*entry)? {
                    self.hand_out(self.open_window(&mut opener, window)?, out)?;
                }
            }
            return self.hand_out(self.open_window(&mut opener, planner.rest())?, out);
        }
        std::thread::scope(|scope| {
            let (jobs, job_queue) = bounded::<Job>(self.openers);
            let (order, order_queue) = bounded::<Receiver<Result<Vec<Bytes>, PipelineError>>>(self.openers);
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
                scope.spawn(move || {
                    let mut opener = Opener::default();
                    for Job { window, done } in job_queue {
                        // The reader may have given up.
                        let _ = done.send(self.open_window(&mut opener, window));
                    }
                });
            }
            drop(job_queue);
            let read = || -> Result<(), PipelineError> {
                for window in &order_queue {
                    let bytes = window.recv().map_err(|_| stream_error("a worker broke down"))??;
                    self.hand_out(bytes, out)?;
                }
                Ok(())
            };
            let read = { read }();
            drop(order_queue);
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

    /// Keeps a buffer for the next blob, if nobody else holds it.
    pub(crate) fn give_back(&self, bytes: Arc<Vec<u8>>) {
        if let Some(mut buffer) = Arc::into_inner(bytes) {
            buffer.clear();
            let mut spare = self.spare.lock().expect("no code panics while it holds this lock");
            if spare.len() < SPARE_BUFFERS && SPARE_BYTES.contains(&buffer.capacity()) {
                spare.push(buffer);
            }
        }
    }

    /// An empty buffer, used before if there is one.
    fn spare_buffer(&self) -> Vec<u8> {
        self.spare.lock().expect("no code panics while it holds this lock").pop().unwrap_or_default()
    }

    /// Appends a part's plaintext.
    pub fn join(&self, joined: &mut Joined, (bytes, range): Bytes) {
        if joined.bytes().is_empty() {
            joined.alone = Some((bytes, range));
            return;
        }
        if let Some((first, range)) = joined.alone.take() {
            joined.joined = self.spare_buffer();
            joined.joined.reserve_exact(joined.bytes_expected.max(first.len()));
            joined.joined.extend_from_slice(&first[range]);
            self.give_back(first);
        }
        joined.joined.extend_from_slice(&bytes[range]);
        self.give_back(bytes);
    }

    /// Keeps the buffers of parts that nobody needs any more.
    pub fn take_back(&self, joined: Joined) {
        let Joined { alone, joined, .. } = joined;
        self.give_back(alone.map_or_else(|| Arc::new(joined), |(bytes, _)| bytes));
    }

    fn plan(
        &self,
        kind: BlobKind,
        stream: &StreamRef,
        jobs: &Sender<Job>,
        order: &Sender<Receiver<Result<Vec<Bytes>, PipelineError>>>,
        ahead: &Sender<Extent>,
    ) -> Result<(), PipelineError> {
        let mut planner = Planner::new(self, kind);
        let mut planned = Planned { reader: self, ahead, next: Batch::default(), announced: Batch::default() };
        let send = |window: Vec<Part>| -> Result<(), PipelineError> {
            let (done, result) = bounded(1);
            // Either end hangs up only when the reader has given up; its error is the one that counts.
            let sent = order.send(result).is_ok() && jobs.send(Job { window, done }).is_ok();
            if sent { Ok(()) } else { Err(crate::progress::Cancelled.into()) }
        };
        let walked = self.walk(stream, &mut |depth, entry| {
            if depth > 0 {
                return Ok(());
            }
            match planner.add(entry)? {
                Some(window) => planned.add(window).into_iter().try_for_each(&send),
                None => Ok(()),
            }
        });
        // What comes before a piece that cannot be found is handed out all the same.
        let last = if walked.is_ok() { planned.add(planner.rest()) } else { Vec::new() };
        let sent = last.into_iter().chain(planned.announce()).chain(planned.announce()).try_for_each(send);
        walked.and(sent)
    }

    /// Fetches what the plan announces, as long as somebody is waiting for it.
    fn fetch_pieces(&self, pieces: &Receiver<Extent>) {
        for piece in pieces {
            if self.progress.is_cancelled() {
                self.fetcher.give_up(&piece);
            } else if let Err(error) = self.fetcher.fetch(&piece) {
                // Whoever needs a blob of it asks again, and says what failed.
                tracing::debug!("read-ahead: {error}");
            }
        }
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

    fn locate_base(&self, base: &ChunkEntry, depth: u8) -> Result<Location, PipelineError> {
        let find = || self.repo.index.find_base(base, depth, |_| true);
        match find() {
            Some(found) => Ok(found),
            None => self.look_again(find)?.ok_or_else(|| missing_chunk(&base.id)),
        }
    }

    /// The plaintext of one chunk: a range of its blob's.
    pub(crate) fn chunk(&self, kind: BlobKind, entry: &ChunkEntry) -> Result<Bytes, PipelineError> {
        let part = Part::from(self.locate(entry, kind)?);
        let mut bytes = self.open_window(&mut Opener::default(), vec![part])?;
        Ok(bytes.pop().expect("one part in, one run of bytes out"))
    }

    /// The repository that is read.
    pub fn repo(&self) -> &Arc<Repository> {
        &self.repo
    }

    /// The plaintext of chunks whose place is known.
    pub fn part(&self, opener: &mut Opener, part: &Part) -> Result<Bytes, PipelineError> {
        self.piece(opener, part, 0, Compare::Last)
    }

    fn piece(&self, opener: &mut Opener, part: &Part, depth: u8, compare: Compare) -> Result<Bytes, PipelineError> {
        let plaintext = self.fetch_and_open(opener, &part.blob, depth, compare, !part.is_whole())?;
        Ok((plaintext, part.blob.range_of(&part.positions)))
    }

    /// Fetches and opens the blobs of a window. What cannot be had where the index says is looked for elsewhere.
    fn open_window(&self, opener: &mut Opener, window: Vec<Part>) -> Result<Vec<Bytes>, PipelineError> {
        let mut blobs: Vec<(Arc<BlobRow>, Option<Arc<Vec<u8>>>)> = Vec::new();
        for part in &window {
            if !blobs.iter().any(|(blob, _)| blob.is(&part.blob)) {
                blobs.push((part.blob.clone(), self.kept(&part.blob, true)));
            }
        }
        let mut failures: Vec<(Arc<BlobRow>, PipelineError)> = Vec::new();
        let mut at = 0;
        while at < blobs.len() {
            if blobs[at].1.is_some() {
                at += 1;
                continue;
            }
            let run = run_length(&blobs[at..]);
            let rows: Vec<&BlobRow> = blobs[at..at + run].iter().map(|(blob, _)| &**blob).collect();
            match self.fetcher.get_run(&rows).map_err(RepoError::from) {
                Err(error @ RepoError::Backend(BackendError::Unreachable { .. } | BackendError::Denied { .. })) => {
                    return Err(error.into());
                }
                Err(error) => {
                    let detail = error.to_string();
                    failures.push((blobs[at].0.clone(), error.into()));
                    for (blob, _) in &blobs[at + 1..at + run] {
                        let name = pack_name(&blob.pack);
                        failures.push((blob.clone(), RepoError::Damaged { name, detail: detail.clone() }.into()));
                    }
                }
                Ok(sealed) => {
                    for ((blob, plaintext), sealed) in blobs[at..at + run].iter_mut().zip(sealed) {
                        match self.open(opener, blob, &sealed) {
                            Ok(opened) => {
                                if !used_up(blob, &window) {
                                    self.keep(blob, &opened, true);
                                }
                                *plaintext = Some(opened);
                            }
                            Err(error) => failures.push((blob.clone(), error)),
                        }
                    }
                }
            }
            at += run;
        }
        let mut out = Vec::with_capacity(window.len());
        for part in window {
            let (_, opened) = blobs.iter().find(|(blob, _)| blob.is(&part.blob)).expect("it was added above");
            if let Some(plaintext) = opened {
                out.push((plaintext.clone(), part.blob.range_of(&part.positions)));
                continue;
            }
            let at = failures.iter().position(|(blob, _)| blob.is(&part.blob)).expect("not opened is failed");
            for entry in &part.blob.contents.chunks[part.positions.clone()] {
                match self.chunk_elsewhere(opener, entry, &part.blob) {
                    Some(bytes) => out.push(bytes),
                    None => return Err(failures.swap_remove(at).1),
                }
            }
        }
        Ok(out)
    }

    /// A chunk from another pack than the one of `bad`, if there is a good copy; or from there, if what it rests on is found
    /// now.
    fn chunk_elsewhere(&self, opener: &mut Opener, entry: &ChunkEntry, bad: &BlobRow) -> Option<Bytes> {
        // Prune may have moved it since the index was loaded.
        self.repo.load_index(&Progress::default()).ok()?;
        let index = &self.repo.index;
        let found = index.find(&entry.id, |pack| *pack != bad.pack).or_else(|| index.find(&entry.id, |_| true))?;
        (found.blob.contents.chunks[found.position] == *entry).then(|| self.part(opener, &found.into()).ok())?
    }

    /// `keep` says that somebody may come back for more of it.
    fn fetch_and_open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        depth: u8,
        compare: Compare,
        keep: bool,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let is_named = compare.includes(depth);
        if let Some(plaintext) = self.kept(blob, is_named) {
            return Ok(plaintext);
        }
        let sealed = self.fetcher.get(blob).map_err(RepoError::from)?;
        let mut plaintext = self.open_at(opener, blob, &sealed, depth, compare)?;
        if keep {
            // What is kept takes no more memory than it counts for.
            if plaintext.capacity() > plaintext.len() / 4 * 5 {
                let exact = Arc::new(plaintext.as_slice().to_vec());
                self.give_back(std::mem::replace(&mut plaintext, exact));
            }
            self.keep(blob, &plaintext, is_named);
        }
        Ok(plaintext)
    }

    /// Has blobs of a far store fetched that will be opened next, with what lies between them. What fails will be asked for
    /// again.
    pub(crate) fn fetch_ahead<'b>(&self, blobs: impl Iterator<Item = &'b BlobRow>) {
        if self.fetcher.is_far() {
            for piece in self.fetcher.announce(blobs.map(Extent::of).collect()) {
                if let Err(error) = self.fetcher.fetch(&piece) {
                    tracing::debug!("read-ahead: {error}");
                }
            }
        }
    }

    /// Fetches and opens a blob, and keeps it for those that rest on it.
    pub(crate) fn open_chained(&self, opener: &mut Opener, blob: &BlobRow) -> Result<Arc<Vec<u8>>, PipelineError> {
        blame(blob, |compare| self.fetch_and_open(opener, blob, 0, compare, true))
    }

    /// Opens a blob, after its bases.
    pub(crate) fn open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        blame(blob, |compare| self.open_at(opener, blob, sealed, 0, compare))
    }

    /// `depth` counts how many blobs wait for this one.
    fn open_at(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
        depth: u8,
        compare: Compare,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let contents = &blob.contents;
        if depth > DELTA_DEPTH_MAX {
            return Err(stream_error("its chunks rest on each other too deep"));
        }
        let mut parts: Vec<Part> = Vec::new();
        for base in &contents.bases {
            if !parts.last_mut().is_some_and(|part| part.extend(base)) {
                parts.push(self.locate_base(base, contents.depth)?.into());
            }
        }
        let mut bases = Joined::new(contents.bases.iter().map(|base| base.bytes as usize).sum());
        for part in &parts {
            self.join(&mut bases, self.piece(opener, part, depth + 1, compare)?);
        }
        let mut plaintext = self.spare_buffer();
        let keys = &self.repo.keys;
        let opened = opener.open_unnamed(keys, contents, sealed, bases.bytes(), &mut plaintext);
        let opened = opened.and_then(|()| match compare.includes(depth) {
            true => compare_names(keys, contents, &plaintext),
            false => Ok(()),
        });
        opened.map_err(|error| damaged(&format!("{} (blob at {})", pack_name(&blob.pack), blob.offset), &error))?;
        self.take_back(bases);
        Ok(Arc::new(plaintext))
    }

    /// Keeps an opened blob for whoever asks for it next.
    fn keep(&self, blob: &BlobRow, plaintext: &Arc<Vec<u8>>, is_named: bool) {
        let new = OpenedBlob { pack: blob.pack, offset: blob.offset, plaintext: plaintext.clone(), is_named };
        let mut opened = self.opened.lock().expect("no code panics while it holds this lock");
        opened.push_back(new);
        let mut bytes: usize = opened.iter().map(|kept| kept.plaintext.len()).sum();
        let mut oldest = Vec::new();
        while bytes > OPENED_BYTES * self.openers
            && let Some(kept) = opened.pop_front()
        {
            bytes -= kept.plaintext.len();
            oldest.push(kept.plaintext);
        }
        drop(opened);
        oldest.into_iter().for_each(|plaintext| self.give_back(plaintext));
    }

    /// A blob that is still open; the ones used last are kept longest. With `is_named` its chunks have been compared with
    /// their names.
    fn kept(&self, blob: &BlobRow, is_named: bool) -> Option<Arc<Vec<u8>>> {
        let lock = || self.opened.lock().expect("no code panics while it holds this lock");
        let take = |opened: &mut VecDeque<OpenedBlob>| {
            let at = opened.iter().position(|kept| kept.is(blob))?;
            opened.remove(at)
        };
        let mut opened = lock();
        let mut kept = take(&mut opened)?;
        if is_named && !kept.is_named {
            drop(opened);
            compare_names(&self.repo.keys, &blob.contents, &kept.plaintext).ok()?;
            kept.is_named = true;
            opened = lock();
            // Somebody else may have opened it meanwhile.
            take(&mut opened);
        }
        let plaintext = kept.plaintext.clone();
        opened.push_back(kept);
        Some(plaintext)
    }

    fn is_opened(&self, blob: &BlobRow) -> bool {
        let opened = self.opened.lock().expect("no code panics while it holds this lock");
        opened.iter().any(|kept| kept.is(blob))
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

impl Location {
    /// The chunk after this one in its blob, if it is `entry`.
    pub fn next(&self, entry: &ChunkEntry) -> Option<Self> {
        let position = self.position + 1;
        let is_next = self.blob.contents.chunks.get(position) == Some(entry);
        is_next.then(|| Self { blob: self.blob.clone(), position })
    }
}

impl BlobRow {
    /// Whether this is the same blob, in the same pack.
    pub fn is(&self, other: &Self) -> bool {
        self.pack == other.pack && self.offset == other.offset
    }

    /// Where a run of chunks lies in the blob's plaintext, in bytes.
    pub fn range_of(&self, positions: &Range<usize>) -> Range<usize> {
        let sum = |chunks: &[ChunkEntry]| chunks.iter().map(|chunk| chunk.bytes as usize).sum::<usize>();
        let start = sum(&self.contents.chunks[..positions.start]);
        start..start + sum(&self.contents.chunks[positions.clone()])
    }
}

/// Gathers entries into windows.
struct Planner<'r> {
    reader: &'r Reader,
    kind: BlobKind,
    window: Vec<Part>,
    blobs: Vec<Arc<BlobRow>>,
    bytes: usize,
}

impl<'r> Planner<'r> {
    fn new(reader: &'r Reader, kind: BlobKind) -> Self {
        Self { reader, kind, window: Vec::new(), blobs: Vec::new(), bytes: 0 }
    }

    /// Adds an entry; returns the window before it if that is full.
    fn add(&mut self, entry: ChunkEntry) -> Result<Option<Vec<Part>>, PipelineError> {
        // Most often the next chunk is the next one of the same blob.
        if let Some(part) = self.window.last_mut()
            && part.blob.contents.kind == self.kind
            && part.extend(&entry)
        {
            self.bytes += entry.bytes as usize;
            return Ok(None);
        }
        let part = Part::from(self.reader.locate(&entry, self.kind)?);
        let known = self.blobs.iter().any(|other| other.is(&part.blob));
        let full = (!known && self.blobs.len() >= WINDOW_BLOBS) || self.bytes >= WINDOW_BYTES;
        let done = full.then(|| self.rest());
        if full || !known {
            self.blobs.push(part.blob.clone());
        }
        self.bytes += entry.bytes as usize;
        self.window.push(part);
        Ok(done)
    }

    fn rest(&mut self) -> Vec<Part> {
        self.blobs.clear();
        self.bytes = 0;
        std::mem::take(&mut self.window)
    }
}

/// Windows whose blobs, and all that these rest on, are fetched before anybody opens them. Each is held back until those after it
/// have been announced. Of a store that is near nothing is fetched beforehand.
struct Planned<'r> {
    reader: &'r Reader,
    ahead: &'r Sender<Extent>,
    next: Batch,
    announced: Batch,
}

/// Windows that are announced together.
#[derive(Default)]
struct Batch {
    windows: Vec<Vec<Part>>,
    extents: Vec<Extent>,
    blobs: HashSet<BlobPlace>,
    bytes: usize,
}

impl Planned<'_> {
    /// Adds a window; returns those that may be opened now.
    fn add(&mut self, window: Vec<Part>) -> Vec<Vec<Part>> {
        if !self.reader.fetcher.is_far() {
            return vec![window];
        }
        for part in &window {
            self.need(&part.blob);
        }
        self.next.windows.push(window);
        let is_full = self.next.bytes >= PLANNED_BYTES || self.next.windows.len() >= PLANNED_WINDOWS;
        if is_full { self.announce() } else { Vec::new() }
    }

    /// Announces what was added, and returns the windows that were announced before.
    fn announce(&mut self) -> Vec<Vec<Part>> {
        for piece in self.reader.fetcher.announce(std::mem::take(&mut self.next.extents)) {
            if let Err(unsent) = self.ahead.send(piece) {
                self.reader.fetcher.give_up(&unsent.0);
            }
        }
        std::mem::replace(&mut self.announced, std::mem::take(&mut self.next)).windows
    }

    /// Adds a blob and what it rests on. Whoever opens it says what cannot be found.
    fn need(&mut self, blob: &BlobRow) {
        let place = (blob.pack, blob.offset);
        if self.announced.blobs.contains(&place) || self.reader.is_opened(blob) || !self.next.blobs.insert(place) {
            return;
        }
        self.next.extents.push(Extent::of(blob));
        self.next.bytes += blob.stored as usize;
        let mut last: Option<Part> = None;
        for base in &blob.contents.bases {
            if !last.as_mut().is_some_and(|part| part.extend(base)) {
                last = self.reader.repo.index.find_base(base, blob.contents.depth, |_| true).map(Part::from);
                if let Some(part) = &last {
                    self.need(&part.blob);
                }
            }
        }
    }
}

/// Opens a blob. If that fails because of one of its bases, it is opened again, so that the error names that one.
fn blame(
    blob: &BlobRow,
    mut open: impl FnMut(Compare) -> Result<Arc<Vec<u8>>, PipelineError>,
) -> Result<Arc<Vec<u8>>, PipelineError> {
    match open(Compare::Last) {
        Err(PipelineError::Repo(RepoError::Damaged { .. })) if !blob.contents.bases.is_empty() => open(Compare::All),
        other => other,
    }
}

/// Whether a window takes a blob whole: a stream rarely comes back to one of these.
fn used_up(blob: &BlobRow, window: &[Part]) -> bool {
    let used: usize = window.iter().filter(|part| part.blob.is(blob)).map(|part| part.positions.len()).sum();
    used >= blob.contents.chunks.len()
}

/// How many blobs from the first on lie close enough together, in order, to be fetched in one request.
fn run_length(blobs: &[(Arc<BlobRow>, Option<Arc<Vec<u8>>>)]) -> usize {
    let next_to = |pair: &[(Arc<BlobRow>, Option<Arc<Vec<u8>>>)]| {
        let (before, after) = (&pair[0].0, &pair[1].0);
        let end = before.offset + before.stored;
        pair[1].1.is_none() && before.pack == after.pack && after.offset >= end && after.offset - end <= FETCH_GAP_BYTES
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
