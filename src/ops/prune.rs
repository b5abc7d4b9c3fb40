//! Drops backups by rule and removes what no backup reaches any more. The only thing that removes packs.
//!
//! Backups run beside it without a lock: what is about to go is marked first and deleted only once no backup can rest on
//! it (format-spec/records.md, "Protocol"). A run that is killed anywhere leaves a whole repository and some garbage, and
//! the next run removes that. Everything is decided by what the store says; the local index is not asked.
//!
//! Order: plan; removal record, manifests; mark what is wholly dead and sweep it; copy what lives in packs that are partly
//! dead; mark these and sweep them. So a full disk gets room before anything is copied.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::backend::BackendError;
use crate::format::index::{Index, PackIndex};
use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobContents, BlobKind, decode_directory, directory_range};
use crate::format::records::{Lease, Mark, RemovedBackup, encode_record};
use crate::id::ObjectId;
use crate::limits::{BLOB_BYTES_TARGET, BLOB_CHUNKS_MAX, INDEX_BYTES_TARGET, INDEX_CHUNKS_MAX};
use crate::ops::forget;
use crate::ops::holdings::{Holdings, prefix_of};
use crate::ops::retention::{Decision, KeepRules, decide};
use crate::ops::walk::{Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::packer::{Added, Blob, Packer, Pending};
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::index::BlobRow;
use crate::repo::lease::{HeldLease, ListedLease};
use crate::repo::snapshots::Snapshot;
use crate::repo::{RepoError, Repository, damaged, object_name, pack_name, random};
use crate::seal::blob::Opener;
use crate::seal::boxed::open_object;
use crate::seal::keys::Kind;

/// Share of a pack that may be dead before what lives in it is copied, if nothing else is said and there is a grace.
pub const MAX_UNUSED: f64 = 0.05;
/// How long marked packs stay, if nothing else is said.
pub const GRACE: SignedDuration = SignedDuration::from_hours(23);
/// Clocks of this host and the store may be this far apart.
pub const SKEW_MAX: SignedDuration = SignedDuration::from_mins(5);
/// A grace this short is waited for; a longer one is for the next run.
const WAIT_MAX: SignedDuration = SignedDuration::from_secs(60);
/// Listings say when an object was stored to the second, or a little worse.
const STORE_TIME_SLACK: SignedDuration = SignedDuration::from_secs(5);
/// How often a lease is tried for.
const TRIES: usize = 4;
/// Small index objects are merged once there are this many.
const SMALL_OBJECTS_MAX: usize = 8;

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
    /// What the store holds less; for a dry run, once all is done.
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
        report.bytes_freed =
            i64::try_from(report.packs_dead_bytes + report.packs_repack_dead_bytes).unwrap_or(i64::MAX);
        return Ok(report);
    }
    let (lease, owed) = take_lease(repo, options, progress)?;
    if lease.began().duration_since(options.now).abs() > SKEW_MAX {
        return Err(PruneError::ClockSkew { local: options.now, store: lease.began() });
    }
    Run::start(repo, options, &lease, owed, progress)?.finish()
}

/// Takes the lease that keeps other prunes away. Also returns backups that had to go before they could be recorded.
fn take_lease(
    repo: &Arc<Repository>,
    options: &PruneOptions,
    progress: &Progress,
) -> Result<(HeldLease, Vec<RemovedBackup>), PruneError> {
    let mut owed = Vec::new();
    for _ in 1..TRIES {
        match take_lease_of(repo, &options.host) {
            Err(PruneError::Repo(error)) if is_no_space(&error) && owed.is_empty() => {
                owed = make_room(repo, options, error, progress)?;
            }
            other => return Ok((other?, owed)),
        }
    }
    Ok((take_lease_of(repo, &options.host)?, owed))
}

/// Takes the lease of a prune, or of a repair, unless another one holds.
pub(super) fn take_lease_of(repo: &Arc<Repository>, host: &str) -> Result<HeldLease, PruneError> {
    let mut tries = 0;
    loop {
        let lease = HeldLease::take_for_prune(repo, host)?;
        let (held, _) = leases(repo, lease.began())?;
        let own = lease.id();
        let Some(other) = held.iter().find(|other| other.lease.prune && other.id != own) else { return Ok(lease) };
        let began_before = lease.began().duration_since(other.began()) > STORE_TIME_SLACK;
        let busy = PruneError::Busy { host: other.lease.host.clone(), since: other.began() };
        // Of two that begin at once both see each other: both step back, and one comes first the next time.
        drop(lease);
        tries += 1;
        if began_before || tries >= TRIES {
            return Err(busy);
        }
        let [wait, ..] = random::<4>()?;
        std::thread::sleep(Duration::from_millis(20 + 2 * u64::from(wait)));
    }
}

fn is_no_space(error: &RepoError) -> bool {
    matches!(error, RepoError::Backend(BackendError::NoSpace { .. }))
}

/// Frees some space without writing anything, so that there is room for a lease and a mark; else returns `error`.
///
/// What can go without a word: leases of processes that are gone; index objects whose place others took; packs that no
/// index object lists, if no lease holds (whoever put them has ended); and, if all that is nothing, the backups that the
/// rules drop. Those are returned: their removal is to be recorded as soon as there is room.
fn make_room(
    repo: &Arc<Repository>,
    options: &PruneOptions,
    error: RepoError,
    progress: &Progress,
) -> Result<Vec<RemovedBackup>, PruneError> {
    let packs = list_packs(repo)?;
    // Nothing can be put, so the store does not tell its time: a lease whose process is not known to be gone holds.
    let (held, gone) = leases(repo, Timestamp::UNIX_EPOCH)?;
    for lease in &gone {
        repo.backend.delete(&object_name(Kind::Lease, &lease.id))?;
    }
    let holdings = Holdings::load(repo)?;
    refuse_damage(&holdings)?;
    for id in &holdings.superseded {
        repo.backend.delete(&object_name(Kind::Index, id))?;
    }
    let mut freed = gone.len() + holdings.superseded.len();
    if held.is_empty() {
        for pack in packs.keys().filter(|pack| holdings.pack(pack).is_none()) {
            repo.backend.delete(&pack_name(pack))?;
            freed += 1;
        }
    }
    if freed > 0 {
        return Ok(Vec::new());
    }
    // By age only where the store's clock is this host's.
    let by_age = options.keep.days > 0 && repo.backend.properties().kind == "s3";
    if !held.is_empty() || by_age {
        return Err(error.into());
    }
    let survey = Survey::take(repo, options, None, &[], progress)?;
    let doomed: Vec<_> = survey.dropped.iter().map(forget::removed).collect();
    if doomed.is_empty() {
        return Err(error.into());
    }
    forget::delete_manifests(repo, &doomed)?;
    Ok(doomed)
}

/// Leases that hold and leases that do not, by the store's clock. One that cannot be read holds until it runs out.
fn leases(repo: &Repository, now: Timestamp) -> Result<(Vec<ListedLease>, Vec<ListedLease>), PruneError> {
    let (mut held, mut gone) = (Vec::new(), Vec::new());
    for (id, stored, lease) in repo.records_and_damage::<Lease>("lease", Kind::Lease)? {
        match lease {
            Ok(lease) => {
                let listed = ListedLease { id, stored, lease };
                if listed.holds(repo, now) { held.push(listed) } else { gone.push(listed) }
            }
            Err(error) => {
                tracing::warn!("{error}");
                let lease = Lease {
                    time: stored,
                    host: "an unknown host".to_owned(),
                    host_id: crate::id::HostId([0; 16]),
                    pid: 0,
                    pid_start: 0,
                    boot_id: String::new(),
                    nonce: String::new(),
                    // It may be a renewed one: it counts as old as any.
                    began: Some(Timestamp::UNIX_EPOCH),
                    prune: false,
                };
                let listed = ListedLease { id, stored, lease };
                if now.duration_since(stored) < repo.pace.lease_holds { held.push(listed) } else { gone.push(listed) }
            }
        }
    }
    Ok((held, gone))
}

fn list_packs(repo: &Repository) -> Result<HashMap<ObjectId, (u64, Timestamp)>, RepoError> {
    let packs = repo.list(Kind::Directory)?;
    Ok(packs.into_iter().map(|(id, info)| (id, (info.bytes, info.modified))).collect())
}

fn refuse_damage(holdings: &Holdings) -> Result<(), RepoError> {
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

/// A mark in the store.
struct Marked {
    id: ObjectId,
    /// By the store's clock.
    stored: Timestamp,
    packs: Vec<ObjectId>,
}

/// A copy of a chunk that stays.
const CLAIMED: u8 = 1;
/// A chunk that some backup reaches.
const REACHED: u8 = 2;

/// What is in the store, and what should become of it.
struct Survey {
    decisions: Vec<Decision>,
    kept: Vec<Snapshot>,
    dropped: Vec<Snapshot>,
    holdings: Holdings,
    stored: HashMap<ObjectId, (u64, Timestamp)>,
    marks: Vec<Marked>,
    marks_unreadable: Vec<ObjectId>,
    fates: Vec<Fate>,
    dead_bytes: Vec<u64>,
    unlisted: Vec<(ObjectId, u64)>,
}

impl Survey {
    /// Reads everything and decides. `store_now`: the store's clock, or this host's if that is not known. `owed` are
    /// backups that are gone and not recorded yet.
    fn take(
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
        let mut holdings = Holdings::load(repo)?;
        refuse_damage(&holdings)?;
        let stored = list_packs(repo)?;
        let unlisted = unlisted(repo, &holdings, &stored, store_now.unwrap_or(options.now))?;

        progress.phase("following the backups");
        progress.add_items_total(kept.len() as u64);
        let reader = Reader::new(repo.clone(), 1, progress.clone());
        let mut walker = Walker::new(&reader);
        for snapshot in &kept {
            if progress.is_cancelled() {
                return Err(Cancelled.into());
            }
            let walked = walker.walk(0, &snapshot.manifest, &mut Reach(&mut holdings));
            walked.map_err(|error| explain(error, &snapshot.id))?;
            progress.add_items(1);
        }
        let mut survey = Self {
            decisions,
            kept,
            dropped,
            holdings,
            stored,
            marks,
            marks_unreadable,
            fates: Vec::new(),
            dead_bytes: Vec::new(),
            unlisted,
        };
        survey.plan(options)?;
        Ok(survey)
    }

    /// Chooses the copies that stay, and the fate of every listed pack.
    fn plan(&mut self, options: &PruneOptions) -> Result<(), PruneError> {
        let holdings = &mut self.holdings;
        let marked: HashSet<ObjectId> = self.marks.iter().flat_map(|mark| &mark.packs).copied().collect();
        let whole: Vec<bool> = holdings
            .packs
            .iter()
            .map(|pack| self.stored.get(&pack.id).is_some_and(|(bytes, _)| *bytes == u64::from(pack.bytes)))
            .collect();
        let max_unused = options.max_unused.unwrap_or(if options.grace.is_zero() { 0.0 } else { MAX_UNUSED });
        loop {
            // Of several copies the one stays that lies in the pack with most that is alive.
            let mut reached_bytes = vec![0u64; holdings.packs.len()];
            for (position, chunk) in holdings.chunks().iter().enumerate() {
                if holdings.flags[position] & REACHED != 0 {
                    reached_bytes[holdings.pack_of(position) as usize] += u64::from(chunk.bytes);
                }
            }
            let rank = |pack: u32| {
                let held = &holdings.packs[pack as usize];
                let reached = u128::from(reached_bytes[pack as usize]) * 1_000_000_000 / u128::from(held.bytes.max(1));
                (!whole[pack as usize], marked.contains(&held.id), u128::MAX - reached, held.id)
            };
            let mut claimed = Vec::new();
            for run in holdings.runs() {
                if holdings.flags[run.start] & REACHED == 0 {
                    continue;
                }
                // Of what can be had the least deep comes first: a base stays where what rests on it looks for it.
                let best = run.clone().min_by_key(|&position| {
                    let pack = holdings.pack_of(position);
                    let depth = holdings.blobs[holdings.chunks()[position].blob as usize].depth;
                    (!whole[pack as usize], depth, rank(pack))
                });
                let best = best.expect("a run has at least one copy");
                if !whole[holdings.pack_of(best) as usize] {
                    let name = pack_name(&holdings.packs[holdings.pack_of(best) as usize].id);
                    let detail = "backups need it, and it is missing or cut short; nothing was removed, \
                                  `vault check` names the backups and `vault forget` drops them";
                    return Err(RepoError::Damaged { name, detail: detail.to_owned() }.into());
                }
                let blob = holdings.chunks()[best].blob;
                claimed.extend(run.filter(|&position| holdings.chunks()[position].blob == blob));
            }
            holdings.flags.iter_mut().for_each(|flags| *flags &= !CLAIMED);
            for position in claimed {
                holdings.flags[position] |= CLAIMED;
            }
            // While the index lists a blob, its bases are stored: dead blobs of packs that may be kept as they are count too.
            if !reach_bases(holdings, max_unused > 0.0 || !options.repack)? {
                break;
            }
        }
        let mut live_raw = vec![0u64; holdings.blobs.len()];
        for (position, chunk) in holdings.chunks().iter().enumerate() {
            if holdings.flags[position] & CLAIMED != 0 {
                live_raw[chunk.blob as usize] += u64::from(chunk.bytes);
            }
        }
        for pack in &holdings.packs {
            let (mut live, mut dead_bytes) = (0, 0);
            for blob in pack.blobs.clone() {
                let held = &holdings.blobs[blob as usize];
                let raw = u64::from(held.raw_bytes);
                live += live_raw[blob as usize];
                dead_bytes += u64::from(held.stored) * (raw - live_raw[blob as usize].min(raw)) / raw.max(1);
            }
            let has_dead = pack
                .blobs
                .clone()
                .any(|blob| live_raw[blob as usize] < u64::from(holdings.blobs[blob as usize].raw_bytes));
            self.fates.push(match (live, self.stored.contains_key(&pack.id)) {
                (0, true) => Fate::Dead,
                (0, false) => Fate::Missing,
                _ if has_dead && dead_bytes as f64 > max_unused * f64::from(pack.bytes) && options.repack => {
                    Fate::Repack
                }
                // Rounding must not hide the last dead chunk from who wants none.
                _ if has_dead && max_unused == 0.0 && options.repack => Fate::Repack,
                _ => Fate::Keep,
            });
            self.dead_bytes.push(if live == 0 { u64::from(pack.bytes) } else { dead_bytes });
        }
        Ok(())
    }

    fn report(&self) -> PruneReport {
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
        for ((pack, &fate), &dead_bytes) in self.holdings.packs.iter().zip(&self.fates).zip(&self.dead_bytes) {
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

/// Sets [`REACHED`] on the copies of every chunk that a backup leads to.
struct Reach<'h>(&'h mut Holdings);

impl Visit for Reach<'_> {
    fn chunk(&mut self, kind: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        let copies = self.0.find(prefix_of(&entry.id));
        let mut found = false;
        for position in copies {
            let chunk = self.0.chunks()[position];
            if chunk.bytes == entry.bytes && self.0.blobs[chunk.blob as usize].kind == kind {
                self.0.flags[position] |= REACHED;
                found = true;
            }
        }
        if found { Ok(()) } else { Err(missing(entry)) }
    }
}

fn missing(entry: &ChunkEntry) -> PipelineError {
    let detail = "no pack that the index lists holds it".to_owned();
    RepoError::Damaged { name: format!("chunk {}", entry.id), detail }.into()
}

/// Reaches the bases of blobs in use, or with `neighbours` of all blobs in packs of which anything is in use; says whether
/// any was new.
fn reach_bases(holdings: &mut Holdings, neighbours: bool) -> Result<bool, PruneError> {
    if holdings.bases.is_empty() {
        return Ok(false);
    }
    let mut in_use = vec![false; holdings.blobs.len()];
    for (position, chunk) in holdings.chunks().iter().enumerate() {
        in_use[chunk.blob as usize] |= holdings.flags[position] & CLAIMED != 0;
    }
    if neighbours {
        for pack in &holdings.packs {
            if pack.blobs.clone().any(|blob| in_use[blob as usize]) {
                pack.blobs.clone().for_each(|blob| in_use[blob as usize] = true);
            }
        }
    }
    let bases: Vec<_> = holdings.bases.iter().filter(|(blob, ..)| in_use[*blob as usize]).copied().collect();
    let mut more = false;
    for (_, prefix, bytes) in bases {
        let mut found = false;
        for position in holdings.find(prefix) {
            if holdings.chunks()[position].bytes == bytes {
                found = true;
                more |= holdings.flags[position] & REACHED == 0;
                holdings.flags[position] |= REACHED;
            }
        }
        if !found {
            let detail = "a base of chunks in use is in no pack that the index lists".to_owned();
            return Err(RepoError::Damaged { name: "the index".to_owned(), detail }.into());
        }
    }
    Ok(more)
}

/// What stands in the way of knowing what a backup reaches, and what to do.
fn explain(error: PipelineError, backup: &ObjectId) -> PruneError {
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

/// A prune that is under way.
struct Run<'a> {
    repo: &'a Arc<Repository>,
    options: &'a PruneOptions,
    lease: &'a HeldLease,
    progress: &'a Progress,
    started: Instant,
    survey: Survey,
    report: PruneReport,
    /// Backups that are gone and not recorded yet.
    owed: Vec<RemovedBackup>,
    /// Packs to be deleted, with their bytes.
    dead: HashMap<ObjectId, u64>,
    /// Index objects that count now, and what they list.
    listing: BTreeMap<ObjectId, (Vec<ObjectId>, usize)>,
    /// Chunks that index objects put since the survey list, sorted.
    fresh: Vec<u64>,
    /// Manifests whose chunks have been followed.
    known: HashSet<ObjectId>,
}

impl<'a> Run<'a> {
    fn start(
        repo: &'a Arc<Repository>,
        options: &'a PruneOptions,
        lease: &'a HeldLease,
        owed: Vec<RemovedBackup>,
        progress: &'a Progress,
    ) -> Result<Self, PruneError> {
        let started = Instant::now();
        let survey = Survey::take(repo, options, Some(lease.began()), &owed, progress)?;
        let mut report = survey.report();
        report.backups_dropped += owed.len();
        let mut dead: HashMap<ObjectId, u64> = survey.unlisted.iter().copied().collect();
        for (pack, fate) in survey.holdings.packs.iter().zip(&survey.fates) {
            if *fate == Fate::Dead {
                dead.insert(pack.id, survey.stored[&pack.id].0);
            }
        }
        let listing = survey.holdings.objects.iter();
        let listing = listing.map(|(id, object)| (*id, (object.packs.clone(), object.chunks))).collect();
        let known = survey.kept.iter().chain(&survey.dropped).map(|snapshot| snapshot.id).collect();
        let fresh = Vec::new();
        Ok(Self { repo, options, lease, progress, started, survey, report, owed, dead, listing, fresh, known })
    }

    fn finish(mut self) -> Result<PruneReport, PruneError> {
        self.still_ours()?;
        self.drop_superseded()?;
        self.drop_backups()?;

        let mut marks = std::mem::take(&mut self.survey.marks);
        let marked: HashSet<ObjectId> = marks.iter().flat_map(|mark| &mark.packs).copied().collect();
        let unmarked: Vec<ObjectId> = self.dead.keys().filter(|pack| !marked.contains(pack)).copied().collect();
        marks.extend(self.mark(unmarked)?);
        let marks = self.wait_for_grace(marks)?;
        let mut waiting = self.sweep(marks)?;
        forget::record(self.repo, &std::mem::take(&mut self.owed), &self.options.host, self.options.now)?;

        let sources = self.repack()?;
        if !sources.is_empty() {
            let marks = self.mark(sources)?.into_iter().collect();
            let marks = self.wait_for_grace(marks)?;
            waiting.extend(self.sweep(marks)?);
        }
        self.rewrite_index(&HashSet::new(), true)?;
        self.clean_up()?;
        let mut seen = HashSet::new();
        for mark in &waiting {
            for pack in mark.packs.iter().filter(|pack| seen.insert(**pack)) {
                if let Some(bytes) = self.dead.get(pack) {
                    self.report.packs_waiting += 1;
                    self.report.packs_waiting_bytes += bytes;
                }
            }
            let until = mark.stored.saturating_add(self.options.grace).unwrap_or(Timestamp::MAX);
            self.report.waiting_until = self.report.waiting_until.max(Some(until));
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.report.bytes_freed = signed(self.report.packs_deleted_bytes) - signed(self.report.bytes_copied);
        self.repo.load_index(&Progress::default())?;
        Ok(self.report)
    }

    /// Ends the run if its lease has lapsed, or if it was asked to stop.
    fn still_ours(&self) -> Result<(), PruneError> {
        if self.progress.is_cancelled() {
            return Err(Cancelled.into());
        }
        if self.lease.renew()? { Ok(()) } else { Err(PruneError::Lapsed) }
    }

    /// The store's time.
    fn store_now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.started.elapsed()).unwrap_or(SignedDuration::ZERO);
        self.lease.began().saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// Records the removal of backups, then deletes their manifests. On a full disk the other way round.
    fn drop_backups(&mut self) -> Result<(), PruneError> {
        let doomed: Vec<_> = self.survey.dropped.iter().map(forget::removed).collect();
        let all = [&self.owed[..], &doomed[..]].concat();
        match forget::record(self.repo, &all, &self.options.host, self.options.now) {
            Err(error) if is_no_space(&error) && !doomed.is_empty() => self.owed = all,
            Err(error) if is_no_space(&error) && !self.owed.is_empty() => {}
            other => {
                other?;
                self.owed.clear();
            }
        }
        Ok(forget::delete_manifests(self.repo, &doomed)?)
    }

    /// Index objects whose place others took must go before anything takes the place of those.
    fn drop_superseded(&mut self) -> Result<(), PruneError> {
        for id in std::mem::take(&mut self.survey.holdings.superseded) {
            self.repo.backend.delete(&object_name(Kind::Index, &id))?;
            self.report.index_objects_replaced += 1;
        }
        Ok(())
    }

    /// Puts a mark for packs that will be deleted.
    fn mark(&self, mut packs: Vec<ObjectId>) -> Result<Option<Marked>, PruneError> {
        if packs.is_empty() {
            return Ok(None);
        }
        self.still_ours()?;
        packs.sort_unstable();
        let mark = Mark { time: self.options.now, host: self.options.host.clone(), packs };
        let saved = self.repo.save(Kind::Mark, &encode_record(&mark))?;
        Ok(Some(Marked { id: saved.id, stored: saved.receipt.store_time, packs: mark.packs }))
    }

    /// Waits if the grace of all marks is over soon.
    fn wait_for_grace(&self, marks: Vec<Marked>) -> Result<Vec<Marked>, PruneError> {
        let newest = marks.iter().map(|mark| mark.stored).max();
        if self.options.grace <= WAIT_MAX && newest.is_some() {
            while newest.is_some_and(|newest| self.store_now().duration_since(newest) < self.options.grace) {
                self.still_ours()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(marks)
    }

    /// Deletes the packs of marks whose grace is over and that no running backup can rest on. Returns the other marks.
    fn sweep(&mut self, marks: Vec<Marked>) -> Result<Vec<Marked>, PruneError> {
        self.progress.phase("removing packs");
        let now = self.store_now();
        let grace = self.options.grace;
        let (ripe, mut waiting): (Vec<_>, Vec<_>) =
            marks.into_iter().partition(|mark| grace.is_zero() || now.duration_since(mark.stored) >= grace);
        // Leases before manifests: a backup that has ended meanwhile has its manifest in the listing.
        let (held, _) = leases(self.repo, now)?;
        let backups: Vec<_> = held.iter().filter(|lease| !lease.lease.prune).collect();
        let (blocked, ripe): (Vec<_>, Vec<_>) = ripe
            .into_iter()
            .partition(|mark| backups.iter().any(|lease| lease.began() <= mark.stored + STORE_TIME_SLACK));
        if blocked.iter().any(|mark| mark.packs.iter().any(|pack| self.dead.contains_key(pack))) {
            let holders = backups.iter().map(|lease| Holder {
                host: lease.lease.host.clone(),
                pid: lease.lease.pid,
                since: lease.began(),
            });
            self.report.held_by = holders.collect();
            // A renewed lease and the one before it are of one run.
            self.report.held_by.sort_by(|a, b| (a.since, a.pid, &a.host).cmp(&(b.since, b.pid, &b.host)));
            self.report.held_by.dedup_by(|a, b| (a.since, a.pid, &a.host) == (b.since, b.pid, &b.host));
        }
        waiting.extend(blocked);

        let mut going: HashMap<ObjectId, u64> = HashMap::new();
        for pack in ripe.iter().flat_map(|mark| &mark.packs) {
            if let Some(bytes) = self.dead.get(pack) {
                going.insert(*pack, *bytes);
            }
        }
        if !going.is_empty() {
            self.recheck(&mut going)?;
        }
        // What the store has lost and nobody misses is taken out of the index on the way.
        let holdings = &self.survey.holdings;
        let missing = holdings.packs.iter().zip(&self.survey.fates).filter(|(_, fate)| **fate == Fate::Missing);
        let unlist: HashSet<ObjectId> = missing.map(|(pack, _)| pack.id).chain(going.keys().copied()).collect();
        self.rewrite_index(&unlist, false)?;
        self.still_ours()?;
        self.progress.add_items_total(going.len() as u64);
        let names: Vec<String> = going.keys().map(pack_name).collect();
        delete_all(self.repo, &names, self.progress)?;
        for (pack, bytes) in going {
            self.dead.remove(&pack);
            self.report.packs_deleted += 1;
            self.report.packs_deleted_bytes += bytes;
        }
        for mark in ripe {
            self.repo.backend.delete(&object_name(Kind::Mark, &mark.id))?;
        }
        Ok(waiting)
    }

    /// Takes out of `going` what backups reach that were committed since the survey.
    fn recheck(&mut self, going: &mut HashMap<ObjectId, u64>) -> Result<(), PruneError> {
        let manifests = self.repo.list(Kind::Manifest)?;
        let mut spared = Vec::new();
        for (id, _) in self.repo.list(Kind::Index)? {
            if self.listing.contains_key(&id) {
                continue;
            }
            let index = match self.repo.load_index_object(&id) {
                Err(RepoError::Backend(BackendError::NotFound { .. })) => continue,
                other => other?,
            };
            let chunks = index.packs.iter().flat_map(|pack| &pack.directory).flat_map(|blob| &blob.contents.chunks);
            self.fresh.extend(chunks.map(|chunk| prefix_of(&chunk.id)));
            // A backup that this run took for dead has listed it after all.
            spared.extend(index.packs.iter().map(|pack| pack.pack).filter(|pack| going.contains_key(pack)));
            self.add_to_listing(id, &index);
        }
        self.fresh.sort_unstable();
        self.fresh.dedup();
        let mut new = Vec::new();
        for (id, _) in manifests {
            if self.known.insert(id) {
                match self.repo.snapshot(&id) {
                    Err(RepoError::Backend(BackendError::NotFound { .. })) => {}
                    other => new.push(other?),
                }
            }
        }
        let holdings = &mut self.survey.holdings;
        let mut rescue = Rescue { holdings, fresh: &self.fresh, going, spared, revived: Vec::new() };
        if !new.is_empty() {
            self.repo.load_index(&Progress::default())?;
            let reader = Reader::new(self.repo.clone(), 1, self.progress.clone());
            let mut walker = Walker::new(&reader);
            for snapshot in &new {
                let walked = walker.walk(0, &snapshot.manifest, &mut rescue);
                walked.map_err(|error| explain(error, &snapshot.id))?;
            }
        }
        let spared = rescue.with_bases()?;
        for pack in spared {
            going.remove(&pack);
            self.dead.remove(&pack);
        }
        Ok(())
    }

    fn add_to_listing(&mut self, id: ObjectId, index: &Index) {
        let chunks = index.packs.iter().flat_map(|pack| &pack.directory).map(|blob| blob.contents.chunks.len()).sum();
        self.listing.insert(id, (index.packs.iter().map(|pack| pack.pack).collect(), chunks));
    }

    /// Replaces index objects that list any of `unlist` by objects without those packs. Small ones are merged where an
    /// object is written anyway, and to `tidy` if there are many.
    fn rewrite_index(&mut self, unlist: &HashSet<ObjectId>, tidy: bool) -> Result<(), PruneError> {
        let lists_some = |packs: &[ObjectId]| packs.is_empty() || packs.iter().any(|pack| unlist.contains(pack));
        let mut old: Vec<ObjectId> =
            self.listing.iter().filter(|(_, (packs, _))| lists_some(packs)).map(|(id, _)| *id).collect();
        let is_small = |chunks: usize| chunks < INDEX_CHUNKS_MAX / 2;
        let small: Vec<ObjectId> = self
            .listing
            .iter()
            .filter(|(_, (packs, chunks))| !lists_some(packs) && is_small(*chunks))
            .map(|(id, _)| *id)
            .collect();
        let stays = |id: &ObjectId| self.listing[id].0.iter().any(|pack| !unlist.contains(pack));
        // A run that has changed the index anyway leaves it tidy.
        let many = if self.report.index_objects_replaced > 0 { 2 } else { SMALL_OBJECTS_MAX };
        if old.iter().any(stays) || (tidy && small.len() >= many) {
            old.extend(small);
        }
        if old.is_empty() {
            return Ok(());
        }
        self.still_ours()?;
        let mut seen: HashSet<ObjectId> = unlist.clone();
        for (id, (packs, _)) in &self.listing {
            if !old.contains(id) {
                seen.extend(packs);
            }
        }
        let mut new: Vec<(ObjectId, Index)> = Vec::new();
        let mut full: Option<Index> = None;
        let mut filling = Filling::default();
        for id in &old {
            for pack in self.repo.load_index_object(id)?.packs {
                if !seen.insert(pack.pack) {
                    continue;
                }
                if filling.is_full() {
                    let next = std::mem::take(&mut filling).index;
                    if let Some(index) = full.replace(next) {
                        new.push((self.repo.save(Kind::Index, &index.encode())?.id, index));
                    }
                }
                filling.add(pack);
            }
        }
        let last = std::mem::take(&mut filling).index;
        if let Some(index) = full.filter(|_| !last.packs.is_empty()) {
            new.push((self.repo.save(Kind::Index, &index.encode())?.id, index));
        }
        if !last.packs.is_empty() {
            // Only the last one says what all of them take the place of: before it is there, nothing is lost.
            let index = Index { supersedes: old.clone(), packs: last.packs };
            new.push((self.repo.save(Kind::Index, &index.encode())?.id, index));
        }
        // Proved by the store's own answer before anything is deleted.
        for (id, index) in &new {
            if self.repo.load_index_object(id)? != *index {
                let name = object_name(Kind::Index, id);
                return Err(RepoError::Damaged { name, detail: "it is not what was put".to_owned() }.into());
            }
        }
        if let Err(lapsed) = self.still_ours() {
            for (id, _) in &new {
                self.repo.backend.delete(&object_name(Kind::Index, id))?;
            }
            return Err(lapsed);
        }
        for (id, index) in &new {
            self.add_to_listing(*id, index);
        }
        for id in &old {
            self.repo.backend.delete(&object_name(Kind::Index, id))?;
            self.listing.remove(id);
            self.report.index_objects_replaced += 1;
        }
        Ok(())
    }

    /// Copies what lives in packs that are partly dead, and returns those packs: now nothing in them is needed.
    fn repack(&mut self) -> Result<Vec<ObjectId>, PruneError> {
        let mut sources = Vec::new();
        let fates = self.survey.fates.iter().enumerate();
        let numbers: Vec<usize> = fates.filter(|(_, fate)| **fate == Fate::Repack).map(|(number, _)| number).collect();
        if numbers.is_empty() {
            return Ok(sources);
        }
        self.progress.phase("copying what is in use");
        self.progress.add_items_total(numbers.len() as u64);
        let added = Arc::<Added>::default();
        let (sealers, level) = (self.options.sealers, self.options.level);
        let packer = Packer::start(self.repo.clone(), Arc::<Pending>::default(), added.clone(), None, sealers, level);
        let reader = Reader::new(self.repo.clone(), 1, self.progress.clone());
        let mut copier = Copier {
            repo: self.repo,
            holdings: &self.survey.holdings,
            reader: &reader,
            packer: &packer,
            opener: Opener::default(),
            gathered: [Gathered::new(BlobKind::Data), Gathered::new(BlobKind::Meta)],
        };
        for number in numbers {
            if self.progress.is_cancelled() {
                return Err(Cancelled.into());
            }
            let pack = &self.survey.holdings.packs[number];
            match copier.copy(number) {
                Ok(()) => sources.push(pack.id),
                Err(PipelineError::Stopped) => break,
                Err(PipelineError::Repo(error)) if crate::ops::holdings::is_damage(&error) => {
                    self.report.damaged.push(error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
            self.progress.add_items(1);
        }
        let flushed = copier.flush();
        packer.finish()?;
        flushed?;
        self.report.bytes_copied += added.bytes_stored.load(Relaxed);

        // What index objects now say elsewhere, as the store has them.
        for (id, _) in self.repo.list(Kind::Index)? {
            if self.listing.contains_key(&id) {
                continue;
            }
            let index = self.repo.load_index_object(&id)?;
            let chunks = index.packs.iter().flat_map(|pack| &pack.directory).flat_map(|blob| &blob.contents.chunks);
            self.fresh.extend(chunks.map(|chunk| prefix_of(&chunk.id)));
            self.add_to_listing(id, &index);
        }
        self.fresh.sort_unstable();
        self.fresh.dedup();
        let gone: HashSet<ObjectId> = sources.iter().copied().collect();
        let holdings = &self.survey.holdings;
        for (position, chunk) in holdings.chunks().iter().enumerate() {
            let pack = &holdings.packs[holdings.pack_of(position) as usize].id;
            let needed = holdings.flags[position] & CLAIMED != 0 && gone.contains(pack);
            if needed && self.fresh.binary_search(&chunk.prefix()).is_err() {
                let detail = "a chunk of it was not copied: nothing more was removed".to_owned();
                return Err(RepoError::Damaged { name: pack_name(pack), detail }.into());
            }
        }
        for pack in &sources {
            self.dead.insert(*pack, self.survey.stored[pack].0);
        }
        Ok(sources)
    }

    /// Removes what killed runs and processes that are gone have left.
    fn clean_up(&mut self) -> Result<(), PruneError> {
        for id in std::mem::take(&mut self.survey.marks_unreadable) {
            self.repo.backend.delete(&object_name(Kind::Mark, &id))?;
        }
        let (_, gone) = leases(self.repo, self.store_now())?;
        for lease in gone {
            self.repo.backend.delete(&object_name(Kind::Lease, &lease.id))?;
            self.report.leases_removed += 1;
        }
        self.report.index_objects = self.listing.len();
        Ok(())
    }
}

/// Deletes objects, several at once where the store is far away.
fn delete_all(repo: &Repository, names: &[String], progress: &Progress) -> Result<(), PruneError> {
    let next = AtomicUsize::new(0);
    let threads = repo.backend.properties().parallel_requests.clamp(1, 16).min(names.len().max(1));
    let work = || -> Result<(), BackendError> {
        while let Some(name) = names.get(next.fetch_add(1, Relaxed)) {
            repo.backend.delete(name)?;
            progress.add_items(1);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().expect("deleting does not panic"));
        done.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()
    })?;
    Ok(())
}

/// Packs gathered for one index object.
#[derive(Default)]
struct Filling {
    index: Index,
    chunks: usize,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.chunks >= INDEX_CHUNKS_MAX || self.bytes >= INDEX_BYTES_TARGET
    }

    fn add(&mut self, pack: PackIndex) {
        let contents = pack.directory.iter().map(|blob| &blob.contents);
        for blob in contents {
            self.chunks += blob.chunks.len();
            self.bytes += 14 + 36 * (blob.chunks.len() + blob.bases.len());
        }
        self.bytes += 40;
        self.index.packs.push(pack);
    }
}

/// Finds what backups that were committed meanwhile reach in packs that are about to go.
struct Rescue<'a> {
    holdings: &'a mut Holdings,
    fresh: &'a [u64],
    going: &'a HashMap<ObjectId, u64>,
    spared: Vec<ObjectId>,
    /// Blobs of packs that stay, dead until now: what they rest on must stay with them.
    revived: Vec<u32>,
}

impl Rescue<'_> {
    /// Makes sure that a copy of a chunk stays. False if there is none.
    fn keep(&mut self, prefix: u64, bytes: u32) -> bool {
        if self.fresh.binary_search(&prefix).is_ok() {
            return true;
        }
        let copies: Vec<usize> =
            self.holdings.find(prefix).filter(|&position| self.holdings.chunks()[position].bytes == bytes).collect();
        let pack_of = |position: usize| self.holdings.packs[self.holdings.pack_of(position) as usize].id;
        let stays = |position: usize| {
            let pack = pack_of(position);
            !self.going.contains_key(&pack) || self.spared.contains(&pack)
        };
        let claimed = copies.iter().find(|&&at| stays(at) && self.holdings.flags[at] & CLAIMED != 0);
        let kept = claimed.or_else(|| copies.iter().find(|&&at| stays(at))).or(copies.first()).copied();
        let Some(position) = kept else { return false };
        if !stays(position) {
            let pack = pack_of(position);
            self.spared.push(pack);
        }
        if self.holdings.flags[position] & CLAIMED == 0 {
            self.revived.push(self.holdings.chunks()[position].blob);
        }
        // So that it is copied should its pack be repacked.
        self.holdings.flags[position] |= CLAIMED | REACHED;
        true
    }

    /// All packs to be spared, those with the bases of blobs that are needed after all included.
    fn with_bases(mut self) -> Result<Vec<ObjectId>, PruneError> {
        let (mut packs_done, mut blobs_done) = (0, 0);
        while packs_done < self.spared.len() || blobs_done < self.revived.len() {
            let mut needed: HashSet<u32> = self.revived[blobs_done..].iter().copied().collect();
            for pack in &self.spared[packs_done..] {
                if let Some(number) = self.holdings.pack(pack) {
                    needed.extend(self.holdings.packs[number as usize].blobs.clone());
                }
            }
            (packs_done, blobs_done) = (self.spared.len(), self.revived.len());
            let bases: Vec<_> =
                self.holdings.bases.iter().filter(|(blob, ..)| needed.contains(blob)).copied().collect();
            for (_, prefix, bytes) in bases {
                self.keep(prefix, bytes);
            }
        }
        Ok(self.spared)
    }
}

impl Visit for Rescue<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        if self.keep(prefix_of(&entry.id), entry.bytes) { Ok(()) } else { Err(missing(entry)) }
    }
}

/// Chunks of blobs that are partly dead, gathered into new ones.
struct Gathered {
    contents: BlobContents,
    plaintext: Vec<u8>,
}

impl Gathered {
    fn new(kind: BlobKind) -> Self {
        let contents = BlobContents { kind, depth: 0, chunks: Vec::new(), bases: Vec::new() };
        Self { contents, plaintext: Vec::new() }
    }
}

/// Copies packs into a packer.
struct Copier<'a> {
    repo: &'a Arc<Repository>,
    holdings: &'a Holdings,
    reader: &'a Reader,
    packer: &'a Packer,
    opener: Opener,
    gathered: [Gathered; 2],
}

impl Copier<'_> {
    fn copy(&mut self, number: usize) -> Result<(), PipelineError> {
        let pack = &self.holdings.packs[number];
        let name = pack_name(&pack.id);
        let bytes = self.repo.backend.get(&name, None).map_err(RepoError::from)?;
        // Blobs are copied unopened: so the whole is compared first, or damage would get a name of its own.
        if ObjectId::of(&bytes) != pack.id {
            return Err(RepoError::Damaged { name, detail: "its bytes do not hash to its name".to_owned() }.into());
        }
        let format = |source| RepoError::Format { name: name.clone(), source };
        let range = directory_range(bytes.len() as u64, &bytes).map_err(format)?;
        let sealed = &bytes[range.start as usize..range.end as usize];
        let directory =
            open_object(&self.repo.keys, Kind::Directory, sealed).map_err(|error| damaged(&name, &error))?;
        if blake3::hash(&directory) != pack.directory {
            return Err(RepoError::Damaged { name, detail: "the index says something else of it".to_owned() }.into());
        }
        for (blob, entry) in pack.blobs.clone().zip(decode_directory(&directory).map_err(format)?) {
            let contents = &entry.contents;
            let live: Vec<bool> = contents.chunks.iter().map(|chunk| self.is_claimed(chunk, blob)).collect();
            let stored = bytes.slice(entry.offset as usize..(entry.offset + entry.stored) as usize);
            if live.iter().all(|live| *live) {
                self.packer.push(Blob::Sealed { contents: entry.contents, stored })?;
            } else if live.contains(&true) {
                let row =
                    BlobRow { pack: pack.id, offset: entry.offset, stored: entry.stored, contents: entry.contents };
                self.copy_part(&row, &stored, &live)?;
            }
        }
        Ok(())
    }

    fn is_claimed(&self, entry: &ChunkEntry, blob: u32) -> bool {
        let holdings = self.holdings;
        holdings
            .find(prefix_of(&entry.id))
            .any(|at| holdings.chunks()[at].blob == blob && holdings.flags[at] & CLAIMED != 0)
    }

    fn copy_part(&mut self, row: &BlobRow, stored: &[u8], live: &[bool]) -> Result<(), PipelineError> {
        let plaintext = self.reader.open(&mut self.opener, row, stored, 0)?;
        for (position, _) in live.iter().enumerate().filter(|(_, live)| **live) {
            let gathered = &mut self.gathered[row.contents.kind as usize - 1];
            let range = row.range_of(&(position..position + 1));
            gathered.plaintext.extend_from_slice(&plaintext[range]);
            gathered.contents.chunks.push(row.contents.chunks[position]);
            if gathered.plaintext.len() >= BLOB_BYTES_TARGET || gathered.contents.chunks.len() >= BLOB_CHUNKS_MAX {
                self.flush_kind(row.contents.kind)?;
            }
        }
        Ok(())
    }

    fn flush_kind(&mut self, kind: BlobKind) -> Result<(), PipelineError> {
        let Gathered { contents, plaintext } =
            std::mem::replace(&mut self.gathered[kind as usize - 1], Gathered::new(kind));
        if contents.chunks.is_empty() {
            return Ok(());
        }
        self.packer.push(Blob::Plain { contents, plaintext, candidates: Vec::new() })
    }

    fn flush(&mut self) -> Result<(), PipelineError> {
        self.flush_kind(BlobKind::Data)?;
        self.flush_kind(BlobKind::Meta)
    }
}
