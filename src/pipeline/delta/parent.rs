//! The items of the parent snapshot: earlier versions of those that come under the same path.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Candidates;
use super::earlier::Earlier;
use super::search::likeness;
use crate::format::manifest::{Item, Manifest, StreamRef};
use crate::limits::{
    EARLIER_ITEM_BYTES_MIN, EARLIER_ITEMS_MAX, SEVERAL_ITEMS_MAX, SIMILAR_FRONT_CHUNKS, SIMILAR_ITEMS_MAX,
};
use crate::pipeline::read::Reader;
use crate::pipeline::{PathHash, path_hash};

/// The larger items of the parent snapshot.
pub struct Parent {
    reader: Arc<Reader>,
    streams: HashMap<PathHash, StreamRef>,
    /// Those that are large, and of which is known when they changed, by path.
    dated: BTreeMap<String, Dated>,
}

struct Dated {
    bytes: u64,
    /// Seconds since 1970, and nanoseconds.
    changed: (i64, i64),
    stream: StreamRef,
}

impl Parent {
    /// Of no parent.
    pub fn none(reader: Arc<Reader>) -> Self {
        Self { reader, streams: HashMap::new(), dated: BTreeMap::new() }
    }

    /// Reads the items of `manifest`. If that fails a backup is larger, and no less a backup.
    pub fn read(reader: Arc<Reader>, manifest: &Manifest) -> Self {
        let mut parent = Self::none(reader.clone());
        let read = reader.each_item(manifest, &mut |item| {
            parent.add(item);
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!("the snapshot before cannot be read, so nothing is compressed against it: {error}");
        }
        parent
    }

    fn add(&mut self, item: Item) {
        if item.bytes < EARLIER_ITEM_BYTES_MIN || self.streams.len() >= EARLIER_ITEMS_MAX {
            return;
        }
        let is_large = item.bytes >= SIMILAR_FRONT_CHUNKS as u64 * u64::from(self.reader.repo().config.chunker.avg);
        if let Some(changed) = changed(&item).filter(|_| is_large && self.dated.len() < SIMILAR_ITEMS_MAX) {
            let dated = Dated { bytes: item.bytes, changed, stream: item.stream.clone() };
            self.dated.insert(item.path.clone(), dated);
        }
        self.streams.insert(path_hash(&item.path), item.stream);
    }

    /// Where bases are looked for of the item at `path`, if there was one.
    pub fn candidates(&self, path: &str) -> Option<Candidates> {
        let earlier = Earlier::new(self.reader.clone(), self.streams.get(&path_hash(path))?.clone());
        let younger = younger(&self.dated, path);
        if younger.is_empty() {
            return Some(Candidates::Earlier(Box::new(earlier)));
        }
        Some(Candidates::several(&self.reader, Some(earlier), younger, 0))
    }
}

/// When the content of an item changed last: `mtime` of format-spec/sources.md.
fn changed(item: &Item) -> Option<(i64, i64)> {
    let [seconds, nanoseconds] = item.meta.get("mtime")?.as_array()?.as_slice() else { return None };
    Some((seconds.as_i64()?, nanoseconds.as_i64()?))
}

/// The items that changed later than the one at `path`, are about as long, and whose names are about as like it as any: the last
/// ones, first.
fn younger<'d>(dated: &'d BTreeMap<String, Dated>, path: &str) -> Vec<&'d StreamRef> {
    let Some(own) = dated.get(path) else { return Vec::new() };
    let is_about_as_long = |other: &Dated| other.bytes * 3 <= own.bytes * 4 && own.bytes * 3 <= other.bytes * 4;
    let younger = dated.iter().filter(|(_, other)| other.changed > own.changed && is_about_as_long(other));
    let mut younger: Vec<_> = younger.map(|(name, other)| (likeness(name, path), name, other)).collect();
    let likest = younger.iter().map(|(likeness, ..)| *likeness).max().unwrap_or_default();
    younger.retain(|(likeness, ..)| likeness * 4 >= likest * 3);
    younger.sort_by_key(|(_, name, other)| (Reverse(other.changed), *name));
    younger.into_iter().take(SEVERAL_ITEMS_MAX).map(|(.., other)| &other.stream).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn younger_items_are_those_of_a_later_date_a_like_name_and_about_the_same_length() {
        let dated: BTreeMap<_, _> = [
            ("depot-sat.sql", 100, 6),
            ("shop-fri.sql", 90, 5),
            ("shop-mon.sql", 100, 1),
            ("shop-sat.sql", 130, 6),
            ("shop-sun.sql", 100, 0),
            ("shop-thu.sql", 134, 4),
            ("shop-tue.sql", 75, 2),
            ("shop-wed.sql", 74, 3),
        ]
        // So that each is known by its stream.
        .map(|(path, bytes, day)| {
            let stream = StreamRef { depth: day as u32, entries: Vec::new() };
            (path.to_owned(), Dated { bytes, changed: (day, 0), stream })
        })
        .into();
        let days = |path| younger(&dated, path).into_iter().map(|stream| stream.depth).collect::<Vec<_>>();
        assert_eq!(days("shop-mon.sql"), [6, 5, 2], "not another, nor a shorter or longer one");
        assert_eq!(days("shop-sat.sql"), [0; 0], "it is the last");
        assert_eq!(days("shop.sql"), [0; 0], "there was none of that name");
    }
}
