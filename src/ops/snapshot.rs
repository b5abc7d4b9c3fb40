//! Takes a snapshot: runs a source, stores what is new, commits the manifest.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::format::manifest::{MANIFEST_VERSION, Manifest};
use crate::id::ObjectId;
use crate::pipeline::PipelineError;
use crate::pipeline::packer::{Added, Blob, Packer, Pending};
use crate::pipeline::snapshot::{SnapshotWriter, WriteOptions, Written};
use crate::progress::Progress;
use crate::repo::lease::HeldLease;
use crate::repo::snapshots::Snapshot;
use crate::repo::state::Seen;
use crate::repo::{RepoError, Repository, pack_name};
use crate::seal::keys::Kind;
use crate::source::{ItemSink, ItemSource, SourceFacts};

use super::restore::SnapshotItems;

/// What to call the snapshot, and how to write it.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// `postgres`, `files`, `stdin`...
    pub source: String,
    pub name: String,
    pub host: String,
    pub tags: Vec<String>,
    /// What of the run's options decides what is in it.
    pub options: Map<String, Value>,
    pub write: WriteOptions,
    /// When the run began.
    pub time: Timestamp,
}

/// Why no snapshot was committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError<E: std::error::Error + 'static> {
    #[error(transparent)]
    Source(E),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(
        "prune removed {packs} packs that this backup rests on while it was stopped: nothing was committed, run it again"
    )]
    Overtaken { packs: usize },
}

/// Takes a snapshot with what `take` pushes. `take` also gets the items of the parent snapshot, if there is one.
///
/// Nothing is committed unless `take` succeeds and all it pushed is durable.
pub fn snapshot<E: std::error::Error + 'static>(
    repo: &Arc<Repository>,
    options: SnapshotOptions,
    progress: &Progress,
    take: impl FnOnce(&dyn ItemSink, Option<&dyn ItemSource>) -> Result<SourceFacts, E>,
) -> Result<Snapshot, SnapshotError<E>> {
    let started = Instant::now();
    repo.require_write()?;
    // In this order: lease, marks, index (format-spec/records.md).
    let lease = HeldLease::take(repo, &options.host)?;
    let marked = repo.marked_packs()?;
    if let Some((_, error)) = repo.load_index(&Progress::default())?.into_iter().next() {
        return Err(error.into());
    }
    let snapshots = repo.snapshots()?;
    let parent = newest_of(&snapshots, &options);
    let parent_items =
        parent.map(|parent| SnapshotItems::new(repo.clone(), parent.manifest.clone(), 1, Progress::default()));

    let writer = SnapshotWriter::new(
        repo.clone(),
        parent.map(|parent| &parent.manifest),
        marked.clone(),
        options.write,
        progress.clone(),
    )?;
    let facts = match take(&writer, parent_items.as_ref().map(|items| items as &dyn ItemSource)) {
        Ok(facts) => facts,
        // What the pipeline could not do reaches the source as a write error; its own words are the better ones.
        Err(error) => return Err(writer.failure().map_or(SnapshotError::Source(error), SnapshotError::Pipeline)),
    };
    progress.doing("finishing");
    let mut written = writer.finish()?;
    settle(repo, &lease, &marked, &mut written, options.write)?;
    progress.check().map_err(|_| PipelineError::from(crate::progress::Cancelled))?;

    // The chain goes on from the newest manifest of this host, other processes' included.
    let snapshots = repo.snapshots()?;
    let previous = snapshots
        .iter()
        .filter(|snapshot| snapshot.manifest.host_id == repo.host_id)
        .max_by_key(|snapshot| (snapshot.manifest.seq, snapshot.manifest.time));
    let manifest = Manifest {
        vault: MANIFEST_VERSION,
        time: options.time,
        parent: parent.map(|parent| parent.id),
        source: options.source,
        name: options.name,
        host: options.host,
        host_id: repo.host_id,
        seq: previous.map_or(1, |previous| previous.manifest.seq + 1),
        previous: previous.map(|previous| previous.id),
        tags: options.tags,
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        engine: facts.engine,
        consistency: facts.consistency,
        warnings: facts.warnings,
        options: options.options,
        items: written.items,
        rows: written.rows,
        bytes: written.bytes,
        bytes_new: written.bytes_new,
        bytes_stored: written.bytes_stored,
        seconds: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        chunkers: written.chunkers,
        item_lines: written.item_lines,
    };
    let saved = repo.save(Kind::Manifest, &manifest.encode())?;
    repo.state.remember([(manifest.host_id, Seen { seq: manifest.seq, id: saved.id })]);
    drop(lease);
    Ok(Snapshot { id: saved.id, manifest })
}

/// The newest snapshot of the same source, name and host.
fn newest_of<'s>(snapshots: &'s [Snapshot], options: &SnapshotOptions) -> Option<&'s Snapshot> {
    snapshots.iter().rev().find(|snapshot| {
        let manifest = &snapshot.manifest;
        manifest.source == options.source && manifest.name == options.name && manifest.host == options.host
    })
}

/// Makes sure that nothing the snapshot rests on is going away: copies what prune has marked since the run began.
fn settle<E: std::error::Error + 'static>(
    repo: &Arc<Repository>,
    lease: &HeldLease<'_>,
    marked_before: &HashSet<ObjectId>,
    written: &mut Written,
    write: WriteOptions,
) -> Result<(), SnapshotError<E>> {
    if !lease.renew()? {
        let gone = missing_packs(repo, &written.rests_on)?;
        if gone > 0 {
            return Err(SnapshotError::Overtaken { packs: gone });
        }
    }
    let marked = repo.marked_packs()?;
    let fresh: HashSet<_> = marked.difference(marked_before).copied().collect();
    if fresh.is_empty() {
        return Ok(());
    }
    let rescue = in_danger(repo, &written.rests_on, &fresh)?;
    if !rescue.is_empty() {
        written.bytes_stored += copy_packs(repo, &rescue, write)?;
    }
    Ok(())
}

fn missing_packs(repo: &Repository, packs: &HashSet<ObjectId>) -> Result<usize, RepoError> {
    let mut missing = packs.clone();
    for (id, _) in repo.list(Kind::Directory)? {
        missing.remove(&id);
    }
    Ok(missing.len())
}

/// Packs among `marked` that the snapshot rests on: itself, or through the bases of blobs in such packs.
fn in_danger(
    repo: &Repository,
    rests_on: &HashSet<ObjectId>,
    marked: &HashSet<ObjectId>,
) -> Result<HashSet<ObjectId>, RepoError> {
    let mut needed = rests_on.clone();
    loop {
        let mut more = HashSet::new();
        repo.index.each_pack(&mut |pack, _, blobs| {
            if needed.contains(&pack) {
                let bases = blobs.iter().flat_map(|blob| &blob.contents.bases);
                let kept = |base: &crate::id::ChunkId| repo.index.find(base, |pack| !marked.contains(pack)).is_some();
                let lost = bases.filter(|base| !kept(&base.id));
                more.extend(lost.filter_map(|base| repo.index.find(&base.id, |_| true)).map(|found| found.blob.pack));
            }
            Ok(())
        })?;
        let before = needed.len();
        needed.extend(more);
        if needed.len() == before {
            return Ok(needed.intersection(marked).copied().collect());
        }
    }
}

/// Copies the blobs of packs, unopened, into new packs. Returns the bytes that were stored.
fn copy_packs(repo: &Arc<Repository>, packs: &HashSet<ObjectId>, write: WriteOptions) -> Result<u64, PipelineError> {
    let (pending, added) = (Arc::<Pending>::default(), Arc::<Added>::default());
    let packer = Packer::start(repo.clone(), pending, added.clone(), None, 1, write.level);
    repo.index.each_pack(&mut |pack, _, blobs| {
        if !packs.contains(&pack) {
            return Ok(());
        }
        for blob in blobs {
            let range = u64::from(blob.offset)..u64::from(blob.offset) + u64::from(blob.stored);
            let stored = repo.backend.get(&pack_name(&pack), Some(range))?;
            packer.push(Blob::Sealed { contents: blob.contents, stored }).map_err(|error| match error {
                PipelineError::Repo(error) => error,
                other => RepoError::Refused { detail: other.to_string() },
            })?;
        }
        Ok(())
    })?;
    packer.finish()?;
    Ok(added.bytes_stored.load(std::sync::atomic::Ordering::Relaxed))
}
