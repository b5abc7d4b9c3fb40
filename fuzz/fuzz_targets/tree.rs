#![no_main]
//! A hostile list of items restored into a folder: nothing is made or changed beside it.
//!
//! A line of input is an item: a letter for its kind, a path, and after a tab what a link leads to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, json};
use vault::format::manifest::{Item, StreamRef};
use vault::progress::Progress;
use vault::source::ItemSource;
use vault::source::files::{FilesRestoreOptions, Overwrite, Symlinks, restore};

struct Hostile(Vec<Item>);

impl ItemSource for Hostile {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        self.0.iter().cloned().try_for_each(each)
    }

    fn read_item(&self, _: &Item, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(b"hostile")
    }
}

fn item(line: &str) -> Option<Item> {
    let (kind, rest) = line.split_at_checked(1)?;
    let kind = match kind {
        "d" => "folder",
        "l" => "symlink",
        "h" => "hardlink",
        "m" => "missing",
        _ => "file",
    };
    let (path, target) = rest.split_once('\t').unwrap_or((rest, ""));
    let bytes = if kind == "file" { 7 } else { 0 };
    let hash = blake3::hash(if bytes > 0 { b"hostile" } else { b"" }).to_hex().to_string();
    let mut meta = Map::new();
    meta.insert("mode".to_owned(), "0777".into());
    meta.insert("target".to_owned(), target.into());
    meta.insert("links".to_owned(), json!(2));
    let (path, kind) = (path.to_owned(), kind.to_owned());
    Some(Item { path, kind, bytes, hash, rows: None, bytes_new: 0, chunker: 0, meta, stream: StreamRef::default() })
}

fuzz_target!(|data: &str| {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let outside = folder.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let options = FilesRestoreOptions {
        target: folder.path().join("target"),
        includes: vec![],
        excludes: vec![],
        overwrite: Overwrite::Refuse,
        symlinks: Symlinks::All,
        owners: false,
        special_modes: false,
        sparse: true,
        sync: false,
        jobs: Some(1.try_into().unwrap()),
    };
    let items = data.lines().take(20).filter_map(item).collect();
    let _ = restore(&options, &Hostile(items), &Progress::default());
    let names = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert!(names(folder.path()).iter().all(|name| name == "outside" || name == "target"));
    assert_eq!(fs::read(&outside).unwrap(), b"untouched", "what lies beside the target");
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1, "no other name for it");
});
