//! Folders and files: out of a file system as items, and back into a folder.
//!
//! Items and their `meta`: format-spec/sources.md. [`snapshot`] walks in one stable order on one thread and reads on
//! several; files that are as they were in the parent snapshot are not opened. [`restore`] checks every name before it
//! writes anything, and everything it does stays below one folder handle.

mod beneath;
mod glob;
mod meta;
mod out;
mod past_cache;
mod plan;
mod restore;
mod snapshot;
mod turns;
mod walk;

use std::io;
use std::path::PathBuf;

pub use glob::PatternError;
pub use out::reserve;
pub use restore::{FilesReport, FilesRestoreOptions, Overwrite, Symlinks, restore, restore_stream};
pub use snapshot::{FilesOptions, snapshot};

use crate::progress::Cancelled;

/// Why files were not taken in or not brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    #[error("no path was given: name a folder or a file")]
    NoPath,
    #[error("{} cannot be read", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("{} and {} would both be called {name:?} in the snapshot: take one snapshot of each, or one of a folder above both", first.display(), second.display())]
    SameName { name: String, first: PathBuf, second: PathBuf },
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("none of the {missing} files could be read, the first one {first}")]
    NothingRead { missing: u64, first: String },
    /// What the sink or the source of items said.
    #[error("{path}")]
    Store { path: String, source: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),

    #[error("the snapshot has an item that is not safe to restore: {path:?} {why}; nothing was written")]
    Unsafe { path: String, why: &'static str },
    #[error("nothing in the snapshot matches {patterns}: `vault show` lists what there is")]
    NothingMatches { patterns: String },
    #[error("{} is not empty: give another folder, --resume to go on with a restore that broke off, or --force to overwrite", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} exists and is not what the snapshot has: give another folder, or --force to overwrite", path.display())]
    Exists { path: PathBuf },
    #[error("no space is left for {}: free some, then run it again with --resume", path.display())]
    NoSpace { path: PathBuf, source: io::Error },
    #[error("{} cannot be {verb}", path.display())]
    Target { path: PathBuf, verb: &'static str, source: io::Error },
}

impl FilesError {
    /// Whether the folder restored into is what failed, and not the repository or the snapshot.
    pub fn is_of_target(&self) -> bool {
        matches!(self, Self::NotEmpty { .. } | Self::Exists { .. } | Self::NoSpace { .. } | Self::Target { .. })
    }
}
