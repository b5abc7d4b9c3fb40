//! The local index: which chunk lies where, in SQLite. A hint: it can be deleted, damaged or out of date without a wrong
//! result, because every row carries a check value under the repository's key, rows count only while the index object that
//! they came from is in the store, and what cannot be used is made anew from the index objects.
//!
//! Processes that share the file change it one after the other, each by a listing of its own that it took meanwhile: so a
//! row never comes back after a process that reads the file has seen its index object gone, and what a row names was in
//! the store after that process put its lease and read the marks.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::backend::BackendError;
use crate::format::index::{Index, PackIndex};
use crate::format::pack::BlobContents;
use crate::id::{ChunkId, ObjectId};
use crate::limits::INDEX_LOAD_CHUNKS;
use crate::progress::Progress;
use crate::repo::{RepoError, Repository, object_name, private_folder};
use crate::seal::keys::{Keys, Kind};

/// Raised when the tables change; another number is a reason to start anew.
const SCHEMA: i64 = 2;
/// Rows of blobs kept in memory, for runs of lookups in the same blob.
const ROWS_KEPT: usize = 256;

/// A blob as the index knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct BlobRow {
    pub pack: ObjectId,
    pub offset: u32,
    pub stored: u32,
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
    db: Connection,
    rows: HashMap<i64, Arc<BlobRow>>,
    in_memory: bool,
    made_anew: bool,
}

impl LocalIndex {
    /// Opens the file of this repository under `folder`, or makes it. A file that cannot be used is put aside and made
    /// anew; where no file can be, the index is kept in memory for this run.
    pub fn open(folder: &Path, keys: Arc<Keys>) -> Result<Self, RepoError> {
        let folder = folder.join(keys.repo.hex());
        let path = folder.join("index.sqlite");
        let opened = private_folder(&folder).map_err(|error| error.to_string()).and_then(|()| {
            open_file(&path)
                .or_else(|error| {
                    if !is_corrupt(&error) {
                        return Err(error);
                    }
                    tracing::warn!("the local index {} cannot be used ({error}): making it anew", path.display());
                    put_aside(&path);
                    open_file(&path)
                })
                .map_err(|error| error.to_string())
        });
        let (db, in_memory) = match opened {
            Ok(db) => (db, false),
            Err(error) => {
                tracing::warn!("no local index in {} ({error}): using memory for this run", path.display());
                (in_memory().map_err(|error| cache_error(&path, &error))?, true)
            }
        };
        Ok(Self { keys, path, inner: Mutex::new(Inner { db, rows: HashMap::new(), in_memory, made_anew: false }) })
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
                inner.rows.clear();
                inner.db = in_memory().map_err(|error| cache_error(&self.path, &error))?;
                inner.in_memory = true;
                Ok(None)
            }
        }
    }

    /// Starts anew, in the file if possible, else in memory.
    fn reset(&self, reason: &rusqlite::Error) -> Result<(), RepoError> {
        let mut inner = self.lock();
        tracing::warn!("the local index {} cannot be used ({reason}): making it anew", self.path.display());
        inner.rows.clear();
        if !inner.in_memory && is_corrupt(reason) {
            put_aside(&self.path);
            if let Ok(db) = open_file(&self.path) {
                inner.db = db;
                return Ok(());
            }
        }
        inner.db = in_memory().map_err(|error| cache_error(&self.path, &error))?;
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
        let found = inner.blobs_of(id);
        let numbers = match found {
            Ok(numbers) => numbers,
            Err(error) => {
                tracing::debug!("lookup of {id} in the local index: {error}");
                return None;
            }
        };
        for (number, position) in numbers {
            let Some(blob) = inner.blob(number, &self.keys) else { continue };
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            if usable(&blob) && blob.contents.chunks.get(position).is_some_and(|chunk| chunk.id == *id) {
                return Some(Location { blob, position });
            }
        }
        None
    }

    /// Calls `each` with every pack that is listed, its size, and its blobs in order of offset.
    pub fn each_pack(
        &self,
        each: &mut dyn FnMut(ObjectId, u32, Vec<BlobRow>) -> Result<(), RepoError>,
    ) -> Result<(), RepoError> {
        let packs: Vec<(i64, ObjectId, u32)> = {
            let inner = self.lock();
            let read = || -> rusqlite::Result<Vec<_>> {
                let mut statement = inner.db.prepare_cached("SELECT number, id, bytes FROM packs ORDER BY number")?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, ObjectId(row.get(1)?), row.get(2)?)))?;
                rows.collect()
            };
            read().map_err(|error| cache_error(&self.path, &error))?
        };
        let mut seen = HashSet::new();
        for (number, pack, bytes) in packs {
            if !seen.insert(pack) {
                continue;
            }
            let rows = {
                let inner = self.lock();
                let read = || -> rusqlite::Result<Vec<_>> {
                    let sql = "SELECT number FROM blobs WHERE pack = ? ORDER BY offset";
                    let mut statement = inner.db.prepare_cached(sql)?;
                    statement.query_map([number], |row| row.get::<_, i64>(0))?.collect()
                };
                let numbers = read().map_err(|error| cache_error(&self.path, &error))?;
                let mut rows = Vec::with_capacity(numbers.len());
                for blob in numbers {
                    let row = inner.read_blob(blob, &self.keys);
                    rows.push(row.ok_or_else(|| RepoError::Cache {
                        path: self.path.clone(),
                        detail: "a row fails its check: delete the file and try again".to_owned(),
                    })?);
                }
                rows
            };
            each(pack, bytes, rows)?;
        }
        Ok(())
    }

    /// Number of packs listed.
    pub fn packs(&self) -> Result<HashMap<ObjectId, u32>, RepoError> {
        let inner = self.lock();
        let read = || -> rusqlite::Result<_> {
            let mut statement = inner.db.prepare_cached("SELECT id, bytes FROM packs")?;
            statement.query_map([], |row| Ok((ObjectId(row.get(0)?), row.get(1)?)))?.collect()
        };
        read().map_err(|error| cache_error(&self.path, &error))
    }

    /// Ids of the index objects that the rows came from.
    pub fn objects(&self) -> Result<HashSet<ObjectId>, RepoError> {
        let inner = self.lock();
        inner.objects().map(|objects| objects.into_keys().collect()).map_err(|error| cache_error(&self.path, &error))
    }

    /// Adds what an index object says. The caller has the claim, and has seen the object in the store since.
    fn add_object(&self, id: &ObjectId, index: &Index) -> Result<(), RepoError> {
        let added = self.lock().add_objects(&[(*id, index.clone())], &self.keys);
        match added {
            Err(error) if !self.lock().in_memory => {
                // A full disk costs the file, not the backup.
                self.reset(&error)?;
                Err(RepoError::Cache { path: self.path.clone(), detail: error.to_string() })
            }
            other => other.map_err(|error| cache_error(&self.path, &error)),
        }
    }

    /// The local copy of a manifest's stored bytes. The caller compares them with the name.
    pub fn manifest(&self, id: &ObjectId) -> Option<Vec<u8>> {
        let inner = self.lock();
        let mut statement = inner.db.prepare_cached("SELECT sealed FROM manifests WHERE id = ?").ok()?;
        statement.query_row([id.as_bytes()], |row| row.get(0)).optional().ok()?
    }

    /// Keeps a manifest's stored bytes.
    pub fn add_manifest(&self, id: &ObjectId, sealed: &[u8]) {
        let sql = "INSERT OR REPLACE INTO manifests (id, sealed) VALUES (?, ?)";
        if let Err(error) = self.lock().db.execute(sql, params![id.as_bytes(), sealed]) {
            tracing::debug!("manifest {id} is not kept in the local index: {error}");
        }
    }

    /// Drops the local copies of manifests that are not in `listed`.
    pub fn keep_manifests(&self, listed: &HashSet<ObjectId>) {
        let inner = self.lock();
        let drop = || -> rusqlite::Result<()> {
            let mut statement = inner.db.prepare_cached("SELECT id FROM manifests")?;
            let known: Vec<[u8; 32]> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            for id in known.into_iter().filter(|id| !listed.contains(&ObjectId(*id))) {
                inner.db.execute("DELETE FROM manifests WHERE id = ?", [id])?;
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
        let mut statement = inner.db.prepare_cached("SELECT at FROM verified WHERE pack = ?").ok()?;
        statement.query_row([pack.as_bytes()], |row| row.get(0)).optional().ok()?
    }

    /// Remembers that packs were read and found whole at `at`, in seconds since 1970.
    pub fn set_verified(&self, packs: &[ObjectId], at: i64) {
        let mut inner = self.lock();
        let write = || -> rusqlite::Result<()> {
            let tx = inner.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
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
    fn blobs_of(&self, id: &ChunkId) -> rusqlite::Result<Vec<(i64, i64)>> {
        let mut statement = self.db.prepare_cached("SELECT blob, position FROM chunks WHERE id = ?")?;
        statement.query_map([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    fn blob(&mut self, number: i64, keys: &Keys) -> Option<Arc<BlobRow>> {
        if let Some(row) = self.rows.get(&number) {
            return Some(row.clone());
        }
        let row = Arc::new(self.read_blob(number, keys)?);
        if self.rows.len() >= ROWS_KEPT {
            self.rows.clear();
        }
        self.rows.insert(number, row.clone());
        Some(row)
    }

    fn read_blob(&self, number: i64, keys: &Keys) -> Option<BlobRow> {
        let sql = "SELECT packs.id, blobs.offset, blobs.stored, blobs.contents, blobs.check_value
                   FROM blobs JOIN packs ON packs.number = blobs.pack WHERE blobs.number = ?";
        let read = || -> rusqlite::Result<(ObjectId, u32, u32, Vec<u8>, [u8; 8])> {
            let mut statement = self.db.prepare_cached(sql)?;
            statement.query_row([number], |row| {
                Ok((ObjectId(row.get(0)?), row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })
        };
        let (pack, offset, stored, contents, check) =
            read().inspect_err(|error| tracing::debug!("row {number} of the local index: {error}")).ok()?;
        if row_check(keys, &pack, offset, stored, &contents) != check {
            tracing::warn!("a row of the local index fails its check and is not used");
            return None;
        }
        let contents = BlobContents::decode_exact(&contents).ok()?;
        Some(BlobRow { pack, offset, stored, contents })
    }

    fn objects(&self) -> rusqlite::Result<HashMap<ObjectId, (i64, Vec<ObjectId>)>> {
        let mut statement = self.db.prepare_cached("SELECT number, id, supersedes FROM objects")?;
        let rows = statement.query_map([], |row| {
            let supersedes: Vec<u8> = row.get(2)?;
            let ids = supersedes.as_chunks::<32>().0.iter().map(|id| ObjectId(*id)).collect();
            Ok((ObjectId(row.get(1)?), (row.get(0)?, ids)))
        })?;
        rows.collect()
    }

    /// Adds what index objects say, all of it or nothing.
    fn add_objects(&mut self, objects: &[(ObjectId, Index)], keys: &Keys) -> rusqlite::Result<()> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut chunks = Vec::with_capacity(objects.iter().map(|(_, index)| chunks_in(index)).sum());
        for (id, index) in objects {
            let supersedes: Vec<u8> = index.supersedes.iter().flat_map(|id| *id.as_bytes()).collect();
            let sql = "INSERT OR IGNORE INTO objects (id, supersedes) VALUES (?, ?)";
            if tx.execute(sql, params![id.as_bytes(), supersedes])? == 1 {
                let object = tx.last_insert_rowid();
                for pack in &index.packs {
                    add_pack(&tx, object, pack, keys, &mut chunks)?;
                }
            }
        }
        // In the order of the table: as they come, nearly every row would change another page of it, and five million
        // chunks would write 40 GB.
        chunks.sort_unstable();
        {
            let sql = "INSERT OR IGNORE INTO chunks (id, blob, position) VALUES (?, ?, ?)";
            let mut insert = tx.prepare_cached(sql)?;
            for (id, blob, position) in &chunks {
                insert.execute(params![id, blob, position])?;
            }
        }
        tx.commit()
    }

    /// Removes an index object and all that came from it.
    fn drop_object(&mut self, number: i64) -> rusqlite::Result<()> {
        self.rows.clear();
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let sql = "SELECT blobs.number, blobs.contents FROM blobs JOIN packs ON packs.number = blobs.pack
                       WHERE packs.object = ?";
            let mut blobs = tx.prepare(sql)?;
            let mut delete = tx.prepare("DELETE FROM chunks WHERE id = ? AND blob = ?")?;
            let mut rows = blobs.query([number])?;
            while let Some(row) = rows.next()? {
                let (blob, contents): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let Ok(contents) = BlobContents::decode_exact(&contents) else {
                    return Err(rusqlite::Error::InvalidQuery);
                };
                for chunk in &contents.chunks {
                    delete.execute(params![chunk.id.as_bytes(), blob])?;
                }
            }
        }
        tx.execute("DELETE FROM blobs WHERE pack IN (SELECT number FROM packs WHERE object = ?)", [number])?;
        tx.execute("DELETE FROM packs WHERE object = ?", [number])?;
        tx.execute("DELETE FROM objects WHERE number = ?", [number])?;
        tx.commit()
    }
}

/// A row of the table of chunks: id, blob, position.
type ChunkRow = ([u8; 32], i64, u32);

fn chunks_in(index: &Index) -> usize {
    index.packs.iter().flat_map(|pack| &pack.directory).map(|entry| entry.contents.chunks.len()).sum()
}

/// Adds a pack and its blobs; the rows of their chunks go to `chunks`.
fn add_pack(
    tx: &rusqlite::Transaction<'_>,
    object: i64,
    pack: &PackIndex,
    keys: &Keys,
    chunks: &mut Vec<ChunkRow>,
) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO packs (id, object, bytes) VALUES (?, ?, ?)")?.execute(params![
        pack.pack.as_bytes(),
        object,
        pack.bytes
    ])?;
    let number = tx.last_insert_rowid();
    let sql = "INSERT INTO blobs (pack, offset, stored, contents, check_value) VALUES (?, ?, ?, ?, ?)";
    let mut insert_blob = tx.prepare_cached(sql)?;
    for entry in &pack.directory {
        let mut contents = Vec::new();
        entry.contents.encode(&mut contents);
        let check = row_check(keys, &pack.pack, entry.offset, entry.stored, &contents);
        insert_blob.execute(params![number, entry.offset, entry.stored, contents, check])?;
        let blob = tx.last_insert_rowid();
        chunks
            .extend((0..).zip(&entry.contents.chunks).map(|(position, chunk)| (*chunk.id.as_bytes(), blob, position)));
    }
    Ok(())
}

fn row_check(keys: &Keys, pack: &ObjectId, offset: u32, stored: u32, contents: &[u8]) -> [u8; 8] {
    let mut row = Vec::with_capacity(40 + contents.len());
    row.extend_from_slice(pack.as_bytes());
    row.extend_from_slice(&offset.to_le_bytes());
    row.extend_from_slice(&stored.to_le_bytes());
    row.extend_from_slice(contents);
    keys.cache_row(&row)
}

fn open_file(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    db.busy_timeout(Duration::from_secs(60))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // Durability is the store's: after power loss the index may be short of what was last added, never wrong.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    set_up(&db)?;
    Ok(db)
}

fn in_memory() -> rusqlite::Result<Connection> {
    let db = Connection::open_in_memory()?;
    set_up(&db)?;
    Ok(db)
}

fn set_up(db: &Connection) -> rusqlite::Result<()> {
    db.set_prepared_statement_cache_capacity(32);
    db.pragma_update(None, "cache_size", -8192)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found != SCHEMA {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             DROP TABLE IF EXISTS objects; DROP TABLE IF EXISTS packs; DROP TABLE IF EXISTS blobs;
             DROP TABLE IF EXISTS chunks; DROP TABLE IF EXISTS manifests; DROP TABLE IF EXISTS verified;
             CREATE TABLE objects (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, supersedes BLOB NOT NULL);
             CREATE TABLE packs (number INTEGER PRIMARY KEY, id BLOB NOT NULL, object INTEGER NOT NULL, bytes INTEGER NOT NULL);
             CREATE INDEX packs_object ON packs (object);
             CREATE TABLE blobs (number INTEGER PRIMARY KEY AUTOINCREMENT, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
                                 stored INTEGER NOT NULL, contents BLOB NOT NULL, check_value BLOB NOT NULL);
             CREATE INDEX blobs_pack ON blobs (pack);
             CREATE TABLE chunks (id BLOB NOT NULL, blob INTEGER NOT NULL, position INTEGER NOT NULL,
                                  PRIMARY KEY (id, blob)) WITHOUT ROWID;
             CREATE TABLE manifests (id BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE verified (pack BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
             PRAGMA user_version = {SCHEMA};
             COMMIT;"
        ))?;
    }
    Ok(())
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
        || matches!(error, rusqlite::Error::InvalidQuery | rusqlite::Error::SqlInputError { .. })
        || matches!(error, rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..))
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

fn cache_error(path: &Path, error: &rusqlite::Error) -> RepoError {
    RepoError::Cache { path: path.to_owned(), detail: error.to_string() }
}

impl Repository {
    /// Makes the local index anew from the index objects, once in the life of this value: for when it does not know what
    /// it should. Returns whether it did.
    pub fn reload_index(&self) -> Result<bool, RepoError> {
        {
            let _claim = self.index.claim()?;
            let mut inner = self.index.lock();
            if inner.made_anew {
                return Ok(false);
            }
            inner.made_anew = true;
            inner.rows.clear();
            tracing::warn!("the local index {} is short of entries: making it anew", self.index.path.display());
            let emptied = inner.db.execute_batch("DROP TABLE IF EXISTS objects; PRAGMA user_version = 0;");
            if let Err(error) = emptied.and_then(|()| set_up(&inner.db)) {
                drop(inner);
                self.index.reset(&error)?;
            }
        }
        self.load_index(&Progress::default())?;
        Ok(true)
    }

    /// Brings the local index up to date with the index objects in the store.
    ///
    /// Returns those that cannot be read and that no other has taken the place of: what they alone list is not found.
    pub fn load_index(&self, progress: &Progress) -> Result<Vec<(ObjectId, RepoError)>, RepoError> {
        let _claim = self.index.claim()?;
        match self.try_load_index(progress) {
            Err(LoadError::Local(error)) => {
                self.index.reset(&error)?;
                self.try_load_index(progress).map_err(|error| match error {
                    LoadError::Local(error) => cache_error(&self.index.path, &error),
                    LoadError::Repo(error) => error,
                })
            }
            Err(LoadError::Repo(error)) => Err(error),
            Ok(unreadable) => Ok(unreadable),
        }
    }

    fn try_load_index(&self, progress: &Progress) -> Result<Vec<(ObjectId, RepoError)>, LoadError> {
        // Another process may have given the numbers of blobs to others.
        self.index.lock().rows.clear();
        let listed: HashSet<ObjectId> = self.list(Kind::Index)?.into_iter().map(|(id, _)| id).collect();
        let known = self.index.lock().objects()?;
        let mut supersedes: HashMap<ObjectId, Vec<ObjectId>> = HashMap::new();
        for (id, (number, ids)) in &known {
            if listed.contains(id) {
                supersedes.insert(*id, ids.clone());
            } else {
                self.index.lock().drop_object(*number)?;
            }
        }
        let missing: Vec<_> = listed.iter().filter(|id| !known.contains_key(id)).collect();
        progress.add_items_total(missing.len() as u64);
        let mut unreadable = Vec::new();
        let (mut gathered, mut gathered_chunks) = (Vec::new(), 0);
        for id in missing {
            let index = match self.load_index_object(id) {
                // Replaced since the listing: what replaced it is found by the next load.
                Err(RepoError::Backend(BackendError::NotFound { .. })) => continue,
                Err(
                    error @ (RepoError::Damaged { .. }
                    | RepoError::Format { .. }
                    | RepoError::Backend(BackendError::Damaged { .. })),
                ) => {
                    unreadable.push((*id, error));
                    continue;
                }
                other => other?,
            };
            supersedes.insert(*id, index.supersedes.clone());
            gathered_chunks += chunks_in(&index);
            gathered.push((*id, index));
            if gathered_chunks >= INDEX_LOAD_CHUNKS {
                self.index.lock().add_objects(&gathered, &self.keys)?;
                gathered.clear();
                gathered_chunks = 0;
            }
            progress.add_items(1);
        }
        self.index.lock().add_objects(&gathered, &self.keys)?;
        let superseded: HashSet<_> = supersedes.values().flatten().collect();
        // A damaged one that was replaced (`vault repair index`) is nobody's loss.
        unreadable.retain(|(id, _)| !superseded.contains(id));
        if superseded.iter().any(|id| supersedes.contains_key(id)) {
            let known = self.index.lock().objects()?;
            for (_, (number, _)) in known.iter().filter(|(id, _)| superseded.contains(id)) {
                self.index.lock().drop_object(*number)?;
            }
        }
        Ok(unreadable)
    }

    /// Adds to the local index what an index object says that is known to be put or listed. Returns false if it is gone
    /// again.
    pub fn add_to_index(&self, id: &ObjectId, index: &Index) -> Result<bool, RepoError> {
        let _claim = self.index.claim()?;
        // Who put it may have been stopped for hours since, and prune has not waited.
        match self.backend.get(&object_name(Kind::Index, id), Some(0..1)) {
            Err(BackendError::NotFound { .. }) => return Ok(false),
            other => other?,
        };
        self.index.add_object(id, index).map(|()| true)
    }

    /// Loads one index object from the store.
    pub fn load_index_object(&self, id: &ObjectId) -> Result<Index, RepoError> {
        let raw = self.load(Kind::Index, id)?;
        Index::decode(&raw).map_err(|source| RepoError::Format { name: object_name(Kind::Index, id), source })
    }
}

enum LoadError {
    Local(rusqlite::Error),
    Repo(RepoError),
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        LoadError::Local(error)
    }
}

impl From<RepoError> for LoadError {
    fn from(error: RepoError) -> Self {
        LoadError::Repo(error)
    }
}
