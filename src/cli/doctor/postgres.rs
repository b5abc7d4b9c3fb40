//! `vault doctor postgres`.

use super::{Findings, Status};
use crate::cli::screen::{count, size};
use crate::cli::settings::env;
use crate::source::postgres::{Client, Dsn, Halt, Settings, ToolSearch};

#[derive(clap::Args)]
#[command(after_help = crate::cli::EXIT_CODES)]
pub struct Args {
    /// The server, as a URL or key=value words, without a password [default: as PGHOST and so on say]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
}

pub fn run(findings: &mut Findings<'_>, args: &Args) -> anyhow::Result<()> {
    let settings = Settings::resolve(args.from.as_deref().map(Dsn::Argument), env).map_err(Into::into);
    let Some(settings) = findings.need("settings", settings)? else { return Ok(()) };
    let database = settings.database.clone().unwrap_or_else(|| "postgres".to_owned());
    let halt = Halt::new(&findings.context.progress);
    let client = Client::connect(&settings, &database, &halt).map_err(Into::into);
    let Some(mut client) = findings.need("server", client)? else { return Ok(()) };
    let version = client.version();
    let text =
        format!("PostgreSQL {}.{} at {}, as {}", version / 10_000, version % 10_000, settings.at(), settings.user);
    findings.say(if version < 130_000 { Status::Warning } else { Status::Ok }, "server", text)?;

    let tools = ToolSearch::new(env("PATH").as_deref()).find(version).map_err(Into::into);
    if let Some(tools) = findings.need("pg_dump", tools)? {
        findings.say(Status::Ok, "pg_dump", format!("version {}", tools.version))?;
    }

    let rights = client.query(
        "SELECT rolsuper, pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT'), \
         EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = 'pg_read_all_data' \
                 AND pg_catalog.pg_has_role(r.oid, 'USAGE')) \
         FROM pg_catalog.pg_roles WHERE rolname = current_user",
    );
    if let Some(rows) = findings.need("rights", rights.map_err(Into::into))? {
        let is = |column| rows.first().is_some_and(|row| row.is_true(column));
        match (is(0), is(1), is(2)) {
            (true, ..) => findings.say(Status::Ok, "rights", "superuser: may read everything")?,
            (_, true, true) => findings.say(Status::Ok, "rights", "may read all tables and the roles' passwords")?,
            (_, _, true) => findings.say(
                Status::Warning,
                "rights",
                "may read all tables; roles are saved without their passwords, which only a superuser reads",
            )?,
            _ => findings.say(
                Status::Warning,
                "rights",
                format!(
                    "may not read all tables: GRANT pg_read_all_data TO {} (PostgreSQL 14 and later)",
                    settings.user
                ),
            )?,
        }
    }

    let databases = client.query(
        "SELECT datname, CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT') \
         THEN pg_catalog.pg_database_size(oid) END FROM pg_catalog.pg_database \
         WHERE datallowconn AND NOT datistemplate ORDER BY datname",
    );
    for row in findings.need("databases", databases.map_err(Into::into))?.unwrap_or_default() {
        let name = row.text(0);
        match row.optional(1) {
            Some(_) => findings.say(Status::Ok, "database", format!("{name}, {}", size(row.number(1))))?,
            None => {
                let text = format!("{name}: {} may not connect to it; GRANT CONNECT ON DATABASE", settings.user);
                findings.say(Status::Warning, "database", text)?;
            }
        }
    }
    let sessions = client.query("SELECT current_setting('max_connections')").map_err(Into::into);
    if let Some(rows) = findings.need("connections", sessions)? {
        let most = rows.first().map_or(0, |row| row.number(0));
        findings.say(
            Status::Ok,
            "connections",
            format!("{} at most; a snapshot takes --jobs and one more", count(most)),
        )?;
    }
    Ok(())
}
