//! One conformance suite, every backend: what `vault::backend::Backend` promises, case by case, in memory, in a folder, in a
//! bucket of a real MinIO, and through each decorator that does nothing. Then what only one of them can get wrong.
//!
//! MinIO: VAULT_TEST_S3_ENDPOINT, VAULT_TEST_S3_ACCESS_KEY, VAULT_TEST_S3_SECRET_KEY, as `tests/run` sets them. Without
//! them its cases are named on stdout as skipped.

use std::io::Write;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use vault::backend::fault::{Failure, Fault, Faults, Rule};
use vault::backend::limit::{Limited, Rates};
use vault::backend::probe::{Finding, ProbeReport, Verdict, probe};
use vault::backend::recording::{CallKind, CallState, Recording};
use vault::backend::{
    Backend, BackendError, Local, Memory, NAME_BYTES_MAX, OBJECT_BYTES_MAX, ObjectInfo, Properties, PutReceipt,
};
use vault::progress::Progress;

/// Makes a module of tests for each store, one test for each case.
macro_rules! conformance {
    (stores: $($store:ident),*; cases: $cases:tt) => {
        $(mod $store { conformance!(@tests $store $cases); })*
    };
    (@tests $store:ident [$($case:ident),* $(,)?]) => {
        $(#[test] fn $case() { crate::stores::$store(stringify!($case), crate::cases::$case) })*
    };
}

conformance! {
    stores: memory, local, s3, recording, faults, limited, all_decorators_on_a_folder;
    cases: [
        put_then_get_returns_the_bytes,
        every_byte_value_survives,
        an_empty_object_is_an_object,
        twenty_mebibytes_come_back,
        a_second_put_is_refused_and_changes_nothing,
        a_second_put_of_equal_bytes_is_refused_too,
        sixteen_puts_of_one_name_at_once_have_one_winner,
        sixteen_puts_of_equal_bytes_at_once_have_one_winner,
        puts_of_different_names_at_once_all_succeed,
        an_object_longer_than_any_may_be_is_not_put,
        a_receipt_tells_the_stores_time,
        get_of_a_missing_object_is_not_found,
        get_of_a_missing_object_beside_others_is_not_found,
        a_folder_is_not_an_object,
        a_range_in_the_middle,
        a_range_from_the_start,
        a_range_to_the_end,
        a_range_of_one_byte,
        a_range_of_everything,
        an_empty_range_is_empty_wherever_it_is,
        an_empty_range_of_a_missing_object_is_not_found,
        a_range_past_the_end_is_short,
        a_range_that_begins_at_the_end_is_short,
        a_range_of_an_empty_object_is_short,
        gets_at_once_see_the_same,
        a_reader_sees_all_or_nothing,
        a_list_of_nothing_is_empty,
        a_list_tells_names_sizes_and_times,
        a_list_shows_each_put_at_once,
        a_list_shows_no_deleted_object,
        a_prefix_is_a_folder_and_not_the_start_of_a_name,
        a_prefix_under_which_nothing_lies_is_empty,
        a_prefix_that_is_none_is_refused,
        a_list_of_more_than_a_thousand_is_whole,
        an_error_of_the_callback_ends_the_list,
        the_callback_of_a_list_may_use_the_store,
        a_delete_says_whether_the_object_was_there,
        a_delete_where_nothing_ever_was_is_no_error,
        a_delete_leaves_the_neighbours,
        deletes_at_once_leave_nothing_and_fail_nowhere,
        a_deleted_name_can_be_put_again,
        bad_names_are_refused_by_every_call,
        the_longest_name_works,
        names_that_begin_alike_are_different_objects,
        errors_name_the_object_and_the_store,
        properties_tell_where_it_is,
    ]
}

/// Opens each kind of store, empty, and runs a case on it.
mod stores {
    use super::*;

    type Case = fn(&dyn Backend);

    pub fn memory(_: &str, case: Case) {
        case(&Memory::new());
    }

    pub fn local(_: &str, case: Case) {
        let folder = tempfile::tempdir().unwrap();
        case(&Local::create(folder.path().join("repository")).unwrap());
    }

    pub fn recording(_: &str, case: Case) {
        case(&Recording::new(Memory::new()));
    }

    pub fn faults(_: &str, case: Case) {
        case(&Faults::new(Memory::new(), []));
    }

    pub fn limited(_: &str, case: Case) {
        case(&Limited::new(Memory::new(), Rates::default(), Progress::default()));
    }

    pub fn all_decorators_on_a_folder(_: &str, case: Case) {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(folder.path()).unwrap();
        // Fast enough not to wait, so that the counting is in the way too.
        let rates = Rates { up: NonZeroU64::new(1 << 50), down: NonZeroU64::new(1 << 50) };
        let rule = Rule::new(None, Fault::Delay(Duration::ZERO)).under("race/");
        let store = Limited::new(Faults::new(Recording::new(store), [rule]), rates, Progress::default());
        case(&Arc::new(store) as &dyn Backend);
    }

    #[cfg(not(feature = "s3"))]
    pub fn s3(name: &str, _: Case) {
        skipped(&format!("s3::{name}"), "built without the feature s3");
    }

    #[cfg(feature = "s3")]
    pub fn s3(name: &str, case: Case) {
        if let Some(minio) = minio(name) {
            case(&minio.store(name));
        }
    }
}

mod cases {
    use super::*;

    pub fn put_then_get_returns_the_bytes(store: &dyn Backend) {
        put(store, "config", "bytes");
        assert_eq!(store.get("config", None).unwrap(), "bytes");
    }

    pub fn every_byte_value_survives(store: &dyn Backend) {
        let bytes: Vec<u8> = (0..=255).chain([0; 7]).chain((0..=255).rev()).collect();
        put(store, "all", bytes.clone());
        assert_eq!(store.get("all", None).unwrap(), bytes);
    }

    pub fn an_empty_object_is_an_object(store: &dyn Backend) {
        put(store, "empty", "");
        assert_eq!(store.get("empty", None).unwrap(), "");
        assert_eq!(list(store, "")[0].bytes, 0);
        assert_exists(store.put("empty", Bytes::new()));
    }

    pub fn twenty_mebibytes_come_back(store: &dyn Backend) {
        let bytes = noise(20 << 20);
        put(store, "packs/00/large", bytes.clone());
        assert!(store.get("packs/00/large", None).unwrap() == bytes, "20 MiB come back as they were");
        let middle = store.get("packs/00/large", Some(7_000_001..13_000_003)).unwrap();
        assert!(middle == bytes[7_000_001..13_000_003], "so does a range of them");
    }

    pub fn a_second_put_is_refused_and_changes_nothing(store: &dyn Backend) {
        put(store, "a/b", "first");
        assert_exists(store.put("a/b", Bytes::from_static(b"second and longer")));
        assert_eq!(store.get("a/b", None).unwrap(), "first");
        assert_eq!(names(store, ""), ["a/b"]);
    }

    pub fn a_second_put_of_equal_bytes_is_refused_too(store: &dyn Backend) {
        put(store, "a/b", "same");
        assert_exists(store.put("a/b", Bytes::from_static(b"same")));
    }

    pub fn sixteen_puts_of_one_name_at_once_have_one_winner(store: &dyn Backend) {
        for round in 0..5 {
            one_winner(store, &format!("race/{round}"), |thread| Bytes::from(vec![thread as u8; 10_000 + thread]));
        }
    }

    pub fn sixteen_puts_of_equal_bytes_at_once_have_one_winner(store: &dyn Backend) {
        for round in 0..5 {
            one_winner(store, &format!("race/{round}"), |_| Bytes::from_static(b"every thread's"));
        }
    }

    fn one_winner(store: &dyn Backend, name: &str, bytes_of: impl Fn(usize) -> Bytes + Sync) {
        let start = Barrier::new(16);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let (start, bytes_of) = (&start, &bytes_of);
            let threads: Vec<_> = (0..16)
                .map(|thread| {
                    scope.spawn(move || {
                        start.wait();
                        store.put(name, bytes_of(thread))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winners: Vec<usize> = (0..16).filter(|&thread| outcomes[thread].is_ok()).collect();
        assert_eq!(winners.len(), 1, "exactly one of {outcomes:?}");
        for outcome in outcomes {
            assert!(matches!(outcome, Ok(_) | Err(BackendError::AlreadyExists { .. })), "{outcome:?}");
        }
        assert_eq!(store.get(name, None).unwrap(), bytes_of(winners[0]), "what is stored is the winner's");
    }

    pub fn puts_of_different_names_at_once_all_succeed(store: &dyn Backend) {
        thread::scope(|scope| {
            for thread in 0..16 {
                scope.spawn(move || put(store, &format!("packs/{:02x}/{thread}", thread % 4), vec![thread; 5000]));
            }
        });
        assert_eq!(names(store, "packs/").len(), 16);
        for thread in 0..16u8 {
            assert_eq!(store.get(&format!("packs/{:02x}/{thread}", thread % 4), None).unwrap(), vec![thread; 5000]);
        }
    }

    pub fn an_object_longer_than_any_may_be_is_not_put(store: &dyn Backend) {
        let outcome = store.put("long", Bytes::from(vec![0; OBJECT_BYTES_MAX + 1]));
        assert!(matches!(outcome, Err(BackendError::Other { .. })), "{outcome:?}");
        assert_eq!(names(store, ""), [""; 0]);
    }

    pub fn a_receipt_tells_the_stores_time(store: &dyn Backend) {
        let receipt = store.put("a", Bytes::new()).unwrap();
        let off = Timestamp::now().duration_since(receipt.store_time).abs();
        assert!(off < SignedDuration::from_secs(60), "the store's clock is off by {off}");
    }

    pub fn get_of_a_missing_object_is_not_found(store: &dyn Backend) {
        assert_not_found(store.get("missing", None));
        assert_not_found(store.get("missing", Some(0..10)));
    }

    pub fn get_of_a_missing_object_beside_others_is_not_found(store: &dyn Backend) {
        put(store, "packs/00/there", "x");
        for name in ["packs/00/not-there", "packs/01/there", "packs/00/ther", "packs/00/there2", "there"] {
            assert_not_found(store.get(name, None));
        }
    }

    pub fn a_folder_is_not_an_object(store: &dyn Backend) {
        put(store, "packs/00/a", "x");
        for folder in ["packs", "packs/00"] {
            assert_not_found(store.get(folder, None));
            assert!(!store.delete(folder).unwrap(), "there is no object {folder}");
        }
        assert_eq!(names(store, ""), ["packs/00/a"]);
    }

    pub fn a_range_in_the_middle(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        assert_eq!(store.get("digits", Some(3..7)).unwrap(), "3456");
    }

    pub fn a_range_from_the_start(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        assert_eq!(store.get("digits", Some(0..4)).unwrap(), "0123");
    }

    pub fn a_range_to_the_end(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        assert_eq!(store.get("digits", Some(6..10)).unwrap(), "6789");
    }

    pub fn a_range_of_one_byte(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        for at in 0..10 {
            assert_eq!(store.get("digits", Some(at..at + 1)).unwrap(), at.to_string());
        }
    }

    pub fn a_range_of_everything(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        assert_eq!(store.get("digits", Some(0..10)).unwrap(), "0123456789");
    }

    pub fn an_empty_range_is_empty_wherever_it_is(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        put(store, "empty", "");
        for at in [0, 5, 10, 11, u64::MAX] {
            assert_eq!(store.get("digits", Some(at..at)).unwrap(), "");
            assert_eq!(store.get("empty", Some(at..at)).unwrap(), "");
        }
    }

    pub fn an_empty_range_of_a_missing_object_is_not_found(store: &dyn Backend) {
        assert_not_found(store.get("missing", Some(3..3)));
    }

    pub fn a_range_past_the_end_is_short(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        for range in [0..11, 3..5000, 9..11, 0..u64::MAX] {
            assert_short(store.get("digits", Some(range.clone())), 10, range.end);
        }
    }

    pub fn a_range_that_begins_at_the_end_is_short(store: &dyn Backend) {
        put(store, "digits", "0123456789");
        for range in [10..11, 11..12, 1 << 40..1 << 41] {
            assert_short(store.get("digits", Some(range.clone())), 10, range.end);
        }
    }

    pub fn a_range_of_an_empty_object_is_short(store: &dyn Backend) {
        put(store, "empty", "");
        assert_short(store.get("empty", Some(0..1)), 0, 1);
    }

    pub fn gets_at_once_see_the_same(store: &dyn Backend) {
        let bytes = noise(300_000);
        put(store, "a", bytes.clone());
        let bytes = &bytes;
        thread::scope(|scope| {
            for thread in 0..16 {
                scope.spawn(move || {
                    let start = thread * 1000;
                    assert_eq!(store.get("a", Some(start..200_000)).unwrap(), bytes[start as usize..200_000]);
                    assert_eq!(store.get("a", None).unwrap(), *bytes);
                });
            }
        });
    }

    pub fn a_reader_sees_all_or_nothing(store: &dyn Backend) {
        let bytes = noise(2 << 20);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) || seen == 0 {
                    for object in list(store, "packs/") {
                        assert_eq!(object.bytes, 2 << 20, "a listed object is whole");
                        assert!(store.get(&object.name, None).unwrap() == bytes, "and so are its bytes");
                        seen += 1;
                    }
                }
            });
            for number in 0..5 {
                put(store, &format!("packs/{number}"), bytes.clone());
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    pub fn a_list_of_nothing_is_empty(store: &dyn Backend) {
        assert_eq!(list(store, ""), []);
    }

    pub fn a_list_tells_names_sizes_and_times(store: &dyn Backend) {
        put(store, "config", "12345");
        put(store, "packs/00/a", vec![0; 70_000]);
        let mut objects = list(store, "");
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        let facts: Vec<_> = objects.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
        assert_eq!(facts, [("config", 5), ("packs/00/a", 70_000)]);
        for object in objects {
            let age = Timestamp::now().duration_since(object.modified).abs();
            assert!(age < SignedDuration::from_secs(60), "{} is {age} old", object.name);
        }
    }

    pub fn a_list_shows_each_put_at_once(store: &dyn Backend) {
        for number in 0..20 {
            put(store, &format!("snapshots/{number}"), "x");
            assert_eq!(names(store, "snapshots/").len(), number + 1);
        }
    }

    pub fn a_list_shows_no_deleted_object(store: &dyn Backend) {
        for number in 0..10 {
            put(store, &format!("snapshots/{number}"), "x");
        }
        for number in 0..10 {
            assert!(store.delete(&format!("snapshots/{number}")).unwrap());
            let left = names(store, "snapshots/");
            assert_eq!(left.len(), 9 - number);
            assert!(!left.contains(&format!("snapshots/{number}")));
        }
    }

    pub fn a_prefix_is_a_folder_and_not_the_start_of_a_name(store: &dyn Backend) {
        for name in ["a/1", "a/b/2", "ab/3", "a.b/4", "a-b/5", "z/a/6"] {
            put(store, name, "x");
        }
        assert_eq!(names(store, "a/"), ["a/1", "a/b/2"]);
        assert_eq!(names(store, "a/b/"), ["a/b/2"]);
        assert_eq!(names(store, "ab/"), ["ab/3"]);
        assert_eq!(names(store, "").len(), 6);
    }

    pub fn a_prefix_under_which_nothing_lies_is_empty(store: &dyn Backend) {
        put(store, "packs/00/a", "x");
        for prefix in ["index/", "packs/01/", "packs/00/a/", "pack/"] {
            assert_eq!(list(store, prefix), [], "{prefix}");
        }
    }

    pub fn a_prefix_that_is_none_is_refused(store: &dyn Backend) {
        put(store, "packs/00/a", "x");
        for prefix in ["/", "packs", "packs//", "../", "packs/../", "/packs/", "Packs/"] {
            let outcome = store.list(prefix, &mut |object| panic!("{prefix:?} lists {object:?}"));
            assert!(matches!(outcome, Err(BackendError::BadName { .. })), "{prefix:?}: {outcome:?}");
        }
    }

    pub fn a_list_of_more_than_a_thousand_is_whole(store: &dyn Backend) {
        let name = |number: usize| format!("packs/{:02x}/{number:04}", number % 3);
        thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || (thread..2100).step_by(8).for_each(|number| put(store, &name(number), "x")));
            }
        });
        let mut expected: Vec<String> = (0..2100).map(name).collect();
        expected.sort();
        assert_eq!(names(store, "packs/"), expected);
        assert_eq!(names(store, "packs/01/").len(), 700);
    }

    pub fn an_error_of_the_callback_ends_the_list(store: &dyn Backend) {
        for number in 0..5 {
            put(store, &format!("a/{number}"), "x");
        }
        let mut calls = 0;
        let outcome = store.list("a/", &mut |object| {
            calls += 1;
            if calls < 3 { Ok(()) } else { Err(BackendError::Interrupted { name: object.name, action: "list" }) }
        });
        assert!(matches!(outcome, Err(BackendError::Interrupted { .. })), "{outcome:?}");
        assert_eq!(calls, 3, "no call comes after the error");
    }

    pub fn the_callback_of_a_list_may_use_the_store(store: &dyn Backend) {
        for number in 0..5 {
            put(store, &format!("a/{number}"), number.to_string());
        }
        let deleted = AtomicBool::new(false);
        store
            .list("a/", &mut |object| {
                assert_eq!(store.get(&object.name, None)?, object.name[2..]);
                if !deleted.swap(true, Ordering::Relaxed) {
                    assert!(store.delete(&object.name)?);
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(names(store, "a/").len(), 4);
    }

    pub fn a_delete_says_whether_the_object_was_there(store: &dyn Backend) {
        put(store, "a/b", "x");
        put(store, "empty", "");
        assert!(store.delete("a/b").unwrap());
        assert!(!store.delete("a/b").unwrap());
        assert!(store.delete("empty").unwrap());
        assert_not_found(store.get("a/b", None));
        assert_eq!(list(store, ""), []);
    }

    pub fn a_delete_where_nothing_ever_was_is_no_error(store: &dyn Backend) {
        assert!(!store.delete("nothing").unwrap());
        assert!(!store.delete("no/folder/either").unwrap());
    }

    pub fn a_delete_leaves_the_neighbours(store: &dyn Backend) {
        for name in ["a/1", "a/10", "a/1.x", "b/1"] {
            put(store, name, "x");
        }
        assert!(store.delete("a/1").unwrap());
        assert_eq!(names(store, ""), ["a/1.x", "a/10", "b/1"]);
    }

    pub fn deletes_at_once_leave_nothing_and_fail_nowhere(store: &dyn Backend) {
        put(store, "a/b", "x");
        let trues: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| store.delete("a/b").unwrap())).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert!(trues >= 1, "somebody deleted it");
        assert_eq!(list(store, ""), []);
    }

    pub fn a_deleted_name_can_be_put_again(store: &dyn Backend) {
        put(store, "a/b", "first");
        assert!(store.delete("a/b").unwrap());
        put(store, "a/b", "second");
        assert_eq!(store.get("a/b", None).unwrap(), "second");
    }

    pub fn bad_names_are_refused_by_every_call(store: &dyn Backend) {
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/.",
            "A",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "a\\b",
            "a%2fb",
            "a:b",
            "tmp~/x",
            &too_long,
        ];
        for name in bad {
            let outcomes = [
                store.put(name, Bytes::new()).err(),
                store.get(name, None).err(),
                store.get(name, Some(0..1)).err(),
                store.delete(name).err(),
            ];
            for outcome in outcomes {
                assert!(matches!(outcome, Some(BackendError::BadName { .. })), "{name:?}: {outcome:?}");
            }
        }
        assert_eq!(list(store, ""), []);
    }

    pub fn the_longest_name_works(store: &dyn Backend) {
        let flat = "n".repeat(NAME_BYTES_MAX);
        let deep = "d/".repeat(NAME_BYTES_MAX / 2 - 1) + "dd";
        for name in [&flat, &deep] {
            assert_eq!(name.len(), NAME_BYTES_MAX);
            put(store, name, name.clone());
            assert_eq!(store.get(name, None).unwrap(), name);
        }
        assert_eq!(names(store, ""), [deep.clone(), flat.clone()]);
        assert!(store.delete(&flat).unwrap() && store.delete(&deep).unwrap());
    }

    pub fn names_that_begin_alike_are_different_objects(store: &dyn Backend) {
        let alike = ["a", "a.", "a-", "a_", "a0", "aa", "a.a", "-", "_", "...", ".a", "b/a", "b/a.", "b.a"];
        for name in alike {
            put(store, name, name);
        }
        for name in alike {
            assert_eq!(store.get(name, None).unwrap(), name);
        }
        let mut expected: Vec<_> = alike.to_vec();
        expected.sort_unstable();
        assert_eq!(names(store, ""), expected);
    }

    pub fn errors_name_the_object_and_the_store(store: &dyn Backend) {
        let location = store.properties().location;
        put(store, "a/b", "x");
        for error in [store.get("a/missing", None).unwrap_err(), store.put("a/b", Bytes::new()).unwrap_err()] {
            let text = error.to_string();
            assert!(text.starts_with("a/") && text.contains(&location), "{text:?} names object and store");
        }
    }

    pub fn properties_tell_where_it_is(store: &dyn Backend) {
        let properties = store.properties();
        assert!(!properties.location.is_empty());
        assert!(["local", "s3", "memory"].contains(&properties.kind));
        assert!((1..=64).contains(&properties.parallel_requests));
    }
}

/// What only a folder can get wrong.
mod local_only {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn store() -> (tempfile::TempDir, Local) {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(folder.path().join("repository")).unwrap();
        (folder, store)
    }

    /// Root is denied nothing by permission bits, and only root may mount.
    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_folder_that_is_missing_is_no_store() {
        let folder = tempfile::tempdir().unwrap();
        let error = Local::open(folder.path().join("missing")).err().expect("there is none");
        assert!(matches!(error, BackendError::NoStore { .. }), "{error:?}");
        assert!(error.to_string().contains("vault init"), "{error} says what to type");
    }

    #[test]
    fn a_file_is_no_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Local::open(file.path()).err(), Some(BackendError::Other { .. })));
        assert!(Local::create(file.path()).is_err());
    }

    #[test]
    fn a_folder_that_vanishes_is_no_empty_store() {
        let (_folder, store) = store();
        put(&store, "a/b", "x");
        fs::remove_dir_all(store.root()).unwrap();
        let outcomes = [
            store.list("", &mut |_| Ok(())).err(),
            store.list("a/", &mut |_| Ok(())).err(),
            store.get("a/b", None).err(),
            store.delete("a/b").err(),
            store.put("a/c", Bytes::new()).err(),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Some(BackendError::NoStore { .. })), "{outcome:?}");
        }
        assert!(!store.root().exists(), "and no call makes the folder anew");
    }

    #[test]
    fn creating_a_store_that_is_there_keeps_it() {
        let (_folder, store) = store();
        put(&store, "config", "x");
        assert_eq!(Local::create(store.root()).unwrap().get("config", None).unwrap(), "x");
    }

    #[test]
    fn create_makes_every_folder_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        put(&Local::create(folder.path().join("a/b/c")).unwrap(), "config", "x");
        assert!(folder.path().join("a/b/c/config").is_file(), "an object is the file of its name");
    }

    #[test]
    fn what_is_no_object_is_not_listed() {
        let (_folder, store) = store();
        put(&store, "config", "x");
        for stray in ["README.TXT", ".DS_Store", "tmp~/left-behind", "Folder/inner", "with space", "lost+found/x"] {
            let path = store.root().join(stray);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "stray").unwrap();
        }
        symlink("nowhere", store.root().join("dangling")).unwrap();
        assert_eq!(names(&store, ""), ["config"]);
    }

    #[test]
    fn a_put_leaves_one_file_and_nothing_else() {
        let (_folder, store) = store();
        put(&store, "packs/00/a", "x");
        assert_exists(store.put("packs/00/a", Bytes::from_static(b"y")));
        let temp = store.root().join("tmp~");
        assert_eq!(fs::read_dir(temp).unwrap().count(), 0, "no temporary file stays");
    }

    #[test]
    fn a_relative_path_is_made_absolute_when_opened() {
        let store = Local::open(".").unwrap();
        assert_eq!(store.root(), std::env::current_dir().unwrap(), "so that a process may change its folder");
    }

    #[test]
    fn a_read_only_folder_denies_and_says_so() {
        if is_root() {
            // But a file system mounted read-only denies root too.
            let folder = tempfile::tempdir().unwrap();
            let Some(mount) =
                Mount::tmpfs("local_only::a_read_only_folder_denies_and_says_so", folder.path(), "size=1m")
            else {
                return;
            };
            put(&Local::open(folder.path()).unwrap(), "config", "x");
            assert!(run("mount", &["-o", "remount,ro", &folder.path().to_string_lossy()]));
            denied(folder.path());
            drop(mount);
        } else {
            let (_folder, store) = store();
            put(&store, "config", "x");
            fs::set_permissions(store.root(), fs::Permissions::from_mode(0o500)).unwrap();
            denied(store.root());
            fs::set_permissions(store.root(), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    fn denied(root: &Path) {
        let store = Local::open(root).unwrap();
        for (outcome, verb) in
            [(store.put("new/a", Bytes::new()).err(), "put"), (store.delete("config").err(), "delete")]
        {
            assert!(
                matches!(&outcome, Some(BackendError::Denied { action, .. }) if *action == verb),
                "{verb}: {outcome:?}"
            );
        }
        assert_eq!(store.get("config", None).unwrap(), "x", "reading goes on");
        assert_eq!(names(&store, ""), ["config"]);
    }

    #[test]
    fn a_full_disk_is_no_space_and_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let Some(mount) =
            Mount::tmpfs("local_only::a_full_disk_is_no_space_and_harms_nothing", folder.path(), "size=1m")
        else {
            return;
        };
        let store = Local::create(folder.path().join("repository")).unwrap();
        put(&store, "config", "x");
        let mut stored = 0;
        let error = loop {
            match store.put(&format!("packs/{stored}"), Bytes::from(vec![7; 100_000])) {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, BackendError::NoSpace { .. }), "{error:?}");
        assert!(error.to_string().contains(&*store.root().to_string_lossy()), "{error} names the folder");
        assert!(stored > 3, "some fitted");
        assert_eq!(names(&store, "packs/").len(), stored, "what did not fit left no object");
        assert_eq!(fs::read_dir(store.root().join("tmp~")).unwrap().count(), 0, "and no temporary file");
        for number in 0..stored {
            assert_eq!(store.get(&format!("packs/{number}"), None).unwrap(), vec![7; 100_000]);
        }
        assert!(store.delete("packs/0").unwrap(), "a full disk can be emptied");
        put(&store, "packs/again", vec![7; 90_000]);
        drop(mount);
    }

    #[test]
    fn no_inodes_left_is_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let Some(mount) = Mount::tmpfs("local_only::no_inodes_left_is_no_space", folder.path(), "nr_inodes=10") else {
            return;
        };
        let store = Local::create(folder.path().join("repository")).unwrap();
        let error = (0..20).find_map(|number| store.put(&format!("a{number}/b"), Bytes::new()).err());
        assert!(matches!(error, Some(BackendError::NoSpace { .. })), "{error:?}");
        drop(mount);
    }

    /// A file system of its own, gone when dropped.
    struct Mount<'a>(&'a Path);

    impl<'a> Mount<'a> {
        /// `None`, and the test named as skipped, where mounting is not allowed.
        fn tmpfs(test: &str, at: &'a Path, options: &str) -> Option<Self> {
            if is_root() && run("mount", &["-t", "tmpfs", "-o", options, "vault-test", &at.to_string_lossy()]) {
                return Some(Self(at));
            }
            skipped(test, "mounting a tmpfs needs root");
            None
        }
    }

    impl Drop for Mount<'_> {
        fn drop(&mut self) {
            assert!(run("umount", &[&self.0.to_string_lossy()]), "the test's own mount is taken down");
        }
    }

    fn run(program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    }
}

/// What the decorators do when they do something.
mod decorators {
    use super::*;

    #[test]
    fn recording_remembers_calls_in_order_with_their_outcomes() {
        let store = Recording::new(Memory::new());
        put(&store, "packs/a", "12345");
        let _ = store.put("packs/a", Bytes::from_static(b"again"));
        store.get("packs/a", Some(1..3)).unwrap();
        list(&store, "packs/");
        store.delete("packs/a").unwrap();
        let calls: Vec<_> = store.calls().into_iter().map(|call| (call.kind, call.amount, call.state)).collect();
        assert_eq!(
            calls,
            [
                (CallKind::Put, 5, CallState::Done),
                (CallKind::Put, 0, CallState::Failed),
                (CallKind::Get, 2, CallState::Done),
                (CallKind::List, 1, CallState::Done),
                (CallKind::Delete, 0, CallState::Done),
            ]
        );
        assert_eq!(store.calls()[2].range, Some(1..3));
        assert_eq!((store.count(CallKind::Put, "packs/"), store.count(CallKind::Put, "index/")), (2, 0));
        assert_eq!(store.bytes(CallKind::Put, ""), 5, "only what was stored counts");
        assert_eq!(store.take().len(), 5);
        assert_eq!(store.calls(), []);
    }

    #[test]
    fn a_fault_hits_the_call_it_names_and_no_other() {
        let fail = Fault::FailBefore(Failure::Unreachable);
        let store = Faults::new(Memory::new(), [Rule::new(CallKind::Put, fail).under("packs/").at(2)]);
        put(&store, "packs/1", "x");
        put(&store, "index/1", "x");
        let second = store.put("packs/2", Bytes::new());
        assert!(matches!(second, Err(BackendError::Unreachable { .. })), "{second:?}");
        assert_not_found(store.get("packs/2", None));
        put(&store, "packs/2", "x");
    }

    #[test]
    fn from_a_call_on_everything_fails_as_if_the_process_had_died() {
        let memory = Memory::new();
        let store = Faults::new(memory.clone(), [Rule::new(None, Fault::FailBefore(Failure::Interrupted)).from(3)]);
        put(&store, "a", "x");
        put(&store, "b", "x");
        for _ in 0..3 {
            assert!(matches!(store.put("c", Bytes::new()), Err(BackendError::Interrupted { .. })));
            assert!(matches!(store.get("a", None), Err(BackendError::Interrupted { .. })));
        }
        assert_eq!(memory.fork().names(), ["a", "b"], "what the crash left");
    }

    #[test]
    fn a_lost_answer_leaves_the_object() {
        let store =
            Faults::new(Memory::new(), [Rule::new(CallKind::Put, Fault::FailAfter(Failure::Unreachable)).at(1)]);
        assert!(matches!(store.put("a", Bytes::from_static(b"x")), Err(BackendError::Unreachable { .. })));
        assert_eq!(store.inner().names(), ["a"]);
        assert_exists(store.put("a", Bytes::from_static(b"x")));
    }

    #[test]
    fn every_failure_gives_its_error() {
        for failure in [
            Failure::Unreachable,
            Failure::Denied,
            Failure::NoSpace,
            Failure::NotFound,
            Failure::AlreadyExists,
            Failure::Damaged,
            Failure::Interrupted,
        ] {
            let store = Faults::new(Memory::new(), [Rule::new(CallKind::Delete, Fault::FailBefore(failure))]);
            let error = format!("{:?}", store.delete("a").unwrap_err());
            assert!(error.starts_with(&format!("{failure:?}")), "{failure:?} gives {error}");
        }
    }

    #[test]
    fn gets_can_be_cut_and_bent() {
        let memory = Memory::new();
        put(&memory, "a", "01234567");
        let bent =
            |fault, range| Faults::new(memory.clone(), [Rule::new(CallKind::Get, fault)]).get("a", range).unwrap();
        assert_eq!(bent(Fault::Truncate(3), None), "012");
        assert_eq!(bent(Fault::Truncate(99), None), "01234567");
        assert_eq!(bent(Fault::Flip { bit: 8 }, None), "00234567");
        assert_eq!(bent(Fault::Flip { bit: usize::MAX }, Some(0..2)), [b'0', b'1' ^ 0x80][..]);
        assert_eq!(memory.get("a", None).unwrap(), "01234567", "what is stored stays");
    }

    #[test]
    fn a_list_can_leave_things_out() {
        let store = Faults::new(Memory::new(), [Rule::new(CallKind::List, Fault::Omit("/2".to_owned())).times(1)]);
        for name in ["a/1", "a/2", "a/3"] {
            put(&store, name, "x");
        }
        assert_eq!(names(&store, ""), ["a/1", "a/3"]);
        assert_eq!(names(&store, ""), ["a/1", "a/2", "a/3"], "once only");
    }

    /// The process that [`a_kill_ends_the_process_before_or_after_the_put`] starts and looks at.
    #[test]
    #[ignore = "dies; started by another test"]
    fn dies_at_the_second_put() {
        let folder = std::env::var("VAULT_TEST_DIE_IN").unwrap();
        let fault =
            if std::env::var_os("VAULT_TEST_DIE_AFTER").is_some() { Fault::KillAfter } else { Fault::KillBefore };
        let store = Faults::new(Local::open(folder).unwrap(), [Rule::new(CallKind::Put, fault).at(2)]);
        for number in 0..4 {
            put(&store, &format!("packs/{number}"), "x");
        }
    }

    #[test]
    fn a_kill_ends_the_process_before_or_after_the_put() {
        use std::os::unix::process::ExitStatusExt;
        for (after, left) in [(false, &["packs/0"][..]), (true, &["packs/0", "packs/1"])] {
            let folder = tempfile::tempdir().unwrap();
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--ignored", "--exact", "decorators::dies_at_the_second_put"]);
            child.env("VAULT_TEST_DIE_IN", folder.path()).env_remove("VAULT_TEST_DIE_AFTER");
            if after {
                child.env("VAULT_TEST_DIE_AFTER", "1");
            }
            let output = child.output().unwrap();
            assert_eq!(output.status.signal(), Some(9), "{output:?}");
            assert_eq!(names(&Local::open(folder.path()).unwrap(), ""), left);
        }
    }

    #[test]
    fn a_limit_makes_the_next_call_wait() {
        let rates = Rates { up: NonZeroU64::new(1_000_000), down: NonZeroU64::new(1_000_000) };
        let store = Limited::new(Memory::new(), rates, Progress::default());
        let start = Instant::now();
        for number in 0..4 {
            put(&store, &format!("{number}"), vec![0; 100_000]);
        }
        // A lower bound cannot fail on a slow machine: the wait is at least as long as booked.
        assert!(start.elapsed() >= Duration::from_millis(300), "three waits of 100 ms, took {:?}", start.elapsed());
        let start = Instant::now();
        for _ in 0..3 {
            store.get("0", None).unwrap();
        }
        store.get("0", Some(0..10)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(300), "three more for the gets, took {:?}", start.elapsed());
    }

    #[test]
    fn a_wait_for_bandwidth_can_be_cancelled() {
        let progress = Progress::default();
        let rates = Rates { up: NonZeroU64::new(1), down: None };
        let store = Limited::new(Memory::new(), rates, progress.clone());
        put(&store, "a", vec![0; 100_000]); // the next one waits for a day
        let outcome = thread::scope(|scope| {
            let waiting = scope.spawn(|| store.put("b", Bytes::new()));
            thread::sleep(Duration::from_millis(20));
            progress.cancel();
            waiting.join().unwrap()
        });
        assert!(matches!(outcome, Err(BackendError::Interrupted { .. })), "{outcome:?}");
        assert_not_found(store.get("b", None));
    }
}

/// What a probe says of good and of bad stores.
mod probes {
    use super::*;

    fn verdict_of<'a>(report: &'a ProbeReport, name: &str) -> &'a Finding {
        report.findings.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("{name} in {report:?}"))
    }

    #[test]
    fn a_good_store_passes_and_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::create(folder.path()).unwrap();
        let memory = Memory::new();
        for store in [&local as &dyn Backend, &memory] {
            put(store, "config", "x");
            let report = probe(store);
            assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
            assert_eq!(report.location, store.properties().location);
            assert!(report.findings.len() >= 8);
            assert_eq!(names(store, ""), ["config"]);
        }
    }

    /// A store that breaks the contract in one way.
    struct Broken {
        inner: Memory,
        how: How,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum How {
        Replaces,
        ReplacesWhenAtOnce,
        SaysExistsAndReplaces,
        RangesAreShort,
        RangesAreIgnored,
        DeletesNothing,
        DeleteSaysNo,
        ListIsEmpty,
    }

    impl Backend for Broken {
        fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
            let existed = self.inner.get(name, None).is_ok();
            match self.how {
                How::Replaces => self.inner.overwrite(name, bytes),
                // Two puts that see nothing there at the same time.
                How::ReplacesWhenAtOnce if !existed => {
                    thread::sleep(Duration::from_millis(500));
                    self.inner.overwrite(name, bytes);
                }
                How::SaysExistsAndReplaces if existed => {
                    self.inner.overwrite(name, bytes.clone());
                    return self.inner.put(name, bytes);
                }
                _ => return self.inner.put(name, bytes),
            }
            Ok(PutReceipt { store_time: Timestamp::now() })
        }
        fn get(&self, name: &str, range: Option<std::ops::Range<u64>>) -> Result<Bytes, BackendError> {
            match (self.how, range) {
                (How::RangesAreIgnored, Some(_)) => self.inner.get(name, None),
                (How::RangesAreShort, Some(range)) => {
                    let bytes = self.inner.get(name, None)?;
                    Ok(bytes.slice(range.start as usize..(range.end as usize).min(bytes.len())))
                }
                (_, range) => self.inner.get(name, range),
            }
        }
        fn list(
            &self,
            prefix: &str,
            each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
        ) -> Result<(), BackendError> {
            if self.how == How::ListIsEmpty { Ok(()) } else { self.inner.list(prefix, each) }
        }
        fn delete(&self, name: &str) -> Result<bool, BackendError> {
            match self.how {
                How::DeletesNothing => Ok(true),
                How::DeleteSaysNo => self.inner.delete(name).map(|_| false),
                _ => self.inner.delete(name),
            }
        }
        fn properties(&self) -> Properties {
            self.inner.properties()
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        for (how, finding) in [
            (How::Replaces, "never replaces an object"),
            (How::Replaces, "takes one of several puts at once"),
            (How::ReplacesWhenAtOnce, "takes one of several puts at once"),
            (How::SaysExistsAndReplaces, "never replaces an object"),
            (How::RangesAreShort, "gives parts of them"),
            (How::RangesAreIgnored, "gives parts of them"),
            (How::DeletesNothing, "removes objects"),
            (How::DeleteSaysNo, "removes objects"),
            (How::ListIsEmpty, "lists what it holds"),
        ] {
            let report = probe(&Broken { inner: Memory::new(), how });
            assert_eq!(verdict_of(&report, finding).verdict, Verdict::Fail, "{finding}: {report:#?}");
            assert_eq!(report.verdict(), Verdict::Fail);
        }
    }

    #[test]
    fn a_store_that_cannot_be_reached_or_written_is_a_finding() {
        for failure in [Failure::Unreachable, Failure::Denied, Failure::NoSpace] {
            let store = Faults::new(Memory::new(), [Rule::new(CallKind::Put, Fault::FailBefore(failure))]);
            let report = probe(&store);
            assert_eq!(verdict_of(&report, "takes objects").verdict, Verdict::Fail, "{failure:?}");
        }
    }

    #[test]
    fn credentials_that_may_not_delete_are_a_warning() {
        let store = Faults::new(Memory::new(), [Rule::new(CallKind::Delete, Fault::FailBefore(Failure::Denied))]);
        let report = probe(&store);
        assert_eq!(report.verdict(), Verdict::Warn, "{report:#?}");
        assert_eq!(verdict_of(&report, "removes objects").verdict, Verdict::Warn);
        assert_eq!(names(store.inner(), "probe/").len(), 2, "what could not be removed is named");
        assert!(names(store.inner(), "").iter().all(|name| report.findings.iter().any(|f| f.detail.contains(name))));
    }

    #[test]
    fn a_clock_that_is_off_is_a_warning_that_says_by_how_much() {
        for (ahead, which) in [(3600, "ahead of"), (-3600, "behind")] {
            let memory = Memory::new();
            memory.set_clock_ahead(SignedDuration::from_secs(ahead));
            let report = probe(&memory);
            let clock = verdict_of(&report, "has the same time");
            assert_eq!(clock.verdict, Verdict::Warn);
            let by = clock.detail.split(' ').find_map(|word| word.parse::<u64>().ok());
            assert!(clock.detail.contains(which) && by.is_some_and(|by| (3500..=3600).contains(&by)), "{clock:?}");
        }
    }

    #[test]
    fn what_a_dead_probe_left_is_removed_a_day_later() {
        let memory = Memory::new();
        memory.set_clock_ahead(SignedDuration::from_hours(-25));
        put(&memory, "probe/00/first", "x");
        memory.set_clock_ahead(SignedDuration::ZERO);
        put(&memory, "probe/01/first", "x");
        probe(&memory);
        assert_eq!(memory.names(), ["probe/01/first"], "the fresh one may be another host's");
    }
}

/// What only S3 can get wrong, on a real MinIO. With a store that misbehaves: tests/s3.rs.
#[cfg(feature = "s3")]
mod minio_only {
    use vault::backend::probe::probe_location;
    use vault::backend::{S3, location};

    use super::*;

    #[test]
    fn a_missing_bucket_is_no_store_and_says_how_to_make_it() {
        let Some(minio) = minio("a_missing_bucket_is_no_store_and_says_how_to_make_it") else { return };
        let store = S3::open("vault-no-such-bucket", "p", minio.options()).unwrap();
        let outcomes = [
            store.put("config", Bytes::new()).err(),
            store.get("config", None).err(),
            store.get("config", Some(0..1)).err(),
            store.get("config", Some(0..0)).err(),
            store.list("", &mut |_| Ok(())).err(),
            store.delete("config").err(),
        ];
        for outcome in outcomes {
            let error = outcome.expect("there is no bucket");
            assert!(matches!(error, BackendError::NoStore { .. }), "{error:?}");
            assert!(error.to_string().contains("mb s3://vault-no-such-bucket"), "{error}");
        }
    }

    #[test]
    fn wrong_credentials_are_denied_and_not_shown() {
        let Some(minio) = minio("wrong_credentials_are_denied_and_not_shown") else { return };
        for (access_key, says) in
            [(minio.access_key.as_str(), "AWS_SECRET_ACCESS_KEY"), ("nobody", "AWS_ACCESS_KEY_ID")]
        {
            let options = minio::options(&minio.endpoint, access_key, "wrong-secret-canary");
            let store = S3::open(minio.bucket(), "p", options).unwrap();
            let outcomes = [
                store.put("config", Bytes::new()).err(),
                store.get("config", None).err(),
                store.list("", &mut |_| Ok(())).err(),
                store.delete("config").err(),
            ];
            for outcome in outcomes {
                let error = outcome.expect("the credentials are wrong");
                assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
                let text = format!("{error} {error:?}");
                assert!(text.contains(says) && !text.contains("wrong-secret-canary"), "{text}");
            }
        }
    }

    #[test]
    fn two_prefixes_of_a_bucket_do_not_see_each_other() {
        let Some(minio) = minio("two_prefixes_of_a_bucket_do_not_see_each_other") else { return };
        let (one, other) = (minio.store("prefix"), minio.store("prefix-longer"));
        put(&one, "a", "one");
        put(&other, "a", "other");
        assert_eq!((names(&one, ""), names(&other, "")), (vec!["a".to_owned()], vec!["a".to_owned()]));
        assert_eq!((one.get("a", None).unwrap(), other.get("a", None).unwrap()), ("one".into(), "other".into()));
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let Some(minio) = minio("a_wrong_checksum_is_refused") else { return };
        let store = minio.store("checksum");
        assert!(store.refuses_wrong_checksum("probe/x").unwrap());
        assert_eq!(names(&store, ""), [""; 0], "and nothing is stored");
    }

    #[test]
    fn a_bucket_passes_the_probe() {
        let Some(minio) = minio("a_bucket_passes_the_probe") else { return };
        let store = minio.store("probed");
        let report = probe(&store);
        assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
        assert_eq!(names(&store, ""), [""; 0]);
    }

    #[test]
    fn a_url_and_the_environment_are_enough() {
        let Some(minio) = minio("a_url_and_the_environment_are_enough") else { return };
        let url = format!("s3://{}/by/url", minio.bucket());
        // In a process of its own, whose environment is this test's.
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "minio_only::opens_by_url"]).env("VAULT_TEST_URL", url);
        for name in
            ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"]
        {
            child.env_remove(name);
        }
        child.env("MINIO_ENDPOINT", &minio.endpoint).env("MINIO_ACCESS_KEY", &minio.access_key);
        let output = child.env("MINIO_SECRET_KEY", &minio.secret_key).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[test]
    fn without_credentials_it_says_what_to_set() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "minio_only::opens_without_credentials"]).env_clear();
        let output = child.env("HOME", "/nonexistent").env("MINIO_ENDPOINT", "127.0.0.1:1").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[test]
    #[ignore = "started by another test, with an environment of its own"]
    fn opens_without_credentials() {
        let error = location::open("s3://bucket/prefix").err().expect("there are no credentials");
        assert!(matches!(error, BackendError::Denied { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("AWS_ACCESS_KEY_ID") && !text.contains('\n'), "{text}");
    }

    #[test]
    #[ignore = "started by another test, with an environment of its own"]
    fn opens_by_url() {
        let url = std::env::var("VAULT_TEST_URL").unwrap();
        let store = location::open(&url).unwrap();
        put(&*store, "config", "x");
        assert_eq!(store.properties().location, url);
        let report = probe_location(&url.parse().unwrap()).unwrap();
        assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
        assert!(report.findings.iter().any(|finding| finding.name == "compares checksums"), "{report:#?}");
    }
}

// ---- helpers ---------------------------------------------------------------------------------------------------

fn put(store: &dyn Backend, name: &str, bytes: impl Into<Vec<u8>>) {
    store.put(name, Bytes::from(bytes.into())).unwrap_or_else(|error| panic!("put {name}: {error}"));
}

fn list(store: &dyn Backend, prefix: &str) -> Vec<ObjectInfo> {
    let mut objects = Vec::new();
    let listed = store.list(prefix, &mut |object| {
        objects.push(object);
        Ok(())
    });
    listed.unwrap_or_else(|error| panic!("list {prefix:?}: {error}"));
    objects
}

fn names(store: &dyn Backend, prefix: &str) -> Vec<String> {
    let mut names: Vec<_> = list(store, prefix).into_iter().map(|object| object.name).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_exists<T: std::fmt::Debug>(outcome: Result<T, BackendError>) {
    assert!(matches!(outcome, Err(BackendError::AlreadyExists { .. })), "{outcome:?}");
}

#[track_caller]
fn assert_not_found<T: std::fmt::Debug>(outcome: Result<T, BackendError>) {
    assert!(matches!(outcome, Err(BackendError::NotFound { .. })), "{outcome:?}");
}

#[track_caller]
fn assert_short(outcome: Result<Bytes, BackendError>, actual: u64, wanted: u64) {
    match outcome {
        Err(BackendError::ShortRange { actual_bytes, wanted_bytes, .. }) => {
            assert_eq!((actual_bytes, wanted_bytes), (actual, wanted));
        }
        other => panic!("{other:?}"),
    }
}

/// Bytes without a pattern, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// Names a test that cannot run here, past the capture of the test harness.
fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stdout().lock(), "SKIPPED backends::{test}: {why}");
}

/// The MinIO that `tests/run` started; `None`, and the test named as skipped, without one.
#[cfg(feature = "s3")]
fn minio(test: &str) -> Option<minio::Minio> {
    let minio = minio::find();
    if minio.is_none() {
        skipped(&format!("s3::{test}"), "VAULT_TEST_S3_ENDPOINT is not set; tests/run sets it");
    }
    minio
}

#[cfg(feature = "s3")]
mod minio {
    use std::sync::OnceLock;

    use vault::backend::{S3, S3Keys, S3Options, S3Times};

    pub struct Minio {
        pub endpoint: String,
        pub access_key: String,
        pub secret_key: String,
    }

    pub fn find() -> Option<Minio> {
        Some(Minio {
            endpoint: std::env::var("VAULT_TEST_S3_ENDPOINT").ok()?,
            access_key: std::env::var("VAULT_TEST_S3_ACCESS_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"),
            secret_key: std::env::var("VAULT_TEST_S3_SECRET_KEY").expect("set beside VAULT_TEST_S3_ENDPOINT"),
        })
    }

    impl Minio {
        pub fn options(&self) -> S3Options {
            options(&self.endpoint, &self.access_key, &self.secret_key)
        }

        /// An empty store: the part of this run's bucket that belongs to `test`.
        pub fn store(&self, test: &str) -> S3 {
            S3::open(self.bucket(), test, self.options()).unwrap()
        }

        /// This run's bucket.
        pub fn bucket(&self) -> &'static str {
            static BUCKET: OnceLock<String> = OnceLock::new();
            BUCKET.get_or_init(|| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
                let bucket = format!("vault-backends-{}-{now}", std::process::id());
                S3::open(&bucket, "", self.options()).unwrap().create_bucket().unwrap();
                bucket
            })
        }
    }

    pub fn options(endpoint: &str, access_key: &str, secret_key: &str) -> S3Options {
        S3Options {
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".to_owned()),
            times: S3Times::default(),
            keys: Some(S3Keys {
                access_key_id: access_key.to_owned(),
                secret_access_key: secret_key.to_owned().into(),
                session_token: None,
            }),
        }
    }
}
