//! Databases back into a server.
//!
//! Order: roles, the database, a mark that it is incomplete, pre-data, tables side by side and on those that are loaded
//! indexes, keys and ANALYZE; sequences, large objects, foreign keys side by side, the rest of post-data, the rest of
//! ANALYZE; then, in one transaction, the database's own settings and event triggers come and the mark goes. Steps are
//! recorded in the transaction that does them, so a restore that broke off goes on where it stood.

mod data;
mod globals;
mod mark;
mod post_data;
mod saved;
mod scripts;
mod selection;
mod target;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use super::client::{Client, Halt, QueryError};
use super::error::PostgresError;
use super::quote::ident;
use super::script::{Entry, Word, words};
use super::session;
use super::settings::Settings;
use super::snapshot::{connect_home, version_text};
use crate::progress::{Cancelled, Progress};
use crate::source::ItemSource;
pub(super) use data::{Lines, piece_sql, sequences};
use mark::Mark;
pub(super) use saved::{Saved, SavedDatabase, SavedTable, entries, read};
use scripts::Rename;
pub(super) use scripts::without_owners;
pub(super) use selection::{Selected, Selection};
use target::Target;

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    pub connection: Settings,
    /// Id of the snapshot, for the mark and for messages.
    pub snapshot: String,
    /// Databases of the snapshot; `None` is all of them.
    pub databases: Option<Vec<String>>,
    /// Another name for the one database that is restored.
    pub into: Option<String>,
    /// Drop a database that is in the way.
    pub clean: bool,
    /// Go on with a restore of the same snapshot that broke off.
    pub resume: bool,
    /// Only these tables: `schema.table`, `table`, `*` and `?`.
    pub include: Vec<String>,
    pub schema_only: bool,
    pub data_only: bool,
    /// Leave out roles, ownership and privileges: everything belongs to the restoring role.
    pub no_owner: bool,
    /// Read each table again and compare it with the snapshot.
    pub verify: bool,
    /// Connections that work side by side; 0 is one per core.
    pub jobs: usize,
}

impl RestoreOptions {
    /// All of a snapshot of one database, into one that is not there yet, with a connection per core.
    pub fn of_database(connection: &Settings, snapshot: &str, into: &str) -> RestoreOptions {
        RestoreOptions {
            connection: connection.clone(),
            snapshot: snapshot.to_owned(),
            databases: None,
            into: Some(into.to_owned()),
            clean: false,
            resume: false,
            include: Vec::new(),
            schema_only: false,
            data_only: false,
            no_owner: false,
            verify: false,
            jobs: 0,
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Default)]
pub struct RestoreReport {
    pub databases: Vec<DatabaseReport>,
    pub warnings: Vec<String>,
}

/// What came into one database.
#[derive(Debug, Clone)]
pub struct DatabaseReport {
    /// In the snapshot.
    pub name: String,
    /// In the target.
    pub into: String,
    /// In the order of the snapshot.
    pub tables: Vec<TableReport>,
}

/// A table whose rows and hash are those of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableReport {
    pub schema: String,
    pub name: String,
    pub rows: u64,
    pub bytes: u64,
    /// BLAKE3 of its COPY text.
    pub hash: String,
    /// It was read again from the target and is the same.
    pub verified: bool,
}

/// Restores databases from `source`.
///
/// Rows and hash of each table are compared with the snapshot's before its transaction is committed.
pub fn restore(
    options: &RestoreOptions,
    source: &dyn ItemSource,
    progress: &Progress,
) -> Result<RestoreReport, PostgresError> {
    check_options(options)?;
    let saved = Saved::load(source)?;
    let chosen = saved.choose(options.databases.as_deref())?;
    let selection = Selection::new(&options.include, &chosen, source)?;
    let chosen: Vec<&SavedDatabase> = chosen
        .into_iter()
        .filter(|database| selection.as_ref().is_none_or(|s| s.of(&database.name).is_some()))
        .collect();
    if options.into.is_some() && chosen.len() != 1 {
        let names: Vec<&str> = chosen.iter().map(|database| database.name.as_str()).collect();
        return Err(PostgresError::Usage(format!(
            "--into takes one database, and the snapshot has {}; choose with --database: {}",
            chosen.len(),
            names.join(", ")
        )));
    }
    let halt = Halt::new(progress);
    let (mut home, _) = connect_home(&home_settings(&options.connection), "postgres", &halt)?;
    let mut report = RestoreReport::default();
    if !options.no_owner
        && !options.data_only
        && let Some(item) = &saved.globals
    {
        progress.phase("roles and tablespaces");
        globals::restore(&mut home, &saved::read(source, item)?, &mut report.warnings)?;
    }
    // All targets are looked at before any is touched.
    let mut targets = Vec::new();
    for database in chosen {
        let into = options.into.as_deref().unwrap_or(&database.name);
        targets.push((database, into, Target::find(options, &mut home, into, database, &halt)?));
    }
    for (database, into, state) in targets {
        let restore = DatabaseRestore {
            options,
            source,
            progress,
            halt: Halt::new(progress),
            database,
            into,
            selection: selection.as_ref().and_then(|s| s.of(&database.name)),
            warnings: Mutex::new(Vec::new()),
        };
        let tables = restore.run(&mut home, state)?;
        report.warnings.append(&mut restore.warnings.into_inner().expect("all threads have ended"));
        report.databases.push(DatabaseReport { name: database.name.clone(), into: into.to_owned(), tables });
    }
    Ok(report)
}

fn check_options(options: &RestoreOptions) -> Result<(), PostgresError> {
    let wrong = |text: &str| Err(PostgresError::Usage(text.to_owned()));
    if options.schema_only && options.data_only {
        return wrong("--schema-only and --data-only exclude each other");
    }
    if options.clean && options.resume {
        return wrong("--clean starts over and --resume goes on; choose one");
    }
    if options.clean && options.data_only {
        return wrong("--clean drops the tables that --data-only needs; empty them with TRUNCATE instead");
    }
    if options.into.as_deref() == Some("") {
        return wrong("--into needs a name");
    }
    Ok(())
}

/// The database that others are made and dropped from is never one that is being restored, whatever PGDATABASE says.
fn home_settings(settings: &Settings) -> Settings {
    Settings { database: None, ..settings.clone() }
}

/// One database on its way back.
struct DatabaseRestore<'a> {
    options: &'a RestoreOptions,
    source: &'a dyn ItemSource,
    progress: &'a Progress,
    halt: Halt,
    database: &'a SavedDatabase,
    into: &'a str,
    selection: Option<&'a Selected>,
    warnings: Mutex<Vec<String>>,
}

/// The schema of a database, as entries that this restore wants.
struct Schema {
    database: Vec<Entry>,
    pre_data: Vec<Entry>,
    post_data: Vec<Entry>,
    /// Kept for the last transaction.
    event_triggers: Vec<Entry>,
}

impl<'a> DatabaseRestore<'a> {
    fn run(&self, home: &mut Client, state: Target) -> Result<Vec<TableReport>, PostgresError> {
        self.progress.phase(&format!("{}: schema", self.into));
        let tables = self.tables();
        if let Some(selected) = self.selection.filter(|_| state == Target::Filled && !self.options.data_only) {
            return self.in_one_transaction(selected);
        }
        let schema = self.schema()?;
        if state == Target::ToDrop {
            self.drop_database(home)?;
        }
        if matches!(state, Target::Missing | Target::ToDrop) {
            self.create_database(home, &schema)?;
        }
        let mut client = self.connect()?;
        let mut mark = if state == Target::Marked {
            Mark::resume(&mut client).map_err(|e| self.failed("its mark cannot be read", e))?
        } else {
            Mark::set(&mut client, self.options, self.database).map_err(|e| self.failed("it cannot be marked", e))?
        };
        let result = self.fill(&mut client, &mut mark, &schema, &tables);
        if let Err(e) = result {
            return Err(self.with_the_way_on(e));
        }
        result
    }

    fn fill(
        &self,
        client: &mut Client,
        mark: &mut Mark,
        schema: &Schema,
        tables: &[&SavedTable],
    ) -> Result<Vec<TableReport>, PostgresError> {
        let options = self.options;
        if !options.data_only {
            self.run_script(client, mark, "pre-data", &schema.pre_data)?;
        }
        let post_data = if options.data_only { &[] } else { schema.post_data.as_slice() };
        let mut plan = self.plan_post_data(client, post_data)?;
        let (mut reports, mut analyzed) = (Vec::new(), BTreeSet::new());
        if !options.schema_only {
            self.progress.phase(&format!("{}: tables", self.into));
            let early = plan.take_early(tables.iter().map(|table| (table.schema.clone(), table.name.clone())));
            (reports, analyzed) = self.load_tables(client, mark, tables, early)?;
            self.load_sequences(client, mark)?;
            self.load_large_objects(client, mark)?;
        }
        self.run_post_data(client, mark, &plan)?;
        if !options.schema_only {
            self.analyze(client, mark, &analyzed)?;
        }
        if options.verify {
            self.verify(tables, &mut reports)?;
        }
        self.finish(client, schema)?;
        Ok(reports)
    }

    /// Tables that this restore wants the rows of.
    fn tables(&self) -> Vec<&'a SavedTable> {
        if self.options.schema_only {
            return Vec::new();
        }
        let wanted = |table: &&SavedTable| self.selection.is_none_or(|s| s.wants(&table.schema, &table.name));
        self.database.tables.iter().filter(wanted).collect()
    }

    fn schema(&self) -> Result<Schema, PostgresError> {
        let read = |item: &Option<crate::source::Item>| match item {
            Some(item) => saved::entries(self.source, item),
            None => Ok(Vec::new()),
        };
        let mut schema = Schema {
            database: read(&self.database.database)?,
            pre_data: read(&self.database.pre_data)?,
            post_data: read(&self.database.post_data)?,
            event_triggers: Vec::new(),
        };
        if let Some(selected) = self.selection {
            schema.pre_data.clone_from(&selected.pre_data);
            schema.post_data.clone_from(&selected.post_data);
            for entry in &selected.outward {
                self.warn(format!(
                    "database {}: {} is left out, because its other table is not restored",
                    self.into,
                    scripts::describe(entry)
                ));
            }
        }
        if self.options.no_owner {
            for entries in [&mut schema.database, &mut schema.pre_data, &mut schema.post_data] {
                scripts::without_owners(entries);
            }
        }
        if self.options.schema_only {
            schema.post_data.retain(|entry| entry.heading.kind != "MATERIALIZED VIEW DATA");
        }
        // The entries on event triggers stand at the end, but so do comments on them.
        let at = schema.post_data.iter().position(|entry| entry.heading.kind == "EVENT TRIGGER");
        if let Some(at) = at {
            let (triggers, others) = schema.post_data.drain(at..).partition(|entry: &Entry| {
                entry.heading.kind == "EVENT TRIGGER" || entry.heading.name.starts_with("EVENT TRIGGER ")
            });
            schema.event_triggers = triggers;
            let mut others: Vec<Entry> = others;
            schema.post_data.append(&mut others);
        }
        Ok(schema)
    }

    fn drop_database(&self, home: &mut Client) -> Result<(), PostgresError> {
        match home.execute(&format!("DROP DATABASE {}", ident(self.into))) {
            Ok(_) => Ok(()),
            Err(e) if e.code() == "55006" => Err(PostgresError::restore(
                format!(
                    "database {} cannot be dropped while others are connected to it; end them, or: DROP DATABASE {} WITH (FORCE)",
                    self.into,
                    ident(self.into)
                ),
                e,
            )),
            Err(e) => Err(PostgresError::restore(format!("database {} cannot be dropped", self.into), e)),
        }
    }

    fn create_database(&self, home: &mut Client, schema: &Schema) -> Result<(), PostgresError> {
        let rename = Rename { from: &self.database.name, to: self.into };
        let mut made = false;
        for entry in schema.database.iter().filter(|entry| entry.heading.kind == "DATABASE") {
            for statement in super::script::statements(&entry.sql) {
                let sql = rename.apply(statement);
                let result = match home.execute(&sql) {
                    Err(e) if e.code() == "42704" && scripts::without_tablespace(&sql).is_some() => {
                        self.warn(format!(
                            "database {}: its tablespace is missing, so it lies in the default one",
                            self.into
                        ));
                        home.execute(&scripts::without_tablespace(&sql).expect("looked at just now"))
                    }
                    result => result,
                };
                if let Err(e) = result {
                    if made {
                        // It is empty, and ours: nothing is left behind.
                        let _ = home.execute(&format!("DROP DATABASE {}", ident(self.into)));
                    }
                    let hint = match e.code() {
                        "42501" if made => "; restore as a superuser, or use --no-owner".to_owned(),
                        "42501" => format!(
                            "; let the role do it: ALTER ROLE {} CREATEDB",
                            ident(&self.options.connection.user)
                        ),
                        "42704" => "; the role that owns it is missing here: make it, or use --no-owner".to_owned(),
                        "22023" | "42602" => {
                            "; the server lacks its locale: install it, or create the database by hand".to_owned()
                        }
                        _ => String::new(),
                    };
                    return Err(PostgresError::restore(format!("database {} cannot be created{hint}", self.into), e));
                }
                made = true;
            }
        }
        Ok(())
    }

    /// Brings the database's own settings and event triggers, and takes the mark away.
    fn finish(&self, client: &mut Client, schema: &Schema) -> Result<(), PostgresError> {
        self.progress.doing(&format!("{}: finishing", self.into));
        let failed = |e| self.failed("it cannot be finished", e);
        let rename = Rename { from: &self.database.name, to: self.into };
        let whole = !self.options.data_only && self.selection.is_none();
        let comment = mark::comment_back(client, self.into).map_err(failed)?;
        let mut sql = format!("BEGIN; {}{comment}", mark::REMOVE);
        for trigger in schema.event_triggers.iter().filter(|_| whole) {
            sql.push_str(&trigger.sql);
            sql.push('\n');
        }
        client.execute(&sql).map_err(failed)?;
        let own = schema.database.iter().filter(|entry| whole && entry.heading.kind != "DATABASE");
        for statement in own.flat_map(|entry| super::script::statements(&entry.sql)) {
            let sql = format!("SAVEPOINT before; {} RELEASE before", rename.apply(statement));
            match client.execute(&sql) {
                Ok(_) => {}
                // What the role may not set on a database it does not own is no reason to lose the restore.
                Err(e) if !e.code().is_empty() => {
                    client.execute("ROLLBACK TO before").map_err(failed)?;
                    self.warn(format!("database {}: left out, because {e}: {statement}", self.into));
                }
                Err(e) => return Err(failed(e)),
            }
        }
        client.execute("COMMIT").map(drop).map_err(failed)
    }

    /// Connects to the target, ready to write.
    fn connect(&self) -> Result<Client, PostgresError> {
        let mut client = Client::connect(&self.options.connection, self.into, &self.halt)?;
        let failed = |e| PostgresError::restore(format!("database {} cannot be written", self.into), e);
        session::prepare(&mut client).map_err(failed)?;
        client
            .execute(
                "SET check_function_bodies = off; SET synchronous_commit = off; SET default_transaction_read_only = off; \
                 SET default_tablespace = ''; SET default_toast_compression TO DEFAULT",
            )
            .or_else(|e| if e.code() == "42704" { Ok(String::new()) } else { Err(e) })
            .map_err(failed)?;
        // Sorting an index in memory is worth far more than the default; never less than the server gives.
        client
            .execute(
                "SELECT pg_catalog.set_config('maintenance_work_mem', greatest(setting::int8, 262144)::text, false) \
                 FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'",
            )
            .map_err(failed)?;
        Ok(client)
    }

    fn jobs(&self) -> usize {
        match self.options.jobs {
            0 => thread::available_parallelism().map_or(2, usize::from),
            jobs => jobs,
        }
    }

    /// Warns once, however often the reason comes up.
    fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock().expect("nothing panics with it");
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    fn failed(&self, what: &str, e: QueryError) -> PostgresError {
        PostgresError::restore(format!("database {}: {what}", self.into), e)
    }

    /// Says after an error what the target is now, and how to go on.
    fn with_the_way_on(&self, error: PostgresError) -> PostgresError {
        let way =
            format!("database {} is marked as incomplete: go on with --resume, or start over with --clean", self.into);
        match error {
            PostgresError::Target { message, source } => {
                PostgresError::Target { message: format!("{message}; {way}"), source }
            }
            PostgresError::Mismatch(message) => PostgresError::Mismatch(format!("{message}; {way}")),
            PostgresError::Items { what, source } => PostgresError::Items { what: format!("{what}; {way}"), source },
            other => other,
        }
    }

    /// Runs `work` on several connections, `client` among them, until each returns. The first error stops all.
    fn side_by_side(
        &self,
        client: &mut Client,
        connections: usize,
        work: &(dyn Fn(&mut Client) -> Result<(), PostgresError> + Sync),
    ) -> Result<(), PostgresError> {
        let failure: Mutex<Option<PostgresError>> = Mutex::new(None);
        let note = |result: Result<(), PostgresError>| {
            if let Err(e) = result {
                let mut first = failure.lock().expect("nothing panics with it");
                if first.is_none() && !(self.halt.by_failure() && matches!(e, PostgresError::Cancelled(_))) {
                    *first = Some(e);
                }
                self.halt.stop();
            }
        };
        thread::scope(|scope| {
            for _ in 1..connections {
                scope.spawn(|| note(self.connect().and_then(|mut client| work(&mut client))));
            }
            note(work(client));
        });
        match failure.into_inner().expect("all threads have ended") {
            Some(e) => Err(e),
            None if self.halt.is_set() => Err(PostgresError::Cancelled(Cancelled)),
            None => Ok(()),
        }
    }
}

/// The `schema.name` that begins at `at` in a statement's words, and the position behind it.
pub(super) fn qualified_at(words: &[Word], at: usize) -> Option<((String, String), usize)> {
    let schema = words.get(at)?.name()?;
    if !words.get(at + 1)?.is(".") {
        return None;
    }
    let name = words.get(at + 2)?.name()?;
    Some(((schema.to_owned(), name.to_owned()), at + 3))
}

/// The table of `... ON [ONLY] schema.table ...` or `ALTER TABLE [ONLY] schema.table ...`, and whether ONLY stood there.
pub(super) fn table_of(sql: &str) -> Option<((String, String), bool)> {
    let words = words(sql);
    let alters = words.first()?.is("ALTER") && words.get(1)?.is("TABLE");
    let at = if alters { 2 } else { words.iter().position(|word| word.is("ON"))? + 1 };
    let only = words.get(at)?.is("ONLY");
    qualified_at(&words, at + usize::from(only)).map(|(table, _)| (table, only))
}

/// `15.14` of a server's version number, for messages of this folder.
pub(super) fn server_version(client: &Client) -> String {
    version_text(client.version())
}
