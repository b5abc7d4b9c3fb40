//! The tables of the local index and what is asked of them.
//!
//! Chunks are found by the first 7 bytes of their ids. Most stand in the table `chunks`: all of them in order, 12 bytes
//! each, a page of them a row. It is written in one pass from what the blobs say ([`Tables::sort_chunks`]), never
//! changed. What came since stands in `fresh`, a row each, and what went since is still there: a place whose blob is gone
//! is none. So what a new or a removed index object costs depends on its own size, and now and then all is sorted anew.
//! Whoever finds a place compares the whole id with what the blob's row says, and that row with its check value.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use super::BlobRow;
use crate::format::index::{Index, PackIndex};
use crate::format::manifest::CHUNK_ENTRY_BYTES;
use crate::format::pack::{BlobContents, BlobEntry};
use crate::id::{ChunkId, ObjectId};
use crate::limits::INDEX_SORTED_TOGETHER;
use crate::repo::sorter::{Record, Sorter};
use crate::seal::keys::Keys;

/// Raised when the tables change; another number is a reason to start anew.
const SCHEMA: i64 = 3;
/// Bytes of a place in the table of chunks.
const PLACE_BYTES: usize = 12;
/// Places in a row of `chunks`: with these a row fills a page of 4096 bytes.
const PLACES_A_ROW: usize = 338;
/// `fresh` may have this many rows, or a sixteenth of those in order.
const FRESH_MIN: i64 = 256;
/// The log is taken over into the file when it has this many pages. Loading millions of chunks waits for the disk each time.
const CHECKPOINT_PAGES: i64 = 16 << 10;

/// The first bytes of a chunk's id, and the number of a blob that holds it; ordered by the first, then the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u128);

impl Place {
    const BLOB_BITS: u32 = 40;

    pub(super) fn new(prefix: i64, blob: i64) -> Self {
        Self((prefix as u128) << Self::BLOB_BITS | blob as u128 & ((1 << Self::BLOB_BITS) - 1))
    }

    fn prefix(self) -> i64 {
        (self.0 >> Self::BLOB_BITS) as i64
    }

    fn blob(self) -> i64 {
        self.0 as i64 & ((1 << Self::BLOB_BITS) - 1)
    }
}

impl Record for Place {
    const BYTES: usize = PLACE_BYTES;

    fn first_byte(&self) -> u8 {
        self.0.to_be_bytes()[16 - PLACE_BYTES]
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_be_bytes()[16 - PLACE_BYTES..]);
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut wide = [0; 16];
        wide[16 - PLACE_BYTES..].copy_from_slice(bytes);
        Self(u128::from_be_bytes(wide))
    }
}

fn prefix_of(id: &ChunkId) -> i64 {
    (u64::from_be_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes")) >> 8) as i64
}

/// Why the tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("a temporary file beside it: {0}")]
    Sorting(#[from] io::Error),
    #[error("{0}")]
    Contradiction(&'static str),
}

impl TableError {
    /// Whether the file itself is to blame, so that another may do.
    pub(super) fn is_corrupt(&self) -> bool {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, QueryReturnedNoRows,
        };
        use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sqlite(error) => {
                let code = error.sqlite_error_code();
                matches!(code, Some(ConstraintViolation | DatabaseCorrupt | NotADatabase))
                    || matches!(error, rusqlite::Error::SqlInputError { .. } | QueryReturnedNoRows)
                    || matches!(
                        error,
                        InvalidColumnType(..) | FromSqlConversionFailure(..) | IntegralValueOutOfRange(..)
                    )
            }
            Self::Sorting(_) => false,
            Self::Contradiction(_) => true,
        }
    }
}

/// What an index object says, as rows.
pub(super) struct ObjectRows {
    pub(super) id: ObjectId,
    pub(super) supersedes: Vec<ObjectId>,
    packs: Vec<PackRows>,
    chunks: i64,
}

struct PackRows {
    id: ObjectId,
    bytes: u32,
    blobs: Vec<BlobRows>,
}

struct BlobRows {
    offset: u32,
    stored: u32,
    contents: Vec<u8>,
    check: [u8; 8],
}

impl ObjectRows {
    pub(super) fn new(id: ObjectId, index: &Index, keys: &Keys) -> Self {
        let pack_rows = |pack: &PackIndex| {
            let blob_rows = |entry: &BlobEntry| {
                let entries = entry.contents.chunks.len() + entry.contents.bases.len();
                let mut contents = Vec::with_capacity(8 + entries * CHUNK_ENTRY_BYTES);
                entry.contents.encode(&mut contents);
                let check = row_check(keys, &pack.pack, entry.offset, entry.stored, &contents);
                BlobRows { offset: entry.offset, stored: entry.stored, contents, check }
            };
            PackRows { id: pack.pack, bytes: pack.bytes, blobs: pack.directory.iter().map(blob_rows).collect() }
        };
        let blobs = index.packs.iter().flat_map(|pack| &pack.directory);
        Self {
            id,
            supersedes: index.supersedes.clone(),
            packs: index.packs.iter().map(pack_rows).collect(),
            chunks: blobs.map(|blob| blob.contents.chunks.len() as i64).sum(),
        }
    }
}

/// The one row of the table `state`.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Number of the next blob. None is given twice.
    next: i64,
    /// Blobs with a lower number have their chunks in `chunks` or `fresh`. It is `next` unless a long load goes on or was
    /// broken off.
    covered: i64,
    /// Places in `chunks`, rows of `fresh`, and how many of both may be of blobs that are gone.
    chunks: i64,
    fresh: i64,
    stale: i64,
}

impl State {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let mut statement = db.prepare_cached("SELECT next, covered, chunks, fresh, stale FROM state")?;
        statement.query_row([], |row| {
            Ok(Self {
                next: row.get(0)?,
                covered: row.get(1)?,
                chunks: row.get(2)?,
                fresh: row.get(3)?,
                stale: row.get(4)?,
            })
        })
    }

    fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE state SET next = ?, covered = ?, chunks = ?, fresh = ?, stale = ?";
        let mut statement = db.prepare_cached(sql)?;
        statement.execute(params![self.next, self.covered, self.chunks, self.fresh, self.stale]).map(drop)
    }

    fn takes_fresh(&self, chunks: i64) -> bool {
        self.covered == self.next && self.fresh.saturating_add(chunks) <= FRESH_MIN.max(self.chunks / 16)
    }

    fn is_due(&self) -> bool {
        let places = self.chunks.saturating_add(self.fresh);
        self.covered != self.next || self.stale > FRESH_MIN.max(places / 2)
    }
}

/// A connection to the file, or to tables in memory.
pub(super) struct Tables {
    pub(super) db: Connection,
}

impl Tables {
    pub(super) fn in_file(path: &Path) -> Result<Self, TableError> {
        let db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        db.busy_timeout(Duration::from_secs(60))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // Durability is the store's: after power loss the index may be short of what was last added, never wrong.
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        let tables = Self { db };
        tables.set_up()?;
        Ok(tables)
    }

    pub(super) fn in_memory() -> Result<Self, TableError> {
        let tables = Self { db: Connection::open_in_memory()? };
        tables.set_up()?;
        Ok(tables)
    }

    fn set_up(&self) -> Result<(), TableError> {
        let db = &self.db;
        db.set_prepared_statement_cache_capacity(32);
        db.pragma_update(None, "cache_size", -8192)?;
        db.pragma_update(None, "temp_store", "MEMORY")?;
        let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found != SCHEMA {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 DROP TABLE IF EXISTS objects; DROP TABLE IF EXISTS packs; DROP TABLE IF EXISTS blobs;
                 DROP TABLE IF EXISTS chunks; DROP TABLE IF EXISTS fresh; DROP TABLE IF EXISTS state;
                 DROP TABLE IF EXISTS manifests; DROP TABLE IF EXISTS verified;
                 CREATE TABLE objects (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, supersedes BLOB NOT NULL,
                                       first INTEGER NOT NULL, ends INTEGER NOT NULL, chunks INTEGER NOT NULL);
                 CREATE TABLE packs (number INTEGER PRIMARY KEY, id BLOB NOT NULL, object INTEGER NOT NULL,
                                     bytes INTEGER NOT NULL, first INTEGER NOT NULL, ends INTEGER NOT NULL);
                 CREATE INDEX packs_object ON packs (object);
                 CREATE TABLE blobs (number INTEGER PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
                                     stored INTEGER NOT NULL, contents BLOB NOT NULL, check_value BLOB NOT NULL);
                 CREATE TABLE chunks (first INTEGER PRIMARY KEY, places BLOB NOT NULL);
                 CREATE TABLE fresh (prefix INTEGER NOT NULL, blob INTEGER NOT NULL,
                                     PRIMARY KEY (prefix, blob)) WITHOUT ROWID;
                 CREATE TABLE state (next INTEGER NOT NULL, covered INTEGER NOT NULL, chunks INTEGER NOT NULL,
                                     fresh INTEGER NOT NULL, stale INTEGER NOT NULL);
                 INSERT INTO state VALUES (1, 1, 0, 0, 0);
                 CREATE TABLE manifests (id BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
                 CREATE TABLE verified (pack BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
                 PRAGMA user_version = {SCHEMA};
                 COMMIT;"
            ))?;
        }
        Ok(())
    }

    /// Forgets everything.
    pub(super) fn empty(&self) -> Result<(), TableError> {
        self.db.execute_batch("DROP TABLE IF EXISTS objects; PRAGMA user_version = 0;")?;
        self.set_up()
    }

    /// Numbers of the blobs that may hold a chunk, the newest first.
    pub(super) fn blobs_of(&self, id: &ChunkId) -> Result<Vec<i64>, TableError> {
        let prefix = prefix_of(id);
        let mut fresh = self.db.prepare_cached("SELECT blob FROM fresh WHERE prefix = ?")?;
        let mut numbers: Vec<i64> = fresh.query_map([prefix], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let sql = "SELECT places FROM chunks WHERE first <= ? ORDER BY first DESC LIMIT 1";
        let mut chunks = self.db.prepare_cached(sql)?;
        let mut rows = chunks.query([prefix])?;
        if let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            let places = bytes.as_chunks::<PLACE_BYTES>().0;
            let from = places.partition_point(|place| Place::decode(place).prefix() < prefix);
            let found =
                places[from..].iter().map(|place| Place::decode(place)).take_while(|place| place.prefix() == prefix);
            numbers.extend(found.map(Place::blob));
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        Ok(numbers)
    }

    /// The row of a blob, or `None` if there is none that passes its check.
    pub(super) fn blob(&self, number: i64, keys: &Keys) -> Option<BlobRow> {
        let sql = "SELECT packs.id, blobs.offset, blobs.stored, blobs.contents, blobs.check_value, packs.bytes
                   FROM blobs JOIN packs ON packs.number = blobs.pack WHERE blobs.number = ?";
        let read = || -> rusqlite::Result<Option<BlobRow>> {
            let mut statement = self.db.prepare_cached(sql)?;
            let mut rows = statement.query([number])?;
            rows.next()?.map_or(Ok(None), |row| checked_row(ObjectId(row.get(0)?), row, 1, keys))
        };
        read().inspect_err(|error| tracing::debug!("row {number} of the local index: {error}")).ok()?
    }

    /// Every pack: its number, its id and its size.
    pub(super) fn packs(&self) -> Result<Vec<(i64, ObjectId, u32)>, TableError> {
        let mut statement = self.db.prepare_cached("SELECT number, id, bytes FROM packs ORDER BY number")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, ObjectId(row.get(1)?), row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The blobs of a pack in order of offset, or `None` if it is gone.
    pub(super) fn blobs_of_pack(&self, number: i64, keys: &Keys) -> Result<Option<Vec<BlobRow>>, TableError> {
        // One statement, so that another process removes all of them meanwhile or none.
        let sql =
            "SELECT packs.id, packs.ends - packs.first, blobs.offset, blobs.stored, blobs.contents, blobs.check_value,
                          packs.bytes
                   FROM packs LEFT JOIN blobs ON blobs.number >= packs.first AND blobs.number < packs.ends
                   WHERE packs.number = ? ORDER BY blobs.number";
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query([number])?;
        let (mut blobs, mut expected) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            let count = *expected.insert(row.get::<_, i64>(1)?);
            if count > 0 {
                let blob = checked_row(ObjectId(row.get(0)?), row, 2, keys)?;
                blobs.push(blob.ok_or(TableError::Contradiction("a row fails its check"))?);
            }
        }
        match expected {
            None => Ok(None),
            Some(count) if count == blobs.len() as i64 => Ok(Some(blobs)),
            Some(_) => Err(TableError::Contradiction("rows of a pack are missing")),
        }
    }

    /// The index objects: number, and which they take the place of.
    pub(super) fn objects(&self) -> Result<HashMap<ObjectId, (i64, Vec<ObjectId>)>, TableError> {
        let mut statement = self.db.prepare_cached("SELECT number, id, supersedes FROM objects")?;
        let rows = statement.query_map([], |row| {
            let supersedes: Vec<u8> = row.get(2)?;
            let ids = supersedes.as_chunks::<32>().0.iter().map(|id| ObjectId(*id)).collect();
            Ok((ObjectId(row.get(1)?), (row.get(0)?, ids)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Adds what an index object says, all of it or nothing. Its chunks are found at once if they are few, otherwise after
    /// [`sort_if_due`](Self::sort_if_due).
    pub(super) fn add(&mut self, object: &ObjectRows) -> Result<(), TableError> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut state = State::read(&tx)?;
        let (first, takes_fresh) = (state.next, state.takes_fresh(object.chunks));
        let blobs: i64 = object.packs.iter().map(|pack| pack.blobs.len() as i64).sum();
        state.next = state.next.saturating_add(blobs);
        if state.next >> Place::BLOB_BITS != 0 {
            return Err(TableError::Contradiction("the numbers of blobs are used up"));
        }
        let supersedes: Vec<u8> = object.supersedes.iter().flat_map(|id| *id.as_bytes()).collect();
        let sql = "INSERT OR IGNORE INTO objects (id, supersedes, first, ends, chunks) VALUES (?, ?, ?, ?, ?)";
        if tx.execute(sql, params![object.id.as_bytes(), supersedes, first, state.next, object.chunks])? == 0 {
            return Ok(());
        }
        add_packs(&tx, tx.last_insert_rowid(), object, first)?;
        if takes_fresh {
            state.fresh = state.fresh.saturating_add(add_fresh(&tx, object, first)?);
            state.covered = state.next;
        }
        state.write(&tx)?;
        Ok(tx.commit()?)
    }

    /// Removes index objects and all that came from them.
    pub(super) fn drop_objects(&mut self, numbers: &[i64]) -> Result<(), TableError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut state = State::read(&tx)?;
        for number in numbers {
            let sql = "SELECT first, ends, chunks FROM objects WHERE number = ?";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let (first, ends, chunks): (i64, i64, i64) = tx.prepare_cached(sql)?.query_row([number], read)?;
            tx.prepare_cached("DELETE FROM blobs WHERE number >= ? AND number < ?")?.execute([first, ends])?;
            tx.prepare_cached("DELETE FROM packs WHERE object = ?")?.execute([number])?;
            tx.prepare_cached("DELETE FROM objects WHERE number = ?")?.execute([number])?;
            state.stale = state.stale.saturating_add(chunks);
        }
        state.write(&tx)?;
        Ok(tx.commit()?)
    }

    /// Puts the chunks of all blobs in order, if enough has changed since that was last done.
    ///
    /// `folder` is for a temporary file of 12 bytes a chunk; without it they are sorted in memory.
    pub(super) fn sort_if_due(&mut self, folder: Option<&Path>) -> Result<(), TableError> {
        if State::read(&self.db)?.is_due() { self.sort_chunks(folder) } else { Ok(()) }
    }

    pub(super) fn sort_chunks(&mut self, folder: Option<&Path>) -> Result<(), TableError> {
        // Without a folder everything stays in memory, as the index itself then does.
        let make_file = folder.map(|folder| Box::new(move || tempfile::tempfile_in(folder)) as Box<dyn Fn() -> _>);
        let mut sorter = Sorter::new(INDEX_SORTED_TOGETHER, make_file);
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut statement = tx.prepare("SELECT number, contents FROM blobs")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let number: i64 = row.get(0)?;
                let contents = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
                // A row that was damaged is found out by whoever looks for its chunks.
                let Ok(contents) = BlobContents::decode_exact(contents) else { continue };
                for chunk in &contents.chunks {
                    sorter.push(Place::new(prefix_of(&chunk.id), number))?;
                }
            }
        }
        let mut state = State::read(&tx)?;
        state.chunks = 0;
        tx.execute_batch("DELETE FROM chunks; DELETE FROM fresh;")?;
        {
            let mut insert = tx.prepare("INSERT INTO chunks (first, places) VALUES (?, ?)")?;
            let mut row: Vec<u8> = Vec::with_capacity(PLACES_A_ROW * PLACE_BYTES);
            let (mut first, mut last) = (0, 0);
            for part in sorter.finish()? {
                let mut places = part?;
                places.dedup();
                for place in places {
                    // Who looks for a prefix reads one row.
                    if row.len() >= PLACES_A_ROW * PLACE_BYTES && place.prefix() != last {
                        insert.execute(params![first, row])?;
                        row.clear();
                    }
                    if row.is_empty() {
                        first = place.prefix();
                    }
                    last = place.prefix();
                    place.encode(&mut row);
                    state.chunks += 1;
                }
            }
            if !row.is_empty() {
                insert.execute(params![first, row])?;
            }
        }
        State { covered: state.next, fresh: 0, stale: 0, ..state }.write(&tx)?;
        Ok(tx.commit()?)
    }
}

fn add_packs(tx: &Transaction<'_>, object: i64, rows: &ObjectRows, first: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO packs (id, object, bytes, first, ends) VALUES (?, ?, ?, ?, ?)";
    let mut insert_pack = tx.prepare_cached(sql)?;
    let sql = "INSERT INTO blobs (number, pack, offset, stored, contents, check_value) VALUES (?, ?, ?, ?, ?, ?)";
    let mut insert_blob = tx.prepare_cached(sql)?;
    let mut number = first;
    for pack in &rows.packs {
        let ends = number + pack.blobs.len() as i64;
        insert_pack.execute(params![pack.id.as_bytes(), object, pack.bytes, number, ends])?;
        let pack_number = tx.last_insert_rowid();
        for blob in &pack.blobs {
            insert_blob.execute(params![number, pack_number, blob.offset, blob.stored, blob.contents, blob.check])?;
            number += 1;
        }
    }
    Ok(())
}

/// Adds a row for each chunk and returns how many.
fn add_fresh(tx: &Transaction<'_>, rows: &ObjectRows, first: i64) -> Result<i64, TableError> {
    let mut places = Vec::new();
    for (number, blob) in (first..).zip(rows.packs.iter().flat_map(|pack| &pack.blobs)) {
        let contents = BlobContents::decode_exact(&blob.contents).expect("it was encoded from contents");
        places.extend(contents.chunks.iter().map(|chunk| Place::new(prefix_of(&chunk.id), number)));
    }
    // In the order of the table, so that each of its pages is changed once.
    places.sort_unstable();
    places.dedup();
    let mut insert = tx.prepare_cached("INSERT INTO fresh (prefix, blob) VALUES (?, ?)")?;
    for place in &places {
        insert.execute([place.prefix(), place.blob()])?;
    }
    Ok(places.len() as i64)
}

/// Reads offset, stored bytes, contents, check value and the pack's size from the columns at `at`; `None` if the check fails.
fn checked_row(pack: ObjectId, row: &rusqlite::Row<'_>, at: usize, keys: &Keys) -> rusqlite::Result<Option<BlobRow>> {
    let (offset, stored, check) = (row.get(at)?, row.get(at + 1)?, row.get::<_, [u8; 8]>(at + 3)?);
    let contents = row.get_ref(at + 2)?.as_blob()?;
    if row_check(keys, &pack, offset, stored, contents) != check {
        tracing::warn!("a row of the local index fails its check and is not used");
        return Ok(None);
    }
    let pack_bytes = row.get(at + 4)?;
    Ok(BlobContents::decode_exact(contents).ok().map(|contents| BlobRow { pack, offset, stored, pack_bytes, contents }))
}

fn row_check(keys: &Keys, pack: &ObjectId, offset: u32, stored: u32, contents: &[u8]) -> [u8; 8] {
    let mut row = Vec::with_capacity(40 + contents.len());
    row.extend_from_slice(pack.as_bytes());
    row.extend_from_slice(&offset.to_le_bytes());
    row.extend_from_slice(&stored.to_le_bytes());
    row.extend_from_slice(contents);
    keys.cache_row(&row)
}
