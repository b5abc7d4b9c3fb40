//! `vault snapshot`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::context::{Context, cores};
use super::exit::usage;
use super::screen::{count, size};
use crate::ops::snapshot::{SnapshotOptions, snapshot};
use crate::pipeline::snapshot::WriteOptions;
use crate::repo::snapshots::Snapshot;
use crate::source::stdin;

/// Take a snapshot of a source; prints its backup ID
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    #[command(subcommand)]
    source: Source,
    /// Tag the snapshot; may be given more than once
    #[arg(long, global = true, value_name = "TAG")]
    tag: Vec<String>,
    /// zstd level of new data, 1 to 19
    #[arg(long, global = true, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19))]
    compression: i32,
}

#[derive(Subcommand)]
enum Source {
    /// One stream: standard input, or the output of a command that vault runs
    ///
    /// With a command, any exit code but 0, any signal and an empty output mean that no snapshot is committed. A shell
    /// pipe hides all three: prefer `vault snapshot stdin --name NAME -- CMD ARGS…`.
    Stdin(StdinArgs),
}

#[derive(clap::Args)]
struct StdinArgs {
    /// What to call the stream
    #[arg(long)]
    name: String,
    /// The command to run, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let done = match &args.source {
        Source::Stdin(stdin) => run_stdin(context, &args, stdin)?,
    };
    report(context, &done)?;
    Ok(ExitCode::SUCCESS)
}

fn run_stdin(context: &Context, args: &Args, stdin: &StdinArgs) -> anyhow::Result<Snapshot> {
    if stdin.name.is_empty() {
        return Err(usage("--name must not be empty"));
    }
    let repo = context.open()?;
    let options = options(context, args, "stdin", &stdin.name, Map::new());
    let _screen = context.screen();
    let progress = &context.progress;
    Ok(snapshot(&repo, options, progress, |sink, _| match &stdin.command[..] {
        [] => stdin::snapshot_reader(std::io::stdin(), &stdin.name, sink, progress),
        command => stdin::snapshot_command(command, &stdin.name, sink, progress),
    })?)
}

fn options(context: &Context, args: &Args, source: &str, name: &str, options: Map<String, Value>) -> SnapshotOptions {
    SnapshotOptions {
        source: source.to_owned(),
        name: name.to_owned(),
        host: context.host(),
        tags: args.tag.clone(),
        options,
        write: WriteOptions { sealers: cores(), level: args.compression },
        time: context.now(),
    }
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

fn report(context: &Context, snapshot: &Snapshot) -> anyhow::Result<()> {
    let manifest = &snapshot.manifest;
    for warning in &manifest.warnings {
        context.warn(warning);
    }
    let ratio = manifest.bytes as f64 / manifest.bytes_stored.max(1) as f64;
    let rows = if manifest.rows > 0 { format!(", {} rows", count(manifest.rows)) } else { String::new() };
    context.say(format!(
        "read {}{rows}; new {}, stored {} ({ratio:.1}:1) in {:.1} s",
        size(manifest.bytes),
        size(manifest.bytes_new),
        size(manifest.bytes_stored),
        manifest.seconds,
    ));
    let printed = if context.global.json { context.print(json_of(snapshot)) } else { context.print(snapshot.id) };
    printed.with_context(|| format!("backup {} is committed, but its ID could not be printed", snapshot.id))
}
