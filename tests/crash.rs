//! The process dies at the n-th change of the store, for every n: before the store has done it, and after. Then everything
//! that was committed restores, the operation can be repeated, and prune leaves no garbage.

mod lab;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lab::*;
use vault::backend::fault::{Failure, Fault, Faults, Rule};
use vault::backend::recording::{CallKind, Recording};
use vault::backend::{Backend, BackendError, Memory};
use vault::id::ObjectId;
use vault::ops::forget::{ForgetOptions, forget};
use vault::ops::prune::{PruneOptions, prune};
use vault::ops::snapshot::SnapshotError;
use vault::pipeline::PipelineError;
use vault::progress::Progress;
use vault::repo::{Pace, RepoError, Repository};

const KB: usize = 1 << 10;

/// A store that takes `n - 1` changes; from the n-th on nothing gets through, as for a process that is dead.
///
/// With `after`, the n-th is done and only its answer is lost.
fn dies_at(store: &Memory, n: usize, after: bool) -> Arc<dyn Backend> {
    let dead = || Fault::FailBefore(Failure::Interrupted);
    // Rules count by kind of call, so changes of either kind are counted by the wrapper.
    Arc::new(Changes::new(Faults::new(store.clone(), []), n, after, dead()))
}

/// Counts puts and deletes together.
struct Changes {
    inner: Faults<Memory>,
    left: std::sync::atomic::AtomicI64,
    after: bool,
    dead: Fault,
}

impl Changes {
    fn new(inner: Faults<Memory>, n: usize, after: bool, dead: Fault) -> Self {
        Self { inner, left: (n as i64 - 1).into(), after, dead }
    }

    /// What becomes of the next change: done, done with its answer lost, or nothing any more.
    fn change(&self) -> Life {
        match self.left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
            0 if self.after => {
                self.inner.add(Rule::new(None, self.dead.clone()));
                Life::Last
            }
            left if left > 0 => Life::Alive,
            _ => {
                self.inner.add(Rule::new(None, self.dead.clone()));
                Life::Dead
            }
        }
    }
}

enum Life {
    Alive,
    Last,
    Dead,
}

fn interrupted<T>(name: &str) -> Result<T, vault::backend::BackendError> {
    Err(vault::backend::BackendError::Interrupted { name: name.to_owned(), action: "change" })
}

impl Backend for Changes {
    fn put(&self, name: &str, bytes: bytes::Bytes) -> Result<vault::backend::PutReceipt, vault::backend::BackendError> {
        match self.change() {
            Life::Alive => self.inner.put(name, bytes),
            Life::Last => {
                self.inner.inner().put(name, bytes)?;
                interrupted(name)
            }
            Life::Dead => interrupted(name),
        }
    }
    fn get(
        &self,
        name: &str,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<bytes::Bytes, vault::backend::BackendError> {
        self.inner.get(name, range)
    }
    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(vault::backend::ObjectInfo) -> Result<(), vault::backend::BackendError>,
    ) -> Result<(), vault::backend::BackendError> {
        self.inner.list(prefix, each)
    }
    fn delete(&self, name: &str) -> Result<bool, vault::backend::BackendError> {
        match self.change() {
            Life::Alive => self.inner.delete(name),
            Life::Last => {
                self.inner.inner().delete(name)?;
                interrupted(name)
            }
            Life::Dead => interrupted(name),
        }
    }
    fn properties(&self) -> vault::backend::Properties {
        self.inner.properties()
    }
}

/// Three backups that share some chunks, and the data of a fourth.
fn history(lab: &Lab) -> (Vec<(ObjectId, Items)>, Items) {
    let repo = lab.open("a");
    let data = |n: u64| items(&[("same", noise(1, 300 * KB)), ("own", noise(10 + n, 300 * KB))]);
    let made = (0..3).map(|n| (backup_ago(&repo, "n", &data(n), 10 - n as i64).id, data(n))).collect();
    (made, data(3))
}

/// Runs `work` on copies of one repository, dying at every change it makes; returns how many there are.
fn at_every_change(
    what: &str,
    start: &Memory,
    work: impl Fn(&Arc<Repository>) -> Result<(), String>,
    then: impl Fn(&Lab, bool),
) {
    let counting = Lab::with_store(start.fork());
    let recorded = Arc::new(Recording::new(counting.store.clone()));
    let repo = counting.open_on("worker", recorded.clone());
    recorded.take();
    work(&repo).unwrap_or_else(|error| panic!("{what} without a fault: {error}"));
    drop(repo);
    let changes = recorded.count(CallKind::Put, "") + recorded.count(CallKind::Delete, "");
    assert!(changes >= 2, "{what} changes something");
    then(&counting, true);
    for n in 1..=changes {
        for after in [false, true] {
            let lab = Lab::with_store(start.fork());
            let repo = lab.open_on("worker", dies_at(&lab.store, n, after));
            let done = work(&repo).is_ok();
            drop(repo);
            lab.bury_processes(&lab.open("worker"));
            then(&lab, done);
        }
    }
}

#[test]
fn a_snapshot_that_dies_anywhere_is_there_whole_or_not_at_all() {
    let lab = Lab::new();
    let (made, next) = history(&lab);
    at_every_change(
        "snapshot",
        &lab.store,
        |repo| try_backup(repo, "n", &next, Timestamp::now()).map(|_| ()).map_err(|error| error.to_string()),
        |lab, done| {
            let repo = lab.open("reader");
            let ids: Vec<_> = repo.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
            assert!(ids.len() == 4 || (ids.len() == 3 && !done), "a success is a backup");
            let mut expected: Vec<(ObjectId, &Items)> = made.iter().map(|(id, items)| (*id, items)).collect();
            expected.extend(ids.iter().filter(|id| made.iter().all(|(known, _)| known != *id)).map(|id| (*id, &next)));
            assert_whole(lab, &expected);
            // Again, with nothing to unlock; then prune leaves nothing over.
            let again = backup(&lab.open("worker"), "n", &next);
            expected.push((again.id, &next));
            assert_whole(lab, &expected);
            prune_now(&lab.open("worker"), 100);
            assert_whole(lab, &expected);
            assert_no_garbage(lab);
        },
    );
}

#[test]
fn a_forget_that_dies_anywhere_drops_the_backup_or_not_and_raises_no_alarm() {
    let lab = Lab::new();
    let (made, _) = history(&lab);
    let victim = made[1].0;
    let options = ForgetOptions { words: vec![victim.hex()], host: "h".into(), now: Timestamp::now(), dry_run: false };
    at_every_change(
        "forget",
        &lab.store,
        |repo| forget(repo, &options).map(|_| ()).map_err(|error| error.to_string()),
        |lab, done| {
            let repo = lab.open("reader");
            let ids: Vec<_> = repo.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
            assert!(!(done && ids.contains(&victim)));
            let left = made.iter().filter(|(id, _)| ids.contains(id));
            assert_whole(lab, &left.map(|(id, items)| (*id, items)).collect::<Vec<_>>());
            if ids.contains(&victim) {
                forget(&lab.open("worker"), &options).unwrap();
            }
            let left: Vec<_> = made.iter().filter(|(id, _)| *id != victim).map(|(id, items)| (*id, items)).collect();
            prune_now(&repo, 100);
            assert_whole(lab, &left);
            assert_no_garbage(lab);
        },
    );
}

fn prune_dies_anywhere(options: &PruneOptions, store: &Memory, made: &[(ObjectId, Items)], keep: usize) {
    at_every_change(
        "prune",
        store,
        |repo| prune(repo, options, &Progress::default()).map(|_| ()).map_err(|error| error.to_string()),
        |lab, _| {
            let repo = lab.open("reader");
            let ids: Vec<_> = repo.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
            let kept = &made[made.len() - keep..];
            assert!(kept.iter().all(|(id, _)| ids.contains(id)), "what the rules keep is never gone");
            let left = made.iter().filter(|(id, _)| ids.contains(id));
            assert_whole(lab, &left.map(|(id, items)| (*id, items)).collect::<Vec<_>>());
            // A backup between the two works as well, and rests on nothing that goes.
            let data = made[0].1.clone();
            let late = backup(&lab.open("late"), "late", &data);
            prune_now(&lab.open("worker"), keep as u32);
            let mut expected: Vec<_> = kept.iter().map(|(id, items)| (*id, items)).collect();
            expected.push((late.id, &data));
            assert_whole(lab, &expected);
            assert_no_garbage(lab);
        },
    );
}

#[test]
fn a_prune_that_dies_anywhere_loses_nothing_and_the_next_one_finishes() {
    let lab = Lab::new();
    let (made, _) = history(&lab);
    prune_dies_anywhere(&prune_options(keep_last(1)), &lab.store, &made, 1);
}

#[test]
fn a_prune_with_a_grace_that_dies_anywhere_loses_nothing() {
    let lab = Lab::new();
    let (made, _) = history(&lab);
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_hours(23);
    prune_dies_anywhere(&options, &lab.store, &made, 1);
}

#[test]
fn a_prune_that_ends_an_earlier_one_dies_anywhere_and_loses_nothing() {
    let lab = Lab::new();
    let (made, _) = history(&lab);
    let mut first = prune_options(keep_last(2));
    first.grace = SignedDuration::from_hours(23);
    prune(&lab.open("a"), &first, &Progress::default()).unwrap();
    prune_dies_anywhere(&prune_options(keep_last(1)), &lab.store, &made, 1);
}

#[test]
fn a_store_that_fails_once_anywhere_makes_an_error_and_no_harm() {
    let lab = Lab::new();
    let (made, next) = history(&lab);
    let calls = [CallKind::Put, CallKind::Get, CallKind::List, CallKind::Delete];
    let hits = [(Failure::Unreachable, &calls[..]), (Failure::Denied, &calls[3..]), (Failure::NoSpace, &calls[..1])];
    for (failure, kinds) in hits {
        for &kind in kinds {
            for n in 1.. {
                let lab = Lab::with_store(lab.store.fork());
                let faults = Arc::new(Recording::new(Faults::new(lab.store.clone(), [])));
                let repo = lab.open_on("worker", faults.clone());
                faults.take();
                faults.inner().add(Rule::new(kind, Fault::FailBefore(failure)).at(n));
                let made_now = try_backup(&repo, "n", &next, Timestamp::now());
                let pruned = prune(&repo, &prune_options(keep_last(2)), &Progress::default());
                let hit = faults.count(kind, "") >= n;
                drop(repo);
                lab.bury_processes(&lab.open("worker"));
                let reader = lab.open("reader");
                let ids: Vec<_> = reader.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id).collect();
                let mut expected: Vec<(ObjectId, &Items)> =
                    made.iter().filter(|(id, _)| ids.contains(id)).map(|(id, items)| (*id, items)).collect();
                match &made_now {
                    Ok(made) => {
                        assert!(ids.contains(&made.id), "{failure:?} at {kind:?} {n}: a success is a backup");
                        expected.push((made.id, &next));
                    }
                    Err(_) => assert!(ids.len() <= 3, "{failure:?} at {kind:?} {n}: a failure is none"),
                }
                assert_whole(&lab, &expected);
                prune_now(&lab.open("worker"), 2);
                assert_no_garbage(&lab);
                if !hit {
                    assert!(made_now.is_ok() && pruned.is_ok());
                    break;
                }
            }
        }
    }
}

/// Packs that index objects in the store list.
fn listed(repo: &Repository) -> usize {
    repo.load_index(&Progress::default()).unwrap();
    repo.index.packs().unwrap().len()
}

#[test]
fn packs_that_were_put_before_a_put_failed_are_listed_and_used_by_the_next_run() {
    for after in [false, true] {
        let lab = Lab::new();
        let data = items(&[("i", noise(1, 60 << 20))]);
        let fault =
            if after { Fault::FailAfter(Failure::Unreachable) } else { Fault::FailBefore(Failure::Unreachable) };
        let store = Faults::new(lab.store.clone(), [Rule::new(CallKind::Put, fault).under("packs/").at(3)]);
        let failed = try_backup(&lab.open_on("a", Arc::new(store)), "n", &data, Timestamp::now());
        let Err(SnapshotError::Pipeline(PipelineError::Repo(RepoError::Backend(BackendError::Unreachable { .. })))) =
            failed
        else {
            panic!("the first failure is the one that is said: {failed:?}");
        };
        let repo = lab.open("b");
        assert_eq!(listed(&repo), 2, "the packs before the third are listed");
        let made = backup(&repo, "n", &data);
        assert!(made.manifest.bytes_new < 30 << 20, "{} bytes are stored again", made.manifest.bytes_new);
        prune_now(&repo, 1);
        assert_whole(&lab, &[(made.id, &data)]);
        assert_no_garbage(&lab);
    }
}

#[test]
fn packs_of_a_run_that_was_cancelled_are_listed() {
    let lab = Lab::new();
    let data = noise(1, 40 << 20);
    let failed = try_backup_with(&lab.open("a"), "n", Timestamp::now(), |sink| {
        let mut item = sink.begin(0, "i", "stream")?;
        std::io::Write::write_all(&mut item, &data)?;
        // Until two packs are there: then the source fails.
        while lab.names("packs/").len() < 2 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(std::io::Error::other("the source is gone"))
    });
    assert!(matches!(failed, Err(SnapshotError::Source(_))));
    assert!(listed(&lab.open("b")) >= 2);
}

#[test]
fn a_pack_does_not_wait_for_its_index_object_while_the_source_is_silent() {
    let lab = Lab::new();
    let data = noise(1, 20 << 20);
    let pace = Pace { index_put: std::time::Duration::from_millis(100), ..Pace::default() };
    let dies = dies_at(&lab.store, 4, false);
    let repo = lab.open_paced("a", dies, pace);
    let killed = try_backup_with(&repo, "n", Timestamp::now(), |sink| {
        let mut item = sink.begin(0, "i", "stream")?;
        std::io::Write::write_all(&mut item, &data)?;
        // A lease, a pack, and then nothing that would close a second pack: the index object comes all the same.
        let started = std::time::Instant::now();
        while lab.names("index/").is_empty() {
            assert!(started.elapsed().as_secs() < 30, "no index object after thirty seconds");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Err(std::io::Error::other("the process is killed"))
    });
    assert!(killed.is_err());
    drop(repo);
    lab.bury_processes(&lab.open("a"));
    let repo = lab.open("b");
    assert_eq!(listed(&repo), 1);
    let again = items(&[("i", data)]);
    let made = backup(&repo, "n", &again);
    assert!(made.manifest.bytes_new < 6 << 20, "{} bytes are stored again", made.manifest.bytes_new);
    assert_whole(&lab, &[(made.id, &again)]);
}
