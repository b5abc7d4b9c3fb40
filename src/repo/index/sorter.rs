//! Sorts the places of all chunks of a repository, more than fit into memory: by their first byte into parts, which go to
//! a file without a name; then part after part in memory.
//!
//! As chunk ids are keyed hashes, the parts are of one size: of 20 million chunks each has 78,000.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::tables::Place;
use crate::limits::{INDEX_SORT_BUFFER_BYTES, INDEX_SORT_PARTS};

/// Bytes of a place in the file, and in the table of chunks.
pub(super) const PLACE_BYTES: usize = 12;

/// Places being gathered.
pub(super) struct Sorter {
    /// Without one everything stays in memory, as the index itself then does.
    file: Option<File>,
    file_bytes: u64,
    parts: Vec<Part>,
}

#[derive(Default)]
struct Part {
    buffer: Vec<u8>,
    /// Where in the file its earlier buffers are, each of them full.
    full: Vec<u64>,
}

const BUFFER_BYTES: usize = INDEX_SORT_BUFFER_BYTES / PLACE_BYTES * PLACE_BYTES;

impl Sorter {
    pub(super) fn new(file: Option<File>) -> Self {
        Self { file, file_bytes: 0, parts: (0..INDEX_SORT_PARTS).map(|_| Part::default()).collect() }
    }

    pub(super) fn push(&mut self, place: Place) -> io::Result<()> {
        let bytes = place.encode();
        let part = &mut self.parts[usize::from(bytes[0]) * INDEX_SORT_PARTS / 256];
        part.buffer.extend_from_slice(&bytes);
        if part.buffer.len() >= BUFFER_BYTES
            && let Some(file) = &self.file
        {
            file.write_all_at(&part.buffer, self.file_bytes)?;
            part.full.push(self.file_bytes);
            self.file_bytes += BUFFER_BYTES as u64;
            part.buffer.clear();
        }
        Ok(())
    }

    /// Calls `each` with every place once, in order.
    pub(super) fn drain<E: From<io::Error>>(self, mut each: impl FnMut(Place) -> Result<(), E>) -> Result<(), E> {
        let mut read = vec![0; if self.file_bytes > 0 { BUFFER_BYTES } else { 0 }];
        let mut places = Vec::new();
        for part in self.parts {
            places.clear();
            let mut take = |bytes: &[u8]| places.extend(bytes.as_chunks::<PLACE_BYTES>().0.iter().map(Place::decode));
            if let Some(file) = &self.file {
                for at in part.full {
                    file.read_exact_at(&mut read, at)?;
                    take(&read);
                }
            }
            take(&part.buffer);
            drop(part.buffer);
            places.sort_unstable();
            places.dedup();
            places.iter().try_for_each(|place| each(*place))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(places: &[Place], file: Option<File>) -> Vec<Place> {
        let mut sorter = Sorter::new(file);
        places.iter().for_each(|place| sorter.push(*place).unwrap());
        let mut out = Vec::new();
        sorter
            .drain(|place| {
                out.push(place);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        out
    }

    #[test]
    fn through_a_file_or_not_all_come_out_once_in_order() {
        // A fifth of them in one part, more than two of its buffers.
        let mut places: Vec<Place> = (0i64..40_000)
            .map(|n| {
                let hash = blake3::hash(&n.to_le_bytes());
                let prefix = (u64::from_be_bytes(*hash.as_bytes().first_chunk().unwrap()) >> 8) as i64;
                Place::new(if n % 5 == 0 { prefix & 0xffff } else { prefix }, n % 1000)
            })
            .collect();
        places.extend_from_within(..100);
        let mut expected = places.clone();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(sorted(&places, None), expected);
        assert_eq!(sorted(&places, Some(tempfile::tempfile().unwrap())), expected);
        assert_eq!(sorted(&[], None), []);
    }
}
