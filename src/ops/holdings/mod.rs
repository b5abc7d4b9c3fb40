//! What the index objects in the store say, as compact tables: which chunk lies in which blobs of which packs.
//!
//! Read from the store, never from the local index: prune and check decide by it. Each chunk takes a row of 16 bytes, and so
//! does each base of a blob: beyond half a million of them in a temporary file of the cache folder, 0.3 GB for each TiB of
//! chunks of 64 KiB ([`rows`]). In memory stay a bit or two a chunk ([`bits`]), 16 bytes a blob, 150 a pack, and one
//! index object while it is read: 40 MB for 20 million chunks.
//!
//! Chunks are found by the first 8 bytes of their names, which are keyed hashes: among 10^9 chunks one that is asked for
//! in vain is taken for another with a chance of 10^-10, and then garbage stays, or a missing chunk shows up only when it
//! is read.

pub mod bits;
pub mod chains;
pub mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::backend::BackendError;
use crate::format::index::{Index, PackIndex};
use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobEntry, BlobKind, Directory, decode_directory, directory_range, encode_directory};
use crate::id::{ChunkId, ObjectId};
use crate::limits::{HELD_ROWS_IN_MEMORY, LOOKED_UP_TOGETHER};
use crate::repo::index::BlobRow;
use crate::repo::together::in_order;
use crate::repo::{RepoError, Repository};
use crate::seal::boxed::open_object;
use crate::seal::keys::{Keys, Kind};

use bits::Bits;
use rows::{Room, Row, Rows, Sorter, Table};

/// The tables.
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
    /// Copies of chunks, and the blobs that they lie in.
    pub chunks: Table,
    /// Bases, and the blobs that rest on them, in the order of the blobs.
    pub bases: Rows,
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

impl HeldPack {
    /// A blob of its directory.
    pub fn row(&self, entry: BlobEntry) -> BlobRow {
        let BlobEntry { offset, stored, contents } = entry;
        BlobRow { pack: self.id, offset, stored, pack_bytes: self.bytes, contents }
    }

    /// The directory in `bytes`, which are all of the pack, if it says what the index says; else what is wrong with it.
    pub fn open_directory(&self, keys: &Keys, bytes: &[u8]) -> Result<Directory, String> {
        let range = directory_range(bytes.len() as u64, bytes).map_err(|error| error.to_string())?;
        let sealed = &bytes[range.start as usize..range.end as usize];
        let raw = open_object(keys, Kind::Directory, sealed).map_err(|error| error.to_string())?;
        if blake3::hash(&raw) != self.directory {
            return Err("its directory and the index say different things".to_owned());
        }
        decode_directory(&raw).map_err(|error| error.to_string())
    }
}

impl HeldBlob {
    /// How much of its plaintext prune keeps if `live` bytes of it are needed. Of a blob that rests on others all or nothing:
    /// sealed anew without its bases the rest would take more than all of it.
    pub fn kept_bytes(&self, live: u64) -> u64 {
        if self.depth > 0 && live > 0 { u64::from(self.raw_bytes) } else { live }
    }
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
        let mut left_out: HashSet<ObjectId> = HashSet::new();
        loop {
            let mut loader = Loader::new(Room { folder: repo.cache.clone(), rows_max: HELD_ROWS_IN_MEMORY });
            let (mut superseded, mut damaged, mut found) = (Vec::new(), Vec::new(), HashSet::new());
            let mut has_vanished = false;
            let listed: Vec<ObjectId> = repo.list(Kind::Index)?.into_iter().map(|(id, _)| id).collect();
            let load = |id: &ObjectId| repo.load_index_object(id).map(|index| (directory_hashes(&index), index));
            in_order(repo.index_threads(), &listed, load, |&id, loaded| {
                match loaded {
                    Ok((directories, index)) => {
                        found.extend(&index.supersedes);
                        if left_out.contains(&id) {
                            superseded.push(id);
                        } else {
                            loader.add(id, &index, &directories)?;
                        }
                    }
                    Err(RepoError::Backend(BackendError::NotFound { .. })) if !last_try => has_vanished = true,
                    Err(error) if is_damage(&error) => damaged.push((id, error)),
                    Err(error) => return Err(error),
                }
                Ok(())
            })?;
            if has_vanished {
                return Ok(None);
            }
            let added_in_vain = found.iter().any(|id| loader.objects.contains_key(id));
            // What took its place may have been taken back.
            let left_out_in_vain = superseded.iter().any(|id| !found.contains(id));
            if added_in_vain || left_out_in_vain {
                left_out = found;
                continue;
            }
            // A damaged one that was replaced is nobody's loss.
            let (replaced, damaged): (Vec<_>, Vec<_>) = damaged.into_iter().partition(|(id, _)| found.contains(id));
            superseded.extend(replaced.into_iter().map(|(id, _)| id));
            return Ok(Some(loader.finish(superseded, damaged)?));
        }
    }

    /// The number of a pack, if it is listed.
    pub fn pack(&self, id: &ObjectId) -> Option<u32> {
        self.pack_numbers.get(id).copied()
    }

    /// The blob that a chunk lies in.
    pub fn blob_of(&self, chunk: &Row) -> &HeldBlob {
        &self.blobs[chunk.blob as usize]
    }

    /// The number of the pack that a chunk lies in.
    pub fn pack_of(&self, chunk: &Row) -> u32 {
        self.blob_of(chunk).pack
    }

    /// The blobs in which a chunk of some lies, or the bits of no chunk.
    pub fn blobs_with(&self, some: &Bits) -> Result<Bits, RepoError> {
        let mut blobs = Bits::new(self.blobs.len());
        for (position, chunk) in self.chunks.iter().enumerate() {
            let chunk = chunk?;
            if some.get(position) {
                blobs.set(chunk.blob as usize);
            }
        }
        Ok(blobs)
    }

    /// The bases of blobs of which some are wanted.
    pub fn bases_of(&self, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = Result<Row, RepoError>> {
        self.bases.iter().filter(move |base| base.as_ref().map_or(true, |base| wanted(base.blob)))
    }

    /// Notes all copies of many chunks as `reached`, and leaves `wanted`, [`of_kind`], empty. Calls `missing` with each that
    /// has none.
    pub fn reach(
        &self,
        wanted: &mut Vec<Row>,
        reached: &mut Bits,
        mut missing: impl FnMut(&Row),
    ) -> Result<(), RepoError> {
        self.chunks.find_all(wanted, |wanted, start, copies| {
            let is_copy = |copy: &Row| copy.bytes == wanted.bytes && self.blob_of(copy).kind as u32 == wanted.blob;
            let mut found = (start..).zip(copies).filter(|(_, copy)| is_copy(copy)).peekable();
            if found.peek().is_none() {
                missing(wanted);
            }
            found.for_each(|(position, _)| {
                reached.set(position);
            });
            Ok(())
        })
    }

    /// Notes all copies of the bases of blobs that are `in_use` as `reached`, those of blobs that are `done` left out; says
    /// whether any was new. Calls `missing` for each that has no copy.
    pub fn reach_bases(
        &self,
        in_use: &Bits,
        done: &Bits,
        reached: &mut Bits,
        mut missing: impl FnMut() -> Result<(), RepoError>,
    ) -> Result<bool, RepoError> {
        let mut more = false;
        let is_asked = |blob: u32| in_use.get(blob as usize) && !done.get(blob as usize);
        self.look_up_bases(is_asked, |base, start, copies| {
            let mut found = (start..).zip(copies).filter(|(_, copy)| copy.bytes == base.bytes).peekable();
            if found.peek().is_none() {
                missing()?;
            }
            found.for_each(|(position, _)| more |= reached.set(position));
            Ok(())
        })?;
        Ok(more)
    }

    /// Looks up the bases of blobs of which some are `wanted`: calls `each` with every one, the blob that rests on it beside
    /// its prefix, the copies of its chunk, and the position of the first of them.
    pub fn look_up_bases(
        &self,
        wanted: impl Fn(u32) -> bool,
        mut each: impl FnMut(&Row, usize, &[Row]) -> Result<(), RepoError>,
    ) -> Result<(), RepoError> {
        let mut bases = Vec::new();
        for base in self.bases_of(wanted) {
            bases.push(base?);
            if bases.len() >= LOOKED_UP_TOGETHER {
                self.chunks.find_all(&mut bases, &mut each)?;
            }
        }
        self.chunks.find_all(&mut bases, each)
    }

    /// Adds to what is reached all that it rests on. Bases without a copy are passed over.
    pub fn with_bases(&self, mut reached: Bits) -> Result<Bits, RepoError> {
        let mut done = Bits::new(self.blobs.len());
        loop {
            let in_use = self.blobs_with(&reached)?;
            if !self.reach_bases(&in_use, &done, &mut reached, || Ok(()))? {
                return Ok(reached);
            }
            done = in_use;
        }
    }
}

/// The row of a chunk, with what the asker wants beside it.
pub fn row_of(entry: &ChunkEntry, blob: u32) -> Row {
    Row { prefix: prefix_of(&entry.id), blob, bytes: entry.bytes }
}

/// The row of a chunk that is looked for in blobs of a kind.
pub fn of_kind(entry: &ChunkEntry, kind: BlobKind) -> Row {
    row_of(entry, kind as u32)
}

fn directory_hashes(index: &Index) -> Vec<[u8; 32]> {
    index.packs.iter().map(|pack| *blake3::hash(&encode_directory(&pack.directory)).as_bytes()).collect()
}

/// Makes the tables.
struct Loader {
    objects: BTreeMap<ObjectId, HeldObject>,
    packs: Vec<HeldPack>,
    blobs: Vec<HeldBlob>,
    contradicted: Vec<ObjectId>,
    chunks: Sorter,
    bases: Rows,
    pack_numbers: HashMap<ObjectId, u32>,
}

impl Loader {
    fn new(room: Room) -> Self {
        Self {
            objects: BTreeMap::new(),
            packs: Vec::new(),
            blobs: Vec::new(),
            contradicted: Vec::new(),
            chunks: Sorter::new(room.clone()),
            bases: Rows::new(room),
            pack_numbers: HashMap::new(),
        }
    }

    /// `directories` are the hashes of what the index object says of each of its packs.
    fn add(&mut self, id: ObjectId, index: &Index, directories: &[[u8; 32]]) -> Result<(), RepoError> {
        let object = self.objects.entry(id).or_default();
        for pack in &index.packs {
            object.packs.push(pack.pack);
            object.chunks += pack.directory.iter().map(|blob| blob.contents.chunks.len()).sum::<usize>();
        }
        index.packs.iter().zip(directories).try_for_each(|(pack, directory)| self.add_pack(pack, *directory))
    }

    fn add_pack(&mut self, pack: &PackIndex, directory: [u8; 32]) -> Result<(), RepoError> {
        let number = |n: usize| u32::try_from(n).expect("fewer than 2^32 packs and blobs fit into memory");
        if let Some(&known) = self.pack_numbers.get(&pack.pack) {
            let known = &self.packs[known as usize];
            if known.directory != directory || known.bytes != pack.bytes {
                self.contradicted.push(pack.pack);
            }
            return Ok(());
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
            contents.chunks.iter().try_for_each(|chunk| self.chunks.push(row_of(chunk, blob)))?;
            contents.bases.iter().try_for_each(|base| self.bases.push(row_of(base, blob)))?;
        }
        self.pack_numbers.insert(pack.pack, number(self.packs.len()));
        let blobs = first..number(self.blobs.len());
        self.packs.push(HeldPack { id: pack.pack, bytes: pack.bytes, directory, blobs });
        Ok(())
    }

    fn finish(self, superseded: Vec<ObjectId>, damaged: Vec<(ObjectId, RepoError)>) -> Result<Holdings, RepoError> {
        Ok(Holdings {
            objects: self.objects,
            superseded,
            damaged,
            packs: self.packs,
            blobs: self.blobs,
            contradicted: self.contradicted,
            chunks: self.chunks.finish()?,
            bases: self.bases,
            pack_numbers: self.pack_numbers,
        })
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
