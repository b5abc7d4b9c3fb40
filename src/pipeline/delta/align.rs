//! How well the beginning of an item agrees with the beginnings of others, by the distances of cut points.
//!
//! Distances that are about the same are chained, as in `place`, and scored in bits: by how much likelier they agree so well
//! in two versions of the same than by accident. Only those that agree are looked at, so a chunk among those of hundreds of
//! items costs some ten microseconds.

use std::collections::VecDeque;

use super::distances::commonness;
use super::place::{SAME_CHUNK, SKIP_COSTS, STEPS_MAX, gain};
use crate::format::manifest::{ChunkEntry, bytes_of};

/// Distances that differ by more say nothing for each other.
const DIFFER_BYTES_MAX: u64 = 1 << 10;
/// What distances count more that are exactly the same.
const EXACT: i32 = 4;
/// What a chain counts more that begins where both items begin.
const AT_BEGINNING: i32 = 8;
/// Beyond doubt is what has so many bits more than it takes to tell all chunks apart that are compared: accidents have up to 21 more.
const SURE: i32 = 28;
/// A distance is that of cut points with at most one between them: the other version may have lost that one.
const SPAN_MAX: usize = 2;

/// The first chunks of some items.
#[derive(Default)]
pub struct Fronts {
    chunks: Vec<FrontChunk>,
    /// Sorted by bytes.
    distances: Vec<Distance>,
    /// Where each item begins in `chunks`.
    begins: Vec<usize>,
}

struct FrontChunk {
    entry: ChunkEntry,
    item: usize,
}

/// What so many chunks, the last one of which is known by its number among all, have together.
#[derive(Clone, Copy)]
struct Distance {
    bytes: u64,
    last: usize,
    span: usize,
}

impl Fronts {
    /// Adds those of more items. Lengths of `bytes_max`, and lengths that repeat, say nothing.
    pub fn extend(&mut self, items: impl IntoIterator<Item = Vec<ChunkEntry>>, bytes_max: u32) {
        for chunks in items {
            let (item, first) = (self.begins.len(), self.chunks.len());
            self.begins.push(first);
            self.chunks.extend(chunks.iter().map(|entry| FrontChunk { entry: *entry, item }));
            let says_nothing =
                |at: usize| chunks[at].bytes >= bytes_max || (at > 0 && chunks[at].bytes == chunks[at - 1].bytes);
            for last in 0..chunks.len() {
                for span in (1..=SPAN_MAX.min(last + 1)).take_while(|span| !says_nothing(last + 1 - span)) {
                    let bytes = bytes_of(&chunks[last + 1 - span..=last]) as u64;
                    self.distances.push(Distance { bytes, last: first + last, span });
                }
            }
        }
        // Stable, as that takes no longer than it must where most is sorted already.
        self.distances.sort_by_key(|distance| distance.bytes);
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    fn about(&self, bytes: u64) -> &[Distance] {
        let from = self.distances.partition_point(|other| other.bytes + DIFFER_BYTES_MAX < bytes);
        let to = self.distances.partition_point(|other| other.bytes <= bytes + DIFFER_BYTES_MAX);
        &self.distances[from..to]
    }
}

/// A score that no accident reaches among so many chunks.
pub fn sure(chunks: usize) -> i32 {
    SURE + chunks.max(1).ilog2().cast_signed()
}

/// The chunks of a new item so far, laid along those of all others.
#[derive(Default)]
pub struct Alignment {
    /// How many there are, and the bytes of the last ones.
    count: usize,
    last_bytes: VecDeque<u32>,
    /// For each chunk of the others the number of new chunks at whose end its own was found last, and the score of the chain
    /// that leads there.
    ends: Vec<(usize, i32)>,
    /// For each item.
    best: Vec<Best>,
}

/// The best chain so far that leads through an item.
#[derive(Clone, Copy, Default)]
pub struct Best {
    /// In bits.
    pub score: i32,
    /// The chunk of the item at which it ends.
    pub last: usize,
}

impl Alignment {
    /// Takes in the next chunk of the new item, with `is_stored` if others may hold the same. `fronts` may only grow between
    /// calls.
    pub fn add(&mut self, fronts: &Fronts, new: &ChunkEntry, is_stored: bool) {
        self.ends.resize(fronts.chunks.len(), (0, 0));
        self.best.resize(fronts.begins.len(), Best::default());
        self.count += 1;
        let number = self.count;
        self.last_bytes.push_front(new.bytes);
        self.last_bytes.truncate(SPAN_MAX);
        let mut found = Vec::new();
        for span in 1..=self.last_bytes.len() {
            let bytes = self.last_bytes.iter().take(span).map(|bytes| u64::from(*bytes)).sum::<u64>();
            let about = fronts.about(bytes);
            let common = commonness(about.len() as u64, fronts.distances.len() as u64, 2 * DIFFER_BYTES_MAX);
            for other in about {
                let is_same = is_stored && span == 1 && other.span == 1 && fronts.chunks[other.last].entry == *new;
                let gained = if is_same { 2 * SAME_CHUNK } else { agreement(other.bytes.abs_diff(bytes)) - common };
                found.push((other.last, gained + self.before(fronts, other, span) - skips(other.span + span - 2)));
            }
        }
        for (last, score) in found {
            let end = &mut self.ends[last];
            // A chain that may yet go on from here is not given up for a worse one.
            if number - end.0 > STEPS_MAX || score > end.1 {
                *end = (number, score);
            }
            let item = fronts.chunks[last].item;
            if score > self.best[item].score {
                self.best[item] = Best { score, last: last - fronts.begins[item] };
            }
        }
    }

    /// For each item.
    pub fn best(&self) -> &[Best] {
        &self.best
    }

    /// The score of the best chain that ends where a distance, found over the last `span` new chunks, begins.
    fn before(&self, fronts: &Fronts, other: &Distance, span: usize) -> i32 {
        let item = fronts.chunks[other.last].item;
        if self.count == span && fronts.begins[item] + other.span == other.last + 1 {
            return AT_BEGINNING;
        }
        let chain = |skipped: usize| {
            let end = (other.last + 1).checked_sub(other.span + skipped + 1)?;
            let (number, score) = self.ends[end];
            let new_skipped = (self.count - span).checked_sub(number)?;
            let is_chain = number > 0 && fronts.chunks[end].item == item && new_skipped < STEPS_MAX;
            is_chain.then_some(score - skips(skipped + new_skipped))
        };
        (0..STEPS_MAX).filter_map(chain).max().unwrap_or(0).max(0)
    }
}

fn agreement(differ_bytes: u64) -> i32 {
    gain(differ_bytes) + if differ_bytes == 0 { EXACT } else { 0 }
}

fn skips(count: usize) -> i32 {
    SKIP_COSTS * i32::try_from(count).expect("a few steps")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Numbers, entries, lengths, scattered};
    use super::{Alignment, Fronts, sure};
    use crate::format::manifest::ChunkEntry;
    use crate::limits::{SIMILAR_CHUNKS_MAX, SIMILAR_FRONT_CHUNKS};

    /// After each chunk, how many bits the best score of any item has more than is sure.
    fn beyond_doubt(others: &[Vec<ChunkEntry>], new: &[ChunkEntry]) -> Vec<i32> {
        let mut fronts = Fronts::default();
        fronts.extend(others.iter().cloned(), 256 << 10);
        let mut alignment = Alignment::default();
        let add = |entry| {
            alignment.add(&fronts, entry, false);
            alignment.best().iter().map(|best| best.score).max().unwrap() - sure(fronts.len())
        };
        new.iter().map(add).collect()
    }

    fn front(numbers: &mut Numbers) -> Vec<u64> {
        lengths(numbers, SIMILAR_FRONT_CHUNKS)
    }

    #[test]
    fn nothing_is_recognised_by_accident() {
        let mut most = i32::MIN;
        for (items, seeds) in [(SIMILAR_CHUNKS_MAX / SIMILAR_FRONT_CHUNKS, 40), (8, 400), (1, 4000)] {
            for seed in 0..seeds {
                let numbers = &mut Numbers(seed);
                let new = entries(&front(numbers));
                let others: Vec<_> = (0..items).map(|_| entries(&front(numbers))).collect();
                most = most.max(*beyond_doubt(&others, &new).last().unwrap());
            }
        }
        assert!(most < 0, "{most}");
    }

    #[test]
    fn a_changed_item_is_recognised_soon() {
        let mut longest = 0;
        for seed in 0..400 {
            let numbers = &mut Numbers(seed);
            let others: Vec<_> = (0..20).map(|_| front(numbers)).collect();
            let made: Vec<_> = scattered(&others[7], numbers, 5, 400).iter().map(|made| made.bytes).collect();
            let others: Vec<_> = others.iter().map(|front| entries(front)).collect();
            let after = beyond_doubt(&others, &entries(&made)).iter().position(|beyond| *beyond >= 0);
            longest = longest.max(after.expect("it is recognised"));
        }
        assert!(longest < 32, "{longest}");
    }

    #[test]
    fn chunks_of_the_largest_size_say_nothing() {
        let full = entries(&[256 << 10; SIMILAR_FRONT_CHUNKS]);
        let most = *beyond_doubt(std::slice::from_ref(&full), &full).last().unwrap();
        assert!(most < 0, "{most}");
    }
}
