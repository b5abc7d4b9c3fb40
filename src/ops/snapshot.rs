//! Takes a snapshot: runs a source, stores what is new, commits the manifest.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::backend::BackendError;
use crate::format::manifest::{MANIFEST_VERSION, Manifest};
use crate::id::{ChunkId, ObjectId};
use crate::limits::SIMILAR_SNAPSHOTS_MAX;
use crate::pipeline::PipelineError;
use crate::pipeline::packer::{Added, Blob, Packer, Pending};
use crate::pipeline::snapshot::{Older, SnapshotWriter, WriteOptions, Written};
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

/// A snapshot that was taken.
#[derive(Debug)]
pub struct Taken {
    pub snapshot: Snapshot,
    /// How many bytes more would have been stored without deltas. The manifest does not keep it.
    pub bytes_saved_estimate: u64,
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
) -> Result<Taken, SnapshotError<E>> {
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
        older(&snapshots, &options),
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
    let held = lease.renew()?;
    settle(repo, &marked, &mut written, options.write, held)?;
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
        chunkers: std::mem::take(&mut written.chunkers),
        item_lines: written.item_lines.clone(),
    };
    let saved = repo.save(Kind::Manifest, &manifest.encode())?;
    if !lease.holds() {
        // Stopped for hours just now, this run came too late for a prune that did not wait.
        let settled = lease.renew().map_err(SnapshotError::Repo);
        let settled = settled.and_then(|_| settle(repo, &marked, &mut written, options.write, false));
        if let Err(error) = settled {
            let snapshot = Snapshot { id: saved.id, manifest };
            super::forget::remove(
                repo,
                &[super::forget::removed(&snapshot)],
                &snapshot.manifest.host,
                Timestamp::now(),
            )?;
            return Err(error);
        }
    }
    repo.state.remember([(manifest.host_id, Seen { seq: manifest.seq, id: saved.id })]);
    drop(lease);
    let bytes_saved_estimate = written.bytes_saved_estimate;
    Ok(Taken { snapshot: Snapshot { id: saved.id, manifest }, bytes_saved_estimate })
}

/// The newest snapshot of the same source, name and host.
fn newest_of<'s>(snapshots: &'s [Snapshot], options: &SnapshotOptions) -> Option<&'s Snapshot> {
    let wanted = (options.source.as_str(), options.name.as_str(), options.host.as_str());
    snapshots.iter().rev().find(|snapshot| series(&snapshot.manifest) == wanted)
}

/// Where bases are looked for: in the newest snapshot of the same source and name, of this host if there is one, and in the
/// newest of some others, those of the same source first.
fn older<'s>(snapshots: &'s [Snapshot], options: &SnapshotOptions) -> Older<'s> {
    let is_same = |manifest: &Manifest| manifest.source == options.source && manifest.name == options.name;
    let newest_first = snapshots.iter().rev().map(|snapshot| &snapshot.manifest);
    let elsewhere = newest_first.clone().find(|manifest| is_same(manifest));
    let same = newest_of(snapshots, options).map(|parent| &parent.manifest).or(elsewhere);
    let mut known = HashSet::new();
    known.extend(same.map(series));
    let mut others: Vec<_> = newest_first.filter(|manifest| known.insert(series(manifest))).collect();
    others.sort_by_key(|manifest| manifest.source != options.source);
    others.truncate(SIMILAR_SNAPSHOTS_MAX - usize::from(same.is_some()));
    Older { same, others }
}

/// What snapshots have in common that follow each other.
fn series(manifest: &Manifest) -> (&str, &str, &str) {
    (&manifest.source, &manifest.name, &manifest.host)
}

/// Makes sure that nothing the snapshot rests on is going away: copies what prune has marked since the run began.
///
/// If its lease has not held all the time, prune may have removed packs already, those of this run among them. The caller
/// has put a new one by then: what is marked after this reads the marks stays, and what was removed before is missing from
/// the listing after that.
fn settle<E: std::error::Error + 'static>(
    repo: &Arc<Repository>,
    marked_before: &HashSet<ObjectId>,
    written: &mut Written,
    write: WriteOptions,
    held: bool,
) -> Result<(), SnapshotError<E>> {
    let marked = repo.marked_packs()?;
    let mut unusable: HashSet<_> = marked.difference(marked_before).copied().collect();
    let mut relies_on = written.rests_on.clone();
    let mut missing = HashSet::new();
    if !held {
        relies_on.extend(&written.packs);
        missing = repo.index.packs()?.into_keys().chain(relies_on.iter().copied()).collect();
        for (id, _) in repo.list(Kind::Directory)? {
            missing.remove(&id);
        }
        unusable.extend(&missing);
    }
    if unusable.is_empty() {
        return Ok(());
    }
    let needed = needed(repo, &relies_on, &unusable)?;
    let overtaken = |packs| SnapshotError::Overtaken { packs };
    let gone = needed.packs.intersection(&missing).count() + needed.bases_gone;
    if gone > 0 {
        return Err(overtaken(gone));
    }
    if !needed.packs.is_empty() {
        let (copied, bytes_stored) = match copy_packs(repo, &needed.packs, write) {
            Err(PipelineError::Repo(RepoError::Backend(BackendError::NotFound { .. }))) => return Err(overtaken(1)),
            other => other?,
        };
        // Prune takes a pack out of the index before it deletes it.
        if copied < needed.packs.len() {
            return Err(overtaken(needed.packs.len() - copied));
        }
        written.bytes_stored += bytes_stored;
    }
    Ok(())
}

/// What a snapshot cannot do without.
struct Needed {
    /// Packs.
    packs: HashSet<ObjectId>,
    /// Bases that are in no pack the index lists.
    bases_gone: usize,
}

/// Packs among `unusable` that the snapshot needs: it relies on them, or on blobs whose bases are only there.
fn needed(repo: &Repository, relies_on: &HashSet<ObjectId>, unusable: &HashSet<ObjectId>) -> Result<Needed, RepoError> {
    let mut needed = relies_on.clone();
    loop {
        let (mut more, mut bases_gone) = (HashSet::new(), 0);
        repo.index.each_pack(&mut |pack, _, blobs| {
            if needed.contains(&pack) {
                let bases = blobs.iter().flat_map(|blob| &blob.contents.bases);
                let kept = |base: &ChunkId| repo.index.find(base, |pack| !unusable.contains(pack)).is_some();
                for base in bases.filter(|base| !kept(&base.id)) {
                    match repo.index.find(&base.id, |_| true) {
                        Some(found) => more.extend([found.blob.pack]),
                        None => bases_gone += 1,
                    }
                }
            }
            Ok(())
        })?;
        let before = needed.len();
        needed.extend(more);
        if needed.len() == before {
            return Ok(Needed { packs: needed.intersection(unusable).copied().collect(), bases_gone });
        }
    }
}

/// Copies the blobs of packs that the index lists, unopened, into new packs. Returns how many there were, and the bytes
/// that were stored.
fn copy_packs(
    repo: &Arc<Repository>,
    packs: &HashSet<ObjectId>,
    write: WriteOptions,
) -> Result<(usize, u64), PipelineError> {
    let (pending, added) = (Arc::<Pending>::default(), Arc::<Added>::default());
    let mut copied = 0;
    let packer = Packer::start(repo.clone(), pending, added.clone(), None, 1, write.level);
    repo.index.each_pack(&mut |pack, _, blobs| {
        if !packs.contains(&pack) {
            return Ok(());
        }
        copied += 1;
        for blob in blobs {
            let range = u64::from(blob.offset)..u64::from(blob.offset) + u64::from(blob.stored);
            let stored = repo.backend.get(&pack_name(&pack), Some(range))?;
            // Once storing has stopped, `finish` says why.
            if packer.push(Blob::Sealed { contents: blob.contents, stored }).is_err() {
                break;
            }
        }
        Ok(())
    })?;
    packer.finish()?;
    Ok((copied, added.bytes_stored()))
}
