//! The items of the parent snapshot: earlier versions of those that come under the same path.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use super::Candidates;
use super::earlier::{Earlier, list_of};
use super::search::likeness;
use super::several::Several;
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
    dated: Vec<Dated>,
}

/// An item of which is known when it changed.
struct Dated {
    path: String,
    bytes: u64,
    /// Seconds since 1970, and nanoseconds.
    changed: (i64, i64),
    stream: StreamRef,
}

impl Parent {
    /// Of no parent.
    pub fn none(reader: Arc<Reader>) -> Self {
        Self { reader, streams: HashMap::new(), dated: Vec::new() }
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
            let (path, stream) = (item.path.clone(), item.stream.clone());
            self.dated.push(Dated { path, bytes: item.bytes, changed, stream });
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
        let lists = younger.into_iter().map(|item| list_of(self.reader.clone(), item.stream.clone())).collect();
        let chunk_bytes_max = self.reader.repo().config.chunker.max;
        Some(Candidates::Several(Box::new(Several::new(Some(earlier), lists, chunk_bytes_max, 0))))
    }
}

/// When the content of an item changed last: `mtime` of format-spec/sources.md.
fn changed(item: &Item) -> Option<(i64, i64)> {
    let [seconds, nanoseconds] = item.meta.get("mtime")?.as_array()?.as_slice() else { return None };
    Some((seconds.as_i64()?, nanoseconds.as_i64()?))
}

/// The items that changed later than the one at `path`, are about as long, and whose names are about as like it as any: the last
/// ones, first.
fn younger<'d>(dated: &'d [Dated], path: &str) -> Vec<&'d Dated> {
    let Some(own) = dated.iter().find(|item| item.path == path) else { return Vec::new() };
    let is_about_as_long = |other: &Dated| other.bytes * 3 <= own.bytes * 4 && own.bytes * 3 <= other.bytes * 4;
    let is_younger = |other: &&Dated| other.changed > own.changed && is_about_as_long(other);
    let mut younger: Vec<_> = dated.iter().filter(is_younger).collect();
    let likest = younger.iter().map(|item| likeness(&item.path, path)).max().unwrap_or_default();
    younger.retain(|item| likeness(&item.path, path) * 4 >= likest * 3);
    younger.sort_by_key(|item| (Reverse(item.changed), &item.path));
    younger.truncate(SEVERAL_ITEMS_MAX);
    younger
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn younger_items_are_those_of_a_later_date_a_like_name_and_about_the_same_length() {
        let dated: Vec<_> = [
            ("depot-sat.sql", 100, 6),
            ("shop-fri.sql", 90, 5),
            ("shop-mon.sql", 100, 1),
            ("shop-sat.sql", 130, 6),
            ("shop-sun.sql", 100, 0),
            ("shop-thu.sql", 134, 4),
            ("shop-tue.sql", 75, 2),
            ("shop-wed.sql", 74, 3),
        ]
        .map(|(path, bytes, day)| Dated {
            path: path.to_owned(),
            bytes,
            changed: (day, 0),
            stream: StreamRef::default(),
        })
        .into();
        let paths = |path| younger(&dated, path).into_iter().map(|item| &*item.path).collect::<Vec<_>>();
        assert_eq!(paths("shop-mon.sql"), ["shop-sat.sql", "shop-fri.sql", "shop-tue.sql"]);
        assert_eq!(paths("shop-sat.sql"), [""; 0], "it is the last");
        assert_eq!(paths("shop.sql"), [""; 0], "there was none of that name");
    }
}
