//! Every size, count and bound, and the sum that memory is bounded by.
//!
//! # Memory
//!
//! A backup holds at most, with `S` sealers and `W` streams read side by side:
//!
//! | what | bytes |
//! |---|---|
//! | streams being cut: what is gathered of a segment ([`SEGMENT_BYTES`]), what has begun before it, and one blob each ([`BLOB_BYTES_MAX`] and a chunk) | 6.8 MiB x W |
//! | segments that are read by these threads and by `S` - 1 helpers, at most [`HELPERS_MAX`] | 4 MiB x (W + S - 1) |
//! | blobs waiting for a sealer, buffers to be used again: 2 [`SEAL_QUEUE_BLOBS`] + S | 2.3 MiB x (8 + S) |
//! | each sealer: its blob, the sealed bytes, the copy inflated again, the zstd contexts, the sequences of a delta | 10 MiB x S |
//! | packs being filled or put: 1 + [`PUT_QUEUE_PACKS`] + uploaders, each [`PACK_BYTES_TARGET`] + one blob | 18 MiB x 2, of a far store (S3) x 3 |
//! | chunks not yet in an index object: [`INDEX_CHUNKS_MAX`] entries | 10 MiB |
//! | SQLite page cache | 8 MiB |
//! | blobs of the local index last read: [`INDEX_CHUNKS_KEPT`] chunks | 2 MiB |
//! | its chunks being sorted: [`INDEX_SORTED_TOGETHER`], 16 bytes each, then a 256th of all, 24: 2 MiB of 20 million chunks | 10 MiB |
//!
//! With two sealers and two streams that sums up to 121 MiB (139 for S3), whatever the size of the database, and the program's own
//! pages are 12 MiB. What was measured is 95 MB for 866 MB, 119 MB for 8.7 GB (docs/performance.md) and 138 MB for 2.9 GB of random
//! bytes, where every buffer is as full as it can be and the allocator keeps some between them; 149 MB for 400 MB of random bytes
//! into S3. Argon2id takes 64 MiB once, before any of these exists.
//!
//! Whoever reads holds [`OPENED_BYTES`] of opened blobs for each opener, a window of two blobs that is being opened,
//! [`BUSY_WINDOWS`] that wait (up to [`NEIGHBOUR_WINDOWS`] in all for one that takes longer), and for each step of a chain of
//! blobs the bases of one, up to [`BASE_BYTES_MAX`]; and [`FORESEEN_ENTRIES`] of the plan: 125 MB for a restore at the end of
//! chains of eight, 77 MB without chains. Of a far store (S3) come [`FETCHED_BYTES`] as stored, what is on its way included:
//! 147 MB. A check holds a pack a thread beside that, and of a far store the next one, in pieces ([`CHECKED_PIECE_BYTES`]). A
//! backup that compresses against an older one reads with one opener: 140 MB in all, and 176 MB of two files of random bytes side by
//! side, where nearly every blob is compared with others in vain.
//!
//! `prune`, `check`, `stats` and `diff` hold, beside what a restore does, the tables of all chunks: 16 bytes for each of at
//! most [`HELD_ROWS_IN_MEMORY`] chunks and as many bases (beyond that in a temporary file), and for [`LOOKED_UP_TOGETHER`]
//! chunks (8 MiB, and 32 MiB); a few bits a chunk, 24 to 40 bytes a blob, 300 a pack: 40 MB for 20 million chunks in 16 MiB
//! packs.

/// Smallest, normal and largest chunk in bytes of the standard geometry (format-spec/chunking.md).
pub const CHUNK_BYTES_MIN_STD: u32 = 16 << 10;
pub const CHUNK_BYTES_AVG_STD: u32 = 64 << 10;
pub const CHUNK_BYTES_MAX_STD: u32 = 256 << 10;

/// No chunk of any geometry is longer than this.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A blob that vault writes has no more plaintext than this. Measured on a dump of 869 MB: the repository takes 106.3 MB with
/// 1 MiB, 104.3 MB with 2 MiB, 103.2 MB with 4 MiB; a restore of a single chunk opens all of its blob.
pub const BLOB_BYTES_MAX: usize = (2 << 20) + (128 << 10);
/// No blob's plaintext, nor any other sealed object's, is longer than this.
pub const RAW_BYTES_MAX: usize = 8 << 20;
/// No zstd frame may ask its reader for a longer window.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Header and tag around every sealed object's payload.
pub const BOX_BYTES_MIN: usize = 40 + 16;
/// Most chunks of one blob, and most bases.
pub const BLOB_CHUNKS_MAX: usize = 4096;
pub const BLOB_BASES_MAX: usize = 256;
/// Most bytes of bases, concatenated, that a blob may be compressed against: all of another blob, and room to spare.
pub const BASE_BYTES_MAX: usize = 4 << 20;
/// A blob with bases may rest on blobs with bases, this deep.
pub const DELTA_DEPTH_MAX: u8 = 8;

/// A blob ends where the oldest version of its place ends, if it has this much.
pub const DELTA_BLOB_BYTES_MIN: usize = 128 << 10;
/// Depth of chains in a repository that asks for no other: a chunk in a blob this deep is not a base, what its chain begins
/// with is. docs/decisions/delta.md has what each depth costs.
pub const DELTA_DEPTH_STD: u8 = 8;
/// Chunks of an item's earlier version that are known at a time, behind and ahead of the place being written.
pub const EARLIER_CHUNKS_BEHIND: usize = 1024;
pub const EARLIER_CHUNKS_AHEAD: usize = 2048;
/// All of it is passed over once more where the stream goes on elsewhere, unless more than so many chunks were, and so many for
/// each chunk of the stream.
pub const EARLIER_SCAN_FREE: u64 = 64 << 10;
pub const EARLIER_SCANS_PER_CHUNK: u64 = 16;
/// Bytes of a stream that are compressed against what stood there, where nobody knows where it is: to begin with, as much as is
/// on its way before it is known whether it helps; once more after that did not; and at most.
pub const GUESSED_BYTES_FIRST: i64 = 24 << 20;
pub const GUESSED_BYTES_AGAIN: i64 = 2 << 20;
pub const GUESSED_BYTES_MAX: i64 = 64 << 20;
/// Items of the parent snapshot in which bases are looked for: not smaller than this, and no more of them.
pub const EARLIER_ITEM_BYTES_MIN: u64 = 64 << 10;
pub const EARLIER_ITEMS_MAX: usize = 20_000;
/// An item of a name that is new is recognised among the items of so many older snapshots, by so many first chunks of each:
/// no more items than this, of no fewer chunks by their size, and of these chunks no more than this in all, 100 bytes each.
/// As many of the snapshot itself.
pub const SIMILAR_SNAPSHOTS_MAX: usize = 8;
pub const SIMILAR_FRONT_CHUNKS: usize = 64;
pub const SIMILAR_ITEMS_MAX: usize = 2048;
pub const SIMILAR_ITEM_CHUNKS_MIN: u64 = 8;
pub const SIMILAR_CHUNKS_MAX: usize = 32 << 10;
/// Of items that changed later than one's own earlier version so many, the last ones, are compared with it. Of those with names
/// like one that is new, and that was not recognised by its first chunks, as many.
pub const SEVERAL_ITEMS_MAX: usize = 4;
/// Before an item rests on another of the same snapshot all that was stored is put and listed, if there is so much of it.
pub const SETTLE_BYTES_MIN: u64 = 16 << 20;

/// A pack is closed when its blobs have reached this.
pub const PACK_BYTES_TARGET: usize = 16 << 20;
/// No pack is longer than this.
pub const PACK_BYTES_MAX: usize = 80 << 20;
/// A pack is also closed when it holds this many chunks, so that its directory stays small.
pub const PACK_CHUNKS_MAX: usize = 32 << 10;

/// An index object is written when this many chunks wait for one.
pub const INDEX_CHUNKS_MAX: usize = 48 << 10;
/// An index object is also written when a pack has waited this long for one: a backup that is killed leaves no more than
/// this to be stored again.
pub const INDEX_PUT_EVERY: std::time::Duration = std::time::Duration::from_secs(300);
/// Threads that get and decode index objects, each one of them at a time: about 6 MiB. More of them of a far store.
pub const INDEX_LOAD_THREADS: usize = 2;
pub const INDEX_LOAD_THREADS_FAR: usize = 4;
/// Chunks of the local index that are put in order in memory, 16 bytes each; more go through a temporary file.
pub const INDEX_SORTED_TOGETHER: usize = 512 << 10;
/// Blobs that the local index keeps as they were last read, and most chunks of theirs, 60 bytes each.
pub const INDEX_BLOBS_KEPT: usize = 256;
pub const INDEX_CHUNKS_KEPT: usize = 16 << 10;
/// Chunks, and bases, of the whole index that prune, check and stats hold in memory, 16 bytes each; more go to a temporary
/// file.
pub const HELD_ROWS_IN_MEMORY: usize = 512 << 10;
/// Blobs of chains that check and prune remember, to open them in the order of these: about 2 KiB each.
pub const CHAINED_BLOBS_TOGETHER: usize = 4096;
/// Chunks that are looked up in them together, 16 bytes each.
pub const LOOKED_UP_TOGETHER: usize = 2 << 20;
/// Plaintext of an index object that prune or repair writes, before one more pack goes into the next.
pub const INDEX_BYTES_TARGET: usize = 4 << 20;

/// Entries of a chunk list that stand in the item line (or manifest) itself; longer lists become list chunks.
pub const LIST_INLINE_ENTRIES: usize = 16;
/// What a reader accepts inline.
pub const LIST_INLINE_ENTRIES_MAX: usize = 4096;
/// Lists of lists of lists: 65,000 chunks a level make this reach further than any disk.
pub const STREAM_DEPTH_MAX: u32 = 4;

/// Longest manifest in bytes of JSON.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Longest item line in bytes.
pub const ITEM_LINE_BYTES_MAX: usize = 1 << 20;
/// Longest config object and key slot in bytes; most key slots.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
pub const SLOT_BYTES_MAX: usize = 4 << 10;
pub const SLOTS_MAX: usize = 64;

/// Cost of Argon2id as vault writes it (RFC 9106, second recommended option).
pub const ARGON2_M_KIB: u32 = 64 << 10;
pub const ARGON2_T: u32 = 3;
pub const ARGON2_P: u32 = 4;
/// What a reader accepts, decided before anything is allocated.
pub const ARGON2_M_KIB_RANGE: std::ops::RangeInclusive<u32> = (19 << 10)..=(4 << 20);
pub const ARGON2_T_RANGE: std::ops::RangeInclusive<u32> = 1..=16;
pub const ARGON2_P_RANGE: std::ops::RangeInclusive<u32> = 1..=16;

/// Bytes read or written at a time.
pub const STREAM_BUFFER_BYTES: usize = 1 << 20;
/// Bytes of a stream that one thread hashes and cuts, while others have the next: of about 200 KiB of them the ends of chunks are
/// looked for twice. A power of two: the hash of a stream is a tree over its segments.
pub const SEGMENT_BYTES: usize = 4 << 20;
/// Threads that help with streams which can be read, beside those that read them.
pub const HELPERS_MAX: usize = 3;
/// Blobs waiting to be sealed.
pub const SEAL_QUEUE_BLOBS: usize = 4;
/// Full packs waiting to be put, beside the one that is being put: the one being filled waits its turn.
pub const PUT_QUEUE_PACKS: usize = 0;
/// Packs that are put side by side into a far store; into a folder one at a time.
pub const UPLOADERS_FAR: usize = 2;
/// Blobs of which a backup remembers that they have all their bases.
pub const STANDING_BLOBS: usize = 64 << 10;
/// Bytes of opened blobs that a reader keeps for each of its openers: of each what will be asked for again, as far as that is
/// known. Where a place changed every day, what is there now lies in blobs of many days, which rest on each other: after 31 days
/// a restore opens 1.25 times as many bytes as the blobs have with 32 MiB in all, 1.15 times with 40, 1.1 times with 48
/// (docs/decisions/delta.md).
pub const OPENED_BYTES: usize = 20 << 20;

/// How far ahead a reader knows what a stream will ask for: so many bytes of it, windows, and chunks and bases of the blobs that
/// these lead to, 50 bytes each. What will be asked for again that soon is kept, as far as [`OPENED_BYTES`] go.
pub const FORESEEN_BYTES: usize = 256 << 20;
pub const FORESEEN_WINDOWS: usize = 1024;
pub const FORESEEN_ENTRIES: usize = 96 << 10;
/// In the beginning it is so many bytes, and so many times what was opened since more.
pub const FORESEEN_BYTES_FIRST: usize = 8 << 20;
pub const FORESEEN_GROWTH: usize = 2;

/// Windows of a stream that rest on the same blobs are opened by one thread, one after the other: at most so many, so many bytes,
/// and of a far store so many as stored, so that what was fetched for them is still there when they are opened.
pub const NEIGHBOUR_WINDOWS: usize = 16;
pub const NEIGHBOUR_BYTES: usize = 8 << 20;
pub const NEIGHBOUR_BYTES_STORED: usize = 1 << 20;
/// Windows that are opened for who is busy with those before them, for each opener.
pub const BUSY_WINDOWS: usize = 2;

/// Blobs of one pack that lie this close together are fetched in one request.
pub const FETCH_GAP_BYTES: u32 = 128 << 10;
/// A pack of a far store that is read in order is read ahead of in pieces that grow from this to that.
pub const PIECE_BYTES_MIN: u32 = 256 << 10;
pub const PIECE_BYTES_MAX: u32 = 1 << 20;
/// Bytes of packs, as stored, that a reader keeps of a far store beside what is on its way.
pub const FETCHED_BYTES: usize = 24 << 20;
/// A pack of a far store that is checked comes in pieces of so many bytes, several at once.
pub const CHECKED_PIECE_BYTES: u32 = 4 << 20;
/// Whoever reads a stream of a far store plans so many stored bytes ahead, and windows of two blobs; twice this is fetched or
/// on its way, beside the windows that wait for an opener: less than [`FETCHED_BYTES`]. What lies close together of it is one
/// request, up to so many bytes: a store on the same machine takes the processor for each (docs/performance.md).
pub const PLANNED_BYTES: usize = 8 << 20;
pub const PLANNED_PIECE_BYTES: u32 = 4 << 20;
pub const PLANNED_WINDOWS: usize = 128;
/// Manifests and other small objects that are asked for, or deleted, at once.
pub const SMALL_OBJECTS_AT_ONCE: usize = 16;
/// Packs of which is remembered how far they were read.
pub const RUNS_KEPT: usize = 64;

/// Bytes that one run leaves of its packs in the page cache, of a repository in a folder.
pub const PAGE_CACHE_BYTES: u64 = 256 << 20;
/// Bytes of packs that a host keeps of what it has put into a far store, and a check of what it has read; most of them, and how
/// many of them are open. That is on disk, in the cache folder. A day of `shop` adds 4 MB to 97.
pub const LOCAL_PACKS_BYTES: u64 = 256 << 20;
pub const LOCAL_PACKS_COUNT: usize = 1024;
pub const LOCAL_PACKS_OPEN: usize = 64;
