//! Reads what is in the store, follows the backups that stay, and has the plan made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::lease::leases;
use super::plan::{Plan, plan};
use super::{Fate, PackPlan, PruneError, PruneOptions, PruneReport, STORE_TIME_SLACK};
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::format::records::{Mark, RemovedBackup};
use crate::id::ObjectId;
use crate::limits::LOOKED_UP_TOGETHER;
use crate::ops::forget;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, of_kind};
use crate::ops::retention::{Decision, decide};
use crate::ops::walk::{Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::lease::ListedLease;
use crate::repo::snapshots::Snapshot;
use crate::repo::{RepoError, Repository, pack_name};
use crate::seal::keys::Kind;

/// A mark in the store.
pub(super) struct Marked {
    pub(super) id: ObjectId,
    /// By the store's clock.
    pub(super) stored: Timestamp,
    pub(super) packs: Vec<ObjectId>,
}

/// What is in the store, and what should become of it.
pub(super) struct Survey {
    pub(super) decisions: Vec<Decision>,
    pub(super) kept: Vec<Snapshot>,
    pub(super) dropped: Vec<Snapshot>,
    pub(super) holdings: Holdings,
    pub(super) stored: HashMap<ObjectId, (u64, Timestamp)>,
    pub(super) marks: Vec<Marked>,
    pub(super) marks_unreadable: Vec<ObjectId>,
    pub(super) plan: Plan,
    pub(super) unlisted: Vec<(ObjectId, u64)>,
}

impl Survey {
    /// Reads everything and decides. `store_now`: the store's clock, or this host's if that is not known. `owed` are
    /// backups that are gone and not recorded yet.
    pub(super) fn take(
        repo: &Arc<Repository>,
        options: &PruneOptions,
        store_now: Option<Timestamp>,
        owed: &[RemovedBackup],
        progress: &Progress,
    ) -> Result<Self, PruneError> {
        // Marks before manifests: what a manifest listed later reaches although it is marked is alive for good.
        let (mut marks, mut marks_unreadable) = (Vec::new(), Vec::new());
        for (id, stored, mark) in repo.records_and_damage::<Mark>("mark", Kind::Mark)? {
            match mark {
                Ok(mark) => marks.push(Marked { id, stored, packs: mark.packs }),
                // Whoever put it has ended: this run holds the lease.
                Err(_) => marks_unreadable.push(id),
            }
        }
        let snapshots = repo.snapshots()?;
        let lost = forget::lost(repo, &snapshots)?;
        if let Some((id, next)) = lost.iter().find(|(id, _)| owed.iter().all(|backup| backup.id != *id)) {
            let (next_seq, host) = (next.manifest.seq, next.manifest.host.clone());
            return Err(PruneError::LostBackup { id: *id, next_seq, host });
        }
        let decisions = decide(&snapshots, &options.keep, options.now);
        let keep: HashSet<ObjectId> =
            decisions.iter().filter(|decision| decision.keep).map(|decision| decision.id).collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = snapshots.into_iter().partition(|snapshot| keep.contains(&snapshot.id));
        repo.load_index(&Progress::default())?;
        let holdings = Holdings::load(repo)?;
        refuse_damage(&holdings)?;
        let stored = list_packs(repo)?;
        let unlisted = unlisted(repo, &holdings, &stored, store_now.unwrap_or(options.now))?;

        let reached = reach(repo, &kept, &holdings, progress)?;
        let marked = marks.iter().flat_map(|mark| &mark.packs).copied().collect();
        let plan = plan(&holdings, reached, &stored, &marked, options)?;
        Ok(Self { decisions, kept, dropped, holdings, stored, marks, marks_unreadable, plan, unlisted })
    }

    pub(super) fn report(&self) -> PruneReport {
        let mut report = PruneReport {
            backups: self.decisions.clone(),
            backups_kept: self.kept.len(),
            backups_dropped: self.dropped.len(),
            packs: self.stored.len(),
            packs_bytes: self.stored.values().map(|(bytes, _)| bytes).sum(),
            index_objects: self.holdings.objects.len() + self.holdings.superseded.len(),
            packs_unlisted: self.unlisted.len(),
            ..PruneReport::default()
        };
        for ((pack, &fate), &dead_bytes) in self.holdings.packs.iter().zip(&self.plan.fates).zip(&self.plan.dead_bytes)
        {
            let bytes = self.stored.get(&pack.id).map_or(0, |(bytes, _)| *bytes);
            match fate {
                Fate::Keep => {
                    report.unused_bytes += dead_bytes;
                    continue;
                }
                Fate::Repack => {
                    report.packs_repack += 1;
                    report.packs_repack_dead_bytes += dead_bytes;
                }
                Fate::Dead | Fate::Unlisted => {
                    report.packs_dead += 1;
                    report.packs_dead_bytes += bytes;
                }
                Fate::Missing => {}
            }
            report.plan.push(PackPlan { pack: pack.id, bytes, dead_bytes, fate });
        }
        for &(pack, bytes) in &self.unlisted {
            report.packs_dead += 1;
            report.packs_dead_bytes += bytes;
            report.plan.push(PackPlan { pack, bytes, dead_bytes: bytes, fate: Fate::Unlisted });
        }
        report
    }
}

pub(super) fn list_packs(repo: &Repository) -> Result<HashMap<ObjectId, (u64, Timestamp)>, RepoError> {
    let packs = repo.list(Kind::Directory)?;
    Ok(packs.into_iter().map(|(id, info)| (id, (info.bytes, info.modified))).collect())
}

pub(super) fn refuse_damage(holdings: &Holdings) -> Result<(), RepoError> {
    if let Some((_, error)) = holdings.damaged.first() {
        let detail = format!("{error}; nothing was removed, `vault repair index` makes the index anew");
        return Err(RepoError::Damaged { name: "the index".to_owned(), detail });
    }
    if let Some(pack) = holdings.contradicted.first() {
        let detail = "two index objects say different things about it; `vault repair index` makes the index anew";
        return Err(RepoError::Damaged { name: pack_name(pack), detail: detail.to_owned() });
    }
    Ok(())
}

/// Packs that no index object lists and no running backup can have put.
fn unlisted(
    repo: &Repository,
    holdings: &Holdings,
    stored: &HashMap<ObjectId, (u64, Timestamp)>,
    now: Timestamp,
) -> Result<Vec<(ObjectId, u64)>, PruneError> {
    let mut unlisted: Vec<_> = stored.iter().filter(|(id, _)| holdings.pack(id).is_none()).collect();
    if unlisted.is_empty() {
        return Ok(Vec::new());
    }
    // After the packs were listed: a backup that ended meanwhile has put its index, one that runs has its lease.
    let (held, _) = leases(repo, now)?;
    if let Some(first) = held.iter().filter(|lease| !lease.lease.prune).map(ListedLease::began).min() {
        unlisted.retain(|(_, (_, modified))| *modified + STORE_TIME_SLACK < first);
    }
    let mut listed_since = HashSet::new();
    for (id, _) in repo.list(Kind::Index)? {
        if !holdings.objects.contains_key(&id) && !holdings.superseded.contains(&id) {
            listed_since.extend(repo.load_index_object(&id)?.packs.into_iter().map(|pack| pack.pack));
        }
    }
    let mut unlisted: Vec<_> = unlisted
        .into_iter()
        .filter(|(id, _)| !listed_since.contains(id))
        .map(|(id, (bytes, _))| (*id, *bytes))
        .collect();
    unlisted.sort_unstable();
    Ok(unlisted)
}

/// The copies of all chunks that backups lead to.
fn reach(
    repo: &Arc<Repository>,
    backups: &[Snapshot],
    holdings: &Holdings,
    progress: &Progress,
) -> Result<Bits, PruneError> {
    progress.phase("following the backups");
    progress.add_items_total(backups.len() as u64);
    let reader = Reader::new(repo.clone(), 1, progress.clone());
    let mut reach = Reach::new(holdings);
    let mut walker = Walker::new(&reader);
    for snapshot in backups {
        if progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        let walked = walker.walk(0, &snapshot.manifest, &mut reach);
        walked.map_err(|error| explain(error, &snapshot.id))?;
        progress.add_items(1);
    }
    reach.look_up()?;
    if reach.is_short {
        // Once more, chunk by chunk, for what is missing and whom it hits.
        (reach.together_max, reach.is_short) = (1, false);
        let mut walker = Walker::new(&reader);
        for snapshot in backups {
            let walked = walker.walk(0, &snapshot.manifest, &mut reach);
            walked.map_err(|error| explain(error, &snapshot.id))?;
        }
    }
    Ok(reach.reached)
}

/// Notes the copies of every chunk that a backup leads to.
struct Reach<'h> {
    holdings: &'h Holdings,
    reached: Bits,
    /// Chunks to be looked up, with their kind, and how many of them together.
    wanted: Vec<Row>,
    together_max: usize,
    /// Whether there are chunks of which no copy was found.
    is_short: bool,
}

impl<'h> Reach<'h> {
    fn new(holdings: &'h Holdings) -> Self {
        let reached = Bits::new(holdings.chunks.len());
        Self { holdings, reached, wanted: Vec::new(), together_max: LOOKED_UP_TOGETHER, is_short: false }
    }

    fn look_up(&mut self) -> Result<(), RepoError> {
        let Self { holdings, reached, wanted, is_short, .. } = self;
        holdings.reach(wanted, reached, |_| *is_short = true)
    }
}

impl Visit for Reach<'_> {
    fn chunk(&mut self, kind: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        self.wanted.push(of_kind(entry, kind));
        if self.wanted.len() >= self.together_max {
            self.look_up()?;
            if self.is_short && self.together_max == 1 {
                return Err(missing(entry));
            }
        }
        Ok(())
    }
}

pub(super) fn missing(entry: &ChunkEntry) -> PipelineError {
    let detail = "no pack that the index lists holds it".to_owned();
    RepoError::Damaged { name: format!("chunk {}", entry.id), detail }.into()
}

/// What stands in the way of knowing what a backup reaches, and what to do.
pub(super) fn explain(error: PipelineError, backup: &ObjectId) -> PruneError {
    match error {
        PipelineError::Repo(RepoError::Damaged { name, detail }) => {
            let detail = format!(
                "{detail}; backup {} needs it, so nothing was removed; `vault forget` drops a backup that is lost",
                backup.short()
            );
            RepoError::Damaged { name, detail }.into()
        }
        other => other.into(),
    }
}
