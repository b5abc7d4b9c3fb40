//! What is in a server and in a database, as the catalogs say it.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{Client, QueryError, Row};
use super::order::{Earlier, Limits, Way, item_path, way};
use super::quote::{display, ident, literal, qualified, table_matches};

/// Pages looked at to estimate the order of a table without statistics.
const SAMPLE_PAGES: u64 = 64;

/// A database that can be dumped.
#[derive(Debug, Clone)]
pub struct Database {
    pub name: String,
    /// Its server-side encoding, e.g. `UTF8`.
    pub encoding: String,
}

/// What stands in the way of some databases, and those without obstacle.
pub struct Databases {
    pub usable: Vec<Database>,
    /// Name and reason.
    pub others: Vec<(String, &'static str)>,
}

/// Lists the databases of a server but for `template0` and `template1`.
pub fn databases(client: &mut Client) -> Result<Databases, QueryError> {
    let rows = client.query(
        "SELECT datname, pg_catalog.pg_encoding_to_char(encoding), datallowconn, datconnlimit = -2, \
         pg_catalog.has_database_privilege(oid, 'CONNECT') \
         FROM pg_catalog.pg_database WHERE datname NOT IN ('template0', 'template1') ORDER BY datname COLLATE \"C\"",
    )?;
    let mut found = Databases { usable: Vec::new(), others: Vec::new() };
    for row in rows {
        let name = row.text(0).to_owned();
        if row.is_true(3) {
            found.others.push((name, "its DROP DATABASE was interrupted"));
        } else if !row.is_true(2) {
            found.others.push((name, "it allows no connections"));
        } else if !row.is_true(4) {
            found.others.push((name, "the role may not connect to it"));
        } else {
            found.usable.push(Database { name, encoding: row.text(1).to_owned() });
        }
    }
    Ok(found)
}

/// A relation that pg_dump looks at.
#[derive(Debug, Clone)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub kind: char,
    pub unlogged: bool,
    /// The role may read it.
    pub readable: bool,
    /// The partitioned tables above it.
    pub ancestors: Vec<u32>,
    /// `WHERE ...` of a configuration table of an extension; an empty text for all of its rows.
    pub extension_filter: Option<String>,
    /// Belongs to an extension.
    pub extension: bool,
}

impl Relation {
    /// As in SQL.
    pub fn sql(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// As people read it.
    pub fn display(&self) -> String {
        display(&self.schema, &self.name)
    }

    /// The path of the item that holds its rows.
    pub fn item_path(&self, database: &str) -> String {
        item_path(database, &["table", &self.schema, &self.name])
    }

    /// Whether it holds rows of its own that a dump must copy.
    pub fn holds_rows(&self) -> bool {
        self.kind == 'r' && (!self.extension || self.extension_filter.is_some())
    }
}

/// Lists tables, partitioned tables, materialized views and sequences that are not the system's own, by name.
pub fn relations(client: &mut Client) -> Result<Vec<Relation>, QueryError> {
    let rows = client.query(
        "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence = 'u', \
         coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND CASE WHEN c.relkind = 'S' \
         THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') \
         ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END, true), \
         d.objid IS NOT NULL, e.extcondition[array_position(e.extconfig, c.oid)], \
         e.extconfig IS NOT NULL AND c.oid = ANY (e.extconfig) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid \
         AND d.objsubid = 0 AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e' \
         LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid \
         WHERE c.relkind IN ('r', 'p', 'm', 'S') AND c.relpersistence <> 't' \
         AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"",
    )?;
    let parents = client.query(
        "SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i \
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE c.relispartition",
    )?;
    let parents: BTreeMap<u32, u32> = parents.iter().map(|row| (row.number(0), row.number(1))).collect();
    Ok(rows.iter().map(|row| relation(row, &parents)).collect())
}

fn relation(row: &Row, parents: &BTreeMap<u32, u32>) -> Relation {
    let oid = row.number(0);
    let mut ancestors = Vec::new();
    let mut at = oid;
    while let Some(&parent) = parents.get(&at) {
        if ancestors.contains(&parent) {
            break;
        }
        ancestors.push(parent);
        at = parent;
    }
    Relation {
        oid,
        schema: row.text(1).to_owned(),
        name: row.text(2).to_owned(),
        kind: row.text(3).chars().next().unwrap_or(' '),
        unlogged: row.is_true(4),
        readable: row.is_true(5),
        ancestors,
        extension: row.is_true(6),
        extension_filter: row.is_true(8).then(|| row.text(7).to_owned()),
    }
}

/// Whether a pattern names the relation or a partitioned table above it.
pub fn is_excluded(relation: &Relation, all: &BTreeMap<u32, &Relation>, patterns: &[String]) -> bool {
    let named = |r: &Relation| patterns.iter().any(|pattern| table_matches(pattern, &r.schema, &r.name));
    named(relation) || relation.ancestors.iter().filter_map(|oid| all.get(oid)).any(|above| named(above))
}

/// A table with rows to copy, and how to read it.
#[derive(Debug, Clone)]
pub struct Table {
    pub relation: Relation,
    /// Columns to copy: not the generated ones.
    pub columns: Vec<String>,
    /// Columns of its key, if its rows are read in that order.
    pub order_by: Vec<String>,
    /// The server is to sort them, and not to follow an index.
    pub sorted: bool,
    pub pages: u64,
    /// Rows must be routed from this partitioned table (schema, name) when they are restored: which hash partition they
    /// belong to depends on oids of enum values, which a restored database has others of.
    pub load_via: Option<(String, String)>,
}

impl Table {
    /// The statement that copies its rows out.
    pub fn copy_out(&self, encoding: &str) -> String {
        let columns: Vec<String> = self.columns.iter().map(|c| ident(c)).collect();
        let filter = self.relation.extension_filter.as_deref().unwrap_or("");
        let table = self.relation.sql();
        // COPY of a table reads its own rows only; of a query it must be said.
        let what = if self.order_by.is_empty() && filter.is_empty() && !columns.is_empty() {
            format!("{table} ({})", columns.join(", "))
        } else {
            let order: Vec<String> = self.order_by.iter().map(|c| ident(c)).collect();
            let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
            format!("(SELECT {} FROM ONLY {table} {filter}{order})", columns.join(", "))
        };
        format!("COPY {what} TO STDOUT{}", encoding_option(encoding))
    }
}

/// Rows are kept in the database's own encoding, so that no conversion can lose any.
pub fn encoding_option(encoding: &str) -> String {
    if encoding == "UTF8" { String::new() } else { format!(" WITH (ENCODING {})", literal(encoding)) }
}

/// Settles columns, order and size of the tables of `relations` that hold rows. Those that `earlier` knows keep their order
/// if they can.
pub fn tables(
    client: &mut Client,
    database: &str,
    relations: &[Relation],
    earlier: &Earlier,
    limits: Limits,
) -> Result<Vec<Table>, QueryError> {
    let wanted: Vec<&Relation> = relations.iter().filter(|r| r.holds_rows()).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let columns = names_by_oid(
        client,
        "SELECT attrelid, pg_catalog.json_agg(attname ORDER BY attnum) FROM pg_catalog.pg_attribute \
         JOIN pg_catalog.pg_class c ON c.oid = attrelid \
         WHERE c.relkind = 'r' AND attnum > 0 AND NOT attisdropped AND attgenerated = '' GROUP BY attrelid",
    )?;
    // A primary key, or else the first unique index that admits neither duplicates nor NULL.
    let keys = names_by_oid(
        client,
        "SELECT DISTINCT ON (i.indrelid) i.indrelid, (SELECT pg_catalog.json_agg(a.attname ORDER BY k.place) \
         FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
         WHERE k.place <= i.indnkeyatts) \
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_am m ON m.oid = c.relam \
         WHERE t.relkind = 'r' AND i.indisunique AND i.indisvalid AND i.indimmediate AND m.amname = 'btree' \
         AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull) \
         ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, i.indexrelid",
    )?;
    let pages: BTreeMap<u32, u64> = client
        .query(
            "SELECT oid, pg_catalog.pg_table_size(oid) / pg_catalog.current_setting('block_size')::int8 \
             FROM pg_catalog.pg_class WHERE relkind = 'r' AND relpersistence <> 't'",
        )?
        .iter()
        .map(|row| (row.number(0), row.number(1)))
        .collect();
    let correlations: BTreeMap<(String, String, String), f64> = client
        .query("SELECT schemaname, tablename, attname, correlation FROM pg_catalog.pg_stats WHERE NOT inherited")?
        .iter()
        .filter_map(|row| {
            let correlation = row.optional(3)?.parse().ok()?;
            Some(((row.text(0).to_owned(), row.text(1).to_owned(), row.text(2).to_owned()), correlation))
        })
        .collect();
    let hashed_enums: BTreeSet<u32> = client
        .query(
            "SELECT DISTINCT p.partrelid FROM pg_catalog.pg_partitioned_table p \
             JOIN pg_catalog.pg_opclass o ON o.oid = ANY (p.partclass) \
             WHERE p.partstrat = 'h' AND o.opcintype = 'pg_catalog.anyenum'::pg_catalog.regtype",
        )?
        .iter()
        .map(|row| row.number(0))
        .collect();
    let names: BTreeMap<u32, (&str, &str)> = relations.iter().map(|r| (r.oid, (&*r.schema, &*r.name))).collect();
    let mut tables = Vec::with_capacity(wanted.len());
    for relation in wanted {
        let pages = pages.get(&relation.oid).copied().unwrap_or(0);
        let key = keys.get(&relation.oid).cloned().unwrap_or_default();
        let mut chosen = Way::Heap;
        if let Some(first) = key.first() {
            let known = correlations.get(&(relation.schema.clone(), relation.name.clone(), first.clone())).copied();
            let correlation = || known.map_or_else(|| sampled_correlation(client, relation, first, pages), Ok);
            chosen = way(earlier.order(&relation.item_path(database), &key), pages, limits, correlation)?;
        }
        // Of several such tables above it, rows enter at the topmost.
        let top = relation.ancestors.iter().rev().find(|oid| hashed_enums.contains(oid));
        let load_via = top.and_then(|oid| names.get(oid)).map(|(s, n)| ((*s).to_owned(), (*n).to_owned()));
        tables.push(Table {
            columns: columns.get(&relation.oid).cloned().unwrap_or_default(),
            order_by: if chosen == Way::Heap { Vec::new() } else { key },
            sorted: chosen == Way::SortedByKey,
            pages,
            load_via,
            relation: relation.clone(),
        });
    }
    Ok(tables)
}

/// The pages that a sort of this session may write to temporary files.
pub fn temporary_pages_max(client: &mut Client) -> Result<u64, QueryError> {
    let rows = client.query(
        "SELECT pg_catalog.pg_size_bytes(s.setting || 'kB') / pg_catalog.current_setting('block_size')::int8 \
         FROM pg_catalog.pg_settings s WHERE s.name = 'temp_file_limit' AND s.setting <> '-1'",
    )?;
    Ok(rows.first().map_or(u64::MAX, |row| row.number(0)))
}

/// How well the table lies in the order of a column, from the rows of some pages.
fn sampled_correlation(client: &mut Client, relation: &Relation, column: &str, pages: u64) -> Result<f64, QueryError> {
    let percent = 100.0 * SAMPLE_PAGES as f64 / pages.max(1) as f64;
    let column = ident(column);
    let rows = client.query(&format!(
        "SELECT pg_catalog.corr(p, r) FROM (SELECT p, pg_catalog.rank() OVER (ORDER BY k) AS r FROM \
         (SELECT (ctid::text::pg_catalog.point)[0] AS p, {column} AS k FROM ONLY {} \
         TABLESAMPLE SYSTEM ({percent:.6}) REPEATABLE (1)) s) t",
        relation.sql(),
    ))?;
    Ok(rows.first().map_or(0.0, |row| row.number(0)))
}

fn names_by_oid(client: &mut Client, sql: &str) -> Result<BTreeMap<u32, Vec<String>>, QueryError> {
    let rows = client.query(sql)?;
    rows.iter()
        .map(|row| {
            let names = serde_json::from_str(row.optional(1).unwrap_or("[]"))
                .map_err(|e| QueryError::Protocol(format!("json_agg gave no list of names: {e}")))?;
            Ok((row.number(0), names))
        })
        .collect()
}
