//! What the backups take: plaintext and stored bytes, by source and in all, and what each backup alone holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::ops::holdings::{Holdings, prefix_of};
use crate::ops::retention::Group;
use crate::ops::walk::{Owner, SHARED, Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::{RepoError, Repository};
use crate::seal::keys::Kind;

/// Sums over the repository.
#[derive(Debug, Clone, Serialize)]
pub struct StatsReport {
    pub backups: usize,
    /// Plaintext of all items of all backups.
    pub bytes_logical: u64,
    /// Plaintext of all chunks that some backup reaches, each counted once.
    pub bytes_unique: u64,
    /// All packs, index objects and manifests in the store.
    pub bytes_stored: u64,
    /// Of these, packs and parts of packs that no backup reaches.
    pub bytes_unused: u64,
    /// `bytes_logical` by `bytes_stored`.
    pub ratio: f64,
    pub packs: usize,
    pub chunks: usize,
    pub sources: Vec<SourceStats>,
    /// Oldest first.
    pub each: Vec<BackupStats>,
}

/// Sums over the backups of one source, name and host.
#[derive(Debug, Clone, Serialize)]
pub struct SourceStats {
    #[serde(flatten)]
    pub group: Group,
    pub backups: usize,
    pub bytes_logical: u64,
    /// Stored bytes of what these backups reach, by the share of each blob. What sources share counts for each of them.
    pub bytes_stored: u64,
    pub ratio: f64,
}

/// What one backup is and holds.
#[derive(Debug, Clone, Serialize)]
pub struct BackupStats {
    pub id: ObjectId,
    pub time: Timestamp,
    #[serde(flatten)]
    pub group: Group,
    pub items: u64,
    pub bytes: u64,
    /// Plaintext that was new when it was taken.
    pub bytes_new: u64,
    /// Plaintext, and stored bytes, that no other backup reaches: what dropping it frees.
    pub bytes_alone: u64,
    pub bytes_alone_stored: u64,
}

/// Nobody has reached a chunk yet.
const NOBODY: Owner = SHARED - 1;

/// Follows all backups twice: once for what each holds alone, once for what each source holds.
pub fn stats(repo: &Arc<Repository>, progress: &Progress) -> Result<StatsReport, PipelineError> {
    progress.phase("following the backups");
    let snapshots = repo.snapshots()?;
    repo.load_index(&Progress::default())?;
    let holdings = Holdings::load(repo)?;
    if let Some((_, error)) = holdings.damaged.first() {
        let detail = format!("{error}; `vault repair index` makes the index anew");
        return Err(RepoError::Damaged { name: "the index".to_owned(), detail }.into());
    }
    let mut groups: BTreeMap<Group, Owner> = BTreeMap::new();
    let group_of = |snapshot: &crate::repo::snapshots::Snapshot| Group {
        source: snapshot.manifest.source.clone(),
        name: snapshot.manifest.name.clone(),
        host: snapshot.manifest.host.clone(),
    };
    for snapshot in &snapshots {
        groups.entry(group_of(snapshot)).or_insert(0);
    }
    for (number, owner) in groups.values_mut().enumerate() {
        *owner = number as Owner;
    }
    progress.add_items_total(2 * snapshots.len() as u64);
    let reader = Reader::new(repo.clone(), 1, progress.clone());

    let mut alone = vec![NOBODY; holdings.chunks().len()];
    let mut walker = Walker::new(&reader);
    for (number, snapshot) in snapshots.iter().enumerate() {
        stop_if_asked(progress)?;
        let owner = number as Owner;
        walker.walk(owner, &snapshot.manifest, &mut Owners { holdings: &holdings, owners: &mut alone, owner })?;
        progress.add_items(1);
    }
    // For the sources, each group is walked on its own: what two share counts for both.
    let mut by_group = vec![0u64; groups.len()];
    for (group, number) in &groups {
        let mut reached = vec![NOBODY; holdings.chunks().len()];
        let mut walker = Walker::new(&reader);
        for snapshot in snapshots.iter().filter(|snapshot| group_of(snapshot) == *group) {
            stop_if_asked(progress)?;
            walker.walk(0, &snapshot.manifest, &mut Owners { holdings: &holdings, owners: &mut reached, owner: 0 })?;
            progress.add_items(1);
        }
        by_group[*number as usize] =
            shares(&holdings, |position| reached[position] != NOBODY).iter().map(|share| share.1).sum();
    }

    let mut each = Vec::with_capacity(snapshots.len());
    let mut plain = vec![0u64; snapshots.len()];
    let mut stored = vec![0f64; snapshots.len()];
    let mut bytes_unique = 0;
    for run in holdings.runs() {
        let chunk = holdings.chunks()[run.start];
        let owner = alone[run.start];
        if owner != NOBODY {
            bytes_unique += u64::from(chunk.bytes);
        }
        if owner < NOBODY {
            plain[owner as usize] += u64::from(chunk.bytes);
            let blob = &holdings.blobs[chunk.blob as usize];
            stored[owner as usize] +=
                f64::from(blob.stored) * f64::from(chunk.bytes) / f64::from(blob.raw_bytes.max(1));
        }
    }
    for (number, snapshot) in snapshots.iter().enumerate() {
        each.push(BackupStats {
            id: snapshot.id,
            time: snapshot.manifest.time,
            group: group_of(snapshot),
            items: snapshot.manifest.items,
            bytes: snapshot.manifest.bytes,
            bytes_new: snapshot.manifest.bytes_new,
            bytes_alone: plain[number],
            bytes_alone_stored: stored[number].round() as u64,
        });
    }
    let mut bytes_stored = 0;
    let mut packs = 0;
    let mut packs_bytes = 0;
    for kind in [Kind::Directory, Kind::Index, Kind::Manifest] {
        for (_, info) in repo.list(kind)? {
            bytes_stored += info.bytes;
            if kind == Kind::Directory {
                packs += 1;
                packs_bytes += info.bytes;
            }
        }
    }
    let used: u64 = shares(&holdings, |position| alone[position] != NOBODY).iter().map(|share| share.1).sum();
    let bytes_logical = snapshots.iter().map(|snapshot| snapshot.manifest.bytes).sum();
    let sources = groups
        .into_iter()
        .map(|(group, number)| {
            let members = each.iter().filter(|backup| backup.group == group);
            let (backups, bytes_logical) =
                members.fold((0, 0), |(backups, bytes), backup| (backups + 1, bytes + backup.bytes));
            let bytes_stored = by_group[number as usize];
            SourceStats { group, backups, bytes_logical, bytes_stored, ratio: ratio(bytes_logical, bytes_stored) }
        })
        .collect();
    Ok(StatsReport {
        backups: snapshots.len(),
        bytes_logical,
        bytes_unique,
        bytes_stored,
        bytes_unused: packs_bytes.saturating_sub(used),
        ratio: ratio(bytes_logical, bytes_stored),
        packs,
        chunks: holdings.runs().count(),
        sources,
        each,
    })
}

fn stop_if_asked(progress: &Progress) -> Result<(), PipelineError> {
    if progress.is_cancelled() { Err(Cancelled.into()) } else { Ok(()) }
}

fn ratio(logical: u64, stored: u64) -> f64 {
    if stored == 0 { 0.0 } else { (100.0 * logical as f64 / stored as f64).round() / 100.0 }
}

/// For each pack that holds something of it: the pack, and the stored bytes of the chunks chosen, with the pack's
/// directory in the same share.
fn shares(holdings: &Holdings, chosen: impl Fn(usize) -> bool) -> Vec<(u32, u64)> {
    let mut raw = vec![0u64; holdings.blobs.len()];
    for run in holdings.runs() {
        // Of copies the first counts.
        if chosen(run.start) {
            let chunk = holdings.chunks()[run.start];
            raw[chunk.blob as usize] += u64::from(chunk.bytes);
        }
    }
    let mut shares = Vec::new();
    for (number, pack) in holdings.packs.iter().enumerate() {
        let blobs = pack.blobs.clone().map(|blob| blob as usize);
        let (mut stored, mut of) = (0f64, 0f64);
        for blob in blobs {
            let held = &holdings.blobs[blob];
            of += f64::from(held.stored);
            stored += f64::from(held.stored) * raw[blob] as f64 / f64::from(held.raw_bytes.max(1));
        }
        if stored > 0.0 {
            let with_directory = stored * f64::from(pack.bytes) / of;
            shares.push((number as u32, with_directory.round() as u64));
        }
    }
    shares
}

/// Notes who reaches each chunk.
struct Owners<'a> {
    holdings: &'a Holdings,
    owners: &'a mut [Owner],
    owner: Owner,
}

impl Visit for Owners<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        for position in self.holdings.find(prefix_of(&entry.id)) {
            let owner = &mut self.owners[position];
            if *owner == NOBODY {
                *owner = self.owner;
            } else if *owner != self.owner {
                *owner = SHARED;
            }
        }
        Ok(())
    }
}
