//! Finds bases: the chunks of an item's earlier version that stand where a new chunk stands now.
//!
//! No sketches and no table of hashes: the earlier chunk list is walked alongside the stream. Chunks that are found again
//! are anchors; between anchors the lengths of chunks say where the stream is, as cut points survive most changes. So a
//! fresh machine finds the same bases as one with a full cache. A wrong guess costs bytes, never correctness.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::id::ChunkId;
use crate::limits::{EARLIER_CHUNKS_AHEAD, EARLIER_CHUNKS_BEHIND};
use crate::pipeline::read::Reader;

/// Entries handed over at once by the thread that walks the list.
const BATCH: usize = 256;
/// While the place is known, an earlier chunk can be the same one if it lies this many chunks from where it is expected and
/// its length differs by no more than one part in so many: rows change, and in the order of a heap they also leave.
const SEARCH_CHUNKS: u64 = 3;
const LENGTH_SHARE: u32 = 16;
/// One chunk away from the expected place counts like this much difference in length, in parts of 1,000.
const PLACE_COUNTS: u64 = 10;
/// The place is lost after this many chunks in a row that fit nowhere...
const MISSES_MAX: u32 = 4;
/// ...and found again where this many lengths in a row agree. Cut points survive most changes, and lengths are as good as
/// random: six that agree to 3 % in two thousand chunks are no accident.
const RUN_CHUNKS: usize = 6;
const RUN_LENGTH_SHARE: u32 = 32;
/// Of the lengths of a run so many must differ: chunks of the largest size say nothing.
const RUN_DISTINCT_MIN: usize = 4;
/// A chunk that is found again this close to where it was expected is an anchor; farther away it takes this many in a row.
const NEAR_BYTES: u64 = 4 << 20;
const JUMP_CHUNKS: u32 = 8;
/// Of an earlier chunk that only touches the place, less than this is not worth having.
const OVERLAP_BYTES_MIN: u64 = 4 << 10;

/// The chunks of the earlier version, walked alongside the new one.
pub struct Earlier {
    batches: Receiver<Vec<ChunkEntry>>,
    window: VecDeque<(ChunkEntry, u64)>,
    /// Number of the first chunk in `window`.
    first: u64,
    /// Where in the earlier version each chunk of the window stands: often once, and in order.
    numbers: HashMap<ChunkId, VecDeque<u64>>,
    /// Where the last known chunk ends.
    end: u64,
    at_end: bool,
    /// Place in the earlier version minus place in the new one.
    drift: i64,
    /// The last chunk that was found again far from where it was expected, and how many in a row led up to it.
    far_last: Option<u64>,
    far_run: u32,
    /// Lengths of the last chunks of the new stream, and how many in a row fitted nowhere.
    recent: VecDeque<u32>,
    misses: u32,
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
        Self {
            batches,
            window: VecDeque::new(),
            first: 0,
            numbers: HashMap::new(),
            end: 0,
            at_end: false,
            drift: 0,
            far_last: None,
            far_run: 0,
            recent: VecDeque::new(),
            misses: 0,
        }
    }

    /// A chunk of the new stream, at byte `at`, is stored already: if the earlier version has it too, this is an anchor.
    pub fn anchor(&mut self, id: &ChunkId, at: u64, bytes: u32) {
        self.slide(at);
        self.remember(bytes);
        let expected = self.expected(at);
        let places = self.numbers.get(id).into_iter().flatten();
        let known = places.filter_map(|number| Some((*number, self.known(*number)?.1)));
        let Some((number, start)) = known.min_by_key(|(_, start)| start.abs_diff(expected)) else { return };
        let far = start.abs_diff(expected) > NEAR_BYTES;
        // The same content may stand in several places: only a run of chunks found again in order is a jump.
        self.far_run = match (far, self.far_last) {
            (true, Some(last)) if number == last + 1 => self.far_run + 1,
            _ => 0,
        };
        self.far_last = far.then_some(number);
        if !far || self.far_run >= JUMP_CHUNKS {
            self.misses = 0;
            self.drift = start.cast_signed() - at.cast_signed();
        }
    }

    /// The earlier chunks that stand where a new chunk of `bytes` at byte `at` stands now, in order; often one, or none.
    pub fn bases(&mut self, at: u64, bytes: u32) -> Vec<ChunkEntry> {
        self.slide(at);
        self.remember(bytes);
        let found = if self.misses <= MISSES_MAX { self.same_place(at, bytes) } else { None };
        if let Some((entry, start)) = found.or_else(|| self.same_run(at)) {
            self.misses = 0;
            self.drift = start.cast_signed() - at.cast_signed();
            return vec![entry];
        }
        self.misses = self.misses.saturating_add(1);
        if self.misses > MISSES_MAX {
            return Vec::new();
        }
        let (from, to) = (self.expected(at), self.expected(at + u64::from(bytes)));
        let begin = self.window.partition_point(|(entry, start)| start + u64::from(entry.bytes) <= from);
        let overlap = |entry: &ChunkEntry, start: u64| (start + u64::from(entry.bytes)).min(to) - start.max(from);
        self.window
            .range(begin..)
            .take_while(|(_, start)| *start < to)
            .filter(|(entry, start)| overlap(entry, *start) >= OVERLAP_BYTES_MIN)
            .map(|(entry, _)| *entry)
            .collect()
    }

    fn remember(&mut self, bytes: u32) {
        if self.recent.len() == RUN_CHUNKS {
            self.recent.pop_front();
        }
        self.recent.push_back(bytes);
    }

    /// The chunk at the end of a run of lengths like the last ones of the stream, the nearest such to the expected place.
    fn same_run(&self, at: u64) -> Option<(ChunkEntry, u64)> {
        let distinct: HashSet<_> = self.recent.iter().collect();
        if self.recent.len() < RUN_CHUNKS || distinct.len() < RUN_DISTINCT_MIN {
            return None;
        }
        let agrees = |last: &usize| {
            let run = self.window.range(last + 1 - RUN_CHUNKS..=*last);
            run.zip(&self.recent).all(|((entry, _), bytes)| entry.bytes.abs_diff(*bytes) <= bytes / RUN_LENGTH_SHARE)
        };
        (RUN_CHUNKS - 1..self.window.len())
            .filter(agrees)
            .map(|last| self.window[last])
            .min_by_key(|(_, start)| start.abs_diff(self.expected(at)))
    }

    /// The chunk that best fits in place and length, if one fits at all.
    fn same_place(&self, at: u64, bytes: u32) -> Option<(ChunkEntry, u64)> {
        let middle = self.expected(at) + u64::from(bytes / 2);
        let expected = self.window.partition_point(|(entry, start)| start + u64::from(entry.bytes) <= middle) as u64;
        let difference = |entry: &ChunkEntry| entry.bytes.abs_diff(bytes);
        let score = |place: u64, entry: &ChunkEntry| {
            place.abs_diff(expected) * PLACE_COUNTS + u64::from(difference(entry)) * 1000 / u64::from(bytes)
        };
        (expected.saturating_sub(SEARCH_CHUNKS)..=expected + SEARCH_CHUNKS)
            .filter_map(|place| Some((place, *self.window.get(usize::try_from(place).ok()?)?)))
            .filter(|(_, (entry, _))| difference(entry) <= bytes / LENGTH_SHARE)
            .min_by_key(|(place, (entry, _))| score(*place, entry))
            .map(|(_, found)| found)
    }

    fn expected(&self, at: u64) -> u64 {
        at.saturating_add_signed(self.drift)
    }

    fn known(&self, number: u64) -> Option<(ChunkEntry, u64)> {
        self.window.get(usize::try_from(number.checked_sub(self.first)?).ok()?).copied()
    }

    /// Keeps the window around the expected place: so many chunks behind it, so many ahead.
    fn slide(&mut self, at: u64) {
        let place = self.expected(at);
        loop {
            let here = self.window.partition_point(|(entry, start)| start + u64::from(entry.bytes) <= place);
            for _ in EARLIER_CHUNKS_BEHIND..here {
                let (entry, _) = self.window.pop_front().expect("here is within the window");
                if let Entry::Occupied(mut places) = self.numbers.entry(entry.id) {
                    places.get_mut().pop_front();
                    if places.get().is_empty() {
                        places.remove();
                    }
                }
                self.first += 1;
            }
            let here = here.min(EARLIER_CHUNKS_BEHIND);
            if self.at_end || self.window.len() >= here + EARLIER_CHUNKS_AHEAD {
                return;
            }
            match self.batches.recv() {
                Ok(batch) if !batch.is_empty() => batch.into_iter().for_each(|entry| self.learn(entry)),
                _ => self.at_end = true,
            }
        }
    }

    fn learn(&mut self, entry: ChunkEntry) {
        let number = self.first + self.window.len() as u64;
        self.numbers.entry(entry.id).or_default().push_back(number);
        self.window.push_back((entry, self.end));
        self.end += u64::from(entry.bytes);
    }
}
