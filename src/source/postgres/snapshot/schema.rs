//! The schema, as two runs of pg_dump say it.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard};

use serde_json::Map;

use super::{Orders, SnapshotOptions, store};
use crate::progress::{Cancelled, Progress};
use crate::source::postgres::catalog::Database;
use crate::source::postgres::client::Halt;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::schema::{Part, SchemaFilter};
use crate::source::postgres::tools::Tools;
use crate::source::{ItemFacts, ItemSink, ItemStream, escape_component};

/// How long pg_dump waits for locks.
const PG_DUMP_LOCK_WAIT_MS: u32 = 5_000;
/// How many of them run for one database.
const PG_DUMPS: usize = 2;

/// Holds everything back until each pg_dump has its locks and has read all that it will say: until then one can begin anew, with
/// another snapshot.
#[derive(Default)]
pub(super) struct Gate {
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
    /// Says that one of them begins to write, and waits for the others. Returns whether to go on.
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
    pub(super) fn pass(&self) -> bool {
        Gate::wait(self.state.lock().expect("nothing panics with it"), &self.changed)
    }

    /// Keeps the gate shut, unless it is open already.
    pub(super) fn shut(&self) {
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

/// What pg_dump says about a database.
pub(super) struct SchemaDump<'a> {
    pub options: &'a SnapshotOptions,
    pub tools: &'a Tools,
    pub database: &'a Database,
    pub sink: &'a dyn ItemSink,
    pub progress: &'a Progress,
    pub snapshot: &'a str,
    pub unrefreshed: &'a [String],
    pub halt: &'a Halt,
    pub gate: Gate,
}

impl SchemaDump<'_> {
    pub(super) fn pre_data(&self, orders: &Orders) -> Result<(), PostgresError> {
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

    pub(super) fn post_data(&self, orders: &Orders) -> Result<(), PostgresError> {
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
                // It writes nothing before it has all its locks and all its answers.
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
