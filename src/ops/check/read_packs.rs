//! What a check has read of a far store, kept until it ends.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::ops::holdings::Holdings;
use crate::repo::Repository;
use crate::repo::local_packs::LocalPacks;

/// Packs of a far store that this run has read and found to be what their names say, as long as it runs: what blobs rest on
/// is not fetched a second time.
pub(super) struct ReadPacks {
    pub(super) packs: Arc<LocalPacks>,
    _folder: TempDir,
}

/// What the folder's name begins with, and how old one must be to be another run's that was killed.
const FOLDER_PREFIX: &str = "checked-";
const LEFT_BEHIND: Duration = Duration::from_secs(48 * 3600);

impl ReadPacks {
    /// None where nothing would be saved, or the folder cannot be made.
    pub(super) fn of(repo: &Repository, holdings: &Holdings) -> Option<Self> {
        let is_chained = || holdings.blobs.iter().any(|blob| blob.depth > 0);
        if !repo.backend.properties().is_far() || !is_chained() {
            return None;
        }
        remove_left_behind(&repo.cache);
        let folder = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir_in(&repo.cache);
        let folder = folder.inspect_err(|error| tracing::debug!("no packs are kept: {error}")).ok()?;
        Some(Self { packs: Arc::new(LocalPacks::new(folder.path().to_owned())), _folder: folder })
    }
}

fn remove_left_behind(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > LEFT_BEHIND);
        if entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX) && is_old() == Some(true) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
