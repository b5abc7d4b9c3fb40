//! One conformance suite, every backend: what `vault::backend::Backend` promises, case by case, in memory, in a folder, in a
//! bucket of a real MinIO, and through each decorator that does nothing. Then what only one of them can get wrong.
//!
//! MinIO: VAULT_TEST_S3_ENDPOINT, VAULT_TEST_S3_ACCESS_KEY, VAULT_TEST_S3_SECRET_KEY, as `tests/run` sets them. Without
//! them its cases are named on stdout as skipped.

use std::io::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use vault::backend::{Backend, BackendError, Local, Memory, NAME_BYTES_MAX, OBJECT_BYTES_MAX, ObjectInfo};

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
    stores: memory, local, s3;
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

// ---- helpers ---------------------------------------------------------------------------------------------------

fn put(store: &dyn Backend, name: &str, bytes: impl Into<Vec<u8>>) {
    store.put(name, Bytes::from(bytes.into())).unwrap_or_else(|error| panic!("put {name}: {error}"));
}

fn list(store: &dyn Backend, prefix: &str) -> Vec<ObjectInfo> {
    let mut objects = Vec::new();
    store
        .list(prefix, &mut |object| Ok(objects.push(object)))
        .unwrap_or_else(|error| panic!("list {prefix:?}: {error}"));
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
