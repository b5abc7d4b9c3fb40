//! The Python reader of format-spec/ against repositories that vault has just written, and against the vectors.
//!
//! `VAULT_TEST_PYTHON` is a Python with what the reader imports; tests/run sets it. Without it each test is named as
//! skipped.

#[allow(dead_code)]
#[path = "cli/harness.rs"]
mod harness;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Done, Home, PASSWORD, files_below};
use serde_json::Value;

fn format_spec() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("format-spec")
}

/// Runs the reader in Python; see [`reader`].
struct Reader {
    python: std::ffi::OsString,
}

/// The reader, or `None`, and the test named as skipped, without a Python for it.
fn reader(test: &str) -> Option<Reader> {
    let python = std::env::var_os("VAULT_TEST_PYTHON");
    if python.is_none() {
        let why = "VAULT_TEST_PYTHON is not set; tests/run sets it";
        let _ = writeln!(std::io::stdout().lock(), "SKIPPED reader::{test}: {why}");
    }
    Some(Reader { python: python? })
}

impl Reader {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(format_spec().join("reader.py")).args(args).env_clear().env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("PYTHONUTF8", "1");
        command
    }

    /// A command on the repository of `home`, with its key file.
    fn on(&self, home: &Home, args: &[&str]) -> Command {
        let mut command = self.command(&[home.path("repo").to_str().expect("temporary names are plain")]);
        command.args(args).arg("--key-file").arg(home.path("key"));
        command
    }

    fn run(&self, home: &Home, args: &[&str]) -> Done {
        Done::of(&mut self.on(home, args))
    }

    /// Restores one item.
    #[track_caller]
    fn restore(&self, home: &Home, backup: &str, item: &str) -> Vec<u8> {
        let output = self.on(home, &["restore", backup, item]).output().expect("Python can be started");
        assert!(output.status.success(), "{item} of {backup}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Restores every item of every backup and compares it with what it was made of.
    #[track_caller]
    fn restores(&self, home: &Home, backups: &[(String, Vec<u8>)]) {
        let listed = self.run(home, &["list"]).json();
        let listed: Vec<_> = listed.iter().map(|backup| &backup["id"]).collect();
        let taken: Vec<_> = backups.iter().map(|(id, _)| Value::from(id.clone())).collect();
        assert_eq!(listed, taken.iter().collect::<Vec<_>>(), "the backups, oldest first");
        for (id, data) in backups {
            let items = self.run(home, &["items", id]).json();
            let [item] = &items[..] else { panic!("a stream is one item: {items:?}") };
            assert_eq!(item["bytes"], data.len(), "{item}");
            let restored = self.restore(home, id, item["path"].as_str().expect("text"));
            assert!(restored == *data, "{item} of {id}: {} bytes that differ", restored.len());
        }
    }

    #[track_caller]
    fn finds_clean(&self, home: &Home) {
        assert_eq!(self.run(home, &["check"]).ok(), "clean\n");
    }
}

/// Bytes that look random and are the same everywhere.
fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A dump of `rows` rows, of which one in a hundred is another on another day.
fn dump(rows: usize, day: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..rows {
        let version = if row % 100 == day { day } else { 0 };
        let hash = blake3::hash(format!("{row} {version}").as_bytes()).to_hex();
        writeln!(out, "{row}\tcustomer-{}\t{}\t{hash}", row % 997, row * 31 + version).expect("memory");
    }
    out
}

/// Takes snapshots of streams large and small, of several days.
fn days(home: &Home) -> Vec<(String, Vec<u8>)> {
    let mut streams = vec![("small", b"x".to_vec()), ("zeros", vec![0; 3_000_000]), ("Größe/%2F", dump(10, 0))];
    for day in 0..3 {
        streams.push(("orders", dump(60_000, day)));
    }
    let shifted = [&b"inserted at the beginning"[..], &dump(60_000, 2)].concat();
    streams.push(("orders", shifted));
    streams.push(("noise", noise("a stream", 5_000_000)));
    streams.into_iter().map(|(name, data)| (home.snapshot(name, &data), data)).collect()
}

#[test]
fn the_reader_comes_to_every_outcome_of_the_vectors() {
    let Some(reader) = reader("the_reader_comes_to_every_outcome_of_the_vectors") else { return };
    let vectors = format_spec().join("vectors");
    let done = Done::of(&mut reader.command(&["vectors", vectors.to_str().expect("UTF-8")]));
    assert!(done.ok().contains(" 0 wrong"), "{}", done.out);
    let cases: usize = done.out.split(' ').next().and_then(|n| n.parse().ok()).expect("a count");
    assert!(cases >= 120, "only {cases} cases");
}

#[test]
fn the_reader_is_short_enough_to_be_read() {
    let lines = std::fs::read_to_string(format_spec().join("reader.py")).expect("it is there").lines().count();
    assert!(lines <= 500, "{lines} lines");
}

#[test]
fn what_vault_has_written_the_reader_restores() {
    let Some(reader) = reader("what_vault_has_written_the_reader_restores") else { return };
    let home = Home::with_repository();
    assert_eq!(reader.run(&home, &["list"]).ok(), "", "a repository without backups");
    reader.finds_clean(&home);
    let backups = days(&home);
    reader.restores(&home, &backups);
    reader.finds_clean(&home);
    let orders = backups.iter().filter(|(_, data)| data.len() > 1_000_000 && data[0] == b'0').count();
    assert_eq!(orders, 3, "days of one source, whose blobs may rest on each other");

    let out = home.path("out");
    let (latest, data) = backups.last().expect("there are some");
    reader.run(&home, &["restore-all", latest, "--out", out.to_str().expect("UTF-8")]).ok();
    let written = files_below(&out);
    assert_eq!(written.len(), 1, "{written:?}");
    assert!(std::fs::read(&written[0]).expect("it is there") == *data, "restored into a folder");
    reader.run(&home, &["restore-all", latest, "--out", out.to_str().expect("UTF-8")]).fails(6, &["exists"]);
}

#[test]
fn without_an_index_the_reader_reads_the_packs() {
    let Some(reader) = reader("without_an_index_the_reader_reads_the_packs") else { return };
    let home = Home::with_repository();
    let repo = home.path("repo");
    let backups = days(&home);
    std::fs::remove_dir_all(repo.join("index")).expect("there is an index");
    reader.restores(&home, &backups);
    reader.finds_clean(&home);
}

#[test]
fn what_forget_and_prune_leave_the_reader_restores() {
    let Some(reader) = reader("what_forget_and_prune_leave_the_reader_restores") else { return };
    let home = Home::with_repository();
    let mut backups = days(&home);
    let packs = |home: &Home| files_below(&home.path("repo/packs")).len();
    let (forgotten, _) = backups.remove(0);
    home.run(&["forget", &forgotten]).ok();
    reader.restores(&home, &backups);
    reader.finds_clean(&home);
    let before = packs(&home);
    // Of every stream the last snapshot stays: orders has four.
    home.run(&["prune", "--keep-last", "1", "--grace", "0s"]).ok();
    let kept: Vec<String> = home
        .run(&["snapshots", "--json"])
        .json()
        .iter()
        .map(|one| one["id"].as_str().expect("text").to_owned())
        .collect();
    backups.retain(|(id, _)| kept.contains(id));
    assert_eq!((backups.len(), kept.len()), (4, 4), "one of each stream");
    assert!(packs(&home) < before, "what nobody needs is gone");
    reader.restores(&home, &backups);
    reader.finds_clean(&home);
    std::fs::remove_dir_all(home.path("repo/index")).expect("there is an index");
    reader.restores(&home, &backups);
}

#[test]
fn files_and_folders_come_back() {
    let Some(reader) = reader("files_and_folders_come_back") else { return };
    let home = Home::with_repository();
    let big = noise("a file", 3_000_000);
    let files: [(&str, &str, &[u8]); 6] = [
        ("big", "big", &big),
        ("empty", "empty", b""),
        ("a/b/c", "a/b/c", b"deep"),
        ("a/Größe ☂", "a/Größe ☂", b"not ASCII"),
        ("a/100%", "a/100%25", b"escaped"),
        ("new\nline", "new%0Aline", b"escaped too"),
    ];
    for (name, _, data) in &files {
        home.file(&format!("tree/{name}"), data);
    }
    std::fs::create_dir(home.path("tree/nothing in it")).expect("the home is ours");
    std::os::unix::fs::symlink("big", home.path("tree/link")).expect("the home is ours");
    let tree = home.path("tree").to_str().expect("UTF-8").to_owned();
    let ids = [(); 2].map(|()| home.run(&["snapshot", "files", &tree, "-q"]).ok().trim_end().to_owned());
    for (at, id) in ids.iter().enumerate() {
        let items = reader.run(&home, &["items", id]).json();
        let kind = |path: &str| items.iter().find(|item| item["path"] == path).map(|item| item["kind"].clone());
        assert_eq!(kind("tree/link"), Some("symlink".into()), "{items:?}");
        assert_eq!(kind("tree/nothing in it"), Some("folder".into()), "{items:?}");
        let out = home.path(&format!("out{at}"));
        reader.run(&home, &["restore-all", id, "--out", out.to_str().expect("UTF-8")]).ok();
        assert_eq!(files_below(&out).len(), files.len(), "all of them and no more");
        assert!(out.join("tree/nothing in it").is_dir());
        for (name, path, data) in &files {
            let restored = std::fs::read(out.join("tree").join(path)).expect("it is there");
            assert!(restored == *data, "{name:?} came back as it was");
        }
    }
    reader.finds_clean(&home);
}

#[test]
fn every_key_slot_opens_the_repository_and_nothing_else_does() {
    let Some(reader) = reader("every_key_slot_opens_the_repository_and_nothing_else_does") else { return };
    let home = Home::with_repository();
    let data = dump(1000, 0);
    let backups = [(home.snapshot("orders", &data), data)];
    let other = home.key_file("other key");
    home.run(&["key", "add", "--new-key-file", &other, "--label", "Büro"]).ok();
    home.run_with("VAULT_NEW_PASSWORD", PASSWORD, &["key", "add"]).ok();
    let slot = home.run_with("VAULT_NEW_PASSWORD", "zweites Paßwort", &["key", "add"]).ok().trim_end().to_owned();
    let repo = home.path("repo");
    let list = |password: Option<&str>, more: &[&str]| {
        let mut command = reader.command(&[repo.to_str().expect("UTF-8"), "list"]);
        Done::of(command.args(more).envs(password.map(|password| ("VAULT_PASSWORD", password))))
    };
    reader.restores(&home, &backups);
    let file = home.file("password", "zweites Paßwort\n");
    list(Some(PASSWORD), &[]).ok();
    list(None, &["--key-file", &other]).ok();
    assert_eq!(list(None, &["--password-file", &file]).json().len(), 1, "without the newline of the file");
    list(Some("zweites Passwort"), &[]).fails(12, &["key slot"]);
    list(None, &[]).fails(12, &["key slot"]);
    list(None, &["--key-file", &home.key_file("a third key")]).fails(12, &["key slot"]);
    home.run(&["key", "remove", &slot]).ok();
    list(None, &["--password-file", &file]).fails(12, &["key slot"]);
    reader.finds_clean(&home);
    Done::of(&mut reader.command(&[home.path("nowhere").to_str().expect("UTF-8"), "list"]))
        .fails(10, &["no repository"]);
}

/// One bit of every object, one object after the other: the reader finds it, and never writes bytes that are not the item's.
#[test]
fn the_reader_finds_one_flipped_bit_in_any_object() {
    let Some(reader) = reader("the_reader_finds_one_flipped_bit_in_any_object") else { return };
    let home = Home::with_repository();
    let repo = home.path("repo");
    let backups: Vec<_> = (0..2).map(|day| (home.snapshot("orders", &dump(3000, day)), dump(3000, day))).collect();
    let objects = files_below(&repo);
    assert!(objects.len() >= 8, "{objects:?}");
    for object in objects {
        let whole = std::fs::read(&object).expect("it is there");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        std::fs::remove_file(&object).expect("it is ours");
        std::fs::write(&object, &flipped).expect("it is ours");
        let done = reader.run(&home, &["check"]);
        // In a key slot it is as likely the secret that does not fit.
        let is_slot = object.parent().is_some_and(|folder| folder.ends_with("keys"));
        assert!(done.code == 4 || (is_slot && done.code == 12), "{}: {done:?}", object.display());
        for (id, data) in &backups {
            let output = reader.on(&home, &["restore", id, "orders"]).output().expect("Python can be started");
            let same = output.stdout == *data;
            assert_eq!(output.status.success(), same, "{}: exit 0 means these bytes", object.display());
            assert!(data.starts_with(&output.stdout), "{}: what it wrote before is the item's", object.display());
        }
        std::fs::write(&object, &whole).expect("it is ours");
    }
    reader.restores(&home, &backups);
}
