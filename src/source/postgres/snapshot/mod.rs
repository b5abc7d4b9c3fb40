//! Databases out of a server: one exported snapshot per database, several connections that copy tables side by side.

mod attempts;
mod copier;
mod locks;
mod schema;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::sync::Mutex;
use std::thread;

use serde_json::{Map, Value};

use super::catalog::{self, Database, Relation, Table};
use super::client::{Client, Halt, QueryError};
use super::error::PostgresError;
use super::order::{Earlier, Limits, SORTED_BYTES_MAX};
use super::schema::SchemaFilter;
use super::session;
use super::settings::Settings;
use super::tools::{ToolSearch, Tools};
use crate::progress::{Cancelled, Progress};
use crate::source::{ItemFacts, ItemSink, ItemSource, SourceFacts};
use attempts::Attempts;
use copier::Copier;
use locks::{consistency, lock_and_export};
use schema::{Gate, SchemaDump};

/// Oldest server that is read, as `server_version_num`.
const VERSION_MIN: u32 = 130_000;
/// Tables in one LOCK, sequences in one query.
const BATCH: usize = 200;
/// Tables from this size on are begun first, the longest ahead, so that no long one is left for the end.
const LARGE_PAGES: u64 = 1_024;
/// A page, unless the server was built with another: this is used for estimates only.
const PAGE_BYTES: u64 = 8_192;
/// Names that one error lists.
const NAMES_SHOWN: usize = 5;

/// What to read, and from where.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    pub connection: Settings,
    /// Databases by name; `None` is all but the templates.
    pub databases: Option<Vec<String>>,
    /// Tables and materialized views whose rows are left out: `schema.table`, `table`, `*` and `?`.
    pub exclude_table_data: Vec<String>,
    pub schema_only: bool,
    /// The server sorts tables up to this many bytes by their key, in temporary files of about their size.
    pub sorted_bytes_max: u64,
    /// Connections that copy side by side; 0 is one per core.
    pub jobs: usize,
    /// Where pg_dump and pg_dumpall may lie.
    pub tools: ToolSearch,
}

impl SnapshotOptions {
    /// All of one database, with a connection per core.
    pub fn of_database(connection: &Settings, name: &str, tools: ToolSearch) -> SnapshotOptions {
        SnapshotOptions {
            connection: connection.clone(),
            databases: Some(vec![name.to_owned()]),
            exclude_table_data: Vec::new(),
            schema_only: false,
            sorted_bytes_max: SORTED_BYTES_MAX,
            jobs: 0,
            tools,
        }
    }
}

/// Reads databases into `sink`. Tables are read in the order that they had in `parent`, the snapshot before, if there is one.
///
/// Returns only after every item is finished: any error on the way leaves the snapshot without an item that is short.
pub fn snapshot(
    options: &SnapshotOptions,
    parent: Option<&dyn ItemSource>,
    sink: &dyn ItemSink,
    progress: &Progress,
) -> Result<SourceFacts, PostgresError> {
    let halt = Halt::new(progress);
    let home = options.connection.database.clone().unwrap_or_else(|| "postgres".to_owned());
    let (mut client, home) = connect_home(&options.connection, &home, &halt)?;
    if client.version() < VERSION_MIN {
        return Err(PostgresError::source(format!(
            "the server at {} is PostgreSQL {}; 13 is the oldest that is supported",
            options.connection.at(),
            version_text(client.version()),
        )));
    }
    let tools = options.tools.find(client.version())?;
    let mut facts = SourceFacts::default();
    facts.engine.insert("postgresql".into(), version_text(client.version()).into());
    facts.engine.insert("pg_dump".into(), tools.version.clone().into());
    let databases = choose(&mut client, options, &mut facts.warnings)?;
    let with_passwords = client
        .query("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")
        .map_err(|e| PostgresError::dump("the server's roles could not be read", e))?
        .first()
        .is_some_and(|row| row.is_true(0));
    drop(client);

    if !with_passwords {
        facts.warnings.push(format!(
            "role {} is not a superuser: the roles are saved without their passwords",
            options.connection.user
        ));
    }
    progress.doing("roles and tablespaces");
    dump_globals(options, &tools, &home, with_passwords, sink, &halt)?;
    progress.add_items(1);

    let earlier = parent.map_or_else(|| Ok(Earlier::default()), Earlier::load).unwrap_or_else(|error| {
        tracing::warn!("the parent snapshot cannot be read, so tables may come in another order than in it: {error}");
        Earlier::default()
    });
    let mut order = 1;
    let mut points = Map::new();
    for database in &databases {
        let mut attempts = Attempts::default();
        order = loop {
            let mut dump = DatabaseDump::open(options, &tools, database, &earlier, sink, progress)?;
            let (mut warnings, point) = (std::mem::take(&mut dump.warnings), dump.point.clone());
            match dump.run(order) {
                // Nothing has been stored yet, and whoever was in the way gets his lock now.
                Err(Broken::AtFirst(e)) if attempts.again(&e) => {}
                Err(Broken::AtFirst(e) | Broken::Later(e)) => return Err(e),
                Ok(next) => {
                    facts.warnings.append(&mut warnings);
                    points.insert(database.name.clone(), Value::Object(point));
                    break next;
                }
            }
        };
    }
    facts.consistency = match (points.len(), points.iter().next()) {
        (1, Some((_, Value::Object(point)))) => point.clone(),
        _ => Map::from_iter([("kind".into(), "exact-per-database".into()), ("databases".into(), points.into())]),
    };
    Ok(facts)
}

/// Connects to the database from which others are listed, or to `template1` if it does not exist.
pub(super) fn connect_home(settings: &Settings, home: &str, halt: &Halt) -> Result<(Client, String), PostgresError> {
    match Client::connect(settings, home, halt) {
        Err(PostgresError::Login { source, .. }) if source.code == "3D000" && settings.database.is_none() => {
            Client::connect(settings, "template1", halt).map(|client| (client, "template1".to_owned()))
        }
        result => result.map(|client| (client, home.to_owned())),
    }
}

pub(super) fn version_text(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn choose(
    client: &mut Client,
    options: &SnapshotOptions,
    warnings: &mut Vec<String>,
) -> Result<Vec<Database>, PostgresError> {
    let all = catalog::databases(client).map_err(|e| PostgresError::dump("the databases could not be listed", e))?;
    let Some(names) = &options.databases else {
        for (name, reason) in &all.others {
            warnings.push(format!("database {name} is left out: {reason}"));
        }
        if all.usable.is_empty() {
            return Err(PostgresError::source("the server has no database that can be read"));
        }
        return Ok(all.usable);
    };
    let names: BTreeSet<&String> = names.iter().collect();
    names
        .into_iter()
        .map(|name| {
            if let Some(database) = all.usable.iter().find(|database| database.name == *name) {
                return Ok(database.clone());
            }
            if let Some((_, reason)) = all.others.iter().find(|(other, _)| other == name) {
                return Err(PostgresError::source(format!("database {name} cannot be read: {reason}")));
            }
            let known: Vec<&str> = all.usable.iter().map(|database| database.name.as_str()).collect();
            Err(PostgresError::Usage(format!(
                "there is no database {name} on {}; there are: {}",
                options.connection.at(),
                known.join(", ")
            )))
        })
        .collect()
}

fn dump_globals(
    options: &SnapshotOptions,
    tools: &Tools,
    home: &str,
    with_passwords: bool,
    sink: &dyn ItemSink,
    halt: &Halt,
) -> Result<(), PostgresError> {
    let mut arguments = vec!["--globals-only".to_owned()];
    if !with_passwords {
        arguments.push("--no-role-passwords".to_owned());
    }
    let mut attempts = Attempts::default();
    let text = loop {
        let (mut filter, mut text) = (SchemaFilter::default(), Vec::new());
        let ended = tools.pg_dumpall(&options.connection, home, &arguments, halt, &mut |line| {
            filter.line(line, &mut |_, bytes| {
                text.extend_from_slice(bytes);
                Ok(())
            })
        });
        match ended {
            Err(e) if attempts.again(&e) => {}
            Err(e) => return Err(e),
            Ok(()) => {
                filter.complete("pg_dumpall")?;
                break text;
            }
        }
    };
    let meta = Map::from_iter([("passwords".to_owned(), with_passwords.into())]);
    store(sink, 0, "globals", "globals", &text, ItemFacts { rows: None, meta })
}

/// Writes an item that is at hand as a whole.
fn store(
    sink: &dyn ItemSink,
    order: u64,
    path: &str,
    kind: &str,
    bytes: &[u8],
    facts: ItemFacts,
) -> Result<(), PostgresError> {
    let write = || -> io::Result<()> {
        let mut stream = sink.begin(order, path, kind)?;
        stream.write_all(bytes)?;
        stream.finish(facts).map(drop)
    };
    write().map_err(|e| PostgresError::items(format!("{path} could not be stored"), e))
}

/// One piece of work for one of the connections.
#[derive(Debug, Clone)]
enum Task {
    Table(usize),
    Sequences,
    LargeObjectDefinitions,
    LargeObjects,
}

/// A database whose snapshot is open and whose tables are locked.
struct DatabaseDump<'a> {
    options: &'a SnapshotOptions,
    tools: &'a Tools,
    database: &'a Database,
    sink: &'a dyn ItemSink,
    progress: &'a Progress,
    halt: Halt,
    /// Holds the snapshot and the locks until the end.
    coordinator: Client,
    snapshot: String,
    point: Map<String, Value>,
    warnings: Vec<String>,
    tables: Vec<Table>,
    sequences: Vec<Relation>,
    large_objects: u64,
    /// Materialized views that a restore leaves empty.
    unrefreshed: Vec<String>,
}

/// Why a database was not dumped.
enum Broken {
    /// Before anything was stored.
    AtFirst(PostgresError),
    Later(PostgresError),
}

/// The order numbers of a database's items.
struct Orders {
    pub database: u64,
    pub pre_data: u64,
    pub tables: u64,
    pub sequences: u64,
    pub large_object_definitions: u64,
    pub large_objects: u64,
    pub post_data: u64,
}

impl<'a> DatabaseDump<'a> {
    fn open(
        options: &'a SnapshotOptions,
        tools: &'a Tools,
        database: &'a Database,
        earlier: &Earlier,
        sink: &'a dyn ItemSink,
        progress: &'a Progress,
    ) -> Result<DatabaseDump<'a>, PostgresError> {
        let halt = Halt::new(progress);
        progress.doing(&format!("{}: locking", database.name));
        let mut client = Client::connect(&options.connection, &database.name, &halt)?;
        let failed = |e| PostgresError::dump(format!("database {} could not be read", database.name), e);
        session::prepare(&mut client).map_err(failed)?;
        let (snapshot, relations) = lock_and_export(&mut client, options)?;
        let point = consistency(&snapshot);
        let standby = snapshot.is_true(6);
        let mut dump = DatabaseDump {
            options,
            tools,
            database,
            sink,
            progress,
            halt,
            coordinator: client,
            snapshot: snapshot.text(0).to_owned(),
            point,
            warnings: Vec::new(),
            tables: Vec::new(),
            sequences: Vec::new(),
            large_objects: 0,
            unrefreshed: Vec::new(),
        };
        if !options.schema_only {
            dump.plan(relations, earlier, standby).map_err(failed)?;
        }
        Ok(dump)
    }

    /// Settles what data there is to copy.
    fn plan(&mut self, relations: Vec<Relation>, earlier: &Earlier, standby: bool) -> Result<(), QueryError> {
        let by_oid: BTreeMap<u32, &Relation> = relations.iter().map(|r| (r.oid, r)).collect();
        let patterns = &self.options.exclude_table_data;
        let mut skipped = Vec::new();
        let wanted: Vec<Relation> = relations
            .iter()
            .filter(|r| !catalog::is_excluded(r, &by_oid, patterns))
            .filter(|r| {
                // A standby has no rows of them.
                let skip = standby && r.unlogged && r.kind == 'r';
                if skip {
                    skipped.push(r.display());
                }
                !skip
            })
            .cloned()
            .collect();
        if !skipped.is_empty() {
            self.warnings.push(format!(
                "database {}: the server is a standby, which has no rows of unlogged tables: {}",
                self.database.name,
                some_of(&skipped)
            ));
        }
        self.unrefreshed = relations
            .iter()
            .filter(|r| r.kind == 'm' && catalog::is_excluded(r, &by_oid, patterns))
            .map(Relation::sql)
            .collect();
        // A limit on temporary files is kept at a distance: nobody knows exactly what a sort will write.
        let temporary_pages_max = catalog::temporary_pages_max(&mut self.coordinator)?;
        let limits = Limits {
            sorted_pages_max: (self.options.sorted_bytes_max / PAGE_BYTES).min(temporary_pages_max / 4),
            deltas: self.sink.makes_deltas(),
        };
        self.tables = catalog::tables(&mut self.coordinator, &self.database.name, &wanted, earlier, limits)?;
        // The way to an excluded table may lead over one that is not; names are looked up among all.
        self.sequences =
            wanted.into_iter().filter(|r| r.kind == 'S' && (!r.extension || r.extension_filter.is_some())).collect();
        let objects = self.coordinator.query("SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata")?;
        self.large_objects = objects.first().map_or(0, |row| row.number(0));
        Ok(())
    }

    /// Copies everything; returns the first order number that is free afterwards.
    fn run(self, first: u64) -> Result<u64, Broken> {
        let mut next = first;
        let mut take = |count: u64| {
            next += count;
            next - count
        };
        let orders = Orders {
            database: take(1),
            pre_data: take(1),
            tables: take(self.tables.len() as u64),
            sequences: take(u64::from(!self.sequences.is_empty())),
            large_object_definitions: take(u64::from(self.large_objects > 0)),
            large_objects: take(u64::from(self.large_objects > 0)),
            post_data: take(1),
        };
        let queue = Mutex::new(self.queue());
        let deferred = Mutex::new(Vec::new());
        let (failure, lost) = (Mutex::<Option<PostgresError>>::default(), Mutex::default());
        let jobs = match self.options.jobs {
            0 => thread::available_parallelism().map_or(2, usize::from),
            jobs => jobs,
        };
        // The coordinator copies too, so with one job there is one connection.
        let helpers = jobs.min(queue.lock().expect("nothing panics with it").len()).saturating_sub(1);
        let mut coordinator = self.coordinator;
        let copier = Copier {
            options: self.options,
            database: self.database,
            sink: self.sink,
            progress: self.progress,
            tables: &self.tables,
            sequences: &self.sequences,
            orders: &orders,
            standby: self.point.get("standby") == Some(&Value::Bool(true)),
        };
        let halt = &self.halt;
        let note = |result: Result<(), PostgresError>| {
            if let Err(e) = result {
                let mut first = failure.lock().expect("nothing panics with it");
                // Others stop because of the first one; what they then say is no cause.
                if first.is_none() && !(halt.by_failure() && matches!(e, PostgresError::Cancelled(_))) {
                    *first = Some(e);
                }
                halt.stop();
            }
        };
        let schema = SchemaDump {
            options: self.options,
            tools: self.tools,
            database: self.database,
            sink: self.sink,
            progress: self.progress,
            snapshot: &self.snapshot,
            unrefreshed: &self.unrefreshed,
            halt,
            gate: Gate::default(),
        };
        let passed = thread::scope(|scope| {
            for part in [SchemaDump::pre_data, SchemaDump::post_data] {
                let (schema, orders, note) = (&schema, &orders, &note);
                scope.spawn(move || {
                    note(part(schema, orders));
                    schema.gate.shut();
                });
            }
            if !schema.gate.pass() {
                return false;
            }
            self.progress.add_items_total(next - first);
            self.progress.add_bytes_total(self.tables.iter().map(|table| table.pages * PAGE_BYTES).sum());
            for _ in 0..helpers {
                scope.spawn(|| note(copier.help(&self.snapshot, &queue, &deferred, &lost, halt)));
            }
            note(copier.work(&mut coordinator, &queue, None));
            true
        });
        if failure.lock().expect("all threads have ended").is_none() {
            // Tables that others wait to lock: only the coordinator, which has its locks already, can read them.
            let left: VecDeque<Task> = deferred.lock().expect("all threads have ended").drain(..).collect();
            note(copier.work(&mut coordinator, &Mutex::new(left), None));
        }
        let [failure, lost] = [failure, lost].map(|error| error.into_inner().expect("all threads have ended"));
        match failure.or(lost) {
            Some(e) if passed => Err(Broken::Later(e)),
            Some(e) => Err(Broken::AtFirst(e)),
            None if self.progress.is_cancelled() => Err(Broken::Later(PostgresError::Cancelled(Cancelled))),
            None => Ok(next),
        }
    }

    fn queue(&self) -> VecDeque<Task> {
        let mut tables: Vec<usize> = (0..self.tables.len()).collect();
        // A stable sort: the short ones keep their order, so that finished items do not wait for earlier ones.
        tables.sort_by_key(|&at| {
            let pages = self.tables[at].pages;
            std::cmp::Reverse(if pages >= LARGE_PAGES { pages } else { 0 })
        });
        let mut queue: VecDeque<Task> = tables.into_iter().map(Task::Table).collect();
        if !self.sequences.is_empty() {
            queue.push_back(Task::Sequences);
        }
        if self.large_objects > 0 {
            queue.push_front(Task::LargeObjects);
            queue.push_back(Task::LargeObjectDefinitions);
        }
        queue
    }
}

fn some_of(names: &[String]) -> String {
    match names.len() {
        0..=NAMES_SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..NAMES_SHOWN].join(", "), more - NAMES_SHOWN),
    }
}
