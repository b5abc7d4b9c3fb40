//! Runs beside each other: leases that are renewed while a source is silent, backups that were stopped until their lease
//! ran out, two processes that share a local index.

mod lab;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use lab::*;
use vault::backend::recording::{CallKind, Recording};
use vault::backend::{Backend, BackendError, Memory, ObjectInfo, Properties, PutReceipt};
use vault::format::records::{Lease, Mark, decode_record, encode_record};
use vault::ops::check::Status;
use vault::ops::prune::{PruneError, prune};
use vault::ops::snapshot::SnapshotError;
use vault::progress::Progress;
use vault::repo::lease::HeldLease;
use vault::repo::{Pace, id_of_name};
use vault::seal::keys::Kind;

const MB: usize = 1 << 20;

/// Leases are renewed many times a second.
fn brisk() -> Pace {
    Pace { lease_renew: Duration::from_millis(20), ..Pace::default() }
}

/// A lease has run out whenever it is renewed, as on a host that slept for hours.
fn lapsing() -> Pace {
    Pace { lease_renew: Duration::from_millis(20), lease_holds: SignedDuration::ZERO, ..Pace::default() }
}

/// The leases in the store, as they read.
fn leases(lab: &Lab) -> Vec<Lease> {
    let repo = lab.open_cold("reader of leases");
    let ids = lab.names("leases/").into_iter().filter_map(|name| id_of_name(&name));
    ids.filter_map(|id| repo.load(Kind::Lease, &id).ok()).map(|text| decode_record("lease", &text).unwrap()).collect()
}

#[test]
fn a_lease_is_renewed_while_nothing_happens() {
    for for_prune in [false, true] {
        let lab = Lab::new();
        let store = Arc::new(Recording::new(lab.store.clone()));
        let repo = lab.open_paced("a", store.clone(), brisk());
        let take = if for_prune { HeldLease::take_for_prune } else { HeldLease::take };
        let lease = take(&repo, "h").unwrap();
        let first = lease.id();
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(20));
            let stored = lab.names("leases/").len();
            assert!((1..=3).contains(&stored), "the current one, the one before, and for a moment the next: {stored}");
        }
        let (puts, deletes) = (store.count(CallKind::Put, "leases/"), store.count(CallKind::Delete, "leases/"));
        assert!(puts >= 4, "{puts} leases in 0.6 s, one is due every 20 ms");
        assert!(deletes >= 2 && deletes < puts, "{deletes} of {puts} leases are deleted, the last two stay");
        assert_ne!(lease.id(), first);
        for renewed in leases(&lab) {
            assert_eq!((renewed.began, renewed.prune), (Some(lease.began()), for_prune), "it stands for the first one");
        }
        assert!(lease.renew().unwrap(), "it has held all the time");
        drop(lease);
        assert_eq!(lab.names("leases/"), Vec::<String>::new());
        let puts = store.count(CallKind::Put, "leases/");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(store.count(CallKind::Put, "leases/"), puts, "nobody renews what was given up");
    }
}

#[test]
fn a_backup_whose_source_is_silent_and_a_prune_that_waits_renew_their_leases() {
    let lab = Lab::new();
    let store = Arc::new(Recording::new(lab.store.clone()));
    let repo = lab.open_paced("a", store.clone(), brisk());
    let data = items(&[("i", noise(1, MB))]);
    backup_ago(&repo, "n", &items(&[("i", noise(2, MB))]), 1);
    store.take();
    let made = try_backup_with(&repo, "n", Timestamp::now(), |sink| {
        std::thread::sleep(Duration::from_millis(500));
        push(sink, &data)
    });
    let made = made.unwrap();
    let puts = store.count(CallKind::Put, "leases/");
    assert!(puts >= 4, "{puts} leases for a backup of half a second");
    assert_eq!(lab.names("leases/"), Vec::<String>::new());
    assert_whole(&lab, &[(repo.snapshots().unwrap()[0].id, &items(&[("i", noise(2, MB))])), (made.id, &data)]);

    store.take();
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_millis(500);
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    let puts = store.count(CallKind::Put, "leases/");
    assert!(puts >= 4, "{puts} leases for a prune that waited half a second");
    assert_eq!(report.packs_deleted, 1);
    assert_whole(&lab, &[(made.id, &data)]);
    assert_no_garbage(&lab);
}

/// Takes a backup whose lease runs out while the source is silent.
fn lapsed_backup(
    lab: &Lab,
    store: Arc<dyn Backend>,
    items: &Items,
) -> Result<vault::repo::snapshots::Snapshot, SnapshotError<std::io::Error>> {
    let repo = lab.open_paced("a", store, lapsing());
    try_backup_with(&repo, "n", Timestamp::now(), |sink| {
        push(sink, items)?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    })
}

fn delete_all(store: &Memory, prefixes: &[&str]) {
    for name in store.names() {
        if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            store.delete(&name).unwrap();
        }
    }
}

/// Nothing was committed, nothing looks lost, and the next run works.
fn assert_not_committed_and_again(lab: &Lab, data: &Items, before: usize) {
    let repo = lab.open("b");
    assert_eq!(repo.snapshots().unwrap().len(), before);
    assert_eq!(lab.names("leases/"), Vec::<String>::new());
    backup(&repo, "n", data);
    let last = repo.snapshots().unwrap().last().unwrap().id;
    assert!(restore(&lab.open("fresh"), &last).unwrap() == *data);
}

#[test]
fn after_its_lease_ran_out_a_backup_makes_sure_of_the_packs_it_wrote() {
    let lab = Lab::new();
    let data = items(&[("i", noise(1, MB))]);
    let store = lab.store.clone();
    // The second time that it reads the marks everything is written; prune took it for garbage and has removed it.
    let hooked = Hooked::new(&lab.store)
        .before("list", "marks/", || {})
        .before("list", "marks/", move || delete_all(&store, &["packs/", "index/"]));
    match lapsed_backup(&lab, Arc::new(hooked), &data) {
        Err(SnapshotError::Overtaken { packs }) => assert_eq!(packs, 1),
        other => panic!("{other:?}"),
    }
    assert_not_committed_and_again(&lab, &data, 0);
}

#[test]
fn after_its_lease_ran_out_a_backup_reads_the_marks_before_it_looks_for_its_packs() {
    let lab = Lab::new();
    let data = items(&[("i", noise(1, MB))]);
    backup_ago(&lab.open("a"), "n", &data, 1);
    let store = lab.store.clone();
    // While it reads the marks, prune ends: packs that it rests on are gone, and so are the marks.
    let hooked = Hooked::new(&lab.store)
        .before("list", "marks/", || {})
        .before("list", "marks/", move || delete_all(&store, &["packs/", "index/", "snapshots/"]));
    let again = items(&[("i", noise(1, MB)), ("j", noise(2, MB))]);
    let result = lapsed_backup(&lab, Arc::new(hooked), &again);
    assert!(matches!(result, Err(SnapshotError::Overtaken { .. })), "{result:?}");
    assert_eq!(lab.names("snapshots/"), Vec::<String>::new());
}

#[test]
fn after_its_lease_ran_out_a_backup_stores_again_what_is_marked_its_own_packs_too() {
    let lab = Lab::new();
    let old = items(&[("i", noise(1, MB))]);
    let first = backup_ago(&lab.open("a"), "n", &old, 1);
    let store = lab.store.clone();
    let marker = lab.open_cold("marker");
    let hooked = Hooked::new(&lab.store).before("list", "marks/", || {}).before("list", "marks/", move || {
        let packs = store.names().into_iter().filter(|name| name.starts_with("packs/"));
        let packs: Vec<_> = packs.filter_map(|name| id_of_name(&name)).collect();
        assert_eq!(packs.len(), 2);
        let mark = Mark { time: Timestamp::now(), host: "elsewhere".into(), packs };
        marker.save(Kind::Mark, &encode_record(&mark)).unwrap();
    });
    let data = items(&[("i", noise(1, MB)), ("j", noise(2, MB))]);
    let made = lapsed_backup(&lab, Arc::new(hooked), &data).unwrap();
    assert!(lab.names("packs/").len() >= 3, "they are copied: {:?}", lab.names("packs/"));
    prune_now(&lab.open("b"), 100);
    assert_whole(&lab, &[(first.id, &old), (made.id, &data)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_backup_that_was_stopped_right_before_it_committed_takes_it_back() {
    let lab = Lab::new();
    let data = items(&[("i", noise(1, MB))]);
    let store = lab.store.clone();
    let hooked = Hooked::new(&lab.store).before("put", "snapshots/", move || delete_all(&store, &["packs/", "index/"]));
    let result = lapsed_backup(&lab, Arc::new(hooked), &data);
    assert!(matches!(result, Err(SnapshotError::Overtaken { .. })), "{result:?}");
    assert_eq!(lab.names("removals/").len(), 1, "it raises no alarm");
    assert_not_committed_and_again(&lab, &data, 0);
    assert_eq!(check_all(&lab.open("b")).status, Status::Clean);
}

#[test]
fn a_prune_whose_lease_ran_out_deletes_nothing_more() {
    let lab = Lab::new();
    let old = items(&[("i", noise(1, MB))]);
    backup_ago(&lab.open("a"), "n", &old, 1);
    let new = items(&[("i", noise(2, MB))]);
    let kept = backup(&lab.open("a"), "n", &new);
    let repo = lab.open_paced("a", Arc::new(lab.store.clone()), lapsing());
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_secs(30);
    let packs = lab.names("packs/");
    let result = prune(&repo, &options, &Progress::default());
    assert!(matches!(result, Err(PruneError::Lapsed)), "{result:?}");
    assert_eq!(lab.names("packs/"), packs);
    prune_now(&lab.open("b"), 1);
    assert_whole(&lab, &[(kept.id, &new)]);
    assert_no_garbage(&lab);
}

/// A store that runs something once, right after the first get of an index object.
struct AfterGet {
    inner: Memory,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Backend for AfterGet {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        self.inner.put(name, bytes)
    }
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let bytes = self.inner.get(name, range);
        let then = if name.starts_with("index/") { self.then.lock().unwrap().take() } else { None };
        if let Some(then) = then {
            then();
        }
        bytes
    }
    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.inner.list(prefix, each)
    }
    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.delete(name)
    }
    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}

#[test]
fn of_two_processes_on_one_local_index_none_brings_back_what_the_other_has_seen_go() {
    for keep in [1, 0] {
        let lab = Arc::new(Lab::new());
        let repo = lab.open("elsewhere");
        let old = items(&[("i", noise(1, MB))]);
        let id = backup_ago(&repo, "n", &old, 1).id;
        if keep == 1 {
            backup(&repo, "n", &items(&[("i", noise(2, MB))]));
        }
        let (waiting, was_early) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (lab_then, waiting_then, early) = (lab.clone(), waiting.clone(), was_early.clone());
        // One process has an index object in its hands when prune replaces it and the other process hears of that.
        let then = move || {
            let elsewhere = lab_then.open("elsewhere");
            forget_one(&elsewhere, &id.hex());
            prune_now(&elsewhere, 100);
            let (loaded, is_loaded) = mpsc::channel();
            let other = std::thread::spawn(move || {
                let repo = lab_then.open("shared");
                let _ = loaded.send(());
                repo
            });
            early.store(is_loaded.recv_timeout(Duration::from_millis(500)).is_ok(), SeqCst);
            *waiting_then.lock().unwrap() = Some(other);
        };
        let store = AfterGet { inner: lab.store.clone(), then: Mutex::new(Some(Box::new(then))) };
        let first = lab.open_on("shared", Arc::new(store));
        let second = waiting.lock().unwrap().take().expect("it was started").join().unwrap();
        let stored = lab.names("packs/");
        for (pack, _) in second.index.packs().unwrap() {
            let name = vault::repo::pack_name(&pack);
            assert!(stored.contains(&name), "{name} is gone and the second process would rest on it");
        }
        assert_eq!(second.index.packs().unwrap().len(), keep);
        first.load_index(&Progress::default()).unwrap();
        assert_eq!(first.index.packs().unwrap().len(), keep);
        assert!(!was_early.load(SeqCst), "the second waits until the first has taken over its listing");
    }
}

fn forget_one(repo: &Arc<vault::repo::Repository>, word: &str) {
    use vault::ops::forget::{ForgetOptions, forget};
    let options = ForgetOptions { words: vec![word.into()], host: "h".into(), now: Timestamp::now(), dry_run: false };
    forget(repo, &options).unwrap();
}

#[test]
fn an_index_object_that_was_replaced_before_its_writer_noted_it_is_not_added() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, MB))]));
    let id = id_of_name(&lab.names("index/")[0]).unwrap();
    let index = repo.load_index_object(&id).unwrap();
    let other = lab.open_cold("b");
    lab.store.delete(&format!("index/{id}")).unwrap();
    assert!(!other.add_to_index(&id, &index).unwrap());
    assert!(other.index.packs().unwrap().is_empty());
}

#[test]
fn a_restore_that_began_before_a_prune_finds_bases_that_were_moved() {
    // Each repository cuts elsewhere: in some a window of the restore comes back to a blob that has moved.
    for _ in 0..8 {
        a_restore_finds_moved_bases();
    }
}

fn a_restore_finds_moved_bases() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let first = items(&[("i", noise(1, MB)), ("lost", noise(2, MB))]);
    let old = backup_ago(&repo, "n", &first, 1);
    let mut edited = noise(1, MB);
    for at in (0..MB).step_by(200_000) {
        edited[at] ^= 1;
    }
    let second = items(&[("i", edited)]);
    let kept = backup(&repo, "n", &second);
    let mut resting = 0;
    repo.index
        .each_pack(&mut |_, _, blobs| {
            resting += blobs.iter().filter(|blob| !blob.contents.bases.is_empty()).count();
            Ok(())
        })
        .unwrap();
    assert!(resting > 0, "the second backup is stored against the first");
    let reader = lab.open("b");
    forget_one(&repo, &old.id.hex());
    assert_eq!(prune_now(&repo, 100).packs_repack, 1, "what both share is copied, and its first pack deleted");
    assert!(restore(&reader, &kept.id).unwrap() == second);
}
