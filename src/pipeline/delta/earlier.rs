//! The earlier version of an item, walked alongside the new one.
//!
//! Most cut points survive most changes, and those of both versions say where the stream is. A wrong guess costs bytes,
//! never correctness.

use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::place::Place;
use super::strays::{Stray, Strays, Way};
use super::window::Window;
use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::id::ChunkId;
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;

/// Entries handed over at once by the thread that walks the list.
const BATCH: usize = 256;
/// Of an earlier chunk that only touches the place, less than this is not worth having.
const OVERLAP_BYTES_MIN: u64 = 4 << 10;

/// Calls with each chunk of a list, in order, until that fails.
type Walk = dyn Fn(&mut dyn FnMut(ChunkEntry) -> Result<(), PipelineError>) -> Result<(), PipelineError> + Send + Sync;

/// The earlier version of an item, walked alongside the new one.
pub struct Earlier {
    walk: Arc<Walk>,
    window: Window,
    place: Place,
    strays: Strays,
}

impl Earlier {
    /// Walks `stream` on a thread of its own, which ends with this value.
    pub fn new(reader: Arc<Reader>, stream: StreamRef) -> Self {
        Self::walked(Arc::new(move |each| {
            reader.walk(&stream, &mut |depth, entry| if depth == 0 { each(entry) } else { Ok(()) })
        }))
    }

    /// Walks a list, by threads of its own: once alongside the new version, and again where that goes on elsewhere.
    pub(super) fn walked(walk: Arc<Walk>) -> Self {
        let window = Window::new(batches(walk.clone(), 0), 0, 0);
        Self { walk, window, place: Place::at(0), strays: Strays::default() }
    }

    /// Follows the new stream over a chunk at byte `at`; returns its bases, none if it is stored already.
    pub fn follow(&mut self, entry: &ChunkEntry, at: u64, is_stored: bool) -> Vec<ChunkEntry> {
        self.strays.follow();
        if !is_stored {
            return self.bases(at, entry.bytes);
        }
        self.anchor(&entry.id, at, entry.bytes);
        if self.window.numbers(&entry.id).next().is_some() {
            self.strays.clear();
        } else if self.strays.note(Stray { entry: *entry, at }) {
            self.find_way();
        }
        Vec::new()
    }

    /// Goes on where the last chunks stand that are stored, wherever that is.
    fn find_way(&mut self) {
        let walk = &self.walk;
        let found = self.strays.find(|each| {
            note_failure(walk(&mut |entry| {
                each(entry);
                Ok(())
            }));
        });
        let Some(Way { number, start, drift }) = found else { return };
        tracing::debug!("a stream goes on elsewhere in its earlier version: from byte {start} on");
        self.window = Window::new(batches(self.walk.clone(), number), number, start);
        self.place = Place::at(drift);
        for Stray { entry, at } in self.strays.take() {
            self.anchor(&entry.id, at, entry.bytes);
        }
    }

    /// A chunk of the new stream, at byte `at`, is stored already.
    fn anchor(&mut self, id: &ChunkId, at: u64, bytes: u32) {
        self.window.slide(self.place.expected(at));
        self.place.follow(&self.window, Some(id), at, bytes);
    }

    /// The earlier chunks that stand where a new chunk of `bytes` at byte `at` stands now, in order; often one, or none.
    fn bases(&mut self, at: u64, bytes: u32) -> Vec<ChunkEntry> {
        self.window.slide(self.place.expected(at));
        if let Some(numbers) = self.place.follow(&self.window, None, at, bytes) {
            return numbers.filter_map(|number| self.window.get(number)).map(|known| known.entry).collect();
        }
        if self.place.is_lost() {
            return Vec::new();
        }
        let (from, to) = (self.place.expected(at), self.place.expected(at + u64::from(bytes)));
        let touched = (self.window.first_ending_after(from)..).map_while(|number| self.window.get(number));
        touched
            .take_while(|known| known.start < to)
            .filter(|known| known.end().min(to) - known.start.max(from) >= OVERLAP_BYTES_MIN)
            .map(|known| known.entry)
            .collect()
    }
}

/// The chunks of a list from the one numbered `first` on, by a thread of its own, which ends with the receiver.
fn batches(walk: Arc<Walk>, first: u64) -> Receiver<Vec<ChunkEntry>> {
    let (send, batches) = bounded(2);
    std::thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        let mut number = 0;
        note_failure(walk(&mut |entry| {
            if number >= first {
                batch.push(entry);
            }
            number += 1;
            if batch.len() == BATCH && send.send(std::mem::take(&mut batch)).is_err() {
                return Err(crate::progress::Cancelled.into());
            }
            Ok(())
        }));
        let _ = send.send(batch);
    });
    batches
}

/// An earlier version that cannot be read costs its bases, not the backup.
fn note_failure(walked: Result<(), PipelineError>) {
    if let Err(error) = walked {
        tracing::debug!("no more bases for a stream: {error}");
    }
}
