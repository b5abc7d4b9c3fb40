//! Makes derived things anew: the index from the packs, this host's memory of the repository. Never deletes data: index
//! objects that are replaced stay until the next prune.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::backend::BackendError;
use crate::format::index::{Index, PackIndex};
use crate::format::pack::{PACK_TRAILER_BYTES, decode_directory, directory_range};
use crate::id::ObjectId;
use crate::limits::{INDEX_BYTES_TARGET, INDEX_CHUNKS_MAX, PACK_BYTES_MAX};
use crate::ops::holdings::is_damage;
use crate::ops::prune::{PruneError, take_lease_of};
use crate::progress::{Cancelled, Progress};
use crate::repo::{RepoError, Repository, damaged, pack_name};
use crate::seal::boxed::open_object;
use crate::seal::keys::Kind;

/// How the index is repaired.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Name of this host, for the lease.
    pub host: String,
    pub now: Timestamp,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was made anew.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RepairReport {
    pub dry_run: bool,
    /// Packs whose directories were read.
    pub packs: usize,
    /// Of these, packs that no index object listed.
    pub packs_found: usize,
    /// Packs whose directory cannot be read, and that are listed as an old index object says.
    pub packs_by_old_index: Vec<String>,
    /// Packs whose directory cannot be read and that nothing else describes: what they hold is lost.
    pub packs_unreadable: Vec<String>,
    /// Packs that were listed and are not in the store.
    pub packs_missing: Vec<String>,
    pub index_objects_old: usize,
    pub index_objects_new: usize,
}

/// Makes all index objects anew, from the directories of the packs. Other prunes and repairs keep away meanwhile.
pub fn repair_index(
    repo: &Arc<Repository>,
    options: &RepairOptions,
    progress: &Progress,
) -> Result<RepairReport, PruneError> {
    repo.require_write()?;
    let lease = if options.dry_run { None } else { Some(take_lease_of(repo, &options.host)?) };
    let mut report = RepairReport { dry_run: options.dry_run, ..RepairReport::default() };
    progress.phase("reading the directories of packs");
    // What can be read of the old index stands in for directories that cannot.
    let old: Vec<ObjectId> = repo.list(Kind::Index)?.into_iter().map(|(id, _)| id).collect();
    let mut listed: HashMap<ObjectId, PackIndex> = HashMap::new();
    for id in &old {
        match repo.load_index_object(id) {
            Ok(index) => listed.extend(index.packs.into_iter().map(|pack| (pack.pack, pack))),
            Err(error) if is_damage(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let packs = repo.list(Kind::Directory)?;
    progress.add_items_total(packs.len() as u64);
    let mut writer =
        IndexWriter { repo, dry_run: options.dry_run, filling: Index::default(), sizes: (0, 0), full: vec![] };
    let mut stored = HashSet::new();
    for (id, info) in packs {
        if progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        if info.name != pack_name(&id) || !stored.insert(id) {
            continue;
        }
        match directory(repo, &id, info.bytes) {
            Ok(pack) => {
                report.packs += 1;
                report.packs_found += usize::from(!listed.contains_key(&id));
                writer.add(pack)?;
            }
            // Deleted by its backup's end or by hand since the listing.
            Err(RepoError::Backend(BackendError::NotFound { .. })) => {}
            Err(error) if is_damage(&error) => match listed.get(&id) {
                Some(pack) => {
                    report.packs_by_old_index.push(info.name);
                    writer.add(pack.clone())?;
                }
                None => report.packs_unreadable.push(format!("{}: {error}", info.name)),
            },
            Err(error) => return Err(error.into()),
        }
        progress.add_items(1);
    }
    report.packs_missing = listed.keys().filter(|id| !stored.contains(id)).map(pack_name).collect();
    report.packs_missing.sort();
    report.index_objects_old = old.len();
    if let Some(lease) = &lease
        && !lease.renew()?
    {
        return Err(PruneError::Lapsed);
    }
    report.index_objects_new = writer.finish(old)?;
    if !options.dry_run {
        repo.load_index(&Progress::default())?;
    }
    Ok(report)
}

/// Forgets what this host remembers of the repository, for one that was restored from a copy on purpose.
pub fn repair_state(repo: &Repository) {
    repo.state.reset();
}

/// Reads a pack's directory by two ranged gets.
fn directory(repo: &Repository, id: &ObjectId, bytes: u64) -> Result<PackIndex, RepoError> {
    let name = pack_name(id);
    let size = u32::try_from(bytes).ok().filter(|size| *size as usize <= PACK_BYTES_MAX);
    let size = size.ok_or_else(|| RepoError::Damaged { name: name.clone(), detail: "it is too long".to_owned() })?;
    let format = |source| RepoError::Format { name: name.clone(), source };
    let tail = repo.backend.get(&name, Some(bytes.saturating_sub(PACK_TRAILER_BYTES as u64)..bytes))?;
    let range = directory_range(bytes, &tail).map_err(format)?;
    let end = range.start;
    let sealed = repo.backend.get(&name, Some(range))?;
    let raw = open_object(&repo.keys, Kind::Directory, sealed).map_err(|error| damaged(&name, &error))?;
    let directory = decode_directory(&raw).map_err(format)?;
    let blobs_end = directory.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.stored));
    if blobs_end != end {
        let detail = "its directory does not begin where its blobs end".to_owned();
        return Err(RepoError::Damaged { name, detail });
    }
    Ok(PackIndex { pack: *id, bytes: size, directory })
}

/// Gathers packs into index objects. The last of them takes the place of the old ones.
struct IndexWriter<'a> {
    repo: &'a Repository,
    dry_run: bool,
    filling: Index,
    /// Chunks and about as many bytes as `filling` has.
    sizes: (usize, usize),
    full: Vec<ObjectId>,
}

impl IndexWriter<'_> {
    fn add(&mut self, pack: PackIndex) -> Result<(), RepoError> {
        if self.sizes.0 >= INDEX_CHUNKS_MAX || self.sizes.1 >= INDEX_BYTES_TARGET {
            self.put()?;
        }
        for blob in &pack.directory {
            self.sizes.0 += blob.contents.chunks.len();
            self.sizes.1 += 14 + 36 * (blob.contents.chunks.len() + blob.contents.bases.len());
        }
        self.filling.packs.push(pack);
        Ok(())
    }

    fn put(&mut self) -> Result<(), RepoError> {
        let index = std::mem::take(&mut self.filling);
        self.sizes = (0, 0);
        let plaintext = index.encode();
        let id = if self.dry_run { ObjectId::of(&plaintext) } else { self.repo.save(Kind::Index, &plaintext)?.id };
        self.full.push(id);
        Ok(())
    }

    fn finish(mut self, old: Vec<ObjectId>) -> Result<usize, RepoError> {
        if old.is_empty() && self.filling.packs.is_empty() {
            return Ok(self.full.len());
        }
        self.filling.supersedes = old;
        self.put()?;
        Ok(self.full.len())
    }
}
