//! Does what the plan says: drops backups, marks, waits for the grace, sweeps, deletes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::lease::{is_no_space, leases};
use super::rescue::Fresh;
use super::survey::{Marked, Survey};
use super::{Fate, Holder, PruneError, PruneOptions, PruneReport, STORE_TIME_SLACK};
use crate::format::records::{Mark, RemovedBackup, encode_record};
use crate::id::ObjectId;
use crate::limits::SMALL_OBJECTS_AT_ONCE;
use crate::ops::forget;
use crate::progress::{Cancelled, Progress};
use crate::repo::lease::HeldLease;
use crate::repo::together::together;
use crate::repo::{Repository, object_name, pack_name};
use crate::seal::keys::Kind;

/// A grace this short is waited for; a longer one is for the next run.
const WAIT_MAX: SignedDuration = SignedDuration::from_secs(60);

/// A prune that is under way.
pub(super) struct Run<'a> {
    pub(super) repo: &'a Arc<Repository>,
    pub(super) options: &'a PruneOptions,
    pub(super) lease: &'a HeldLease,
    pub(super) progress: &'a Progress,
    pub(super) started: Instant,
    pub(super) survey: Survey,
    pub(super) report: PruneReport,
    /// Backups that are gone and not recorded yet.
    pub(super) owed: Vec<RemovedBackup>,
    /// Packs to be deleted, with their bytes.
    pub(super) dead: HashMap<ObjectId, u64>,
    /// Index objects that count now, and what they list.
    pub(super) listing: BTreeMap<ObjectId, (Vec<ObjectId>, usize)>,
    /// What index objects put since the survey list.
    pub(super) fresh: Fresh,
    /// Manifests whose chunks have been followed.
    pub(super) known: HashSet<ObjectId>,
}

impl<'a> Run<'a> {
    pub(super) fn start(
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
        for (pack, fate) in survey.holdings.packs.iter().zip(&survey.plan.fates) {
            if *fate == Fate::Dead {
                dead.insert(pack.id, survey.stored[&pack.id].0);
            }
        }
        let listing = survey.holdings.objects.iter();
        let listing = listing.map(|(id, object)| (*id, (object.packs.clone(), object.chunks))).collect();
        let known = survey.kept.iter().chain(&survey.dropped).map(|snapshot| snapshot.id).collect();
        let fresh = Fresh::new(&survey.holdings);
        Ok(Self { repo, options, lease, progress, started, survey, report, owed, dead, listing, fresh, known })
    }

    pub(super) fn finish(mut self) -> Result<PruneReport, PruneError> {
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
    pub(super) fn still_ours(&self) -> Result<(), PruneError> {
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
        let missing = holdings.packs.iter().zip(&self.survey.plan.fates).filter(|(_, fate)| **fate == Fate::Missing);
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

/// Deletes objects, several at once.
fn delete_all(repo: &Repository, names: &[String], progress: &Progress) -> Result<(), PruneError> {
    together(SMALL_OBJECTS_AT_ONCE, names, |name| {
        repo.backend.delete(name)?;
        progress.add_items(1);
        Ok(())
    })
    .map(|_| ())
}
