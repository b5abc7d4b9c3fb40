//! Recognises an item of a name that is new: a dump with its date in its name, a table that was renamed, a database that came
//! to another host.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use super::Candidates;
use super::align::{Alignment, Fronts};
use super::earlier::Earlier;
use crate::format::manifest::{ChunkEntry, Manifest, StreamRef};
use crate::limits::{
    EARLIER_ITEMS_MAX, SIMILAR_CHUNKS_MAX, SIMILAR_FRONT_CHUNKS, SIMILAR_ITEM_BYTES_MIN, SIMILAR_ITEMS_MAX,
};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Cancelled;

/// With so many chunks a search begins: smaller items are not worth reading the others' lists.
const CHUNKS_MIN: usize = 4;

/// The items of older snapshots in which new ones may be recognised.
pub struct Similar {
    reader: Arc<Reader>,
    manifests: Vec<Manifest>,
    known: OnceLock<(Vec<Older>, Fronts)>,
}

/// An item of an older snapshot.
struct Older {
    path: String,
    stream: StreamRef,
}

impl Similar {
    /// Items are looked for in `manifests`, in this order. Nothing is read before one is needed.
    pub fn new(reader: Arc<Reader>, manifests: Vec<Manifest>) -> Self {
        Self { reader, manifests, known: OnceLock::new() }
    }

    fn known(&self) -> &(Vec<Older>, Fronts) {
        self.known.get_or_init(|| {
            let items = self.items();
            let chunks_each = (SIMILAR_CHUNKS_MAX / items.len().max(1)).min(SIMILAR_FRONT_CHUNKS);
            let fronts: Vec<_> = items.iter().map(|item| self.first_chunks(&item.stream, chunks_each)).collect();
            (items, Fronts::new(&fronts))
        })
    }

    /// The larger items of all manifests; what is in several of them once.
    fn items(&self) -> Vec<Older> {
        let (mut items, mut known) = (Vec::new(), HashSet::new());
        for (number, manifest) in self.manifests.iter().enumerate() {
            // The lines of the first, the parent, were read before.
            if number > 0 && manifest.items > EARLIER_ITEMS_MAX as u64 {
                continue;
            }
            let read = self.reader.each_item(manifest, &mut |item| {
                let first = item.stream.entries.first().map(|entry| entry.id);
                let is_wanted = item.bytes >= SIMILAR_ITEM_BYTES_MIN && items.len() < SIMILAR_ITEMS_MAX;
                if is_wanted && first.is_some_and(|first| known.insert((first, item.bytes))) {
                    items.push(Older { path: item.path, stream: item.stream });
                }
                Ok(())
            });
            if let Err(error) = read {
                tracing::debug!("the items of an older snapshot cannot be read, so none is recognised: {error}");
            }
        }
        items
    }

    /// The first chunks of a stream, at most `count`, as far as they can be read.
    fn first_chunks(&self, stream: &StreamRef, count: usize) -> Vec<ChunkEntry> {
        let mut chunks = Vec::new();
        let read = self.reader.walk(stream, &mut |depth, entry| {
            if depth == 0 {
                chunks.push(entry);
            }
            if chunks.len() < count { Ok(()) } else { Err(Cancelled.into()) }
        });
        match read {
            Ok(()) | Err(PipelineError::Cancelled(_)) => {}
            Err(error) => tracing::debug!("the chunk list of an older item cannot be read: {error}"),
        }
        chunks
    }
}

/// Finds out which item a new one is a version of, while its first chunks pass.
pub struct Search {
    similar: Arc<Similar>,
    path: String,
    /// The first chunks, and which of them were stored already.
    begun: Vec<(ChunkEntry, bool)>,
    alignment: Alignment,
}

impl Search {
    /// A search for what `path` is like.
    pub fn new(similar: Arc<Similar>, path: &str) -> Self {
        Self { similar, path: path.to_owned(), begun: Vec::new(), alignment: Alignment::default() }
    }

    /// Takes in the next chunk. Once the search has ended, returns where bases are to be looked for from now on.
    pub fn follow(&mut self, entry: &ChunkEntry, is_stored: bool) -> Option<Candidates> {
        self.begun.push((*entry, is_stored));
        if self.begun.len() < CHUNKS_MIN {
            return None;
        }
        let similar = self.similar.clone();
        let (items, fronts) = similar.known();
        let first = if self.begun.len() == CHUNKS_MIN { 0 } else { self.begun.len() - 1 };
        for (entry, is_stored) in &self.begun[first..] {
            self.alignment.add(fronts, entry, *is_stored);
        }
        let paths = items.iter().map(|item| item.path.as_str());
        if let Some(found) = choose(paths, self.alignment.best(), fronts.sure(), &self.path) {
            tracing::debug!("{} is taken for a version of {}", self.path, items[found].path);
            return Some(Candidates::Earlier(Box::new(self.walk(&items[found].stream))));
        }
        (items.is_empty() || self.begun.len() >= SIMILAR_FRONT_CHUNKS).then_some(Candidates::None)
    }

    /// The walk through the earlier version, up to where the new one is.
    fn walk(&self, stream: &StreamRef) -> Earlier {
        let mut earlier = Earlier::new(self.similar.reader.clone(), stream.clone());
        let mut at = 0;
        for (entry, is_stored) in &self.begun {
            if *is_stored {
                earlier.anchor(&entry.id, at, entry.bytes);
            } else {
                earlier.bases(at, entry.bytes);
            }
            at += u64::from(entry.bytes);
        }
        earlier
    }
}

/// Of several that agree about as well, as older and newer dumps of the same do, the one whose name is most like `path`, and
/// of those the last by name: dates sort.
fn choose<'p>(paths: impl Iterator<Item = &'p str>, scores: &[i32], sure: i32, path: &str) -> Option<usize> {
    let best = scores.iter().copied().max().filter(|best| *best >= sure)?;
    let fits = paths.zip(scores).enumerate().filter(|(_, (_, score))| **score * 4 >= best * 3);
    fits.max_by_key(|(number, (other, _))| (likeness(other, path), *other, std::cmp::Reverse(*number)))
        .map(|(number, _)| number)
}

/// Bytes that two names have in common at their beginnings and at their ends.
fn likeness(one: &str, other: &str) -> usize {
    let same = |pair: &(u8, u8)| pair.0 == pair.1;
    let begin = one.bytes().zip(other.bytes()).take_while(same).count();
    let end = one.bytes().rev().zip(other.bytes().rev()).take_while(same).count();
    begin + end
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn of_several_the_one_of_the_nearest_name_is_chosen() {
        let paths = ["shop-2026-11-19.sql", "shop-2026-11-21.sql", "shop-2026-11-20.sql", "depot-2026-11-21.sql"];
        let choose = |scores: &[i32], path| choose(paths.into_iter(), scores, 40, path).map(|number| paths[number]);
        assert_eq!(choose(&[90, 92, 100, 0], "shop-2026-11-22.sql"), Some(paths[1]), "all agree, the last by name");
        assert_eq!(choose(&[90, 92, 100, 0], "shop-2026-12-01.sql"), Some(paths[1]));
        assert_eq!(choose(&[50, 51, 100, 0], "shop-2026-11-22.sql"), Some(paths[2]), "it agrees far better");
        assert_eq!(choose(&[0, 0, 0, 50], "shop-2026-11-22.sql"), Some(paths[3]), "names alone say nothing");
        assert_eq!(choose(&[0, 20, 10, 0], "shop-2026-11-22.sql"), None);
    }
}
