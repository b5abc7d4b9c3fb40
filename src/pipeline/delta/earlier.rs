//! The earlier version of an item, walked alongside the new one.
//!
//! Most cut points survive most changes, and those of both versions say where the stream is. A wrong guess costs bytes,
//! never correctness.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::guess::Guess;
use super::guessed::Attempt;
use super::lost::Lost;
use super::place::Place;
use super::rescan::{Budget, Passed, Way};
use super::strays::Strays;
use super::track::ASTRAY_BYTES;
use super::window::Window;
use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;

/// Entries handed over at once by the thread that walks the list.
const BATCH: usize = 256;
/// Of an earlier chunk that only touches the place, less than this is not worth having.
const OVERLAP_BYTES_MIN: u64 = 4 << 10;

/// Cut points that agree by accident do so for fewer chunks than these, or not to so many bytes: then guesses go on where they were.
const STEADY_CHUNKS: u32 = 8;
const STEADY_BYTES: u64 = 4 << 10;

/// Calls with each chunk of a list, in order, until that fails.
pub(super) type Walk =
    dyn Fn(&mut dyn FnMut(ChunkEntry) -> Result<(), PipelineError>) -> Result<(), PipelineError> + Send + Sync;

/// The earlier version of an item, walked alongside the new one.
pub struct Earlier {
    walk: Arc<Walk>,
    window: Window,
    place: Place,
    strays: Strays,
    lost: Lost,
    budget: Budget,
    guess: Arc<Guess>,
    /// For so many chunks it was certain that the stream is about so many bytes farther on in the earlier version.
    steady: (u32, i64),
    /// Where the last bases stand, if they are a guess.
    guessed: Option<Attempt>,
    /// The length of the largest chunks, which says nothing.
    chunk_bytes_max: u32,
}

impl Earlier {
    /// Walks `stream` on a thread of its own, which ends with this value.
    pub fn new(reader: Arc<Reader>, stream: StreamRef) -> Self {
        let chunk_bytes_max = reader.repo().config.chunker.max;
        Self::walked(list_of(reader, stream), chunk_bytes_max)
    }

    /// Walks a list, by threads of its own: once alongside the new version, and again where that goes on elsewhere.
    pub(super) fn walked(walk: Arc<Walk>, chunk_bytes_max: u32) -> Self {
        Self::walked_from(walk, chunk_bytes_max, Way::default())
    }

    /// The same, from where the stream goes on in the list.
    pub(super) fn walked_from(walk: Arc<Walk>, chunk_bytes_max: u32, way: Way) -> Self {
        let window = window(walk.clone(), &way);
        let (place, guess) = (Place::at(way.drift), Arc::new(Guess::new(way.drift)));
        let (strays, lost, budget, guessed, steady) = Default::default();
        let mut earlier = Self { walk, window, place, strays, lost, budget, guess, steady, guessed, chunk_bytes_max };
        earlier.pass(&way.last);
        earlier
    }

    /// If the last bases are a guess, where to tell whether they help, and where they stand.
    pub fn guess(&self) -> Option<(&Arc<Guess>, Attempt)> {
        self.guessed.map(|attempt| (&self.guess, attempt))
    }

    /// The list.
    pub(super) fn list(&self) -> &Walk {
        &*self.walk
    }

    /// Follows the new stream over a chunk at byte `at`; returns its bases, none if it is stored already.
    pub fn follow(&mut self, entry: &ChunkEntry, at: u64, is_stored: bool) -> Vec<ChunkEntry> {
        let passed = Passed { entry: *entry, at, is_stored };
        self.budget.follow();
        if self.place.is_lost() {
            self.place.suppose(self.guess.drift(at));
        }
        let there = self.step(&passed);
        let bases = if is_stored { Vec::new() } else { self.bases(there, &passed) };
        self.note_steady(&passed);
        if let Some(way) = self.find_way(passed) {
            self.go_on(way);
        }
        bases
    }

    /// Guesses set out from where cut points agree for long.
    fn note_steady(&mut self, passed: &Passed) {
        if !self.place.is_sure() {
            self.steady.0 = 0;
            return;
        }
        let ((chunks, last), drift) = (self.steady, self.place.drift());
        self.steady = (if last.abs_diff(drift) <= STEADY_BYTES { chunks + 1 } else { 0 }, drift);
        if self.is_steady() {
            self.guess.set_out(passed.end(), drift);
        }
    }

    fn is_steady(&self) -> bool {
        self.steady.0 >= STEADY_CHUNKS
    }

    /// Where the stream goes on, if the last chunks say that it does so elsewhere.
    fn find_way(&mut self, passed: Passed) -> Option<Way> {
        let is_lost = if self.place.is_sure() {
            self.lost.clear();
            false
        } else {
            // Where guesses follow it, cut points that lie as those of other places do so by accident.
            self.lost.note(passed) && self.place.is_lost() && self.guess.followed(passed.at).is_none()
        };
        let is_stray = if passed.is_stored && self.window.numbers(&passed.entry.id).next().is_some() {
            self.strays.clear();
            false
        } else {
            passed.is_stored && self.strays.note(passed)
        };
        if !(is_stray || is_lost) || !self.budget.is_left() {
            return None;
        }
        let (walk, budget) = (&*self.walk, &mut self.budget);
        if is_stray {
            self.strays.find(|each| scan(walk, budget, each))
        } else {
            self.lost.find(self.chunk_bytes_max, |each| scan(walk, budget, each))
        }
    }

    fn go_on(&mut self, way: Way) {
        tracing::debug!("a stream goes on elsewhere in its earlier version: from byte {} on", way.start);
        self.window = window(self.walk.clone(), &way);
        self.place = Place::at(way.drift);
        self.guess.set_out(way.last.back().map_or(0, Passed::end), way.drift);
        self.pass(&way.last);
    }

    /// Moves on over chunks that have passed already.
    fn pass(&mut self, last: &VecDeque<Passed>) {
        for passed in last {
            self.step(passed);
        }
    }

    /// Moves on over a chunk. Returns the numbers of the earlier ones that stand where it stands, if both its ends were found.
    fn step(&mut self, passed: &Passed) -> Option<RangeInclusive<u64>> {
        self.window.slide(self.place.expected(passed.at));
        let id = passed.is_stored.then_some(&passed.entry.id);
        self.place.follow(&self.window, id, passed.at, passed.entry.bytes)
    }

    /// How many bytes farther on byte `at` is by a guess, if that is better than what cut points say.
    fn guess_at(&self, at: u64) -> Option<i64> {
        if self.place.is_lost() {
            return Some(self.guess.drift(at));
        }
        self.guess.followed(at).filter(|drift| !self.is_steady() && drift.abs_diff(self.place.drift()) > ASTRAY_BYTES)
    }

    /// The earlier chunks that stand where a new chunk stands now, in order; often one, or none.
    fn bases(&mut self, there: Option<RangeInclusive<u64>>, passed: &Passed) -> Vec<ChunkEntry> {
        self.guessed = None;
        let guess = self.guess_at(passed.at);
        if let (Some(numbers), None) = (there, guess) {
            return numbers.filter_map(|number| self.window.get(number)).map(|known| known.entry).collect();
        }
        if guess.is_some() && !self.guess.spend(passed.entry.bytes) {
            return Vec::new();
        }
        let drift = guess.unwrap_or(self.place.drift());
        let [from, to] = [passed.at, passed.end()].map(|at| at.saturating_add_signed(drift));
        let touched = (self.window.first_ending_after(from)..).map_while(|number| self.window.get(number));
        let bases: Vec<_> = touched
            .take_while(|known| known.start < to)
            .filter(|known| known.end().min(to) - known.start.max(from) >= OVERLAP_BYTES_MIN)
            .collect();
        self.guessed = guess.zip(bases.first()).map(|(drift, base)| Attempt { drift, base: *base });
        bases.into_iter().map(|known| known.entry).collect()
    }
}

/// The chunk list of a stream.
pub(super) fn list_of(reader: Arc<Reader>, stream: StreamRef) -> Arc<Walk> {
    Arc::new(move |each: &mut dyn FnMut(ChunkEntry) -> Result<(), PipelineError>| {
        reader.walk(&stream, &mut |depth, entry| if depth == 0 { each(entry) } else { Ok(()) })
    })
}

/// Calls with each chunk of a list, as far as it can be read: if not to its end, never again.
fn scan(walk: &Walk, budget: &mut Budget, each: &mut dyn FnMut(ChunkEntry)) {
    let walked = walk(&mut |entry| {
        budget.spend();
        each(entry);
        Ok(())
    });
    if walked.is_err() {
        budget.end();
    }
    note_failure(walked);
}

fn window(walk: Arc<Walk>, way: &Way) -> Window {
    Window::new(batches(walk, way.number), way.number, way.start)
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
