//! `vault demo`.

mod data;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::context::{Context, cores};
use super::exit::{self, CliError, Exit};
use super::screen::{count, size};
use super::settings::env;
use crate::backend::Local;
use crate::ops::check::{CheckOptions, ReadData, Status, check};
use crate::ops::restore::SnapshotItems;
use crate::ops::snapshot::{SnapshotOptions, snapshot};
use crate::pipeline::snapshot::WriteOptions;
use crate::progress::Progress;
use crate::repo::snapshots::Snapshot;
use crate::repo::{Places, Repository, random};
use crate::seal::slot::Secret;
use crate::source::postgres::{self, Client, Dsn, Halt, RestoreOptions, Settings, ToolSearch, ident};

/// Show a PostgreSQL database going through a snapshot, a day of changes, a snapshot, a restore and a check
///
/// Makes a database of its own on the server that --server, PGHOST and so on name, and a repository in a temporary folder, and
/// removes both at the end. Nothing else on the server is read or changed. Takes less than a minute.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "PGHOST=localhost PGUSER=postgres vault demo"
))]
pub struct Args {
    /// The server, as a URL or key=value words, without a password [default: as PGHOST and so on say]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let connection = Settings::resolve(args.server.as_deref().map(Dsn::Argument), env)?;
    let suffix = data_encoding::HEXLOWER.encode(&random::<4>()?);
    let (before, after) = (format!("vault_demo_{suffix}"), format!("vault_demo_{suffix}_restored"));
    let folder = tempfile::Builder::new().prefix("vault-demo-").tempdir()?;
    let places = Places { cache: folder.path().join("cache"), state: folder.path().join("state") };
    let backend = Arc::new(Local::create(folder.path().join("repository"))?);
    let secret = Secret::KeyFile(zeroize::Zeroizing::new(random()?));
    let repo = Arc::new(Repository::init(backend, &secret, "demo", context.now(), &places)?);
    let databases = Databases { connection, names: [before, after] };
    let demo = Demo { context, repo, databases, started: Instant::now() };
    demo.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The two databases of a demo. Dropped with it.
struct Databases {
    connection: Settings,
    names: [String; 2],
}

impl Databases {
    fn connect(&self, database: &str, progress: &Progress) -> anyhow::Result<Client> {
        Client::connect(&self.connection, database, &Halt::new(progress)).map_err(exit::not_restored)
    }

    /// The database from which others are made.
    fn home(&self) -> &str {
        self.connection.database.as_deref().unwrap_or("postgres")
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        // Not stopped by what stopped the demo.
        let Ok(mut client) = self.connect(self.home(), &Progress::default()) else { return };
        for name in &self.names {
            if let Err(error) = client.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(name))) {
                tracing::warn!("database {name} stays: {error}");
            }
        }
    }
}

struct Demo<'c> {
    context: &'c Context,
    repo: Arc<Repository>,
    databases: Databases,
    started: Instant,
}

impl Demo<'_> {
    fn run(&self) -> anyhow::Result<()> {
        let [before, after] = &self.databases.names;
        let at = self.databases.connection.at();
        self.step("database", || {
            let mut home = self.databases.connect(self.databases.home(), &self.context.progress)?;
            home.execute(&format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", ident(before)))?;
            let bytes = self.sql(before, data::FILL)?;
            let text = format!("a shop of {} on {at}, PostgreSQL {}", size(bytes), home.version() / 10_000);
            Ok((text, json!({ "database": before, "bytes": bytes }), ()))
        })?;
        let first = self.step("snapshot", || self.snapshot(before))?;
        self.step("a day", || {
            self.sql(before, data::DAY)?;
            Ok((data::DAY_IN_WORDS.to_owned(), json!({}), ()))
        })?;
        let second = self.step("snapshot", || self.snapshot(before))?;
        self.step("restore", || self.restore(&second, after))?;
        self.step("compare", || self.compare(before, after))?;
        self.step("check", || self.check())?;
        let (first, second) = (&first.manifest, &second.manifest);
        let seconds = self.started.elapsed().as_secs_f64();
        self.context.say(format!(
            "\nTwo days of {} take {} in the repository; the second one added {}. {seconds:.0} s in all. \
             Databases and repository are removed.",
            size(second.bytes),
            size(first.bytes_stored + second.bytes_stored),
            size(second.bytes_stored),
        ));
        Ok(())
    }

    /// Does one step under a progress bar, and says what came of it and how long it took.
    fn step<T>(&self, name: &str, work: impl FnOnce() -> anyhow::Result<(String, Value, T)>) -> anyhow::Result<T> {
        let started = Instant::now();
        self.context.progress.phase(name);
        let screen = self.context.screen();
        let (text, fields, value) = work()?;
        drop(screen);
        let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        if self.context.global.json {
            let mut object = json!({ "step": name, "seconds": seconds });
            if let (Some(object), Some(fields)) = (object.as_object_mut(), fields.as_object()) {
                object.extend(fields.clone());
            }
            self.context.print(object)?;
        } else {
            self.context.print(format!("{name:<10} {seconds:5.1} s  {text}"))?;
        }
        Ok(value)
    }

    /// Runs a script and returns the size of the database after it.
    fn sql(&self, database: &str, script: &str) -> anyhow::Result<u64> {
        let mut client = self.databases.connect(database, &self.context.progress)?;
        client.execute("SET synchronous_commit = off")?;
        // One statement at a time, so that a stop comes soon.
        for statement in script.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            client.execute(statement)?;
        }
        let rows = client.query("SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")?;
        Ok(rows.first().map_or(0, |row| row.number(0)))
    }

    fn snapshot(&self, database: &str) -> anyhow::Result<(String, Value, Snapshot)> {
        let connection = &self.databases.connection;
        let tools = ToolSearch::new(env("PATH").as_deref());
        let source = postgres::SnapshotOptions::of_database(connection, database, tools);
        let options = SnapshotOptions {
            source: "postgres".to_owned(),
            name: database.to_owned(),
            host: self.context.host(),
            tags: Vec::new(),
            options: Map::new(),
            write: WriteOptions { sealers: cores(), level: super::snapshot::COMPRESSION, delta: true },
            time: self.context.now(),
        };
        let progress = &self.context.progress;
        let done =
            snapshot(&self.repo, options, progress, |sink, parent| postgres::snapshot(&source, parent, sink, progress))
                .map_err(exit::not_committed)?
                .snapshot;
        let manifest = &done.manifest;
        let text = format!(
            "read {}, {} rows; new {}, stored {}",
            size(manifest.bytes),
            count(manifest.rows),
            size(manifest.bytes_new),
            size(manifest.bytes_stored)
        );
        let fields = json!({
            "id": done.id, "rows": manifest.rows, "bytes": manifest.bytes, "bytes_new": manifest.bytes_new,
            "bytes_stored": manifest.bytes_stored,
        });
        Ok((text, fields, done))
    }

    fn restore(&self, snapshot: &Snapshot, into: &str) -> anyhow::Result<(String, Value, ())> {
        let options = RestoreOptions::of_database(&self.databases.connection, &snapshot.id.hex(), into);
        let progress = &self.context.progress;
        let items = SnapshotItems::new(self.repo.clone(), snapshot.manifest.clone(), cores(), progress.clone());
        let report = postgres::restore(&options, &items, progress).map_err(exit::not_restored)?;
        let tables = || report.databases.iter().flat_map(|database| &database.tables);
        let (rows, bytes): (u64, u64) =
            (tables().map(|table| table.rows).sum(), tables().map(|table| table.bytes).sum());
        let text = format!(
            "the second snapshot as {into}: {} tables, {} rows, {}",
            tables().count(),
            count(rows),
            size(bytes)
        );
        Ok((text, json!({ "database": into, "rows": rows, "bytes": bytes }), ()))
    }

    /// Lets the server count and hash every table of both databases.
    fn compare(&self, before: &str, after: &str) -> anyhow::Result<(String, Value, ())> {
        let [original, restored] = std::thread::scope(|scope| {
            let sides = [before, after].map(|database| scope.spawn(move || self.contents(database)));
            sides.map(|side| side.join().expect("a comparison does not panic"))
        });
        let (original, restored) = (original?, restored?);
        let different: Vec<_> =
            original.iter().filter(|table| !restored.contains(table)).map(|table| &*table.0).collect();
        if !different.is_empty() || original.len() != restored.len() {
            let message = format!("the restored database is not the original: {}", different.join(", "));
            return Err(CliError { exit: Exit::Target, message }.into());
        }
        let rows: u64 = original.iter().map(|table| table.1).sum();
        let text = format!(
            "the server counts {} rows in {} tables of both, with the same hashes",
            count(rows),
            original.len()
        );
        Ok((text, json!({ "tables": original.len(), "rows": rows, "same": true }), ()))
    }

    /// Name, rows and hash of every table and materialized view.
    fn contents(&self, database: &str) -> anyhow::Result<Vec<(String, u64, String)>> {
        let mut client = self.databases.connect(database, &self.context.progress)?;
        let tables = client.query(
            "SELECT pg_catalog.quote_ident(relname) FROM pg_catalog.pg_class \
             WHERE relkind IN ('r', 'm') AND relnamespace = 'public'::pg_catalog.regnamespace ORDER BY relname",
        )?;
        let mut contents = Vec::with_capacity(tables.len());
        for table in tables.iter().map(|row| row.text(0)) {
            let sql = format!("SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t");
            let rows = client.query(&sql)?;
            let row = rows.first().expect("an aggregate has one row");
            contents.push((table.to_owned(), row.number(0), row.text(1).to_owned()));
        }
        Ok(contents)
    }

    fn check(&self) -> anyhow::Result<(String, Value, ())> {
        let options =
            CheckOptions { read_data: ReadData::All, max_duration: None, threads: cores(), now: self.context.now() };
        let report = check(&self.repo, &options, &self.context.progress)?;
        if report.status == Status::Damaged {
            let message = format!("the check found damage: {:?}", report.findings);
            return Err(CliError { exit: Exit::Damaged, message }.into());
        }
        let text = format!(
            "clean: {} packs read, {}, {} decrypted and hashed again",
            report.packs_read,
            size(report.packs_read_bytes),
            size(report.bytes_verified)
        );
        Ok((text, json!({ "status": report.status, "bytes": report.bytes_verified }), ()))
    }
}
