//! Drops single backups: a removal record, then the manifests. What only they held is garbage for the next prune.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::format::records::{Removal, RemovedBackup, encode_record};
use crate::id::{HostId, ObjectId};
use crate::repo::snapshots::{FindError, Snapshot, find};
use crate::repo::{RepoError, Repository, object_name};
use crate::seal::keys::Kind;

/// Backups that one record names at most; it stays far below the limit of a sealed object.
const RECORD_BACKUPS_MAX: usize = 10_000;

/// What to drop.
#[derive(Debug, Clone)]
pub struct ForgetOptions {
    /// Ids, unique prefixes of ids, or `latest`, `latest:SOURCE`.
    pub words: Vec<String>,
    /// Name of this host, for the record.
    pub host: String,
    pub now: Timestamp,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Serialize)]
pub struct ForgetReport {
    pub dry_run: bool,
    pub dropped: Vec<Dropped>,
}

/// One backup that was dropped.
#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    pub id: ObjectId,
    /// Absent where the manifest could not be read.
    #[serde(flatten)]
    pub facts: Option<DroppedFacts>,
}

/// What its manifest said.
#[derive(Debug, Clone, Serialize)]
pub struct DroppedFacts {
    pub time: Timestamp,
    pub source: String,
    pub name: String,
    pub host: String,
    pub bytes: u64,
}

/// Why nothing was dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Repo(#[from] RepoError),
}

/// Drops backups. Either all words name one, or nothing is dropped.
///
/// A backup whose manifest is damaged, or that the store has lost, can be dropped too, by its id: then its loss is no
/// longer an alarm.
pub fn forget(repo: &Arc<Repository>, options: &ForgetOptions) -> Result<ForgetReport, ForgetError> {
    repo.require_delete()?;
    let (snapshots, damaged) = repo.snapshots_and_damage()?;
    let mut damaged: Vec<ObjectId> = damaged.into_iter().map(|(id, _)| id).collect();
    let lost = lost(repo, &snapshots)?;
    damaged.extend(lost.into_iter().map(|(id, _)| id).filter(|id| !damaged.contains(id)).collect::<Vec<_>>());
    let mut dropped: Vec<(RemovedBackup, Dropped)> = Vec::new();
    for word in &options.words {
        let one = match find_any(&snapshots, &damaged, word)? {
            Found::Snapshot(snapshot) => describe(snapshot),
            Found::Damaged(id) => (RemovedBackup { id, host_id: HostId([0; 16]), seq: 0 }, Dropped { id, facts: None }),
        };
        if dropped.iter().all(|(other, _)| other.id != one.0.id) {
            dropped.push(one);
        }
    }
    let (backups, dropped): (Vec<_>, Vec<_>) = dropped.into_iter().unzip();
    if !options.dry_run && !backups.is_empty() {
        remove(repo, &backups, &options.host, options.now)?;
    }
    Ok(ForgetReport { dry_run: options.dry_run, dropped })
}

/// Backups that others name as the one before them, and that are neither there nor recorded as dropped.
pub(super) fn lost<'s>(
    repo: &Repository,
    snapshots: &'s [Snapshot],
) -> Result<Vec<(ObjectId, &'s Snapshot)>, RepoError> {
    let listed: HashSet<ObjectId> = snapshots.iter().map(|snapshot| snapshot.id).collect();
    let mut lost: BTreeMap<ObjectId, &Snapshot> = BTreeMap::new();
    for snapshot in snapshots {
        if let Some(previous) = snapshot.manifest.previous.filter(|previous| !listed.contains(previous)) {
            lost.entry(previous).or_insert(snapshot);
        }
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let removed = repo.removed()?;
    Ok(lost.into_iter().filter(|(id, _)| !removed.contains(id)).collect())
}

enum Found<'s> {
    Snapshot(&'s Snapshot),
    Damaged(ObjectId),
}

fn find_any<'s>(snapshots: &'s [Snapshot], damaged: &[ObjectId], word: &str) -> Result<Found<'s>, FindError> {
    let lower = word.to_ascii_lowercase();
    let is_hex = !word.is_empty() && lower.bytes().all(|b| b.is_ascii_hexdigit());
    let mut matching = damaged.iter().filter(|id| is_hex && id.hex().starts_with(&lower)).peekable();
    if matching.peek().is_none() {
        return find(snapshots, word).map(Found::Snapshot);
    }
    let readable = snapshots.iter().map(|snapshot| &snapshot.id).filter(|id| id.hex().starts_with(&lower));
    let candidates: Vec<_> = matching.chain(readable).collect();
    match candidates[..] {
        [id] => Ok(Found::Damaged(*id)),
        _ => {
            let candidates = candidates.iter().take(8).map(|id| id.hex()[..16].to_owned()).collect();
            Err(FindError::Ambiguous { word: word.to_owned(), candidates })
        }
    }
}

fn describe(snapshot: &Snapshot) -> (RemovedBackup, Dropped) {
    let manifest = &snapshot.manifest;
    let facts = DroppedFacts {
        time: manifest.time,
        source: manifest.source.clone(),
        name: manifest.name.clone(),
        host: manifest.host.clone(),
        bytes: manifest.bytes,
    };
    (removed(snapshot), Dropped { id: snapshot.id, facts: Some(facts) })
}

/// The line of a removal record for a snapshot.
pub(super) fn removed(snapshot: &Snapshot) -> RemovedBackup {
    RemovedBackup { id: snapshot.id, host_id: snapshot.manifest.host_id, seq: snapshot.manifest.seq }
}

/// Puts the removal record, then deletes the manifests.
pub(super) fn remove(
    repo: &Repository,
    backups: &[RemovedBackup],
    host: &str,
    now: Timestamp,
) -> Result<(), RepoError> {
    record(repo, backups, host, now)?;
    delete_manifests(repo, backups)
}

/// Puts the removal record.
pub(super) fn record(
    repo: &Repository,
    backups: &[RemovedBackup],
    host: &str,
    now: Timestamp,
) -> Result<(), RepoError> {
    for part in backups.chunks(RECORD_BACKUPS_MAX) {
        let record = Removal { time: now, host: host.to_owned(), backups: part.to_vec(), supersedes: Vec::new() };
        repo.save(Kind::Removal, &encode_record(&record))?;
    }
    Ok(())
}

/// Deletes manifests, oldest first as they come.
pub(super) fn delete_manifests(repo: &Repository, backups: &[RemovedBackup]) -> Result<(), RepoError> {
    for backup in backups {
        repo.backend.delete(&object_name(Kind::Manifest, &backup.id))?;
    }
    Ok(())
}
