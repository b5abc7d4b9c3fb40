//! What prune keeps, what it removes, and what must not make it remove anything.

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use lab::*;
use vault::backend::{Backend, BackendError, Memory, ObjectInfo, Properties, PutReceipt};
use vault::format::pack::decode_directory;
use vault::format::records::{Mark, encode_record};
use vault::id::ObjectId;
use vault::ops::check::Status;
use vault::ops::forget::{ForgetError, ForgetOptions, forget};
use vault::ops::prune::{Fate, PruneError, prune};
use vault::ops::retention::KeepRules;
use vault::pipeline::packer::{Added, Blob, Packer, Pending};
use vault::progress::Progress;
use vault::repo::lease::HeldLease;
use vault::repo::snapshots::FindError;
use vault::repo::{RepoError, Repository, pack_name};
use vault::seal::boxed::open_object;
use vault::seal::keys::Kind;

const MB: usize = 1 << 20;

fn objects(store: &Memory) -> BTreeMap<String, Bytes> {
    store.names().into_iter().map(|name| (name.clone(), store.get(&name, None).unwrap())).collect()
}

/// Without what comes and goes with every run.
fn without_leases(store: &Memory) -> BTreeMap<String, Bytes> {
    objects(store).into_iter().filter(|(name, _)| !name.starts_with("leases/")).collect()
}

fn forget_options(words: &[&str]) -> ForgetOptions {
    ForgetOptions {
        words: words.iter().map(|&word| word.to_owned()).collect(),
        host: "h".to_owned(),
        now: Timestamp::now(),
        dry_run: false,
    }
}

fn prune_error(repo: &Arc<Repository>, keep: KeepRules) -> PruneError {
    prune(repo, &prune_options(keep), &Progress::default()).expect_err("prune must refuse")
}

#[test]
fn keep_last_1_without_grace_leaves_one_backup_a_source_and_no_garbage() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let mut last = Vec::new();
    for source in ["one", "two"] {
        for day in 0..4 {
            // A third stays, a third changes a little, a third is new every day.
            let mut edited = noise(1, MB);
            edited[300_000 + day * 1000] ^= 1;
            let items = items(&[("same", noise(2, MB)), ("edited", edited), ("new", noise(100 + day as u64, MB))]);
            let made = backup_ago(&repo, source, &items, 100 - day as i64);
            if day == 3 {
                last.push((made.id, items));
            }
        }
    }
    let report = prune_now(&repo, 1);
    assert_eq!((report.backups_kept, report.backups_dropped), (2, 6));
    assert_eq!(report.packs_waiting, 0);
    let expected: Vec<_> = last.iter().map(|(id, items)| (*id, items)).collect();
    assert_whole(&lab, &expected);
    assert_no_garbage(&lab);
    assert_eq!(lab.names("index/").len(), 1, "small index objects are merged");
    let before = without_leases(&lab.store);
    let again = prune_now(&repo, 1);
    assert_eq!(again.packs_deleted, 0);
    assert_eq!(without_leases(&lab.store), before, "a second run finds nothing to do");
}

#[test]
fn prune_without_a_keep_rule_is_refused() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, 1000))]));
    let before = objects(&lab.store);
    assert!(matches!(prune_error(&repo, KeepRules::default()), PruneError::NoKeepRule));
    assert_eq!(objects(&lab.store), before);
}

#[test]
fn with_a_grace_the_first_run_marks_and_a_later_one_deletes() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let (old, new) = (items(&[("i", noise(1, MB))]), items(&[("i", noise(2, MB))]));
    backup_ago(&repo, "n", &old, 1);
    let kept = backup(&repo, "n", &new);
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_hours(23);
    let packs = lab.names("packs/");
    let first = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((first.packs_deleted, first.packs_waiting), (0, 1));
    assert!(first.waiting_until.is_some());
    assert_eq!(lab.names("packs/"), packs);
    assert_eq!(lab.names("marks/").len(), 1);

    let second = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((second.packs_deleted, second.packs_waiting), (0, 1), "the grace is not over");
    assert_eq!(lab.names("marks/").len(), 1, "a marked pack is not marked again");

    lab.store.set_clock_ahead(SignedDuration::from_hours(24));
    options.now = Timestamp::now() + SignedDuration::from_hours(24);
    let third = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((third.packs_deleted, third.packs_waiting), (1, 0));
    assert_whole(&lab, &[(kept.id, &new)]);
    assert_no_garbage(&lab);
}

#[test]
fn what_is_marked_is_stored_again_by_a_new_backup_and_then_goes() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let (old, new) = (items(&[("i", noise(1, MB))]), items(&[("i", noise(2, MB))]));
    backup_ago(&repo, "n", &old, 2);
    backup_ago(&repo, "n", &new, 1);
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_hours(23);
    prune(&repo, &options, &Progress::default()).unwrap();
    let again = backup(&repo, "n", &old);
    assert!(again.manifest.bytes_new > 0, "nothing may rest on a marked pack");
    let report = prune_now(&repo, 1);
    assert!(report.packs_deleted >= 2);
    assert_whole(&lab, &[(again.id, &old)]);
    assert_no_garbage(&lab);
}

#[test]
fn clocks_that_disagree_stop_prune_before_it_removes_anything() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for seed in 0..3 {
        backup(&repo, "n", &items(&[("i", noise(seed, 1000))]));
    }
    let before = without_leases(&lab.store);
    for minutes in [6, -6, 60 * 24 * 400] {
        lab.store.set_clock_ahead(SignedDuration::from_mins(minutes));
        assert!(matches!(prune_error(&repo, keep_last(1)), PruneError::ClockSkew { .. }), "{minutes} minutes");
        assert_eq!(without_leases(&lab.store), before);
    }
    lab.store.set_clock_ahead(SignedDuration::from_mins(4));
    prune_now(&repo, 1);
}

#[test]
fn dry_run_says_what_a_run_then_does_and_does_nothing() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let shared = noise(9, 3 * MB);
    backup_ago(&repo, "n", &items(&[("a", noise(1, MB)), ("b", shared.clone())]), 3);
    backup_ago(&repo, "n", &items(&[("a", noise(2, MB))]), 2);
    backup_ago(&repo, "n", &items(&[("b", shared)]), 1);
    let before = objects(&lab.store);
    let mut options = prune_options(keep_last(1));
    options.dry_run = true;
    let plan = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(objects(&lab.store), before, "not even a lease");
    options.dry_run = false;
    let done = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(plan.backups, done.backups);
    assert_eq!((plan.packs_dead, plan.packs_repack), (done.packs_dead, done.packs_repack));
    assert_eq!(plan.packs_dead + plan.packs_repack, done.packs_deleted);
    let (said, freed) = (plan.bytes_freed as f64, done.bytes_freed as f64);
    assert!((said - freed).abs() < 0.05 * freed, "{said} bytes promised, {freed} freed");
    assert!(plan.plan.iter().any(|pack| pack.fate == Fate::Dead));
    assert!(plan.plan.iter().any(|pack| pack.fate == Fate::Repack));
}

#[test]
fn of_a_chunk_in_two_packs_one_copy_stays() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let data = items(&[("i", noise(1, 2 * MB)), ("j", noise(2, MB))]);
    let first = backup_ago(&repo, "n", &data, 2);
    // A mark makes the next backup store everything again, as two hosts do that begin at once.
    let packs = repo.index.packs().unwrap().into_keys().collect();
    let mark = Mark { time: Timestamp::now(), host: "x".into(), packs };
    let mark = repo.save(Kind::Mark, &encode_record(&mark)).unwrap();
    let second = backup(&repo, "n", &data);
    lab.store.delete(&format!("marks/{}", mark.id)).unwrap();
    assert!(second.manifest.bytes_new >= second.manifest.bytes);
    let before = lab.store.stored_bytes();
    let report = prune_now(&repo, 2);
    assert_eq!(report.packs_deleted, 1, "{:?}", report.plan);
    assert!(lab.store.stored_bytes() < before * 6 / 10);
    assert_whole(&lab, &[(first.id, &data), (second.id, &data)]);
    assert_no_garbage(&lab);
}

#[test]
fn copies_that_lie_crosswise_are_resolved_without_losing_either() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let (x, y, z) = (noise(1, MB), noise(2, MB), noise(3, MB));
    let one = items(&[("x", x.clone()), ("y", y.clone())]);
    let first = backup_ago(&repo, "one", &one, 3);
    let mark =
        Mark { time: Timestamp::now(), host: "x".into(), packs: repo.index.packs().unwrap().into_keys().collect() };
    let mark = repo.save(Kind::Mark, &encode_record(&mark)).unwrap();
    let two = items(&[("y", y), ("z", z)]);
    let second = backup_ago(&repo, "two", &two, 2);
    lab.store.delete(&format!("marks/{}", mark.id)).unwrap();
    // x is only in the first pack, z only in the second, y in both.
    let report = prune_now(&repo, 1);
    assert!(report.packs_repack > 0, "{:?}", report.plan);
    assert_whole(&lab, &[(first.id, &one), (second.id, &two)]);
    assert_no_garbage(&lab);
}

#[test]
fn wholly_live_blobs_are_copied_byte_for_byte_and_partly_live_ones_sealed_anew() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let keep = noise(1, 3 * MB);
    let both = items(&[("keep", keep.clone()), ("lose", noise(2, 3 * MB))]);
    backup_ago(&repo, "n", &both, 2);
    let blobs = |repo: &Arc<Repository>| -> BTreeSet<Vec<u8>> {
        let mut blobs = BTreeSet::new();
        repo.index
            .each_pack(&mut |pack, _, rows| {
                let bytes = repo.backend.get(&pack_name(&pack), None)?;
                blobs.extend(
                    rows.iter().map(|row| bytes[row.offset as usize..(row.offset + row.stored) as usize].to_vec()),
                );
                Ok(())
            })
            .unwrap();
        blobs
    };
    let before = blobs(&repo);
    let one = items(&[("keep", keep)]);
    let kept = backup(&repo, "n", &one);
    prune_now(&repo, 1);
    let after = blobs(&repo);
    assert!(after.intersection(&before).count() >= 1, "a blob all of whose chunks live is copied as it is");
    assert!(after.difference(&before).count() >= 1, "the blob that both items shared is sealed anew");
    assert!(lab.store.stored_bytes() < 3 * MB as u64 + 200_000, "{}", lab.store.stored_bytes());
    assert_whole(&lab, &[(kept.id, &one)]);
    assert_no_garbage(&lab);
}

#[test]
fn packs_that_are_dead_below_max_unused_stay_and_without_repack_all_do() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let keep = noise(1, 6 * MB);
    backup_ago(&repo, "n", &items(&[("keep", keep.clone()), ("lose", noise(2, MB))]), 2);
    let one = items(&[("keep", keep)]);
    let kept = backup(&repo, "n", &one);
    let mut options = prune_options(keep_last(1));
    options.max_unused = Some(0.5);
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((report.packs_repack, report.packs_deleted), (0, 0));
    assert!(report.unused_bytes > MB as u64 / 2);
    options.max_unused = Some(0.0);
    options.repack = false;
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((report.packs_repack, report.packs_deleted, report.bytes_copied), (0, 0, 0));
    options.repack = true;
    options.max_unused = Some(0.05);
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(report.packs_repack, 1);
    assert_whole(&lab, &[(kept.id, &one)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_running_backup_keeps_what_was_unmarked_when_it_began() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup_ago(&repo, "n", &items(&[("i", noise(1, MB))]), 1);
    let new = items(&[("i", noise(2, MB))]);
    let kept = backup(&repo, "n", &new);
    let running = HeldLease::take(&repo, "other").unwrap();
    let report = prune_now(&repo, 1);
    assert_eq!((report.packs_deleted, report.packs_waiting), (0, 1));
    assert_eq!(report.held_by.len(), 1);
    assert_eq!(report.held_by[0].host, "other");
    drop(running);
    let report = prune_now(&repo, 1);
    assert_eq!((report.packs_deleted, report.packs_waiting), (1, 0));
    assert_whole(&lab, &[(kept.id, &new)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_renewed_lease_still_keeps_what_was_unmarked_when_the_backup_began() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup_ago(&repo, "n", &items(&[("i", noise(1, MB))]), 1);
    backup(&repo, "n", &items(&[("i", noise(2, MB))]));
    let mut options = prune_options(keep_last(1));
    options.grace = SignedDuration::from_hours(2);
    let began = Timestamp::now() - SignedDuration::from_secs(60);
    prune(&repo, &options, &Progress::default()).unwrap();
    // Three hours on, the backup runs still, on a lease that was put after the mark.
    lab.store.set_clock_ahead(SignedDuration::from_hours(3));
    options.now = Timestamp::now() + SignedDuration::from_hours(3);
    let lease = put_lease(&repo, |lease| {
        foreign(lease);
        lease.began = Some(began);
    });
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((report.packs_deleted, report.packs_waiting), (0, 1), "it may rest on what was marked after it began");
    lab.store.delete(&format!("leases/{lease}")).unwrap();
    put_lease(&repo, foreign);
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(report.packs_deleted, 1, "one that began after the mark has seen it");
}

#[test]
fn a_backup_committed_just_before_the_mark_is_rescued() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let old = items(&[("i", noise(1, MB)), ("j", noise(3, MB))]);
    backup_ago(&repo, "n", &old, 2);
    let new = items(&[("i", noise(2, MB))]);
    let kept = backup_ago(&repo, "n", &new, 1);
    // Another host takes a backup that rests on the dead pack after prune has made its plan.
    let other = lab.open("b");
    let late = Arc::new(std::sync::Mutex::new(None));
    let (data, made) = (old.clone(), late.clone());
    let hooked = Hooked::new(&lab.store)
        .before("put", "marks/", move || *made.lock().unwrap() = Some(backup(&other, "m", &data)));
    let report = prune_now(&lab.open_on("a", Arc::new(hooked)), 1);
    let late = late.lock().unwrap().take().expect("the hook ran");
    assert!(late.manifest.bytes_new < 10_000, "it rests on what prune took for dead");
    assert_eq!(report.packs_deleted, 0);
    assert_whole(&lab, &[(kept.id, &new), (late.id, &old)]);
    prune_now(&repo, 1);
    assert_whole(&lab, &[(kept.id, &new), (late.id, &old)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_backup_that_revives_dead_chunks_of_a_pack_about_to_be_repacked_keeps_them() {
    for (call, prefix) in [("put", "removals/"), ("put", "packs/"), ("put", "marks/")] {
        let lab = Lab::new();
        let repo = lab.open("a");
        let old = items(&[("keep", noise(1, 2 * MB)), ("lose", noise(2, 2 * MB))]);
        backup_ago(&repo, "n", &old, 2);
        let new = items(&[("keep", noise(1, 2 * MB))]);
        let kept = backup_ago(&repo, "n", &new, 1);
        let other = lab.open("b");
        let late = Arc::new(std::sync::Mutex::new(None));
        let (data, made) = (old.clone(), late.clone());
        let hooked = Hooked::new(&lab.store)
            .before(call, prefix, move || *made.lock().unwrap() = Some(backup(&other, "m", &data)));
        prune_now(&lab.open_on("a", Arc::new(hooked)), 1);
        let late = late.lock().unwrap().take().expect("the hook ran");
        assert_whole(&lab, &[(kept.id, &new), (late.id, &old)]);
        prune_now(&repo, 1);
        assert_whole(&lab, &[(kept.id, &new), (late.id, &old)]);
        assert_no_garbage(&lab);
    }
}

#[test]
fn packs_that_no_index_lists_go_unless_a_backup_may_have_put_them() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let data = items(&[("i", noise(1, MB))]);
    let kept = backup(&repo, "n", &data);
    // A backup that was killed between pack and index.
    let victim = backup(&repo, "n", &items(&[("i", noise(2, MB))]));
    lab.store.delete(&format!("snapshots/{}", victim.id)).unwrap();
    let newest = repo.list(Kind::Index).unwrap().into_iter().max_by_key(|(_, info)| info.modified).unwrap();
    lab.store.delete(&newest.1.name).unwrap();
    let repo = lab.open("another");
    assert_eq!(check_all(&repo).garbage.packs_unlisted, 1);

    let running = put_lease(&repo, |lease| {
        foreign(lease);
        lease.began = Some(Timestamp::now() - SignedDuration::from_hours(1));
    });
    assert_eq!(prune_now(&repo, 5).packs_unlisted, 0, "the backup that runs may have put it");
    lab.store.delete(&format!("leases/{running}")).unwrap();
    let report = prune_now(&repo, 5);
    assert_eq!((report.packs_unlisted, report.packs_deleted), (1, 1));
    assert_whole(&lab, &[(kept.id, &data)]);
    assert_no_garbage(&lab);
}

#[test]
fn leases_that_ran_out_or_whose_process_is_gone_are_removed_and_others_stay() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, 1000))]));
    put_lease(&repo, |_| {});
    let elsewhere = put_lease(&repo, foreign);
    assert_eq!(prune_now(&repo, 1).leases_removed, 1, "this boot has another id");
    assert_eq!(lab.names("leases/"), [format!("leases/{elsewhere}")]);
    lab.store.set_clock_ahead(SignedDuration::from_hours(4));
    let mut options = prune_options(keep_last(1));
    options.now = Timestamp::now() + SignedDuration::from_hours(4);
    prune(&repo, &options, &Progress::default()).unwrap();
    assert_no_garbage(&lab);
}

#[test]
fn a_prune_beside_a_prune_ends_with_busy() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, 1000))]));
    let began = Timestamp::now() - SignedDuration::from_secs(30);
    let other = put_lease(&repo, |lease| {
        foreign(lease);
        lease.prune = true;
        lease.began = Some(began);
    });
    let before = without_leases(&lab.store);
    match prune_error(&repo, keep_last(1)) {
        PruneError::Busy { host, .. } => assert_eq!(host, "elsewhere"),
        error => panic!("{error}"),
    }
    assert_eq!(without_leases(&lab.store), before);
    assert_eq!(lab.names("leases/"), [format!("leases/{other}")], "its own lease is gone, the other's is not");
}

#[test]
fn many_prunes_at_once_end_with_busy_or_well_and_lose_nothing() {
    for round in 0..8 {
        let lab = Lab::new();
        let repo = lab.open("a");
        let mut expected = Vec::new();
        for n in 0..6 {
            let data = items(&[("same", noise(1, MB)), ("i", noise(10 + n, MB / 2))]);
            expected.push((backup_ago(&repo, "n", &data, 10 - n as i64).id, data));
        }
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|n| {
                    let repo = lab.open(&format!("host {n}"));
                    scope.spawn(move || prune(&repo, &prune_options(keep_last(2)), &Progress::default()))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for result in &results {
            assert!(matches!(result, Ok(_) | Err(PruneError::Busy { .. })), "round {round}: {result:?}");
        }
        if results.iter().any(Result::is_ok) {
            expected.drain(..4);
        }
        let expected: Vec<_> = expected.iter().map(|(id, data)| (*id, data)).collect();
        assert_whole(&lab, &expected);
        prune_now(&repo, 2);
        assert_no_garbage(&lab);
    }
}

#[test]
fn damage_stops_prune_before_it_removes_anything() {
    type Harm = fn(&Lab) -> String;
    let harms: [(&str, Harm); 6] = [
        ("a manifest is flipped", |lab| flip(lab, "snapshots/", 60)),
        ("a manifest is gone without a record", |lab| remove(lab, "snapshots/")),
        ("an index object is flipped", |lab| flip(lab, "index/", 60)),
        ("an index object is gone", |lab| remove(lab, "index/")),
        ("a pack is gone", |lab| remove(lab, "packs/")),
        ("a pack is cut short", |lab| {
            let name = lab.names("packs/").remove(0);
            let bytes = lab.store.get(&name, None).unwrap();
            lab.store.overwrite(&name, bytes.slice(..bytes.len() - 1));
            name
        }),
    ];
    for (what, harm) in harms {
        let lab = Lab::new();
        let repo = lab.open("a");
        for n in 0..3 {
            let made = backup_ago(&repo, "n", &items(&[("same", noise(1, MB)), ("i", noise(n, MB))]), 9 - n as i64);
            // Only the oldest would be dropped; the harm hits another one.
            assert_eq!(made.manifest.seq, n + 1);
        }
        let name = harm(&lab);
        let before = without_leases(&lab.store);
        // A host of its own: what the first one has in its cache must not hide anything.
        let cold = lab.open_cold("cold");
        let result = prune(&cold, &prune_options(keep_last(2)), &Progress::default());
        let error = result.expect_err(what);
        assert!(
            matches!(error, PruneError::Repo(_) | PruneError::Pipeline(_) | PruneError::LostBackup { .. }),
            "{what}: {error}"
        );
        assert_eq!(without_leases(&lab.store), before, "{what} ({name}): nothing was removed");
    }
}

/// The second object under a prefix in order of age.
fn second(lab: &Lab, prefix: &str) -> String {
    let mut found = Vec::new();
    lab.store
        .list(prefix, &mut |info| {
            found.push((info.modified, info.name));
            Ok(())
        })
        .unwrap();
    found.sort();
    found.swap_remove(1).1
}

fn flip(lab: &Lab, prefix: &str, at: usize) -> String {
    let name = second(lab, prefix);
    let mut bytes = lab.store.get(&name, None).unwrap().to_vec();
    bytes[at] ^= 1;
    lab.store.overwrite(&name, bytes);
    name
}

fn remove(lab: &Lab, prefix: &str) -> String {
    let name = second(lab, prefix);
    lab.store.delete(&name).unwrap();
    name
}

#[test]
fn a_lost_backup_stops_prune_until_it_is_forgotten() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let made: Vec<_> = (0..3).map(|n| backup(&repo, "n", &items(&[("i", noise(n, 1000))]))).collect();
    lab.store.delete(&format!("snapshots/{}", made[1].id)).unwrap();
    let host = lab.open("b");
    match prune_error(&host, keep_last(1)) {
        PruneError::LostBackup { id, next_seq, .. } => assert_eq!((id, next_seq), (made[1].id, 3)),
        error => panic!("{error}"),
    }
    assert_eq!(check_all(&host).status, Status::Damaged);
    forget(&host, &forget_options(&[&made[1].id.hex()])).unwrap();
    assert_eq!(check_all(&host).status, Status::Clean);
    prune_now(&host, 1);
    assert_no_garbage(&lab);
}

#[test]
fn a_rollback_stops_prune() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, 1000))]));
    let before = lab.store.fork();
    backup(&repo, "n", &items(&[("i", noise(2, 1000))]));
    let old = Hooked::new(&before);
    let repo = lab.open_on("a", Arc::new(old));
    assert!(matches!(prune_error(&repo, keep_last(1)), PruneError::Repo(RepoError::Rollback { .. })));
}

#[test]
fn records_that_cannot_be_read_do_not_have_to_be_cleared_by_hand() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup_ago(&repo, "n", &items(&[("i", noise(1, 1000))]), 1);
    let data = items(&[("i", noise(2, 1000))]);
    let kept = backup(&repo, "n", &data);
    for folder in ["marks", "leases"] {
        lab.store.put(&format!("{folder}/{}", ObjectId::of(b"x")), Bytes::from_static(b"y")).unwrap();
    }
    let report = prune_now(&repo, 1);
    assert_eq!((report.packs_deleted, report.packs_waiting), (0, 1), "nobody knows what that lease stands for");
    lab.store.set_clock_ahead(SignedDuration::from_hours(4));
    let mut options = prune_options(keep_last(1));
    options.now = Timestamp::now() + SignedDuration::from_hours(4);
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(report.packs_deleted, 1);
    assert_whole(&lab, &[(kept.id, &data)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_repository_of_many_small_index_objects_is_tidied_even_if_nothing_goes() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let mut expected = Vec::new();
    for n in 0..12 {
        let data = items(&[("i", noise(n, 50_000))]);
        expected.push((backup(&repo, "n", &data).id, data));
    }
    assert_eq!(lab.names("index/").len(), 12);
    let report = prune_now(&repo, 100);
    assert_eq!((report.packs_deleted, lab.names("index/").len()), (0, 1));
    let expected: Vec<_> = expected.iter().map(|(id, data)| (*id, data)).collect();
    assert_whole(&lab, &expected);
}

#[test]
fn forget_takes_prefixes_and_says_what_it_cannot_take() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let made: Vec<_> = (0..20).map(|n| backup(&repo, "n", &items(&[("i", noise(n, 100))])).id).collect();
    let find = |words: &[&str]| match forget(&repo, &forget_options(words)) {
        Err(ForgetError::Find(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(find(&["zz"]), FindError::Unknown { .. }));
    assert!(matches!(find(&[&made[0].hex(), "ffffffffffffffff"]), FindError::Unknown { .. }), "all or nothing");
    let digits: Vec<char> = made.iter().map(|id| id.hex().chars().next().unwrap()).collect();
    let twice = digits.iter().find(|digit| digits.iter().filter(|other| other == digit).count() > 1);
    let ambiguous = twice.expect("twenty ids cannot all begin differently").to_string();
    match find(&[&ambiguous]) {
        FindError::Ambiguous { candidates, .. } => assert!(candidates.len() > 1),
        other => panic!("{other}"),
    }
    assert_eq!(lab.names("snapshots/").len(), 20);

    let mut dry = forget_options(&[&made[0].hex()[..20]]);
    dry.dry_run = true;
    assert_eq!(forget(&repo, &dry).unwrap().dropped[0].id, made[0]);
    assert_eq!(lab.names("snapshots/").len(), 20);
    let report = forget(&repo, &forget_options(&[&made[0].hex()[..20], "latest", &made[0].hex()])).unwrap();
    assert_eq!(report.dropped.iter().map(|dropped| dropped.id).collect::<Vec<_>>(), [made[0], made[19]]);
    assert_eq!(lab.names("snapshots/").len(), 18);
    assert_eq!(lab.names("removals/").len(), 1);
    // The record keeps this from looking like a loss, to this host and to another.
    repo.snapshots().unwrap();
    assert_eq!(check_all(&lab.open("b")).status, Status::Clean);
}

#[test]
fn a_backup_with_a_damaged_manifest_can_be_forgotten() {
    let lab = Lab::new();
    let repo = lab.open("a");
    backup(&repo, "n", &items(&[("i", noise(1, 1000))]));
    let bad = backup(&repo, "n", &items(&[("i", noise(2, 1000))]));
    backup(&repo, "n", &items(&[("i", noise(3, 1000))]));
    let name = format!("snapshots/{}", bad.id);
    let bytes = lab.store.get(&name, None).unwrap();
    lab.store.overwrite(&name, bytes.slice(..bytes.len() / 2));
    let host = lab.open("b");
    assert!(matches!(prune_error(&host, keep_last(3)), PruneError::Repo(RepoError::Damaged { .. })));
    let report = forget(&host, &forget_options(&[&bad.id.hex()[..16]])).unwrap();
    assert!(report.dropped[0].facts.is_none());
    assert_eq!(prune_now(&host, 3).packs_deleted, 1);
    assert_no_garbage(&lab);
}

/// A store that holds so many bytes and no more. Every object takes whole blocks of 4 KiB.
struct Quota {
    inner: Memory,
    bytes_max: std::sync::atomic::AtomicU64,
}

impl Quota {
    fn used(&self) -> u64 {
        let size = |name: &String| (self.inner.get(name, None).unwrap().len() as u64).div_ceil(4096) * 4096;
        self.inner.names().iter().map(size).sum()
    }
}

impl Backend for Quota {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        let size = (bytes.len() as u64).div_ceil(4096) * 4096;
        if self.used() + size > self.bytes_max.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(BackendError::NoSpace { name: name.to_owned(), location: "quota".to_owned() });
        }
        self.inner.put(name, bytes)
    }
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.inner.get(name, range)
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
fn prune_works_with_no_byte_free() {
    for repack in [false, true] {
        let lab = Lab::new();
        let repo = lab.open("a");
        let shared = noise(7, MB);
        for n in 0..4 {
            let data = items(&[("i", noise(n, MB)), ("shared", shared.clone())]);
            backup_ago(&repo, "n", &data, 10 - n as i64);
        }
        let last = items(&[("shared", shared)]);
        let kept = backup(&repo, "n", &last);
        let quota = Quota { inner: lab.store.clone(), bytes_max: 0.into() };
        quota.bytes_max.store(quota.used(), std::sync::atomic::Ordering::Relaxed);
        let full = lab.open_on("a", Arc::new(quota));
        assert!(try_backup(&full, "n", &items(&[("x", noise(99, MB))]), Timestamp::now()).is_err(), "it is full");
        let mut options = prune_options(keep_last(1));
        options.repack = repack;
        let report = prune(&full, &options, &Progress::default()).unwrap();
        assert!(report.packs_deleted >= 3, "{report:?}");
        assert_whole(&lab, &[(kept.id, &last)]);
        if repack {
            assert_no_garbage(&lab);
        }
    }
}

#[test]
fn a_full_store_with_only_unlisted_packs_gets_room_from_them() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let data = items(&[("i", noise(1, MB))]);
    let kept = backup(&repo, "n", &data);
    // A pack that a killed backup has left.
    let packer = Packer::start(repo.clone(), Arc::<Pending>::default(), Arc::<Added>::default(), None, 1, 1);
    let before = lab.names("index/");
    repo.index
        .each_pack(&mut |pack, _, blobs| {
            for blob in blobs {
                let range = u64::from(blob.offset)..u64::from(blob.offset + blob.stored);
                let stored = repo.backend.get(&pack_name(&pack), Some(range))?;
                packer.push(Blob::Sealed { contents: blob.contents, stored }).unwrap();
            }
            Ok(())
        })
        .unwrap();
    packer.finish().unwrap();
    for name in lab.names("index/").iter().filter(|name| !before.contains(name)) {
        lab.store.delete(name).unwrap();
    }
    let quota = Quota { inner: lab.store.clone(), bytes_max: 0.into() };
    quota.bytes_max.store(quota.used(), std::sync::atomic::Ordering::Relaxed);
    let full = lab.open_on("b", Arc::new(quota));
    prune(&full, &prune_options(keep_last(1)), &Progress::default()).unwrap();
    assert_whole(&lab, &[(kept.id, &data)]);
    assert_no_garbage(&lab);
}

#[test]
fn a_damaged_pack_is_not_copied_under_a_good_name() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let keep = noise(1, 3 * MB);
    backup_ago(&repo, "n", &items(&[("keep", keep.clone()), ("lose", noise(2, 3 * MB))]), 2);
    backup(&repo, "n", &items(&[("keep", keep)]));
    let mut options = prune_options(keep_last(1));
    options.dry_run = true;
    let plan = prune(&repo, &options, &Progress::default()).unwrap();
    let pack = plan.plan.iter().find(|pack| pack.fate == Fate::Repack).expect("a pack that is partly dead").pack;
    let mut bytes = lab.store.get(&pack_name(&pack), None).unwrap().to_vec();
    bytes[100] ^= 1;
    lab.store.overwrite(&pack_name(&pack), bytes);
    options.dry_run = false;
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert!(report.damaged[0].contains(&pack.hex()), "{:?}", report.damaged);
    assert!(lab.names("packs/").contains(&pack_name(&pack)), "what can still be read of it stays");
}

#[test]
fn directories_of_new_packs_say_what_the_index_says() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let keep = noise(1, 2 * MB);
    backup_ago(&repo, "n", &items(&[("keep", keep.clone()), ("lose", noise(2, 2 * MB))]), 2);
    backup(&repo, "n", &items(&[("keep", keep)]));
    prune_now(&repo, 1);
    for (id, _) in repo.list(Kind::Index).unwrap() {
        for pack in repo.load_index_object(&id).unwrap().packs {
            let bytes = lab.store.get(&pack_name(&pack.pack), None).unwrap();
            let range = vault::format::pack::directory_range(bytes.len() as u64, &bytes).unwrap();
            let sealed = &bytes[range.start as usize..range.end as usize];
            let raw = open_object(&repo.keys, Kind::Directory, sealed).unwrap();
            assert_eq!(decode_directory(&raw).unwrap(), pack.directory);
        }
    }
}
