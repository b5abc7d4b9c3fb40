//! Sizes of the local index.

/// Threads that get and decode index objects for the local index, each one of them at a time: about 6 MiB.
pub(super) const INDEX_LOAD_THREADS: usize = 2;
/// To be put in order, the chunks of the local index are first gathered by the first byte of their ids into so many parts,
/// each through a buffer of so many bytes.
pub(super) const INDEX_SORT_PARTS: usize = 256;
pub(super) const INDEX_SORT_BUFFER_BYTES: usize = 32 << 10;
/// Blobs that the local index keeps as they were last read, and most chunks of theirs, 60 bytes each.
pub(super) const INDEX_BLOBS_KEPT: usize = 256;
pub(super) const INDEX_CHUNKS_KEPT: usize = 16 << 10;
