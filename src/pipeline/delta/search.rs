//! The search for the item that one of a new name is a version of: a dump with its date in its name, a table that was
//! renamed, a database that came to another host.

use std::cmp::Reverse;
use std::sync::Arc;

use super::Candidates;
use super::align::{Alignment, sure};
use super::earlier::Earlier;
use super::similar::{Scored, Similar};
use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::limits::{SETTLE_BYTES_MIN, SEVERAL_ITEMS_MAX, SIMILAR_FRONT_CHUNKS};
use crate::pipeline::PipelineError;

/// With so many chunks a search begins: smaller items are not worth reading the others' lists.
const CHUNKS_MIN: usize = 4;

/// Finds out which item a new one is a version of, while its first chunks pass.
pub struct Search {
    similar: Arc<Similar>,
    path: String,
    /// The first chunks, and which of them were stored already.
    begun: Vec<(ChunkEntry, bool)>,
    /// Along the items of older snapshots, and along those of this one.
    alignments: [Alignment; 2],
}

/// What a search has found.
enum Found {
    /// An item that can be read.
    Item(StreamRef),
    /// An item of this snapshot that can be read once the run is settled, which is worth it.
    Unsettled,
    Nothing,
}

impl Search {
    /// A search for what `path` is like.
    pub fn new(similar: Arc<Similar>, path: &str) -> Self {
        Self { similar, path: path.to_owned(), begun: Vec::new(), alignments: Default::default() }
    }

    /// Takes in the next chunk. Once the search has ended, returns where bases are to be looked for from now on.
    ///
    /// `settle` makes what was stored until now readable.
    pub fn follow(
        &mut self,
        entry: &ChunkEntry,
        is_stored: bool,
        settle: &dyn Fn() -> Result<(), PipelineError>,
    ) -> Result<Option<Candidates>, PipelineError> {
        self.begun.push((*entry, is_stored));
        if self.begun.len() < CHUNKS_MIN {
            return Ok(None);
        }
        let first = if self.begun.len() == CHUNKS_MIN { 0 } else { self.begun.len() - 1 };
        for number in first..self.begun.len() {
            self.align(number);
        }
        let mut found = self.find();
        // Later it would not be asked again.
        let is_last = self.begun.len() >= SIMILAR_FRONT_CHUNKS;
        if matches!(found, Found::Unsettled) && (!is_stored || is_last) {
            let count = self.similar.own().items.len();
            settle()?;
            let mut own = self.similar.own_mut();
            own.settled = own.settled.max(count);
            drop(own);
            found = self.find();
        }
        Ok(match found {
            Found::Item(stream) => Some(Candidates::Earlier(Box::new(self.walk(&stream)))),
            _ if is_last => Some(self.several()),
            _ => None,
        })
    }

    fn align(&mut self, number: usize) {
        let (entry, is_stored) = self.begun[number];
        let [along_older, along_own] = &mut self.alignments;
        along_older.add(&self.similar.older().fronts, &entry, is_stored);
        let own = self.similar.own();
        along_own.add(&own.fronts, &entry, is_stored);
    }

    fn find(&self) -> Found {
        let older = self.similar.older();
        let own = self.similar.own();
        let sure = sure(older.fronts.len() + own.fronts.len());
        let [along_older, along_own] = &self.alignments;
        let mut scored: Vec<_> = older.scored(along_older).chain(own.scored(along_own)).collect();
        let Some(found) = choose(&scored, sure, &self.path) else { return Found::Nothing };
        if !found.is_settled && own.waiting_bytes() >= SETTLE_BYTES_MIN {
            return Found::Unsettled;
        }
        scored.retain(|scored| scored.is_settled);
        choose(&scored, sure, &self.path).map_or(Found::Nothing, |found| {
            tracing::debug!("{} is taken for a version of {}", self.path, found.known.path);
            Found::Item(found.known.stream.clone())
        })
    }

    /// Nothing is like the beginning: what has a like name may be like what follows.
    fn several(&self) -> Candidates {
        let mut known: Vec<_> = self.similar.older().items.iter().collect();
        known.sort_by_cached_key(|known| Reverse((likeness(&known.path, &self.path), &known.path)));
        known.truncate(SEVERAL_ITEMS_MAX);
        if known.is_empty() {
            return Candidates::None;
        }
        let streams = known.into_iter().map(|known| &known.stream);
        Candidates::several(self.similar.reader(), None, streams, self.begun.len())
    }

    /// The walk through the earlier version, up to where the new one is.
    fn walk(&self, stream: &StreamRef) -> Earlier {
        let mut earlier = Earlier::new(self.similar.reader().clone(), stream.clone());
        let mut at = 0;
        for (entry, is_stored) in &self.begun {
            earlier.follow(entry, at, *is_stored);
            at += u64::from(entry.bytes);
        }
        earlier
    }
}

/// Of several that agree about as well, as older and newer dumps of the same do, the one whose name is most like `path`, and
/// of those the last by name: dates sort.
fn choose<'s, 'g>(scored: &'s [Scored<'g>], sure: i32, path: &str) -> Option<&'s Scored<'g>> {
    let best = scored.iter().map(|scored| scored.score).max().filter(|best| *best >= sure)?;
    let fits = scored.iter().filter(|scored| scored.score * 4 >= best * 3);
    fits.max_by_key(|scored| (likeness(&scored.known.path, path), &scored.known.path))
}

/// Bytes that two names have in common at their beginnings and at their ends.
pub(super) fn likeness(one: &str, other: &str) -> usize {
    let same = |pair: &(u8, u8)| pair.0 == pair.1;
    let begin = one.bytes().zip(other.bytes()).take_while(same).count();
    let end = one.bytes().rev().zip(other.bytes().rev()).take_while(same).count();
    begin + end
}

#[cfg(test)]
mod tests {
    use super::super::similar::{Known, Scored};
    use super::choose;

    #[test]
    fn of_several_the_one_of_the_nearest_name_is_chosen() {
        let paths = ["shop-2026-11-19.sql", "shop-2026-11-21.sql", "shop-2026-11-20.sql", "depot-2026-11-21.sql"];
        let known = paths.map(|path| Known { path: path.to_owned(), ..Known::default() });
        let choose = |scores: &[i32], path| {
            let scored: Vec<_> = known
                .iter()
                .zip(scores)
                .map(|(known, score)| Scored { known, score: *score, is_settled: true })
                .collect();
            choose(&scored, 40, path).map(|chosen| paths.iter().position(|path| *path == chosen.known.path).unwrap())
        };
        assert_eq!(choose(&[90, 92, 100, 0], "shop-2026-11-22.sql"), Some(1), "all agree, the last by name");
        assert_eq!(choose(&[90, 92, 100, 0], "shop-2026-12-01.sql"), Some(1));
        assert_eq!(choose(&[50, 51, 100, 0], "shop-2026-11-22.sql"), Some(2), "it agrees far better");
        assert_eq!(choose(&[0, 0, 0, 50], "shop-2026-11-22.sql"), Some(3), "names alone say nothing");
        assert_eq!(choose(&[0, 20, 10, 0], "shop-2026-11-22.sql"), None);
    }
}
