//! The database that is to be restored into, before anything is done to it.

use super::mark::{self, Mark};
use super::{RestoreOptions, SavedDatabase};
use crate::source::postgres::client::{Client, Halt};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::quote::literal;

/// How the target of a restore looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Missing,
    Empty,
    /// Holds data, and that is as it should be.
    Filled,
    /// Holds a part of this snapshot.
    Marked,
    /// To be dropped first.
    ToDrop,
}

impl Target {
    /// Looks at database `into`. Errors if it must not be restored into.
    pub(super) fn find(
        options: &RestoreOptions,
        home: &mut Client,
        into: &str,
        database: &SavedDatabase,
        halt: &Halt,
    ) -> Result<Self, PostgresError> {
        let failed =
            |e| PostgresError::restore(format!("the databases of {} could not be listed", options.connection.at()), e);
        let sql = format!("SELECT datistemplate FROM pg_catalog.pg_database WHERE datname = {}", literal(into));
        let rows = home.query(&sql).map_err(failed)?;
        let Some(row) = rows.first() else {
            if options.data_only {
                return Err(PostgresError::target(format!(
                    "there is no database {into} to load data into; leave out --data-only to have it made"
                )));
            }
            return Ok(Self::Missing);
        };
        if options.clean {
            if row.is_true(0) || matches!(into, "postgres" | "template0" | "template1") {
                return Err(PostgresError::Usage(format!(
                    "--clean does not drop {into}, which the server itself needs; restore --into another name"
                )));
            }
            return Ok(Self::ToDrop);
        }
        let mut client = Client::connect(&options.connection, into, halt)?;
        let failed = |e| PostgresError::restore(format!("database {into} could not be looked at"), e);
        if let Some(found) = Mark::find(&mut client).map_err(failed)? {
            if found.snapshot == options.snapshot && found.request == mark::request(options, database) {
                if options.resume {
                    return Ok(Self::Marked);
                }
                return Err(PostgresError::target(format!(
                    "database {into} holds a part of this snapshot, from a restore that began {} and broke off; \
                     finish it with --resume, or drop it and start over with --clean",
                    found.began
                )));
            }
            return Err(PostgresError::target(format!(
                "database {into} holds a part of snapshot {}, from a restore that began {} and broke off; \
                 drop it and start over with --clean, or restore --into another name",
                found.snapshot, found.began
            )));
        }
        if options.data_only || !options.include.is_empty() {
            return Ok(Self::Filled);
        }
        let empty = client.query(IS_EMPTY).map_err(failed)?.first().is_some_and(|row| row.is_true(0));
        if empty {
            return Ok(Self::Empty);
        }
        Err(PostgresError::target(format!(
            "database {into} exists and is not empty; restore beside it with --into NEWNAME, or drop it first with --clean"
        )))
    }
}

/// Whether nobody has made anything in a database; what extensions bring does not count.
const IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype IN ('e', 'i'))) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
    WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype IN ('e', 'i'))) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND t.typrelid = 0 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
    WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype IN ('e', 'i'))) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
    AND d.objid = n.oid AND d.deptype = 'e'))";
