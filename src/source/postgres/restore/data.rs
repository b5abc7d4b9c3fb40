//! Rows, sequences and large objects back into their places, and what comes of it compared with the snapshot.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Write};
use std::sync::Mutex;

use super::mark::{Mark, record};
use super::post_data::{Board, Early, Load, Name, Unit, Work};
use super::saved::SavedTable;
use super::scripts;
use super::{DatabaseRestore, TableReport, saved};
use crate::source::Item;
use crate::source::postgres::catalog::encoding_option;
use crate::source::postgres::client::{Client, QueryError};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::{copy_field, ident, literal, qualified};

/// Statements sent at once where each is short.
const STATEMENT_BYTES: usize = 256 << 10;
/// A row of large object content is one piece in hex.
const LINE_BYTES_MAX: usize = 4 << 20;

impl DatabaseRestore<'_> {
    /// Copies tables in, several at a time, the longest first. Connections that find no table left begin with what is
    /// `early`, on tables that are loaded. Returns the tables that are analyzed, too.
    pub(super) fn load_tables(
        &self,
        client: &mut Client,
        mark: &Mark,
        tables: &[&SavedTable],
        early: Early<'_>,
    ) -> Result<(Vec<TableReport>, BTreeSet<Name>), PostgresError> {
        if self.options.data_only {
            self.check_empty(client, mark, tables)?;
        }
        let mut reports: Vec<Option<TableReport>> = Vec::new();
        let mut queue: Vec<usize> = Vec::new();
        for (at, table) in tables.iter().enumerate() {
            let done = mark.done(&step(table));
            if done.is_none() {
                queue.push(at);
                self.progress.add_bytes_total(table.item.bytes);
            }
            reports.push(done.map(|(rows, hash)| report(table, rows, hash.to_owned())));
        }
        let entries: usize = early.units.iter().map(Unit::len).sum();
        self.progress.add_items_total((queue.len() + entries + early.analyze.len()) as u64);
        queue.sort_by_key(|&at| std::cmp::Reverse(tables[at].item.bytes));
        let loads = queue.into_iter().map(|number| Load { number, fills: fills(tables, number) }).collect();
        let board = Board::new(loads, &early.units, early.analyze);
        let connections = self.jobs().min(board.len()).max(1);
        let reports = Mutex::new(reports);
        let analyzed = Mutex::new(BTreeSet::new());
        self.side_by_side(client, connections, &|client| {
            if self.options.data_only {
                // Triggers and foreign keys would fire in whatever order the tables come.
                if let Err(e) = client.execute("SET session_replication_role = replica") {
                    self.warn(format!("database {}: triggers and foreign keys stay active: {e}", self.into));
                }
            }
            let _watch = board.watch();
            while let Some(work) = board.take() {
                match work {
                    Work::Table(load) => {
                        let table = tables[load.number];
                        self.progress.doing(&format!("{}: {}", self.into, table.display()));
                        let done = self.load_table(client, table).inspect_err(|_| board.fail())?;
                        reports.lock().expect("nothing panics with it")[load.number] = Some(done);
                        board.loaded(&load);
                        self.progress.add_items(1);
                    }
                    Work::Unit(unit) => self.work_on(client, mark, &board, unit)?,
                    Work::Analyze(table) => {
                        self.analyze_table(client, &qualified(&table.0, &table.1)).inspect_err(|_| board.fail())?;
                        analyzed.lock().expect("nothing panics with it").insert(table);
                        self.progress.add_items(1);
                    }
                }
            }
            Ok(())
        })?;
        let reports = reports.into_inner().expect("all threads have ended").into_iter().flatten().collect();
        Ok((reports, analyzed.into_inner().expect("all threads have ended")))
    }

    fn load_table(&self, client: &mut Client, table: &SavedTable) -> Result<TableReport, PostgresError> {
        // A table that is made or emptied in the same transaction can be written frozen: no later run over it.
        let freeze = table.load_via.is_none() && table.filter.is_none() && !self.options.data_only;
        let begin = if freeze { format!("BEGIN; TRUNCATE ONLY {}", table.sql()) } else { "BEGIN".to_owned() };
        client.execute(&begin).map_err(|e| self.table_failed(table, e))?;
        let rows = self.copy_table(client, table, freeze)?;
        let hash = &table.item.hash;
        client
            .execute(&format!("{}COMMIT", record(&step(table), rows, hash)))
            .map_err(|e| self.table_failed(table, e))?;
        Ok(report(table, rows, hash.clone()))
    }

    /// Copies a table in and compares the server's count of rows with the snapshot's; bytes and hash are compared by the one
    /// who gives the item, before the server hears that it is complete. The caller commits.
    pub(super) fn copy_table(
        &self,
        client: &mut Client,
        table: &SavedTable,
        freeze: bool,
    ) -> Result<u64, PostgresError> {
        let rows = client
            .copy_in(&table.copy_in(freeze), &mut |out| self.source.read_item(&table.item, out))
            .map_err(|e| self.table_failed(table, e))?;
        let wanted_rows = table.item.rows.unwrap_or(rows);
        if rows != wanted_rows {
            return Err(PostgresError::Mismatch(format!(
                "table {} of database {}: the snapshot has {wanted_rows} rows, the server took {rows}",
                table.display(),
                self.into
            )));
        }
        Ok(rows)
    }

    fn table_failed(&self, table: &SavedTable, e: QueryError) -> PostgresError {
        let hint = match e.code() {
            "42P01" => "; it is missing here, restore its schema too",
            "23505" | "23503" | "23514" => {
                "; the data breaks a rule of the target, whose schema differs or holds rows already"
            }
            "53100" => "; the server's disk is full",
            "42501" => "; restore as the owner of the table or a superuser",
            _ => "",
        };
        PostgresError::restore(format!("table {} of database {} cannot be loaded{hint}", table.display(), self.into), e)
    }

    fn check_empty(&self, client: &mut Client, mark: &Mark, tables: &[&SavedTable]) -> Result<(), PostgresError> {
        for table in tables.iter().filter(|table| mark.done(&step(table)).is_none() && table.filter.is_none()) {
            let sql = format!("SELECT EXISTS (SELECT FROM ONLY {})", table.sql());
            let rows = client.query(&sql).map_err(|e| self.table_failed(table, e))?;
            if rows.first().is_some_and(|row| row.is_true(0)) {
                return Err(PostgresError::target(format!(
                    "table {} of database {} has rows already; empty it with TRUNCATE, or restore --into another name",
                    table.display(),
                    self.into
                )));
            }
        }
        Ok(())
    }

    /// Sets sequences to the values they had.
    pub(super) fn load_sequences(&self, client: &mut Client, mark: &Mark) -> Result<(), PostgresError> {
        let Some(item) = self.database.sequences.as_ref().filter(|_| mark.done("sequences").is_none()) else {
            return Ok(());
        };
        let statements = self.sequence_statements(item)?;
        let failed = |e| self.failed("its sequences cannot be set", e);
        for batch in statements.chunks(200) {
            client.execute(&batch.concat()).map_err(failed)?;
        }
        client.execute(&record("sequences", statements.len() as u64, "")).map_err(failed)?;
        Ok(())
    }

    /// `SELECT setval(...);` for each sequence that this restore wants.
    pub(super) fn sequence_statements(&self, item: &Item) -> Result<Vec<String>, PostgresError> {
        let text = saved::read(self.source, item)?;
        let mut statements = Vec::new();
        for sequence in sequences(&text) {
            let sequence =
                sequence.ok_or_else(|| PostgresError::target(format!("item {} does not read", item.path)))?;
            if self.selection.is_none_or(|s| s.wants_sequence(&sequence.schema, &sequence.name)) {
                statements.push(sequence.sql());
            }
        }
        Ok(statements)
    }

    /// Makes large objects and fills them.
    pub(super) fn load_large_objects(&self, client: &mut Client, mark: &Mark) -> Result<(), PostgresError> {
        if self.selection.is_some() {
            return Ok(());
        }
        if let Some(item) = &self.database.large_object_definitions {
            let mut entries = saved::entries(self.source, item)?;
            if self.options.no_owner {
                scripts::without_owners(&mut entries);
            }
            self.run_script(client, mark, "large-object-definitions", &entries)?;
        }
        let Some(item) = self.database.large_objects.as_ref().filter(|_| mark.done("large-objects").is_none()) else {
            return Ok(());
        };
        self.progress.doing(&format!("{}: large objects", self.into));
        self.progress.add_bytes_total(item.bytes);
        let failed = |e| self.failed("its large objects cannot be filled", e);
        client.execute("BEGIN").map_err(failed)?;
        let mut failure = None;
        let mut rows = 0;
        let mut pending = String::new();
        let result = {
            let mut lines = Lines::new(|line: &[u8]| {
                rows += 1;
                pending.push_str(&piece_sql(line).ok_or_else(|| io::Error::other("a row of it does not read"))?);
                if pending.len() >= STATEMENT_BYTES {
                    if let Err(e) = client.execute(&pending) {
                        failure = Some(e);
                        return Err(io::Error::other("the server refused it"));
                    }
                    pending.clear();
                }
                Ok(())
            });
            self.source.read_item(item, &mut lines).and_then(|()| lines.finish())
        };
        if let Some(e) = failure {
            return Err(failed(e));
        }
        result.map_err(|e| PostgresError::items(format!("item {} could not be restored", item.path), e))?;
        client
            .execute(&format!("{pending}{}COMMIT", record("large-objects", rows, &item.hash)))
            .map(drop)
            .map_err(failed)
    }

    /// Gives the planner a table's statistics.
    fn analyze_table(&self, client: &mut Client, table: &str) -> Result<(), PostgresError> {
        self.progress.doing(&format!("{}: analyzing {table}", self.into));
        match client.execute(&format!("ANALYZE {table}")) {
            Ok(_) => Ok(()),
            // Statistics come again by themselves; a table whose expressions fail is no reason to fail.
            Err(e) if !e.code().is_empty() => {
                self.warn(format!("{table} could not be analyzed: {e}"));
                Ok(())
            }
            Err(e) => Err(self.failed("it cannot be analyzed", e)),
        }
    }

    /// Gives the planner its statistics, table by table, but for those that are `done`. A partitioned table takes its partitions along, unless some of
    /// them lie on another server, which need not answer.
    pub(super) fn analyze(&self, client: &mut Client, mark: &Mark, done: &BTreeSet<Name>) -> Result<(), PostgresError> {
        if mark.done("analyze").is_some() {
            return Ok(());
        }
        let failed = |e| self.failed("it cannot be analyzed", e);
        let rows = client
            .query(
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
                 LATERAL (SELECT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(pg_catalog.pg_partition_root(c.oid)) t \
                 JOIN pg_catalog.pg_class f ON f.oid = t.relid WHERE f.relkind = 'f') AS far) t \
                 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'vault_restore') \
                 AND (c.relkind = 'r' AND (NOT c.relispartition OR far) OR c.relkind = 'm' AND c.relispopulated \
                 OR c.relkind = 'p' AND NOT c.relispartition AND NOT far) \
                 ORDER BY pg_catalog.pg_table_size(c.oid) DESC, n.nspname, c.relname",
            )
            .map_err(failed)?;
        self.progress.phase(&format!("{}: analyzing", self.into));
        let queue: VecDeque<String> = rows
            .iter()
            .map(|row| (row.text(0).to_owned(), row.text(1).to_owned()))
            .filter(|table| !done.contains(table))
            .map(|(schema, name)| qualified(&schema, &name))
            .collect();
        self.progress.add_items_total(queue.len() as u64);
        let connections = self.jobs().min(queue.len()).max(1);
        let queue = Mutex::new(queue);
        self.side_by_side(client, connections, &|client| {
            loop {
                let next = queue.lock().expect("nothing panics with it").pop_front();
                let Some(table) = next else { return Ok(()) };
                self.analyze_table(client, &table)?;
                self.progress.add_items(1);
            }
        })?;
        client.execute(&record("analyze", rows.len() as u64, "")).map(drop).map_err(failed)
    }

    /// Reads each table again, as a snapshot would, and compares its hash.
    pub(super) fn verify(&self, tables: &[&SavedTable], reports: &mut [TableReport]) -> Result<(), PostgresError> {
        self.progress.phase(&format!("{}: comparing", self.into));
        let mut client = self.connect()?;
        let queue: Vec<(usize, &SavedTable)> =
            tables.iter().copied().enumerate().filter(|(_, table)| table.load_via.is_none()).collect();
        self.progress.add_bytes_total(queue.iter().map(|(_, table)| table.item.bytes).sum());
        self.progress.add_items_total(queue.len() as u64);
        let connections = self.jobs().min(queue.len()).max(1);
        let queue = Mutex::new(VecDeque::from(queue));
        let verified = Mutex::new(Vec::new());
        self.side_by_side(&mut client, connections, &|client| {
            loop {
                let next = queue.lock().expect("nothing panics with it").pop_front();
                let Some((at, table)) = next else { return Ok(()) };
                let mut hasher = blake3::Hasher::new();
                let copied = client
                    .copy_out(&copy_out(table), &mut |bytes| {
                        hasher.update(bytes);
                        self.progress.add_bytes(bytes.len() as u64);
                        Ok(())
                    })
                    .map_err(|e| self.failed(&format!("table {} cannot be read again", table.display()), e))?;
                let hash = hasher.finalize().to_hex().to_string();
                if hash != table.item.hash {
                    return Err(PostgresError::Mismatch(format!(
                        "table {} of database {} reads differently than in the snapshot: {} rows with hash {hash}, \
                         the snapshot has {} with hash {}",
                        table.display(),
                        self.into,
                        copied.rows,
                        table.item.rows.unwrap_or(0),
                        table.item.hash
                    )));
                }
                verified.lock().expect("nothing panics with it").push(at);
                self.progress.add_items(1);
            }
        })?;
        for at in verified.into_inner().expect("all threads have ended") {
            if let Some(report) = reports.get_mut(at) {
                report.verified = true;
            }
        }
        Ok(())
    }
}

/// The statement with which a snapshot read this table.
fn copy_out(table: &SavedTable) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| ident(column)).collect();
    let order: Vec<String> = table.order_by.iter().map(|column| ident(column)).collect();
    let filter = table.filter.as_deref().unwrap_or("");
    let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
    format!(
        "COPY (SELECT {} FROM ONLY {} {filter}{order}) TO STDOUT{}",
        columns.join(", "),
        table.sql(),
        encoding_option(&table.encoding)
    )
}

/// The tables in which rows of a table may come to lie.
fn fills(tables: &[&SavedTable], number: usize) -> Vec<Name> {
    let name = |table: &SavedTable| (table.schema.clone(), table.name.clone());
    match &tables[number].load_via {
        None => vec![name(tables[number])],
        via => tables.iter().filter(|other| other.load_via == *via).map(|other| name(other)).collect(),
    }
}

fn step(table: &SavedTable) -> String {
    format!("table {}", table.sql())
}

pub(super) fn report(table: &SavedTable, rows: u64, hash: String) -> TableReport {
    TableReport {
        schema: table.schema.clone(),
        name: table.name.clone(),
        rows,
        bytes: table.item.bytes,
        hash,
        verified: false,
    }
}

/// Calls a function with each line, without its end.
pub struct Lines<F> {
    each: F,
    rest: Vec<u8>,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Lines<F> {
    pub fn new(each: F) -> Lines<F> {
        Lines { each, rest: Vec::new() }
    }

    /// What is left must be nothing: every row ends its line.
    pub fn finish(self) -> io::Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(io::Error::other("the last row is cut short")) }
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Lines<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut from = 0;
        while let Some(length) = bytes[from..].iter().position(|&b| b == b'\n') {
            if self.rest.is_empty() {
                (self.each)(&bytes[from..from + length])?;
            } else {
                self.rest.extend_from_slice(&bytes[from..from + length]);
                (self.each)(&self.rest)?;
                self.rest.clear();
            }
            from += length + 1;
        }
        if self.rest.len() + bytes.len() - from > LINE_BYTES_MAX {
            return Err(io::Error::other("a row is too long"));
        }
        self.rest.extend_from_slice(&bytes[from..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A row of the item `sequences`.
pub struct Sequence {
    pub schema: String,
    pub name: String,
    last_value: i64,
    is_called: bool,
}

impl Sequence {
    /// The statement that sets it.
    pub fn sql(&self) -> String {
        let name = literal(&qualified(&self.schema, &self.name));
        format!("SELECT pg_catalog.setval({name}, {}, {});\n", self.last_value, self.is_called)
    }
}

/// Reads the item `sequences`; `None` for a row that does not read.
pub fn sequences(text: &[u8]) -> impl Iterator<Item = Option<Sequence>> {
    text.split_inclusive(|&b| b == b'\n').map(|line| {
        let mut fields = line.strip_suffix(b"\n")?.split(|&b| b == b'\t');
        let mut next = || copy_field(fields.next()?).ok().flatten();
        let (schema, name) = (next()?, next()?);
        let last_value = next()?.parse().ok()?;
        let is_called = next()? == "t";
        Some(Sequence { schema, name, last_value, is_called })
    })
}

/// The statement that writes a row of the item `large-objects`.
pub fn piece_sql(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split('\t');
    let (oid, at, bytes) = (fields.next()?, fields.next()?, fields.next()?);
    let (oid, at): (u32, i64) = (oid.parse().ok()?, at.parse().ok()?);
    let hex = bytes.strip_prefix("\\\\x")?;
    if fields.next().is_some() || hex.len() % 2 != 0 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some(format!("SELECT pg_catalog.lo_put({oid}, {at}, '\\x{hex}');\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_sequences_and_large_objects_read_or_are_refused() {
        let text = b"public\ta\\tb\t-7\tt\npublic\tc\t1\tf\nbroken\n";
        let all: Vec<Option<String>> = sequences(text).map(|s| s.map(|s| s.sql())).collect();
        assert_eq!(all[1].as_deref(), Some("SELECT pg_catalog.setval('\"public\".\"c\"', 1, false);\n"));
        assert!(all[0].as_deref().is_some_and(|sql| sql.contains("a\tb") && sql.contains("-7, true")));
        assert_eq!(all[2], None);
        assert_eq!(piece_sql(b"7\t0\t\\\\x00ff").as_deref(), Some("SELECT pg_catalog.lo_put(7, 0, '\\x00ff');\n"));
        for broken in [&b"7\t0\t\\\\x0"[..], b"7\t0\t\\\\x0'", b"x\t0\t\\\\x", b"7\t0", b"7\t0\t\\\\x\t", b"\xff"] {
            assert_eq!(piece_sql(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let text = b"one\n\ntwo\nthree\n";
        for size in 1..text.len() {
            let mut found = Vec::new();
            let mut lines = Lines::new(|line: &[u8]| {
                found.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            });
            for piece in text.chunks(size) {
                lines.write_all(piece).unwrap();
            }
            lines.finish().unwrap();
            assert_eq!(found, ["one", "", "two", "three"]);
        }
        let mut cut = Lines::new(|_: &[u8]| Ok(()));
        cut.write_all(b"no end").unwrap();
        assert!(cut.finish().is_err());
    }
}
