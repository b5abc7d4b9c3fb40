//! From blobs of new chunks to packs and index objects in the store.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::format::index::{Index, PackIndex};
use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobContents, BlobEntry, encode_directory, encode_trailer};
use crate::id::{ChunkId, ObjectId};
use crate::limits::{
    BASE_BYTES_MAX, BLOB_BASES_MAX, BLOB_BYTES_MAX, INDEX_CHUNKS_MAX, PACK_BYTES_TARGET, PACK_CHUNKS_MAX,
    PUT_QUEUE_PACKS, SEAL_QUEUE_BLOBS, UPLOADERS_FAR,
};
use crate::pipeline::PipelineError;
use crate::pipeline::delta::Guessed;
use crate::pipeline::read::{Joined, Part, Reader};
use crate::pipeline::stream::{Base, BlobPlace};
use crate::repo::index::{BlobRow, Location};
use crate::repo::{RepoError, Repository, pack_name, random};
use crate::seal::blob::{Bases, Opener, Sealer};
use crate::seal::boxed::seal_object;
use crate::seal::keys::{Keys, Kind};

/// A blob on its way.
pub enum Blob {
    /// New chunks, to be sealed; the candidates are older chunks that may resemble them, some of which are guessed.
    Plain { contents: BlobContents, plaintext: Vec<u8>, candidates: Vec<Base>, guessed: Guessed },
    /// Sealed before and copied as it is.
    Sealed { contents: BlobContents, stored: Bytes },
}

/// What was added to the store so far.
#[derive(Debug, Default)]
pub struct Added {
    pub pack_bytes: AtomicU64,
    pub index_bytes: AtomicU64,
    /// How many bytes more its blobs would take without their bases, going by the blobs that their chains begin with.
    pub bytes_saved_estimate: AtomicU64,
    /// The packs.
    pub packs: Mutex<Vec<ObjectId>>,
}

impl Added {
    /// Bytes of packs and index objects.
    pub fn bytes_stored(&self) -> u64 {
        self.pack_bytes.load(Relaxed) + self.index_bytes.load(Relaxed)
    }
}

/// The chunks that this run has taken on itself to store and that the local index does not know yet.
#[derive(Default)]
pub struct Pending(Mutex<HashSet<ChunkId>>);

impl Pending {
    /// Takes a chunk on; false if it was taken on before.
    pub fn take(&self, id: ChunkId) -> bool {
        self.0.lock().expect("no code panics while it holds this lock").insert(id)
    }

    /// Whether a chunk was taken on and is not in the local index yet.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.0.lock().expect("no code panics while it holds this lock").contains(id)
    }

    fn release(&self, packs: &[PackIndex]) {
        let mut pending = self.0.lock().expect("no code panics while it holds this lock");
        let chunks = packs.iter().flat_map(|pack| &pack.directory).flat_map(|blob| &blob.contents.chunks);
        chunks.for_each(|chunk| {
            pending.remove(&chunk.id);
        });
    }
}

/// Sealers, packer and uploaders. Blobs in; packs and index objects in the store when [`finish`](Packer::finish) returns.
pub struct Packer {
    blobs: Option<Sender<Blob>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    sealers: usize,
    level: i32,
}

struct Shared {
    repo: Arc<Repository>,
    added: Arc<Added>,
    pending: Arc<Pending>,
    failure: Mutex<Option<PipelineError>>,
    /// Buffers of plaintext and of sealed blobs, to be filled again. So memory is what is in use at once, and not what an
    /// allocator keeps between large pieces that come and go on several threads.
    spare: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    spare_sealed: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    supersedes: Mutex<Vec<ObjectId>>,
    bases: Option<BaseFinder>,
}

/// Turns candidates into bases: looks them up, and gets their plaintext.
pub struct BaseFinder {
    pub reader: Arc<Reader>,
    /// Packs that nothing new may rest on.
    pub marked: Arc<HashSet<ObjectId>>,
    /// Chains are at most this deep.
    pub depth_max: u8,
}

impl BaseFinder {
    /// Sets bases and depth of `contents` and returns the bases' plaintext, concatenated, and how many bytes the blob should
    /// take without. Bases that cannot be had are left out: a blob can do without.
    fn gather(&self, opener: &mut Opener, contents: &mut BlobContents, candidates: Vec<Base>) -> (Joined, usize) {
        let alone_bytes = candidates.first().map_or(0, |base| self.alone_bytes(&base.place, contents.raw_bytes()));
        let (mut chosen, mut seen): (Vec<(ChunkEntry, Location)>, _) = (Vec::new(), HashSet::new());
        for candidate in candidates {
            if candidate.place.blob.contents.depth >= self.depth_max {
                // The end of a chain: what it begins with is the next best.
                self.add_roots(&candidate.place.blob, &mut seen, &mut chosen);
            } else if chosen.iter().all(|(entry, _)| *entry != candidate.entry) {
                chosen.push((candidate.entry, candidate.place));
            }
        }
        let mut parts: Vec<Part> = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        for (entry, place) in chosen {
            if count == BLOB_BASES_MAX || bytes + entry.bytes as usize > BASE_BYTES_MAX {
                break;
            }
            (count, bytes) = (count + 1, bytes + entry.bytes as usize);
            if !parts.last_mut().is_some_and(|part| part.blob.is(&place.blob) && part.extend(&entry)) {
                parts.push(place.into());
            }
        }
        let mut bases = Joined::new(bytes);
        for part in &parts {
            // Of a blob no more is opened than what the last of them lies in.
            let same_blob = parts.iter().filter(|other| other.blob.is(&part.blob));
            let front = same_blob.map(|other| other.positions.end).max().unwrap_or(part.positions.end);
            match self.reader.part(opener, part, front) {
                Ok(piece) => {
                    self.reader.join(&mut bases, piece);
                    contents.bases.extend(&part.blob.contents.chunks[part.positions.clone()]);
                    contents.depth = contents.depth.max(part.blob.contents.depth + 1);
                }
                Err(error) => tracing::debug!("pack {} gives no bases: {error}", part.blob.pack),
            }
        }
        (bases, alone_bytes)
    }

    /// What `raw_bytes` would take alone, going by the blob at the beginning of the chain that leads to `place`.
    fn alone_bytes(&self, place: &Location, raw_bytes: usize) -> usize {
        let mut blob = place.blob.clone();
        while let Some(base) = blob.contents.bases.first() {
            let Some(found) = self.find_base(base, blob.contents.depth) else { return raw_bytes };
            blob = found.blob;
        }
        raw_bytes * blob.stored as usize / blob.contents.raw_bytes().max(1)
    }

    /// Adds the chunks that stand alone and that `blob` rests on in the end. A blob that was `seen` adds nothing.
    fn add_roots(&self, blob: &BlobRow, seen: &mut HashSet<BlobPlace>, roots: &mut Vec<(ChunkEntry, Location)>) {
        if !seen.insert((blob.pack, blob.offset)) {
            return;
        }
        let mut last: Option<Location> = None;
        for base in &blob.contents.bases {
            let next = last.and_then(|last| last.next(base));
            last = next.or_else(|| self.find_base(base, blob.contents.depth));
            let Some(place) = &last else { continue };
            if !place.blob.contents.bases.is_empty() {
                self.add_roots(&place.blob, seen, roots);
            } else if roots.iter().all(|(entry, _)| entry != base) {
                roots.push((*base, place.clone()));
            }
        }
    }

    fn find_base(&self, base: &ChunkEntry, depth: u8) -> Option<Location> {
        self.reader.repo().index.find_base(base, depth, |pack| !self.marked.contains(pack))
    }
}

struct SealedBlob {
    contents: BlobContents,
    stored: Bytes,
}

struct FullPack {
    index: PackIndex,
    bytes: Vec<u8>,
}

impl Packer {
    /// Starts the threads. `level` is zstd's. Without `bases` every blob stands alone.
    pub fn start(
        repo: Arc<Repository>,
        pending: Arc<Pending>,
        added: Arc<Added>,
        bases: Option<BaseFinder>,
        sealers: usize,
        level: i32,
    ) -> Self {
        let sealers = sealers.max(1);
        let [spare, spare_sealed] = [(); 2].map(|()| bounded(SEAL_QUEUE_BLOBS + sealers));
        let shared = Arc::new(Shared {
            repo,
            added,
            pending,
            failure: Mutex::default(),
            spare,
            spare_sealed,
            supersedes: Mutex::default(),
            bases,
        });
        let mut packer = Self { blobs: None, threads: Vec::new(), shared, sealers, level };
        packer.start_threads();
        packer
    }

    fn start_threads(&mut self) {
        let (shared, level) = (&self.shared, self.level);
        let (blobs, blob_queue) = bounded(SEAL_QUEUE_BLOBS);
        let (sealed, sealed_queue) = bounded(SEAL_QUEUE_BLOBS);
        let (packs, pack_queue) = bounded(PUT_QUEUE_PACKS);
        for _ in 0..self.sealers {
            let (shared, blob_queue, sealed) = (shared.clone(), blob_queue.clone(), sealed.clone());
            let seal = move || shared.run(|shared| seal_blobs(shared, &blob_queue, &sealed, level));
            self.threads.push(std::thread::spawn(seal));
        }
        let uploaders = if shared.repo.backend.properties().is_far() { UPLOADERS_FAR } else { 1 };
        let (returned, empty) = bounded(PUT_QUEUE_PACKS + 1 + uploaders);
        {
            let shared = shared.clone();
            let fill = move || shared.run(|shared| fill_packs(shared, &sealed_queue, &packs, &empty));
            self.threads.push(std::thread::spawn(fill));
        }
        {
            let shared = shared.clone();
            let put = move || shared.run(|shared| put_packs(shared, uploaders, &pack_queue, &returned));
            self.threads.push(std::thread::spawn(put));
        }
        self.blobs = Some(blobs);
    }

    /// Hands a blob on; waits while the queue is full.
    pub fn push(&self, blob: Blob) -> Result<(), PipelineError> {
        // After a failure there may be nobody left to take it.
        let blobs = self.blobs.as_ref().ok_or(PipelineError::Stopped)?;
        blobs.send(blob).map_err(|_| PipelineError::Stopped)
    }

    /// An empty buffer for plaintext, used before if there is one.
    pub fn buffer(&self) -> Vec<u8> {
        self.shared.spare.1.try_recv().unwrap_or_default()
    }

    /// The next index object that is written will supersede these.
    pub fn supersede(&self, index_objects: &[ObjectId]) {
        let mut supersedes = self.shared.supersedes.lock().expect("no code panics while it holds this lock");
        supersedes.extend_from_slice(index_objects);
    }

    /// Waits until every blob is in a pack, every pack in the store, and every pack in an index object; then takes more.
    /// If storing failed, [`failure`](Self::failure) says why.
    pub fn settle(&mut self) -> Result<(), PipelineError> {
        self.stop();
        if self.shared.failed() {
            return Err(PipelineError::Stopped);
        }
        self.start_threads();
        Ok(())
    }

    /// Waits until every blob is in a pack, every pack in the store, and every pack in an index object.
    pub fn finish(mut self) -> Result<(), PipelineError> {
        self.stop();
        match self.shared.take_failure() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn stop(&mut self) {
        self.blobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let detail = "a worker of the pipeline broke down".to_owned();
                self.shared.fail(RepoError::Refused { detail }.into());
            }
        }
    }

    /// Why a worker stopped, if one did.
    pub fn failure(&self) -> Option<PipelineError> {
        self.shared.take_failure().filter(|error| !matches!(error, PipelineError::Unfinished))
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        // A run that failed does not wait for blobs that nobody needs.
        self.shared.fail(PipelineError::Unfinished);
        self.stop();
    }
}

impl Shared {
    fn run(&self, work: impl FnOnce(&Self) -> Result<(), PipelineError>) {
        if let Err(error) = work(self) {
            self.fail(error);
        }
    }

    /// Keeps the first failure.
    fn fail(&self, error: PipelineError) {
        self.failure.lock().expect("no code panics while it holds this lock").get_or_insert(error);
    }

    fn failed(&self) -> bool {
        self.failure.lock().expect("no code panics while it holds this lock").is_some()
    }

    /// The first failure; what stays behind only says that there was one.
    fn take_failure(&self) -> Option<PipelineError> {
        let mut failure = self.failure.lock().expect("no code panics while it holds this lock");
        failure.as_mut().map(|failure| std::mem::replace(failure, PipelineError::Unfinished))
    }
}

fn seal_blobs(
    shared: &Shared,
    blobs: &Receiver<Blob>,
    sealed: &Sender<SealedBlob>,
    level: i32,
) -> Result<(), PipelineError> {
    let mut sealer = Sealer::new(level);
    for blob in blobs {
        if shared.failed() {
            break;
        }
        let done = match blob {
            Blob::Sealed { contents, stored } => SealedBlob { contents, stored },
            Blob::Plain { mut contents, mut plaintext, candidates, guessed } => {
                let (bases, alone_bytes) = match &shared.bases {
                    Some(finder) if !candidates.is_empty() => finder.gather(sealer.opener(), &mut contents, candidates),
                    _ => (Joined::default(), 0),
                };
                let given = if guessed.may_help(&plaintext, bases.bytes()) {
                    Bases { plaintext: bases.bytes(), alone_bytes }
                } else {
                    contents.stand_alone();
                    Bases::default()
                };
                let mut stored = shared.spare_sealed.1.try_recv().unwrap_or_default();
                let entropy = random().map_err(PipelineError::Repo)?;
                sealer.seal(&shared.repo.keys, &mut contents, &plaintext, given, &entropy, &mut stored)?;
                if contents.bases.is_empty() {
                    guessed.failed();
                } else {
                    let saved = alone_bytes.saturating_sub(stored.len());
                    shared.added.bytes_saved_estimate.fetch_add(saved as u64, Relaxed);
                    guessed.helped(&plaintext, &contents.bases, given.plaintext);
                }
                if let Some(finder) = &shared.bases {
                    finder.reader.take_back(bases);
                }
                plaintext.clear();
                let _ = shared.spare.0.try_send(plaintext);
                SealedBlob { contents, stored: stored.into() }
            }
        };
        if sealed.send(done).is_err() {
            break;
        }
    }
    Ok(())
}

/// A pack being filled. Pure.
pub struct PackWriter {
    body: Vec<u8>,
    entries: Vec<BlobEntry>,
    chunks: usize,
}

impl PackWriter {
    /// `buffer` is reused; it is emptied first.
    pub fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { body: buffer, entries: Vec::new(), chunks: 0 }
    }

    /// Appends one blob. Call `is_full` after each push; a pack may exceed its target by one blob.
    pub fn push(&mut self, contents: BlobContents, stored: &[u8]) {
        let size = |n: usize| u32::try_from(n).expect("a pack stays below PACK_BYTES_MAX");
        let (offset, stored_bytes) = (size(self.body.len()), size(stored.len()));
        self.body.extend_from_slice(stored);
        self.chunks += contents.chunks.len() + contents.bases.len();
        self.entries.push(BlobEntry { offset, stored: stored_bytes, contents });
    }

    pub fn is_full(&self) -> bool {
        self.body.len() >= PACK_BYTES_TARGET || self.chunks >= PACK_CHUNKS_MAX
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Closes the pack: appends the sealed directory and the trailer, and names it.
    pub fn finish(mut self, keys: &Keys, entropy: &[u8; 32]) -> (PackIndex, Vec<u8>) {
        let directory = seal_object(keys, Kind::Directory, &encode_directory(&self.entries), entropy);
        self.body.extend_from_slice(&directory);
        self.body.extend_from_slice(&encode_trailer(directory.len()));
        let pack = ObjectId::of(&self.body);
        let bytes = u32::try_from(self.body.len()).expect("a pack stays below PACK_BYTES_MAX");
        (PackIndex { pack, bytes, directory: self.entries }, self.body)
    }
}

fn fill_packs(
    shared: &Shared,
    sealed: &Receiver<SealedBlob>,
    packs: &Sender<FullPack>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), PipelineError> {
    let close = |writer: PackWriter| -> Result<bool, PipelineError> {
        let (index, bytes) = writer.finish(&shared.repo.keys, &random()?);
        Ok(packs.send(FullPack { index, bytes }).is_ok())
    };
    let mut writer = PackWriter::new(Vec::new());
    for blob in sealed {
        writer.push(blob.contents, &blob.stored);
        if let Ok(buffer) = blob.stored.try_into_mut() {
            let mut buffer = Vec::from(buffer);
            buffer.clear();
            // A blob that was copied may be the last piece of a whole pack.
            if buffer.capacity() <= 2 * BLOB_BYTES_MAX {
                let _ = shared.spare_sealed.0.try_send(buffer);
            }
        }
        if writer.is_full() {
            let next = PackWriter::new(empty.try_recv().unwrap_or_default());
            if !close(std::mem::replace(&mut writer, next))? {
                return Ok(());
            }
        }
    }
    if !writer.is_empty() && !shared.failed() {
        close(writer)?;
    }
    Ok(())
}

/// Packs that are in the store and that no index object lists yet.
#[derive(Default)]
struct Unlisted {
    packs: Vec<PackIndex>,
    chunks: usize,
    since: Option<Instant>,
}

impl Unlisted {
    /// When an index object must be put, however few chunks wait for it.
    fn due(&self, index_put: Duration) -> Option<Instant> {
        self.since.map(|since| since + index_put)
    }

    /// Takes the packs if it is time to list them.
    fn take_due(&mut self, index_put: Duration) -> Option<Vec<PackIndex>> {
        let is_due = self.chunks >= INDEX_CHUNKS_MAX || self.due(index_put).is_some_and(|due| due <= Instant::now());
        is_due.then(|| std::mem::take(self).packs)
    }

    fn add(&mut self, pack: PackIndex) {
        self.chunks += pack.directory.iter().map(|blob| blob.contents.chunks.len()).sum::<usize>();
        self.packs.push(pack);
        self.since.get_or_insert_with(Instant::now);
    }
}

fn put_packs(
    shared: &Shared,
    uploaders: usize,
    packs: &Receiver<FullPack>,
    returned: &Sender<Vec<u8>>,
) -> Result<(), PipelineError> {
    let unlisted = Mutex::<Unlisted>::default();
    let put = || shared.run(|shared| put_each_pack(shared, packs, returned, &unlisted));
    std::thread::scope(|scope| {
        for _ in 1..uploaders {
            scope.spawn(put);
        }
        put();
    });
    let unlisted = unlisted.into_inner().expect("no code panics while it holds this lock");
    // Also after a failure: packs that are in the store are listed, so that the next run need not store them again.
    let superseding = !shared.supersedes.lock().expect("no code panics while it holds this lock").is_empty();
    if !unlisted.packs.is_empty() || (superseding && !shared.failed()) {
        put_index(shared, unlisted.packs)?;
    }
    Ok(())
}

/// Puts packs as they come, and an index object when many chunks wait for one or a pack has waited long.
fn put_each_pack(
    shared: &Shared,
    packs: &Receiver<FullPack>,
    returned: &Sender<Vec<u8>>,
    unlisted: &Mutex<Unlisted>,
) -> Result<(), PipelineError> {
    let unlisted = || unlisted.lock().expect("no code panics while it holds this lock");
    let index_put = shared.repo.pace.index_put;
    // When another uploader has failed, nothing more is put.
    while !shared.failed() {
        let due = unlisted().due(index_put);
        let next = match due {
            Some(due) => packs.recv_deadline(due),
            None => packs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(FullPack { index, bytes }) => {
                let bytes = Bytes::from(bytes);
                shared.repo.backend.put(&pack_name(&index.pack), bytes.clone()).map_err(RepoError::from)?;
                if let Some(written) = &shared.repo.written {
                    written.put(&index.pack, &bytes);
                }
                if let Ok(buffer) = bytes.try_into_mut() {
                    let _ = returned.try_send(buffer.into());
                }
                shared.added.pack_bytes.fetch_add(u64::from(index.bytes), Relaxed);
                shared.added.packs.lock().expect("no code panics while it holds this lock").push(index.pack);
                unlisted().add(index);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let due = unlisted().take_due(index_put);
        if let Some(packs) = due {
            put_index(shared, packs)?;
        }
    }
    Ok(())
}

fn put_index(shared: &Shared, packs: Vec<PackIndex>) -> Result<(), PipelineError> {
    let supersedes = if shared.failed() {
        Vec::new()
    } else {
        std::mem::take(&mut *shared.supersedes.lock().expect("no code panics while it holds this lock"))
    };
    let index = Index { supersedes, packs };
    let saved = shared.repo.save(Kind::Index, &index.encode())?;
    shared.added.index_bytes.fetch_add(saved.bytes, Relaxed);
    match shared.repo.add_to_index(&saved.id, &index) {
        Ok(true) => shared.pending.release(&index.packs),
        // The chunks stay pending, in memory: the local index is a hint.
        Ok(false) => tracing::debug!("index object {} was replaced at once", saved.id),
        Err(error) => tracing::warn!("{error}; going on without it"),
    }
    Ok(())
}
