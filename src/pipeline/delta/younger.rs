//! Items that changed later than one's own earlier version did. A dump that is named by the day of the week was last written a
//! week ago under its name, and yesterday under another: that one is nearer.
//!
//! What is nearer agrees better with the last cut points: chunks that are as they were yesterday have other lengths than a week
//! ago. How much better differs from place to place, so it is summed up over some.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::earlier::{Earlier, Walk};
use super::laid::{Laid, lay};
use super::rescan::Passed;
use crate::format::manifest::ChunkEntry;
use crate::limits::EARLIER_CHUNKS_AHEAD;
use crate::progress::Cancelled;

/// So many chunks are laid along all versions, each time after so many that were new, until so many times something was found.
const WINDOW: usize = 256;
const NEW_MIN: usize = 32;
const SAMPLES: RangeInclusive<usize> = 2..=8;
/// What is nearer by less than so many bits, or by less than an eighth, is so by accident: scores are of one chain each, and
/// chains break.
const NEARER_BITS_MIN: i32 = 256;

/// Bases are looked for in one's own earlier version, until a younger item is known to be nearer.
pub struct Younger {
    own: Earlier,
    /// The last ones first.
    others: Vec<Arc<Walk>>,
    /// How well all agreed so far, in bits, one's own first; and how often one of the others did.
    scores: Vec<i32>,
    samples: usize,
    last: VecDeque<Passed>,
    /// Chunks so far, and the new ones of them since the others were looked at.
    passed: usize,
    new: usize,
    /// So many new ones it takes to look again: half as many more after no other was found.
    wanted: usize,
}

impl Younger {
    /// `others` are lists of younger items, the last ones first.
    pub(super) fn new(own: Earlier, others: Vec<Arc<Walk>>) -> Self {
        let scores = vec![0; 1 + others.len()];
        let (last, wanted) = (VecDeque::new(), NEW_MIN);
        Self { own, others, scores, samples: 0, last, passed: 0, new: 0, wanted }
    }

    /// Follows the new stream over a chunk at byte `at`; returns its bases, none if it is stored already.
    pub fn follow(&mut self, entry: &ChunkEntry, at: u64, is_stored: bool) -> Vec<ChunkEntry> {
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(Passed { entry: *entry, at, is_stored });
        self.passed += 1;
        self.new += usize::from(!is_stored);
        self.own.follow(entry, at, is_stored)
    }

    /// The younger item to look for bases in from now on, once it is known to be nearer.
    pub fn decide(&mut self) -> Option<Earlier> {
        if self.new < self.wanted || self.samples == *SAMPLES.end() {
            return None;
        }
        self.new = 0;
        let laid: Vec<_> = self.others.iter().map(|list| self.lay(&**list)).collect();
        if !laid.iter().any(Laid::is_sure) {
            self.wanted += self.wanted / 2;
            return None;
        }
        let own = self.lay(self.own.list());
        for (sum, laid) in self.scores.iter_mut().zip([&own].into_iter().chain(&laid)) {
            *sum += laid.score;
        }
        self.samples += 1;
        if !SAMPLES.contains(&self.samples) {
            return None;
        }
        let nearer = choose(&self.scores).filter(|nearer| laid[*nearer].is_sure())?;
        let way = laid[nearer].way(std::mem::take(&mut self.last))?;
        tracing::debug!("a younger item is nearer to a stream than its own earlier version: {:?}", self.scores);
        Some(Earlier::walked_from(self.others[nearer].clone(), self.own.chunk_bytes_max(), way))
    }

    /// Lays the last chunks along a list, as far as the stream may have come in it.
    fn lay(&self, list: &Walk) -> Laid {
        let mut left = self.passed + EARLIER_CHUNKS_AHEAD;
        lay(self.last.iter().map(|passed| passed.entry).collect(), self.own.chunk_bytes_max(), |each| {
            // One that cannot be read agrees with nothing.
            let _ = list(&mut |entry| {
                each(entry);
                left -= 1;
                if left == 0 { Err(Cancelled.into()) } else { Ok(()) }
            });
        })
    }
}

/// The first of the others that agrees clearly better than one's own, whose score comes first, and about as well as any.
fn choose(scores: &[i32]) -> Option<usize> {
    let (own, others) = scores.split_first()?;
    let most = others.iter().max()?;
    let nearer_by = NEARER_BITS_MIN.max(own / 8);
    others.iter().position(|score| *score >= own + nearer_by && score * 4 >= most * 3)
}

#[cfg(test)]
mod tests {
    use super::super::earlier::Walk;
    use super::super::tests::{Numbers, entries, lengths, scattered};
    use super::*;

    const CHUNK_BYTES_MAX: u32 = 256 << 10;

    fn list(lengths: &[u64]) -> Arc<Walk> {
        let entries = entries(lengths);
        Arc::new(move |each: &mut dyn FnMut(ChunkEntry) -> _| entries.iter().try_for_each(|entry| each(*entry)))
    }

    /// What a day of changes everywhere makes of a version.
    fn next_day(version: &[u64], numbers: &mut Numbers) -> Vec<u64> {
        scattered(version, numbers, 40, 2000).iter().map(|made| made.bytes).collect()
    }

    /// After which chunk of `new` another than `own` is chosen.
    fn decided(own: &[u64], others: &[Vec<u64>], new: &[u64]) -> Option<usize> {
        let own = Earlier::walked(list(own), CHUNK_BYTES_MAX);
        let mut younger = Younger::new(own, others.iter().map(|other| list(other)).collect());
        let mut at = 0;
        entries(new).iter().position(|entry| {
            younger.follow(entry, at, false);
            at += u64::from(entry.bytes);
            younger.decide().is_some()
        })
    }

    #[test]
    fn the_version_of_yesterday_is_nearer_than_that_of_last_week() {
        let mut latest = 0;
        for seed in 0..40 {
            let numbers = &mut Numbers(seed);
            let mut days = vec![lengths(numbers, 3000)];
            for day in 0..7 {
                days.push(next_day(&days[day], numbers));
            }
            let others: Vec<_> = days[3..7].iter().rev().cloned().collect();
            latest = latest.max(decided(&days[0], &others, &days[7]).expect("one is chosen"));
            assert_eq!(decided(&days[6], &days[..1], &days[7]), None, "its own is nearest");
        }
        assert!(latest < 300, "{latest}");
    }

    #[test]
    fn what_has_nothing_in_common_is_not_nearer() {
        for seed in 0..40 {
            let numbers = &mut Numbers(seed);
            let [own, other] = [1000, 3000].map(|count| lengths(numbers, count));
            let new = next_day(&own, numbers);
            assert_eq!(decided(&own, std::slice::from_ref(&other), &new), None);
            assert_eq!(decided(&own, &[other], &lengths(numbers, 2000)), None, "the new one is like neither");
        }
        let full = vec![u64::from(CHUNK_BYTES_MAX); 1000];
        assert_eq!(decided(&[], std::slice::from_ref(&full), &full), None, "lengths that repeat say nothing");
    }

    #[test]
    fn the_last_of_those_that_are_about_as_near_is_chosen() {
        assert_eq!(choose(&[4000, 3600, 4510, 6100]), Some(2), "one of the others is much nearer");
        assert_eq!(choose(&[4000, 4510, 4500, 5900]), Some(0));
        assert_eq!(choose(&[4000, 4499, 3600]), None, "none is clearly nearer than one's own");
        assert_eq!(choose(&[1000, 1255]), None);
        assert_eq!(choose(&[0, 256]), Some(0));
    }
}
