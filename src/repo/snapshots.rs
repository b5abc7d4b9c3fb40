//! The manifests of a repository: listed from the store, opened from the local copy where there is one.

use crate::backend::BackendError;
use crate::format::manifest::Manifest;
use crate::id::ObjectId;
use crate::limits::SMALL_OBJECTS_AT_ONCE;
use crate::repo::state::Seen;
use crate::repo::together::together;
use crate::repo::{RepoError, Repository, damaged, object_name};
use crate::seal::boxed::open_object;
use crate::seal::keys::Kind;

/// A committed backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub id: ObjectId,
    pub manifest: Manifest,
}

/// Why a word does not name one snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    #[error("no backup {word:?} in the repository: `vault snapshots` lists what there is")]
    Unknown { word: String },
    #[error("{word:?} could be any of {}: give more digits", .candidates.join(", "))]
    Ambiguous { word: String, candidates: Vec<String> },
}

impl Repository {
    /// Returns all snapshots, oldest first, and remembers the newest of every host.
    ///
    /// Errors with [`RepoError::Rollback`] if a manifest that this installation has seen is gone without a removal record.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, RepoError> {
        let (snapshots, damaged) = self.snapshots_and_damage()?;
        match damaged.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(snapshots),
        }
    }

    /// Like [`snapshots`](Self::snapshots), but manifests that cannot be read are returned beside those that can.
    pub fn snapshots_and_damage(&self) -> Result<(Vec<Snapshot>, Vec<(ObjectId, RepoError)>), RepoError> {
        let listed = self.list(Kind::Manifest)?;
        let opened = together(SMALL_OBJECTS_AT_ONCE, &listed, |(id, _)| match self.snapshot(id) {
            // Removed between the listing and now.
            Err(RepoError::Backend(BackendError::NotFound { .. })) => Ok(None),
            Err(error @ (RepoError::Damaged { .. } | RepoError::Format { .. })) => Ok(Some(Err((*id, error)))),
            other => other.map(|snapshot| Some(Ok(snapshot))),
        })?;
        let (mut snapshots, mut unreadable) = (Vec::with_capacity(listed.len()), Vec::new());
        for snapshot in opened.into_iter().flatten() {
            match snapshot {
                Ok(snapshot) => snapshots.push(snapshot),
                Err(error) => unreadable.push(error),
            }
        }
        snapshots.sort_by_key(|a| (a.manifest.time, a.manifest.seq, a.id));
        self.notice_rollback(&listed.iter().map(|(id, _)| *id).collect())?;
        self.state.remember(
            snapshots
                .iter()
                .map(|snapshot| (snapshot.manifest.host_id, Seen { seq: snapshot.manifest.seq, id: snapshot.id })),
        );
        self.index.keep_manifests(&listed.iter().map(|(id, _)| *id).collect());
        Ok((snapshots, unreadable))
    }

    fn notice_rollback(&self, listed: &std::collections::HashSet<ObjectId>) -> Result<(), RepoError> {
        let mut missing = self.state.seen();
        missing.retain(|(_, seen)| !listed.contains(&seen.id));
        if missing.is_empty() {
            return Ok(());
        }
        let removed = self.removed()?;
        match missing.iter().find(|(_, seen)| !removed.contains(&seen.id)) {
            None => Ok(()),
            Some((host, seen)) => Err(RepoError::Rollback {
                location: self.backend.properties().location,
                detail: format!("backup {} (number {} of host {host}) was here and is gone", seen.id.short(), seen.seq),
            }),
        }
    }

    /// Loads one snapshot by its id.
    pub fn snapshot(&self, id: &ObjectId) -> Result<Snapshot, RepoError> {
        let name = object_name(Kind::Manifest, id);
        // The local copy is compared with the name like one from the store.
        let sealed = match self.index.manifest(id).filter(|sealed| ObjectId::of(sealed) == *id) {
            Some(sealed) => sealed,
            None => {
                let sealed = self.load_sealed(Kind::Manifest, id)?.to_vec();
                self.index.add_manifest(id, &sealed);
                sealed
            }
        };
        let text = open_object(&self.keys, Kind::Manifest, sealed).map_err(|error| damaged(&name, &error))?;
        let manifest = Manifest::decode(&text).map_err(|source| RepoError::Format { name, source })?;
        Ok(Snapshot { id: *id, manifest })
    }
}

/// Finds the snapshot that `word` names: a unique prefix of an id, `latest`, `latest:SOURCE` or `latest:SOURCE:NAME`.
///
/// `snapshots` are oldest first.
pub fn find<'s>(snapshots: &'s [Snapshot], word: &str) -> Result<&'s Snapshot, FindError> {
    let unknown = || FindError::Unknown { word: word.to_owned() };
    if let Some(rest) = word.strip_prefix("latest") {
        let (source, name) = match rest.strip_prefix(':').map(|rest| rest.split_once(':').unwrap_or((rest, ""))) {
            None if rest.is_empty() => ("", ""),
            None => return Err(unknown()),
            Some(parts) => parts,
        };
        let matches = |snapshot: &&Snapshot| {
            (source.is_empty() || snapshot.manifest.source == source)
                && (name.is_empty() || snapshot.manifest.name == name)
        };
        return snapshots.iter().rev().find(matches).ok_or_else(unknown);
    }
    let is_prefix = !word.is_empty() && word.len() <= 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let lower = word.to_ascii_lowercase();
    let found: Vec<_> =
        snapshots.iter().filter(|snapshot| is_prefix && snapshot.id.hex().starts_with(&lower)).collect();
    match found[..] {
        [] => Err(unknown()),
        [one] => Ok(one),
        _ => {
            let candidates = found.iter().take(8).map(|snapshot| snapshot.id.hex()[..16].to_owned()).collect();
            Err(FindError::Ambiguous { word: word.to_owned(), candidates })
        }
    }
}
