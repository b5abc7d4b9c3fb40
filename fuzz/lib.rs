//! What the fuzz targets share.

use vault::id::RepoId;
use vault::seal::keys::{Keys, MasterKey};

/// The keys of a repository, the same in every run.
pub fn keys() -> Keys {
    Keys::derive(&MasterKey { secret: [1; 32], epoch: 0 }, RepoId([2; 16]))
}
