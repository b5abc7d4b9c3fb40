//! Databases out of a server: one exported snapshot per database, several connections that copy tables side by side.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use serde_json::{Map, Value, json};

use super::catalog::{self, Database, Relation, Table};
use super::client::{Client, Halt, QueryError, Row};
use super::error::PostgresError;
use super::large_objects;
use super::quote::{ident, literal};
use super::schema::{Part, SchemaFilter};
use super::session;
use super::settings::Settings;
use super::tools::{ToolSearch, Tools};
use crate::progress::{Cancelled, Progress};
use crate::source::{ItemFacts, ItemSink, ItemStream, SourceFacts, escape_component};

/// Oldest server that is read, as `server_version_num`.
const VERSION_MIN: u32 = 130_000;
/// How long one table may be kept locked by others before the snapshot gives up.
const LOCK_WAIT_SECONDS: u32 = 60;
/// How long pg_dump waits for locks.
const PG_DUMP_LOCK_WAIT_MS: u32 = 5_000;
/// How many of them run for one database.
const PG_DUMPS: usize = 2;
/// How often tables may appear or vanish between listing and locking them before the rest is taken as it is.
const LOCK_ATTEMPTS: u32 = 5;
/// Tables in one LOCK, sequences in one query.
const BATCH: usize = 200;
/// Tables from this size on are begun first, the longest ahead, so that no long one is left for the end.
const LARGE_PAGES: u64 = 1_024;
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
            jobs: 0,
            tools,
        }
    }
}

/// Reads databases into `sink`.
///
/// Returns only after every item is finished: any error on the way leaves the snapshot without an item that is short.
pub fn snapshot(
    options: &SnapshotOptions,
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

    let mut order = 1;
    let mut points = Map::new();
    for database in &databases {
        let mut attempt = 1;
        order = loop {
            let mut dump = DatabaseDump::open(options, &tools, database, sink, progress)?;
            let (mut warnings, point) = (std::mem::take(&mut dump.warnings), dump.point.clone());
            match dump.run(order) {
                // Nothing has been stored yet, and whoever was in the way gets his lock now.
                Err(Broken::Blocked(_)) if attempt < LOCK_ATTEMPTS => attempt += 1,
                Err(Broken::Blocked(e) | Broken::Failed(e)) => return Err(e),
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
    let mut filter = SchemaFilter::default();
    let mut text = Vec::new();
    tools.pg_dumpall(&options.connection, home, &arguments, halt, &mut |line| {
        filter.line(line, &mut |_, bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })
    })?;
    filter.complete("pg_dumpall")?;
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
    /// pg_dump met a lock that waits for ours. Nothing has been stored.
    Blocked(PostgresError),
    Failed(PostgresError),
}

/// Holds everything back until each pg_dump has its locks: until then one can begin anew, with another snapshot.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    arrived: usize,
    /// Whether to go on, once that is known.
    open: Option<bool>,
}

impl Gate {
    /// Says that the locks are there, and waits for the others. Returns whether to go on.
    fn arrive(&self) -> bool {
        let mut state = self.state.lock().expect("nothing panics with it");
        state.arrived += 1;
        if state.arrived == PG_DUMPS && state.open.is_none() {
            state.open = Some(true);
        }
        self.changed.notify_all();
        Gate::wait(state, &self.changed)
    }

    /// Waits until all have arrived or one has failed.
    fn pass(&self) -> bool {
        Gate::wait(self.state.lock().expect("nothing panics with it"), &self.changed)
    }

    /// Keeps the gate shut, unless it is open already.
    fn shut(&self) {
        self.state.lock().expect("nothing panics with it").open.get_or_insert(false);
        self.changed.notify_all();
    }

    fn wait(mut state: MutexGuard<'_, GateState>, changed: &Condvar) -> bool {
        loop {
            match state.open {
                Some(open) => return open,
                None => state = changed.wait(state).expect("nothing panics with it"),
            }
        }
    }
}

/// The order numbers of a database's items.
struct Orders {
    database: u64,
    pre_data: u64,
    tables: u64,
    sequences: u64,
    large_object_definitions: u64,
    large_objects: u64,
    post_data: u64,
}

impl<'a> DatabaseDump<'a> {
    fn open(
        options: &'a SnapshotOptions,
        tools: &'a Tools,
        database: &'a Database,
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
            dump.plan(relations, standby).map_err(failed)?;
        }
        Ok(dump)
    }

    /// Settles what data there is to copy.
    fn plan(&mut self, relations: Vec<Relation>, standby: bool) -> Result<(), QueryError> {
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
        self.tables = catalog::tables(&mut self.coordinator, &wanted)?;
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
        let failure: Mutex<Option<PostgresError>> = Mutex::new(None);
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
            self.progress.add_bytes_total(self.tables.iter().map(|table| table.pages * 8_192).sum());
            for _ in 0..helpers {
                scope.spawn(|| note(copier.help(&self.snapshot, &queue, &deferred, halt)));
            }
            note(copier.work(&mut coordinator, &queue, None));
            true
        });
        if failure.lock().expect("all threads have ended").is_none() {
            // Tables that others wait to lock: only the coordinator, which has its locks already, can read them.
            let left: VecDeque<Task> = deferred.lock().expect("all threads have ended").drain(..).collect();
            note(copier.work(&mut coordinator, &Mutex::new(left), None));
        }
        match failure.into_inner().expect("all threads have ended") {
            Some(e) if !passed && is_blocked(&e) => Err(Broken::Blocked(e)),
            Some(e) => Err(Broken::Failed(e)),
            None if self.progress.is_cancelled() => Err(Broken::Failed(PostgresError::Cancelled(Cancelled))),
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

/// Locks all tables, then takes the snapshot: what is locked before cannot be emptied or rewritten behind its back.
///
/// Returns the row of [`POINT`] and the relations that the snapshot shows.
fn lock_and_export(client: &mut Client, options: &SnapshotOptions) -> Result<(Row, Vec<Relation>), PostgresError> {
    let database = client.database().to_owned();
    let failed = |e| PostgresError::dump(format!("database {database} could not be read"), e);
    let mut patient = false;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let before = catalog::relations(client).map_err(failed)?;
        check_rights(&before, &database, options)?;
        client.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").map_err(failed)?;
        let mut lockable: Vec<&Relation> = before.iter().filter(|r| matches!(r.kind, 'r' | 'p')).collect();
        match lock(client, &lockable, patient, &database)? {
            Locked::All => {}
            Locked::Busy => {
                client.execute("ROLLBACK").map_err(failed)?;
                patient = true;
                continue;
            }
            Locked::Vanished if attempt < LOCK_ATTEMPTS => {
                client.execute("ROLLBACK").map_err(failed)?;
                continue;
            }
            Locked::Vanished => {
                return Err(PostgresError::source(format!(
                    "tables of database {database} are dropped faster than they can be locked; try again at a quieter time"
                )));
            }
        }
        let point = client.query(POINT).map_err(failed)?;
        let point = point.into_iter().next().ok_or_else(|| failed(QueryError::Protocol("no snapshot".into())))?;
        let relations = catalog::relations(client).map_err(failed)?;
        let locked: BTreeSet<u32> = lockable.iter().map(|r| r.oid).collect();
        lockable = relations.iter().filter(|r| matches!(r.kind, 'r' | 'p') && !locked.contains(&r.oid)).collect();
        if lockable.is_empty() {
            return Ok((point, relations));
        }
        // Tables were made in between: once more, or in the end lock them behind the snapshot, as pg_dump does.
        if attempt >= LOCK_ATTEMPTS {
            check_rights(&relations, &database, options)?;
            if matches!(lock(client, &lockable, true, &database)?, Locked::All) {
                return Ok((point, relations));
            }
            return Err(PostgresError::source(format!(
                "tables of database {database} come and go faster than they can be locked; try again at a quieter time"
            )));
        }
        client.execute("ROLLBACK").map_err(failed)?;
    }
}

/// The snapshot's name, and the point in time that it shows.
const POINT: &str = "SELECT pg_catalog.pg_export_snapshot(), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_lsn() END, \
    pg_catalog.pg_current_snapshot(), pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()), \
    pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()), pg_catalog.pg_is_in_recovery()";

fn consistency(point: &Row) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("kind".into(), "exact".into());
    map.insert("lsn".into(), point.text(1).into());
    map.insert("snapshot".into(), point.text(2).into());
    map.insert("xmin".into(), point.number::<u64>(3).into());
    map.insert("time".into(), point.text(4).into());
    map.insert("system".into(), point.text(5).into());
    if point.is_true(6) {
        map.insert("standby".into(), true.into());
    }
    map
}

enum Locked {
    All,
    /// Somebody holds or awaits a lock in the way.
    Busy,
    /// A table is gone.
    Vanished,
}

fn lock(client: &mut Client, tables: &[&Relation], patient: bool, database: &str) -> Result<Locked, PostgresError> {
    if patient {
        let timeout = format!("SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'");
        client.execute(&timeout).map_err(|e| PostgresError::dump("no lock timeout can be set", e))?;
    }
    let batch = if patient { 1 } else { BATCH };
    for tables in tables.chunks(batch) {
        let names: Vec<String> = tables.iter().map(|r| format!("ONLY {}", r.sql())).collect();
        let nowait = if patient { "" } else { " NOWAIT" };
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE{nowait}", names.join(", "));
        match client.execute(&sql) {
            Ok(_) => {}
            Err(e) if e.code() == "55P03" && !patient => return Ok(Locked::Busy),
            Err(e) if e.code() == "55P03" => {
                return Err(PostgresError::Source {
                    message: format!(
                        "table {} of database {database} was locked by others for {LOCK_WAIT_SECONDS} s; see who with: \
                         SELECT * FROM pg_locks WHERE relation = {}::regclass AND mode = 'AccessExclusiveLock'",
                        tables[0].display(),
                        literal(&tables[0].sql()),
                    ),
                    source: e.into_server().ok(),
                });
            }
            // Dropped, or its schema.
            Err(e) if matches!(e.code(), "42P01" | "3F000" | "XX000" | "42809") => return Ok(Locked::Vanished),
            Err(e) => return Err(PostgresError::dump(format!("tables of database {database} cannot be locked"), e)),
        }
    }
    if patient {
        client
            .execute("SET LOCAL lock_timeout = 0")
            .map_err(|e| PostgresError::dump("no lock timeout can be set", e))?;
    }
    Ok(Locked::All)
}

/// Refuses before any work what the role may not read.
fn check_rights(relations: &[Relation], database: &str, options: &SnapshotOptions) -> Result<(), PostgresError> {
    let denied: Vec<&Relation> = relations
        .iter()
        .filter(|r| !r.readable && (matches!(r.kind, 'r' | 'p') || (r.kind == 'S' && !options.schema_only)))
        .filter(|r| !r.extension || r.extension_filter.is_some())
        .collect();
    let Some(first) = denied.first() else { return Ok(()) };
    let role = &options.connection.user;
    let names: Vec<String> = denied.iter().map(|r| r.display()).collect();
    let what = if first.kind == 'S' { "sequence" } else { "table" };
    Err(PostgresError::source(format!(
        "role {role} may not read {what} {} of database {database}; as a superuser of that database: \
         GRANT pg_read_all_data TO {} (PostgreSQL 14 and later), or GRANT USAGE ON SCHEMA {schema} TO {}; \
         GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {}",
        some_of(&names),
        ident(role),
        ident(role),
        ident(role),
        ident(role),
        schema = ident(&first.schema),
    )))
}

fn some_of(names: &[String]) -> String {
    match names.len() {
        0..=NAMES_SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..NAMES_SHOWN].join(", "), more - NAMES_SHOWN),
    }
}

/// What pg_dump says about a database.
struct SchemaDump<'a> {
    options: &'a SnapshotOptions,
    tools: &'a Tools,
    database: &'a Database,
    sink: &'a dyn ItemSink,
    progress: &'a Progress,
    snapshot: &'a str,
    unrefreshed: &'a [String],
    halt: &'a Halt,
    gate: Gate,
}

/// Whether pg_dump gave up waiting for a lock.
fn is_blocked(error: &PostgresError) -> bool {
    matches!(error, PostgresError::Tool { stderr, .. } if stderr.contains("LOCK TABLE"))
}

impl SchemaDump<'_> {
    fn pre_data(&self, orders: &Orders) -> Result<(), PostgresError> {
        let arguments = self.arguments(&["--create", "--section=pre-data"]);
        let mut database = Vec::new();
        self.dump(&arguments, orders.pre_data, "pre-data", &mut database)?;
        let path = format!("{}/database", escape_component(&self.database.name));
        let meta = Map::from_iter([
            ("name".to_owned(), self.database.name.clone().into()),
            ("encoding".to_owned(), self.database.encoding.clone().into()),
        ]);
        store(self.sink, orders.database, &path, "database", &database, ItemFacts { rows: None, meta })?;
        self.progress.add_items(1);
        Ok(())
    }

    fn post_data(&self, orders: &Orders) -> Result<(), PostgresError> {
        let mut arguments = self.arguments(&["--section=post-data"]);
        arguments.extend(self.unrefreshed.iter().map(|name| format!("--exclude-table-data={name}")));
        self.dump(&arguments, orders.post_data, "post-data", &mut Vec::new())
    }

    fn arguments(&self, some: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = some.iter().map(|&argument| argument.to_owned()).collect();
        all.push(format!("--snapshot={}", self.snapshot));
        // We hold the same locks, so only somebody who came in between and waits for us can keep it waiting: for ever.
        all.push(format!("--lock-wait-timeout={}", PG_DUMP_LOCK_WAIT_MS));
        // Large objects are read in another way.
        all.push("--no-blobs".to_owned());
        all.push(format!("--encoding={}", if self.database.encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" }));
        if self.options.schema_only {
            all.push("--schema-only".to_owned());
        }
        all
    }

    /// Runs pg_dump into the item `name`; what concerns the database itself goes to `database`.
    fn dump(&self, arguments: &[String], order: u64, name: &str, database: &mut Vec<u8>) -> Result<(), PostgresError> {
        let path = format!("{}/{name}", escape_component(&self.database.name));
        let failed = |e| PostgresError::items(format!("{path} could not be stored"), e);
        let mut stream: Option<Box<dyn ItemStream + '_>> = None;
        let mut filter = SchemaFilter::default();
        // Lines are short; the stream gets them in larger pieces.
        let mut gathered: Vec<u8> = Vec::with_capacity(64 << 10);
        self.tools.pg_dump(&self.options.connection, &self.database.name, arguments, self.halt, &mut |line| {
            let stream = match &mut stream {
                Some(stream) => stream,
                // It writes nothing before it has all its locks.
                None if self.gate.arrive() => stream.insert(self.sink.begin(order, &path, "schema")?),
                None => return Err(io::Error::other(Cancelled)),
            };
            filter.line(line, &mut |part, bytes| {
                match part {
                    Part::Database => database.extend_from_slice(bytes),
                    Part::Content => gathered.extend_from_slice(bytes),
                }
                Ok(())
            })?;
            if gathered.len() >= 60 << 10 {
                stream.write_all(&gathered)?;
                gathered.clear();
            }
            Ok(())
        })?;
        let mut meta = filter.complete("pg_dump")?;
        meta.insert("database".into(), self.database.name.clone().into());
        let mut stream = stream.expect("a text that is complete has a first line");
        stream.write_all(&gathered).map_err(failed)?;
        stream.finish(ItemFacts { rows: None, meta }).map_err(failed)?;
        self.progress.add_items(1);
        Ok(())
    }
}

/// Copies data; shared by the connections of one database.
struct Copier<'a> {
    options: &'a SnapshotOptions,
    database: &'a Database,
    sink: &'a dyn ItemSink,
    progress: &'a Progress,
    tables: &'a [Table],
    sequences: &'a [Relation],
    orders: &'a Orders,
    standby: bool,
}

impl Copier<'_> {
    /// Opens one more connection on the same snapshot and works on it.
    fn help(
        &self,
        snapshot: &str,
        queue: &Mutex<VecDeque<Task>>,
        deferred: &Mutex<Vec<Task>>,
        halt: &Halt,
    ) -> Result<(), PostgresError> {
        let mut client = Client::connect(&self.options.connection, &self.database.name, halt)?;
        let failed = |e| PostgresError::dump(format!("database {} could not be read", self.database.name), e);
        session::prepare(&mut client).map_err(failed)?;
        let sql =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(snapshot));
        client.execute(&sql).map_err(failed)?;
        self.work(&mut client, queue, Some(deferred))
    }

    /// Works until the queue is empty. Without `deferred`, this connection has the locks already.
    fn work(
        &self,
        client: &mut Client,
        queue: &Mutex<VecDeque<Task>>,
        deferred: Option<&Mutex<Vec<Task>>>,
    ) -> Result<(), PostgresError> {
        loop {
            let task = queue.lock().expect("nothing panics with it").pop_front();
            let Some(task) = task else { return Ok(()) };
            match task {
                Task::Table(at) => {
                    let table = &self.tables[at];
                    if let Some(deferred) = deferred {
                        let sql = format!(
                            "SAVEPOINT before; LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT",
                            table.relation.sql()
                        );
                        match client.execute(&sql) {
                            Ok(_) => {}
                            Err(e) if e.code() == "55P03" => {
                                client.execute("ROLLBACK TO before").map_err(|e| self.failed(table, e))?;
                                deferred.lock().expect("nothing panics with it").push(task);
                                continue;
                            }
                            Err(e) => return Err(self.failed(table, e)),
                        }
                    }
                    self.table(client, table, self.orders.tables + at as u64)?;
                }
                Task::Sequences => self.sequences(client)?,
                Task::LargeObjectDefinitions => {
                    let what = "the definitions of large objects";
                    let text = large_objects::definitions(client).map_err(|e| self.broken(what, e))?;
                    let path = self.path(&["large-object-definitions"]);
                    let order = self.orders.large_object_definitions;
                    let meta = Map::from_iter([("database".to_owned(), self.database.name.clone().into())]);
                    store(self.sink, order, &path, "schema", text.as_bytes(), ItemFacts { rows: None, meta })?;
                }
                Task::LargeObjects => self.large_objects(client)?,
            }
            self.progress.add_items(1);
        }
    }

    fn table(&self, client: &mut Client, table: &Table, order: u64) -> Result<(), PostgresError> {
        let relation = &table.relation;
        self.progress.doing(&format!("{}: {}", self.database.name, relation.display()));
        let path = self.path(&["table", &relation.schema, &relation.name]);
        let mut meta = Map::new();
        meta.insert("database".into(), self.database.name.clone().into());
        meta.insert("schema".into(), relation.schema.clone().into());
        meta.insert("name".into(), relation.name.clone().into());
        meta.insert("columns".into(), table.columns.clone().into());
        if !table.order_by.is_empty() {
            meta.insert("order_by".into(), table.order_by.clone().into());
        }
        meta.insert("pages".into(), table.pages.into());
        if self.database.encoding != "UTF8" {
            meta.insert("encoding".into(), self.database.encoding.clone().into());
        }
        if let Some(filter) = &relation.extension_filter {
            meta.insert("filter".into(), filter.clone().into());
        }
        if let Some((schema, name)) = &table.load_via {
            meta.insert("load_via".into(), json!([schema, name]));
        }
        let stored = |e| PostgresError::items(format!("{path} could not be stored"), e);
        let mut stream = self.sink.begin(order, &path, "table-data").map_err(stored)?;
        let sql = table.copy_out(&self.database.encoding);
        let copied = self.copy(client, &sql, &mut *stream).map_err(|e| self.failed(table, e))?;
        stream.finish(ItemFacts { rows: Some(copied), meta }).map_err(stored)?;
        Ok(())
    }

    /// Values of sequences: schema, name, last value, whether it has been given out. COPY's text format.
    fn sequences(&self, client: &mut Client) -> Result<(), PostgresError> {
        let path = self.path(&["sequences"]);
        let stored = |e| PostgresError::items(format!("{path} could not be stored"), e);
        let mut stream = self.sink.begin(self.orders.sequences, &path, "sequences").map_err(stored)?;
        let mut rows = 0;
        for batch in self.sequences.chunks(BATCH) {
            let each: Vec<String> = batch
                .iter()
                .map(|r| {
                    let (schema, name) = (literal(&r.schema), literal(&r.name));
                    format!("SELECT {schema}::text, {name}::text, last_value, is_called FROM {}", r.sql())
                })
                .collect();
            let sql = format!("COPY ({}) TO STDOUT", each.join(" UNION ALL "));
            rows += self.copy(client, &sql, &mut *stream).map_err(|e| self.broken("its sequences", e))?;
        }
        let meta = Map::from_iter([("database".to_owned(), self.database.name.clone().into())]);
        stream.finish(ItemFacts { rows: Some(rows), meta }).map_err(stored)?;
        Ok(())
    }

    fn large_objects(&self, client: &mut Client) -> Result<(), PostgresError> {
        self.progress.doing(&format!("{}: large objects", self.database.name));
        let path = self.path(&["large-objects"]);
        let stored = |e| PostgresError::items(format!("{path} could not be stored"), e);
        let mut stream = self.sink.begin(self.orders.large_objects, &path, "large-objects").map_err(stored)?;
        let rows = self
            .copy(client, large_objects::COPY_OUT, &mut *stream)
            .map_err(|e| self.broken("its large objects", e))?;
        let meta = Map::from_iter([("database".to_owned(), self.database.name.clone().into())]);
        stream.finish(ItemFacts { rows: Some(rows), meta }).map_err(stored)?;
        Ok(())
    }

    /// Copies into a stream; returns the rows.
    fn copy(&self, client: &mut Client, sql: &str, stream: &mut dyn ItemStream) -> Result<u64, QueryError> {
        let copied = client.copy_out(sql, &mut |bytes| {
            self.progress.add_bytes(bytes.len() as u64);
            stream.write_all(bytes)
        })?;
        Ok(copied.rows)
    }

    fn path(&self, parts: &[&str]) -> String {
        let mut path = escape_component(&self.database.name);
        for part in parts {
            path.push('/');
            path.push_str(&escape_component(part));
        }
        path
    }

    fn failed(&self, table: &Table, e: QueryError) -> PostgresError {
        self.broken(&format!("table {}", table.relation.display()), e)
    }

    /// Says which part of the database failed, and what helps.
    fn broken(&self, what: &str, e: QueryError) -> PostgresError {
        let database = &self.database.name;
        let role = &self.options.connection.user;
        match e {
            QueryError::Server(e) if e.code == "42501" && e.message.contains("row-level security") => {
                PostgresError::Source {
                    message: format!(
                        "row security would hide rows of {what} of database {database} from role {role}; \
                         read as its owner or a superuser, or: ALTER ROLE {} BYPASSRLS",
                        ident(role)
                    ),
                    source: Some(e),
                }
            }
            QueryError::Server(e) if e.code == "42501" => PostgresError::Source {
                message: format!("role {role} may not read {what} of database {database}; grant it SELECT on that"),
                source: Some(e),
            },
            QueryError::Server(e) if e.code == "40001" && self.standby => PostgresError::Source {
                message: format!(
                    "the standby cancelled reading {what} of database {database} in favour of replay; \
                     set hot_standby_feedback = on or raise max_standby_streaming_delay there"
                ),
                source: Some(e),
            },
            e => PostgresError::dump(format!("{what} of database {database} could not be read"), e),
        }
    }
}
