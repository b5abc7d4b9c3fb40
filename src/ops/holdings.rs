//! What the index objects in the store say, as compact tables: which chunk lies in which blobs of which packs.
//!
//! Read from the store, never from the local index: prune and check decide by it. It takes 16 bytes a chunk and 1 byte of
//! flags: 0.3 GB for each TiB of chunks of 64 KiB. Chunks are found by the first 8 bytes of their names, which are keyed
//! hashes: among 10^9 chunks one that is asked for in vain is taken for another with a chance of 10^-10, and then
//! garbage stays, or a missing chunk shows up only when it is read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::backend::BackendError;
use crate::format::index::{Index, PackIndex};
use crate::format::pack::{BlobKind, encode_directory};
use crate::id::{ChunkId, ObjectId};
use crate::repo::{RepoError, Repository};
use crate::seal::keys::Kind;

/// The tables.
#[derive(Default)]
pub struct Holdings {
    /// Index objects that count, and what they list.
    pub objects: BTreeMap<ObjectId, HeldObject>,
    /// Index objects that are in the store although others took their place.
    pub superseded: Vec<ObjectId>,
    /// Index objects that count and cannot be read.
    pub damaged: Vec<(ObjectId, RepoError)>,
    pub packs: Vec<HeldPack>,
    pub blobs: Vec<HeldBlob>,
    /// Packs that two index objects list with different directories.
    pub contradicted: Vec<ObjectId>,
    chunks: Vec<HeldChunk>,
    /// One byte a chunk, for whoever works with the tables.
    pub flags: Vec<u8>,
    /// Bases of blobs, by blob.
    pub bases: Vec<(u32, u64, u32)>,
    pack_numbers: HashMap<ObjectId, u32>,
}

/// An index object.
#[derive(Debug, Clone, Default)]
pub struct HeldObject {
    pub packs: Vec<ObjectId>,
    pub chunks: usize,
}

/// A pack that is listed.
#[derive(Debug, Clone)]
pub struct HeldPack {
    pub id: ObjectId,
    pub bytes: u32,
    /// BLAKE3 of its directory's plaintext.
    pub directory: [u8; 32],
    /// Its blobs, in order.
    pub blobs: Range<u32>,
}

/// A blob of a pack.
#[derive(Debug, Clone, Copy)]
pub struct HeldBlob {
    pub pack: u32,
    pub stored: u32,
    pub raw_bytes: u32,
    pub kind: BlobKind,
    pub depth: u8,
}

/// A chunk of a blob.
#[derive(Debug, Clone, Copy)]
pub struct HeldChunk {
    prefix: u64,
    pub bytes: u32,
    pub blob: u32,
}

/// The first 8 bytes of a chunk's name.
pub fn prefix_of(id: &ChunkId) -> u64 {
    u64::from_be_bytes(*id.as_bytes().first_chunk().expect("a chunk id has 32 bytes"))
}

impl Holdings {
    /// Reads all index objects of the store.
    pub fn load(repo: &Repository) -> Result<Self, RepoError> {
        const TRIES: usize = 5;
        for _ in 1..TRIES {
            if let Some(holdings) = Self::try_load(repo, false)? {
                return Ok(holdings);
            }
        }
        let holdings = Self::try_load(repo, true)?;
        Ok(holdings.expect("objects that vanish are then damage"))
    }

    /// `None` if an index object vanished while they were read: somebody is replacing them.
    fn try_load(repo: &Repository, last_try: bool) -> Result<Option<Self>, RepoError> {
        // Which objects others took the place of is known once all have been read. As a rule there are none, and one
        // pass is enough; else what was added in vain is left out by a second.
        let mut superseded: HashSet<ObjectId> = HashSet::new();
        loop {
            let listed = repo.list(Kind::Index)?;
            let mut holdings = Self::default();
            let mut found: HashSet<ObjectId> = HashSet::new();
            for (id, _) in listed {
                match repo.load_index_object(&id) {
                    Ok(index) => {
                        found.extend(&index.supersedes);
                        if superseded.contains(&id) {
                            holdings.superseded.push(id);
                        } else {
                            holdings.add(id, &index);
                        }
                    }
                    Err(RepoError::Backend(BackendError::NotFound { .. })) if !last_try => return Ok(None),
                    Err(error) if is_damage(&error) => holdings.damaged.push((id, error)),
                    Err(error) => return Err(error),
                }
            }
            let added_in_vain = found.iter().any(|id| holdings.objects.contains_key(id));
            // What took its place may have been taken back.
            let left_out_in_vain = holdings.superseded.iter().any(|id| !found.contains(id));
            if added_in_vain || left_out_in_vain {
                superseded = found;
                continue;
            }
            // A damaged one that was replaced is nobody's loss.
            let (replaced, damaged): (Vec<_>, Vec<_>) =
                std::mem::take(&mut holdings.damaged).into_iter().partition(|(id, _)| found.contains(id));
            holdings.superseded.extend(replaced.into_iter().map(|(id, _)| id));
            holdings.damaged = damaged;
            holdings.chunks.sort_unstable_by_key(|chunk| (chunk.prefix, chunk.blob));
            holdings.flags = vec![0; holdings.chunks.len()];
            return Ok(Some(holdings));
        }
    }

    fn add(&mut self, id: ObjectId, index: &Index) {
        let object = self.objects.entry(id).or_default();
        for pack in &index.packs {
            object.packs.push(pack.pack);
            object.chunks += pack.directory.iter().map(|blob| blob.contents.chunks.len()).sum::<usize>();
        }
        for pack in &index.packs {
            self.add_pack(pack);
        }
    }

    fn add_pack(&mut self, pack: &PackIndex) {
        let number = |n: usize| u32::try_from(n).expect("fewer than 2^32 packs and blobs fit into memory");
        let directory = *blake3::hash(&encode_directory(&pack.directory)).as_bytes();
        if let Some(&known) = self.pack_numbers.get(&pack.pack) {
            let known = &self.packs[known as usize];
            if known.directory != directory || known.bytes != pack.bytes {
                self.contradicted.push(pack.pack);
            }
            return;
        }
        let first = number(self.blobs.len());
        for entry in &pack.directory {
            let blob = number(self.blobs.len());
            let contents = &entry.contents;
            self.blobs.push(HeldBlob {
                pack: number(self.packs.len()),
                stored: entry.stored,
                raw_bytes: number(contents.raw_bytes()),
                kind: contents.kind,
                depth: contents.depth,
            });
            let chunks = contents.chunks.iter();
            self.chunks.extend(chunks.map(|chunk| HeldChunk {
                prefix: prefix_of(&chunk.id),
                bytes: chunk.bytes,
                blob,
            }));
            self.bases.extend(contents.bases.iter().map(|base| (blob, prefix_of(&base.id), base.bytes)));
        }
        self.pack_numbers.insert(pack.pack, number(self.packs.len()));
        let blobs = first..number(self.blobs.len());
        self.packs.push(HeldPack { id: pack.pack, bytes: pack.bytes, directory, blobs });
    }

    /// The number of a pack, if it is listed.
    pub fn pack(&self, id: &ObjectId) -> Option<u32> {
        self.pack_numbers.get(id).copied()
    }

    /// Positions of all copies of a chunk.
    pub fn find(&self, prefix: u64) -> Range<usize> {
        let start = self.chunks.partition_point(|chunk| chunk.prefix < prefix);
        let copies = self.chunks[start..].iter().take_while(|chunk| chunk.prefix == prefix).count();
        start..start + copies
    }

    /// All copies of all chunks, copies of one chunk side by side.
    pub fn chunks(&self) -> &[HeldChunk] {
        &self.chunks
    }

    /// Runs of copies of one chunk.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.chunks.chunk_by(|a, b| a.prefix == b.prefix).map(move |run| {
            let range = start..start + run.len();
            start = range.end;
            range
        })
    }

    /// The pack of the chunk at a position.
    pub fn pack_of(&self, position: usize) -> u32 {
        self.blobs[self.chunks[position].blob as usize].pack
    }
}

impl HeldChunk {
    /// The first 8 bytes of its name.
    pub fn prefix(&self) -> u64 {
        self.prefix
    }
}

/// Whether an error says that stored bytes are not what they were, as opposed to out of reach.
pub fn is_damage(error: &RepoError) -> bool {
    matches!(
        error,
        RepoError::Damaged { .. }
            | RepoError::Format { .. }
            | RepoError::Backend(
                BackendError::NotFound { .. } | BackendError::ShortRange { .. } | BackendError::Damaged { .. }
            )
    )
}
