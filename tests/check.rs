//! What check finds, whom it names, and what it does not call damage.

mod lab;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lab::*;
use vault::backend::Backend;
use vault::backend::fault::{Failure, Fault, Faults, Rule};
use vault::backend::recording::{Call, CallKind, CallState, Recording};
use vault::format::pack::BlobKind;
use vault::format::records::{Mark, encode_record};
use vault::id::ObjectId;
use vault::ops::check::{CheckOptions, FindingKind, ReadData, Status, check};
use vault::ops::forget::{ForgetOptions, forget};
use vault::ops::repair::{RepairOptions, RepairReport, repair_index};
use vault::progress::Progress;
use vault::repo::{Repository, pack_name};
use vault::seal::keys::Kind;

const MB: usize = 1 << 20;

fn run(repo: &Arc<Repository>, read_data: ReadData) -> vault::ops::check::CheckReport {
    check(repo, &check_options(read_data), &Progress::default()).unwrap()
}

fn repair(repo: &Arc<Repository>, dry_run: bool) -> RepairReport {
    let options = RepairOptions { host: "h".into(), now: Timestamp::now(), dry_run };
    repair_index(repo, &options, &Progress::default()).unwrap()
}

/// Two backups that share one item; each in packs of its own.
fn two_backups(lab: &Lab) -> [(ObjectId, Items); 2] {
    let repo = lab.open("a");
    let one = items(&[("both", noise(1, MB)), ("only one", noise(2, 3 * MB))]);
    let two = items(&[("both", noise(1, MB)), ("only two", noise(3, 3 * MB))]);
    [(backup_ago(&repo, "n", &one, 2).id, one), (backup_ago(&repo, "n", &two, 1).id, two)]
}

fn packs(lab: &Lab) -> Vec<String> {
    let mut packs = Vec::new();
    lab.store
        .list("packs/", &mut |info| {
            packs.push((info.modified, info.name));
            Ok(())
        })
        .unwrap();
    packs.sort();
    packs.into_iter().map(|(_, name)| name).collect()
}

fn change(lab: &Lab, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = lab.store.get(name, None).unwrap().to_vec();
    change(&mut bytes);
    lab.store.overwrite(name, bytes);
}

#[test]
fn a_whole_repository_is_clean_and_every_byte_is_read() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    let repo = lab.open("b");
    let report = run(&repo, ReadData::All);
    assert_eq!(report.status, Status::Clean, "{:#?}", report.findings);
    assert_eq!((report.backups, report.items, report.packs, report.packs_read), (2, 4, 2, 2));
    let stored: u64 = packs(&lab).iter().map(|name| lab.store.get(name, None).unwrap().len() as u64).sum();
    assert_eq!((report.packs_bytes, report.packs_read_bytes), (stored, stored));
    assert!(report.bytes_verified >= 7 * MB as u64);
    assert_eq!(report.garbage, Default::default());
    assert_eq!(run(&repo, ReadData::None).packs_read, 0);
    assert_whole(&lab, &made.each_ref().map(|(id, items)| (*id, items)));
}

#[test]
fn an_empty_repository_is_clean() {
    let lab = Lab::new();
    assert_eq!(run(&lab.open("a"), ReadData::All).status, Status::Clean);
}

#[test]
fn a_flipped_bit_in_a_pack_is_found_and_names_the_backups_and_items_it_hits() {
    let lab = Lab::new();
    let [(one, _), (two, two_items)] = two_backups(&lab);
    let first = packs(&lab).remove(0);
    // The first blob of the first pack holds the item that both share.
    change(&lab, &first, |bytes| bytes[1000] ^= 4);
    let repo = lab.open("b");
    assert_eq!(run(&repo, ReadData::None).status, Status::Clean, "its size is right");
    let report = run(&repo, ReadData::All);
    assert_eq!(report.status, Status::Damaged);
    let finding = &report.findings[0];
    assert_eq!((finding.kind, &finding.object), (FindingKind::Pack, &first));
    let hit: BTreeSet<_> = finding.backups.iter().copied().collect();
    assert!(hit.contains(&one), "{finding:?}");
    assert!(finding.items.contains(&"both".to_owned()), "{finding:?}");
    assert!(!finding.items.contains(&"only two".to_owned()), "{finding:?}");
    // What it names is the truth: what it does not name comes back.
    assert_eq!(hit.contains(&two), restore(&repo, &two).is_err());
    let whole = lab.open("c");
    let manifest = whole.snapshot(&two).unwrap().manifest;
    let reader = vault::pipeline::read::Reader::new(whole.clone(), 1, Progress::default());
    reader
        .each_item(&manifest, &mut |item| {
            if item.path == "only two" {
                let mut bytes = Vec::new();
                reader.read_item(&item, &mut |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                assert!(bytes == two_items["only two"]);
            }
            Ok(())
        })
        .unwrap();
}

/// Whoever has the key could write such a pack, and so could a host whose memory is faulty: only opening every blob finds it.
#[test]
fn a_blob_at_fault_in_a_pack_that_hashes_to_its_name_is_found_wherever_it_stands_in_a_chain() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for day in 0..3 {
        let items = items(&[("still", noise(1, 3 * MB)), ("table", changing_rows(30_000, day))]);
        backup_ago(&repo, "n", &items, 9 - day as i64);
    }
    let objects = lab.names("index/").into_iter().map(|name| vault::repo::id_of_name(&name).unwrap());
    let packs = objects.flat_map(|id| repo.load_index_object(&id).unwrap().packs);
    let blobs = packs.flat_map(|pack| pack.directory.into_iter().map(move |blob| (pack.pack, blob)));
    let blobs: Vec<_> = blobs.filter(|(_, blob)| blob.contents.kind == BlobKind::Data).collect();
    let depths: BTreeSet<u8> = blobs.iter().map(|(_, blob)| blob.contents.depth).collect();
    assert_eq!(depths, (0..=2).collect(), "some stand alone, and some at each step of a chain");
    for (pack, blob) in blobs {
        let lab = Lab::with_store(lab.store.fork());
        let mut bytes = lab.store.get(&pack_name(&pack), None).unwrap().to_vec();
        bytes[(blob.offset + blob.stored / 2) as usize] ^= 1;
        let spoiled = pack_name(&ObjectId::of(&bytes));
        lab.store.overwrite(&spoiled, bytes);
        let replaced = lab.names("index/").into_iter().chain([pack_name(&pack)]);
        replaced.for_each(|name| assert!(lab.store.delete(&name).unwrap()));
        repair(&lab.open_cold("b"), false);
        assert_eq!(run(&lab.open_cold("c"), ReadData::None).status, Status::Clean);
        // One thread opens the blobs of the first packs as they come, and those of the last two after them.
        let options = CheckOptions { threads: 1, ..check_options(ReadData::All) };
        let report = check(&lab.open_cold("c"), &options, &Progress::default()).unwrap();
        assert_eq!(report.status, Status::Damaged, "depth {}, at {}", blob.contents.depth, blob.offset);
        let found = report.findings.iter().find(|finding| finding.object == spoiled).expect("the pack is named");
        assert!(found.detail.starts_with(&format!("blob at {}", blob.offset)), "{found:?}");
        assert!(!found.backups.is_empty(), "{found:?}");
    }
}

#[test]
fn a_missing_or_shortened_pack_is_found_without_reading_data() {
    for (kind, harm) in [
        (
            FindingKind::MissingPack,
            Box::new(|lab: &Lab, name: &str| assert!(lab.store.delete(name).unwrap())) as Box<dyn Fn(&Lab, &str)>,
        ),
        (FindingKind::PackSize, Box::new(|lab, name| change(lab, name, |bytes| bytes.truncate(bytes.len() - 1)))),
        (FindingKind::PackSize, Box::new(|lab, name| change(lab, name, |bytes| bytes.push(0)))),
        (FindingKind::PackSize, Box::new(|lab, name| change(lab, name, Vec::clear))),
    ] {
        let lab = Lab::new();
        let [(one, _), (two, two_items)] = two_backups(&lab);
        let second = packs(&lab).remove(1);
        harm(&lab, &second);
        let repo = lab.open("b");
        let report = run(&repo, ReadData::None);
        let finding = report.findings.iter().find(|finding| finding.kind == kind).expect("the pack");
        assert_eq!(finding.object, second);
        assert_eq!(finding.backups, [two], "backup {one} has nothing in it: {finding:?}");
        assert!(finding.items.is_empty() || finding.items == ["only two"], "{finding:?}");
        assert!(restore(&repo, &one).is_ok());
        match restore(&repo, &two) {
            Ok(restored) => assert!(restored == two_items, "appended bytes harm nobody"),
            Err(_) => assert_ne!(kind, FindingKind::Sums),
        }
    }
}

#[test]
fn a_damaged_pack_whose_chunks_lie_elsewhere_too_hits_nobody() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let data = items(&[("i", noise(1, 2 * MB))]);
    let first = backup_ago(&repo, "n", &data, 2);
    let mark =
        Mark { time: Timestamp::now(), host: "x".into(), packs: repo.index.packs().unwrap().into_keys().collect() };
    let mark = repo.save(Kind::Mark, &encode_record(&mark)).unwrap();
    backup_ago(&repo, "n", &data, 1);
    lab.store.delete(&format!("marks/{}", mark.id)).unwrap();
    change(&lab, &packs(&lab)[0], |bytes| bytes[1000] ^= 1);
    let repo = lab.open("b");
    let report = run(&repo, ReadData::All);
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].backups.is_empty(), "{:?}", report.findings);
    assert!(restore(&repo, &first.id).unwrap() == data, "and so it is: the other copy serves");
}

#[test]
fn a_missing_index_object_names_the_backups_whose_chunks_nobody_knows() {
    let lab = Lab::new();
    let [_, (two, _)] = two_backups(&lab);
    let mut index = Vec::new();
    lab.store
        .list("index/", &mut |info| {
            index.push((info.modified, info.name));
            Ok(())
        })
        .unwrap();
    index.sort();
    lab.store.delete(&index[1].1).unwrap();
    let report = run(&lab.open("b"), ReadData::None);
    let finding = report.findings.iter().find(|finding| finding.kind == FindingKind::MissingChunks).expect("chunks");
    assert_eq!(finding.backups, [two]);
    assert_eq!(report.garbage.packs_unlisted, 1);
}

#[test]
fn every_flipped_bit_of_every_small_object_is_found() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for n in 0..2 {
        backup(&repo, "n", &items(&[("i", noise(n, 3000))]));
    }
    let dropped = backup(&repo, "n", &items(&[("i", noise(9, 3000))]));
    let options =
        ForgetOptions { words: vec![dropped.id.hex()], host: "h".into(), now: Timestamp::now(), dry_run: false };
    forget(&repo, &options).unwrap();
    let mark = Mark { time: Timestamp::now(), host: "x".into(), packs: vec![] };
    repo.save(Kind::Mark, &encode_record(&mark)).unwrap();
    put_lease(&repo, foreign);
    let repo = lab.open("b");
    let clean = run(&repo, ReadData::None);
    assert_eq!(clean.status, Status::Clean, "{:#?}", clean.findings);
    for folder in ["config", "index/", "snapshots/", "removals/", "marks/", "leases/"] {
        let name = lab.names(folder).remove(0);
        let bytes = lab.store.get(&name, None).unwrap();
        // Every bit of the first and last bytes, one bit of each byte between.
        for at in 0..bytes.len() {
            let bits = if at < 64 || at + 64 > bytes.len() { 0..8 } else { at % 8..at % 8 + 1 };
            for bit in bits {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                lab.store.overwrite(&name, flipped);
                let report = run(&repo, ReadData::None);
                assert!(report.findings.iter().any(|finding| finding.object == name), "{name}: bit {bit} of byte {at}");
            }
        }
        lab.store.overwrite(&name, bytes);
        assert_eq!(run(&repo, ReadData::None).status, Status::Clean);
    }
}

#[test]
fn parts_are_disjoint_and_together_everything() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for n in 0..20 {
        backup(&repo, "n", &items(&[("i", noise(n, 20_000))]));
    }
    let of = 3;
    let mut seen = BTreeSet::new();
    for part in 1..=of {
        let recorded = Arc::new(Recording::new(lab.store.clone()));
        let repo = lab.open_on(&format!("part {part}"), recorded.clone());
        recorded.take();
        let report = run(&repo, ReadData::Part { part, of });
        let is_whole = |call: &Call| {
            let all = 0..lab.store.get(&call.name, None).unwrap().len() as u64;
            call.range.as_ref().is_none_or(|range| *range == all)
        };
        let whole: BTreeSet<String> = recorded
            .calls()
            .into_iter()
            .filter(|call| call.kind == CallKind::Get && call.name.starts_with("packs/") && is_whole(call))
            .map(|call| call.name)
            .collect();
        assert_eq!(whole.len(), report.packs_read);
        assert!(report.packs_read > 0);
        for name in whole {
            assert!(seen.insert(name), "in two parts");
        }
    }
    assert_eq!(seen.len(), packs(&lab).len());
}

#[test]
fn shares_and_times_go_on_with_what_was_verified_longest_ago() {
    let lab = Lab::new();
    let repo = lab.open("a");
    for n in 0..10 {
        backup(&repo, "n", &items(&[("i", noise(n, 50_000))]));
    }
    let at = |hour: i64, read_data, max_duration| {
        let now = Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap();
        check(&repo, &CheckOptions { read_data, max_duration, threads: 1, now }, &Progress::default()).unwrap()
    };
    let verified = || -> BTreeSet<i64> {
        let all = packs(&lab);
        all.iter().filter_map(|name| repo.index.verified(&vault::repo::id_of_name(name).unwrap())).collect()
    };
    assert_eq!(at(0, ReadData::Share(0.25), None).packs_read, 3, "of ten packs of about the same size");
    let one = lab.store.get(&packs(&lab)[0], None).unwrap().len() as u64;
    assert_eq!(at(1, ReadData::Bytes(one * 7 / 2), None).packs_read, 4);
    assert_eq!(verified().len(), 2);
    assert_eq!(at(2, ReadData::Share(0.25), None).packs_read, 3);
    let all = packs(&lab);
    assert!(
        all.iter().all(|name| repo.index.verified(&vault::repo::id_of_name(name).unwrap()).is_some()),
        "three runs have covered everything"
    );
    assert_eq!(at(3, ReadData::All, Some(Duration::ZERO)).packs_read, 0, "no time, no packs");
    assert_eq!(at(3, ReadData::All, Some(Duration::from_secs(600))).packs_read, 10);
    assert_eq!(verified().len(), 1, "all at the same time");
    change(&lab, &all[0], |bytes| bytes[50] ^= 1);
    assert_eq!(at(4, ReadData::All, None).status, Status::Damaged);
    assert_eq!(verified().len(), 2, "a damaged pack is not remembered as verified");
}

#[test]
fn what_cannot_be_looked_at_is_an_error_and_never_clean() {
    let lab = Lab::new();
    two_backups(&lab);
    let recorded = Arc::new(Recording::new(lab.store.clone()));
    let repo = lab.open_on("a", recorded.clone());
    recorded.take();
    run(&repo, ReadData::All);
    let calls = recorded.calls().len();
    assert!(calls > 10);
    for n in 1..=calls {
        let faults = Arc::new(Recording::new(Faults::new(lab.store.clone(), [])));
        let repo = lab.open_on("b", faults.clone());
        faults.take();
        faults.inner().add(Rule::new(None, Fault::FailBefore(Failure::Unreachable)).at(n));
        let result = check(&repo, &check_options(ReadData::All), &Progress::default());
        let failed = faults.calls().iter().any(|call| call.state == CallState::Failed);
        assert!(failed || n > calls - 5, "a host with its caches warm asks a little less, not much");
        assert_eq!(result.is_err(), failed, "call {n} failed: {result:?}");
    }
}

#[test]
fn the_local_copies_are_not_believed() {
    let lab = Lab::new();
    let [(one, _), _] = two_backups(&lab);
    let repo = lab.open("a");
    assert_eq!(run(&repo, ReadData::None).status, Status::Clean);
    change(&lab, &format!("snapshots/{one}"), |bytes| bytes[70] ^= 1);
    let report = run(&repo, ReadData::None);
    assert_eq!(report.findings[0].kind, FindingKind::Manifest);
    assert_eq!(report.findings[0].backups, [one]);
}

#[test]
fn garbage_is_counted_and_is_no_damage() {
    let lab = Lab::new();
    let [(one, _), _] = two_backups(&lab);
    let repo = lab.open("a");
    let options = ForgetOptions { words: vec![one.hex()], host: "h".into(), now: Timestamp::now(), dry_run: false };
    forget(&repo, &options).unwrap();
    let report = run(&repo, ReadData::All);
    assert_eq!(report.status, Status::Clean);
    assert!(report.garbage.dead_bytes > 2 * MB as u64, "{:?}", report.garbage);
    let pack: ObjectId = vault::repo::id_of_name(&packs(&lab)[0]).unwrap();
    assert!(lab.names("packs/").contains(&pack_name(&pack)));
}

#[test]
fn the_index_comes_back_from_the_packs_alone() {
    for harm in ["all gone", "all damaged", "none"] {
        let lab = Lab::new();
        let made = two_backups(&lab);
        for name in lab.names("index/") {
            match harm {
                "all gone" => assert!(lab.store.delete(&name).unwrap()),
                "all damaged" => change(&lab, &name, |bytes| bytes[60] ^= 1),
                _ => {}
            }
        }
        let repo = lab.open_cold("b");
        let before = lab.store.names();
        let plan = repair(&repo, true);
        assert_eq!(lab.store.names(), before, "a dry run changes nothing");
        let report = repair(&repo, false);
        assert_eq!((report.packs, plan.packs), (2, 2));
        assert!(lab.names("packs/").len() == 2 && lab.names("snapshots/").len() == 2, "repair deletes nothing");
        assert_whole(&lab, &made.each_ref().map(|(id, items)| (*id, items)));
        let repo = lab.open("later");
        prune_now(&repo, 5);
        assert_whole(&lab, &made.each_ref().map(|(id, items)| (*id, items)));
        assert_eq!(lab.names("index/").len(), 1);
        assert_no_garbage(&lab);
    }
}

#[test]
fn repair_lists_a_pack_with_a_damaged_directory_as_the_old_index_did() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    let first = packs(&lab).remove(0);
    change(&lab, &first, |bytes| {
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
    });
    let repo = lab.open("b");
    let report = repair(&repo, false);
    assert_eq!((report.packs, report.packs_by_old_index), (1, vec![first]));
    for (id, items) in &made {
        assert!(restore(&lab.open("c"), id).unwrap() == *items);
    }
}

#[test]
fn diff_says_which_items_changed_and_by_how_much() {
    use vault::ops::diff::{Change, diff};
    let lab = Lab::new();
    let repo = lab.open("a");
    let old = noise(1, 2 * MB);
    let mut new = old.clone();
    new[MB] ^= 1;
    new.extend(noise(5, 1000));
    let first = backup(&repo, "n", &items(&[("changed", old), ("gone", noise(2, 500)), ("same", noise(3, 700))]));
    let second = backup(&repo, "n", &items(&[("added", noise(4, 900)), ("changed", new), ("same", noise(3, 700))]));
    let report = diff(&repo, &first, &second, &Progress::default()).unwrap();
    assert_eq!((report.added, report.removed, report.changed, report.unchanged), (1, 1, 1, 1));
    let found: Vec<_> =
        report.items.iter().map(|item| (&*item.path, item.change, item.bytes_delta, item.rows_delta)).collect();
    assert_eq!(
        found,
        [("added", Change::Added, 900, 1), ("changed", Change::Changed, 1000, 0), ("gone", Change::Removed, -500, -1)]
    );
    assert_eq!(report.bytes_delta, 1400);
    let changed = &report.items[1];
    assert!(changed.bytes_new > 1000 && changed.bytes_new < 700_000, "one or two chunks and the tail: {changed:?}");
    let same = diff(&repo, &first, &first, &Progress::default()).unwrap();
    assert!(same.items.is_empty() && same.unchanged == 3);
}

#[test]
fn stats_and_the_run_say_what_deltas_save() {
    const DAYS: u64 = 4;
    let lab = Lab::new();
    let repo = lab.open("a");
    // Noise takes as much as it has: without deltas each new chunk would be stored in full.
    let mut days = vec![items(&[("table", noise(1, 2 * MB))])];
    for day in 1..=DAYS {
        let mut next = days.last().expect("there is the first")["table"].clone();
        let place = 64 * day as usize;
        next[place..place + 64].copy_from_slice(&noise(100 + day, 64));
        days.push(items(&[("table", next)]));
    }
    let mut ids = Vec::new();
    let (mut new, mut stored, mut saved) = (0, 0, 0);
    for (day, items) in days.iter().enumerate() {
        let time = Timestamp::now() - SignedDuration::from_hours(10 - day as i64);
        let taken = try_take(&repo, "n", time, |sink| push(sink, items)).unwrap();
        assert_eq!(taken.bytes_saved_estimate > 0, day > 0, "the first day has nothing to rest on");
        ids.push(taken.snapshot.id);
        if day > 0 {
            (new, stored) = (new + taken.snapshot.manifest.bytes_new, stored + taken.snapshot.manifest.bytes_stored);
            saved += taken.bytes_saved_estimate;
        }
    }
    // What a run adds beside blobs, its lists and its index, is no part of what deltas save.
    assert!(saved <= new && saved > new - stored, "{new} new, {stored} stored, {saved} saved");

    let report = vault::ops::stats::stats(&repo, &Progress::default()).unwrap();
    let depths: Vec<_> = report.depths.iter().map(|one| (one.depth, one.blobs)).collect();
    assert_eq!(depths[1..], [(1, 1), (2, 1), (3, 1), (4, 1)], "each day rests on the one before");
    assert_eq!(report.depths[1..].iter().map(|one| one.bytes).sum::<u64>(), new);
    assert!(report.bytes_saved_estimate.abs_diff(saved) < 1000, "{} {saved}", report.bytes_saved_estimate);
    assert_eq!(report.bytes_bases, 0, "every day is still a backup");

    // Of the days that are dropped stays what the last one rests on, and no prune frees it.
    let words = ids[..DAYS as usize].iter().map(ObjectId::hex).collect();
    let options = ForgetOptions { words, host: "h".into(), now: Timestamp::now(), dry_run: false };
    forget(&repo, &options).unwrap();
    let report = vault::ops::stats::stats(&repo, &Progress::default()).unwrap();
    assert_eq!(report.depths.len(), depths.len(), "all of the chain is needed");
    let first_chunk = new / DAYS;
    assert!(report.bytes_bases > first_chunk / 2 && report.bytes_bases < 2 * first_chunk, "{report:?}");
    let (bases, unused) = (report.bytes_bases, report.bytes_unused);
    assert!(unused < 50_000, "lists of those days, and no bases: {unused}");
    prune_now(&repo, 1);
    let report = vault::ops::stats::stats(&lab.open("b"), &Progress::default()).unwrap();
    assert!(report.bytes_bases.abs_diff(bases) < 1000 && report.bytes_unused < 1000, "{report:?}");
}

#[test]
fn stats_count_what_a_backup_alone_holds() {
    let lab = Lab::new();
    let made = two_backups(&lab);
    let repo = lab.open("b");
    let report = vault::ops::stats::stats(&repo, &Progress::default()).unwrap();
    assert_eq!((report.backups, report.packs), (2, 2));
    assert_eq!(report.bytes_logical, 8 * MB as u64);
    let near = |bytes: u64, wanted: usize| (bytes as i64 - wanted as i64).unsigned_abs() < MB as u64 / 8;
    assert!(near(report.bytes_unique, 7 * MB), "{report:?}");
    assert!(near(report.bytes_stored, 7 * MB), "noise does not compress: {report:?}");
    assert!(report.bytes_unused < 1000, "{report:?}");
    assert_eq!(report.each.iter().map(|backup| backup.id).collect::<Vec<_>>(), [made[0].0, made[1].0]);
    for backup in &report.each {
        assert!(near(backup.bytes_alone, 3 * MB) && near(backup.bytes_alone_stored, 3 * MB), "{backup:?}");
    }
    assert_eq!(report.sources.len(), 1);
    assert!(near(report.sources[0].bytes_stored, 7 * MB));
    // Dropping one frees what it alone held.
    let options =
        ForgetOptions { words: vec![made[0].0.hex()], host: "h".into(), now: Timestamp::now(), dry_run: false };
    forget(&repo, &options).unwrap();
    let freed = prune_now(&repo, 1).bytes_freed;
    assert!(near(freed as u64, 3 * MB), "{freed}");
}
