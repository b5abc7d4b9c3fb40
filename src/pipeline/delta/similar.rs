//! The items in which one of a name that is new may be recognised, and their first chunks.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::align::{Alignment, Fronts};
use crate::format::manifest::{ChunkEntry, Item, Manifest, StreamRef};
use crate::limits::{
    EARLIER_ITEMS_MAX, SIMILAR_CHUNKS_MAX, SIMILAR_FRONT_CHUNKS, SIMILAR_ITEM_CHUNKS_MIN, SIMILAR_ITEMS_MAX,
};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Cancelled;

/// The items in which new ones may be recognised.
pub struct Similar {
    reader: Arc<Reader>,
    manifests: Vec<Manifest>,
    /// Those of older snapshots, read when they are needed first.
    older: OnceLock<Group>,
    /// Those of the snapshot itself that are finished.
    own: RwLock<Group>,
}

/// Items, and their first chunks.
#[derive(Default)]
pub struct Group {
    pub items: Vec<Known>,
    pub fronts: Fronts,
    /// So many of `items`, the first ones, can be read.
    pub settled: usize,
}

impl Group {
    /// How well each agrees.
    pub fn scored<'g>(&'g self, alignment: &'g Alignment) -> impl Iterator<Item = Scored<'g>> {
        let scored = |(number, (known, score))| Scored { known, score, is_settled: number < self.settled };
        self.items.iter().zip(alignment.best().iter().map(|best| best.score)).enumerate().map(scored)
    }

    /// What was new of the items that cannot be read yet.
    pub fn waiting_bytes(&self) -> u64 {
        self.items[self.settled..].iter().map(|item| item.bytes_new).sum()
    }
}

/// How well an item agrees, in bits.
pub struct Scored<'g> {
    pub known: &'g Known,
    pub score: i32,
    pub is_settled: bool,
}

/// An item in which others may be recognised.
#[derive(Default)]
pub struct Known {
    pub path: String,
    pub stream: StreamRef,
    /// What of it was new to the store.
    pub bytes_new: u64,
}

impl Similar {
    /// Items are looked for in `manifests`, in this order. Nothing is read before one is needed.
    pub fn new(reader: Arc<Reader>, manifests: Vec<Manifest>) -> Self {
        Self { reader, manifests, older: OnceLock::new(), own: RwLock::default() }
    }

    /// Adds an item of the snapshot itself, with its first chunks. It can be read once the run is settled.
    pub fn add(&self, item: &Item, first_chunks: Vec<ChunkEntry>) {
        let mut own = self.own_mut();
        if self.is_worth(item.bytes) && own.fronts.len() + first_chunks.len() <= SIMILAR_CHUNKS_MAX {
            own.items.push(Known { path: item.path.clone(), stream: item.stream.clone(), bytes_new: item.bytes_new });
            own.fronts.extend([first_chunks], self.chunk_bytes_max());
        }
    }

    /// To read them.
    pub fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// Those of the snapshot itself that are finished.
    pub fn own(&self) -> RwLockReadGuard<'_, Group> {
        self.own.read().expect("no code panics while it holds this lock")
    }

    pub fn own_mut(&self) -> RwLockWriteGuard<'_, Group> {
        self.own.write().expect("no code panics while it holds this lock")
    }

    /// Whether an item of so many bytes is large enough to be recognised.
    fn is_worth(&self, bytes: u64) -> bool {
        bytes >= SIMILAR_ITEM_CHUNKS_MIN * u64::from(self.reader.repo().config.chunker.avg)
    }

    fn chunk_bytes_max(&self) -> u32 {
        self.reader.repo().config.chunker.max
    }

    /// Those of older snapshots.
    pub fn older(&self) -> &Group {
        self.older.get_or_init(|| {
            let items = self.items();
            let chunks_each = (SIMILAR_CHUNKS_MAX / items.len().max(1)).min(SIMILAR_FRONT_CHUNKS);
            let first_chunks = items.iter().map(|item| self.first_chunks(&item.stream, chunks_each));
            let mut fronts = Fronts::default();
            fronts.extend(first_chunks, self.chunk_bytes_max());
            Group { settled: items.len(), items, fronts }
        })
    }

    /// The larger items of all manifests; what is in several of them once.
    fn items(&self) -> Vec<Known> {
        let (mut items, mut known) = (Vec::new(), HashSet::new());
        for (number, manifest) in self.manifests.iter().enumerate() {
            // The lines of the first, the parent, were read before.
            if number > 0 && manifest.items > EARLIER_ITEMS_MAX as u64 {
                continue;
            }
            let read = self.reader.each_item(manifest, &mut |item| {
                let first = item.stream.entries.first().map(|entry| entry.id);
                let is_wanted = self.is_worth(item.bytes) && items.len() < SIMILAR_ITEMS_MAX;
                if is_wanted && first.is_some_and(|first| known.insert((first, item.bytes))) {
                    items.push(Known { path: item.path, stream: item.stream, bytes_new: 0 });
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
