//! What is read next: windows of a stream, and what a far store is asked for beforehand.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Reader;
use super::parts::Part;
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::limits::{
    FORESEEN_BYTES, FORESEEN_BYTES_FIRST, FORESEEN_ENTRIES, FORESEEN_GROWTH, FORESEEN_WINDOWS, NEIGHBOUR_BYTES,
    NEIGHBOUR_BYTES_STORED, NEIGHBOUR_WINDOWS, PLANNED_BYTES, PLANNED_WINDOWS,
};
use crate::pipeline::PipelineError;
use crate::pipeline::fetch::Extent;
use crate::pipeline::stream::BlobPlace;
use crate::repo::index::BlobRow;

/// A window of a stream is opened as one piece of work: at most this many blobs, and about this many bytes.
pub(super) const WINDOW_BLOBS: usize = 2;
pub(super) const WINDOW_BYTES: usize = 2 << 20;

/// Gathers entries into windows.
pub(super) struct Planner<'r> {
    reader: &'r Reader,
    kind: BlobKind,
    window: Vec<Part>,
    blobs: Vec<Arc<BlobRow>>,
    bytes: usize,
}

impl<'r> Planner<'r> {
    pub(super) fn new(reader: &'r Reader, kind: BlobKind) -> Self {
        Self { reader, kind, window: Vec::new(), blobs: Vec::new(), bytes: 0 }
    }

    /// Adds an entry; returns the window before it if that is full.
    pub(super) fn add(&mut self, entry: ChunkEntry) -> Result<Option<Vec<Part>>, PipelineError> {
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

    pub(super) fn rest(&mut self) -> Vec<Part> {
        self.blobs.clear();
        self.bytes = 0;
        std::mem::take(&mut self.window)
    }
}

/// A window of a stream that will be opened, as the plan knows it: until this is dropped, what it will ask for is kept.
pub(super) struct Window<'r> {
    reader: &'r Reader,
    pub(super) number: u64,
    pub(super) parts: Vec<Part>,
    /// The blobs that it asks for, and those that these rest on, with their sizes as stored.
    blobs: Vec<(BlobPlace, u32)>,
}

impl<'r> Window<'r> {
    fn new(reader: &'r Reader, parts: Vec<Part>) -> Self {
        let number = reader.kept().next_window();
        let mut window = Self { reader, number, parts: Vec::new(), blobs: Vec::new() };
        window.need(&parts);
        window.parts = parts;
        window
    }

    fn need(&mut self, parts: &[Part]) {
        for part in parts {
            if self.reader.kept().plan(self.number, part) {
                self.blobs.push((part.blob.place(), part.blob.stored));
                self.need(&self.reader.foreseen_bases(&part.blob));
            }
        }
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.blob.bytes_of(&part.positions)).sum()
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let places: Vec<BlobPlace> = self.blobs.iter().map(|(place, _)| *place).collect();
        let unwanted = self.reader.kept().end_window(self.number, &places);
        unwanted.into_iter().for_each(|plaintext| self.reader.give_back(plaintext));
    }
}

/// Windows that are known long before they are opened, so that what they will ask for is kept.
pub(super) struct Foreseen<'r> {
    reader: &'r Reader,
    windows: VecDeque<Window<'r>>,
    bytes: usize,
    /// Up to this many: few in the beginning, so that nobody waits for a plan to be made before there is anything to do.
    bytes_max: usize,
}

impl<'r> Foreseen<'r> {
    pub(super) fn new(reader: &'r Reader) -> Self {
        Self { reader, windows: VecDeque::new(), bytes: 0, bytes_max: FORESEEN_BYTES_FIRST }
    }

    pub(super) fn push(&mut self, parts: Vec<Part>) {
        let window = Window::new(self.reader, parts);
        self.bytes += window.bytes();
        self.windows.push_back(window);
    }

    /// Adds a window; returns those that need not wait any longer.
    pub(super) fn add(&mut self, parts: Vec<Part>) -> Vec<Window<'r>> {
        self.push(parts);
        let mut nearest = Vec::new();
        while (self.bytes > self.bytes_max
            || self.windows.len() > FORESEEN_WINDOWS
            || self.reader.kept().entries_planned() > FORESEEN_ENTRIES)
            && let Some(window) = self.windows.pop_front()
        {
            self.bytes -= window.bytes();
            self.bytes_max = (self.bytes_max + FORESEEN_GROWTH * window.bytes()).min(FORESEEN_BYTES);
            nearest.push(window);
        }
        nearest
    }

    pub(super) fn into_rest(self) -> impl Iterator<Item = Window<'r>> {
        self.windows.into_iter()
    }
}

/// Windows that ask for the same blobs, or rest on the same ones: opened side by side, each would wait for the other.
pub(super) struct Neighbours<'r> {
    windows: Vec<Window<'r>>,
    rest_on: Neighbourhood,
}

impl<'r> Neighbours<'r> {
    pub(super) fn new(reader: &Reader) -> Self {
        let stored_max = if reader.fetcher.is_far() { NEIGHBOUR_BYTES_STORED } else { usize::MAX };
        Self { windows: Vec::new(), rest_on: Neighbourhood::new(stored_max) }
    }

    /// Adds a window; returns those before it if it is none of them, or if they are enough.
    pub(super) fn add(&mut self, window: Window<'r>) -> Option<Vec<Window<'r>>> {
        let is_one = self.rest_on.take_in(&window.blobs, window.bytes());
        let before = (!is_one).then(|| self.rest());
        if before.is_some() {
            self.rest_on.take_in(&window.blobs, window.bytes());
        }
        self.windows.push(window);
        before
    }

    pub(super) fn rest(&mut self) -> Vec<Window<'r>> {
        self.rest_on = Neighbourhood::new(self.rest_on.stored_max);
        std::mem::take(&mut self.windows)
    }
}

/// What neighbours ask for. Pure.
struct Neighbourhood {
    stored_max: usize,
    windows: usize,
    blobs: HashSet<BlobPlace>,
    bytes: usize,
    stored: usize,
}

impl Neighbourhood {
    fn new(stored_max: usize) -> Self {
        Self { stored_max, windows: 0, blobs: HashSet::new(), bytes: 0, stored: 0 }
    }

    /// Takes in a window of so many bytes that leads to `blobs`, unless it shares none of them, or there is no room.
    fn take_in(&mut self, blobs: &[(BlobPlace, u32)], bytes: usize) -> bool {
        let is_one = blobs.iter().any(|(place, _)| self.blobs.contains(place));
        let more = blobs.iter().filter(|(place, _)| !self.blobs.contains(place));
        let stored = self.stored + more.map(|(_, stored)| *stored as usize).sum::<usize>();
        let has_room =
            self.windows < NEIGHBOUR_WINDOWS && self.bytes + bytes <= NEIGHBOUR_BYTES && stored <= self.stored_max;
        if self.windows > 0 && !(is_one && has_room) {
            return false;
        }
        (self.windows, self.bytes, self.stored) = (self.windows + 1, self.bytes + bytes, stored);
        self.blobs.extend(blobs.iter().map(|(place, _)| *place));
        true
    }
}

/// Windows whose blobs, and all that these rest on, are fetched before anybody opens them. Each is held back until those after it
/// have been announced. Of a store that is near nothing is fetched beforehand.
pub(super) struct Planned<'r, 'a> {
    pub(super) reader: &'r Reader,
    pub(super) ahead: &'a Sender<Extent>,
    pub(super) next: Batch<'r>,
    pub(super) announced: Batch<'r>,
}

/// Windows that are announced together.
#[derive(Default)]
pub(super) struct Batch<'r> {
    windows: Vec<Window<'r>>,
    extents: Vec<Extent>,
    blobs: HashSet<BlobPlace>,
    bytes: usize,
}

impl<'r> Planned<'r, '_> {
    /// Adds a window; returns those that may be opened now.
    pub(super) fn add(&mut self, window: Window<'r>) -> Vec<Window<'r>> {
        if !self.reader.fetcher.is_far() {
            return vec![window];
        }
        for part in &window.parts {
            self.need(&part.blob);
        }
        self.next.windows.push(window);
        let is_full = self.next.bytes >= PLANNED_BYTES || self.next.windows.len() >= PLANNED_WINDOWS;
        if is_full { self.announce() } else { Vec::new() }
    }

    /// Announces what was added, and returns the windows that were announced before.
    pub(super) fn announce(&mut self) -> Vec<Window<'r>> {
        for piece in self.reader.fetcher.announce(std::mem::take(&mut self.next.extents)) {
            if let Err(unsent) = self.ahead.send(piece) {
                self.reader.fetcher.give_up(&unsent.0);
            }
        }
        std::mem::replace(&mut self.announced, std::mem::take(&mut self.next)).windows
    }

    /// Adds a blob and what it rests on. Whoever opens it says what cannot be found.
    fn need(&mut self, blob: &BlobRow) {
        let place = blob.place();
        if self.announced.blobs.contains(&place) || self.reader.kept().is_held(blob) || !self.next.blobs.insert(place) {
            return;
        }
        self.next.extents.push(Extent::of(blob));
        self.next.bytes += blob.stored as usize;
        for part in &*self.reader.foreseen_bases(blob) {
            self.need(&part.blob);
        }
    }
}

impl Reader {
    /// Where the bases of a blob lie, if the local index knows all of them: whoever opens it says what cannot be found.
    fn foreseen_bases(&self, blob: &BlobRow) -> Arc<[Part]> {
        if blob.contents.bases.is_empty() {
            return Arc::default();
        }
        if let Some(known) = self.kept().bases_of(blob) {
            return known;
        }
        let find = |base: &_| self.repo.index.find_base(base, blob.contents.depth, |_| true).ok_or(());
        let Ok(parts) = Part::runs(&blob.contents.bases, find) else { return Arc::default() };
        self.kept().set_bases(blob, parts.clone());
        parts
    }

    /// Fetches what the plan announces, as long as somebody is waiting for it.
    pub(super) fn fetch_pieces(&self, pieces: &Receiver<Extent>) {
        for piece in pieces {
            if self.progress.is_cancelled() {
                self.fetcher.give_up(&piece);
            } else if let Err(error) = self.fetcher.fetch(&piece) {
                // Whoever needs a blob of it asks again, and says what failed.
                tracing::debug!("read-ahead: {error}");
            }
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ObjectId;

    #[test]
    fn neighbours_share_blobs_and_are_not_too_many() {
        let blobs = |numbers: &[u32], stored: u32| -> Vec<(BlobPlace, u32)> {
            numbers.iter().map(|number| ((ObjectId([1; 32]), *number), stored)).collect()
        };
        let first = |bytes| Neighbourhood::new(5000).take_in(&blobs(&[1, 2], bytes), bytes as usize);
        assert!(first(NEIGHBOUR_BYTES as u32 * 2), "the first one, whatever it asks for");
        let mut known = Neighbourhood::new(5000);
        assert!(known.take_in(&blobs(&[1, 2], 1000), 4000) && known.take_in(&blobs(&[2, 3], 1000), 4000));
        assert_eq!((known.bytes, known.stored), (8000, 3000), "what is shared is stored once");
        assert!(!known.take_in(&blobs(&[4, 5], 1000), 4000), "it shares nothing");
        assert!(!known.take_in(&blobs(&[3], 0), NEIGHBOUR_BYTES - 7999), "too many bytes");
        assert!(!known.take_in(&blobs(&[3, 4], 2001), 1), "too many as stored");
        assert!((2..NEIGHBOUR_WINDOWS).all(|_| known.take_in(&blobs(&[3], 0), 1)));
        assert!(!known.take_in(&blobs(&[3], 0), 1), "too many");
    }
}
