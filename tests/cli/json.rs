//! `--json` of every command, word for word but for what differs from run to run, and what docs/json.md says of it.
//!
//! What is expected lies in tests/cli/snapshots, one file a command. After a change that is meant, `INSTA_UPDATE=always cargo
//! test --test cli json` writes them anew: read the difference before it is committed.

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::harness::{Done, Home, files_below, skipped};

/// Sizes of what is stored depend on the repository's key, and on zstd; some count what vault itself adds, such as times.
const STORED: [&str; 20] = [
    "bytes_alone",
    "bytes_alone_stored",
    "bytes_bases",
    "bytes_copied",
    "bytes_freed",
    "bytes_saved_estimate",
    "bytes_stored",
    "bytes_unique",
    "bytes_unused",
    "bytes_verified",
    "dead_bytes",
    "packs_bytes",
    "packs_dead_bytes",
    "packs_deleted_bytes",
    "packs_read_bytes",
    "packs_repack_dead_bytes",
    "packs_unlisted_bytes",
    "packs_waiting_bytes",
    "ratio",
    "unused_bytes",
];

/// Gives what differs from run to run the same text in each: ids are numbered as they come.
struct Normal<'h> {
    home: &'h Home,
    ids: HashMap<String, usize>,
    /// Other texts, and what stands for them.
    texts: Vec<(String, &'static str)>,
    /// Whether it is about PostgreSQL.
    sql: bool,
}

impl<'h> Normal<'h> {
    fn new(home: &'h Home) -> Self {
        let folder = home.path("").to_str().expect("temporary names are plain").trim_end_matches('/').to_owned();
        Self { home, ids: HashMap::new(), texts: vec![(folder, "HOME")], sql: false }
    }

    /// Runs the program with `--json`, and keeps what it prints under `name`. `commands` are those whose sections of
    /// docs/json.md describe it.
    fn keep(&mut self, name: &str, commands: &[&str], args: &[&str]) -> Vec<Value> {
        let mut vault = self.home.vault(args);
        let done = Done::of(vault.arg("--json"));
        self.keep_text(name, commands, done.ok())
    }

    fn keep_text(&mut self, name: &str, commands: &[&str], text: &str) -> Vec<Value> {
        let objects: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
        let mut shown = String::new();
        for object in &objects {
            documented(object.as_object().expect("each line is an object"), commands);
            let normal = self.value("", object);
            shown += &serde_json::to_string_pretty(&normal).expect("it was JSON");
            shown.push('\n');
        }
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, shown);
        });
        objects
    }

    fn value(&mut self, key: &str, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                // A pack's own size is one of what is stored.
                let pack = fields.contains_key("pack");
                // SQL is as long as the tools of this server write it.
                let rows = fields.contains_key("table") || fields.get("kind").is_some_and(|kind| kind == "table-data");
                let sql = self.sql && !rows;
                let mut normal = Map::new();
                for (key, value) in fields {
                    // A file's, if it had not just changed when it was read.
                    if ["ctime", "inode"].contains(&key.as_str()) {
                        continue;
                    }
                    let size = key.starts_with("bytes") && ((pack && key == "bytes") || sql);
                    normal.insert(key.clone(), self.value(if size { "bytes_stored" } else { key }, value));
                }
                Value::Object(normal)
            }
            Value::Array(values) if key == "mtime" && values.len() == 2 => "[time]".into(),
            Value::Array(values) => values.iter().map(|value| self.value(key, value)).collect(),
            Value::Number(number) if STORED.contains(&key) && number.as_f64() != Some(0.0) => format!("[{key}]").into(),
            Value::Number(_) if ["pages", "seconds", "uid", "gid", "xmin"].contains(&key) => format!("[{key}]").into(),
            Value::String(text) if ["lsn", "snapshot", "system", "server", "pg_dump"].contains(&key) => {
                assert!(!text.is_empty(), "{key} says nothing");
                format!("[{key}]").into()
            }
            // They come in no order.
            Value::String(_) if key == "pack" => "[pack]".into(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        if text.parse::<jiff::Timestamp>().is_ok() {
            return "[time]".to_owned();
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let digits = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).count();
            if digits >= 16 {
                let next = self.ids.len() + 1;
                let number = *self.ids.entry(rest[..digits].to_owned()).or_insert(next);
                out += &format!("[id {number}]");
                rest = &rest[digits..];
            } else {
                let taken = digits.max(first.len_utf8());
                out += &rest[..taken];
                rest = &rest[taken..];
            }
        }
        // A pack lies in a folder that begins as its name does.
        if let Some(at) = out.find("packs/").filter(|at| out[at + 6..].contains("/[id ")) {
            out.replace_range(at + 6..at + 8, "..");
        }
        for (from, to) in &self.texts {
            out = out.replace(from, to);
        }
        let is_date = |word: &&str| word.parse::<jiff::civil::Date>().is_ok();
        if let Some(date) = out.split(' ').find(is_date).map(str::to_owned) {
            out = out.replace(&date, "[date]");
        }
        out
    }
}

/// Checks that the sections of `commands` name every field of an object.
fn documented(object: &Map<String, Value>, commands: &[&str]) {
    static DOCS: OnceLock<Vec<(String, BTreeSet<String>)>> = OnceLock::new();
    let sections = DOCS.get_or_init(|| {
        let text = include_str!("../../docs/json.md");
        let sections = text.split("\n## ").map(|section| {
            let (heading, body) = section.split_once('\n').expect("a section has a text");
            (heading.to_owned(), words_in_code(body))
        });
        sections.collect()
    });
    for (field, value) in object {
        let known = |command: &&str| {
            let section = sections.iter().find(|(heading, _)| heading.contains(&format!("`{command}")));
            section.unwrap_or_else(|| panic!("docs/json.md has no section {command}")).1.contains(field)
        };
        assert!(commands.iter().any(known), "docs/json.md, {commands:?}, does not name {field:?}");
        // What a source says of itself is described with the source.
        if ["consistency", "meta"].contains(&field.as_str()) {
            static SOURCES: OnceLock<BTreeSet<String>> = OnceLock::new();
            let sources = SOURCES.get_or_init(|| words_in_code(include_str!("../../format-spec/sources.md")));
            for inner in value.as_object().expect("they are objects").keys() {
                assert!(sources.contains(inner), "format-spec/sources.md does not name {inner:?}, a field of {field}");
            }
            continue;
        }
        let inner = value.as_array().map_or_else(|| vec![value], |values| values.iter().collect());
        inner.iter().filter_map(|value| value.as_object()).for_each(|object| documented(object, commands));
    }
}

/// What stands between backticks, word by word.
fn words_in_code(text: &str) -> BTreeSet<String> {
    let code = text.split('`').skip(1).step_by(2);
    let words = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-'));
    words.map(str::to_owned).collect()
}

/// A home with a repository, two snapshots of a stream and one of a folder: their ids.
fn home_with_snapshots() -> (Home, Vec<String>) {
    let home = Home::with_repository();
    let rows = |count: u32| (0..count).map(|n| format!("row {n}\n")).collect::<String>();
    let mut ids = vec![home.snapshot("rows", rows(1000).as_bytes()), home.snapshot("rows", rows(1100).as_bytes())];
    let folder = folder(&home);
    ids.push(home.run(&["snapshot", "files", &folder, "--name", "app", "-q"]).ok().trim_end().to_owned());
    (home, ids)
}

/// A folder with a file, a folder, a symlink and a second name of the file.
fn folder(home: &Home) -> String {
    let file = home.file("app/config/settings.toml", "level = 3\n");
    std::fs::hard_link(&file, home.path("app/second name")).expect("the home can be written");
    std::os::unix::fs::symlink("config/settings.toml", home.path("app/link")).expect("the home can be written");
    for path in ["app/config/settings.toml", "app/config", "app"] {
        let mode = if path.ends_with("toml") { 0o640 } else { 0o750 };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(home.path(path), mode).expect("it is ours");
    }
    home.path("app").to_str().expect("temporary names are plain").to_owned()
}

#[test]
fn init() {
    let mut home = Home::new();
    home.use_key_file();
    Normal::new(&home).keep("init", &["init"], &["init"]);
}

#[test]
fn snapshot_and_snapshots() {
    let home = Home::with_repository();
    let mut normal = Normal::new(&home);
    let stdin = |script: &'static str| ["snapshot", "stdin", "--name", "rows", "--", "sh", "-c", script];
    let before = |args: &[&'static str]| [&["--json"][..], args].concat();
    let first = home.run(&before(&stdin("seq 1000")));
    normal.keep_text("snapshot_stdin", &["snapshot"], first.ok());
    let second = home.run(&before(&[&["snapshot", "stdin", "--tag", "nightly"][..], &stdin("seq 1100")[2..]].concat()));
    normal.keep_text("snapshot_stdin_again", &["snapshot"], second.ok());
    let compressed = home.run(&before(&stdin("printf '\\037\\213\\010 and so on'")));
    normal.keep_text("snapshot_stdin_compressed", &["snapshot"], compressed.ok());
    normal.keep("snapshot_files", &["snapshot"], &["snapshot", "files", &folder(&home), "--name", "app"]);
    normal.keep("snapshots", &["snapshots`"], &["snapshots"]);
    normal.keep("snapshots_none", &["snapshots`"], &["snapshots", "--tag", "no such tag"]);
}

#[test]
fn show_and_diff() {
    let (home, ids) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    normal.keep("show_stdin", &["show", "snapshot"], &["show", &ids[1]]);
    normal.keep("show_files", &["show", "snapshot"], &["show", "latest:files"]);
    normal.keep("diff_stdin", &["diff"], &["diff", &ids[0], &ids[1]]);
    home.file("app/config/settings.toml", "level = 4\n");
    home.file("app/new", "new");
    std::fs::remove_file(home.path("app/link")).expect("it is ours");
    let app = home.path("app");
    home.run(&["snapshot", "files", app.to_str().expect("plain"), "--name", "app"]).ok();
    normal.keep("diff_files", &["diff"], &["diff", &ids[2], "latest:files"]);
}

#[test]
fn stats() {
    let (home, ids) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    normal.keep("stats", &["stats"], &["stats"]);
    normal.keep("stats_one", &["stats"], &["stats", &ids[0]]);
}

#[test]
fn restore() {
    let (home, ids) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    let target = |name: &str| home.path(name).to_str().expect("plain").to_owned();
    normal.keep("restore_files", &["restore"], &["restore", "latest:files", "--no-owner", "--target", &target("back")]);
    normal.keep("restore_stdin", &["restore"], &["restore", &ids[0], "--target", &target("stream")]);
    normal.keep("restore_validate_only", &["restore"], &["restore", &ids[0], "--validate-only"]);
    let done = home.run(&["--json", "restore", &ids[0], "--stdout"]);
    assert!(done.ok().starts_with("row 0\nrow 1\n") && done.ok().ends_with("row 999\n"), "nothing but the data");
}

#[test]
fn forget_and_prune() {
    let (home, ids) = home_with_snapshots();
    home.run(&["snapshot", "stdin", "--name", "rows", "--tag", "release", "-q", "--", "seq", "2000"]).ok();
    let mut normal = Normal::new(&home);
    normal.keep("forget_dry_run", &["forget"], &["forget", "--dry-run", &ids[0]]);
    normal.keep("forget", &["forget"], &["forget", &ids[0]]);
    let keep = ["--keep-last", "1", "--keep-daily", "7", "--keep-days", "1", "--keep-tag", "release"];
    let prune = |more: &[&'static str]| [&["prune"][..], &keep, more].concat();
    normal.keep("prune_dry_run", &["prune"], &prune(&["--dry-run"]));
    let keep_one = |more: &[&'static str]| [&["prune", "--keep-last", "1"][..], more].concat();
    normal.keep("prune", &["prune"], &keep_one(&[]));
    normal.keep("prune_at_once", &["prune"], &keep_one(&["--grace", "0s"]));
    normal.keep("prune_again", &["prune"], &keep_one(&["--grace", "0s"]));
}

#[test]
fn check() {
    let (home, _) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    normal.keep("check", &["check"], &["check"]);
    normal.keep("check_read_data", &["check"], &["check", "--read-data"]);
    let mut packs = files_below(&home.path("repo/packs"));
    packs.sort_by_key(|pack| std::fs::metadata(pack).expect("it is ours").modified().expect("files have times"));
    std::fs::remove_file(&packs[0]).expect("it is ours");
    let damaged = home.run(&["check", "--json"]);
    assert_eq!(damaged.code, 4, "{}", damaged.err);
    normal.keep_text("check_damaged", &["check"], &damaged.out);
}

#[test]
fn keys() {
    let home = Home::with_repository();
    let mut normal = Normal::new(&home);
    let second = home.key_file("second");
    let added = normal.keep("key_add", &["key"], &["key", "add", "--new-key-file", &second, "--label", "offline"]);
    // Slots are listed by their random ids.
    let slots = home.run(&["key", "list", "--json"]);
    let mut lines: Vec<_> = slots.ok().lines().collect();
    lines.sort_by_key(|line| !line.contains(r#""used":true"#));
    normal.keep_text("key_list", &["key"], &lines.join("\n"));
    let id = added[0]["id"].as_str().expect("a text");
    normal.keep("key_remove", &["key"], &["key", "remove", id]);
    normal.keep("key_passwd", &["key"], &["key", "passwd", "--new-key-file", &second]);
}

#[test]
fn repair() {
    let (home, _) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    normal.keep("repair_index_dry_run", &["repair"], &["repair", "index", "--dry-run"]);
    normal.keep("repair_index", &["repair"], &["repair", "index"]);
    normal.keep("repair_state", &["repair"], &["repair", "state"]);
}

/// What doctor finds depends on the machine: its details are for people, and the free space of a disk may be a warning.
#[test]
fn doctor() {
    let (home, _) = home_with_snapshots();
    let mut normal = Normal::new(&home);
    let done = home.run(&["doctor", "--json"]);
    normal.keep_text("doctor", &["doctor"], &without_details(done.ok()));
}

fn without_details(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let mut object: Value = serde_json::from_str(line).expect("each line is an object");
        if let Some(detail) = object.get_mut("detail") {
            assert!(detail.as_str().is_some_and(|text| !text.is_empty()), "{line}");
            *detail = "[detail]".into();
        }
        format!("{object}\n")
    });
    lines.collect()
}

#[test]
fn errors() {
    let mut home = Home::new();
    home.use_key_file();
    let mut normal = Normal::new(&home);
    let mut keep = |name: &str, args: &[&str]| {
        let done = Done::of(home.vault(args).arg("--json"));
        let last = done.err.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{args:?}: {}: {e}", done.err));
        assert_eq!((error["exit"].as_i64(), done.out.as_str()), (Some(done.code.into()), ""), "{args:?}");
        normal.keep_text(name, &["error"], last);
    };
    keep("error_no_repository", &["snapshots"]);
    home.run(&["init"]).ok();
    keep("error_repository_exists", &["init"]);
    keep("error_no_snapshot", &["show", "latest"]);
    keep("error_no_keep_rule", &["prune"]);
    keep("error_no_number", &["prune", "--keep-days", "abc"]);
    keep("error_no_such_option", &["snapshots", "--no-such-option"]);
    keep("error_wrong_key", &["snapshots", "--key-file", &home.key_file("another key")]);
    let stdin = ["--json", "snapshot", "stdin", "--name", "x", "--", "sh", "-c", "echo some; exit 3"];
    let done = home.run(&stdin);
    assert_eq!(done.code, 5);
    normal.keep_text("error_producer", &["error"], &done.err);
}

/// A database with two tables, on the server of `VAULT_TEST_PG*`; dropped at the end.
struct Database {
    name: String,
    env: Vec<(String, String)>,
}

impl Database {
    /// `None`, and the test named as skipped, without a server.
    fn make(test: &str, tables: &str) -> Option<Self> {
        let env: Vec<_> =
            std::env::vars().filter_map(|(k, v)| Some((k.strip_prefix("VAULT_TEST_PG")?.to_owned(), v))).collect();
        if env.is_empty() {
            skipped(&format!("json::{test}"), "VAULT_TEST_PGHOST is not set; tests/run sets it");
            return None;
        }
        let env = env.into_iter().map(|(name, value)| (format!("PG{name}"), value)).collect();
        let database = Self { name: format!("vault_test_json_{}_{test}", std::process::id()), env };
        database.psql("postgres", &format!("CREATE DATABASE {}", database.name));
        if !tables.is_empty() {
            database.psql(&database.name, tables);
        }
        Some(database)
    }

    fn psql(&self, database: &str, sql: &str) {
        let mut psql = std::process::Command::new("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]).envs(self.env.iter().cloned());
        assert_eq!(Done::of(&mut psql).code, 0, "{sql}");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {}", self.name));
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {}_back", self.name));
    }
}

#[test]
fn postgres() {
    let tables = "CREATE TABLE orders (id int PRIMARY KEY, what text); \
                  INSERT INTO orders SELECT n, 'order ' || n FROM generate_series(1, 100) n; \
                  CREATE TABLE empty (id int PRIMARY KEY)";
    let Some(database) = Database::make("postgres", tables) else { return };
    let mut home = Home::with_repository();
    for (name, value) in &database.env {
        home.set(name, value);
    }
    let mut normal = Normal::new(&home);
    normal.sql = true;
    let variable = |wanted: &str| &database.env.iter().find(|(name, _)| name == wanted).expect("it is set").1;
    normal.texts.push((variable("PGPORT").clone(), "PORT"));
    normal.texts.push((variable("PGHOST").clone(), "SERVER"));
    normal.texts.push((database.name.clone(), "shop"));
    let one = ["--database", database.name.as_str()];
    normal.keep("snapshot_postgres", &["snapshot"], &[&["snapshot", "postgres"][..], &one].concat());
    normal.keep("show_postgres", &["show", "snapshot"], &["show", "latest"]);
    let first = home.run(&["snapshots", "--json"]).json()[0]["id"].as_str().expect("a text").to_owned();
    database.psql(&database.name, "DELETE FROM orders WHERE id > 90; CREATE TABLE later ()");
    home.run(&[&["snapshot", "postgres", "-q"][..], &one].concat()).ok();
    normal.keep("diff_postgres", &["diff"], &["diff", &first, "latest"]);
    let back = format!("{}_back", database.name);
    normal.keep(
        "restore_postgres",
        &["restore"],
        &[&["restore", &first, "--into", &back, "--verify"][..], &one].concat(),
    );
    let target = home.path("sql");
    normal.keep(
        "restore_postgres_sql",
        &["restore"],
        &["restore", &first, "--target", target.to_str().expect("plain")],
    );
    // Which other databases the server has is none of ours.
    let doctor = without_details(home.run(&["doctor", "postgres", "--json"]).ok());
    let mut lines: Vec<_> = doctor.lines().collect();
    lines.dedup();
    normal.keep_text("doctor_postgres", &["doctor"], &lines.join("\n"));
}
