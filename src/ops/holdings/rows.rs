//! Chunks by the millions: rows of 16 bytes, in memory while they are few, in a temporary file beyond that.
//!
//! The file lies in the cache folder, has no name and is gone with the process. It is read by position and not mapped:
//! what the kernel keeps of it in its page cache is not this program's memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use rayon::slice::ParallelSliceMut;

use crate::repo::sorter::{self, Record, RecordFile};
use crate::repo::{RepoError, private_folder};

/// Rows that are gathered before they are written, and read together: 64 KiB, in whole pages.
const BLOCK_ROWS: usize = 4096;
/// Rows that are read to find one: 1 KiB. Of each such page 8 bytes stay in memory.
const PAGE_ROWS: usize = 64;
const ROW_BYTES: usize = 16;
const _: () = assert!(BLOCK_ROWS.is_multiple_of(PAGE_ROWS));

/// A chunk and a blob: one that lies in it, or one that it rests on. Ordered by the chunk's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The first 8 bytes of the chunk's name.
    pub prefix: u64,
    pub blob: u32,
    /// Plaintext bytes of the chunk.
    pub bytes: u32,
}

impl Record for Row {
    const BYTES: usize = ROW_BYTES;

    fn first_byte(&self) -> u8 {
        self.prefix.to_be_bytes()[0]
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix.to_le_bytes());
        out.extend_from_slice(&self.blob.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    fn decode(raw: &[u8]) -> Self {
        let (prefix, rest) = raw.split_first_chunk().expect("16 bytes have a first 8");
        let (blob, bytes) = rest.split_first_chunk().expect("8 bytes have a first 4");
        let bytes = bytes.first_chunk().expect("4 bytes are left");
        Self { prefix: u64::from_le_bytes(*prefix), blob: u32::from_le_bytes(*blob), bytes: u32::from_le_bytes(*bytes) }
    }
}

/// Where rows go.
#[derive(Debug, Clone)]
pub struct Room {
    /// Holds the file, if there is one. Made if it is not there.
    pub folder: PathBuf,
    /// Most rows that stay in memory.
    pub rows_max: usize,
}

impl Room {
    fn file(&self) -> io::Result<File> {
        private_folder(&self.folder).and_then(|()| tempfile::tempfile_in(&self.folder))
    }

    fn error(&self, source: io::Error) -> RepoError {
        RepoError::Scratch { folder: self.folder.clone(), source }
    }
}

/// Rows in the order in which they were pushed.
pub struct Rows {
    room: Room,
    file: Option<RecordFile<Row>>,
    /// The rows behind those in the file.
    tail: Vec<Row>,
}

impl Rows {
    pub fn new(room: Room) -> Self {
        Self { room, file: None, tail: Vec::new() }
    }

    pub fn push(&mut self, row: Row) -> Result<(), RepoError> {
        let tail_max = if self.file.is_some() { BLOCK_ROWS } else { self.room.rows_max };
        if self.tail.len() >= tail_max {
            self.spill()?;
        }
        self.tail.push(row);
        Ok(())
    }

    /// Moves the tail into the file.
    fn spill(&mut self) -> Result<(), RepoError> {
        let make = || self.room.file().map(RecordFile::new);
        let made = self.file.take().map_or_else(make, Ok);
        let file = self.file.insert(made.map_err(|error| self.room.error(error))?);
        file.append(&self.tail).map_err(|error| self.room.error(error))?;
        self.tail = Vec::with_capacity(BLOCK_ROWS);
        Ok(())
    }

    fn in_file(&self) -> usize {
        self.file.as_ref().map_or(0, RecordFile::records)
    }

    pub fn len(&self) -> usize {
        self.in_file() + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads rows by their positions. Those past the end are left out.
    fn read(&self, range: Range<usize>, out: &mut Vec<Row>) -> Result<(), RepoError> {
        out.clear();
        let in_file = self.in_file();
        if let Some(file) = self.file.as_ref().filter(|_| range.start < in_file) {
            let read = file.read(range.start..range.end.min(in_file), out);
            read.map_err(|error| self.room.error(error))?;
        }
        let in_tail = |at: usize| at.clamp(in_file, self.len()) - in_file;
        out.extend_from_slice(&self.tail[in_tail(range.start)..in_tail(range.end)]);
        Ok(())
    }

    /// All rows, read block by block.
    pub fn iter(&self) -> RowsIter<'_> {
        RowsIter { rows: self, left: 0..self.len(), block: Vec::new(), at: 0 }
    }

    /// Calls `each` with all rows, [`BLOCK_ROWS`] at a time, of which the last are fewer.
    fn each_block<E: From<RepoError>>(&self, mut each: impl FnMut(&[Row]) -> Result<(), E>) -> Result<(), E> {
        let mut block = Vec::new();
        for start in (0..self.len()).step_by(BLOCK_ROWS) {
            self.read(start..self.len().min(start + BLOCK_ROWS), &mut block)?;
            each(&block)?;
        }
        Ok(())
    }
}

/// Reads rows one after another. An error is its last.
pub struct RowsIter<'a> {
    rows: &'a Rows,
    /// What has not been read.
    left: Range<usize>,
    block: Vec<Row>,
    /// Position of the next row in the block.
    at: usize,
}

impl Iterator for RowsIter<'_> {
    type Item = Result<Row, RepoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.block.len() {
            let end = self.left.end.min(self.left.start + BLOCK_ROWS);
            let read = self.rows.read(self.left.start..end, &mut self.block);
            (self.left.start, self.at) = (end, 0);
            if let Err(error) = read {
                self.left.start = self.left.end;
                return Some(Err(error));
            }
        }
        let row = self.block.get(self.at)?;
        self.at += 1;
        Some(Ok(*row))
    }
}

/// Sorts rows.
pub struct Sorter {
    room: Room,
    sorter: sorter::Sorter<'static, Row>,
}

impl Sorter {
    pub fn new(room: Room) -> Self {
        let of_file = room.clone();
        Self { sorter: sorter::Sorter::new(room.rows_max, Some(Box::new(move || of_file.file()))), room }
    }

    pub fn push(&mut self, row: Row) -> Result<(), RepoError> {
        self.sorter.push(row).map_err(|error| self.room.error(error))
    }

    pub fn finish(self) -> Result<Table, RepoError> {
        let Self { room, sorter } = self;
        let mut parts = sorter.finish().map_err(|error| room.error(error))?;
        if !parts.are_in_file() {
            let tail = parts.next().transpose().map_err(|error| room.error(error))?.unwrap_or_default();
            return Table::new(Rows { tail, ..Rows::new(room) });
        }
        let mut sorted = Rows::new(Room { rows_max: 0, ..room.clone() });
        for part in parts {
            part.map_err(|error| room.error(error))?.into_iter().try_for_each(|row| sorted.push(row))?;
        }
        Table::new(sorted)
    }
}

/// Sorted rows: all copies of a chunk side by side, found by its prefix.
pub struct Table {
    rows: Rows,
    /// The first prefix of each page.
    firsts: Vec<u64>,
}

/// The copies of a chunk, and the position of the first in its table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copies {
    start: usize,
    rows: Vec<Row>,
}

impl Copies {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows with their positions.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Row)> {
        (self.start..).zip(&self.rows)
    }
}

impl Table {
    fn new(rows: Rows) -> Result<Self, RepoError> {
        let mut firsts = Vec::with_capacity(rows.len().div_ceil(PAGE_ROWS));
        rows.each_block(|block| {
            firsts.extend(block.iter().step_by(PAGE_ROWS).map(|row| row.prefix));
            Ok::<_, RepoError>(())
        })?;
        Ok(Self { rows, firsts })
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All rows, in order.
    pub fn iter(&self) -> RowsIter<'_> {
        self.rows.iter()
    }

    /// All copies of a chunk. Reads one page as a rule.
    pub fn find(&self, prefix: u64) -> Result<Copies, RepoError> {
        let mut copies = Copies::default();
        let mut page = Vec::with_capacity(PAGE_ROWS);
        // The first copy may be the last row of the page before.
        let first = self.firsts.partition_point(|first| *first < prefix).saturating_sub(1);
        for number in first..self.firsts.len() {
            if number > first && self.firsts[number] != prefix {
                break;
            }
            self.rows.read(number * PAGE_ROWS..(number + 1) * PAGE_ROWS, &mut page)?;
            let before = page.partition_point(|row| row.prefix < prefix);
            let found = page[before..].partition_point(|row| row.prefix == prefix);
            if copies.is_empty() {
                copies.start = number * PAGE_ROWS + before;
            }
            copies.rows.extend_from_slice(&page[before..before + found]);
            if before + found < page.len() {
                break;
            }
        }
        Ok(copies)
    }

    /// Finds many chunks at once, and leaves `wanted` empty: calls `each` with every row of it, in order, the copies of its
    /// chunk and the position of the first of them. What stands in a row of `wanted` beside the prefix is the asker's.
    pub fn find_all<E: From<RepoError>>(
        &self,
        wanted: &mut Vec<Row>,
        mut each: impl FnMut(&Row, usize, &[Row]) -> Result<(), E>,
    ) -> Result<(), E> {
        wanted.par_sort_unstable();
        // To read a page costs about as much as to pass over two.
        if wanted.len() < self.firsts.len() / 2 {
            for row in wanted.drain(..) {
                let copies = self.find(row.prefix)?;
                each(&row, copies.start, &copies.rows)?;
            }
            return Ok(());
        }
        let mut left = &wanted[..];
        self.each_run(|start, copies| {
            while let Some((row, rest)) = left.split_first().filter(|(row, _)| row.prefix <= copies[0].prefix) {
                each(row, start, if row.prefix == copies[0].prefix { copies } else { &[] })?;
                left = rest;
            }
            Ok::<_, E>(())
        })?;
        left.iter().try_for_each(|row| each(row, 0, &[]))?;
        wanted.clear();
        Ok(())
    }

    /// Calls `each` with the copies of every chunk and the position of the first of them.
    pub fn each_run<E: From<RepoError>>(&self, mut each: impl FnMut(usize, &[Row]) -> Result<(), E>) -> Result<(), E> {
        // Copies of a chunk may lie on both sides of where a block ends.
        let (mut start, mut carried) = (0, Vec::<Row>::new());
        self.rows.each_block(|block| {
            let mut runs = block.chunk_by(|one, other| one.prefix == other.prefix).peekable();
            while let Some(run) = runs.next() {
                if carried.last().is_some_and(|last| last.prefix != run[0].prefix) {
                    each(start, &carried)?;
                    start += carried.len();
                    carried.clear();
                }
                if carried.is_empty() && runs.peek().is_some() {
                    each(start, run)?;
                    start += run.len();
                } else {
                    carried.extend_from_slice(run);
                }
            }
            Ok::<_, E>(())
        })?;
        if carried.is_empty() { Ok(()) } else { each(start, &carried) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn room(folder: &tempfile::TempDir, rows_max: usize) -> Room {
        Room { folder: folder.path().join("cache"), rows_max }
    }

    fn sorted(rows: &[Row], room: Room) -> Table {
        let mut sorter = Sorter::new(room);
        rows.iter().for_each(|row| sorter.push(*row).unwrap());
        sorter.finish().unwrap()
    }

    /// Prefixes that come once, twice, and more often than a page has rows.
    fn some_rows() -> impl Strategy<Value = Vec<Row>> {
        let prefix = prop_oneof![3 => any::<u64>(), 3 => 0..50u64, 2 => Just(u64::MAX), 2 => Just(7)];
        let row = (prefix, 0..1000u32, 1..100u32).prop_map(|(prefix, blob, bytes)| Row { prefix, blob, bytes });
        proptest::collection::vec(row, 0..1200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_file_answers_as_memory_does(rows in some_rows(), rows_max in 0..700usize, other in any::<u64>()) {
            let folder = tempfile::tempdir().unwrap();
            let (memory, file) = (sorted(&rows, room(&folder, usize::MAX)), sorted(&rows, room(&folder, rows_max)));
            prop_assert_eq!(file.rows.file.is_some(), rows.len() > rows_max);
            let mut wanted = rows.clone();
            wanted.sort_unstable();
            for table in [&memory, &file] {
                prop_assert_eq!(&table.iter().map(Result::unwrap).collect::<Vec<_>>(), &wanted);
                let mut runs = Vec::new();
                table.each_run(|start, run| { runs.push((start, run.to_vec())); Ok::<_, RepoError>(()) }).unwrap();
                let ends = runs.iter().map(|(start, run)| start + run.len());
                prop_assert!(ends.zip(runs.iter().skip(1)).all(|(end, (start, _))| end == *start));
                prop_assert_eq!(runs.len(), wanted.chunk_by(|a, b| a.prefix == b.prefix).count());
                prop_assert_eq!(runs.into_iter().flat_map(|(_, run)| run).collect::<Vec<_>>(), wanted.clone());
            }
            for prefix in rows.iter().map(|row| row.prefix).chain([0, other, u64::MAX]) {
                let found = file.find(prefix).unwrap();
                let (start, end) = (wanted.partition_point(|r| r.prefix < prefix), wanted.partition_point(|r| r.prefix <= prefix));
                prop_assert_eq!(&found.rows, &wanted[start..end]);
                if start < end {
                    prop_assert_eq!(&found, &memory.find(prefix).unwrap());
                    prop_assert_eq!(found.start, start);
                }
            }
            // Few at once are found page by page, many in one pass.
            for count in [1, rows.len()] {
                let mut asked: Vec<Row> = rows.iter().take(count).copied().collect();
                asked.push(Row { prefix: other, blob: 1, bytes: 2 });
                let mut answered = Vec::new();
                let mut wanted_now = asked.clone();
                file.find_all(&mut wanted_now, |row, start, copies| {
                    let alone = file.find(row.prefix)?;
                    assert_eq!(copies, alone.rows, "the same copies as when it is asked for alone");
                    assert!(copies.is_empty() || start == alone.start);
                    answered.push(*row);
                    Ok::<_, RepoError>(())
                }).unwrap();
                asked.sort_unstable();
                prop_assert_eq!(answered, asked);
                prop_assert!(wanted_now.is_empty());
            }
        }

        #[test]
        fn rows_come_back_in_the_order_in_which_they_were_pushed(rows in some_rows(), rows_max in 0..700usize) {
            let folder = tempfile::tempdir().unwrap();
            let mut kept = Rows::new(room(&folder, rows_max));
            rows.iter().for_each(|row| kept.push(*row).unwrap());
            prop_assert_eq!(kept.len(), rows.len());
            prop_assert_eq!(kept.iter().map(Result::unwrap).collect::<Vec<_>>(), rows);
        }
    }

    #[test]
    fn more_rows_than_a_block_come_back_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<Row> =
            (0..3 * BLOCK_ROWS as u32 + 5).map(|n| Row { prefix: n.into(), blob: n, bytes: 1 }).collect();
        let table = sorted(&rows, room(&folder, BLOCK_ROWS + 1));
        assert!(table.rows.file.is_some());
        assert_eq!(table.iter().map(Result::unwrap).collect::<Vec<_>>(), rows);
        assert_eq!(table.find(9000).unwrap().iter().collect::<Vec<_>>(), [(9000, &rows[9000])]);
    }

    #[test]
    fn copies_on_both_sides_of_where_a_block_ends_are_one_run() {
        let folder = tempfile::tempdir().unwrap();
        // Runs of seven, one that ends with a block, one of more than a block, and one row at the end.
        let block = BLOCK_ROWS as u32;
        let prefix = |n: u32| match n {
            n if n < 2 * block - 50 => n / 7,
            n if n < 2 * block => 10_000,
            n if n < 3 * block + 10 => 20_000,
            n => 30_000 + n / 7,
        };
        let rows: Vec<Row> = (0..5 * block + 1).map(|n| Row { prefix: prefix(n).into(), blob: n, bytes: 1 }).collect();
        for rows_max in [BLOCK_ROWS, usize::MAX] {
            let (table, mut runs) = (sorted(&rows, room(&folder, rows_max)), Vec::new());
            let mut each = |start, run: &[Row]| {
                assert_eq!(run, &rows[start..start + run.len()]);
                runs.push(run.len());
                Ok::<_, RepoError>(())
            };
            table.each_run(&mut each).unwrap();
            assert_eq!(runs, rows.chunk_by(|a, b| a.prefix == b.prefix).map(<[Row]>::len).collect::<Vec<_>>());
            assert!(rows.iter().step_by(97).all(|row| table.find(row.prefix).unwrap().rows.contains(row)));
        }
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error_that_names_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cache"), "not a folder").unwrap();
        let mut rows = Rows::new(room(&folder, 1));
        rows.push(Row { prefix: 1, blob: 1, bytes: 1 }).unwrap();
        let error = rows.push(Row { prefix: 2, blob: 1, bytes: 1 }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(folder.path().to_str().unwrap()) && text.contains("XDG_CACHE_HOME"), "{text}");
    }
}
