//! Finds bases: the chunks of an item's earlier version that stand where a new chunk stands now.
//!
//! No sketches and no table of hashes: the earlier chunk list is walked alongside the stream (`earlier`), and the cut points of
//! both say where the stream is. Where it goes on far away, chunks that have not changed say so (`strays`), or the cut points of
//! those that have (`lost`). An item of a name that is new is recognised by the lengths of its first chunks among those of the
//! items that there are (`search`); if those say nothing, or its earlier version is older than another item of like name, by more
//! of them (`several`). Where nobody knows, what stood there is tried (`guess`). So a fresh machine finds the same bases as one with
//! a full cache.

mod align;
mod distances;
mod earlier;
mod find;
mod guess;
mod guessed;
mod laid;
mod lost;
mod parent;
mod place;
mod rescan;
mod search;
mod several;
mod similar;
mod strays;
mod track;
mod window;

use std::sync::Arc;

use crate::format::manifest::{ChunkEntry, StreamRef};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use earlier::{Earlier, list_of};
pub use guess::Guess;
pub use guessed::{Attempt, Guessed};
pub use parent::Parent;
use search::Search;
use several::Several;
pub use similar::Similar;

/// Where bases are looked for while a stream is written.
pub enum Candidates {
    /// Nowhere.
    None,
    /// In a version of the item that is known.
    Earlier(Box<Earlier>),
    /// In a version of the item that is known, if there is one, unless an item of another name is nearer.
    Several(Box<Several>),
    /// Which item it is a version of is still being found out.
    Search(Box<Search>),
}

impl Candidates {
    /// Those of an item whose path is in no earlier snapshot of the same.
    pub fn search(similar: Arc<Similar>, path: &str) -> Self {
        Self::Search(Box::new(Search::new(similar, path)))
    }

    /// Those of an item whose earlier version, if there is one, is `own`, and to which one of the streams `others` may be nearer, the
    /// most likely first. So many of its chunks have passed already.
    fn several<'s>(
        reader: &Arc<Reader>,
        own: Option<Earlier>,
        others: impl IntoIterator<Item = &'s StreamRef>,
        passed: usize,
    ) -> Self {
        let lists = others.into_iter().map(|stream| list_of(reader.clone(), stream.clone())).collect();
        Self::Several(Box::new(Several::new(own, lists, reader.repo().config.chunker.max, passed)))
    }

    /// If the last bases are those that stood there, and nothing says that the stream is there: where to tell whether they help,
    /// and where they stand.
    pub fn guess(&self) -> Option<(&Arc<Guess>, Attempt)> {
        match self {
            Self::Earlier(earlier) => earlier.guess(),
            Self::Several(several) => several.guess(),
            Self::None | Self::Search(_) => None,
        }
    }

    /// Follows the new stream over a chunk at byte `at`. Returns the earlier chunks that stand where it stands now, in order:
    /// often one, or none; none of a chunk that `is_stored`, which needs no bases.
    ///
    /// `settle` puts and lists what was stored until now, so that it can be read. Its errors are the only ones.
    pub fn follow(
        &mut self,
        entry: &ChunkEntry,
        at: u64,
        is_stored: bool,
        settle: &dyn Fn() -> Result<(), PipelineError>,
    ) -> Result<Vec<ChunkEntry>, PipelineError> {
        match self {
            Self::None => {}
            Self::Earlier(earlier) => return Ok(earlier.follow(entry, at, is_stored)),
            Self::Several(several) => {
                let bases = several.follow(entry, at, is_stored);
                if let Some(earlier) = several.decide() {
                    *self = Self::Earlier(Box::new(earlier));
                }
                return Ok(bases);
            }
            Self::Search(search) => {
                if let Some(found) = search.follow(entry, is_stored, settle)? {
                    *self = found;
                }
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests;
