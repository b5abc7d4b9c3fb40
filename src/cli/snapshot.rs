//! `vault snapshot`.

mod files;
mod postgres;
mod stdin;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::context::{Context, cores};
use super::exit;
use super::screen::{many, size};
use crate::ops::snapshot::{SnapshotOptions, Taken, snapshot};
use crate::pipeline::snapshot::WriteOptions;
use crate::repo::snapshots::Snapshot;
use crate::source::{ItemSink, ItemSource, SourceFacts};

/// zstd level, if nothing else is said.
pub const COMPRESSION: i32 = 3;

/// Take a snapshot of a source; prints its backup ID
///
/// What is stored already is not stored again, whichever host, source or snapshot it came from. The snapshot exists once its
/// ID is printed; if anything fails before, there is none, and what was stored until then is used by the next run.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault snapshot postgres --database shop"
    "vault snapshot files /srv/app --exclude '*.tmp'"
    "vault snapshot stdin --name orders -- pg_dump orders"
    "id=$(vault snapshot stdin --name orders -q -- pg_dump orders) && vault restore $id --validate-only"
))]
pub struct Args {
    #[command(subcommand)]
    source: Source,
    /// Tag the snapshot; may be given more than once
    #[arg(long, global = true, value_name = "TAG")]
    tag: Vec<String>,
    /// zstd level of what is stored without a delta, 1 to 19
    #[arg(long, global = true, value_name = "N", default_value_t = COMPRESSION, value_parser = clap::value_parser!(i32).range(1..=19))]
    compression: i32,
    /// Compress changed chunks against the ones they were
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    delta: Delta,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Delta {
    /// Where it helps clearly
    Auto,
    /// Never: every blob stands alone
    Off,
}

#[derive(Subcommand)]
enum Source {
    Postgres(postgres::Args),
    Files(files::Args),
    Stdin(stdin::Args),
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let done = match &args.source {
        Source::Postgres(postgres) => postgres::run(context, &args, postgres)?,
        Source::Files(files) => files::run(context, &args, files)?,
        Source::Stdin(stdin) => stdin::run(context, &args, stdin)?,
    };
    report(context, &done)?;
    Ok(ExitCode::SUCCESS)
}

/// What the snapshot is called, and which of the run's options decide what is in it.
struct What {
    source: &'static str,
    name: String,
    options: Map<String, Value>,
}

/// Takes a snapshot of what `take` pushes, with progress on the screen.
fn take<E: std::error::Error + Send + Sync + 'static>(
    context: &Context,
    args: &Args,
    what: What,
    take: impl FnOnce(&dyn ItemSink, Option<&dyn ItemSource>) -> Result<SourceFacts, E>,
) -> anyhow::Result<Taken> {
    let repo = context.open()?;
    let options = SnapshotOptions {
        source: what.source.to_owned(),
        name: what.name,
        host: context.host(),
        tags: args.tag.clone(),
        options: what.options,
        write: WriteOptions { sealers: cores(), level: args.compression, delta: args.delta == Delta::Auto },
        time: context.now(),
    };
    let _screen = context.screen();
    snapshot(&repo, options, &context.progress, take).map_err(exit::not_committed)
}

/// The object that scripts rely on.
pub fn json_of(snapshot: &Snapshot) -> Value {
    let manifest = &snapshot.manifest;
    json!({
        "id": snapshot.id,
        "time": manifest.time,
        "source": manifest.source,
        "name": manifest.name,
        "host": manifest.host,
        "parent": manifest.parent,
        "tags": manifest.tags,
        "items": manifest.items,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "bytes_new": manifest.bytes_new,
        "bytes_stored": manifest.bytes_stored,
        "seconds": manifest.seconds,
        "consistency": manifest.consistency,
        "warnings": manifest.warnings,
    })
}

fn report(context: &Context, taken: &Taken) -> anyhow::Result<()> {
    let Taken { snapshot, bytes_saved_estimate } = taken;
    let manifest = &snapshot.manifest;
    for warning in &manifest.warnings {
        context.warn(warning);
    }
    let ratio = manifest.bytes as f64 / manifest.bytes_stored.max(1) as f64;
    let rows = if manifest.rows > 0 { format!(", {}", many(manifest.rows, "row")) } else { String::new() };
    let saved = match bytes_saved_estimate {
        0 => String::new(),
        bytes => format!(", about {} less by deltas", size(*bytes)),
    };
    context.say(format!(
        "read {}{rows}; new {}, stored {}{saved} ({ratio:.1}:1) in {:.1} s",
        size(manifest.bytes),
        size(manifest.bytes_new),
        size(manifest.bytes_stored),
        manifest.seconds,
    ));
    let printed = if context.global.json {
        let mut object = json_of(snapshot);
        object["bytes_saved_estimate"] = (*bytes_saved_estimate).into();
        context.print(object)
    } else {
        context.print(snapshot.id)
    };
    printed.with_context(|| format!("backup {} is committed, but its ID could not be printed", snapshot.id))
}
