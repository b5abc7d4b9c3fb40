//! The items of a PostgreSQL snapshot, sorted by what they are.

use std::io;

use serde_json::Value;

use crate::source::postgres::catalog::encoding_option;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::{display, ident, qualified};
use crate::source::postgres::script::{Entry, split};
use crate::source::{Item, ItemSource, unescape_component};

/// A schema text longer than this is not read into memory.
const SCRIPT_BYTES_MAX: u64 = 1 << 30;

/// What a snapshot holds.
#[derive(Debug, Default)]
pub struct Saved {
    pub globals: Option<Item>,
    pub databases: Vec<SavedDatabase>,
}

/// What it holds of one database.
#[derive(Debug, Default)]
pub struct SavedDatabase {
    pub name: String,
    pub database: Option<Item>,
    pub pre_data: Option<Item>,
    pub tables: Vec<SavedTable>,
    pub sequences: Option<Item>,
    pub large_object_definitions: Option<Item>,
    pub large_objects: Option<Item>,
    pub post_data: Option<Item>,
}

/// The rows of one table.
#[derive(Debug)]
pub struct SavedTable {
    pub item: Item,
    pub schema: String,
    pub name: String,
    pub columns: Vec<String>,
    pub order_by: Vec<String>,
    pub encoding: String,
    /// Condition on the rows of an extension's table; such a table has rows that are not ours.
    pub filter: Option<String>,
    /// The partitioned table through which its rows must enter.
    pub load_via: Option<(String, String)>,
}

impl Saved {
    /// Sorts the items. An item that this version does not know is an error, not a gap.
    pub fn load(source: &dyn ItemSource) -> Result<Saved, PostgresError> {
        let mut saved = Saved::default();
        source
            .each_item(&mut |item| saved.add(item).map_err(io::Error::other))
            .map_err(|e| PostgresError::items("the snapshot's items could not be listed", e))?;
        Ok(saved)
    }

    fn add(&mut self, item: Item) -> Result<(), String> {
        if item.path == "globals" && item.kind == "globals" {
            self.globals = Some(item);
            return Ok(());
        }
        let (database, rest) = item
            .path
            .split_once('/')
            .and_then(|(database, rest)| Some((unescape_component(database)?, rest.to_owned())))
            .ok_or_else(|| format!("item {} is none of a PostgreSQL snapshot", item.path))?;
        let at = self.databases.iter().position(|d| d.name == database).unwrap_or_else(|| {
            self.databases.push(SavedDatabase { name: database, ..SavedDatabase::default() });
            self.databases.len() - 1
        });
        let database = &mut self.databases[at];
        match (rest.as_str(), item.kind.as_str()) {
            ("database", "database") => database.database = Some(item),
            ("pre-data", "schema") => database.pre_data = Some(item),
            ("post-data", "schema") => database.post_data = Some(item),
            ("sequences", "sequences") => database.sequences = Some(item),
            ("large-object-definitions", "schema") => database.large_object_definitions = Some(item),
            ("large-objects", "large-objects") => database.large_objects = Some(item),
            (_, "table-data") => database.tables.push(SavedTable::new(item)?),
            (_, kind) => {
                return Err(format!("item {} is of kind {kind}, which this version cannot restore", item.path));
            }
        }
        Ok(())
    }

    /// The databases of these names, or all.
    pub fn choose(&self, names: Option<&[String]>) -> Result<Vec<&SavedDatabase>, PostgresError> {
        let known: Vec<&str> = self.databases.iter().map(|database| database.name.as_str()).collect();
        let Some(names) = names else {
            if known.is_empty() {
                return Err(PostgresError::Usage("the snapshot holds no PostgreSQL database".into()));
            }
            return Ok(self.databases.iter().collect());
        };
        if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(PostgresError::Usage(format!(
                "the snapshot has no database {unknown}; it has: {}",
                known.join(", ")
            )));
        }
        Ok(self.databases.iter().filter(|database| names.contains(&database.name)).collect())
    }
}

impl SavedTable {
    fn new(item: Item) -> Result<SavedTable, String> {
        let text = |key: &str| item.meta.get(key).and_then(Value::as_str).map(str::to_owned);
        let names = |key: &str| -> Option<Vec<String>> {
            match item.meta.get(key) {
                None => Some(Vec::new()),
                Some(list) => list.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            }
        };
        let broken = || format!("item {} does not say which table it is", item.path);
        let load_via = names("load_via").ok_or_else(broken)?;
        Ok(SavedTable {
            schema: text("schema").ok_or_else(broken)?,
            name: text("name").ok_or_else(broken)?,
            columns: names("columns").ok_or_else(broken)?,
            order_by: names("order_by").ok_or_else(broken)?,
            encoding: text("encoding").unwrap_or_else(|| "UTF8".to_owned()),
            filter: text("filter"),
            load_via: match load_via.as_slice() {
                [schema, name] => Some((schema.clone(), name.clone())),
                _ => None,
            },
            item,
        })
    }

    /// As people read it.
    pub fn display(&self) -> String {
        display(&self.schema, &self.name)
    }

    /// As in SQL.
    pub fn sql(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// `table (columns)`, where the rows enter.
    pub fn entrance(&self) -> String {
        let table = match &self.load_via {
            Some((schema, name)) => qualified(schema, name),
            None => self.sql(),
        };
        let columns: Vec<String> = self.columns.iter().map(|column| ident(column)).collect();
        if columns.is_empty() { table } else { format!("{table} ({})", columns.join(", ")) }
    }

    /// The statement that reads the rows in; `freeze` if the table was emptied in the same transaction.
    pub fn copy_in(&self, freeze: bool) -> String {
        let option = encoding_option(&self.encoding);
        let option = match (freeze, option.strip_suffix(')')) {
            (true, Some(option)) => format!("{option}, FREEZE)"),
            (true, None) => " WITH (FREEZE)".to_owned(),
            (false, _) => option,
        };
        format!("COPY {} FROM STDIN{option}", self.entrance())
    }
}

/// Reads an item that is a text.
pub fn read(source: &dyn ItemSource, item: &Item) -> Result<Vec<u8>, PostgresError> {
    if item.bytes > SCRIPT_BYTES_MAX {
        return Err(PostgresError::target(format!(
            "item {} is {} bytes long, too long for a schema",
            item.path, item.bytes
        )));
    }
    let mut text = Vec::new();
    source
        .read_item(item, &mut text)
        .map_err(|e| PostgresError::items(format!("item {} could not be read", item.path), e))?;
    Ok(text)
}

/// Reads an item that is a script, as entries.
pub fn entries(source: &dyn ItemSource, item: &Item) -> Result<Vec<Entry>, PostgresError> {
    read(source, item).map(|text| split(&text))
}
