//! Chunks that are new where nobody knows what they were: by the distances of their cut points, where the earlier version has
//! the same ones. So the place is found again behind a large table that was emptied, or has come, even if no chunk is as it was.

use std::collections::VecDeque;

use super::laid::lay;
use super::rescan::{Passed, Way, remember};
use crate::format::manifest::ChunkEntry;
use crate::limits::SIMILAR_FRONT_CHUNKS;

/// With so many, the earlier version is scanned for them.
const LOST_MIN: usize = 16;
/// Of a stream as long as its earlier version is, and all new, no more scans come than about this.
const SCANS_MAX: usize = 16;

/// The last chunks since the place was certain, and when to scan for them.
pub struct Lost {
    last: VecDeque<Passed>,
    /// New ones since the place was certain, or since they were looked for in vain.
    run: usize,
    /// So many it takes to scan. Half as many again after each scan in vain: what comes may be all new.
    wanted: usize,
}

impl Default for Lost {
    fn default() -> Self {
        Self { last: VecDeque::new(), run: 0, wanted: LOST_MIN }
    }
}

impl Lost {
    /// The place is certain.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Notes a chunk after which the place is not certain. Says whether the earlier version is to be scanned.
    pub fn note(&mut self, passed: Passed) -> bool {
        remember(&mut self.last, SIMILAR_FRONT_CHUNKS, passed);
        self.run += usize::from(!passed.is_stored);
        !passed.is_stored && self.run >= self.wanted
    }

    /// Finds where the last ones stand. `scan` calls with every chunk of the earlier version, in order; those of
    /// `bytes_max` say nothing.
    pub fn find(&mut self, bytes_max: u32, scan: impl FnOnce(&mut dyn FnMut(ChunkEntry))) -> Option<Way> {
        // A stored chunk stands somewhere as it is: a copy, perhaps, of what the stream does not go on with.
        let says = |passed: &Passed| if passed.is_stored { bytes_max } else { passed.entry.bytes };
        let last = self.last.iter().map(|passed| ChunkEntry { bytes: says(passed), ..passed.entry });
        let laid = lay(last.collect(), bytes_max, scan);
        if !laid.is_sure() {
            self.run = 0;
            self.wanted = (self.wanted + self.wanted / 2).min(laid.count / SCANS_MAX).max(LOST_MIN);
            return None;
        }
        laid.way(std::mem::take(self).last)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Numbers, entries, lengths, scattered};
    use super::*;

    const CHUNK_BYTES_MAX: u32 = 256 << 10;

    /// What is found of chunks of these lengths, which follow each other from byte 1,000,000 on, and how many it took to scan.
    fn find(new: &[u64], earlier: &[u64]) -> Option<(Way, usize)> {
        let (mut lost, mut at) = (Lost::default(), 1_000_000);
        for (number, entry) in (1..).zip(entries(new)) {
            if lost.note(Passed { entry, at, is_stored: false }) {
                let found = lost.find(CHUNK_BYTES_MAX, |each| entries(earlier).into_iter().for_each(each));
                if let Some(way) = found {
                    return Some((way, number));
                }
            }
            at += u64::from(entry.bytes);
        }
        None
    }

    #[test]
    fn changed_chunks_are_found_wherever_they_stand() {
        for seed in 0..100 {
            let numbers = &mut Numbers(seed);
            let earlier = lengths(numbers, 3000);
            let from = 20 * usize::try_from(seed).unwrap();
            let of = &earlier[from..from + 200];
            let made: Vec<_> = scattered(of, numbers, 12, 400).iter().map(|made| made.bytes).collect();
            let (way, after) = find(&made, &earlier).expect("it is found");
            assert!(after <= 40, "after {after} chunks");
            assert!((from..from + 80).contains(&usize::try_from(way.number).unwrap()), "{way:?}");
            let start: u64 = earlier[..usize::try_from(way.number).unwrap()].iter().sum();
            assert_eq!(way.start, start);
            // Half a hundredth of what comes before has left.
            let truth = earlier[..from].iter().sum::<u64>().cast_signed() - 1_000_000;
            assert!(way.drift.abs_diff(truth) < 128 << 10, "{way:?}, {truth}");
            assert!(way.last.len() <= after);
        }
    }

    #[test]
    fn what_stands_nowhere_is_not_found() {
        for seed in 0..20 {
            let numbers = &mut Numbers(seed);
            let (new, earlier) = (lengths(numbers, 2000), lengths(numbers, 3000));
            assert!(find(&new, &earlier).is_none());
        }
        let full = vec![u64::from(CHUNK_BYTES_MAX); 100];
        assert!(find(&full, &full).is_none(), "lengths that repeat say nothing");
        assert!(find(&lengths(&mut Numbers(1), 100), &[]).is_none());
    }

    #[test]
    fn copies_of_what_is_stored_elsewhere_lead_nobody_astray() {
        let numbers = &mut Numbers(1);
        let (earlier, new) = (lengths(numbers, 3000), lengths(numbers, 40));
        let mut lost = Lost::default();
        let copied = entries(&earlier).into_iter().skip(1000).take(20).map(|entry| (entry, true));
        for (entry, is_stored) in copied.chain(entries(&new).into_iter().map(|entry| (entry, false))) {
            lost.note(Passed { entry, at: 0, is_stored });
        }
        assert!(lost.find(CHUNK_BYTES_MAX, |each| entries(&earlier).into_iter().for_each(each)).is_none());
    }

    #[test]
    fn stored_chunks_ask_for_nothing() {
        let mut lost = Lost::default();
        let stored = Passed { entry: entries(&[1000])[0], at: 0, is_stored: true };
        assert!((0..1000).all(|_| !lost.note(stored)));
        assert_eq!(lost.last.len(), SIMILAR_FRONT_CHUNKS);
    }
}
