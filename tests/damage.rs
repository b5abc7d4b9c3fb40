//! Every kind of object, harmed in every way: check says so and names it, what is not hit restores, and nothing ever comes
//! back wrong.

mod lab;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use lab::*;
use vault::backend::{Backend, Memory};
use vault::id::ObjectId;
use vault::ops::check::{ReadData, Status, check};
use vault::ops::holdings::is_damage;
use vault::pipeline::PipelineError;
use vault::progress::Progress;
use vault::repo::{RepoError, Repository};

const KB: usize = 1 << 10;

/// Three backups: two share an item, one stands alone.
fn history() -> (Memory, Vec<(ObjectId, Items)>) {
    let lab = Lab::new();
    let repo = lab.open("a");
    let data = [
        items(&[("both", noise(1, 300 * KB)), ("one", noise(2, 200 * KB))]),
        items(&[("both", noise(1, 300 * KB)), ("two", noise(3, 200 * KB))]),
        items(&[("alone", noise(4, 200 * KB))]),
    ];
    let made = data
        .into_iter()
        .enumerate()
        .map(|(n, items)| (backup_ago(&repo, "n", &items, 9 - n as i64).id, items))
        .collect();
    (lab.store, made)
}

/// Ways to harm the bytes of one object. `None`: the object is gone.
fn harms(bytes: &Bytes) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        Some(bytes)
    };
    let middle = bytes.len() / 2;
    vec![
        ("gone", None),
        ("empty", Some(Vec::new())),
        ("one byte short", changed(&|bytes| bytes.truncate(bytes.len() - 1))),
        ("half", changed(&|bytes| bytes.truncate(middle))),
        ("one byte long", changed(&|bytes| bytes.push(0))),
        ("a block long", changed(&|bytes| bytes.extend([0; 4096]))),
        ("first bit", changed(&|bytes| bytes[0] ^= 1)),
        ("a bit of the header", changed(&|bytes| bytes[20] ^= 0x10)),
        ("a bit in the middle", changed(&|bytes| bytes[middle] ^= 0x40)),
        ("last bit", changed(&|bytes| *bytes.last_mut().unwrap() ^= 0x80)),
        ("zeros", changed(&|bytes| bytes.fill(0))),
        ("zeros in the middle", changed(&|bytes| bytes[middle..middle + 8].fill(0))),
    ]
}

/// What a host that has never seen the repository makes of it.
struct Outcome {
    /// The repository cannot even be opened.
    locked: Option<RepoError>,
    found: BTreeSet<String>,
    hit: BTreeSet<ObjectId>,
}

/// Opens, restores and checks; nothing wrong may come back, and every failure must be one of damage.
fn look(what: &str, store: &Memory, made: &[(ObjectId, Items)]) -> Outcome {
    let lab = Lab::with_store(store.clone());
    let repo = match Repository::open(Arc::new(store.clone()), &secret(), &lab.places("fresh")) {
        Ok(repo) => Arc::new(repo),
        Err(error) => return Outcome { locked: Some(error), found: BTreeSet::new(), hit: BTreeSet::new() },
    };
    let mut broken = BTreeSet::new();
    for (id, items) in made {
        match restore(&repo, id) {
            Ok(restored) => assert!(restored == *items, "{what}: backup {id} came back wrong"),
            Err(PipelineError::Repo(error)) => {
                assert!(is_damage(&error), "{what}: {error}");
                broken.insert(*id);
            }
            Err(PipelineError::Item { .. }) => {
                broken.insert(*id);
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    let report = check(&repo, &check_options(ReadData::All), &Progress::default()).unwrap();
    let found: BTreeSet<_> = report.findings.iter().map(|finding| finding.object.clone()).collect();
    let hit: BTreeSet<_> = report.findings.iter().flat_map(|finding| finding.backups.clone()).collect();
    assert_eq!(report.status == Status::Clean, report.findings.is_empty());
    // The newest manifest of a host has no successor that would miss it: only a host that has seen it does.
    let newest = &made[made.len() - 1].0;
    if !store.names().contains(&format!("snapshots/{newest}")) {
        broken.remove(newest);
    }
    assert!(broken.is_subset(&hit), "{what}: check does not name {broken:?}: {:#?}", report.findings);
    for (id, _) in made.iter().filter(|(id, _)| !hit.contains(id)) {
        assert!(!broken.contains(id));
    }
    Outcome { locked: None, found, hit }
}

#[test]
fn every_object_harmed_in_every_way_is_found_and_never_restored_wrong() {
    let (start, made) = history();
    for name in start.names() {
        let bytes = start.get(&name, None).unwrap();
        for (harm, harmed) in harms(&bytes) {
            let store = start.fork();
            let what = format!("{name}: {harm}");
            match harmed {
                Some(bytes) => store.overwrite(&name, bytes),
                None => assert!(store.delete(&name).unwrap()),
            }
            let outcome = look(&what, &store, &made);
            let folder = name.split('/').next().unwrap();
            match (folder, &outcome.locked) {
                ("config", Some(RepoError::NoRepository { .. })) => assert_eq!(harm, "gone"),
                ("config", Some(error)) => {
                    // Bits of the id make another repository of it, for which no slot is.
                    assert!(
                        matches!(
                            error,
                            RepoError::Format { .. } | RepoError::WrongKey { .. } | RepoError::Damaged { .. }
                        ),
                        "{what}: {error}"
                    );
                }
                // The only slot: nobody gets in, and is told so.
                ("keys", Some(error)) => assert!(
                    matches!(error, RepoError::WrongKey { .. } | RepoError::Format { .. } | RepoError::Damaged { .. }),
                    "{what}: {error}"
                ),
                ("config" | "keys", None) => panic!("{what}: it opened"),
                (_, Some(error)) => panic!("{what}: it does not open: {error}"),
                ("index", None) if harm == "gone" => assert!(outcome.found.contains("index/"), "{what}"),
                ("snapshots", None) if harm == "gone" && name.ends_with(&made[2].0.hex()) => {}
                (_, None) => assert!(outcome.found.contains(&name), "{what}: found {:?}", outcome.found),
            }
            if folder == "packs" {
                assert!(outcome.hit.len() < 3, "{what}: one pack is not needed by all three");
            }
        }
    }
}

#[test]
fn the_newest_manifest_that_vanishes_is_missed_by_a_host_that_has_seen_it() {
    let (store, made) = history();
    let lab = Lab::with_store(store.clone());
    lab.open("b").snapshots().unwrap();
    store.delete(&format!("snapshots/{}", made[2].0)).unwrap();
    assert!(matches!(lab.open("b").snapshots(), Err(RepoError::Rollback { .. })));
}

#[test]
fn objects_that_change_places_are_found_out() {
    let (start, made) = history();
    let names: Vec<String> = start.names();
    for (at, a) in names.iter().enumerate() {
        for b in &names[at + 1..] {
            if a == "config" || b == "config" {
                continue;
            }
            let store = start.fork();
            let (one, two) = (start.get(a, None).unwrap(), start.get(b, None).unwrap());
            store.overwrite(a, two);
            store.overwrite(b, one);
            let outcome = look(&format!("{a} and {b}"), &store, &made);
            if outcome.locked.is_none() {
                // A pack that only a damaged index object lists is garbage until the index is made anew.
                let unlisted =
                    |name: &String, other: &String| name.starts_with("packs/") && other.starts_with("index/");
                for (name, other) in [(a, b), (b, a)] {
                    let found = outcome.found.contains(name) || unlisted(name, other);
                    assert!(found, "{name}, changed with {other}: {:?}", outcome.found);
                }
            }
        }
    }
}

#[test]
fn objects_of_another_repository_are_not_taken_for_ours() {
    let (start, made) = history();
    let (other, _) = history();
    let first = |store: &Memory, folder: &str| store.names().into_iter().find(|name| name.starts_with(folder)).unwrap();
    for folder in ["index/", "snapshots/", "packs/"] {
        let store = start.fork();
        let theirs = first(&other, folder);
        store.put(&theirs, other.get(&theirs, None).unwrap()).unwrap();
        let outcome = look(folder, &store, &made);
        // A pack is garbage until an index lists it; the others are looked at, and are not ours.
        assert_eq!(outcome.found.contains(&theirs), folder != "packs/", "{folder}: {:?}", outcome.found);
        assert!(outcome.locked.is_none());
    }
}
