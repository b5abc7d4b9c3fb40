//! The part of an earlier chunk list that is known at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crossbeam_channel::Receiver;

use super::distances::Distances;
use super::place::STEPS_MAX;
use crate::format::manifest::ChunkEntry;
use crate::id::ChunkId;
use crate::limits::{EARLIER_CHUNKS_AHEAD, EARLIER_CHUNKS_BEHIND};

/// For each chunk of the new stream the window moves on by no more chunks than this: who strays far ahead for a while
/// finds the way back.
const CHUNKS_A_SLIDE: usize = 4;

/// A chunk of the earlier version and the byte at which it starts there.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub entry: ChunkEntry,
    pub start: u64,
}

impl Known {
    /// The byte at which it ends.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.entry.bytes)
    }
}

/// Chunks around a place, numbered from the beginning of the earlier version.
pub struct Window {
    batches: Receiver<Vec<ChunkEntry>>,
    chunks: VecDeque<Known>,
    /// Number of the first chunk in `chunks`.
    first: u64,
    /// Numbers of each chunk of the window: often one, and in order.
    numbers: HashMap<ChunkId, VecDeque<u64>>,
    /// Those of its cut points, by how many others are between two.
    distances: [Distances; STEPS_MAX],
    /// Where the last known chunk ends.
    end: u64,
    at_end: bool,
}

impl Window {
    /// The first chunk to come has the number `first` and starts at byte `start`. An empty batch, or a closed channel, is the end
    /// of the list.
    pub fn new(batches: Receiver<Vec<ChunkEntry>>, first: u64, start: u64) -> Self {
        let (chunks, numbers, distances) = Default::default();
        Self { batches, chunks, first, numbers, distances, end: start, at_end: false }
    }

    /// The chunk of a number, if it is in the window.
    pub fn get(&self, number: u64) -> Option<Known> {
        self.chunks.get(usize::try_from(number.checked_sub(self.first)?).ok()?).copied()
    }

    /// All chunks, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Known)> {
        (self.first..).zip(&self.chunks)
    }

    /// Where a chunk stands, as far as the window goes.
    pub fn numbers(&self, id: &ChunkId) -> impl Iterator<Item = u64> {
        self.numbers.get(id).into_iter().flatten().copied()
    }

    /// The number of the first chunk that ends after `byte`; that of the next one to come if none does.
    pub fn first_ending_after(&self, byte: u64) -> u64 {
        self.first + self.chunks.partition_point(|known| known.end() <= byte) as u64
    }

    /// The distances of its cut points that have so many others between them, fewer than `STEPS_MAX`.
    pub fn distances(&self, between: usize) -> &Distances {
        &self.distances[between]
    }

    /// Moves on towards `byte`: so many chunks stay behind it, so many are known ahead.
    pub fn slide(&mut self, byte: u64) {
        let passed = self.chunks.partition_point(|known| known.end() <= byte);
        for _ in 0..passed.saturating_sub(EARLIER_CHUNKS_BEHIND).min(CHUNKS_A_SLIDE) {
            self.forget_first();
        }
        while !self.at_end && self.chunks.len() < passed.min(EARLIER_CHUNKS_BEHIND) + EARLIER_CHUNKS_AHEAD {
            match self.batches.recv() {
                Ok(batch) if !batch.is_empty() => batch.into_iter().for_each(|entry| self.learn(entry)),
                _ => self.at_end = true,
            }
        }
    }

    fn forget_first(&mut self) {
        let Some(known) = self.chunks.front().copied() else { return };
        for (distances, later) in self.distances.iter_mut().zip(&self.chunks) {
            distances.remove(later.end() - known.start);
        }
        self.chunks.pop_front();
        self.first += 1;
        if let Entry::Occupied(mut numbers) = self.numbers.entry(known.entry.id) {
            numbers.get_mut().pop_front();
            if numbers.get().is_empty() {
                numbers.remove();
            }
        }
    }

    fn learn(&mut self, entry: ChunkEntry) {
        let number = self.first + self.chunks.len() as u64;
        self.numbers.entry(entry.id).or_default().push_back(number);
        self.chunks.push_back(Known { entry, start: self.end });
        self.end += u64::from(entry.bytes);
        for (distances, earlier) in self.distances.iter_mut().zip(self.chunks.iter().rev()) {
            distances.add(self.end - earlier.start);
        }
    }
}
