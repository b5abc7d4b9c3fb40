//! Who may prune: the lease that keeps other prunes away, and room for it in a full store.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::survey::{Survey, list_packs, refuse_damage};
use super::{PruneError, PruneOptions, STORE_TIME_SLACK};
use crate::backend::BackendError;
use crate::format::records::{Lease, RemovedBackup};
use crate::ops::forget;
use crate::ops::holdings::Holdings;
use crate::progress::Progress;
use crate::repo::lease::{HeldLease, ListedLease};
use crate::repo::{RepoError, Repository, object_name, pack_name, random};
use crate::seal::keys::Kind;

/// How often a lease is tried for.
const TRIES: usize = 4;

/// Takes the lease that keeps other prunes away. Also returns backups that had to go before they could be recorded.
pub(super) fn take_lease(
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
pub(in crate::ops) fn take_lease_of(repo: &Arc<Repository>, host: &str) -> Result<HeldLease, PruneError> {
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

pub(super) fn is_no_space(error: &RepoError) -> bool {
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
pub(super) fn leases(repo: &Repository, now: Timestamp) -> Result<(Vec<ListedLease>, Vec<ListedLease>), PruneError> {
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
