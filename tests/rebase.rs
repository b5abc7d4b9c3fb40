//! What prune stores anew without its bases, and what must not get lost by that.

mod lab;

use std::sync::{Arc, Mutex};

use lab::*;
use vault::ops::check::{Status, check};
use vault::ops::prune::{PruneReport, prune};
use vault::progress::Progress;
use vault::repo::Repository;
use vault::seal::keys::Kind;

const ROWS: usize = 30_000;

fn table(day: usize) -> Items {
    items(&[("table", changing_rows(ROWS, day))])
}

/// A repository with so many days of the table, and what each day was.
fn days(lab: &Lab, repo: &Arc<Repository>, count: usize) -> Vec<(vault::id::ObjectId, Items)> {
    let day = |day| {
        let items = table(day);
        (backup_ago(repo, "n", &items, 100 - day as i64).id, items)
    };
    let made = (0..count).map(day).collect();
    assert!(deepest(lab) >= 3, "chains are long enough to be worth it");
    made
}

/// The depth of the deepest blob that an index object lists.
fn deepest(lab: &Lab) -> u8 {
    let repo = lab.open("a fresh host");
    let objects = repo.list(Kind::Index).unwrap().into_iter();
    let packs = objects.flat_map(|(id, _)| repo.load_index_object(&id).unwrap().packs);
    packs.flat_map(|pack| pack.directory).map(|blob| blob.contents.depth).max().unwrap_or(0)
}

fn bytes_of_packs(lab: &Lab) -> usize {
    use vault::backend::Backend;
    lab.names("packs/").iter().map(|name| lab.store.get(name, None).unwrap().len()).sum()
}

fn prune_on(lab: &Lab, hooked: Hooked) -> PruneReport {
    prune_now(&lab.open_on("a", Arc::new(hooked)), 1)
}

#[test]
fn pruned_to_the_last_day_a_repository_is_about_as_small_as_a_fresh_one() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let made = days(&lab, &repo, 8);
    let (last, items) = made.last().unwrap();
    let mut options = prune_options(keep_last(1));
    options.dry_run = true;
    let before = bytes_of_packs(&lab);
    let plan = prune(&repo, &options, &Progress::default()).unwrap();
    let report = prune_now(&repo, 1);
    assert_eq!(plan.packs_dead + plan.packs_repack, report.packs_deleted);
    assert_whole(&lab, &[(*last, items)]);
    assert_no_garbage(&lab);
    let after = bytes_of_packs(&lab);
    let freed = before as i64 - after as i64;
    assert_eq!(report.bytes_freed, freed);
    let off = (plan.bytes_freed - freed).unsigned_abs() as usize;
    assert!(off * 50 < before, "a dry run said {}, {freed} of {before} went", plan.bytes_freed);
    let fresh = Lab::new();
    backup(&fresh.open("a"), "n", items);
    let fresh = bytes_of_packs(&fresh);
    assert!(after * 100 <= fresh * 115, "{after} bytes, a fresh repository has {fresh}, before it were {before}");
    let again = prune_now(&repo, 1);
    assert_eq!((again.packs_deleted, again.bytes_copied), (0, 0), "a second run finds nothing to do");
    // The next day rests on what stands alone now.
    let next = table(8);
    let id = backup(&repo, "n", &next).id;
    assert_whole(&lab, &[(*last, items), (id, &next)]);
    assert!(bytes_of_packs(&lab) * 100 < after * 130);
}

#[test]
fn what_many_backups_share_keeps_its_bases() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let made = days(&lab, &repo, 8);
    let (before, deep) = (bytes_of_packs(&lab), deepest(&lab));
    prune_now(&repo, 7);
    assert_eq!(deepest(&lab), deep, "the first day is gone, and its chunks are what the others rest on");
    assert!(bytes_of_packs(&lab) <= before);
    let expected: Vec<_> = made[1..].iter().map(|(id, items)| (*id, items)).collect();
    assert_whole(&lab, &expected);
}

#[test]
fn without_repack_nothing_is_stored_anew() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let made = days(&lab, &repo, 8);
    let (last, items) = made.last().unwrap();
    let mut options = prune_options(keep_last(1));
    options.repack = false;
    let report = prune(&repo, &options, &Progress::default()).unwrap();
    assert_eq!((report.bytes_copied, report.packs_repack), (0, 0));
    assert_whole(&lab, &[(*last, items)]);
}

#[test]
fn a_backup_taken_meanwhile_keeps_what_it_rests_on() {
    for (call, prefix) in [("put", "removals/"), ("delete", "snapshots/"), ("put", "packs/"), ("put", "marks/")] {
        let lab = Lab::new();
        let repo = lab.open("a");
        let made = days(&lab, &repo, 8);
        let (last, items) = made.last().unwrap();
        // An old day again: all that it needs is there, as bases only.
        let old = made[3].1.clone();
        let other = lab.open("b");
        let late = Arc::new(Mutex::new(None));
        let (data, seen) = (old.clone(), late.clone());
        let hook = move || *seen.lock().unwrap() = Some(backup(&other, "m", &data).id);
        prune_on(&lab, Hooked::new(&lab.store).before(call, prefix, hook));
        let late = late.lock().unwrap().take().expect("the hook ran");
        assert_whole(&lab, &[(*last, items), (late, &old)]);
        prune_now(&repo, 1);
        assert_whole(&lab, &[(*last, items), (late, &old)]);
        assert_no_garbage(&lab);
    }
}

#[test]
fn a_damaged_base_keeps_everything_else_where_it_is() {
    use vault::backend::Backend;
    let lab = Lab::new();
    let repo = lab.open("a");
    days(&lab, &repo, 8);
    // The first pack holds what all others rest on.
    let of = |name: &String| std::cmp::Reverse(lab.store.get(name, None).unwrap().len());
    let mut names = lab.names("packs/");
    names.sort_by_key(of);
    let mut bytes = lab.store.get(&names[0], None).unwrap().to_vec();
    bytes[1000] ^= 1;
    lab.store.overwrite(&names[0], bytes);
    let hits = |report: &vault::ops::check::CheckReport| report.findings.len();
    let keep_all =
        check(&lab.open("b"), &check_options(vault::ops::check::ReadData::All), &Progress::default()).unwrap();
    assert_eq!(keep_all.status, Status::Damaged);
    let report = prune_now(&repo, 1);
    assert!(!report.damaged.is_empty());
    for name in &names {
        assert!(lab.names("packs/").contains(name), "{name} may hold what the last day rests on");
    }
    let after = check_all(&lab.open("c"));
    assert!(hits(&after) <= hits(&keep_all), "{:#?}", after.findings);
}
