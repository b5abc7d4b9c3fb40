//! Pieces of opened blobs, and the buffers that they lie in.

use std::ops::Range;
use std::sync::Arc;

use super::Reader;
use crate::format::manifest::{ChunkEntry, bytes_of};
use crate::pipeline::stream::BlobPlace;
use crate::repo::index::{BlobRow, Location};

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

    /// The runs that chunks lie in, in order. Errors if `locate` does.
    pub(super) fn runs<E>(
        chunks: &[ChunkEntry],
        mut locate: impl FnMut(&ChunkEntry) -> Result<Location, E>,
    ) -> Result<Arc<[Self]>, E> {
        let mut runs: Vec<Self> = Vec::new();
        for chunk in chunks {
            if !runs.last_mut().is_some_and(|run| run.extend(chunk)) {
                runs.push(locate(chunk)?.into());
            }
        }
        Ok(runs.into())
    }

    /// Whether this is all of the blob, or nearly: who has read it rarely comes back for the rest.
    pub(super) fn is_whole(&self) -> bool {
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

impl Reader {
    /// Keeps a buffer for the next blob, if nobody else holds it.
    pub(crate) fn give_back(&self, bytes: Arc<Vec<u8>>) {
        if let Some(buffer) = Arc::into_inner(bytes) {
            let no_room_for = self.kept().give_back(buffer);
            drop(no_room_for);
        }
    }

    /// An empty buffer, used before if there is one.
    pub(super) fn spare_buffer(&self) -> Vec<u8> {
        self.kept().spare_buffer().unwrap_or_default()
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
    /// What the blob is told from others by.
    pub(super) fn place(&self) -> BlobPlace {
        (self.pack, self.offset)
    }

    /// Whether this is the same blob, in the same pack.
    pub fn is(&self, other: &Self) -> bool {
        self.pack == other.pack && self.offset == other.offset
    }

    /// Where a run of chunks lies in the blob's plaintext, in bytes.
    pub fn range_of(&self, positions: &Range<usize>) -> Range<usize> {
        let start = bytes_of(&self.contents.chunks[..positions.start]);
        start..start + self.bytes_of(positions)
    }

    /// Bytes of plaintext of a run of chunks.
    pub(super) fn bytes_of(&self, positions: &Range<usize>) -> usize {
        bytes_of(&self.contents.chunks[positions.clone()])
    }
}
