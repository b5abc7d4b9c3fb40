//! Drops backups by rule and removes what no backup reaches any more. The only thing that removes packs.
//!
//! Backups run beside it without a lock: what is about to go is marked first and deleted only once no backup can rest on
//! it (format-spec/records.md, "Protocol"). A run that is killed anywhere leaves a whole repository and some garbage, and
//! the next run removes that. Everything is decided by what the store says; the local index is not asked.
//!
//! Order: plan; removal record, manifests; mark what is wholly dead and sweep it; copy what lives in packs that are partly
//! dead; mark these and sweep them. So a full disk gets room before anything is copied.
//!
//! `lease`: who may prune now. `survey`: what there is. `plan`: what should become of it, by `claim`, which copies
//! stay, and `rebase`, what stands alone from now on; pure. `execute`: marks, sweeps, deletes. `index`: the index
//! without what goes. `repack`: copies what lives. `rescue`: what backups reach that were committed meanwhile.

mod claim;
mod execute;
mod index;
mod lease;
mod plan;
mod rebase;
mod repack;
mod rescue;
mod survey;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::backend::BackendError;
use crate::id::ObjectId;
use crate::ops::retention::{Decision, KeepRules};
use crate::pipeline::PipelineError;
use crate::progress::{Cancelled, Progress};
use crate::repo::{RepoError, Repository};

use execute::Run;
pub(super) use lease::take_lease_of;
use survey::Survey;

/// Share of a pack that may be dead before what lives in it is copied, if nothing else is said and there is a grace.
pub const MAX_UNUSED: f64 = 0.05;

/// How long marked packs stay, if nothing else is said.
pub const GRACE: SignedDuration = SignedDuration::from_hours(23);

/// Clocks of this host and the store may be this far apart.
pub const SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);

/// Listings say when an object was stored to the second, or a little worse.
const STORE_TIME_SLACK: SignedDuration = SignedDuration::from_secs(5);

/// What to keep and how to remove the rest.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    pub keep: KeepRules,
    /// How long packs stay after they were marked.
    pub grace: SignedDuration,
    /// Share of a pack that may be dead, 0 to 1. `None`: [`MAX_UNUSED`], or 0 if there is no grace.
    pub max_unused: Option<f64>,
    /// Whether to copy what lives in packs that are partly dead. Copying needs room.
    pub repack: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Name of this host, for marks and records.
    pub host: String,
    pub now: Timestamp,
    /// Threads that seal what is copied in part, and zstd's level.
    pub sealers: usize,
    pub level: i32,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PruneReport {
    pub dry_run: bool,
    /// Every backup with the rules that keep it, by source and newest first.
    pub backups: Vec<Decision>,
    pub backups_kept: usize,
    pub backups_dropped: usize,
    /// Packs in the store before, and their bytes.
    pub packs: usize,
    pub packs_bytes: u64,
    /// Packs that hold nothing of any backup that stays.
    pub packs_dead: usize,
    pub packs_dead_bytes: u64,
    /// Of these, packs that no index object lists.
    pub packs_unlisted: usize,
    /// Packs with more dead bytes than allowed, and how many of their bytes are dead.
    pub packs_repack: usize,
    pub packs_repack_dead_bytes: u64,
    /// Dead bytes that stay in packs that are mostly alive.
    pub unused_bytes: u64,
    /// Packs deleted in this run, and their bytes.
    pub packs_deleted: usize,
    pub packs_deleted_bytes: u64,
    /// Bytes of new packs with what was copied.
    pub bytes_copied: u64,
    /// What packs hold less; for a dry run, an estimate of what they will once all is done.
    pub bytes_freed: i64,
    /// Packs that are marked and stay until the grace is over or the backups below have ended.
    pub packs_waiting: usize,
    pub packs_waiting_bytes: u64,
    /// When the grace of the last of them is over, by the store's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_until: Option<Timestamp>,
    /// Running backups that keep marked packs.
    pub held_by: Vec<Holder>,
    pub index_objects: usize,
    pub index_objects_replaced: usize,
    pub leases_removed: usize,
    /// Packs that should have been copied and are damaged. They stay as they are.
    pub damaged: Vec<String>,
    /// What becomes of each pack that does not simply stay, and why.
    pub plan: Vec<PackPlan>,
}

/// A running backup or prune.
#[derive(Debug, Clone, Serialize)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
    pub since: Timestamp,
}

/// What becomes of a pack.
#[derive(Debug, Clone, Serialize)]
pub struct PackPlan {
    pub pack: ObjectId,
    pub bytes: u64,
    pub dead_bytes: u64,
    pub fate: Fate,
}

/// What becomes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Keep,
    /// Deleted: nothing in it is reached.
    Dead,
    /// Deleted: no index object lists it.
    Unlisted,
    /// Deleted after what is reached was copied.
    Repack,
    /// Listed by an index object and not in the store, and nothing in it is reached: taken out of the index.
    Missing,
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    #[error(
        "prune without a keep rule would drop nearly everything: say what to keep, e.g. `vault prune --keep-days 30`"
    )]
    NoKeepRule,
    #[error(
        "another prune runs on {host} since {since}: wait for it, or try again in three hours if that host is gone"
    )]
    Busy { host: String, since: Timestamp },
    #[error("this host's clock says {local}, the store's {store}: nothing was removed; set the clock and prune again")]
    ClockSkew { local: Timestamp, store: Timestamp },
    #[error(
        "backup {id}, the one before number {next_seq} of host {host}, is gone, and no record says that it was dropped: \
         nothing was removed; bring it back, or run `vault forget {id}` and prune again"
    )]
    LostBackup { id: ObjectId, next_seq: u64, host: String },
    #[error("this prune was stopped for so long that its lease ran out: run it again")]
    Lapsed,
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl From<BackendError> for PruneError {
    fn from(error: BackendError) -> Self {
        PruneError::Repo(error.into())
    }
}

/// Drops backups that no rule keeps, and removes what no backup reaches.
pub fn prune(repo: &Arc<Repository>, options: &PruneOptions, progress: &Progress) -> Result<PruneReport, PruneError> {
    repo.require_delete()?;
    if options.keep.is_empty() {
        return Err(PruneError::NoKeepRule);
    }
    progress.phase("reading what there is");
    if options.dry_run {
        let survey = Survey::take(repo, options, None, &[], progress)?;
        let mut report = survey.report();
        report.dry_run = true;
        let goes = report.packs_dead_bytes + report.packs_repack_dead_bytes;
        report.bytes_freed = goes.cast_signed() - survey.plan.rebased_bytes_more.cast_signed();
        return Ok(report);
    }
    let (lease, owed) = lease::take_lease(repo, options, progress)?;
    if lease.began().duration_since(options.now).abs() > SKEW_MAX {
        return Err(PruneError::ClockSkew { local: options.now, store: lease.began() });
    }
    Run::start(repo, options, &lease, owed, progress)?.finish()
}
