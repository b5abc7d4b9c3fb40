//! A store where every request is a round trip: packs are read in long pieces, and what this host wrote last not at all. What is
//! kept of it on this host's disk may vanish or be damaged: that changes requests, never results.

mod lab;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::*;
use vault::backend::fault::{Fault, Faults, Rule};
use vault::backend::recording::{CallKind, CallState, Recording};
use vault::backend::{Backend, Memory};
use vault::limits::PIECE_BYTES_MAX;
use vault::ops::check::Status;
use vault::repo::Repository;

/// A table dump; `changed` says which rows have another text.
fn rows(changed: impl Fn(u32) -> bool) -> Vec<u8> {
    (0..150_000u32)
        .flat_map(|row| {
            let text = noise(u64::from(row) + u64::from(changed(row)) * 1_000_000_007, 40);
            let text = data_encoding::HEXLOWER.encode(&text);
            format!("{row}\t{text}\tsome words that are the same in every row\n").into_bytes()
        })
        .collect()
}

/// The dump of a day: each day another hundredth of the rows has changed.
fn day(number: u32) -> Items {
    items(&[("table", rows(|row| row.wrapping_mul(2_654_435_761) % 100 < number))])
}

fn open(lab: &Lab, host: &str) -> (Arc<Repository>, Arc<Recording<Memory>>) {
    let store = Arc::new(Recording::new(lab.store.clone()));
    (lab.open_on(host, store.clone()), store)
}

/// Requests for packs, and bytes.
fn fetched(store: &Recording<Memory>) -> (usize, u64) {
    (store.count(CallKind::Get, "packs/"), store.bytes(CallKind::Get, "packs/"))
}

fn pack_bytes(lab: &Lab) -> u64 {
    lab.names("packs/").iter().map(|name| lab.store.get(name, None).unwrap().len() as u64).sum()
}

#[test]
fn a_restore_asks_for_pieces_and_not_for_blobs() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let days: Vec<_> = (0..7).map(day).collect();
    let taken: Vec<_> = days.iter().map(|items| backup(&repo, "n", items).id).collect();
    let mut blobs = 0;
    repo.index
        .each_pack(&mut |_, _, rows| {
            blobs += rows.len();
            Ok(())
        })
        .unwrap();
    let (other, store) = open(&lab, "b");
    store.take();
    assert!(restore(&other, &taken[6]).unwrap() == days[6]);
    let (requests, bytes) = fetched(&store);
    let all = pack_bytes(&lab);
    let pieces = (all / u64::from(PIECE_BYTES_MAX)) as usize + lab.names("packs/").len();
    assert!(pieces * 4 < blobs, "{pieces} pieces and {blobs} blobs say nothing");
    // Each part of the plan asks for a piece of each pack.
    assert!(requests < pieces * 3 && requests * 2 < blobs, "{requests} requests for {blobs} blobs in {pieces} pieces");
    assert!(bytes * 4 < all * 5, "{bytes} bytes were fetched of {all}");
    assert!(store.calls().iter().all(|call| call.state == CallState::Done), "nothing is asked for that is not there");
}

#[test]
fn the_next_backup_finds_its_bases_on_the_disk_of_the_host_that_wrote_them() {
    let lab = Lab::new();
    let (repo, store) = open(&lab, "a");
    let (first, next) = (day(0), day(1));
    let before = backup(&repo, "n", &first).id;
    let twin = Lab::with_store(lab.store.fork());
    store.take();
    let near = backup(&repo, "n", &next);
    assert_eq!(fetched(&store).0, 0, "all of it was written by this host");

    // A host that wrote nothing finds the same bases, in the store, and asks for them in long pieces.
    let (other, store) = open(&twin, "b");
    store.take();
    let far = backup(&other, "n", &next);
    let (requests, bytes) = fetched(&store);
    assert!((1..30).contains(&requests), "{requests} requests");
    assert!(bytes < 2 * pack_bytes(&twin), "{bytes} bytes");
    let (near_stored, far_stored) = (near.manifest.bytes_stored, far.manifest.bytes_stored);
    assert!(
        near_stored.abs_diff(far_stored) * 50 < near_stored,
        "{near_stored} bytes were added near, {far_stored} far"
    );
    assert_whole(&lab, &[(before, &first), (near.id, &next)]);
    assert_whole(&twin, &[(before, &first), (far.id, &next)]);
}

#[test]
fn what_is_kept_of_written_packs_may_vanish_or_be_damaged() {
    let harm = |repo: &Repository, harm: &dyn Fn(&mut Vec<u8>)| {
        for entry in fs::read_dir(repo.cache.join("packs")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            harm(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
    };
    let middle = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let ways: [(&str, &dyn Fn(&Repository)); 4] = [
        ("gone", &|repo| fs::remove_dir_all(repo.cache.join("packs")).unwrap()),
        ("a bit flipped", &|repo| harm(repo, &middle)),
        ("half", &|repo| harm(repo, &|bytes| bytes.truncate(bytes.len() / 2))),
        ("of another pack", &|repo| harm(repo, &|bytes| bytes.fill(7))),
    ];
    let (first, second) = (day(0), day(1));
    for (what, harm) in ways {
        let lab = Lab::new();
        let before = backup(&lab.open("a"), "n", &first);
        let (repo, store) = open(&lab, "a");
        harm(&repo);
        store.take();
        let after = backup(&repo, "n", &second);
        assert!(fetched(&store).0 > 0, "{what}: the bases come from the store");
        let (before_stored, stored) = (before.manifest.bytes_stored, after.manifest.bytes_stored);
        assert!(stored * 10 < before_stored, "{what}: {stored} bytes were added to {before_stored}");
        assert_whole(&lab, &[(before.id, &first), (after.id, &second)]);
    }
}

#[test]
fn what_this_host_kept_does_not_hide_what_the_store_has_lost() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let taken = backup(&repo, "n", &day(0));
    for name in lab.names("packs/") {
        let mut bytes = lab.store.get(&name, None).unwrap().to_vec();
        bytes[1000] ^= 1;
        lab.store.overwrite(&name, bytes);
    }
    assert!(restore(&repo, &taken.id).is_err(), "a restore reads the store");
    assert_eq!(check_all(&repo).status, Status::Damaged);
}

#[test]
fn a_check_fetches_each_pack_once_and_says_what_rests_on_a_damaged_one() {
    let lab = Lab::new();
    let taken: Vec<_> = (0..4).map(|number| backup(&lab.open("a"), "n", &day(number)).id).collect();
    let left_behind = |repo: &Repository| {
        let names = fs::read_dir(&repo.cache).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("checked-")).count()
    };
    let (repo, store) = open(&lab, "b");
    store.take();
    assert_eq!(check_all(&repo).status, Status::Clean);
    let (_, bytes) = fetched(&store);
    let all = pack_bytes(&lab);
    // Lists of items and chunks are read before.
    assert!(bytes < all + all / 50, "the later days rest on the first, and it is read once: {bytes} bytes of {all}");
    assert_eq!(left_behind(&repo), 0);

    // A folder that a killed run left a while ago goes with the next; a young one may be another's.
    let killed = ["checked-old", "checked-young"].map(|name| repo.cache.join(name));
    for folder in &killed {
        fs::create_dir(folder).unwrap();
    }
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(72 * 3600);
    fs::File::open(&killed[0]).unwrap().set_modified(long_ago).unwrap();

    let largest = lab.names("packs/").into_iter().max_by_key(|name| lab.store.get(name, None).unwrap().len());
    let largest = largest.unwrap();
    let mut bytes = lab.store.get(&largest, None).unwrap().to_vec();
    bytes[1000] ^= 1;
    lab.store.overwrite(&largest, bytes);
    let report = check_all(&repo);
    assert_eq!(report.status, Status::Damaged);
    let hit = |id| report.findings.iter().any(|finding| finding.backups.contains(id));
    assert!(taken.iter().all(hit), "all rest on the first day: {:?}", report.findings);
    assert_eq!(killed.map(|folder| folder.exists()), [false, true]);
}

#[test]
fn a_check_waits_for_few_requests_one_after_the_other() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for number in 0..40 {
        backup(&repo, "n", &items(&[("i", noise(number, 30_000))]));
    }
    let away = Duration::from_millis(20);
    let slow = Faults::new(lab.store.clone(), [Rule::new(CallKind::Get, Fault::Delay(away))]);
    let store = Arc::new(Recording::new(slow));
    let repo = lab.open_on("b", store.clone());
    store.take();
    let began = Instant::now();
    assert_eq!(check_all(&repo).status, Status::Clean);
    let (took, requests) = (began.elapsed(), store.count(CallKind::Get, ""));
    assert!(requests > 120, "manifests, index objects and packs of forty backups: {requests}");
    // Four at once would take a quarter; what chunk lists lead to comes one after the other.
    assert!(took * 2 < away * requests as u32, "{requests} requests took {took:?}");
}
