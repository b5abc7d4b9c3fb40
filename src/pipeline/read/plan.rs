//! What is read next: windows of a stream, and what a far store is asked for beforehand.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Reader;
use super::parts::Part;
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::limits::{FORESEEN_BYTES, FORESEEN_ENTRIES, FORESEEN_WINDOWS, PLANNED_BYTES, PLANNED_WINDOWS};
use crate::pipeline::PipelineError;
use crate::pipeline::fetch::Extent;
use crate::pipeline::stream::BlobPlace;
use crate::repo::index::BlobRow;

/// A window of a stream is opened as one piece of work: at most this many blobs, and about this many bytes.
pub(super) const WINDOW_BLOBS: usize = 2;
pub(super) const WINDOW_BYTES: usize = 2 << 20;

/// Windows that ask for the same blobs are opened by one opener, one after the other: at most so many, and so many bytes.
pub(super) const NEIGHBOURS: usize = 16;
const NEIGHBOURS_BYTES: usize = 8 << 20;

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
    /// The blobs that it asks for, and those that these rest on.
    places: Vec<BlobPlace>,
}

impl<'r> Window<'r> {
    fn new(reader: &'r Reader, parts: Vec<Part>) -> Self {
        let number = reader.kept().next_window();
        let mut window = Self { reader, number, parts: Vec::new(), places: Vec::new() };
        window.need(&parts);
        window.parts = parts;
        window
    }

    fn need(&mut self, parts: &[Part]) {
        for part in parts {
            if self.reader.kept().plan(self.number, part) {
                self.places.push(part.blob.place());
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
        let unwanted = self.reader.kept().end_window(self.number, &self.places);
        unwanted.into_iter().for_each(|plaintext| self.reader.give_back(plaintext));
    }
}

/// Windows that are known long before they are opened, so that what they will ask for is kept.
pub(super) struct Foreseen<'r> {
    reader: &'r Reader,
    windows: VecDeque<Window<'r>>,
    bytes: usize,
}

impl<'r> Foreseen<'r> {
    pub(super) fn new(reader: &'r Reader) -> Self {
        Self { reader, windows: VecDeque::new(), bytes: 0 }
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
        while (self.bytes > FORESEEN_BYTES
            || self.windows.len() > FORESEEN_WINDOWS
            || self.reader.kept().entries_planned() > FORESEEN_ENTRIES)
            && let Some(window) = self.windows.pop_front()
        {
            self.bytes -= window.bytes();
            nearest.push(window);
        }
        nearest
    }

    pub(super) fn into_rest(self) -> impl Iterator<Item = Window<'r>> {
        self.windows.into_iter()
    }
}

/// Windows that ask for the same blobs, or rest on the same ones: opened side by side, each would wait for the other.
#[derive(Default)]
pub(super) struct Neighbours<'r> {
    windows: Vec<Window<'r>>,
    blobs: HashSet<BlobPlace>,
    bytes: usize,
}

impl<'r> Neighbours<'r> {
    /// Adds a window; returns those before it if it is none of them, or if they are enough.
    pub(super) fn add(&mut self, window: Window<'r>) -> Option<Vec<Window<'r>>> {
        let is_one = window.places.iter().any(|place| self.blobs.contains(place));
        let has_room = self.bytes + window.bytes() <= NEIGHBOURS_BYTES && self.windows.len() < NEIGHBOURS;
        let before = if self.windows.is_empty() || is_one && has_room { None } else { Some(self.rest()) };
        self.bytes += window.bytes();
        self.blobs.extend(&window.places);
        self.windows.push(window);
        before
    }

    pub(super) fn rest(&mut self) -> Vec<Window<'r>> {
        std::mem::take(self).windows
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
