//! Where a stream is in its earlier version, by the cut points of both.
//!
//! A change destroys or moves few cut points; the others keep their distances. So guesses "this cut point is that earlier
//! one" are chained, and each link is scored by how well the two distances agree, in bits: by how much likelier they agree
//! so well at the same place than by accident. As in the alignment of sequences (Smith and Waterman, J. Mol. Biol. 1981; the
//! chaining of Li, Bioinformatics 2018), scores fall below zero at wrong places and climb to their bound at the right one.
//! Evidence that would mislead counts less, or not: common distances agree by accident (`distances`); a jump counts the less
//! the farther it leads, as databases hold copies of the same text; and lengths that repeat, as those of chunks of the
//! largest size do, say nothing.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::window::Window;
use crate::id::ChunkId;

/// So many cut points of either version may be skipped between two that agree, less one, and what each that is skipped costs.
pub(super) const STEPS_MAX: usize = 3;
pub(super) const SKIP_COSTS: i32 = 2;
/// Guesses that are kept for a cut point.
const GUESSES_MAX: usize = 16;
/// Scores do not climb higher, so that a guess that was right for long is given up in time.
const SCORE_MAX: i32 = 48;
/// What a chunk that is found again counts more than one of the same length.
pub(super) const SAME_CHUNK: i32 = 8;
/// With less than this a guess is an accident.
const SCORE_MIN: i32 = 8;
/// Below this other places are looked for in the whole window.
const SCORE_SURE: i32 = 24;
/// There a chunk's length may differ by one part in so many.
const LENGTH_SHARE: u32 = 64;
/// Below this nobody knows where the stream is.
const TRUST_MIN: i32 = 6;
/// To begin with, both versions are at their beginning, or where chunks that are stored were found.
const TRUST_FIRST: i32 = 16;

/// A cut point of the new version is the end of an earlier chunk.
#[derive(Clone, Copy)]
struct Guess {
    /// The earlier chunk, and the byte at which it ends.
    number: u64,
    end: u64,
    /// In bits.
    score: i32,
    /// The first of the earlier chunks that stand where the new chunk that ends here stands: if the cut point before
    /// was found as well.
    since: Option<u64>,
}

/// The number of an earlier chunk, a score that may be too low or too high yet, and `since` of a guess.
type Candidate = (u64, i32, Option<u64>);

/// A cut point of the new version, at a byte.
struct CutPoint {
    at: u64,
    guesses: Vec<Guess>,
}

/// Where a stream is.
pub struct Place {
    /// Place in the earlier version minus place in the new one.
    drift: i64,
    /// How likely `drift` holds, in bits; each cut point that is not found costs some.
    trust: i32,
    /// The last cut points.
    recent: VecDeque<CutPoint>,
}

impl Place {
    /// `drift` bytes farther on in the earlier version than in the new one.
    pub fn at(drift: i64) -> Self {
        Self { drift, trust: TRUST_FIRST, recent: VecDeque::new() }
    }

    /// The byte of the earlier version that byte `at` of the new one should be.
    pub fn expected(&self, at: u64) -> u64 {
        at.saturating_add_signed(self.drift)
    }

    /// So many bytes farther on in the earlier version than in the new one.
    pub fn drift(&self) -> i64 {
        self.drift
    }

    /// While nobody knows: so many bytes farther on it may be.
    pub fn suppose(&mut self, drift: i64) {
        self.drift = drift;
    }

    /// Whether `expected` says nothing, or what was supposed.
    pub fn is_lost(&self) -> bool {
        self.trust < TRUST_MIN
    }

    /// Whether `expected` holds beyond doubt.
    pub fn is_sure(&self) -> bool {
        self.trust >= SCORE_SURE
    }

    /// Follows the new version over a chunk of `bytes` at byte `at`; with `id` if the earlier version may hold it too. Returns
    /// the numbers of the earlier chunks that stand where it stands, if both its ends were found.
    pub fn follow(
        &mut self,
        window: &Window,
        id: Option<&ChunkId>,
        at: u64,
        bytes: u32,
    ) -> Option<RangeInclusive<u64>> {
        let end = at + u64::from(bytes);
        let guesses =
            self.next_of_the_same(window, id).map_or_else(|| self.guesses(window, id, end, bytes), |guess| vec![guess]);
        let missed = self.trust - SKIP_COSTS;
        let expected = self.expected(end);
        let worth = |guess: &Guess| guess.score - jump_costs(guess.end.abs_diff(expected));
        // Of equal ones the nearest, which is the first.
        let best =
            guesses.iter().rev().copied().max_by_key(worth).filter(|guess| worth(guess) >= missed.max(SCORE_MIN));
        if self.recent.len() == STEPS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(CutPoint { at: end, guesses });
        self.trust = missed.max(0);
        let best = best?;
        (self.trust, self.drift) = (best.score, best.end.cast_signed() - end.cast_signed());
        best.since.map(|since| since..=best.number)
    }

    /// The quick way through what has not changed: the chunk is the one that comes next.
    fn next_of_the_same(&self, window: &Window, id: Option<&ChunkId>) -> Option<Guess> {
        let last = self.recent.back()?.guesses.first().filter(|last| last.score == SCORE_MAX)?;
        let next = window.get(last.number + 1).filter(|next| Some(&next.entry.id) == id)?;
        let number = last.number + 1;
        Some(Guess { number, end: next.end(), score: SCORE_MAX, since: Some(number) })
    }

    /// All that the cut point at byte `end` may be, the best first.
    fn guesses(&self, window: &Window, id: Option<&ChunkId>, end: u64, bytes: u32) -> Vec<Guess> {
        let mut found = Vec::new();
        self.go_on(window, id, end, &mut found);
        self.by_place(window, end, &mut found);
        for number in id.into_iter().flat_map(|id| window.numbers(id)) {
            found.push((number, 2 * SAME_CHUNK, Some(number)));
        }
        if found.iter().all(|(_, score, _)| *score < SCORE_SURE) {
            by_length(window, bytes, &mut found);
        }
        found.sort_unstable_by_key(|(number, score, _)| (*number, -score));
        found.dedup_by_key(|(number, ..)| *number);
        let guess = |(number, score, since): Candidate| {
            let known = window.get(number).filter(|_| score > 0)?;
            Some(Guess { number, end: known.end(), score: score.min(SCORE_MAX), since })
        };
        let mut guesses: Vec<_> = found.into_iter().filter_map(guess).collect();
        let expected = self.expected(end);
        guesses.sort_unstable_by_key(|guess| (-guess.score, guess.end.abs_diff(expected)));
        guesses.truncate(GUESSES_MAX);
        guesses
    }

    /// From each guess of the last cut points on.
    fn go_on(&self, window: &Window, id: Option<&ChunkId>, end: u64, found: &mut Vec<Candidate>) {
        for (cuts_skipped, cut) in (0..).zip(self.recent.iter().rev()) {
            let distance = end - cut.at;
            let common: [i32; STEPS_MAX] =
                std::array::from_fn(|between| window.distances(between).commonness(distance));
            for guess in &cut.guesses {
                for (chunks_skipped, common) in (0..).zip(common) {
                    let number = guess.number + 1 + chunks_skipped;
                    let Some(known) = window.get(number) else { break };
                    let agreement = gain(distance.abs_diff(known.end() - guess.end));
                    let gained = if id == Some(&known.entry.id) {
                        agreement + SAME_CHUNK
                    } else if cuts_skipped + chunks_skipped == 0 && repeats_a_length(window, number) {
                        (agreement - common).min(0)
                    } else {
                        agreement - common
                    };
                    let skipped = i32::try_from(cuts_skipped + chunks_skipped).expect("a few steps");
                    let since = (cuts_skipped == 0).then_some(guess.number + 1);
                    found.push((number, guess.score.saturating_add(gained) - SKIP_COSTS * skipped, since));
                }
            }
        }
    }

    /// The earlier cut points where this one should be, after many that were not found.
    fn by_place(&self, window: &Window, end: u64, found: &mut Vec<Candidate>) {
        let expected = self.expected(end);
        let nearest = window.first_ending_after(expected);
        for number in nearest.saturating_sub(2)..nearest + 2 {
            if let Some(known) = window.get(number).filter(|_| self.trust > 0) {
                found.push((number, self.trust - SKIP_COSTS + gain(known.end().abs_diff(expected)), None));
            }
        }
    }
}

/// Every chunk of about the same length, as the beginning of a new chain.
fn by_length(window: &Window, bytes: u32, found: &mut Vec<Candidate>) {
    let common = window.distances(0).commonness(u64::from(bytes));
    for (number, known) in window.iter() {
        let differs = known.entry.bytes.abs_diff(bytes);
        if differs <= bytes / LENGTH_SHARE && !repeats_a_length(window, number) {
            found.push((number, gain(u64::from(differs)) - common, Some(number)));
        }
    }
}

fn repeats_a_length(window: &Window, number: u64) -> bool {
    let length = |number| Some(window.get(number)?.entry.bytes);
    number.checked_sub(1).and_then(length).is_some_and(|before| Some(before) == length(number))
}

/// What a link gains whose two distances differ by so many bytes: 8 bits if they are the same, nothing at 3 KiB, and less
/// and less beyond, where a cut point that was destroyed is the likelier cause.
pub(super) fn gain(differ_bytes: u64) -> i32 {
    let bits = (differ_bytes | 63).ilog2().cast_signed();
    13 - bits - (bits - 10).max(0)
}

/// What a guess so many bytes from the expected place counts less.
fn jump_costs(bytes: u64) -> i32 {
    (bytes | 4096).ilog2().cast_signed() - 12
}
