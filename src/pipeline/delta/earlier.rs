//! The earlier version of an item, walked alongside the new one.
//!
//! Most cut points survive most changes, and those of both versions say where the stream is. A wrong guess costs bytes,
//! never correctness.

use std::sync::Arc;

use crossbeam_channel::bounded;

use super::place::Place;
use super::window::Window;
use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::id::ChunkId;
use crate::pipeline::read::Reader;

/// Entries handed over at once by the thread that walks the list.
const BATCH: usize = 256;
/// Of an earlier chunk that only touches the place, less than this is not worth having.
const OVERLAP_BYTES_MIN: u64 = 4 << 10;

/// The earlier version of an item, walked alongside the new one.
pub struct Earlier {
    pub(super) window: Window,
    pub(super) place: Place,
}

impl Earlier {
    /// Walks `stream` on a thread of its own, which ends with this value.
    pub fn new(reader: Arc<Reader>, stream: StreamRef) -> Self {
        let (send, batches) = bounded(2);
        std::thread::spawn(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let walked = reader.walk(&stream, &mut |depth, entry| {
                if depth == 0 {
                    batch.push(entry);
                    if batch.len() == BATCH && send.send(std::mem::take(&mut batch)).is_err() {
                        return Err(crate::progress::Cancelled.into());
                    }
                }
                Ok(())
            });
            // An earlier version that cannot be read costs its bases, not the backup.
            if let Err(error) = walked {
                tracing::debug!("no more bases for a stream: {error}");
            }
            let _ = send.send(batch);
        });
        Self { window: Window::new(batches), place: Place::default() }
    }

    /// Follows the new stream over a chunk at byte `at`; returns its bases, none if it is stored already.
    pub fn follow(&mut self, entry: &ChunkEntry, at: u64, is_stored: bool) -> Vec<ChunkEntry> {
        if is_stored {
            self.anchor(&entry.id, at, entry.bytes);
            return Vec::new();
        }
        self.bases(at, entry.bytes)
    }

    /// A chunk of the new stream, at byte `at`, is stored already.
    pub(super) fn anchor(&mut self, id: &ChunkId, at: u64, bytes: u32) {
        self.window.slide(self.place.expected(at));
        self.place.follow(&self.window, Some(id), at, bytes);
    }

    /// The earlier chunks that stand where a new chunk of `bytes` at byte `at` stands now, in order; often one, or none.
    pub(super) fn bases(&mut self, at: u64, bytes: u32) -> Vec<ChunkEntry> {
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
