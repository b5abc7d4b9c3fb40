//! The local index: which chunk lies where, in SQLite. A hint: it can be deleted, damaged or out of date without a wrong
//! result, because the row of every blob carries a check value under the repository's key, rows count only while the index
//! object that they came from is in the store, and what cannot be used is made anew from the index objects.
//!
//! Processes that share the file change it one after the other, each by a listing of its own that it took meanwhile: so a
//! row never comes back after a process that reads the file has seen its index object gone, and what a row names was in
//! the store after that process put its lease and read the marks.

mod load;
mod tables;

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::{OptionalExtension, TransactionBehavior, params};

use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobContents, BlobKind};
use crate::id::{ChunkId, ObjectId};
use crate::limits::{INDEX_BLOBS_KEPT, INDEX_CHUNKS_KEPT};
use crate::repo::{RepoError, private_folder};
use crate::seal::keys::Keys;

use tables::{ObjectRows, TableError, Tables};

/// A blob as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    pub pack: ObjectId,
    pub offset: u32,
    pub stored: u32,
    /// How long the pack is.
    pub pack_bytes: u32,
    pub contents: BlobContents,
}

/// Where a chunk lies: a blob, and the chunk's position in it.
#[derive(Debug, Clone)]
pub struct Location {
    pub blob: Arc<BlobRow>,
    pub position: usize,
}

/// The SQLite file. Shared by all threads; two processes may use one file.
pub struct LocalIndex {
    keys: Arc<Keys>,
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    tables: Tables,
    kept: Kept,
    in_memory: bool,
    made_anew: bool,
}

/// What was last read: chunks come in runs, and who asks for one of a blob asks for its neighbours next.
#[derive(Default)]
struct Kept {
    blobs: HashMap<i64, Arc<BlobRow>>,
    chunks: HashMap<ChunkId, (Arc<BlobRow>, usize)>,
}

impl LocalIndex {
    /// Opens the file of this repository under `folder`, or makes it. A file that cannot be used is put aside and made
    /// anew; where no file can be, the index is kept in memory for this run.
    pub fn open(folder: &Path, keys: Arc<Keys>) -> Result<Self, RepoError> {
        let folder = folder.join(keys.repo.hex());
        let path = folder.join("index.sqlite");
        let opened = private_folder(&folder).map_err(|error| error.to_string()).and_then(|()| {
            Tables::in_file(&path)
                .or_else(|error| {
                    if !error.is_corrupt() {
                        return Err(error);
                    }
                    tracing::warn!("the local index {} cannot be used ({error}): making it anew", path.display());
                    put_aside(&path);
                    Tables::in_file(&path)
                })
                .map_err(|error| error.to_string())
        });
        let (tables, in_memory) = match opened {
            Ok(tables) => (tables, false),
            Err(error) => {
                tracing::warn!("no local index in {} ({error}): using memory for this run", path.display());
                (Tables::in_memory().map_err(|error| cache_error(&path, &error))?, true)
            }
        };
        let inner = Inner { tables, kept: Kept::default(), in_memory, made_anew: false };
        Ok(Self { keys, path, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps other processes from changing the file until what is returned is dropped, or this process ends.
    ///
    /// Who holds it lists the store and takes over what it says: with two at once, one could add what the other has just
    /// seen vanish.
    fn claim(&self) -> Result<Option<File>, RepoError> {
        if self.lock().in_memory {
            return Ok(None);
        }
        let path = self.path.with_extension("lock");
        let claim = File::options().create(true).append(true).open(&path).and_then(|file| {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    tracing::info!("waiting for another process that holds {}", path.display());
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            loop {
                match file.lock() {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    other => return other.map(|()| file),
                }
            }
        });
        match claim {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                tracing::warn!("{} cannot be locked ({error}): using memory for this run", path.display());
                let mut inner = self.lock();
                inner.kept = Kept::default();
                inner.tables = Tables::in_memory().map_err(|error| cache_error(&self.path, &error))?;
                inner.in_memory = true;
                Ok(None)
            }
        }
    }

    /// Starts anew, in the file if possible, else in memory.
    fn reset(&self, reason: &TableError) -> Result<(), RepoError> {
        let mut inner = self.lock();
        tracing::warn!("the local index {} cannot be used ({reason}): making it anew", self.path.display());
        inner.kept = Kept::default();
        if !inner.in_memory && reason.is_corrupt() {
            put_aside(&self.path);
            if let Ok(tables) = Tables::in_file(&self.path) {
                inner.tables = tables;
                return Ok(());
            }
        }
        inner.tables = Tables::in_memory().map_err(|error| cache_error(&self.path, &error))?;
        inner.in_memory = true;
        Ok(())
    }

    /// Where a chunk is stored, not counting packs for which `usable` says no.
    ///
    /// A row that fails its check is as good as none.
    pub fn find(&self, id: &ChunkId, usable: impl Fn(&ObjectId) -> bool) -> Option<Location> {
        self.find_blob(id, |blob| usable(&blob.pack))
    }

    /// Like [`find`](Self::find), asking about blobs.
    pub fn find_blob(&self, id: &ChunkId, usable: impl Fn(&BlobRow) -> bool) -> Option<Location> {
        let mut inner = self.lock();
        if let Some((blob, position)) = inner.kept.chunks.get(id)
            && usable(blob)
        {
            return Some(Location { blob: blob.clone(), position: *position });
        }
        let numbers = inner
            .tables
            .blobs_of(id)
            .inspect_err(|error| tracing::debug!("lookup of {id} in the local index: {error}"))
            .ok()?;
        for number in numbers {
            let Some(blob) = inner.blob(number, &self.keys) else { continue };
            if usable(&blob)
                && let Some(position) = blob.contents.chunks.iter().position(|chunk| chunk.id == *id)
            {
                return Some(Location { blob, position });
            }
        }
        None
    }

    /// Where a base of a blob of `depth` is stored, not counting packs for which `usable` says no: in a blob less deep, so
    /// that no two can rest on each other.
    pub fn find_base(&self, base: &ChunkEntry, depth: u8, usable: impl Fn(&ObjectId) -> bool) -> Option<Location> {
        self.find_blob(&base.id, |blob| {
            let BlobContents { kind, depth: found_depth, chunks, .. } = &blob.contents;
            *kind == BlobKind::Data && *found_depth < depth && usable(&blob.pack) && chunks.contains(base)
        })
    }

    /// Calls `each` with every pack that is listed, its size, and its blobs in order of offset.
    pub fn each_pack(
        &self,
        each: &mut dyn FnMut(ObjectId, u32, Vec<BlobRow>) -> Result<(), RepoError>,
    ) -> Result<(), RepoError> {
        let failed = |error| cache_error(&self.path, &error);
        let packs = self.lock().tables.packs().map_err(failed)?;
        let mut seen = HashSet::new();
        for (number, pack, bytes) in packs {
            if seen.contains(&pack) {
                continue;
            }
            let blobs = self.lock().tables.blobs_of_pack(number, &self.keys).map_err(failed)?;
            // Otherwise another process has removed it meanwhile; what took its place may list it again.
            if let Some(blobs) = blobs {
                seen.insert(pack);
                each(pack, bytes, blobs)?;
            }
        }
        Ok(())
    }

    /// The packs listed, and their sizes.
    pub fn packs(&self) -> Result<HashMap<ObjectId, u32>, RepoError> {
        let packs = self.lock().tables.packs().map_err(|error| cache_error(&self.path, &error))?;
        Ok(packs.into_iter().map(|(_, pack, bytes)| (pack, bytes)).collect())
    }

    /// Ids of the index objects that the rows came from.
    pub fn objects(&self) -> Result<HashSet<ObjectId>, RepoError> {
        let objects = self.lock().tables.objects().map_err(|error| cache_error(&self.path, &error))?;
        Ok(objects.into_keys().collect())
    }

    /// Adds what an index object says. The caller has the claim, and has seen the object in the store since.
    fn add_object(&self, object: &ObjectRows) -> Result<(), RepoError> {
        let added = self.lock().tables.add(object);
        let added = added.and_then(|()| self.sort_if_due());
        match added {
            Err(error) if !self.lock().in_memory => {
                // A full disk costs the file, not the backup.
                self.reset(&error)?;
                Err(cache_error(&self.path, &error))
            }
            other => other.map_err(|error| cache_error(&self.path, &error)),
        }
    }

    /// The caller has the claim.
    fn sort_if_due(&self) -> Result<(), TableError> {
        let mut inner = self.lock();
        let folder = if inner.in_memory { None } else { self.path.parent() };
        inner.tables.sort_if_due(folder)
    }

    /// The local copy of a manifest's stored bytes. The caller compares them with the name.
    pub fn manifest(&self, id: &ObjectId) -> Option<Vec<u8>> {
        let inner = self.lock();
        let mut statement = inner.tables.db.prepare_cached("SELECT sealed FROM manifests WHERE id = ?").ok()?;
        statement.query_row([id.as_bytes()], |row| row.get(0)).optional().ok()?
    }

    /// Keeps a manifest's stored bytes.
    pub fn add_manifest(&self, id: &ObjectId, sealed: &[u8]) {
        let sql = "INSERT OR REPLACE INTO manifests (id, sealed) VALUES (?, ?)";
        if let Err(error) = self.lock().tables.db.execute(sql, params![id.as_bytes(), sealed]) {
            tracing::debug!("manifest {id} is not kept in the local index: {error}");
        }
    }

    /// Drops the local copies of manifests that are not in `listed`.
    pub fn keep_manifests(&self, listed: &HashSet<ObjectId>) {
        let inner = self.lock();
        let drop = || -> rusqlite::Result<()> {
            let mut statement = inner.tables.db.prepare_cached("SELECT id FROM manifests")?;
            let known: Vec<[u8; 32]> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            for id in known.into_iter().filter(|id| !listed.contains(&ObjectId(*id))) {
                inner.tables.db.execute("DELETE FROM manifests WHERE id = ?", [id])?;
            }
            Ok(())
        };
        if let Err(error) = drop() {
            tracing::debug!("old manifests stay in the local index: {error}");
        }
    }

    /// When a pack was last read and found whole, in seconds since 1970.
    pub fn verified(&self, pack: &ObjectId) -> Option<i64> {
        let inner = self.lock();
        let mut statement = inner.tables.db.prepare_cached("SELECT at FROM verified WHERE pack = ?").ok()?;
        statement.query_row([pack.as_bytes()], |row| row.get(0)).optional().ok()?
    }

    /// Remembers that packs were read and found whole at `at`, in seconds since 1970.
    pub fn set_verified(&self, packs: &[ObjectId], at: i64) {
        let mut inner = self.lock();
        let write = || -> rusqlite::Result<()> {
            let tx = inner.tables.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for pack in packs {
                tx.execute("INSERT OR REPLACE INTO verified (pack, at) VALUES (?, ?)", params![pack.as_bytes(), at])?;
            }
            tx.commit()
        };
        if let Err(error) = { write }() {
            tracing::debug!("results of this check are not remembered: {error}");
        }
    }
}

impl Inner {
    fn blob(&mut self, number: i64, keys: &Keys) -> Option<Arc<BlobRow>> {
        if let Some(blob) = self.kept.blobs.get(&number) {
            return Some(blob.clone());
        }
        let blob = Arc::new(self.tables.blob(number, keys)?);
        self.kept.add(number, &blob);
        Some(blob)
    }
}

impl Kept {
    fn add(&mut self, number: i64, blob: &Arc<BlobRow>) {
        let chunks = &blob.contents.chunks;
        if self.blobs.len() >= INDEX_BLOBS_KEPT || self.chunks.len() + chunks.len() > INDEX_CHUNKS_KEPT {
            self.blobs.clear();
            self.chunks.clear();
        }
        self.blobs.insert(number, blob.clone());
        for (position, chunk) in chunks.iter().enumerate() {
            self.chunks.entry(chunk.id).or_insert_with(|| (blob.clone(), position));
        }
    }
}

/// Moves a file that cannot be used out of the way, with its journal.
fn put_aside(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut from = path.as_os_str().to_owned();
        from.push(suffix);
        let mut to = path.as_os_str().to_owned();
        to.push(format!(".corrupt{suffix}"));
        let _ = std::fs::rename(from, to);
    }
}

fn cache_error(path: &Path, error: &TableError) -> RepoError {
    RepoError::Cache { path: path.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::index::{Index, PackIndex};
    use crate::format::pack::BlobEntry;
    use crate::id::RepoId;
    use crate::seal::keys::MasterKey;

    fn keys() -> Arc<Keys> {
        Arc::new(Keys::derive(&MasterKey { secret: [7; 32], epoch: 0 }, RepoId([1; 16])))
    }

    fn id(of: u32) -> ChunkId {
        ChunkId(*blake3::hash(&of.to_le_bytes()).as_bytes())
    }

    fn object_id(of: u32) -> ObjectId {
        ObjectId(*blake3::hash(&[&of.to_le_bytes()[..], b"object"].concat()).as_bytes())
    }

    /// An index object of packs of two blobs of up to 64 chunks.
    fn object(number: u32, chunks: std::ops::Range<u32>) -> ObjectRows {
        let chunks: Vec<_> = chunks.map(|chunk| ChunkEntry { id: id(chunk), bytes: 1000 }).collect();
        let blob = |(n, chunks): (usize, &[ChunkEntry])| BlobEntry {
            offset: 500 * n as u32,
            stored: 500,
            contents: BlobContents { kind: BlobKind::Data, depth: 0, chunks: chunks.to_vec(), bases: Vec::new() },
        };
        let pack = |(n, chunks): (usize, &[ChunkEntry])| PackIndex {
            pack: ObjectId(*blake3::hash(&[number.to_le_bytes(), (n as u32).to_le_bytes()].concat()).as_bytes()),
            bytes: 2000,
            directory: chunks.chunks(64).enumerate().map(blob).collect(),
        };
        let index = Index { supersedes: Vec::new(), packs: chunks.chunks(128).enumerate().map(pack).collect() };
        ObjectRows::new(object_id(number), &index, &keys())
    }

    fn is_found(index: &LocalIndex, chunk: u32) -> bool {
        let found = index.find(&id(chunk), |_| true);
        found.inspect(|found| assert_eq!(found.blob.contents.chunks[found.position].id, id(chunk))).is_some()
    }

    fn assert_found(index: &LocalIndex, chunks: std::ops::Range<u32>) {
        let missing: Vec<_> = chunks.filter(|chunk| !is_found(index, *chunk)).collect();
        assert!(missing.is_empty(), "{} chunks are not found, of them {:?}", missing.len(), missing.first());
    }

    fn numbers(index: &LocalIndex, objects: &[u32]) -> Vec<i64> {
        let known = index.lock().tables.objects().unwrap();
        objects.iter().map(|object| known[&object_id(*object)].0).collect()
    }

    fn drop_objects(index: &LocalIndex, objects: &[u32]) {
        let numbers = numbers(index, objects);
        let mut inner = index.lock();
        inner.tables.drop_objects(&numbers).unwrap();
        inner.kept = Kept::default();
    }

    fn count(index: &LocalIndex, what: &str) -> i64 {
        index.lock().tables.db.query_row(&format!("SELECT {what}"), [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn chunks_are_found_among_the_new_and_among_those_in_order_and_not_once_their_object_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        for index in [
            LocalIndex::open(folder.path(), keys()).unwrap(),
            // No folder can be where a file is.
            LocalIndex::open(&folder.path().join(keys().repo.hex()).join("index.sqlite"), keys()).unwrap(),
        ] {
            index.add_object(&object(1, 0..200)).unwrap();
            assert_eq!((count(&index, "count(*) FROM fresh"), count(&index, "count(*) FROM chunks")), (200, 0));
            assert_found(&index, 0..200);
            index.add_object(&object(2, 200..20_000)).unwrap();
            assert_eq!(count(&index, "count(*) FROM fresh"), 0, "so many are put in order");
            assert_eq!(count(&index, "chunks FROM state"), 20_000);
            index.add_object(&object(3, 20_000..21_000)).unwrap();
            assert_eq!(count(&index, "count(*) FROM fresh"), 1000, "a sixteenth more is not");
            assert_found(&index, 0..21_000);
            assert!((21_000..30_000).all(|chunk| !is_found(&index, chunk)));

            drop_objects(&index, &[1, 3]);
            index.sort_if_due().unwrap();
            assert_eq!(count(&index, "stale FROM state"), 1200, "not worth to be put in order for");
            assert_found(&index, 200..20_000);
            assert!((0..200).chain(20_000..21_000).all(|chunk| !is_found(&index, chunk)));
            index.add_object(&object(4, 0..300)).unwrap();
            assert_found(&index, 0..20_000);

            drop_objects(&index, &[2]);
            index.sort_if_due().unwrap();
            assert_eq!(count(&index, "chunks FROM state"), 300, "what is gone takes no place for ever");
            assert_eq!(count(&index, "count(*) FROM blobs"), 5);
            assert_found(&index, 0..300);
            assert!((300..21_000).all(|chunk| !is_found(&index, chunk)));
        }
    }

    #[test]
    fn of_a_chunk_in_several_packs_any_that_may_be_used_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path(), keys()).unwrap();
        // Two among those in order, one among the new, more than fit into a row.
        for (number, chunks) in [(1, 0..10_000), (2, 0..10_000), (3, 5..6)] {
            index.add_object(&object(number, chunks)).unwrap();
        }
        for number in 10..360 {
            index.add_object(&object(number, 7..8)).unwrap();
        }
        index.lock().tables.sort_chunks(Some(folder.path())).unwrap();
        for _ in 0..2 {
            for (chunk, places) in [(4, 2), (5, 3), (7, 352)] {
                let mut packs = HashSet::new();
                while let Some(found) = index.find(&id(chunk), |pack| !packs.contains(pack)) {
                    packs.insert(found.blob.pack);
                }
                assert_eq!(packs.len(), places, "chunk {chunk}");
            }
            index.lock().tables.sort_chunks(Some(folder.path())).unwrap();
        }
        drop_objects(&index, &[2, 3]);
        assert_found(&index, 0..10_000);
        assert_eq!(index.find(&id(5), |_| true).unwrap().blob, index.find(&id(4), |_| true).unwrap().blob);
    }

    #[test]
    fn a_row_that_fails_its_check_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path(), keys()).unwrap();
        index.add_object(&object(1, 0..1000)).unwrap();
        index.add_object(&object(2, 64..128)).unwrap();
        let listed = |index: &LocalIndex| {
            let mut packs = Vec::new();
            let each = &mut |pack, bytes, blobs| {
                packs.push((pack, bytes, blobs));
                Ok(())
            };
            index.each_pack(each).map(|()| packs)
        };
        let whole = listed(&index).unwrap();
        let damage = [
            "offset = offset + 1",
            "stored = stored + 1",
            "pack = (SELECT max(number) FROM packs)",
            "contents = (SELECT contents FROM blobs WHERE number = 3)",
            "contents = x'00'",
            "contents = 'text'",
            "check_value = x'0000000000000000'",
        ];
        for damage in damage {
            index
                .lock()
                .tables
                .db
                .execute_batch(&format!("BEGIN; UPDATE blobs SET {damage} WHERE number < 3;"))
                .unwrap();
            let found: Vec<_> = (0..1000).filter(|chunk| is_found(&index, *chunk)).collect();
            assert_eq!(
                found,
                (64..1000).collect::<Vec<_>>(),
                "{damage}: those of the second blob are in another pack too"
            );
            // A pack's rows are found by their numbers, so that of another pack's number it knows nothing.
            let listed = listed(&index);
            assert!(listed.is_err() || listed.is_ok_and(|listed| listed == whole), "{damage}");
            index.lock().tables.db.execute_batch("ROLLBACK").unwrap();
            index.lock().kept = Kept::default();
        }
        index.lock().tables.db.execute("DELETE FROM blobs WHERE number = 2", []).unwrap();
        assert!(matches!(listed(&index), Err(RepoError::Cache { .. })), "a pack is listed whole or not at all");
    }

    #[test]
    fn a_damaged_count_costs_time_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path(), keys()).unwrap();
        for column in ["next", "covered", "chunks", "fresh", "stale"] {
            for value in [i64::MIN, -5, 0, 1, 3, 300, 1 << 39, i64::MAX] {
                index.lock().tables.empty().unwrap();
                index.add_object(&object(1, 0..1000)).unwrap();
                index.add_object(&object(2, 1000..1050)).unwrap();
                index.lock().tables.db.execute(&format!("UPDATE state SET {column} = {value}"), []).unwrap();
                if index.add_object(&object(3, 1050..1100)).is_err() {
                    assert!(index.objects().unwrap().is_empty(), "{column} = {value}: it was made anew");
                    [(1, 0..1000), (2, 1000..1050), (3, 1050..1100)]
                        .into_iter()
                        .for_each(|(number, chunks)| index.add_object(&object(number, chunks)).unwrap());
                }
                index.lock().kept = Kept::default();
                assert!(!index.lock().in_memory, "{column} = {value}");
                assert_found(&index, 0..1100);
                index.lock().tables.drop_objects(&[1]).unwrap();
            }
        }
    }

    #[test]
    fn a_load_that_was_killed_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let killed = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path(), keys()).unwrap();
        index.add_object(&object(1, 0..1000)).unwrap();
        index.lock().tables.add(&object(2, 1000..5000)).unwrap();
        index.lock().tables.add(&object(3, 5000..5100)).unwrap();
        assert_found(&index, 0..1000);
        // What a kill leaves: the file and its log.
        std::fs::create_dir(killed.path().join(keys().repo.hex())).unwrap();
        for suffix in ["", "-wal"] {
            let name = format!("{}/index.sqlite{suffix}", keys().repo.hex());
            std::fs::copy(folder.path().join(&name), killed.path().join(&name)).unwrap();
        }
        let again = LocalIndex::open(killed.path(), keys()).unwrap();
        assert_eq!(again.objects().unwrap().len(), 3);
        assert_found(&again, 0..1000);
        again.add_object(&object(2, 1000..5000)).unwrap();
        assert_found(&again, 0..5100);
        assert_eq!(again.packs().unwrap().len(), index.packs().unwrap().len());
    }

    #[test]
    fn two_that_share_the_file_see_what_the_other_has_put_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| LocalIndex::open(folder.path(), keys()).unwrap());
        one.add_object(&object(1, 0..100)).unwrap();
        assert_found(&other, 0..100);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| (0..300).for_each(|_| assert_found(&other, 0..100)));
            for number in 2..22 {
                one.add_object(&object(number, number * 1000..number * 1000 + 1000)).unwrap();
            }
            looking.join().unwrap();
        });
        assert_found(&other, 2000..22_000);
        drop_objects(&other, &(2..22).collect::<Vec<_>>());
        other.sort_if_due().unwrap();
        one.lock().kept = Kept::default();
        assert_found(&one, 0..100);
        assert!(!is_found(&one, 2000));
    }
}
