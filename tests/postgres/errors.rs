//! What goes wrong between vault and a server, and what a user is told.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vault::progress::Progress;
use vault::source::postgres::{
    Client, Dsn, ErrorKind, Halt, Password, PostgresError, RestoreOptions, Settings, SnapshotOptions, ToolSearch,
    restore, snapshot,
};
use vault::source::{Item, ItemFacts, ItemSink, ItemSource, ItemStream};

use crate::every_kind::{assert_same, dump, restore_options, said, snapshot_options, take};
use crate::items::Kept;
use crate::server::Server;

fn fails(result: Result<Kept, PostgresError>, kind: ErrorKind, words: &[&str]) -> String {
    let error = result.err().expect("it fails");
    let text = said(&error);
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing from: {text}");
    }
    assert!(!text.contains("sesame"), "no password in an error: {text}");
    text
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = dead.local_addr().unwrap().port();
    drop(dead);
    let settings =
        Settings::resolve(Some(Dsn::Hidden(&format!("postgres://u:sesame@127.0.0.1:{port}/x"))), |_| None).unwrap();
    fails(
        take(&snapshot_options(&settings, "x")),
        ErrorKind::Source,
        &["127.0.0.1", &port.to_string(), "PGHOST", "refused"],
    );

    // One that takes the connection and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let dsn = format!("postgres://u@127.0.0.1:{port}/x?connect_timeout=1");
    let settings = Settings::resolve(Some(Dsn::Hidden(&dsn)), |_| None).unwrap();
    let began = Instant::now();
    fails(take(&snapshot_options(&settings, "x")), ErrorKind::Source, &["does not answer"]);
    assert!(began.elapsed() < Duration::from_secs(20), "the timeout counts");
    let settings = Settings::resolve(Some(Dsn::Hidden("host=/nowhere port=1 user=u")), |_| None).unwrap();
    fails(take(&snapshot_options(&settings, "x")), ErrorKind::Source, &["/nowhere"]);
}

#[test]
fn an_unknown_answer_is_no_panic() {
    use std::io::{Read, Write};
    let answers: [&[u8]; 8] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"N\x00\x00\x00\x00",
        b"NR\xff\xff\xff\xff",
        b"NR\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05ID\x00\x00\x00\x05",
        b"NE\x00\x00\x00\x05S",
        b"NR\x00\x00\x00\x0c\x00\x00\x00\x0aX\x00\x00\x00",
        b"NR\x00\x00\x00\x08\x00\x00\x00\x0b",
        b"",
    ];
    for answer in answers {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 8]);
                let _ = stream.write_all(answer);
            }
        });
        let dsn = format!("postgres://u@127.0.0.1:{port}/x?connect_timeout=2");
        let settings = Settings::resolve(Some(Dsn::Hidden(&dsn)), |_| None).unwrap();
        fails(take(&snapshot_options(&settings, "x")), ErrorKind::Source, &[&port.to_string()]);
        thread.join().unwrap();
    }
}

#[test]
fn a_wrong_login_says_which() {
    let Some(mut server) = Server::get("a_wrong_login_says_which") else { return };
    let database = server.database();
    let role = server.role("LOGIN");
    let wrong = Settings { password: Some(Password::new("sesame2")), ..server.login(&role) };
    fails(take(&snapshot_options(&wrong, &database)), ErrorKind::Source, &[&role, "28P01", "PGPASSWORD"]);
    let none = Settings { password: None, ..server.login(&role) };
    fails(take(&snapshot_options(&none, &database)), ErrorKind::Source, &["none is set", "~/.pgpass"]);
    let error = fails(take(&snapshot_options(&server.settings, "no such")), ErrorKind::Usage, &["no such", &database]);
    assert!(error.contains("postgres"), "it lists what there is: {error}");
    server.run("postgres", &format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"));
    fails(take(&snapshot_options(&server.login(&role), &database)), ErrorKind::Source, &[&database, "may not connect"]);
}

#[test]
fn a_table_that_the_role_may_not_read_is_named() {
    let Some(mut server) = Server::get("a_table_that_the_role_may_not_read_is_named") else { return };
    let database = server.database();
    let role = server.role("LOGIN");
    server.run(
        &database,
        &format!(
            "CREATE TABLE open (a serial); CREATE TABLE closed (a integer); GRANT SELECT ON open, open_a_seq TO {role}"
        ),
    );
    let options = snapshot_options(&server.login(&role), &database);
    fails(take(&options), ErrorKind::Source, &["public.closed", &role, &database, "GRANT", "pg_read_all_data"]);
    server.run(&database, &format!("GRANT SELECT ON closed TO {role}; REVOKE SELECT ON open_a_seq FROM {role}"));
    fails(take(&options), ErrorKind::Source, &["sequence public.open_a_seq", &role]);
    server
        .run(&database, &format!("GRANT SELECT ON open_a_seq TO {role}; ALTER TABLE closed ENABLE ROW LEVEL SECURITY"));
    fails(take(&options), ErrorKind::Source, &["public.closed", "row security", "BYPASSRLS"]);
    server.run(&database, "ALTER TABLE closed DISABLE ROW LEVEL SECURITY; SELECT lo_create(4711)");
    fails(take(&options), ErrorKind::Source, &["large object", &role]);
    server.run(&database, &format!("SELECT lo_put(4711, 0, 'x'); GRANT SELECT ON LARGE OBJECT 4711 TO {role}"));
    // Now it may read everything, and is no superuser.
    let kept = Kept::default();
    let facts = snapshot(&options, None, &kept, &Progress::default()).unwrap_or_else(|e| panic!("{}", said(&e)));
    assert!(facts.warnings.iter().any(|text| text.contains("without their passwords")), "{:?}", facts.warnings);
    assert!(!kept.text("globals").contains("SCRAM"), "no password hashes");
    assert_eq!(kept.text(&format!("{database}/large-objects")), "4711\t0\t\\\\x78\n");
    let into = server.database_name();
    restore(&restore_options(&server.settings, &into), &kept, &Progress::default())
        .unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_same(&dump(&server, &database), &dump(&server, &into), "dump of what a plain role has read");
}

/// Calls a function once, when the first bytes of a table have come.
struct Meddling<'a> {
    kept: Kept,
    once: Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>,
}

struct MeddlingStream<'s, 'a> {
    meddling: &'s Meddling<'a>,
    stream: Box<dyn ItemStream + 's>,
    table: bool,
}

impl io::Write for MeddlingStream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.table
            && let Some(once) = self.meddling.once.lock().unwrap().take()
        {
            once();
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ItemStream for MeddlingStream<'_, '_> {
    fn finish(self: Box<Self>, facts: ItemFacts) -> io::Result<vault::source::ItemDone> {
        self.stream.finish(facts)
    }
}

impl ItemSink for Meddling<'_> {
    fn begin<'s>(&'s self, order: u64, path: &str, kind: &str) -> io::Result<Box<dyn ItemStream + 's>> {
        let stream = self.kept.begin(order, path, kind)?;
        Ok(Box::new(MeddlingStream { meddling: self, stream, table: path.contains("/table/public/big") }))
    }

    fn reuse(&self, _: u64, _: &Item, _: ItemFacts) -> io::Result<bool> {
        Ok(false)
    }
}

fn big(server: &mut Server) -> String {
    let database = server.database();
    server.run(
        &database,
        "CREATE TABLE big (a integer PRIMARY KEY, b text);
         INSERT INTO big SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i;
         CREATE TABLE small AS SELECT 1 AS a; CREATE INDEX ON big (b)",
    );
    database
}

fn meddled<'a>(
    options: &SnapshotOptions,
    progress: &Progress,
    once: impl FnOnce() + Send + 'a,
) -> (Meddling<'a>, Result<Kept, PostgresError>) {
    let meddling = Meddling { kept: Kept::default(), once: Mutex::new(Some(Box::new(once))) };
    let result = snapshot(options, None, &meddling, progress).map(|_| Kept::default());
    assert!(meddling.once.lock().unwrap().is_none(), "the table was being read");
    (meddling, result)
}

#[test]
fn a_backend_that_dies_in_the_middle_leaves_no_item() {
    let Some(mut server) = Server::get("a_backend_that_dies_in_the_middle_leaves_no_item") else { return };
    let database = big(&mut server);
    let options = snapshot_options(&server.settings, &database);
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND query LIKE 'COPY%big%'"
    );
    let (meddling, result) = meddled(&options, &Progress::default(), || server.run("postgres", &kill));
    fails(result, ErrorKind::DumpFailed, &["public.big", &database]);
    assert!(meddling.kept.item(&format!("{database}/table/public/big")).is_none(), "half a table is no item");

    let drop = format!("DROP DATABASE {database} WITH (FORCE)");
    let (meddling, result) = meddled(&options, &Progress::default(), || server.run("postgres", &drop));
    fails(result, ErrorKind::DumpFailed, &[&database]);
    assert!(meddling.kept.item(&format!("{database}/table/public/big")).is_none());
}

#[test]
fn a_cancelled_snapshot_ends_soon_and_leaves_no_backend() {
    let Some(mut server) = Server::get("a_cancelled_snapshot_ends_soon_and_leaves_no_backend") else { return };
    let database = big(&mut server);
    let options = snapshot_options(&server.settings, &database);
    let progress = Progress::default();
    let cancelled = Mutex::new(None);
    let (_, result) = meddled(&options, &progress, || {
        progress.cancel();
        *cancelled.lock().unwrap() = Some(Instant::now());
    });
    assert_eq!(result.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
    let took = cancelled.lock().unwrap().expect("it was cancelled").elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
    let gone = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        server.value("postgres", &left) == "0"
    });
    assert!(gone, "its connections are closed");
}

#[test]
fn a_wait_for_a_lock_can_be_cancelled() {
    let Some(mut server) = Server::get("a_wait_for_a_lock_can_be_cancelled") else { return };
    let database = big(&mut server);
    let mut holder = server.client(&database);
    holder.execute("BEGIN; LOCK TABLE small IN ACCESS EXCLUSIVE MODE").unwrap();
    let progress = Progress::default();
    let cancelling = progress.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        cancelling.cancel();
    });
    let began = Instant::now();
    let error =
        snapshot(&snapshot_options(&server.settings, &database), None, &Kept::default(), &progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", said(&error));
    assert!(began.elapsed() < Duration::from_secs(5));
    thread.join().unwrap();
}

#[test]
fn somebody_who_waits_to_lock_a_table_does_not_stop_the_snapshot() {
    let Some(mut server) = Server::get("somebody_who_waits_to_lock_a_table_does_not_stop_the_snapshot") else { return };
    let database = server.database();
    for name in ["big_a", "big_b", "big_c", "last"] {
        server.run(&database, &format!("CREATE TABLE {name} AS SELECT 1 AS a"));
    }
    let settings = server.settings.clone();
    let name = database.clone();
    let waiting = Mutex::new(None);
    let until = |sql: &str, value: &str| {
        let there = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            server.value("postgres", sql) == value
        });
        assert!(there, "{sql} gives {value}");
    };
    // All three connections are held at their first table until somebody wants to rewrite the last one: whoever asks for
    // that table now queues behind him, and he waits for the snapshot.
    let options = SnapshotOptions { jobs: 3, ..snapshot_options(&server.settings, &database) };
    let (meddling, result) = meddled(&options, &Progress::default(), || {
        let in_database = format!("database = (SELECT oid FROM pg_database WHERE datname = '{database}')");
        *waiting.lock().unwrap() = Some(std::thread::spawn(move || {
            let mut client = Client::connect(&settings, &name, &Halt::new(&Progress::default())).unwrap();
            client.execute("ALTER TABLE last ALTER COLUMN a TYPE bigint").map(drop)
        }));
        until(
            &format!(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND {in_database}"
            ),
            "1",
        );
    });
    if let Err(e) = result {
        panic!("{}", said(&e));
    }
    assert_eq!(meddling.kept.text(&format!("{database}/table/public/last")), "1\n");
    waiting.lock().unwrap().take().unwrap().join().unwrap().expect("he gets his lock in the end");
}

/// Writes a script that stands in for both tools.
fn stand_in(folder: &Path, script: &str) {
    for tool in ["pg_dump", "pg_dumpall"] {
        let file = folder.join(tool);
        std::fs::write(&file, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_others_drop_meanwhile_is_looked_at_again() {
    let Some(mut server) = Server::get("what_others_drop_meanwhile_is_looked_at_again") else { return };
    let database = server.database();
    server.run(&database, "CREATE TABLE a AS SELECT 1 AS i; CREATE VIEW b AS SELECT i FROM a");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    // The real tools, but first each says what `act` makes it say, with how often it has run before in `$n`.
    stand_in(
        folder.path(),
        &format!(
            "case \"$*\" in --version) exec \"${{0##*/}}\" \"$@\";; \
            *globals*) part=globals;; *pre-data*) part=first;; *) part=last;; esac\n\
            n=$(cat {place}/$part 2>/dev/null || echo 0); echo $((n + 1)) >{place}/$part\n. {place}/act\n\
            exec \"${{0##*/}}\" \"$@\"\n"
        ),
    );
    let act = |script: &str| std::fs::write(folder.path().join("act"), script).unwrap();
    let runs = |part: &str| std::fs::read_to_string(folder.path().join(part)).unwrap_or_default().trim().to_owned();
    let search = ToolSearch { path: vec![folder.path().to_owned()], versioned: Vec::new() };
    let options = SnapshotOptions { tools: search, ..snapshot_options(&server.settings, &database) };
    act(
        "[ $n -gt 0 ] || { echo \"$part: error: query failed: ERROR:  cache lookup failed for function $$\" >&2; exit 1; }\n",
    );
    let kept = take(&options).unwrap();
    assert_eq!(runs("globals"), "2");
    let plain = take(&snapshot_options(&server.settings, &database)).unwrap();
    for item in ["pre-data", "post-data", "table/public/a"] {
        let path = format!("{database}/{item}");
        assert_eq!(kept.text(&path), plain.text(&path), "{item} is stored once, and whole");
    }
    // What does not pass is not asked for again and again.
    for part in ["globals", "first", "last"] {
        act(&format!("[ $part != {part} ] || {{ echo 'query failed: permission denied' >&2; exit 1; }}\n"));
        let _ = std::fs::remove_file(folder.path().join(part));
        fails(take(&options), ErrorKind::DumpFailed, &["permission denied"]);
        assert_eq!(runs(part), "2", "{part}");
    }
}

#[test]
fn an_old_or_missing_pg_dump_is_explained() {
    let Some(mut server) = Server::get("an_old_or_missing_pg_dump_is_explained") else { return };
    let database = server.database();
    let folder = tempfile::tempdir().unwrap();
    let search = ToolSearch { path: vec![folder.path().to_owned()], versioned: Vec::new() };
    let options = SnapshotOptions { tools: search, ..snapshot_options(&server.settings, &database) };
    let place = folder.path().display().to_string();
    fails(take(&options), ErrorKind::Source, &["needs pg_dump", "none was found", &place]);
    let fake = |says: &str| {
        stand_in(
            folder.path(),
            &format!(
                "[ \"$1\" = --version ] && {{ echo 'pg_dump (PostgreSQL) {says}'; exit; }}\n\
                {{ tr '\\0' '\\n' </proc/$$/environ; echo \"$@\"; cat \"$PGPASSFILE\" >/dev/null; }} >{place}/seen\n\
                ls -l \"$PGPASSFILE\" >>{place}/seen\n. {place}/act\n"
            ),
        );
    };
    fake("9.6.1");
    fails(take(&options), ErrorKind::Source, &["needs pg_dump", "9.6.1", &place]);
    fake("99.1");
    let act = |script: &str| std::fs::write(folder.path().join("act"), script).unwrap();
    act("echo 'the last words' >&2; exit 3");
    fails(take(&options), ErrorKind::DumpFailed, &["exit status 3", "the last words"]);
    act("kill -9 $$");
    fails(take(&options), ErrorKind::DumpFailed, &["signal 9"]);
    act("echo '-- half a text'");
    fails(take(&options), ErrorKind::DumpFailed, &["cut short"]);
    // What the tool was shown: no secret in its environment or arguments, a file only we can read.
    let seen = std::fs::read_to_string(folder.path().join("seen")).unwrap();
    let password = server.settings.password.as_ref().map_or("", Password::reveal);
    assert!(!password.is_empty() && !seen.contains(password), "{seen}");
    assert!(seen.contains("-rw-------") && !seen.contains("VAULT_TEST"), "{seen}");
}

#[test]
fn bytes_that_differ_are_not_committed() {
    let Some(mut server) = Server::get("bytes_that_differ_are_not_committed") else { return };
    let database = big(&mut server);
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let path = format!("{database}/table/public/big");
    let good = kept.text(&path);
    let into = server.database_name();
    let options = restore_options(&server.settings, &into);

    kept.damage(&path, |bytes| bytes[100] ^= 1);
    let text = fails(
        restore(&options, &kept, &Progress::default()).map(|_| Kept::default()),
        ErrorKind::Items,
        &["public.big", "hash", "--resume", "--clean"],
    );
    assert!(text.contains(&into), "{text}");
    assert_eq!(server.value(&into, "SELECT count(*) FROM big"), "0", "its rows are not there");
    let comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()";
    assert!(server.value(&into, comment).contains("INCOMPLETE restore of snapshot 0123abcd"), "the database is marked");

    // Neither by chance nor by another snapshot is it taken for whole.
    fails(
        restore(&options, &kept, &Progress::default()).map(|_| Kept::default()),
        ErrorKind::RestoreTarget,
        &["--resume", "--clean"],
    );
    let other = RestoreOptions { snapshot: "ffff".into(), resume: true, ..options.clone() };
    fails(
        restore(&other, &kept, &Progress::default()).map(|_| Kept::default()),
        ErrorKind::RestoreTarget,
        &["0123abcd", "--clean"],
    );

    kept.damage(&path, |bytes| *bytes = good.into_bytes());
    let resume = RestoreOptions { resume: true, ..options };
    let report = restore(&resume, &kept, &Progress::default()).unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_eq!(report.databases[0].tables.len(), 2, "tables done before are in the report too");
    assert_eq!(server.value(&into, comment), "", "the mark is gone");
    assert_same(&dump(&server, &database), &dump(&server, &into), "dump after resuming");
}

/// Gives items, and runs out after some bytes.
struct Ending<'a> {
    kept: &'a Kept,
    left: Mutex<usize>,
}

impl ItemSource for Ending<'_> {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        self.kept.each_item(each)
    }

    fn read_item(&self, item: &Item, out: &mut dyn io::Write) -> io::Result<()> {
        let text = self.kept.text(&item.path);
        let mut left = self.left.lock().unwrap();
        let given = text.len().min(*left);
        *left -= given;
        out.write_all(&text.as_bytes()[..given])?;
        if given < text.len() { Err(io::Error::other("the repository is gone")) } else { Ok(()) }
    }
}

#[test]
fn a_restore_can_break_off_anywhere_and_go_on() {
    let Some(mut server) = Server::get("a_restore_can_break_off_anywhere_and_go_on") else { return };
    let database = server.database();
    server.run(
        &database,
        "CREATE TABLE a (i serial PRIMARY KEY, t text); INSERT INTO a (t) SELECT repeat('x', 100) FROM generate_series(1, 1000);
         CREATE TABLE b (i integer REFERENCES a); INSERT INTO b SELECT i FROM generate_series(1, 500) i;
         CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM b; CREATE INDEX ON b (i); CREATE INDEX ON v (n);
         SELECT lo_from_bytea(77, decode(repeat('ab', 10000), 'hex')); COMMENT ON DATABASE CURRENT IS 'x'"
            .replace("COMMENT ON DATABASE CURRENT IS 'x'", &format!("COMMENT ON DATABASE {database} IS 'x'"))
            .as_str(),
    );
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let original = dump(&server, &database);
    let into = server.database_name();
    let mut options = RestoreOptions { jobs: 1, ..restore_options(&server.settings, &into) };
    let mut broken = 0;
    // Each attempt comes a little further than the one before.
    for bytes in (0..).map(|n| 10_000 + n * 20_000) {
        match restore(&options, &Ending { kept: &kept, left: Mutex::new(bytes) }, &Progress::default()) {
            Ok(_) => break,
            Err(e) => assert!(said(&e).contains("the repository is gone"), "{}", said(&e)),
        }
        broken += 1;
        assert!(broken < 100, "it comes to an end");
        options.resume = true;
    }
    assert!(broken > 3, "it broke off {broken} times");
    assert_same(&original, &dump(&server, &into), "dump after many attempts");
    let error = restore(&options, &kept, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("not empty"), "there is nothing to go on with: {error}");
}

/// Calls a function when the bytes of an item are asked for, before it gives them.
struct Watched<'a> {
    kept: &'a Kept,
    path: String,
    look: &'a (dyn Fn() + Sync),
}

impl ItemSource for Watched<'_> {
    fn each_item(&self, each: &mut dyn FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        self.kept.each_item(each)
    }

    fn read_item(&self, item: &Item, out: &mut dyn io::Write) -> io::Result<()> {
        if item.path == self.path {
            (self.look)();
        }
        self.kept.read_item(item, out)
    }
}

#[test]
fn an_index_is_built_once_its_table_is_loaded_and_not_before() {
    let Some(mut server) = Server::get("an_index_is_built_once_its_table_is_loaded_and_not_before") else { return };
    let database = big(&mut server);
    server.run(&database, "CREATE INDEX small_a ON small (a); ALTER TABLE small ADD FOREIGN KEY (a) REFERENCES big");
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let into = server.database_name();
    let options = restore_options(&server.settings, &into);
    let names = "SELECT coalesce(string_agg(indexname, ','), '') FROM pg_indexes WHERE schemaname = 'public'";
    let constraints = "SELECT count(*) FROM pg_constraint WHERE contype IN ('f', 'p') AND conrelid >= 16384 \
        AND connamespace = 'public'::regnamespace";

    // As long as the large table has no rows, the other connection builds the small one's index, and nothing else.
    let look = || {
        let there = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            server.value(&into, names) == "small_a"
        });
        assert!(there, "the index comes while the other table waits; there is {:?}", server.value(&into, names));
        let analyzed = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            server.value(&into, "SELECT count(*) FROM pg_stats WHERE tablename = 'small'") == "1"
        });
        assert!(analyzed, "and then its statistics");
        assert_eq!(server.value(&into, names), "small_a", "none of those of a table without rows");
        assert_eq!(server.value(&into, constraints), "0", "and no constraint of it");
    };
    let watched = Watched { kept: &kept, path: format!("{database}/table/public/big"), look: &look };
    restore(&options, &watched, &Progress::default()).unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_same(&dump(&server, &database), &dump(&server, &into), "dump");
}

#[test]
fn an_index_that_fails_leaves_a_restore_to_go_on_with() {
    let Some(mut server) = Server::get("an_index_that_fails_leaves_a_restore_to_go_on_with") else { return };
    let database = big(&mut server);
    server.run(&database, "CREATE INDEX small_a ON small (a)");
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let post_data = format!("{database}/post-data");
    let good = kept.text(&post_data);
    for jobs in [1, 2] {
        let into = server.database_name();
        let options = RestoreOptions { jobs, ..restore_options(&server.settings, &into) };
        kept.change(&post_data, |bytes| *bytes = good.replace("btree (a)", "btree (missing)").into_bytes());
        let result = restore(&options, &kept, &Progress::default());
        fails(
            result.map(|_| Kept::default()),
            ErrorKind::RestoreTarget,
            &["small_a", "42703", &into, "--resume", "--clean"],
        );
        let marks = "SELECT count(*) FROM pg_namespace WHERE nspname = 'vault_restore'";
        assert_eq!(server.value(&into, marks), "1", "the database is marked");
        assert_eq!(server.value(&into, "SELECT count(*) FROM pg_indexes WHERE indexname = 'small_a'"), "0");

        kept.change(&post_data, |bytes| *bytes = good.clone().into_bytes());
        let resume = RestoreOptions { resume: true, ..options };
        restore(&resume, &kept, &Progress::default()).unwrap_or_else(|e| panic!("{}", said(&e)));
        assert_eq!(server.value(&into, marks), "0", "the mark is gone");
        assert_same(&dump(&server, &database), &dump(&server, &into), "dump after resuming");
    }
}

#[test]
fn a_restore_whose_backend_dies_can_go_on() {
    let Some(mut server) = Server::get("a_restore_whose_backend_dies_can_go_on") else { return };
    let database = big(&mut server);
    let kept = take(&snapshot_options(&server.settings, &database)).unwrap();
    let into = server.database_name();
    let options = restore_options(&server.settings, &into);
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{into}' AND query LIKE 'COPY%big%'"
    );
    let look = || assert_eq!(server.value("postgres", &kill), "1", "the table is being loaded");
    let watched = Watched { kept: &kept, path: format!("{database}/table/public/big"), look: &look };
    let result = restore(&options, &watched, &Progress::default());
    fails(result.map(|_| Kept::default()), ErrorKind::RestoreTarget, &["public.big", &into, "--resume", "--clean"]);
    assert_eq!(server.value(&into, "SELECT count(*) FROM big"), "0", "nothing of it was committed");
    let resume = RestoreOptions { resume: true, ..options };
    restore(&resume, &kept, &Progress::default()).unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_same(&dump(&server, &database), &dump(&server, &into), "dump after resuming");
}
