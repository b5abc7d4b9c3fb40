//! Sorts records, more than fit into memory: as many as do are put in order and go to a file without a name, run after run; then
//! what begins with the same byte comes back from all runs, part after part.
//!
//! As the records begin with keyed hashes, the parts are of one size: of 20 million records each has 78,000.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rayon::slice::ParallelSliceMut;

/// What begins with the same byte is a part.
const PARTS: usize = 256;
/// Records that are written together.
const BLOCK_RECORDS: usize = 4096;

/// Something of fixed length that begins with a hash.
pub trait Record: Copy + Ord + Send {
    /// Its length in the file.
    const BYTES: usize;

    /// The first byte of the hash, which comes first in its order.
    fn first_byte(&self) -> u8;

    /// Appends its bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// The record that has these [`Self::BYTES`].
    fn decode(bytes: &[u8]) -> Self;
}

/// Records in a file, one after the other.
pub struct RecordFile<R> {
    file: File,
    records: usize,
    of: PhantomData<R>,
}

impl<R: Record> RecordFile<R> {
    /// Of a file that is empty.
    pub fn new(file: File) -> Self {
        Self { file, records: 0, of: PhantomData }
    }

    /// How many there are.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Writes records behind those that are there.
    pub fn append(&mut self, records: &[R]) -> io::Result<()> {
        let mut block = Vec::with_capacity(BLOCK_RECORDS.min(records.len()) * R::BYTES);
        for records in records.chunks(BLOCK_RECORDS) {
            block.clear();
            records.iter().for_each(|record| record.encode(&mut block));
            self.file.write_all_at(&block, (self.records * R::BYTES) as u64)?;
            self.records += records.len();
        }
        Ok(())
    }

    /// Appends records to `out`, by their positions. Errors if they are not all there.
    pub fn read(&self, positions: Range<usize>, out: &mut Vec<R>) -> io::Result<()> {
        let mut bytes = vec![0; positions.len() * R::BYTES];
        self.file.read_exact_at(&mut bytes, (positions.start * R::BYTES) as u64)?;
        out.extend(bytes.chunks_exact(R::BYTES).map(R::decode));
        Ok(())
    }
}

/// Records being gathered.
pub struct Sorter<'f, R> {
    records_max: usize,
    buffer: Vec<R>,
    make_file: Option<Box<dyn Fn() -> io::Result<File> + 'f>>,
    runs: Option<Runs<R>>,
}

/// Sorted records in a file.
struct Runs<R> {
    file: RecordFile<R>,
    /// Of each run where its parts begin, and where the last one ends, in records.
    starts: Vec<[usize; PARTS + 1]>,
}

/// The records in order, a part at a time. All at once if they are few.
pub struct Parts<R> {
    in_memory: Option<Vec<R>>,
    in_file: Option<Runs<R>>,
    next: usize,
}

impl<'f, R: Record> Sorter<'f, R> {
    /// No more than `records_max` stay in memory if there is `make_file`, which is called once it is needed.
    pub fn new(records_max: usize, make_file: Option<Box<dyn Fn() -> io::Result<File> + 'f>>) -> Self {
        Self { records_max, buffer: Vec::new(), make_file, runs: None }
    }

    /// Errors if the file cannot be made or written.
    pub fn push(&mut self, record: R) -> io::Result<()> {
        if self.buffer.len() >= self.records_max {
            self.end_run()?;
        }
        self.buffer.push(record);
        Ok(())
    }

    /// Moves what was gathered into the file, if there is to be one.
    fn end_run(&mut self) -> io::Result<()> {
        let Some(make_file) = &self.make_file else { return Ok(()) };
        let runs = match &mut self.runs {
            Some(runs) => runs,
            None => self.runs.insert(Runs { file: RecordFile::new(make_file()?), starts: Vec::new() }),
        };
        self.buffer.par_sort_unstable();
        let before = |part: usize| self.buffer.partition_point(|record| usize::from(record.first_byte()) < part);
        runs.starts.push(std::array::from_fn(|part| runs.file.records() + before(part)));
        runs.file.append(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Errors if the file cannot be written.
    pub fn finish(mut self) -> io::Result<Parts<R>> {
        if self.runs.is_some() {
            self.end_run()?;
            return Ok(Parts { in_memory: None, in_file: self.runs, next: 0 });
        }
        self.buffer.par_sort_unstable();
        Ok(Parts { in_memory: Some(self.buffer), in_file: None, next: 0 })
    }
}

impl<R: Record> Runs<R> {
    fn read(&self, part: usize) -> io::Result<Vec<R>> {
        let in_runs = || self.starts.iter().map(|starts| starts[part]..starts[part + 1]);
        let mut records = Vec::with_capacity(in_runs().map(|positions| positions.len()).sum());
        in_runs().try_for_each(|positions| self.file.read(positions, &mut records))?;
        // The stable one finds out that these are sorted runs, and merges them.
        records.sort();
        Ok(records)
    }
}

impl<R> Parts<R> {
    /// Whether they were too many for memory.
    pub fn are_in_file(&self) -> bool {
        self.in_file.is_some()
    }
}

impl<R: Record> Iterator for Parts<R> {
    type Item = io::Result<Vec<R>>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(runs) = self.in_file.as_ref().filter(|_| self.next < PARTS) else {
            return self.in_memory.take().map(Ok);
        };
        self.next += 1;
        Some(runs.read(self.next - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A number whose bytes are its hash.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct Number(u32);

    impl Record for Number {
        const BYTES: usize = 4;

        fn first_byte(&self) -> u8 {
            self.0.to_be_bytes()[0]
        }

        fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.0.to_be_bytes());
        }

        fn decode(bytes: &[u8]) -> Self {
            Self(u32::from_be_bytes(*bytes.as_array().unwrap()))
        }
    }

    proptest! {
        #[test]
        fn all_come_back_in_order(
            // Some parts with many, most with few or none.
            numbers in proptest::collection::vec(prop_oneof![any::<u32>(), 0..1000u32, Just(u32::MAX)], 0..3000),
            records_max in 0..1500usize,
            has_file: bool,
        ) {
            let made = Cell::new(0);
            let make = || {
                made.set(made.get() + 1);
                tempfile::tempfile()
            };
            let make_file = has_file.then(|| Box::new(make) as Box<dyn Fn() -> io::Result<File>>);
            let mut sorter = Sorter::new(records_max, make_file);
            numbers.iter().for_each(|number| sorter.push(Number(*number)).unwrap());
            let parts = sorter.finish().unwrap();
            let is_in_file = has_file && numbers.len() > records_max;
            prop_assert_eq!((parts.are_in_file(), made.get()), (is_in_file, u32::from(is_in_file)));
            let sorted: Vec<u32> = parts.flat_map(Result::unwrap).map(|number| number.0).collect();
            let mut expected = numbers;
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        let make: Box<dyn Fn() -> io::Result<File>> = Box::new(|| Err(io::ErrorKind::StorageFull.into()));
        let mut sorter = Sorter::new(1, Some(make));
        sorter.push(Number(1)).unwrap();
        assert_eq!(sorter.push(Number(2)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
