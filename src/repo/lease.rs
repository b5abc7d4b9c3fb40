//! Marks and leases: how prune and running backups keep out of each other's way without a lock.
//!
//! Protocol: format-spec/records.md.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::backend::BackendError;
use crate::format::records::{Lease, Mark, decode_record, encode_record};
use crate::id::ObjectId;
use crate::repo::{RepoError, Repository, Saved, object_name, random};
use crate::seal::keys::Kind;

/// How long a lease holds after the store took it in.
pub const LEASE_HOLDS: SignedDuration = SignedDuration::from_hours(3);
/// When a running backup puts a new one.
pub const LEASE_RENEW: Duration = Duration::from_secs(3600);

/// The lease of a running backup or prune. Deleted when dropped.
pub struct HeldLease<'r> {
    repo: &'r Repository,
    host: String,
    prune: bool,
    began: Timestamp,
    current: Mutex<(ObjectId, std::time::Duration)>,
}

impl<'r> HeldLease<'r> {
    /// Puts a lease. Read the marks after it, the index after them.
    pub fn take(repo: &'r Repository, host: &str) -> Result<Self, RepoError> {
        Self::put(repo, host, false)
    }

    /// Puts the lease of a prune: it keeps no packs, and other prunes keep away while it holds.
    pub fn take_for_prune(repo: &'r Repository, host: &str) -> Result<Self, RepoError> {
        Self::put(repo, host, true)
    }

    fn put(repo: &'r Repository, host: &str, prune: bool) -> Result<Self, RepoError> {
        let saved = put_lease(repo, host, prune, None)?;
        let current = Mutex::new((saved.id, since_boot()));
        Ok(Self { repo, host: host.to_owned(), prune, began: saved.receipt.store_time, current })
    }

    /// The store's time when it took the first lease in.
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// The object that stands for it now.
    pub fn id(&self) -> ObjectId {
        self.current.lock().expect("no code panics while it holds this lock").0
    }

    /// Puts a new lease if this one is older than [`LEASE_RENEW`]. Returns false if it had run out meanwhile: whoever held
    /// it must make sure that what it rests on is still there.
    pub fn renew(&self) -> Result<bool, RepoError> {
        let mut current = self.current.lock().expect("no code panics while it holds this lock");
        // Time since boot goes on while the host sleeps.
        let age = since_boot().saturating_sub(current.1);
        if age < LEASE_RENEW {
            return Ok(true);
        }
        let old = current.0;
        *current = (put_lease(self.repo, &self.host, self.prune, Some(self.began))?.id, since_boot());
        // The margin covers a clock of the store that runs faster than ours.
        let held = age + LEASE_RENEW / 2 < Duration::try_from(LEASE_HOLDS).expect("hours fit");
        let _ = self.repo.backend.delete(&object_name(Kind::Lease, &old));
        Ok(held)
    }
}

impl Drop for HeldLease<'_> {
    fn drop(&mut self) {
        let current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A store that denies deletes keeps it until it runs out.
        if let Err(error) = self.repo.backend.delete(&object_name(Kind::Lease, &current.0)) {
            tracing::debug!("the lease stays until it runs out: {error}");
        }
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
        !gone && now.duration_since(self.stored) < LEASE_HOLDS
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

    fn records<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        kind: Kind,
    ) -> Result<Vec<(ObjectId, Timestamp, T)>, RepoError> {
        let each = |(id, stored, record): (_, _, Result<T, RepoError>)| Ok((id, stored, record?));
        self.records_and_damage(what, kind)?.into_iter().map(each).collect()
    }

    /// All records of a kind with their ids and when the store took them in; those that cannot be read as errors.
    pub fn records_and_damage<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        kind: Kind,
    ) -> Result<Vec<(ObjectId, Timestamp, Result<T, RepoError>)>, RepoError> {
        let mut out = Vec::new();
        for (id, info) in self.list(kind)? {
            let record = match self.load(kind, &id) {
                Err(RepoError::Backend(BackendError::NotFound { .. })) => continue,
                Err(error @ RepoError::Damaged { .. }) => Err(error),
                Err(error) => return Err(error),
                Ok(text) => decode_record(what, &text).map_err(|source| RepoError::Format { name: info.name, source }),
            };
            out.push((id, info.modified, record));
        }
        Ok(out)
    }

    /// Ids of backups that were dropped on purpose.
    pub fn removed(&self) -> Result<HashSet<ObjectId>, RepoError> {
        let records = self.records::<crate::format::records::Removal>("removal", Kind::Removal)?;
        Ok(records.into_iter().flat_map(|(_, _, record)| record.backups).map(|backup| backup.id).collect())
    }
}
