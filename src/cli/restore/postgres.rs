//! `vault restore` of PostgreSQL databases.

use std::io::{self, Write};

use anyhow::Context as _;
use serde_json::json;

use super::{Outcome, Run};
use crate::cli::exit;
use crate::cli::screen::{count, lines_of, many, size, table};
use crate::cli::settings::env;
use crate::source::postgres::{
    Dsn, ExportOptions, RestoreOptions, RestoreReport, Settings, export_dir, export_sql, restore,
};

pub fn run(run: &Run<'_>) -> anyhow::Result<Outcome> {
    let args = run.args;
    args.refuse_files("postgres")?;
    if args.stdout || args.target.is_some() {
        return export(run);
    }
    let options = RestoreOptions {
        connection: Settings::resolve(args.to.as_deref().map(Dsn::Argument), env)?,
        snapshot: run.snapshot.id.hex(),
        databases: databases(run),
        into: args.into.clone(),
        clean: args.clean,
        resume: args.resume,
        include: args.include.clone(),
        schema_only: args.schema_only,
        data_only: args.data_only,
        no_owner: args.no_owner,
        verify: args.verify,
        jobs: args.jobs.map_or(0, usize::from),
    };
    let at = options.connection.at();
    let report = restore(&options, run.items, &run.context.progress).map_err(exit::not_restored)?;
    Ok(outcome(&report, &at))
}

fn databases(run: &Run<'_>) -> Option<Vec<String>> {
    (!run.args.database.is_empty()).then(|| run.args.database.clone())
}

fn outcome(report: &RestoreReport, at: &str) -> Outcome {
    let tables = || report.databases.iter().flat_map(|database| &database.tables);
    let (rows, bytes) = (tables().map(|table| table.rows).sum(), tables().map(|table| table.bytes).sum());
    let mut lines = table(&["database", "table", "rows", "size", "rows and hash"]);
    for database in &report.databases {
        for table in &database.tables {
            let name = format!("{}.{}", table.schema, table.name).escape_debug().to_string();
            let compared = if table.verified { "as in the snapshot, read back" } else { "as in the snapshot" };
            lines.add_row([database.into.clone(), name, count(table.rows), size(table.bytes), compared.to_owned()]);
        }
    }
    let databases: Vec<_> = report
        .databases
        .iter()
        .map(|database| {
            let tables: Vec<_> = database.tables.iter().map(|table| json!({
            "schema": table.schema, "table": table.name, "rows": table.rows, "bytes": table.bytes, "hash": table.hash,
            "read_back": table.verified,
        })).collect();
            json!({ "database": database.name, "into": database.into, "tables": tables })
        })
        .collect();
    let names: Vec<_> = report.databases.iter().map(|database| database.into.as_str()).collect();
    Outcome {
        text: format!(
            "restored {} into {at}: {}, {}, {}, compared with the snapshot,",
            names.join(", "),
            many(tables().count() as u64, "table"),
            many(rows, "row"),
            size(bytes),
        ),
        lines: vec![lines_of(&lines)],
        fields: json!({ "target": at, "databases": databases, "rows": rows, "bytes": bytes }),
        warnings: report.warnings.clone(),
    }
}

/// As SQL that psql loads: one database to standard output, or each as a file.
fn export(run: &Run<'_>) -> anyhow::Result<Outcome> {
    let args = run.args;
    let options = ExportOptions {
        include: args.include.clone(),
        schema_only: args.schema_only,
        data_only: args.data_only,
        no_owner: args.no_owner,
    };
    let (databases, progress) = (databases(run), &run.context.progress);
    if let Some(target) = &args.target {
        let files =
            export_dir(run.items, databases.as_deref(), &options, target, progress).map_err(exit::not_restored)?;
        return Ok(Outcome {
            text: format!("wrote {} files of SQL into {}", files.len(), target.display()),
            lines: files.iter().map(|file| file.display().to_string()).collect(),
            fields: json!({ "target": target, "files": files }),
            ..Outcome::default()
        });
    }
    let database = match databases.as_deref() {
        None => None,
        Some([one]) => Some(one.as_str()),
        Some(_) => return Err(exit::usage("standard output takes one database: give one --database")),
    };
    let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout().lock());
    export_sql(run.items, database, &options, &mut out, progress).map_err(exit::not_restored)?;
    out.flush().context("standard output")?;
    Ok(Outcome { text: "wrote SQL, verified,".to_owned(), ..Outcome::default() })
}
