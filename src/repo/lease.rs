//! Marks and leases: how prune and running backups keep out of each other's way without a lock.
//!
//! Protocol: format-spec/records.md.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use jiff::{SignedDuration, Timestamp};

use crate::backend::BackendError;
use crate::format::records::{Lease, Mark, decode_record, encode_record};
use crate::id::ObjectId;
use crate::limits::SMALL_OBJECTS_AT_ONCE;
use crate::repo::together::together;
use crate::repo::{RepoError, Repository, Saved, object_name, random};
use crate::seal::keys::Kind;

/// How long a lease holds after the store took it in.
pub const LEASE_HOLDS: SignedDuration = SignedDuration::from_hours(3);
/// When a running backup or prune puts a new one.
pub const LEASE_RENEW: Duration = Duration::from_secs(3600);
/// A lease that is not renewed is given up this long before it runs out: the store's clock may run faster than ours.
const LEASE_MARGIN: Duration = Duration::from_secs(1800);
/// How often the age of a lease is looked at. A host that slept looks again soon after it woke.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The lease of a running backup or prune. A thread of its own renews it, however long the run hears nothing from its
/// source. Deleted when dropped.
pub struct HeldLease {
    held: Arc<Held>,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

struct Held {
    repo: Arc<Repository>,
    host: String,
    prune: bool,
    began: Timestamp,
    current: Mutex<Current>,
}

struct Current {
    id: ObjectId,
    /// Time since boot when it was sent.
    sent: Duration,
    /// The one before, if it is still in the store.
    before: Option<ObjectId>,
    /// It had run out before a new one was put.
    lapsed: bool,
}

impl HeldLease {
    /// Puts a lease. Read the marks after it, the index after them.
    pub fn take(repo: &Arc<Repository>, host: &str) -> Result<Self, RepoError> {
        Self::put(repo, host, false)
    }

    /// Puts the lease of a prune: it keeps no packs, and other prunes keep away while it holds.
    pub fn take_for_prune(repo: &Arc<Repository>, host: &str) -> Result<Self, RepoError> {
        Self::put(repo, host, true)
    }

    fn put(repo: &Arc<Repository>, host: &str, prune: bool) -> Result<Self, RepoError> {
        let sent = since_boot();
        let saved = put_lease(repo, host, prune, None)?;
        let current = Mutex::new(Current { id: saved.id, sent, before: None, lapsed: false });
        let held = Held { repo: repo.clone(), host: host.to_owned(), prune, began: saved.receipt.store_time, current };
        let held = Arc::new(held);
        let (stop, stopped) = bounded::<()>(0);
        let (every, ticking) = (LOOK_EVERY.min(repo.pace.lease_renew / 4), held.clone());
        let work = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // The next look tries again; whoever holds it learns from `renew` whether that was in time.
                if let Err(error) = ticking.renew_if_old() {
                    tracing::warn!("the lease of this run cannot be renewed now: {error}");
                }
            }
        };
        let renewer = std::thread::Builder::new().name("lease".to_owned()).spawn(work);
        // Without a thread it is renewed where the run asks whether it holds.
        let renewer = renewer.inspect_err(|error| tracing::warn!("no thread to renew the lease: {error}")).ok();
        Ok(Self { held, renewer: renewer.map(|thread| (stop, thread)) })
    }

    /// The store's time when it took the first lease in.
    pub fn began(&self) -> Timestamp {
        self.held.began
    }

    /// The object that stands for it now.
    pub fn id(&self) -> ObjectId {
        self.held.current().id
    }

    /// Whether it holds now and has held since [`renew`](Self::renew) was last asked. Does not ask the store.
    pub fn holds(&self) -> bool {
        let current = self.held.current();
        !current.lapsed && self.held.covers(since_boot().saturating_sub(current.sent))
    }

    /// Puts a new lease if this one is due. Returns false if it ran out at any time since this was last asked: whoever
    /// holds it must make sure that what it rests on is still there.
    pub fn renew(&self) -> Result<bool, RepoError> {
        self.held.renew_if_old()?;
        Ok(!std::mem::take(&mut self.held.current().lapsed))
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.renewer.take() {
            drop(stop);
            let _ = thread.join();
        }
        let current = self.held.current();
        for id in current.before.iter().chain([&current.id]) {
            // A store that denies deletes keeps it until it runs out.
            if let Err(error) = self.held.repo.backend.delete(&object_name(Kind::Lease, id)) {
                tracing::debug!("the lease stays until it runs out: {error}");
            }
        }
    }
}

impl Held {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lease that was sent this long ago holds.
    fn covers(&self, age: Duration) -> bool {
        SignedDuration::try_from(age + LEASE_MARGIN).is_ok_and(|age| age < self.repo.pace.lease_holds)
    }

    fn renew_if_old(&self) -> Result<(), RepoError> {
        let mut current = self.current();
        // Time since boot goes on while the host sleeps.
        if since_boot().saturating_sub(current.sent) < self.repo.pace.lease_renew {
            return Ok(());
        }
        let sent = since_boot();
        let id = put_lease(&self.repo, &self.host, self.prune, Some(self.began))?.id;
        // From when the old one can have been taken in at the earliest to when the new one can have been at the latest.
        let uncovered = since_boot().saturating_sub(current.sent);
        current.lapsed |= !self.covers(uncovered);
        current.sent = sent;
        let old = std::mem::replace(&mut current.id, id);
        // The one just replaced stays until the next time: a listing under way may not have the new one.
        if let Some(id) = current.before.replace(old) {
            let _ = self.repo.backend.delete(&object_name(Kind::Lease, &id));
        }
        Ok(())
    }
}

fn put_lease(repo: &Repository, host: &str, prune: bool, began: Option<Timestamp>) -> Result<Saved, RepoError> {
    let pid = std::process::id();
    let lease = Lease {
        time: Timestamp::now(),
        host: host.to_owned(),
        host_id: repo.host_id,
        pid,
        pid_start: process_start(pid).unwrap_or(0),
        boot_id: boot_id(),
        nonce: data_encoding::HEXLOWER.encode(&random::<16>()?),
        began,
        prune,
    };
    repo.save(Kind::Lease, &encode_record(&lease))
}

/// Time since boot, time asleep included.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// When a process of this host began, in clock ticks since boot; `None` if there is none.
fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; field 22 is the start time.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A lease in the store.
#[derive(Debug, Clone)]
pub struct ListedLease {
    pub id: ObjectId,
    /// When the store took it in.
    pub stored: Timestamp,
    pub lease: Lease,
}

impl ListedLease {
    /// The store's time when the run that holds it began: a renewed lease still stands for what was read at the start.
    pub fn began(&self) -> Timestamp {
        self.lease.began.map_or(self.stored, |began| began.min(self.stored))
    }

    /// Whether it holds, by the store's clock: it has not run out, and is not of a process of this host that is gone.
    pub fn holds(&self, repo: &Repository, now: Timestamp) -> bool {
        let (lease, boot) = (&self.lease, boot_id());
        let here = lease.host_id == repo.host_id && !boot.is_empty();
        let gone = here && (lease.boot_id != boot || process_start(lease.pid) != Some(lease.pid_start));
        !gone && now.duration_since(self.stored) < repo.pace.lease_holds
    }
}

impl Repository {
    /// Packs that some mark names: nothing new may rest on them.
    pub fn marked_packs(&self) -> Result<HashSet<ObjectId>, RepoError> {
        Ok(self.marks()?.into_iter().flat_map(|(_, _, mark)| mark.packs).collect())
    }

    /// All marks, with their ids and when the store took them in.
    pub fn marks(&self) -> Result<Vec<(ObjectId, Timestamp, Mark)>, RepoError> {
        self.records("mark", Kind::Mark)
    }

    /// Leases that hold, by the store's clock `now`: not run out, and not of a process of this host that is gone.
    ///
    /// Returned second: those that do not hold, to be removed.
    pub fn leases(&self, now: Timestamp) -> Result<(Vec<ListedLease>, Vec<ListedLease>), RepoError> {
        let all = self.records::<Lease>("lease", Kind::Lease)?;
        let listed = all.into_iter().map(|(id, stored, lease)| ListedLease { id, stored, lease });
        Ok(listed.partition(|listed| listed.holds(self, now)))
    }

    fn records<T: serde::de::DeserializeOwned + Send>(
        &self,
        what: &'static str,
        kind: Kind,
    ) -> Result<Vec<(ObjectId, Timestamp, T)>, RepoError> {
        let each = |(id, stored, record): (_, _, Result<T, RepoError>)| Ok((id, stored, record?));
        self.records_and_damage(what, kind)?.into_iter().map(each).collect()
    }

    /// All records of a kind with their ids and when the store took them in; those that cannot be read as errors.
    pub fn records_and_damage<T: serde::de::DeserializeOwned + Send>(
        &self,
        what: &'static str,
        kind: Kind,
    ) -> Result<Vec<(ObjectId, Timestamp, Result<T, RepoError>)>, RepoError> {
        let listed = self.list(kind)?;
        let read = together(SMALL_OBJECTS_AT_ONCE, &listed, |(id, info)| {
            let record = match self.load(kind, id) {
                Err(RepoError::Backend(BackendError::NotFound { .. })) => return Ok(None),
                Err(error @ RepoError::Damaged { .. }) => Err(error),
                Err(error) => return Err(error),
                Ok(text) => {
                    decode_record(what, &text).map_err(|source| RepoError::Format { name: info.name.clone(), source })
                }
            };
            Ok(Some((*id, info.modified, record)))
        })?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Ids of backups that were dropped on purpose.
    pub fn removed(&self) -> Result<HashSet<ObjectId>, RepoError> {
        let records = self.records::<crate::format::records::Removal>("removal", Kind::Removal)?;
        Ok(records.into_iter().flat_map(|(_, _, record)| record.backups).map(|backup| backup.id).collect())
    }
}
