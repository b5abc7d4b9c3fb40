//! Threads and channels: streams into packs, packs into streams.
//!
//! Writing: each stream is cut, named and looked up on the thread that writes it ([`stream`]), with others beside it if it can be
//! read (`take_in`); blobs of new chunks go through a bounded channel to sealers, sealed blobs to one packer, full packs to one
//! uploader ([`packer`]).
//! Reading: one thread plans in order, openers fetch and open side by side, the caller writes in order ([`read`]). What the plan
//! needs of a far store is fetched beforehand ([`fetch`]).

pub mod delta;
pub mod fetch;
pub mod packer;
pub mod read;
pub mod snapshot;
pub mod stream;
mod stream_hash;
mod take_in;

use crate::progress::Cancelled;
use crate::repo::RepoError;

/// Sixteen bytes of hash a path, so that telling a million paths apart takes little memory.
type PathHash = [u8; 16];

fn path_hash(path: &str) -> PathHash {
    *blake3::hash(path.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Seal(#[from] crate::seal::blob::SealError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A worker stopped; what stopped it is the better error.
    #[error("storing stopped")]
    Stopped,
    #[error("an item was begun and not finished: the backup cannot be committed")]
    Unfinished,
    /// Whoever takes the plaintext could not.
    #[error(transparent)]
    Target(std::io::Error),
    #[error("item {path:?} {detail}")]
    Item { path: String, detail: String },
}

impl From<PipelineError> for std::io::Error {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Target(error) => error,
            error => std::io::Error::other(error),
        }
    }
}
