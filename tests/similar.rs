//! Items that come under another name, or in another order: what of them changed rests on what they were.

mod lab;

use std::io::Write as _;
use std::sync::Arc;

use lab::*;
use serde_json::json;
use vault::backend::Backend;
use vault::backend::fault::{Failure, Fault, Faults, Rule};
use vault::backend::recording::CallKind;
use vault::ops::snapshot::{SnapshotError, Taken};
use vault::pipeline::PipelineError;
use vault::repo::Repository;
use vault::source::{ItemFacts, ItemSink};

const ROWS: usize = 120_000;

fn dump(day: usize) -> Vec<u8> {
    changing_rows(ROWS, day)
}

fn take(repo: &Arc<Repository>, name: &str, items: &Items) -> Taken {
    try_take(repo, name, jiff::Timestamp::now(), |sink| push(sink, items)).unwrap()
}

/// What the second day takes where nothing is known of the first but its chunks, and under the same name.
fn bounds() -> (u64, u64) {
    let lab = Lab::with_config(|config| config.delta.depth = 0);
    let repo = lab.open("a");
    take(&repo, "n", &items(&[("dump", dump(0))]));
    let plain = take(&repo, "n", &items(&[("dump", dump(1))])).snapshot.manifest.bytes_stored;
    let lab = Lab::new();
    let repo = lab.open("a");
    take(&repo, "n", &items(&[("dump", dump(0))]));
    let known = take(&repo, "n", &items(&[("dump", dump(1))])).snapshot.manifest.bytes_stored;
    assert!(known * 3 < plain, "{known} of {plain}: there is something to be won");
    (plain, known)
}

#[test]
fn a_dump_with_its_date_in_its_name_rests_on_the_one_before() {
    let (plain, known) = bounds();
    let lab = Lab::new();
    let repo = lab.open("a");
    let other = noise(7, 3_000_000);
    let old = items(&[("dump-2026-11-20.sql", dump(0)), ("other-2026-11-20.bin", other.clone())]);
    let id = take(&repo, "n", &old).snapshot.id;
    let more = items(&[("dump-2026-11-20.sql", dump(0)), ("dump-2026-11-21.sql", dump(1)), ("other", other)]);
    let taken = take(&repo, "n", &more);
    let stored = taken.snapshot.manifest.bytes_stored;
    // What came before the dump was recognised, a few chunks, stands alone.
    assert!(stored < known + (plain - known) / 3, "{stored} bytes, {known} under the same name, {plain} without bases");
    assert!(taken.bytes_saved_estimate > 0);
    assert_whole(&lab, &[(id, &old), (taken.snapshot.id, &more)]);
    prune_now(&repo, 1);
    assert_whole(&lab, &[(taken.snapshot.id, &more)]);
}

#[test]
fn a_dump_of_a_new_name_that_begins_with_what_is_all_new_rests_on_the_one_before() {
    // The first table is another every day.
    let dump = |day: usize| [noise(day as u64, 6_000_000), changing_everywhere(day)].concat();
    let second = |depth, names: [&str; 2]| {
        let lab = Lab::with_config(|config| config.delta.depth = depth);
        let repo = lab.open("a");
        let first = items(&[(names[0], dump(0)), ("a-2026-11-20.bin", noise(9, 3_000_000))]);
        let second = items(&[(names[1], dump(1))]);
        let ids = [&first, &second].map(|items| take(&repo, "n", items).snapshot);
        assert_whole(&lab, &[(ids[0].id, &first), (ids[1].id, &second)]);
        ids[1].manifest.bytes_stored
    };
    let names = ["shop-2026-11-20.sql", "shop-2026-11-21.sql"];
    let (plain, known) = (second(0, names), second(8, [names[0], names[0]]));
    assert!(known + 2_000_000 < plain, "{known} of {plain}: there is something to be won");
    let stored = second(8, names);
    assert!(stored < known + (plain - known) / 3, "{stored} bytes, {known} under the same name, {plain} without bases");
}

#[test]
fn the_same_database_under_another_name_rests_on_what_it_was() {
    let (plain, known) = bounds();
    let lab = Lab::new();
    let first = items(&[("public/orders", dump(0))]);
    let id = take(&lab.open("a"), "shop", &first).snapshot.id;
    let second = items(&[("main/orders_new", dump(1))]);
    let taken = take(&lab.open_cold("b"), "shop-copy", &second);
    let stored = taken.snapshot.manifest.bytes_stored;
    assert!(stored < known + (plain - known) / 3, "{stored} bytes, {known} under the same name, {plain} without bases");
    assert_whole(&lab, &[(id, &first), (taken.snapshot.id, &second)]);
}

#[test]
fn what_is_like_nothing_rests_on_nothing() {
    let lab = Lab::new();
    let repo = lab.open("a");
    take(&repo, "n", &items(&[("one", dump(0))]));
    let other: Vec<u8> = dump(0).iter().rev().copied().collect();
    let taken = take(&repo, "n", &items(&[("two", other)]));
    assert_eq!(taken.bytes_saved_estimate, 0);
}

#[test]
fn older_snapshots_that_cannot_be_read_cost_bases_and_not_the_backup() {
    let lab = Lab::new();
    take(&lab.open("a"), "n", &items(&[("one", dump(0))]));
    for pack in lab.names("packs/") {
        let damaged: Vec<u8> = lab.store.get(&pack, None).unwrap().iter().map(|byte| byte ^ 1).collect();
        lab.store.overwrite(&pack, damaged);
    }
    let next = items(&[("two", dump(1))]);
    let repo = lab.open_cold("b");
    let taken = take(&repo, "m", &next);
    assert_eq!(taken.bytes_saved_estimate, 0);
    assert_eq!(taken.snapshot.manifest.bytes, next["two"].len() as u64);
}

#[test]
fn dumps_that_come_together_rest_on_each_other() {
    let (plain, known) = bounds();
    let lab = Lab::new();
    let repo = lab.open("a");
    let days: Vec<_> = (0..5).map(dump).collect();
    let names = ["a/2026-11-20.sql", "a/2026-11-21.sql", "a/2026-11-22.sql", "a/2026-11-23.sql", "a/2026-11-24.sql"];
    let all: Vec<_> = names.into_iter().zip(days.iter().cloned()).collect();
    let taken = take(&repo, "n", &items(&all));
    let alone = Lab::new();
    let first = take(&alone.open("a"), "n", &items(&all[..1])).snapshot.manifest.bytes_stored;
    // The second waits for more to be settled, or settles the first; each later one rests on one before it.
    let more = taken.snapshot.manifest.bytes_stored - first;
    let bound = plain + 3 * (2 * known + (plain - known) / 3);
    assert!(more < bound, "{more} bytes more than the first, {known} under the same name, {plain} without bases");
    let next = items(&[("a/2026-11-25.sql", dump(5))]);
    let id = take(&repo, "n", &next).snapshot.id;
    assert_whole(&lab, &[(taken.snapshot.id, &items(&all)), (id, &next)]);
    prune_now(&repo, 1);
    assert_whole(&lab, &[(id, &next)]);
}

#[test]
fn dumps_that_come_together_rest_on_each_other_even_if_they_begin_as_the_one_before() {
    let (plain, known) = bounds();
    // Longer than what an item is recognised by.
    let begins = noise(7, 20_000_000);
    let dumps = [0, 1].map(|day| [&begins[..], &dump(day)].concat());
    let all = items(&[("a/2026-11-20.sql", dumps[0].clone()), ("a/2026-11-21.sql", dumps[1].clone())]);
    let lab = Lab::new();
    let repo = lab.open("a");
    let taken = take(&repo, "n", &all);
    let first = take(&Lab::new().open("a"), "n", &items(&[("a", dumps[0].clone())])).snapshot.manifest.bytes_stored;
    let more = taken.snapshot.manifest.bytes_stored - first;
    let bound = known + (plain - known) / 3;
    assert!(more < bound, "{more} bytes more than the first, {known} under the same name, {plain} without bases");
    assert_whole(&lab, &[(taken.snapshot.id, &all)]);
}

#[test]
fn a_store_that_fails_amid_a_run_is_named_and_leaves_no_backup() {
    let all = items(&[("a/2026-11-20.sql", dump(0)), ("a/2026-11-21.sql", dump(1)), ("a/2026-11-22.sql", dump(2))]);
    for (prefix, failure) in [("packs/", Failure::NoSpace), ("index/", Failure::Denied)] {
        let lab = Lab::new();
        let rule = Rule::new(CallKind::Put, Fault::FailBefore(failure)).under(prefix).at(1);
        let repo = lab.open_on("a", Arc::new(Faults::new(lab.store.clone(), [rule])));
        let error = try_backup(&repo, "n", &all, jiff::Timestamp::now()).unwrap_err();
        assert!(matches!(error, SnapshotError::Pipeline(PipelineError::Repo(_))), "{prefix}: {error:?}");
        assert_eq!(lab.names("snapshots/"), Vec::<String>::new());
        let id = take(&lab.open("a"), "n", &all).snapshot.id;
        assert_whole(&lab, &[(id, &all)]);
    }
}

/// Rows of which one in ten has changed.
fn changing_everywhere(day: usize) -> Vec<u8> {
    changing_rows(600_000, day)
}

/// Rows of which those of every other 320 kilobytes change: the chunks between are stored.
fn changing_here_and_there(day: usize) -> Vec<u8> {
    let dumps = [0, day].map(changing_everywhere);
    let [first, changed] = dumps.each_ref().map(|dump| dump.split_inclusive(|byte| *byte == b'\n'));
    let rows = first.zip(changed).enumerate();
    rows.flat_map(|(row, (first, changed))| if row / 4000 % 2 == 0 { first } else { changed }).copied().collect()
}

#[test]
fn what_comes_after_a_large_table_that_was_emptied_rests_on_what_it_was() {
    // The bytes of a second snapshot.
    let second = |depth, first: Vec<u8>, second: Vec<u8>| {
        let lab = Lab::with_config(|config| config.delta.depth = depth);
        let (repo, days) = (lab.open("a"), [first, second].map(|bytes| items(&[("dump", bytes)])));
        let [first, second] = days.each_ref().map(|items| take(&repo, "n", items).snapshot);
        assert_whole(&lab, &[(first.id, &days[0]), (second.id, &days[1])]);
        second.manifest.bytes_stored
    };
    // More than is known of the first at a time.
    let table = noise(7, 220_000_000);
    for dump in [changing_here_and_there, changing_everywhere] {
        let [before, after] = [0, 1].map(dump);
        let with_table = [&table[..], &before].concat();
        let (plain, known) = (second(0, before.clone(), after.clone()), second(8, before, after.clone()));
        assert!(known * 2 < plain, "{known} of {plain}: there is something to be won");
        for (what, next) in [("emptied", after.clone()), ("moved", [&after[..], &table].concat())] {
            let stored = second(8, with_table.clone(), next);
            let bound = known + (plain - known) / 8;
            assert!(stored < bound, "{what}: {stored} bytes, {known} without a table, {plain} without bases");
        }
    }
}

#[test]
fn a_dump_named_by_the_day_of_the_week_rests_on_that_of_yesterday() {
    let days: Vec<_> = (0..5).map(changing_everywhere).collect();
    // Each with the day of its content; it changed that day, if that is known.
    let push = |sink: &dyn ItemSink, dumps: &[(&str, usize)], is_dated: bool| {
        for (order, (path, day)) in (0..).zip(dumps) {
            let mut item = sink.begin(order, path, "file")?;
            item.write_all(&days[*day])?;
            let changed = |day: usize| json!([day * 86_400, 0]);
            let meta = is_dated.then(|| ("mtime".to_owned(), changed(*day))).into_iter().collect();
            item.finish(ItemFacts { rows: None, meta })?;
        }
        Ok(())
    };
    let week = [("fri.sql", 2), ("mon.sql", 0), ("thu.sql", 3), ("tue.sql", 1)];
    let contents = |dumps: &[(&str, usize)]| -> Items {
        dumps.iter().map(|(path, day)| ((*path).to_owned(), days[*day].clone())).collect()
    };
    let second = |first: &[(&str, usize)], second: &[(&str, usize)], is_dated| {
        let lab = Lab::new();
        let repo = lab.open("a");
        let [first, second] = [first, second].map(|dumps| {
            let take = |sink: &dyn ItemSink| push(sink, dumps, is_dated);
            (try_take(&repo, "n", jiff::Timestamp::now(), take).unwrap().snapshot, contents(dumps))
        });
        assert_whole(&lab, &[(first.0.id, &first.1), (second.0.id, &second.1)]);
        second.0.manifest.bytes_stored
    };
    let mut next = week;
    next[1] = ("mon.sql", 4);
    let yesterday = second(&[("mon.sql", 3)], &[("mon.sql", 4)], true);
    let last_week = second(&week, &next, false);
    assert!(yesterday * 2 < last_week, "{yesterday} of {last_week}: there is something to be won");
    let stored = second(&week, &next, true);
    assert!(stored < yesterday + (last_week - yesterday) / 3, "{stored}, not {yesterday} but {last_week}");
}

/// Short rows, made from the number of the row and eight digits each that stay; what `last` gives for a row and a day follows.
/// Returns what the second day takes without deltas, and with them.
fn second_day_of_short_rows(last: impl Fn(u64, u64) -> String) -> (u64, u64) {
    let row = |row: u64, day: u64| {
        let [first, second] = [1, 2].map(|column| digits(row, column));
        format!("{row:07}\t{first}{second}\t{}\tsome words that every row has\n", last(row, day))
    };
    let rows = |day| -> Vec<u8> { (0..1_200_000).flat_map(|number| row(number, day).into_bytes()).collect() };
    let days = [0, 1].map(|day| items(&[("rows", rows(day))]));
    let second = |depth| {
        let lab = Lab::with_config(|config| config.delta.depth = depth);
        let repo = lab.open("a");
        let ids = days.each_ref().map(|items| take(&repo, "n", items).snapshot);
        assert_whole(&lab, &[(ids[0].id, &days[0]), (ids[1].id, &days[1])]);
        ids[1].manifest.bytes_stored
    };
    (second(0), second(8))
}

fn digits(row: u64, column: u64) -> String {
    blake3::hash(&[row.to_le_bytes(), column.to_le_bytes()].concat()).to_hex()[..8].to_owned()
}

#[test]
fn short_rows_that_all_changed_rest_on_what_stood_where_they_stand() {
    // Hardly a cut point stays, and no length changes.
    let (plain, stored) = second_day_of_short_rows(|row, day| digits(row, 3 + day));
    assert!(stored * 5 < plain * 3, "{stored} bytes, {plain} without bases");
}

#[test]
fn short_rows_that_all_grew_rest_on_what_they_were() {
    // Hardly a cut point stays, and what stood at a byte is soon far away.
    let (plain, stored) = second_day_of_short_rows(|_, day| ["", "a column more"][day as usize].to_owned());
    assert!(stored * 5 < plain * 3, "{stored} bytes, {plain} without bases");
}
