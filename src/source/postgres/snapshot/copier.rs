//! Tables, sequences and large objects, copied by several connections side by side.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Map, json};

use super::{BATCH, Orders, SnapshotOptions, Task, store};
use crate::progress::Progress;
use crate::source::postgres::catalog::{Database, Relation, Table};
use crate::source::postgres::client::{Client, Halt, QueryError};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::large_objects;
use crate::source::postgres::order::item_path;
use crate::source::postgres::quote::{ident, literal};
use crate::source::postgres::session;
use crate::source::{ItemFacts, ItemSink, ItemStream};

/// Copies data; shared by the connections of one database.
pub(super) struct Copier<'a> {
    pub options: &'a SnapshotOptions,
    pub database: &'a Database,
    pub sink: &'a dyn ItemSink,
    pub progress: &'a Progress,
    pub tables: &'a [Table],
    pub sequences: &'a [Relation],
    pub orders: &'a Orders,
    pub standby: bool,
}

impl Copier<'_> {
    /// Opens one more connection on the same snapshot and works on it. If the snapshot is gone, whoever exported it has failed and
    /// says why: until then that is only noted in `lost`.
    pub(super) fn help(
        &self,
        snapshot: &str,
        queue: &Mutex<VecDeque<Task>>,
        deferred: &Mutex<Vec<Task>>,
        lost: &Mutex<Option<PostgresError>>,
        halt: &Halt,
    ) -> Result<(), PostgresError> {
        let mut client = Client::connect(&self.options.connection, &self.database.name, halt)?;
        let failed = |e| PostgresError::dump(format!("database {} could not be read", self.database.name), e);
        session::prepare(&mut client).map_err(failed)?;
        let sql =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(snapshot));
        match client.execute(&sql) {
            Err(e) if e.code() == "55000" => {
                lost.lock().expect("nothing panics with it").get_or_insert(failed(e));
                return Ok(());
            }
            other => other.map_err(failed)?,
        };
        self.work(&mut client, queue, Some(deferred))
    }

    /// Works until the queue is empty. Without `deferred`, this connection has the locks already.
    pub(super) fn work(
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
        let path = relation.item_path(&self.database.name);
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
        let mut copy = || {
            if !table.sorted {
                return self.copy(client, &table.copy_out(&self.database.encoding), &mut *stream);
            }
            client.execute("SET LOCAL enable_indexscan = off")?;
            let copied = self.copy(client, &table.copy_out(&self.database.encoding), &mut *stream)?;
            client.execute("RESET enable_indexscan")?;
            Ok(copied)
        };
        let copied = copy().map_err(|e| self.failed(table, e))?;
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
        let copied = client.copy_out(sql, &mut |bytes| stream.write_all(bytes))?;
        Ok(copied.rows)
    }

    fn path(&self, parts: &[&str]) -> String {
        item_path(&self.database.name, parts)
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
            // Out of disk, or of what temp_file_limit allows.
            e @ QueryError::Server(_) if matches!(e.code(), "53100" | "53400") => PostgresError::dump(
                format!(
                    "{what} of database {database} could not be read; --sort-max 0 has the server sort no large table"
                ),
                e,
            ),
            e => PostgresError::dump(format!("{what} of database {database} could not be read"), e),
        }
    }
}
