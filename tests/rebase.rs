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

/// When something happens beside a prune: before its first call of this kind on such an object.
const MOMENTS: [(&str, &str); 4] =
    [("put", "removals/"), ("delete", "snapshots/"), ("put", "packs/"), ("put", "marks/")];

#[test]
fn a_backup_taken_meanwhile_keeps_what_it_rests_on() {
    for (call, prefix) in MOMENTS {
        let lab = Lab::new();
        let repo = lab.open("a");
        let made = days(&lab, &repo, 8);
        // An old day again: all that it needs is there, as bases only.
        let old = made[3].1.clone();
        assert_kept_beside_a_prune(&lab, &made, (call, prefix), "m", old);
    }
}

#[test]
fn a_backup_taken_meanwhile_keeps_what_its_new_chunks_rest_on() {
    for (call, prefix) in MOMENTS {
        // The last day is as deep as it may be, so the next one rests on the first, of which prune keeps little.
        let lab = Lab::with_config(|config| config.delta.depth = 3);
        let repo = lab.open("a");
        let made = days(&lab, &repo, 4);
        assert_kept_beside_a_prune(&lab, &made, (call, prefix), "n", table(4));
    }
}

#[test]
fn while_a_blob_is_listed_its_bases_are_stored_even_if_nothing_needs_it() {
    let lab = Lab::new();
    let repo = lab.open("a");
    let shared = noise(1, 2 << 20);
    backup_ago(&repo, "n", &table(0), 9);
    // A pack with a blob that rests on the day before and one that another backup needs too.
    let day = items(&[("shared", shared.clone()), ("table", changing_rows(ROWS, 1))]);
    backup_ago(&repo, "n", &day, 8);
    let (shared, other) = (items(&[("shared", shared)]), items(&[("other", noise(2, 1 << 20))]));
    let kept = [(backup_ago(&repo, "m", &shared, 7).id, &shared), (backup_ago(&repo, "n", &other, 6).id, &other)];
    assert_eq!(deepest(&lab), 1);
    let watcher = lab.open("b");
    let found = Arc::new(Mutex::new(None));
    let seen = found.clone();
    let hook = move || *seen.lock().unwrap() = Some(check_all(&watcher));
    let report = prune_on(&lab, Hooked::new(&lab.store).before("put", "packs/", hook));
    let found = found.lock().unwrap().take().expect("something was copied");
    assert_eq!(found.status, Status::Clean, "{:#?}", found.findings);
    assert_eq!((report.packs_repack, report.packs_deleted), (2, 2), "the day before goes after what rests on it");
    assert_whole(&lab, &kept);
    assert_no_garbage(&lab);
}

#[test]
fn index_objects_of_which_nothing_stays_go_all_at_once() {
    let lab = Lab::new();
    let repo = lab.open("a");
    days(&lab, &repo, 8);
    let other = items(&[("other", noise(2, 1 << 20))]);
    let last = backup(&repo, "n", &other).id;
    let mut hooked = Hooked::new(&lab.store);
    let reports = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..8 {
        let (watcher, reports) = (lab.open("b"), reports.clone());
        hooked = hooked.before("delete", "index/", move || reports.lock().unwrap().push(check_all(&watcher)));
    }
    prune_on(&lab, hooked);
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 8);
    reports.iter().for_each(|report| assert_eq!(report.status, Status::Clean, "{:#?}", report.findings));
    assert_eq!(lab.names("index/").len(), 1, "what took their place is gone too");
    assert_whole(&lab, &[(last, &other)]);
    assert_no_garbage(&lab);
}

/// Prunes to the last day, and at a moment another host takes a backup from beginning to end.
fn assert_kept_beside_a_prune(
    lab: &Lab,
    made: &[(vault::id::ObjectId, Items)],
    (call, prefix): (&'static str, &'static str),
    name: &'static str,
    data: Items,
) {
    let (last, items) = made.last().unwrap();
    let other = lab.open("b");
    let late = Arc::new(Mutex::new(None));
    let (taken, seen) = (data.clone(), late.clone());
    let hook = move || *seen.lock().unwrap() = Some(backup(&other, name, &taken).id);
    prune_on(lab, Hooked::new(&lab.store).before(call, prefix, hook));
    let late = late.lock().unwrap().take().expect("the hook ran");
    assert_whole(lab, &[(*last, items), (late, &data)]);
    prune_now(&lab.open("a"), 2);
    assert_whole(lab, &[(*last, items), (late, &data)]);
    assert_no_garbage(lab);
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
