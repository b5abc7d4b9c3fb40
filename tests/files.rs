//! Folders out of a file system and back: what is taken in, what is not read again, and what hostile names get.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, mkfifoat, utimensat};
use serde_json::{Map, Value, json};
use tempfile::{TempDir, tempdir};
use vault::backend::Backend;
use vault::backend::memory::Memory as MemoryBackend;
use vault::format::manifest::{Item, StreamRef};
use vault::ops::restore::SnapshotItems;
use vault::ops::snapshot::{SnapshotError, SnapshotOptions};
use vault::pipeline::snapshot::WriteOptions;
use vault::progress::Progress;
use vault::repo::snapshots::Snapshot;
use vault::repo::{Places, Repository};
use vault::seal::slot::Secret;
use vault::source::files::{
    FilesError, FilesOptions, FilesReport, FilesRestoreOptions, Overwrite, Symlinks, restore, restore_stream, snapshot,
};
use vault::source::{ItemDone, ItemFacts, ItemSink, ItemSource, ItemStream, SourceFacts};

/// Longer than the margin within which a changed file may not be trusted.
const AT_REST: Duration = Duration::from_millis(3100);

type OnWrite = Box<dyn Fn(&str) + Send + Sync>;

/// A snapshot in memory: a sink while it is taken, a source afterwards.
#[derive(Default)]
struct Memory {
    items: Mutex<BTreeMap<u64, (Item, Vec<u8>)>>,
    /// Bytes by hash, also of the parent's items.
    known: Mutex<BTreeMap<String, Vec<u8>>>,
    bytes_read: AtomicU64,
    reused: AtomicU64,
    discarded: AtomicU64,
    /// Called with the path of each file on its first write.
    on_write: Option<OnWrite>,
}

impl Memory {
    fn after(parent: &Self) -> Self {
        Self { known: Mutex::new(parent.known.lock().unwrap().clone()), ..Self::default() }
    }

    /// A snapshot that no vault has written.
    fn by_hand(items: Vec<(Item, &[u8])>) -> Self {
        let items: BTreeMap<u64, _> =
            items.into_iter().enumerate().map(|(at, (item, bytes))| (at as u64, (item, bytes.to_vec()))).collect();
        let known = items.values().map(|(item, bytes)| (item.hash.clone(), bytes.clone())).collect();
        Self { items: Mutex::new(items), known: Mutex::new(known), ..Self::default() }
    }

    fn item(&self, path: &str) -> Item {
        let items = self.items.lock().unwrap();
        let found = items.values().find(|(item, _)| item.path == path);
        found.unwrap_or_else(|| panic!("{path} is not in {:?}", self.paths())).0.clone()
    }

    fn bytes_of(&self, path: &str) -> Vec<u8> {
        self.known.lock().unwrap()[&self.item(path).hash].clone()
    }

    fn paths(&self) -> Vec<String> {
        self.items.lock().unwrap().values().map(|(item, _)| format!("{} {}", item.kind, item.path)).collect()
    }
}

struct MemoryStream<'m> {
    memory: &'m Memory,
    order: u64,
    path: String,
    kind: String,
    bytes: Vec<u8>,
}

impl ItemSink for Memory {
    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
        vault::format::manifest::check_item_path(path).map_err(io::Error::other)?;
        Ok(Box::new(MemoryStream { memory: self, order, path: path.into(), kind: kind.into(), bytes: Vec::new() }))
    }

    fn reuse(&self, order: u64, unchanged: &Item, facts: ItemFacts) -> io::Result<bool> {
        self.reused.fetch_add(1, Relaxed);
        let bytes = self.known.lock().unwrap()[&unchanged.hash].clone();
        let item = Item { meta: facts.meta, ..unchanged.clone() };
        assert!(self.items.lock().unwrap().insert(order, (item, bytes)).is_none(), "order {order} comes twice");
        Ok(true)
    }
}

impl Write for MemoryStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let (Some(on_write), true) = (&self.memory.on_write, self.bytes.is_empty()) {
            on_write(&self.path);
        }
        self.memory.bytes_read.fetch_add(bytes.len() as u64, Relaxed);
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ItemStream for MemoryStream<'_> {
    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<ItemDone> {
        let mut item = item(&self.path, &self.kind, Value::Object(facts.meta), &self.bytes);
        item.rows = facts.rows;
        let done = ItemDone { bytes: item.bytes, hash: blake3::hash(&self.bytes) };
        self.memory.known.lock().unwrap().insert(item.hash.clone(), self.bytes.clone());
        let before = self.memory.items.lock().unwrap().insert(self.order, (item, self.bytes));
        assert!(before.is_none(), "order {} comes twice", self.order);
        Ok(done)
    }

    fn discard(self: Box<Self>) -> io::Result<()> {
        self.memory.discarded.fetch_add(1, Relaxed);
        Ok(())
    }
}

impl ItemSource for Memory {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        let items: Vec<_> = self.items.lock().unwrap().values().map(|(item, _)| item.clone()).collect();
        items.into_iter().try_for_each(each)
    }

    fn read_item(&self, item: &Item, out: &mut dyn Write) -> io::Result<()> {
        let bytes = self.known.lock().unwrap()[&item.hash].clone();
        bytes.chunks(100_000).try_for_each(|piece| out.write_all(piece))
    }
}

fn item(path: &str, kind: &str, meta: Value, bytes: &[u8]) -> Item {
    let Value::Object(meta) = meta else { panic!("meta is an object") };
    Item {
        path: path.to_owned(),
        kind: kind.to_owned(),
        bytes: bytes.len() as u64,
        hash: blake3::hash(bytes).to_hex().to_string(),
        rows: None,
        bytes_new: 0,
        chunker: 0,
        meta,
        stream: StreamRef::default(),
    }
}

fn file<'b>(path: &str, bytes: &'b [u8]) -> (Item, &'b [u8]) {
    (item(path, "file", json!({}), bytes), bytes)
}

fn folder(path: &str) -> (Item, &'static [u8]) {
    (item(path, "folder", json!({}), b""), b"")
}

fn link(path: &str, target: &str) -> (Item, &'static [u8]) {
    (item(path, "symlink", json!({ "target": target }), b""), b"")
}

fn hardlink(path: &str, target: &str) -> (Item, &'static [u8]) {
    (item(path, "hardlink", json!({ "target": target }), b""), b"")
}

fn options(paths: &[&Path]) -> FilesOptions {
    FilesOptions { paths: paths.iter().map(|path| path.to_path_buf()).collect(), ..FilesOptions::default() }
}

fn take(options: &FilesOptions, parent: Option<&Memory>) -> (Memory, SourceFacts) {
    let memory = parent.map_or_else(Memory::default, Memory::after);
    let facts = take_into(&memory, options, parent).expect("the folder can be read");
    (memory, facts)
}

fn take_into(memory: &Memory, options: &FilesOptions, parent: Option<&Memory>) -> Result<SourceFacts, FilesError> {
    let facts = snapshot(options, parent.map(|parent| parent as &dyn ItemSource), memory, &Progress::default())?;
    let items = memory.items.lock().unwrap();
    let orders: Vec<u64> = items.keys().copied().collect();
    assert_eq!(orders, (0..items.len() as u64).collect::<Vec<_>>(), "every order is used once");
    Ok(facts)
}

fn give(source: &Memory, options: &FilesRestoreOptions) -> Result<FilesReport, FilesError> {
    restore(options, source, &Progress::default())
}

fn everything(target: &Path) -> FilesRestoreOptions {
    FilesRestoreOptions { symlinks: Symlinks::All, ..FilesRestoreOptions::new(target) }
}

/// Everything below a folder in one sorted list: kind, name, mode, owner, time, content.
fn listing(folder: &Path) -> Vec<String> {
    fn add(path: &Path, name: &Path, out: &mut Vec<String>) {
        let stat = fs::symlink_metadata(path).unwrap();
        let kind = stat.file_type();
        let what = if kind.is_dir() {
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link to {:?}", fs::read_link(path).unwrap())
        } else {
            format!("file {} of {} bytes, {} names", blake3::hash(&fs::read(path).unwrap()), stat.len(), stat.nlink())
        };
        let (mode, uid, gid) = (stat.mode() & 0o7777, stat.uid(), stat.gid());
        out.push(format!("{name:?} {what} {mode:o} {uid} {gid} {}.{:09}", stat.mtime(), stat.mtime_nsec()));
        if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                add(&entry.path(), &name.join(entry.file_name()), out);
            }
        }
    }
    let mut out = Vec::new();
    add(folder, Path::new(""), &mut out);
    out.sort();
    out
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times can be set");
}

/// A folder `data` with every kind of thing in it.
fn every_kind() -> (TempDir, PathBuf) {
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir_all(data.join("sub/deeper")).unwrap();
    fs::create_dir(data.join("empty folder")).unwrap();
    fs::write(data.join("empty"), b"").unwrap();
    fs::write(data.join("a"), b"first").unwrap();
    fs::write(data.join("sub.txt"), b"sorts between sub and what it holds, if sorted badly").unwrap();
    fs::write(data.join("sub/big"), vec![7; 3_000_001]).unwrap();
    fs::write(data.join("sub/deeper/x"), b"deep").unwrap();
    fs::write(data.join("Größe – 大きさ 🦀"), b"unicode").unwrap();
    fs::write(data.join(OsStr::from_bytes(b"caf\xe9 \xff")), b"latin-1").unwrap();
    fs::write(data.join("100% new\nline\t"), b"odd").unwrap();
    fs::write(data.join("back\\slash \"quoted\""), b"odd too").unwrap();
    fs::write(data.join("...x"), b"dots").unwrap();
    fs::hard_link(data.join("a"), data.join("sub/another name of a")).unwrap();
    fs::hard_link(data.join("a"), data.join("z third name of a")).unwrap();
    symlink("sub/big", data.join("link")).unwrap();
    symlink("nowhere/at all", data.join("dangling")).unwrap();
    symlink("../a", data.join("sub/up")).unwrap();
    symlink("/etc/passwd", data.join("absolute")).unwrap();
    symlink(OsStr::from_bytes(b"caf\xe9 \xff"), data.join("to latin")).unwrap();
    fs::set_permissions(data.join("sub.txt"), Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(data.join("empty"), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(data.join("empty folder"), Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(data.join("sub/deeper"), Permissions::from_mode(0o500)).unwrap();
    set_time(&data.join("sub.txt"), -86_400, 123_456_789);
    set_time(&data.join("empty"), 0, 0);
    set_time(&data.join("link"), 1_000_000_000, 1);
    set_time(&data.join("sub/deeper"), 1_600_000_000, 999_999_999);
    set_time(&data.join("sub"), 1_600_000_001, 0);
    set_time(&data, 1_600_000_002, 0);
    (top, data)
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let (_top, data) = every_kind();
    let (taken, facts) = take(&options(&[&data]), None);
    assert_eq!(facts.warnings, Vec::<String>::new());
    assert!(taken.paths().contains(&"file data/caf%E9 %FF".to_owned()), "{:?}", taken.paths());
    assert!(taken.paths().contains(&"file data/100%25 new%0Aline%09".to_owned()), "{:?}", taken.paths());
    let target = tempdir().unwrap();
    let report = give(&taken, &everything(target.path())).expect("it restores");
    assert_eq!(listing(&data), listing(&target.path().join("data")));
    let counts = (report.files, report.folders, report.symlinks, report.hardlinks, report.missing);
    assert_eq!(counts, (10, 4, 5, 2, 0));
    assert_eq!(report.warnings, Vec::<String>::new());
    let left: Vec<_> = fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["data"], "no note and no partial file is left");
}

#[test]
fn items_stand_in_tree_order_whatever_the_number_of_readers() {
    let (_top, data) = every_kind();
    let (one, _) = take(&FilesOptions { jobs: 1.try_into().ok(), ..options(&[&data]) }, None);
    let (many, _) = take(&FilesOptions { jobs: 8.try_into().ok(), ..options(&[&data]) }, None);
    assert_eq!(one.paths(), many.paths());
    let place = |path: &str| one.paths().iter().position(|found| found.ends_with(path)).expect(path);
    assert!(place("folder data/sub") < place("data/sub/big"), "a folder comes before what it holds");
    assert!(place("data/sub/deeper/x") < place("data/sub.txt"), "and that before the next name");
}

#[test]
fn unchanged_files_are_not_opened() {
    let (_top, data) = every_kind();
    std::thread::sleep(AT_REST);
    let (first, _) = take(&options(&[&data]), None);
    fs::write(data.join("sub/deeper/x"), b"changed").unwrap();
    fs::write(data.join("new"), b"new").unwrap();
    let watch = Opens::watch(&[&data, &data.join("sub"), &data.join("sub/deeper")]);
    let (second, _) = take(&options(&[&data]), Some(&first));
    let mut opened = watch.files_opened();
    opened.sort();
    opened.dedup();
    assert_eq!(opened, ["new", "x"], "only what is new or changed was opened");
    assert_eq!(second.reused.load(Relaxed), 9);
    assert_eq!(second.bytes_read.load(Relaxed), 10);
    assert_eq!(second.bytes_of("data/sub/deeper/x"), b"changed");
    assert_eq!(second.item("data/sub/big").meta, first.item("data/sub/big").meta);
    // And the snapshot that rests on the first one is as whole as any.
    let target = tempdir().unwrap();
    give(&second, &everything(target.path())).expect("it restores");
    assert_eq!(listing(&data), listing(&target.path().join("data")));
}

#[test]
fn a_file_that_changed_just_before_it_was_read_is_read_again() {
    let top = tempdir().unwrap();
    let path = top.path().join("data");
    fs::write(&path, b"one").unwrap();
    let (first, _) = take(&options(&[&path]), None);
    // Same size, and on a coarse clock the same times.
    fs::write(&path, b"two").unwrap();
    let (second, _) = take(&options(&[&path]), Some(&first));
    assert_eq!(second.reused.load(Relaxed), 0, "it was too young to be trusted");
    assert_eq!(second.bytes_of("data"), b"two");
}

#[test]
fn a_change_that_keeps_size_and_time_is_noticed() {
    let top = tempdir().unwrap();
    let path = top.path().join("data");
    fs::write(&path, b"one").unwrap();
    set_time(&path, 1_000_000_000, 5);
    std::thread::sleep(AT_REST);
    let (first, _) = take(&options(&[&path]), None);
    fs::write(&path, b"two").unwrap();
    set_time(&path, 1_000_000_000, 5);
    let (second, _) = take(&options(&[&path]), Some(&first));
    assert_eq!(second.bytes_of("data"), b"two", "the time of its last status change tells");
    // The same by replacing the file.
    std::thread::sleep(AT_REST);
    let (third, _) = take(&options(&[&path]), Some(&second));
    fs::write(top.path().join("other"), b"six").unwrap();
    set_time(&top.path().join("other"), 1_000_000_000, 5);
    fs::rename(top.path().join("other"), &path).unwrap();
    let (fourth, _) = take(&options(&[&path]), Some(&third));
    assert_eq!(fourth.bytes_of("data"), b"six");
}

#[test]
fn a_parent_with_other_files_helps_where_it_can() {
    let (_top, data) = every_kind();
    let other = tempdir().unwrap();
    std::thread::sleep(AT_REST);
    let (both, _) = take(&options(&[&data, other.path()]), None);
    fs::remove_file(data.join("a")).unwrap();
    let (one, _) = take(&options(&[&data]), Some(&both));
    // The two other names of `a` changed with it: one is a file now, the other a link to that one.
    assert_eq!(one.reused.load(Relaxed), 9);
    assert_eq!(one.item("data/sub/another name of a").kind, "file");
    assert_eq!(one.item("data/z third name of a").meta["target"], "data/sub/another name of a");
}

#[test]
fn a_broken_parent_costs_time_and_nothing_else() {
    struct Broken;
    impl ItemSource for Broken {
        fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
            each(file("data/a", b"x").0)?;
            Err(io::Error::other("item lines are damaged"))
        }
        fn read_item(&self, _: &Item, _: &mut dyn Write) -> io::Result<()> {
            unreachable!("a parent's bytes are never asked for")
        }
    }
    let (_top, data) = every_kind();
    let memory = Memory::default();
    let facts = snapshot(&options(&[&data]), Some(&Broken), &memory, &Progress::default()).expect("it is only a hint");
    assert_eq!(facts.warnings.len(), 1, "{:?}", facts.warnings);
    assert!(facts.warnings[0].contains("item lines are damaged"), "{:?}", facts.warnings);
    assert_eq!(memory.bytes_of("data/a"), b"first");
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_read_again() {
    let top = tempdir().unwrap();
    let path = top.path().join("data");
    fs::write(&path, b"before").unwrap();
    let (written, times) = (path.clone(), AtomicU64::new(0));
    let on_write = move |_: &str| {
        if times.fetch_add(1, Relaxed) == 0 {
            fs::write(&written, b"after!").unwrap();
        }
    };
    let memory = Memory { on_write: Some(Box::new(on_write)), ..Memory::default() };
    let facts = take_into(&memory, &options(&[&path]), None).unwrap();
    assert_eq!(memory.bytes_of("data"), b"after!");
    assert_eq!(memory.discarded.load(Relaxed), 1);
    assert_eq!(facts.warnings, Vec::<String>::new(), "it came to rest");
    assert!(!memory.item("data").meta.contains_key("changing"));
}

#[test]
fn a_file_that_never_rests_is_kept_with_a_warning() {
    let top = tempdir().unwrap();
    let path = top.path().join("log");
    fs::write(&path, b"line 1\n").unwrap();
    let written = path.clone();
    let on_write = move |_: &str| {
        let mut log = File::options().append(true).open(&written).unwrap();
        log.write_all(b"one more\n").unwrap();
    };
    let memory = Memory { on_write: Some(Box::new(on_write)), ..Memory::default() };
    let facts = take_into(&memory, &options(&[&path]), None).unwrap();
    assert_eq!(memory.bytes_of("log"), b"line 1\none more\none more\n", "as it was when it was opened the last time");
    assert_eq!(facts.warnings.len(), 1);
    assert!(facts.warnings[0].starts_with("log: it changed"), "{:?}", facts.warnings);
    assert_eq!(facts.consistency["changing"], 1);
    assert_eq!(memory.item("log").meta["changing"], true);
    let target = tempdir().unwrap();
    let report = give(&memory, &everything(target.path())).unwrap();
    assert!(report.warnings[0].contains("log: it was written to"), "{:?}", report.warnings);
}

#[test]
fn a_file_that_shrinks_or_vanishes_while_it_is_read_is_told() {
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a"), b"a").unwrap();
    for name in ["b", "c", "d", "e"] {
        fs::write(data.join(name), vec![1; 3 << 20]).unwrap();
    }
    let seen = data.clone();
    let on_write = move |path: &str| {
        if path == "data/a" {
            for name in ["c", "d", "e"] {
                fs::remove_file(seen.join(name)).unwrap();
            }
        }
        if path == "data/b" && fs::metadata(seen.join("b")).unwrap().len() > 100 {
            File::options().write(true).open(seen.join("b")).unwrap().set_len(100).unwrap();
        }
    };
    let memory = Memory { on_write: Some(Box::new(on_write)), ..Memory::default() };
    let options = FilesOptions { jobs: 1.try_into().ok(), ..options(&[&data]) };
    let facts = take_into(&memory, &options, None).unwrap();
    assert_eq!(memory.item("data/b").bytes, 100, "read again once it had shrunk");
    assert!(facts.warnings.iter().any(|warning| warning.starts_with("data/d: it vanished")), "{:?}", facts.warnings);
    assert_eq!(facts.consistency["missing"].as_u64(), Some(facts.warnings.len() as u64));
}

#[test]
fn pipes_sockets_and_devices_are_left_out_by_name() {
    let top = tempdir().unwrap();
    fs::write(top.path().join("file"), b"x").unwrap();
    mkfifoat(CWD, top.path().join("fifo"), Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(top.path().join("socket")).unwrap();
    let (memory, facts) = take(&options(&[top.path()]), None);
    let name = top.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(memory.paths(), [format!("folder {name}"), format!("file {name}/file")]);
    assert_eq!(
        facts.warnings,
        [format!("{name}/fifo: left out: it is a named pipe"), format!("{name}/socket: left out: it is a socket")]
    );
}

#[test]
fn what_cannot_be_read_is_an_item_of_its_own_and_a_warning() {
    let (_top, data) = every_kind();
    fs::create_dir(data.join("closed")).unwrap();
    fs::write(data.join("closed/x"), b"unseen").unwrap();
    fs::set_permissions(data.join("a"), Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(data.join("closed"), Permissions::from_mode(0o0)).unwrap();
    let taken = as_nobody(&data, |path| {
        let (memory, facts) = take(&options(&[path]), None);
        let mut told = facts.warnings.clone();
        told.push(memory.paths().join("|"));
        told.push(memory.item("data/a").meta["why"].to_string());
        told.push(memory.item("data/z third name of a").meta["target"].to_string());
        let target = tempdir().unwrap();
        let report = give(&memory, &everything(target.path())).expect("the rest restores");
        told.push(format!("{} missing", report.missing));
        told
    });
    let Some(told) = taken else { return };
    assert_eq!(told[0], "data/a: permission denied");
    assert_eq!(told[1], "data/closed: what it holds could not be listed: permission denied");
    assert!(told[2].contains("missing data/a|") && told[2].contains("folder data/closed|"), "{}", told[2]);
    assert_eq!(told[3], "\"permission denied\"");
    assert_eq!(told[4], "\"data/a\"");
    assert_eq!(told[5], "3 missing", "the file and its two other names");
}

#[test]
fn a_snapshot_of_nothing_readable_is_an_error() {
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a"), b"x").unwrap();
    fs::set_permissions(data.join("a"), Permissions::from_mode(0o0)).unwrap();
    let told = as_nobody(&data, |path| match take_into(&Memory::default(), &options(&[path]), None) {
        Err(error @ FilesError::NothingRead { missing: 1, .. }) => vec![error.to_string()],
        other => vec![format!("{other:?}")],
    });
    let Some(told) = told else { return };
    assert_eq!(told, ["none of the 1 files could be read, the first one data/a: permission denied"]);
}

#[test]
fn paths_that_cannot_be_taken_are_errors_that_name_them() {
    let top = tempdir().unwrap();
    let error = |paths: &[&Path]| take_into(&Memory::default(), &options(paths), None).expect_err("it is an error");
    assert!(matches!(error(&[]), FilesError::NoPath));
    let gone = error(&[&top.path().join("gone")]);
    assert!(matches!(gone, FilesError::Root { .. }) && gone.to_string().contains("/gone"), "{gone}");
    assert!(matches!(error(&[Path::new("/dev/null")]), FilesError::Root { .. }));
    for name in ["a/data", "b/data"] {
        fs::create_dir_all(top.path().join(name)).unwrap();
    }
    let same = error(&[&top.path().join("a/data"), &top.path().join("b/data")]);
    assert!(matches!(same, FilesError::SameName { .. }), "{same}");
    let twice = take(&options(&[&top.path().join("a/data"), &top.path().join("b/../a/data")]), None);
    assert_eq!(twice.0.paths(), ["folder data"], "the same path twice is one");
    let pattern = FilesOptions { excludes: vec!["[".to_owned()], ..options(&[top.path()]) };
    let wrong = take_into(&Memory::default(), &pattern, None).expect_err("it is an error");
    assert!(matches!(wrong, FilesError::Pattern(_)), "{wrong}");
}

#[test]
fn several_paths_single_files_and_links_to_folders_can_be_named() {
    let (top, data) = every_kind();
    symlink(&data, top.path().join("zlink")).unwrap();
    fs::write(top.path().join("one file"), b"alone").unwrap();
    let (memory, _) = take(&options(&[&top.path().join("zlink"), &top.path().join("one file")]), None);
    assert_eq!(memory.paths()[0], "file one file");
    assert_eq!(memory.paths()[1], "folder zlink");
    let from = memory.item("zlink").meta["from"].clone();
    assert_eq!(from, data.canonicalize().unwrap().to_str().unwrap());
    let target = tempdir().unwrap();
    give(&memory, &everything(target.path())).unwrap();
    assert_eq!(listing(&target.path().join("zlink")), listing(&data));
    assert_eq!(fs::read(target.path().join("one file")).unwrap(), b"alone");
}

#[test]
fn excludes_keep_things_out() {
    let (top, data) = every_kind();
    let excludes = vec!["*.txt".to_owned(), "data/sub/deeper".to_owned(), format!("{}/data/a", top.path().display())];
    let (memory, _) = take(&FilesOptions { excludes, ..options(&[&data]) }, None);
    let paths = memory.paths().join("\n");
    assert!(!paths.contains("sub.txt") && !paths.contains("deeper"), "{paths}");
    assert!(!paths.contains("file data/a\n"), "{paths}");
    assert!(paths.contains("file data/sub/another name of a"), "its other names stay:\n{paths}");
}

#[test]
fn the_repository_does_not_swallow_itself() {
    let (_top, data) = every_kind();
    let never = vec![data.join("sub")];
    let (memory, facts) = take(&FilesOptions { never, ..options(&[&data]) }, None);
    assert!(memory.paths().contains(&"folder data/sub".to_owned()));
    assert!(!memory.paths().join("\n").contains("data/sub/"), "{:?}", memory.paths());
    assert_eq!(facts.warnings.len(), 1, "{:?}", facts.warnings);
}

#[test]
fn extended_attributes_come_back() {
    let (_top, data) = every_kind();
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [("user.note", &b"by hand"[..]), ("user.binary", b"\0\xff"), ("user.empty", b"")] {
        if let Err(error) = rustix::fs::setxattr(data.join("a"), name, value, flags) {
            println!("SKIPPED extended_attributes_come_back: the temporary folder has none ({error})");
            return;
        }
    }
    rustix::fs::setxattr(data.join("sub"), "user.on folder", b"x", flags).unwrap();
    let (memory, _) = take(&options(&[&data]), None);
    let target = tempdir().unwrap();
    give(&memory, &everything(target.path())).unwrap();
    let read = |path: &str, name: &str| {
        let mut value = [0; 100];
        let length = rustix::fs::getxattr(target.path().join(path), name, &mut value).expect(name);
        value[..length].to_vec()
    };
    assert_eq!(read("data/a", "user.note"), b"by hand");
    assert_eq!(read("data/a", "user.binary"), b"\0\xff");
    assert_eq!(read("data/a", "user.empty"), b"");
    assert_eq!(read("data/sub", "user.on folder"), b"x");
}

#[test]
fn ten_thousand_small_files_and_a_deep_tree() {
    let top = tempdir().unwrap();
    let many = top.path().join("many");
    for folder in 0..100 {
        let folder = many.join(format!("{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..100 {
            fs::write(folder.join(format!("{file}.txt")), format!("{}/{file}", folder.display())).unwrap();
        }
    }
    let mut deep = top.path().join("deep");
    while deep.as_os_str().len() < 3900 {
        deep.push("deeper");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"reached").unwrap();
    std::thread::sleep(AT_REST);
    let both = options(&[&many, &top.path().join("deep")]);
    let (first, facts) = take(&both, None);
    assert_eq!(facts.warnings, Vec::<String>::new());
    let (second, _) = take(&both, Some(&first));
    assert_eq!(second.reused.load(Relaxed), 10_001);
    assert_eq!(second.bytes_read.load(Relaxed), 0);
    let target = tempdir().unwrap();
    let report = give(&second, &everything(target.path())).unwrap();
    assert_eq!(
        (report.files, report.bytes),
        (10_001, second.items.lock().unwrap().values().map(|(i, _)| i.bytes).sum())
    );
    assert_eq!(listing(&many), listing(&target.path().join("many")));
}

#[test]
fn a_path_longer_than_an_item_path_is_told() {
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a"), b"short").unwrap();
    // Each byte becomes three.
    let name = OsStr::from_bytes(&[0xff; 200]);
    fs::create_dir_all((0..8).fold(data.clone(), |path, _| path.join(name))).unwrap();
    let (memory, facts) = take(&options(&[&data]), None);
    assert_eq!(memory.paths().len(), 8);
    assert_eq!(facts.warnings.len(), 1);
    assert!(facts.warnings[0].contains("longer than 4096 bytes"), "{:?}", facts.warnings);
}

#[test]
fn hostile_names_are_refused_and_nothing_is_written() {
    let long = format!("{}x", "deep/".repeat(1000));
    let ghost = |target: &str| vec![file("a", b"x"), hardlink("b", target)];
    let cases = [
        ("absolute", vec![file("/etc/cron.d/x", b"x")]),
        ("parent", vec![file("../x", b"x")]),
        ("parent within", vec![folder("a"), file("a/../../x", b"x")]),
        ("escaped parent", vec![file("%2E.", b"x")]),
        ("escaped dot", vec![file("%2E", b"x")]),
        ("another spelling of a parent", vec![file("%2E%2E", b"x")]),
        ("escaped slash", vec![file("..%2Fx", b"x")]),
        ("escaped NUL", vec![file("a%00b", b"x")]),
        ("NUL", vec![file("a\0b", b"x")]),
        ("empty", vec![file("", b"x")]),
        ("escaped empty", vec![file("%", b"x")]),
        ("empty component", vec![folder("a"), file("a//b", b"x")]),
        ("dot", vec![file(".", b"x")]),
        ("trailing slash", vec![folder("a"), file("a/", b"x")]),
        ("too long", vec![file(&long, b"x")]),
        ("two spellings of one name", vec![file("%41", b"x"), file("A", b"x")]),
        ("duplicate file", vec![file("a", b"x"), file("a", b"y")]),
        ("duplicate folder", vec![folder("a"), folder("a")]),
        ("file over a folder", vec![folder("a"), file("a", b"x")]),
        ("folder over a file", vec![file("a", b"x"), folder("a")]),
        ("below a file", vec![file("a", b"x"), file("a/b", b"x")]),
        ("below a link", vec![link("a", "/etc"), file("a/b", b"x")]),
        ("below a link, folder again", vec![link("a", "/etc"), folder("a"), file("a/b", b"x")]),
        ("below a hard link", vec![file("a", b"x"), hardlink("b", "a"), file("b/c", b"x")]),
        ("below nothing", vec![file("a/b", b"x")]),
        ("back to a folder that was left", vec![folder("a"), folder("b"), file("a/x", b"x")]),
        ("out of order", vec![file("b", b"x"), file("a", b"x")]),
        ("hard link to outside", ghost("../x")),
        ("hard link to an absolute path", ghost("/etc/shadow")),
        ("hard link to what is not there", ghost("c")),
        ("hard link to a file with one name", ghost("a")),
        ("hard link to itself", vec![hardlink("a", "a")]),
        ("hard link to a folder", vec![folder("a"), hardlink("b", "a")]),
        ("hard link without a target", vec![(item("a", "hardlink", json!({}), b""), b"")]),
        ("link without a target", vec![(item("a", "symlink", json!({}), b""), b"")]),
        ("link to nothing", vec![link("a", "")]),
        ("link with NUL", vec![link("a", "x%00")]),
        ("device", vec![(item("a", "device", json!({"major": 1}), b""), b"")]),
        ("name of unfinished files", vec![file(&format!("a.vault{}", "-partial".repeat(20)), b"x")]),
    ];
    let top = tempdir().unwrap();
    for (what, items) in cases {
        let target = top.path().join("target");
        // After a harmless file: the whole list is read before the first byte is written.
        let items = [vec![file("!", b"harmless")], items].concat();
        for overwrite in [Overwrite::Refuse, Overwrite::Resume, Overwrite::Force] {
            let options = FilesRestoreOptions { overwrite, ..everything(&target) };
            match give(&Memory::by_hand(items.clone()), &options) {
                Err(FilesError::Unsafe { .. }) => {}
                other => panic!("{what}: {other:?}"),
            }
            assert!(!target.exists(), "{what}: something was written");
        }
    }
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
}

#[test]
fn links_are_made_by_where_they_lead() {
    let items = || {
        vec![
            folder("a"),
            link("a/1 up", "../b"),
            link("a/2 over", "../../b"),
            link("a/3 absolute", "/etc/passwd"),
            link("a/4 through", "../a/1 up/../../.."),
            link("a/5 here", "./x//y/."),
            link("a/6 parent", ".."),
            link("b", "..."),
            link("c", ".."),
        ]
    };
    for (symlinks, made) in [
        (Symlinks::None, vec![]),
        (Symlinks::Inside, vec!["a/1 up", "a/5 here", "a/6 parent", "b"]),
        (Symlinks::All, vec!["a/1 up", "a/2 over", "a/3 absolute", "a/4 through", "a/5 here", "a/6 parent", "b", "c"]),
    ] {
        let target = tempdir().unwrap();
        let options = FilesRestoreOptions { symlinks, ..FilesRestoreOptions::new(target.path()) };
        let report = give(&Memory::by_hand(items()), &options).unwrap();
        assert_eq!((report.symlinks, report.symlinks_left_out), (made.len() as u64, 8 - made.len() as u64));
        for (item, _) in items().iter().filter(|(item, _)| item.kind == "symlink") {
            let there = target.path().join(&item.path).symlink_metadata().is_ok();
            assert_eq!(there, made.contains(&item.path.as_str()), "{} with {symlinks:?}", item.path);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However links inside lead through one another, none leads out.
    #[test]
    fn links_that_stay_inside_do_so_together(
        targets in prop::collection::vec("(\\.\\./|\\./|/|a/|b/|l0/|l1/|l2/|l3/|l4/|l5/){1,5}", 6)
    ) {
        // Links at the top and two folders down, so that `..` has somewhere to go.
        let places = ["a/b/l0", "a/b/l1", "a/l2", "a/l3", "l4", "l5"];
        let mut items = vec![folder("a"), folder("a/b")];
        items.extend(places.iter().zip(&targets).map(|(place, target)| link(place, target)));
        let target = tempdir().unwrap();
        let inside = target.path().canonicalize().unwrap();
        give(&Memory::by_hand(items), &FilesRestoreOptions::new(target.path())).unwrap();
        for place in places {
            if let Ok(reached) = target.path().join(place).canonicalize() {
                prop_assert!(reached.starts_with(&inside), "{} leads to {} with {:?}", place, reached.display(), targets);
            }
        }
    }
}

#[test]
fn set_user_id_bits_are_given_back_only_when_asked_for() {
    let meta = |mode: &str| json!({ "mode": mode });
    let items = || {
        vec![
            (item("dir", "folder", meta("3777"), b""), &b""[..]),
            (item("dir/program", "file", meta("6755"), b"x"), &b"x"[..]),
        ]
    };
    for (special_modes, folder_mode, file_mode) in [(false, 0o1777, 0o755), (true, 0o3777, 0o6755)] {
        let target = tempdir().unwrap();
        let options = FilesRestoreOptions { special_modes, ..everything(target.path()) };
        give(&Memory::by_hand(items()), &options).unwrap();
        let mode = |path: &str| target.path().join(path).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("dir"), mode("dir/program")), (folder_mode, file_mode));
    }
}

#[test]
fn a_target_with_something_in_it_is_left_alone_unless_forced() {
    let target = tempdir().unwrap();
    let outside = tempdir().unwrap();
    fs::write(target.path().join("own"), b"mine").unwrap();
    let source = Memory::by_hand(vec![folder("a"), file("a/x", b"new"), file("b", b"new")]);
    let error = give(&source, &everything(target.path())).expect_err("it is not empty");
    assert!(matches!(error, FilesError::NotEmpty { .. }) && error.is_of_target(), "{error}");
    assert_eq!(listing(target.path()).len(), 2, "nothing was added");
    // Forced: files and links are replaced, links never followed, the rest stays.
    fs::write(outside.path().join("victim"), b"precious").unwrap();
    symlink(outside.path().join("victim"), target.path().join("b")).unwrap();
    fs::write(target.path().join("b.vault-partial"), b"left over").unwrap();
    let force = FilesRestoreOptions { overwrite: Overwrite::Force, ..everything(target.path()) };
    give(&source, &force).expect("it is forced");
    assert_eq!(fs::read(target.path().join("b")).unwrap(), b"new");
    assert!(!target.path().join("b").is_symlink() && !target.path().join("b.vault-partial").exists());
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"precious");
    assert_eq!(fs::read(target.path().join("own")).unwrap(), b"mine");
    // A link where a folder should be is not followed either.
    fs::remove_dir_all(target.path().join("a")).unwrap();
    symlink(outside.path(), target.path().join("a")).unwrap();
    let error = give(&source, &force).expect_err("a link is in the way");
    assert!(matches!(&error, FilesError::Exists { path } if path.ends_with("a")), "{error}");
    assert!(!outside.path().join("x").exists());
    // Nor is a folder removed for a file.
    fs::remove_file(target.path().join("a")).unwrap();
    fs::remove_file(target.path().join("b")).unwrap();
    fs::create_dir(target.path().join("b")).unwrap();
    let error = give(&source, &force).expect_err("a folder is in the way");
    assert!(error.is_of_target() && error.to_string().contains("/b "), "{error}");
}

#[test]
fn a_restore_that_broke_off_is_marked_and_goes_on() {
    /// Gives out some items, then nothing more.
    struct Breaks<'m>(&'m Memory, AtomicU64);
    impl ItemSource for Breaks<'_> {
        fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
            self.0.each_item(each)
        }
        fn read_item(&self, item: &Item, out: &mut dyn Write) -> io::Result<()> {
            if self.1.fetch_add(1, Relaxed) < 5 {
                return self.0.read_item(item, out);
            }
            out.write_all(b"half")?;
            Err(io::Error::other("the store is gone"))
        }
    }
    let (_top, data) = every_kind();
    let (memory, _) = take(&options(&[&data]), None);
    let target = tempdir().unwrap();
    let mut options = everything(target.path());
    options.jobs = 1.try_into().ok();
    let error = restore(&options, &Breaks(&memory, AtomicU64::new(0)), &Progress::default()).expect_err("it breaks");
    assert!(matches!(error, FilesError::Store { .. }) && !error.is_of_target(), "{error}");
    let names = listing(target.path()).join("\n");
    assert!(names.contains("RESTORE-NOT-FINISHED.vault-partial"), "the folder says so itself:\n{names}");
    let partial = listing(&target.path().join("data"));
    assert_eq!(partial.iter().filter(|line| line.contains(".vault-partial")).count(), 1, "{partial:?}");
    for line in &partial {
        let whole = line.contains(" folder ")
            || line.contains(".vault-partial")
            || listing(&data).iter().any(|original| {
                original.split(" names").next().unwrap().rsplit_once(',').unwrap_or((original, "")).0
                    == line.split(" names").next().unwrap().rsplit_once(',').unwrap_or((line, "")).0
            });
        assert!(whole, "what has its own name is whole: {line}");
    }
    // Not without saying so.
    assert!(matches!(give(&memory, &options), Err(FilesError::NotEmpty { .. })));
    options.overwrite = Overwrite::Resume;
    let report = give(&memory, &options).expect("it goes on");
    assert_eq!((report.kept, report.files), (5, 10));
    assert_eq!(listing(&data), listing(&target.path().join("data")));
    assert_eq!(listing(target.path()).len(), listing(&data).len() + 1, "no note is left");
    // Once more changes nothing; a file that is not what it was is an error.
    let report = give(&memory, &options).expect("there is nothing to do");
    assert_eq!(report.kept, 10);
    assert_eq!(listing(&data), listing(&target.path().join("data")));
    File::options().write(true).open(target.path().join("data/sub/big")).unwrap().write_at(b"!", 1000).unwrap();
    let error = give(&memory, &options).expect_err("somebody has written to it");
    assert!(matches!(&error, FilesError::Exists { path } if path.ends_with("data/sub/big")), "{error}");
}

#[test]
fn a_source_that_lies_about_a_length_is_not_believed() {
    let mut short = file("a", b"four");
    short.0.bytes = 5;
    let target = tempdir().unwrap();
    let error = give(&Memory::by_hand(vec![short]), &everything(target.path())).expect_err("a byte is missing");
    assert!(matches!(error, FilesError::Store { .. }), "{error}");
    assert!(!target.path().join("a").exists() && target.path().join("a.vault-partial").exists());
}

#[test]
fn files_that_are_called_like_unfinished_ones_come_back_too() {
    let names = ["x", "x.vault-partial", "x.vault-partial-partial", "RESTORE-NOT-FINISHED.vault-partial", "y-partial"];
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    for name in names {
        fs::write(data.join(name), name).unwrap();
    }
    fs::write(data.join("n".repeat(255)), b"longest").unwrap();
    fs::create_dir(data.join("x.vault-partial-partial-partial")).unwrap();
    let (memory, _) = take(&options(&[&data]), None);
    let target = tempdir().unwrap();
    give(&memory, &everything(target.path())).unwrap();
    assert_eq!(listing(&data), listing(&target.path().join("data")));
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn parts_can_be_restored() {
    let (_top, data) = every_kind();
    let (memory, _) = take(&options(&[&data]), None);
    let restored = |includes: &[&str], excludes: &[&str]| {
        let target = tempdir().unwrap();
        let list = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>();
        let options =
            FilesRestoreOptions { includes: list(includes), excludes: list(excludes), ..everything(target.path()) };
        let report = give(&memory, &options).expect("it restores");
        (target, report)
    };
    let (target, report) = restored(&["data/sub/deeper"], &[]);
    assert_eq!((report.files, report.folders), (1, 3));
    let originals = listing(&data);
    for line in listing(&target.path().join("data")) {
        assert!(originals.contains(&line), "folders on the way get their modes and times, too: {line}");
    }
    // A hard link without the name it was stored under.
    let (target, report) = restored(&["another name*", "z third*"], &[]);
    assert_eq!((report.files, report.hardlinks), (1, 1));
    let inode = |path: &str| target.path().join(path).metadata().unwrap().ino();
    assert_eq!(inode("data/sub/another name of a"), inode("data/z third name of a"));
    assert_eq!(fs::read(target.path().join("data/z third name of a")).unwrap(), b"first");
    assert!(!target.path().join("data/a").exists());
    let (target, report) = restored(&[], &["*", "!"]);
    assert_eq!((report.files, listing(target.path()).len()), (0, 1));
    let (target, _) = restored(&["data/*"], &["sub"]);
    assert!(!target.path().join("data/sub").exists() && target.path().join("data/a").exists());
    let (_, report) = restored(&["up"], &[]);
    assert_eq!((report.symlinks, report.folders), (1, 2));
    let target = tempdir().unwrap();
    let nothing = FilesRestoreOptions { includes: vec!["dta/*".to_owned()], ..everything(target.path()) };
    let error = give(&memory, &nothing).expect_err("a slip of the pen is told");
    assert!(error.to_string().contains("dta/*"), "{error}");
}

#[test]
fn a_stream_becomes_a_file_of_its_name() {
    for (path, name) in [("dump.sql", "dump.sql"), ("db%2Fdump.sql", "db%2Fdump.sql"), ("%2E.", "%2E."), ("a%25", "a%")]
    {
        let stream = item(path, "stream", json!({}), b"select 1");
        let source = Memory::by_hand(vec![(stream.clone(), b"select 1")]);
        let target = tempdir().unwrap();
        let into = target.path().join("new/folder");
        give(&source, &FilesRestoreOptions::new(&into)).expect("it restores");
        assert_eq!(fs::read(into.join(name)).unwrap(), b"select 1");
        assert_eq!(into.join(name).metadata().unwrap().mode() & 0o777, 0o600);
        let mut out = Vec::new();
        let bytes = restore_stream(&source, &stream, &mut out, "standard output", &Progress::default()).unwrap();
        assert_eq!((bytes, &out[..]), (8, &b"select 1"[..]));
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let error = restore_stream(&source, &stream, &mut full, "standard output", &Progress::default());
        assert!(matches!(error, Err(FilesError::NoSpace { .. })), "{error:?}");
    }
}

#[test]
fn holes_stay_holes_when_asked_for() {
    let mut bytes = vec![0; 5_000_003];
    bytes[1_000_000..1_000_100].fill(1);
    bytes[2_222_222] = 2;
    bytes[4_999_999] = 3;
    let cases = [bytes, vec![0; 1 << 20], vec![0; 4097], vec![1; 10_000], vec![]];
    for (at, bytes) in cases.iter().enumerate() {
        let source = Memory::by_hand(vec![file("f", bytes)]);
        let target = tempdir().unwrap();
        give(&source, &FilesRestoreOptions { sparse: true, ..everything(target.path()) }).unwrap();
        assert!(fs::read(target.path().join("f")).unwrap() == *bytes, "case {at}");
        let blocks = target.path().join("f").metadata().unwrap().blocks();
        assert!(at > 1 || blocks < 100, "case {at} takes {blocks} blocks of 512 bytes");
    }
}

#[test]
fn a_full_target_is_told_as_such() {
    let top = tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(top.path(), "size=1m") else {
        println!("SKIPPED a_full_target_is_told_as_such: no right to mount");
        return;
    };
    // Too long for the whole of it, and too long for what is left.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    for (at, bytes) in [&bytes[..], &bytes[..900_000]].into_iter().enumerate() {
        let target = mounted.0.join(format!("{at}"));
        let source = Memory::by_hand(vec![file("a", &bytes[..200_000]), file("b", bytes)]);
        // Side by side, the short file could be the one that finds no room.
        let one_at_a_time = FilesRestoreOptions { jobs: NonZeroUsize::new(1), ..everything(&target) };
        let error = give(&source, &one_at_a_time).expect_err("it is full");
        assert!(matches!(&error, FilesError::NoSpace { path, .. } if path.ends_with("b")), "{error:?}");
        assert!(error.is_of_target() && error.to_string().contains("--resume"), "{error}");
        assert!(!target.join("b").exists(), "never its own name before it is whole");
        assert!(target.join("RESTORE-NOT-FINISHED.vault-partial").exists());
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_read_only_target_is_told_as_such() {
    let top = tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(top.path(), "size=1m,ro") else {
        println!("SKIPPED a_read_only_target_is_told_as_such: no right to mount");
        return;
    };
    let error = give(&Memory::by_hand(vec![file("a", b"x")]), &everything(&mounted.0)).expect_err("it is read-only");
    assert!(matches!(error, FilesError::Target { .. }) && error.is_of_target(), "{error:?}");
    let error = give(&Memory::by_hand(vec![file("a", b"x")]), &everything(Path::new("/dev/null")));
    assert!(matches!(error, Err(FilesError::Target { .. })), "{error:?}");
}

#[test]
fn one_file_system_stays_on_one() {
    let top = tempdir().unwrap();
    fs::create_dir(top.path().join("mount")).unwrap();
    let Some(mounted) = Mounted::tmpfs(&top.path().join("mount"), "size=1m") else {
        println!("SKIPPED one_file_system_stays_on_one: no right to mount");
        return;
    };
    fs::write(mounted.0.join("x"), b"x").unwrap();
    let (all, _) = take(&options(&[top.path()]), None);
    let (one, _) = take(&FilesOptions { one_file_system: true, ..options(&[top.path()]) }, None);
    assert_eq!((all.paths().len(), one.paths().len()), (3, 2));
}

#[test]
fn swapping_a_folder_for_a_link_meanwhile_leads_nowhere() {
    let target = tempdir().unwrap();
    let outside = tempdir().unwrap();
    fs::create_dir(target.path().join("elsewhere")).unwrap();
    let mut items = vec![folder("d")];
    let names: Vec<String> = (0..300).map(|n| format!("d/{n:03}")).collect();
    items.extend(names.iter().map(|name| file(name, b"payload")));
    items.push(hardlink("e", "d/000"));
    items[1].0.meta.insert("links".to_owned(), json!(2));
    let source = Memory::by_hand(items);
    let done = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (done, path, outside) = (done.clone(), target.path().to_owned(), outside.path().to_owned());
        std::thread::spawn(move || {
            let mut swaps = 0;
            while !done.load(Relaxed) {
                if fs::rename(path.join("d"), path.join("elsewhere/d")).is_ok() {
                    let _ = symlink(&outside, path.join("d"));
                    std::thread::yield_now();
                    let _ = fs::remove_file(path.join("d"));
                    let _ = fs::rename(path.join("elsewhere/d"), path.join("d"));
                    swaps += 1;
                }
            }
            swaps
        })
    };
    let options = FilesRestoreOptions { overwrite: Overwrite::Force, ..everything(target.path()) };
    let began = SystemTime::now();
    let (mut whole, mut broken) = (0, 0);
    while began.elapsed().unwrap() < Duration::from_secs(2) {
        match give(&source, &options) {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!(error.is_of_target(), "{error}");
                broken += 1;
            }
        }
    }
    done.store(true, Relaxed);
    let swaps: u64 = swapper.join().unwrap();
    println!("{whole} restores went through and {broken} did not, in {swaps} swaps");
    assert!(swaps > 10 && whole + broken > 0);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "not one byte went outside");
}

#[test]
fn a_cancelled_run_stops_with_that_error() {
    let (_top, data) = every_kind();
    let progress = Progress::default();
    let (memory, _) = take(&options(&[&data]), None);
    progress.cancel();
    let stopped = snapshot(&options(&[&data]), Some(&memory), &Memory::default(), &progress);
    assert!(matches!(stopped, Err(FilesError::Cancelled(_))), "{stopped:?}");
    let target = tempdir().unwrap();
    let stopped = restore(&everything(target.path()), &memory, &progress);
    assert!(matches!(stopped, Err(FilesError::Cancelled(_))), "{stopped:?}");
}

#[test]
fn a_sink_that_fails_ends_the_snapshot_with_its_words() {
    struct Full;
    impl ItemSink for Full {
        fn begin<'s>(&'s self, _: u64, _: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
            if kind == "folder" { Ok(Box::new(Taken)) } else { Err(io::Error::other("the repository is full")) }
        }
        fn reuse(&self, _: u64, _: &Item, _: ItemFacts) -> io::Result<bool> {
            Ok(false)
        }
    }
    struct Taken;
    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl ItemStream for Taken {
        fn finish(self: Box<Self>, _: ItemFacts) -> io::Result<ItemDone> {
            Ok(ItemDone { bytes: 0, hash: blake3::hash(b"") })
        }
    }
    let (_top, data) = every_kind();
    let error = snapshot(&options(&[&data]), None, &Full, &Progress::default()).expect_err("it is full");
    let FilesError::Store { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "the repository is full");
}

/// A repository in memory.
struct Store {
    _places: TempDir,
    repo: Arc<Repository>,
}

impl Store {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let places = Places { cache: folder.path().join("cache"), state: folder.path().join("state") };
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
        let secret = Secret::KeyFile([7; 32].into());
        let repo = Repository::init(backend, &secret, "test", jiff::Timestamp::now(), &places).expect("it is empty");
        Self { _places: folder, repo: Arc::new(repo) }
    }

    /// Takes a snapshot; `watch` hears of the first write to each file.
    fn take(
        &self,
        options: &FilesOptions,
        watch: Option<&(dyn Fn(&str) + Sync)>,
    ) -> Result<Snapshot, SnapshotError<FilesError>> {
        let about = SnapshotOptions {
            source: "files".to_owned(),
            name: "data".to_owned(),
            host: "here".to_owned(),
            tags: Vec::new(),
            options: Map::new(),
            write: WriteOptions { sealers: 2, level: 3, delta: true },
            time: jiff::Timestamp::now(),
        };
        let progress = Progress::default();
        let taken = vault::ops::snapshot::snapshot(&self.repo, about, &progress, |sink, parent| match watch {
            Some(watch) => snapshot(options, parent, &Watched { sink, watch }, &progress),
            None => snapshot(options, parent, sink, &progress),
        });
        Ok(taken?.snapshot)
    }

    fn items(&self, snapshot: &Snapshot) -> SnapshotItems {
        SnapshotItems::new(self.repo.clone(), snapshot.manifest.clone(), 2, Progress::default())
    }

    /// Bytes of files that were not stored before.
    fn new_bytes(&self, snapshot: &Snapshot) -> u64 {
        let mut bytes = 0;
        let add = &mut |item: Item| {
            bytes += item.bytes_new;
            Ok(())
        };
        self.items(snapshot).each_item(add).expect("items are listed");
        bytes
    }

    fn restore(&self, snapshot: &Snapshot, target: &Path) -> FilesReport {
        restore(&everything(target), &self.items(snapshot), &Progress::default()).expect("it restores")
    }
}

/// A sink that tells of the first write to each item.
struct Watched<'s> {
    sink: &'s dyn ItemSink,
    watch: &'s (dyn Fn(&str) + Sync),
}

struct WatchedStream<'s> {
    stream: Box<dyn ItemStream + 's>,
    untold: Option<String>,
    watch: &'s (dyn Fn(&str) + Sync),
}

impl ItemSink for Watched<'_> {
    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
        let stream = self.sink.begin(order, path, kind)?;
        Ok(Box::new(WatchedStream { stream, untold: Some(path.to_owned()), watch: self.watch }))
    }

    fn reuse(&self, order: u64, unchanged: &Item, facts: ItemFacts) -> io::Result<bool> {
        self.sink.reuse(order, unchanged, facts)
    }
}

impl Write for WatchedStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(path) = self.untold.take() {
            (self.watch)(&path);
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl ItemStream for WatchedStream<'_> {
    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<ItemDone> {
        self.stream.finish(facts)
    }

    fn discard(self: Box<Self>) -> io::Result<()> {
        self.stream.discard()
    }
}

#[test]
fn through_a_repository_and_back() {
    let (_top, data) = every_kind();
    std::thread::sleep(AT_REST);
    let store = Store::new();
    let first = store.take(&options(&[&data]), None).expect("it is taken");
    assert_eq!(first.manifest.items, 21);
    let target = tempdir().unwrap();
    store.restore(&first, &target.path().join("first"));
    assert_eq!(listing(&data), listing(&target.path().join("first/data")));
    // Nothing has changed: no file is read, and only item lines are new.
    let second = store.take(&options(&[&data]), Some(&|path| panic!("{path} was read"))).expect("it is taken");
    assert_eq!((second.manifest.items, second.manifest.bytes), (21, first.manifest.bytes));
    assert_eq!((store.new_bytes(&second), second.manifest.parent), (0, Some(first.id)));
    // A day's work.
    fs::write(data.join("sub/deeper/x"), b"edited").unwrap();
    fs::remove_file(data.join("sub.txt")).unwrap();
    fs::rename(data.join("sub/big"), data.join("moved")).unwrap();
    let third = store.take(&options(&[&data]), None).expect("it is taken");
    assert_eq!(store.new_bytes(&third), 6, "a file that was moved is stored once");
    store.restore(&third, &target.path().join("third"));
    assert_eq!(listing(&data), listing(&target.path().join("third/data")));
    store.restore(&second, &target.path().join("second"));
    assert_eq!(listing(&target.path().join("first/data")), listing(&target.path().join("second/data")));
}

#[test]
fn what_was_read_of_a_changing_file_may_serve_another() {
    let top = tempdir().unwrap();
    let data = top.path().join("data");
    fs::create_dir(&data).unwrap();
    let bytes = |seed: u32| (0..600_000_u32).flat_map(|n| (n ^ seed).wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
    let (before, after): (Vec<u8>, Vec<u8>) = (bytes(1), bytes(2));
    fs::write(data.join("a"), &before).unwrap();
    fs::write(data.join("b"), &before).unwrap();
    let (changed, path) = (AtomicBool::new(false), data.join("a"));
    let watch = |item: &str| {
        // The bytes that were just read are on their way already.
        if item == "data/a" && !changed.swap(true, Relaxed) {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&after, 0).unwrap();
        }
    };
    let store = Store::new();
    let one = FilesOptions { jobs: 1.try_into().ok(), ..options(&[&data]) };
    let taken = store.take(&one, Some(&watch)).expect("it is taken");
    assert!(taken.manifest.warnings.is_empty(), "{:?}", taken.manifest.warnings);
    let target = tempdir().unwrap();
    store.restore(&taken, target.path());
    assert!(fs::read(target.path().join("data/a")).unwrap() == after, "read again");
    assert!(fs::read(target.path().join("data/b")).unwrap() == before, "its chunks came with the first reading of a");
}

#[test]
fn long_files_that_come_together_rest_on_each_other() {
    let top = tempdir().unwrap();
    let mut bytes = vec![0; 68_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    for day in 1..=2 {
        // In every chunk.
        bytes.iter_mut().step_by(12_000).for_each(|byte| *byte ^= day);
        fs::write(top.path().join(format!("{day}.sql")), &bytes).unwrap();
    }
    let two = FilesOptions { jobs: 2.try_into().ok(), ..options(&[top.path()]) };
    let store = Store::new();
    let taken = store.take(&two, None).expect("it is taken");
    let stored = taken.manifest.bytes_stored;
    assert!(stored < 75_000_000, "{stored} bytes for two files of 68,000,000 that are nearly the same");
    let items = store.items(&taken);
    items.validate().expect("they come back");
}

#[test]
fn a_source_that_fails_commits_nothing() {
    let store = Store::new();
    let top = tempdir().unwrap();
    let error = store.take(&options(&[&top.path().join("gone")]), None).expect_err("there is nothing");
    assert!(matches!(error, SnapshotError::Source(FilesError::Root { .. })), "{error}");
    assert!(store.repo.snapshots().unwrap().is_empty());
}

/// Runs `work`, unless this is root, who may read everything: then the test runs once more in a process of another user,
/// and `None` says that this has passed there.
fn as_nobody(data: &Path, work: impl FnOnce(&Path) -> Vec<String>) -> Option<Vec<String>> {
    if !rustix::process::geteuid().is_root() {
        return Some(work(data));
    }
    let name = std::thread::current().name().expect("tests have names").to_owned();
    let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let place = tempdir().unwrap();
    open(place.path(), 0o755);
    let (program, scratch) = (place.path().join("test"), place.path().join("scratch"));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program, 0o755);
    fs::create_dir(&scratch).unwrap();
    open(&scratch, 0o777);
    let mut command = Command::new(&program);
    command.args(["--exact", &name, "--nocapture"]).env("TMPDIR", &scratch).current_dir("/").uid(65534).gid(65534);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "as another user:\n{text}");
    None
}

/// Which files were opened in some folders since.
struct Opens(std::os::fd::OwnedFd);

impl Opens {
    fn watch(folders: &[&Path]) -> Self {
        use rustix::fs::inotify;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        for folder in folders {
            inotify::add_watch(&watch, *folder, inotify::WatchFlags::OPEN).unwrap();
        }
        Self(watch)
    }

    fn files_opened(&self) -> Vec<String> {
        use rustix::fs::inotify;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1 << 16];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = reader.next() {
            if !event.events().contains(inotify::ReadFlags::ISDIR) {
                names.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        names
    }
}

/// A file system of its own, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, how: &str) -> Option<Self> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", how, "tmpfs"]).arg(at).output().ok()?.status;
        status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn meta_is_what_the_format_says() {
    let (_top, data) = every_kind();
    std::thread::sleep(AT_REST);
    let (memory, _) = take(&options(&[&data]), None);
    let fields = |path: &str| {
        let meta: Map<String, Value> = memory.item(path).meta;
        meta.keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(fields("data"), "mode uid gid mtime from");
    assert_eq!(fields("data/sub"), "mode uid gid mtime");
    assert_eq!(fields("data/sub/big"), "mode uid gid mtime ctime inode");
    assert_eq!(fields("data/a"), "mode uid gid mtime links ctime inode");
    assert_eq!(fields("data/link"), "mode uid gid mtime target");
    assert_eq!(fields("data/z third name of a"), "target");
    assert_eq!(memory.item("data/sub.txt").meta["mode"], "0400");
    assert_eq!(memory.item("data/sub.txt").meta["mtime"], json!([-86_400, 123_456_789]));
    assert_eq!(memory.item("data/to latin").meta["target"], "caf%E9 %FF");
}
