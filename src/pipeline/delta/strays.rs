//! Chunks that are stored and stand nowhere near: where they stand in the earlier version the stream goes on, if what was between
//! is gone, or comes in another order.

use std::collections::VecDeque;

use super::rescan::{Passed, Way, remember};
use crate::format::manifest::ChunkEntry;

/// With so many strays, and nothing near between them, the earlier version is scanned for them.
const STRAYS_MIN: usize = 8;
/// So many of them must stand where the same drift leads.
const AGREE_MIN: u32 = 4;
/// Drifts that differ by no more than this are the same: between strays rows came and went.
const DRIFT_DIFFERS_MAX: u64 = 256 << 10;
/// Of one that stands at many places, as pages of zeros do, so many are looked at.
const HITS_MAX: usize = 16;

/// The last strays, and when to scan for them.
pub struct Strays {
    last: VecDeque<Passed>,
    /// Strays since a stored chunk was near.
    run: usize,
    /// So many it takes to scan. Twice as many after each scan in vain: what is stored may be another item's.
    wanted: usize,
}

/// A stray, by its place in `last`, and where it was found.
struct Hit {
    stray: usize,
    number: u64,
    start: u64,
    drift: i64,
}

impl Default for Strays {
    fn default() -> Self {
        Self { last: VecDeque::new(), run: 0, wanted: STRAYS_MIN }
    }
}

impl Strays {
    /// The stream is where its earlier version was thought to be.
    pub fn clear(&mut self) {
        self.last.clear();
        self.run = 0;
    }

    /// Notes a chunk that is stored and stands nowhere near. Says whether the earlier version is to be scanned.
    pub fn note(&mut self, stray: Passed) -> bool {
        // One that comes again and again says nothing.
        if self.last.iter().any(|last| last.entry == stray.entry) {
            return false;
        }
        remember(&mut self.last, STRAYS_MIN, stray);
        self.run += 1;
        self.run >= self.wanted
    }

    /// Finds where most of the last strays stand. `scan` calls with every chunk of the earlier version, in order.
    pub fn find(&mut self, scan: impl FnOnce(&mut dyn FnMut(ChunkEntry))) -> Option<Way> {
        let (mut number, mut start) = (0, 0u64);
        let mut hits: Vec<Hit> = Vec::new();
        let last = &self.last;
        scan(&mut |entry| {
            if let Some(stray) = last.iter().position(|stray| stray.entry == entry) {
                let drift = start.cast_signed() - last[stray].at.cast_signed();
                if hits.iter().filter(|hit| hit.stray == stray).count() < HITS_MAX {
                    hits.push(Hit { stray, number, start, drift });
                }
            }
            number += 1;
            start += u64::from(entry.bytes);
        });
        self.run = 0;
        let Some((number, start, drift)) = choose(&hits) else {
            self.wanted = self.wanted.saturating_mul(2);
            return None;
        };
        Some(Way { number, start, drift, last: std::mem::take(self).last })
    }
}

/// The place that most of the strays agree on: number and byte of the first chunk there, and the drift. `hits` are in the order
/// of the earlier version.
fn choose(hits: &[Hit]) -> Option<(u64, u64, i64)> {
    let near = |one: &Hit| {
        let drift = one.drift;
        hits.iter().filter(move |hit| hit.drift.abs_diff(drift) <= DRIFT_DIFFERS_MAX)
    };
    let agreeing = |one: &Hit| near(one).fold(0u64, |strays, hit| strays | 1 << hit.stray).count_ones();
    // Of places that agree as well, as copies of the same text do, the first.
    let best = hits.iter().rev().max_by_key(|hit| agreeing(hit)).filter(|best| agreeing(best) >= AGREE_MIN)?;
    let first = near(best).next()?;
    let last = near(best).max_by_key(|hit| hit.stray)?;
    Some((first.number, first.start, last.drift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    fn entry(number: u8) -> ChunkEntry {
        ChunkEntry { id: ChunkId([number; 32]), bytes: 1000 }
    }

    /// Where strays are found whose chunks follow each other from byte 100,000 on.
    fn find(strays: &[u8], earlier: &[u8]) -> Option<(u64, u64, i64)> {
        let mut noted = Strays::default();
        let last = (0..)
            .zip(strays)
            .map(|(at, number)| noted.note(Passed { entry: entry(*number), at: 100_000 + at * 1000, is_stored: true }));
        assert!(last.last().unwrap_or_default(), "it is time to scan");
        let way = noted.find(|each| earlier.iter().for_each(|number| each(entry(*number))));
        way.map(|way| (way.number, way.start, way.drift))
    }

    #[test]
    fn the_way_goes_on_where_most_strays_stand() {
        let strays = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(find(&strays, &[9, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]), Some((2, 2000, -98_000)));
        assert_eq!(find(&strays, &[9, 2, 3, 9, 9, 6, 7]), Some((1, 1000, -100_000)), "half of them do");
        assert_eq!(find(&strays, &[1, 2, 9, 8]), None, "three may be there by accident");
        let far = [0; 300];
        assert_eq!(
            find(&strays, &[&[2, 3, 4, 5][..], &far, &[2, 3, 4], &far, &strays].concat()),
            Some((607, 607_000, 507_000))
        );
        assert_eq!(find(&strays, &[&strays[..], &far, &strays].concat()), Some((0, 0, -100_000)), "of two the first");
        assert_eq!(
            find(&strays, &[&[1; 500][..], &strays].concat()),
            Some((501, 501_000, 400_000)),
            "the one stands everywhere"
        );
    }
}
