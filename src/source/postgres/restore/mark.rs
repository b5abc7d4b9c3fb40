//! The mark of a database that is not yet whole: schema `vault_restore`, and a comment on the database.
//!
//! The schema also records which steps are done, each in the transaction that does it.

use std::collections::BTreeMap;

use super::{RestoreOptions, SavedDatabase};
use crate::source::postgres::client::{Client, QueryError};
use crate::source::postgres::quote::{ident, literal};

/// Removes the mark.
pub const REMOVE: &str = "SET LOCAL client_min_messages = warning; DROP SCHEMA vault_restore CASCADE; ";

/// A mark that was found.
pub struct Found {
    pub snapshot: String,
    pub began: String,
    pub request: String,
}

/// Steps that are done.
#[derive(Debug, Default)]
pub struct Mark {
    done: BTreeMap<String, (u64, String)>,
}

impl Mark {
    /// Looks for a mark.
    pub fn find(client: &mut Client) -> Result<Option<Found>, QueryError> {
        let there = client.query("SELECT pg_catalog.to_regclass('vault_restore.state') IS NOT NULL")?;
        if !there.first().is_some_and(|row| row.is_true(0)) {
            return Ok(None);
        }
        let rows = client.query("SELECT snapshot, began, request FROM vault_restore.state")?;
        Ok(rows.first().map(|row| Found {
            snapshot: row.text(0).to_owned(),
            began: row.text(1).to_owned(),
            request: row.text(2).to_owned(),
        }))
    }

    /// Marks a database.
    pub fn set(client: &mut Client, options: &RestoreOptions, database: &SavedDatabase) -> Result<Mark, QueryError> {
        let began = client.query("SELECT pg_catalog.to_char(pg_catalog.now(), 'YYYY-MM-DD HH24:MI:SS TZ')")?;
        let began = began.first().map_or("", |row| row.text(0));
        let comment = format!(
            "vault: INCOMPLETE restore of snapshot {}, begun {began}; go on with: vault restore --resume, or drop this database",
            options.snapshot
        );
        let old = client.query(
            "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database \
             WHERE datname = pg_catalog.current_database()",
        )?;
        let old = old.first().and_then(|row| row.optional(0)).map_or("NULL".to_owned(), literal);
        client.execute(&format!(
            "BEGIN; CREATE SCHEMA vault_restore; \
             CREATE TABLE vault_restore.state (snapshot text NOT NULL, began text NOT NULL, request text NOT NULL, comment text); \
             CREATE TABLE vault_restore.done (step text PRIMARY KEY, rows int8 NOT NULL, hash text NOT NULL); \
             INSERT INTO vault_restore.state VALUES ({}, {}, {}, {old}); COMMIT",
            literal(&options.snapshot),
            literal(began),
            literal(&request(options, database)),
        ))?;
        // Only the database's owner may comment on it; the schema marks it all the same.
        let comment = format!("COMMENT ON DATABASE {} IS {}", ident(client.database()), literal(&comment));
        match client.execute(&comment) {
            Err(e) if e.code() != "42501" => Err(e),
            _ => Ok(Mark::default()),
        }
    }

    /// Reads what is done already.
    pub fn resume(client: &mut Client) -> Result<Mark, QueryError> {
        let rows = client.query("SELECT step, rows, hash FROM vault_restore.done")?;
        let done = rows.iter().map(|row| (row.text(0).to_owned(), (row.number(1), row.text(2).to_owned()))).collect();
        Ok(Mark { done })
    }

    /// Rows and hash of a step, if it is done.
    pub fn done(&self, step: &str) -> Option<(u64, &str)> {
        self.done.get(step).map(|(rows, hash)| (*rows, hash.as_str()))
    }
}

/// The statement that records a step.
pub fn record(step: &str, rows: u64, hash: &str) -> String {
    format!(
        "INSERT INTO vault_restore.done VALUES ({}, {rows}, {}) \
         ON CONFLICT (step) DO UPDATE SET rows = excluded.rows, hash = excluded.hash; ",
        literal(step),
        literal(hash)
    )
}

/// What was asked for, as far as it decides which steps there are.
pub fn request(options: &RestoreOptions, database: &SavedDatabase) -> String {
    format!(
        "database {:?} include {:?} schema_only {} data_only {} no_owner {}",
        database.name, options.include, options.schema_only, options.data_only, options.no_owner
    )
}

/// The statement that gives the database back the comment that the mark replaced.
pub fn comment_back(client: &mut Client, database: &str) -> Result<String, QueryError> {
    let rows = client.query(
        "SELECT s.comment, pg_catalog.shobj_description(d.oid, 'pg_database') LIKE 'vault: INCOMPLETE%' \
         FROM vault_restore.state s, pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
    )?;
    let Some(row) = rows.first().filter(|row| row.is_true(1)) else { return Ok(String::new()) };
    let comment = row.optional(0).map_or("NULL".to_owned(), literal);
    Ok(format!("COMMENT ON DATABASE {} IS {comment}; ", ident(database)))
}
