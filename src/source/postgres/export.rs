//! A snapshot as plain SQL that psql loads, so that nobody needs vault to read what it gives.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::PostgresError;
use super::restore::{
    Lines, Saved, SavedDatabase, SavedTable, Selected, Selection, entries, piece_sql, read, sequences, without_owners,
};
use super::script::{Entry, write_entries};
use super::session::TEXT_SETTINGS;
use crate::progress::Progress;
use crate::source::{Item, ItemSource, escape_component};

/// What to export.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Only these tables: `schema.table`, `table`, `*` and `?`.
    pub include: Vec<String>,
    pub schema_only: bool,
    pub data_only: bool,
    /// Leave out ownership and privileges.
    pub no_owner: bool,
}

/// Writes one database as SQL to be loaded into an empty database: `psql -d NEW -f FILE`.
///
/// `database` may be left out if the snapshot has only one.
pub fn export_sql(
    source: &dyn ItemSource,
    database: Option<&str>,
    options: &ExportOptions,
    out: &mut dyn Write,
    progress: &Progress,
) -> Result<(), PostgresError> {
    let saved = Saved::load(source)?;
    let names = database.map(|name| vec![name.to_owned()]);
    let chosen = saved.choose(names.as_deref())?;
    let [database] = chosen.as_slice() else {
        let names: Vec<&str> = chosen.iter().map(|database| database.name.as_str()).collect();
        return Err(PostgresError::Usage(format!(
            "the snapshot has several databases, and only one fits into a stream; choose with --database: {}",
            names.join(", ")
        )));
    };
    let selection = Selection::new(&options.include, &chosen, source)?;
    let selected = selection.as_ref().and_then(|selection| selection.of(&database.name));
    let export = Export { source, options, progress, out };
    export.database(database, selected)
}

/// Writes every database (or those named) as a file below `target`, which must be empty or not exist yet.
///
/// Returns the files: `globals.sql` with roles, `databases.sql` that creates the databases, and one a database. A file
/// has its name only once it is whole.
pub fn export_dir(
    source: &dyn ItemSource,
    databases: Option<&[String]>,
    options: &ExportOptions,
    target: &Path,
    progress: &Progress,
) -> Result<Vec<PathBuf>, PostgresError> {
    let failed = |e: io::Error| PostgresError::items(format!("{} cannot be written", target.display()), e);
    let saved = Saved::load(source)?;
    let chosen = saved.choose(databases)?;
    let selection = Selection::new(&options.include, &chosen, source)?;
    fs::create_dir_all(target).map_err(failed)?;
    if fs::read_dir(target).map_err(failed)?.next().is_some() {
        return Err(PostgresError::target(format!(
            "folder {} is not empty; name one that is, or that does not exist",
            target.display()
        )));
    }
    let mut files = Vec::new();
    let mut file = |name: &str, write: &mut dyn FnMut(&mut dyn Write) -> Result<(), PostgresError>| {
        let path = target.join(name);
        write_file(&path, write)?;
        files.push(path);
        Ok::<(), PostgresError>(())
    };
    let whole = selection.is_none() && !options.data_only;
    if let Some(item) = saved.globals.as_ref().filter(|_| whole && !options.no_owner) {
        file("globals.sql", &mut |out| copy(source, item, out))?;
    }
    if whole {
        file("databases.sql", &mut |out| {
            for item in chosen.iter().filter_map(|database| database.database.as_ref()) {
                let mut entries = entries(source, item)?;
                if options.no_owner {
                    without_owners(&mut entries);
                }
                write_entries(&entries, out).map_err(failed)?;
            }
            Ok(())
        })?;
    }
    for database in chosen {
        let selected = selection.as_ref().and_then(|selection| selection.of(&database.name));
        if selection.is_some() && selected.is_none() {
            continue;
        }
        let reserved = matches!(database.name.as_str(), "globals" | "databases");
        let name = format!("{}{}.sql", escape_component(&database.name), if reserved { ".database" } else { "" });
        file(&name, &mut |out| Export { source, options, progress, out }.database(database, selected))?;
    }
    File::open(target).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(files)
}

fn write_file(
    path: &Path,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<(), PostgresError>,
) -> Result<(), PostgresError> {
    let failed = |e: io::Error| PostgresError::Target {
        message: format!("{} cannot be written: {e}", path.display()),
        source: None,
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let file = File::create_new(&partial).map_err(failed)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    fs::rename(&partial, path).map_err(failed)
}

fn copy(source: &dyn ItemSource, item: &Item, out: &mut dyn Write) -> Result<(), PostgresError> {
    source.read_item(item, out).map_err(|e| PostgresError::items(format!("item {} could not be written", item.path), e))
}

/// One database being written.
struct Export<'a> {
    source: &'a dyn ItemSource,
    options: &'a ExportOptions,
    progress: &'a Progress,
    out: &'a mut dyn Write,
}

impl Export<'_> {
    fn database(mut self, database: &SavedDatabase, selected: Option<&Selected>) -> Result<(), PostgresError> {
        let options = self.options;
        self.say(&preamble(&database.name))?;
        if !options.data_only {
            self.script(database.pre_data.as_ref(), selected.map(|s| s.pre_data.as_slice()))?;
        }
        if !options.schema_only {
            let wanted = |table: &&SavedTable| selected.is_none_or(|s| s.wants(&table.schema, &table.name));
            let tables: Vec<&SavedTable> = database.tables.iter().filter(wanted).collect();
            self.progress.add_bytes_total(tables.iter().map(|table| table.item.bytes).sum());
            for table in tables {
                self.table(table)?;
            }
            if let Some(item) = &database.sequences {
                self.sequences(item, selected)?;
            }
            if selected.is_none() {
                self.script(database.large_object_definitions.as_ref(), None)?;
                if let Some(item) = &database.large_objects {
                    self.large_objects(item)?;
                }
            }
        }
        if !options.data_only {
            self.script(database.post_data.as_ref(), selected.map(|s| s.post_data.as_slice()))?;
        }
        self.say("--\n-- End of the database\n--\n")?;
        self.out.flush().map_err(stopped)
    }

    fn say(&mut self, text: &str) -> Result<(), PostgresError> {
        self.out.write_all(text.as_bytes()).map_err(stopped)
    }

    /// Writes a script as it is, or, if some of it is not wanted, entry by entry.
    fn script(&mut self, item: Option<&Item>, chosen: Option<&[Entry]>) -> Result<(), PostgresError> {
        let Some(item) = item else { return Ok(()) };
        if chosen.is_none() && !self.options.no_owner && !self.options.schema_only {
            return copy(self.source, item, self.out);
        }
        let mut entries = match chosen {
            Some(entries) => entries.to_vec(),
            None => entries(self.source, item)?,
        };
        if self.options.no_owner {
            without_owners(&mut entries);
        }
        if self.options.schema_only {
            entries.retain(|entry| entry.heading.kind != "MATERIALIZED VIEW DATA");
        }
        write_entries(&entries, self.out).map_err(stopped)
    }

    fn table(&mut self, table: &SavedTable) -> Result<(), PostgresError> {
        self.progress.doing(&table.display());
        let heading = table.display().replace(['\n', '\r'], " ");
        self.say(&format!(
            "--\n-- Rows of {heading}\n--\n\n{};\n",
            table.copy_in(false).replacen("FROM STDIN", "FROM stdin", 1)
        ))?;
        copy(self.source, &table.item, self.out)?;
        self.say("\\.\n\n\n")
    }

    fn sequences(&mut self, item: &Item, selected: Option<&Selected>) -> Result<(), PostgresError> {
        let text = read(self.source, item)?;
        self.say("--\n-- Values of sequences\n--\n\n")?;
        for sequence in sequences(&text) {
            let sequence =
                sequence.ok_or_else(|| PostgresError::target(format!("item {} does not read", item.path)))?;
            if selected.is_none_or(|s| s.wants_sequence(&sequence.schema, &sequence.name)) {
                self.say(&sequence.sql())?;
            }
        }
        self.say("\n\n")
    }

    fn large_objects(&mut self, item: &Item) -> Result<(), PostgresError> {
        self.say("--\n-- Content of large objects\n--\n\nBEGIN;\n\n")?;
        let out = &mut *self.out;
        let mut lines = Lines::new(|line: &[u8]| {
            let sql = piece_sql(line).ok_or_else(|| io::Error::other("a row of it does not read"))?;
            out.write_all(sql.as_bytes())
        });
        self.source
            .read_item(item, &mut lines)
            .and_then(|()| lines.finish())
            .map_err(|e| PostgresError::items(format!("item {} could not be written", item.path), e))?;
        self.say("\nCOMMIT;\n\n\n")
    }
}

fn stopped(e: io::Error) -> PostgresError {
    PostgresError::items("the SQL could not be written", e)
}

/// Comment and settings at the head of a file.
fn preamble(database: &str) -> String {
    let mut text = format!(
        "--\n-- Database {}, written by vault; load it into an empty database: psql -d NEW -f FILE\n--\n\n\
         SET statement_timeout = 0;\nSET lock_timeout = 0;\nSET idle_in_transaction_session_timeout = 0;\n\
         SET check_function_bodies = off;\nSET client_min_messages = warning;\nSET row_security = off;\n",
        database.replace(['\n', '\r'], " ")
    );
    for (name, value) in TEXT_SETTINGS {
        text.push_str(&format!("SET {name} = {value};\n"));
    }
    text.push('\n');
    text
}
