//! `vault snapshot postgres`.

use bytesize::ByteSize;
use serde_json::{Map, Value};

use super::What;
use crate::cli::context::Context;
use crate::cli::settings::env;
use crate::ops::snapshot::Taken;
use crate::source::postgres::{Dsn, SORTED_BYTES_MAX, Settings, SnapshotOptions, ToolSearch, snapshot};

/// PostgreSQL databases: schema, rows, sequences, large objects, roles
///
/// Everything of a database is of one moment. Each table is an item of its own, read by COPY over several connections, so
/// that a table that has not changed costs nothing and one table can be brought back by itself. pg_dump (of the server's
/// version or newer) writes the schema; it is looked for on PATH and where the system's packages put it.
///
/// Where to connect: --from, PGHOST, PGPORT, PGUSER, PGDATABASE, PGSERVICE, POSTGRES_HOST and so on; the password from
/// PGPASSWORD, POSTGRES_PASSWORD or ~/.pgpass, never from the command line. `vault doctor postgres` tries it.
#[derive(clap::Args)]
#[command(after_help = crate::cli::EXIT_CODES, after_long_help = examples!(
    "vault snapshot postgres                               # all databases of the server"
    "vault snapshot postgres --database shop --exclude-table-data 'public.log_*'"
    "vault restore latest:postgres --into shop_yesterday --database shop"
))]
pub struct Args {
    /// The server, as a URL or key=value words, without a password
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Only these databases [default: all but the templates]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    database: Vec<String>,
    /// Leave out the rows of tables that match: [SCHEMA.]TABLE, with * and ?
    #[arg(long, value_name = "PATTERN")]
    exclude_table_data: Vec<String>,
    /// No rows at all
    #[arg(long)]
    schema_only: bool,
    /// What to call it [default: the server, and the databases if some were named]
    #[arg(long)]
    name: Option<String>,
    /// Read tables up to this size by their key, sorted by the server in temporary files of about that size if they lie in
    /// another order; larger ones by key only if they lie in its order
    ///
    /// By key, what changes in a table costs least to store. A table keeps the order that it had in the snapshot before as long
    /// as that is not far from this rule.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(SORTED_BYTES_MAX))]
    sort_max: ByteSize,
    /// Connections that copy side by side [default: the number of cores]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
}

pub fn run(context: &Context, args: &super::Args, postgres: &Args) -> anyhow::Result<Taken> {
    let connection = Settings::resolve(postgres.from.as_deref().map(Dsn::Argument), env)?;
    // Before it is asked for the repository's password, so that a wrong word is told at once.
    let databases = (!postgres.database.is_empty()).then(|| postgres.database.clone());
    let name = postgres.name.clone().unwrap_or_else(|| match &databases {
        Some(databases) => format!("{}/{}", connection.at(), databases.join(",")),
        None => connection.at(),
    });
    let mut decided = Map::new();
    if let Some(databases) = &databases {
        decided.insert("databases".to_owned(), databases.clone().into());
    }
    if !postgres.exclude_table_data.is_empty() {
        decided.insert("exclude_table_data".to_owned(), postgres.exclude_table_data.clone().into());
    }
    if postgres.schema_only {
        decided.insert("schema_only".to_owned(), Value::Bool(true));
    }
    let options = SnapshotOptions {
        connection,
        databases,
        exclude_table_data: postgres.exclude_table_data.clone(),
        schema_only: postgres.schema_only,
        sorted_bytes_max: postgres.sort_max.as_u64(),
        jobs: postgres.jobs,
        tools: ToolSearch::new(env("PATH").as_deref()),
    };
    let what = What { source: "postgres", name, options: decided };
    super::take(context, args, what, |sink, parent| snapshot(&options, parent, sink, &context.progress))
}
