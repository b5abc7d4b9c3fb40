//! Locks on all tables of a database, and the snapshot that is taken under them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{BATCH, SnapshotOptions, some_of};
use crate::source::postgres::catalog::{self, Relation};
use crate::source::postgres::client::{Client, QueryError, Row};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::{ident, literal};

/// How long one table may be kept locked by others before the snapshot gives up.
const LOCK_WAIT_SECONDS: u32 = 60;
/// How often tables may appear or vanish between listing and locking them before the rest is taken as it is.
const LOCK_ATTEMPTS: u32 = 5;

/// Locks all tables, then takes the snapshot: what is locked before cannot be emptied or rewritten behind its back.
///
/// Returns the row of [`POINT`] and the relations that the snapshot shows.
pub(super) fn lock_and_export(
    client: &mut Client,
    options: &SnapshotOptions,
) -> Result<(Row, Vec<Relation>), PostgresError> {
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

pub(super) fn consistency(point: &Row) -> Map<String, Value> {
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
