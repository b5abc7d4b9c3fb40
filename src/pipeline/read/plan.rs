//! What is read next: windows of a stream, and what a far store is asked for beforehand.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::Reader;
use super::parts::Part;
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::limits::{PLANNED_BYTES, PLANNED_WINDOWS};
use crate::pipeline::PipelineError;
use crate::pipeline::fetch::Extent;
use crate::pipeline::stream::BlobPlace;
use crate::repo::index::BlobRow;

/// A window of a stream is opened as one piece of work: at most this many blobs, and about this many bytes.
pub(super) const WINDOW_BLOBS: usize = 4;
pub(super) const WINDOW_BYTES: usize = 4 << 20;

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

/// Windows whose blobs, and all that these rest on, are fetched before anybody opens them. Each is held back until those after it
/// have been announced. Of a store that is near nothing is fetched beforehand.
pub(super) struct Planned<'r> {
    pub(super) reader: &'r Reader,
    pub(super) ahead: &'r Sender<Extent>,
    pub(super) next: Batch,
    pub(super) announced: Batch,
}

/// Windows that are announced together.
#[derive(Default)]
pub(super) struct Batch {
    windows: Vec<Vec<Part>>,
    extents: Vec<Extent>,
    blobs: HashSet<BlobPlace>,
    bytes: usize,
}

impl Planned<'_> {
    /// Adds a window; returns those that may be opened now.
    pub(super) fn add(&mut self, window: Vec<Part>) -> Vec<Vec<Part>> {
        if !self.reader.fetcher.is_far() {
            return vec![window];
        }
        for part in &window {
            self.need(&part.blob);
        }
        self.next.windows.push(window);
        let is_full = self.next.bytes >= PLANNED_BYTES || self.next.windows.len() >= PLANNED_WINDOWS;
        if is_full { self.announce() } else { Vec::new() }
    }

    /// Announces what was added, and returns the windows that were announced before.
    pub(super) fn announce(&mut self) -> Vec<Vec<Part>> {
        for piece in self.reader.fetcher.announce(std::mem::take(&mut self.next.extents)) {
            if let Err(unsent) = self.ahead.send(piece) {
                self.reader.fetcher.give_up(&unsent.0);
            }
        }
        std::mem::replace(&mut self.announced, std::mem::take(&mut self.next)).windows
    }

    /// Adds a blob and what it rests on. Whoever opens it says what cannot be found.
    fn need(&mut self, blob: &BlobRow) {
        let place = (blob.pack, blob.offset);
        if self.announced.blobs.contains(&place) || self.reader.is_opened(blob) || !self.next.blobs.insert(place) {
            return;
        }
        self.next.extents.push(Extent::of(blob));
        self.next.bytes += blob.stored as usize;
        let mut last: Option<Part> = None;
        for base in &blob.contents.bases {
            if !last.as_mut().is_some_and(|part| part.extend(base)) {
                last = self.reader.repo.index.find_base(base, blob.contents.depth, |_| true).map(Part::from);
                if let Some(part) = &last {
                    self.need(&part.blob);
                }
            }
        }
    }
}

impl Reader {
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
