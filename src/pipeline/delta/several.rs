//! Of several versions the one that is nearest to a stream, found while it passes.
//!
//! A dump that is named by the day of the week was last written a week ago under its name, and yesterday under another. One whose
//! name is new, and whose beginning is like none, may be a later version of what has a like name all the same.
//!
//! What is nearer agrees better with the last cut points: chunks that are as they were yesterday have other lengths than a week
//! ago. How much better differs from place to place, so it is summed up over some, none of which counts twice.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::earlier::{Earlier, Walk};
use super::guess::Guess;
use super::guessed::Attempt;
use super::laid::{Laid, lay};
use super::rescan::{Passed, remember};
use crate::format::manifest::ChunkEntry;
use crate::limits::EARLIER_CHUNKS_AHEAD;
use crate::progress::Cancelled;

/// So many chunks are laid along all versions, each time after so many that were new, until so many times something was found.
const WINDOW: usize = 256;
const NEW_MIN: usize = 32;
const SAMPLES_MAX: usize = 8;
/// Before that nothing is nearer than one's own.
const SAMPLES_MIN: usize = 2;
/// What is nearer by less than half as much again is so by accident: scores are of one chain each, and chains break. Of that half
/// these are the bounds, in bits, as long as it is an eighth.
const NEARER_BITS: RangeInclusive<i32> = 96..=256;

/// Bases are looked for in one's own earlier version, if there is one, until another item is known to be nearer.
pub struct Several {
    own: Option<Earlier>,
    /// The most likely first.
    others: Vec<Arc<Walk>>,
    chunk_bytes_max: u32,
    /// How well all agreed so far, in bits, one's own if there is one; and how often one of the others did.
    own_score: Option<i32>,
    scores: Vec<i32>,
    samples: usize,
    last: VecDeque<Passed>,
    /// Chunks so far, and the new ones of them since the others were looked at.
    passed: usize,
    new: usize,
    /// So many new ones it takes to look again: half as many more after no other was found.
    wanted: usize,
}

impl Several {
    /// `others` are the lists of other items, the most likely first; so many chunks have passed already.
    pub(super) fn new(own: Option<Earlier>, others: Vec<Arc<Walk>>, chunk_bytes_max: u32, passed: usize) -> Self {
        let scores = vec![0; others.len()];
        let (last, wanted) = (VecDeque::new(), NEW_MIN);
        Self { own, others, chunk_bytes_max, own_score: None, scores, samples: 0, last, passed, new: 0, wanted }
    }

    /// Follows the new stream over a chunk at byte `at`; returns its bases, none if it is stored already.
    pub fn follow(&mut self, entry: &ChunkEntry, at: u64, is_stored: bool) -> Vec<ChunkEntry> {
        remember(&mut self.last, WINDOW, Passed { entry: *entry, at, is_stored });
        self.passed += 1;
        self.new += usize::from(!is_stored);
        self.own.as_mut().map_or_else(Vec::new, |own| own.follow(entry, at, is_stored))
    }

    /// See [`Earlier::guess`].
    pub fn guess(&self) -> Option<(&Arc<Guess>, Attempt)> {
        self.own.as_ref().and_then(Earlier::guess)
    }

    /// The other item to look for bases in from now on, once it is known to be nearer.
    pub fn decide(&mut self) -> Option<Earlier> {
        if self.new < self.wanted || self.samples == SAMPLES_MAX {
            return None;
        }
        self.new = 0;
        let laid: Vec<_> = self.others.iter().map(|list| self.lay(&**list)).collect();
        if !laid.iter().any(Laid::is_sure) {
            self.wanted += self.wanted / 2;
            return None;
        }
        let own = self.own.as_ref().map(|own| self.lay(own.list()).score);
        self.own_score = own.map(|own| self.own_score.unwrap_or(0) + own);
        for (sum, laid) in self.scores.iter_mut().zip(&laid) {
            *sum += laid.score;
        }
        self.samples += 1;
        let last = std::mem::take(&mut self.last);
        if own.is_some() && self.samples < SAMPLES_MIN {
            return None;
        }
        let nearest = choose(self.own_score, &self.scores).filter(|nearest| laid[*nearest].is_sure())?;
        let way = laid[nearest].way(last)?;
        let (others, own) = (&self.scores, self.own_score);
        tracing::debug!(
            "a stream goes on in an item of another name: {others:?} bits, {own:?} in its own earlier version"
        );
        Some(Earlier::walked_from(self.others[nearest].clone(), self.chunk_bytes_max, way))
    }

    /// Lays the last chunks along a list, as far as the stream may have come in it.
    fn lay(&self, list: &Walk) -> Laid {
        let mut left = self.passed + EARLIER_CHUNKS_AHEAD;
        lay(self.last.iter().map(|passed| passed.entry).collect(), self.chunk_bytes_max, |each| {
            // One that cannot be read agrees with nothing.
            let _ = list(&mut |entry| {
                each(entry);
                left -= 1;
                if left == 0 { Err(Cancelled.into()) } else { Ok(()) }
            });
        })
    }
}

/// The first of the others that agrees clearly better than one's own, and about as well as any.
fn choose(own: Option<i32>, others: &[i32]) -> Option<usize> {
    let least = own.map_or(0, |own| own + (own / 2).clamp(*NEARER_BITS.start(), *NEARER_BITS.end()).max(own / 8));
    let most = others.iter().max()?;
    others.iter().position(|score| *score >= least && score * 4 >= most * 3)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::super::earlier::Walk;
    use super::super::tests::{Numbers, entries, lengths, scattered};
    use super::*;
    use crate::pipeline::PipelineError;

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
        decided_of(own, others.iter().map(|other| list(other)).collect(), new)
    }

    fn decided_of(own: &[u64], others: Vec<Arc<Walk>>, new: &[u64]) -> Option<usize> {
        let own = Earlier::walked(list(own), CHUNK_BYTES_MAX);
        let mut several = Several::new(Some(own), others, CHUNK_BYTES_MAX, 0);
        let mut at = 0;
        entries(new).iter().position(|entry| {
            several.follow(entry, at, false);
            at += u64::from(entry.bytes);
            several.decide().is_some()
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
    fn what_cannot_be_read_is_not_nearer_and_not_asked_for_again_and_again() {
        let numbers = &mut Numbers(1);
        let own = lengths(numbers, 3000);
        let (new, asked) = (next_day(&own, numbers), Arc::<AtomicUsize>::default());
        let count = asked.clone();
        let unreadable = move |_: &mut dyn FnMut(ChunkEntry) -> Result<(), PipelineError>| {
            count.fetch_add(1, Relaxed);
            Err(PipelineError::from(Cancelled))
        };
        assert_eq!(decided_of(&own, vec![Arc::new(unreadable)], &new), None);
        assert!((2..16).contains(&asked.load(Relaxed)), "{asked:?}");
    }

    #[test]
    fn the_last_of_those_that_are_about_as_near_is_chosen() {
        assert_eq!(choose(Some(4000), &[3600, 4510, 6100]), Some(2), "one of the others is much nearer");
        assert_eq!(choose(Some(4000), &[4510, 4500, 5900]), Some(0));
        assert_eq!(choose(Some(4000), &[4499, 3600]), None, "none is clearly nearer than one's own");
        assert_eq!(choose(Some(1000), &[1255]), None);
        assert_eq!(choose(Some(1000), &[1256]), Some(0));
        assert_eq!(choose(Some(300), &[449]), None);
        assert_eq!(choose(Some(300), &[450]), Some(0));
        assert_eq!(choose(Some(0), &[95]), None);
        assert_eq!(choose(Some(0), &[96]), Some(0));
        assert_eq!(choose(None, &[50, 70]), Some(1), "there is no own");
    }
}
