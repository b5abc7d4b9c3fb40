//! Passing over an earlier version once more, where the stream goes on elsewhere in it: what is asked, and how often that may be.

use std::collections::VecDeque;

use crate::format::manifest::ChunkEntry;
use crate::limits::{EARLIER_SCAN_FREE, EARLIER_SCANS_PER_CHUNK};

/// A chunk of the new version, at a byte.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    pub entry: ChunkEntry,
    pub at: u64,
    pub is_stored: bool,
}

impl Passed {
    /// The byte at which it ends.
    pub fn end(&self) -> u64 {
        self.at + u64::from(self.entry.bytes)
    }
}

/// Adds a chunk to the last ones, of which so many are remembered.
pub fn remember(last: &mut VecDeque<Passed>, most: usize, passed: Passed) {
    if last.len() == most {
        last.pop_front();
    }
    last.push_back(passed);
}

/// Where the stream goes on: to begin with, both are at their beginning.
#[derive(Debug, Default)]
pub struct Way {
    /// The first of the earlier chunks that is known there, and the byte at which it starts.
    pub number: u64,
    pub start: u64,
    /// Place in the earlier version minus place in the new one.
    pub drift: i64,
    /// The chunks of the new version that passed there already, in order.
    pub last: VecDeque<Passed>,
}

/// How much of the earlier version may be passed over: its chunks, and those of the new one so far.
#[derive(Default)]
pub struct Budget {
    followed: u64,
    scanned: u64,
}

impl Budget {
    /// A chunk of the new version has passed.
    pub fn follow(&mut self) {
        self.followed += 1;
    }

    /// Whether the earlier version may be passed over now.
    pub fn is_left(&self) -> bool {
        self.scanned <= EARLIER_SCAN_FREE + self.followed * EARLIER_SCANS_PER_CHUNK
    }

    /// A chunk of the earlier version was passed over.
    pub fn spend(&mut self) {
        self.scanned = self.scanned.saturating_add(1);
    }

    /// It cannot be passed over.
    pub fn end(&mut self) {
        self.scanned = u64::MAX;
    }
}
