//! `vault snapshots`.

use std::process::ExitCode;

use super::context::Context;
use super::screen::{lines_of, local_time, size, table};
use super::snapshot::json_of;

/// List the snapshots, oldest first
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Only those of this source
    #[arg(long)]
    source: Option<String>,
    /// Only those with this name
    #[arg(long)]
    name: Option<String>,
    /// Only those of this host
    #[arg(long)]
    host: Option<String>,
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let mut snapshots = repo.snapshots()?;
    snapshots.retain(|snapshot| {
        let manifest = &snapshot.manifest;
        args.source.as_ref().is_none_or(|source| *source == manifest.source)
            && args.name.as_ref().is_none_or(|name| *name == manifest.name)
            && args.host.as_ref().is_none_or(|host| *host == manifest.host)
            && args.tag.as_ref().is_none_or(|tag| manifest.tags.contains(tag))
    });
    if context.global.json {
        snapshots.iter().try_for_each(|snapshot| context.print(json_of(snapshot)))?;
        return Ok(ExitCode::SUCCESS);
    }
    if snapshots.is_empty() {
        context.say("no snapshots yet: take one with `vault snapshot`");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(&["id", "time", "source", "name", "host", "size", "stored", "tags"]);
    for snapshot in &snapshots {
        let manifest = &snapshot.manifest;
        table.add_row([
            snapshot.id.short(),
            local_time(manifest.time),
            manifest.source.clone(),
            manifest.name.clone(),
            manifest.host.clone(),
            size(manifest.bytes),
            size(manifest.bytes_stored),
            manifest.tags.join(" "),
        ]);
    }
    context.print(lines_of(&table))?;
    Ok(ExitCode::SUCCESS)
}
