//! `vault restore`.

mod files;
mod out;
mod postgres;
mod stream;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::context::{Context, cores};
use super::exit::usage;
use super::screen::{many, size};
use crate::ops::restore::SnapshotItems;
use crate::repo::snapshots::{Snapshot, find};

/// Bring a snapshot back, every byte verified
///
/// ID is a backup ID, any unique beginning of one, `latest`, `latest:SOURCE` or `latest:SOURCE:NAME`.
///
/// Every chunk is decrypted and compared with its name, every item with the length and hash in the manifest, every table with
/// its rows and hash. If that or the target fails, the exit code says so, and what is there is plainly marked as unfinished.
///
/// A PostgreSQL database goes back under its own name if there is none of that name or an empty one; else say --into or
/// --clean. With --target or --stdout it becomes plain SQL, which psql loads without vault.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault restore latest:postgres --database shop --into shop_yesterday"
    "vault restore latest:postgres --to postgres://postgres@other-host --include public.orders --clean"
    "vault restore latest:postgres --database shop --stdout | psql -d shop_copy"
    "vault restore latest:files --target /srv/back --include 'app/uploads/**'"
    "vault restore latest:stdin:shop --stdout | mysql shop"
    "vault restore 60e08b95 --validate-only"
))]
pub struct Args {
    /// Which snapshot
    #[arg(value_name = "ID")]
    id: String,
    /// Only what matches; may be given more than once. Files: a path or pattern. PostgreSQL: [SCHEMA.]TABLE, with * and ?
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Read, decrypt and check everything, and write nothing
    #[arg(long, conflicts_with_all = ["target", "stdout", "to", "into", "include"])]
    validate_only: bool,
    /// Go on with a restore of this snapshot that broke off
    #[arg(long)]
    resume: bool,
    /// Leave out owners (and for PostgreSQL roles and privileges): everything belongs to whoever restores
    #[arg(long)]
    no_owner: bool,
    /// How much to do side by side [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// Folder to restore into: the files, the stream as a file, or the databases as SQL
    #[arg(long, value_name = "DIR", help_heading = "Files and streams")]
    target: Option<PathBuf>,
    /// Write to standard output: the stream, one file (--include PATH), or the SQL of one database
    #[arg(long, conflicts_with = "target", help_heading = "Files and streams")]
    stdout: bool,
    /// Not the files that match; may be given more than once
    #[arg(long, value_name = "PATTERN", help_heading = "Files and streams")]
    exclude: Vec<String>,
    /// Overwrite files that are there already
    #[arg(long, conflicts_with = "resume", help_heading = "Files and streams")]
    force: bool,
    /// Symbolic links to make [default: inside]
    #[arg(long, value_name = "WHICH", help_heading = "Files and streams")]
    symlinks: Option<files::SymlinksArg>,

    /// Server to restore into, as a URL or key=value words without a password [default: as PGHOST and so on say]
    #[arg(long, value_name = "URL", conflicts_with_all = ["target", "stdout"], help_heading = "PostgreSQL")]
    to: Option<String>,
    /// Only these databases
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "PostgreSQL")]
    database: Vec<String>,
    /// Another name for the one database that is restored
    #[arg(long, value_name = "NAME", conflicts_with_all = ["target", "stdout"], help_heading = "PostgreSQL")]
    into: Option<String>,
    /// Drop what is in the way
    #[arg(long, conflicts_with_all = ["target", "stdout", "resume"], help_heading = "PostgreSQL")]
    clean: bool,
    /// No rows
    #[arg(long, conflicts_with = "data_only", help_heading = "PostgreSQL")]
    schema_only: bool,
    /// Only rows, into tables that are there
    #[arg(long, help_heading = "PostgreSQL")]
    data_only: bool,
    /// Read every table back after it was restored and compare it with the snapshot
    #[arg(long, conflicts_with_all = ["target", "stdout"], help_heading = "PostgreSQL")]
    verify: bool,
}

impl Args {
    /// Refuses what only snapshots of PostgreSQL understand.
    fn refuse_postgres(&self, source: &str) -> anyhow::Result<()> {
        refuse(
            source,
            &[
                ("--to", self.to.is_some()),
                ("--database", !self.database.is_empty()),
                ("--into", self.into.is_some()),
                ("--clean", self.clean),
                ("--schema-only", self.schema_only),
                ("--data-only", self.data_only),
                ("--verify", self.verify),
            ],
        )
    }

    /// Refuses what only snapshots of files understand.
    fn refuse_files(&self, source: &str) -> anyhow::Result<()> {
        let symlinks = self.symlinks.is_some();
        refuse(source, &[("--exclude", !self.exclude.is_empty()), ("--force", self.force), ("--symlinks", symlinks)])
    }
}

/// An option that would do nothing is an error.
fn refuse(source: &str, options: &[(&str, bool)]) -> anyhow::Result<()> {
    match options.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(usage(format!("{name} means nothing for a snapshot of {source}"))),
        None => Ok(()),
    }
}

/// One restore.
struct Run<'r> {
    context: &'r Context,
    args: &'r Args,
    snapshot: &'r Snapshot,
    items: &'r SnapshotItems,
}

/// What came of it: lines and a sentence for people, and the fields of the object for scripts.
#[derive(Default)]
struct Outcome {
    lines: Vec<String>,
    text: String,
    fields: Value,
    warnings: Vec<String>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let (repo, snapshots) = context.open_to_read()?;
    let snapshot = find(&snapshots, &args.id)?;
    let manifest = &snapshot.manifest;
    let items = SnapshotItems::new(repo.clone(), manifest.clone(), cores(), context.progress.clone());
    let run = Run { context, args: &args, snapshot, items: &items };
    let started = Instant::now();
    let screen = context.screen();
    let outcome = match (args.validate_only, manifest.source.as_str()) {
        (true, _) => validate(&run)?,
        (false, "files") => files::run(&run)?,
        (false, "postgres") => postgres::run(&run)?,
        (false, "stdin") => stream::run(&run)?,
        (false, other) => return Err(usage(format!("this vault cannot restore a snapshot of {other}"))),
    };
    drop(screen);
    let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    outcome.warnings.iter().for_each(|warning| context.warn(warning));
    context.say(format!("{} in {seconds:.1} s", outcome.text));
    // Standard output may be the data's.
    if !args.stdout && !context.global.json && !context.global.quiet {
        outcome.lines.iter().try_for_each(|line| context.print(line))?;
    }
    if context.global.json && !args.stdout {
        let mut object = json!({ "id": snapshot.id, "source": manifest.source, "verified": true });
        let fields = object.as_object_mut().expect("it was just made as one");
        fields.extend(outcome.fields.as_object().cloned().unwrap_or_default());
        fields.insert("seconds".to_owned(), seconds.into());
        fields.insert("warnings".to_owned(), outcome.warnings.into());
        context.print(object)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(run: &Run<'_>) -> anyhow::Result<Outcome> {
    run.context.progress.add_bytes_total(run.snapshot.manifest.bytes);
    let (items, bytes) = run.items.validate()?;
    Ok(Outcome {
        text: format!("{}, {}: all there and unchanged, checked", many(items, "item"), size(bytes)),
        fields: json!({ "target": null, "items": items, "bytes": bytes }),
        ..Outcome::default()
    })
}
