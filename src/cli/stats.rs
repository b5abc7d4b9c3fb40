//! `vault stats`.

use std::process::ExitCode;

use super::context::Context;
use super::screen::{count, lines_of, local_time, many, size, table};
use crate::ops::stats::{BackupStats, StatsReport, stats};
use crate::repo::snapshots::find;

/// Show what the backups hold and what they take: by source, and what each backup alone holds
///
/// ALONE is what no other backup needs: what dropping this one frees. Sources that share data each count it. What changed is
/// stored as deltas, in blobs that rest on older ones: DEPTH is how many older ones in a row, 0 for blobs that stand alone.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault stats"
    "vault stats latest:postgres"
    "vault stats --json | tail -n 1"
))]
pub struct Args {
    /// Only this snapshot
    #[arg(value_name = "ID")]
    id: Option<String>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let chosen = match &args.id {
        Some(word) => Some(find(&repo.snapshots()?, word)?.id),
        None => None,
    };
    let screen = context.screen();
    let report = stats(&repo, &context.progress)?;
    drop(screen);
    let each: Vec<_> = report.each.iter().filter(|one| chosen.is_none_or(|id| id == one.id)).collect();
    if context.global.json {
        print_json(context, &report, &each, chosen.is_some())?
    } else {
        print(context, &report, &each)?
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each backup, one for each source, then the sums; for one backup only its own.
fn print_json(context: &Context, report: &StatsReport, each: &[&BackupStats], one: bool) -> anyhow::Result<()> {
    for backup in each {
        context.print(serde_json::to_string(backup)?)?;
    }
    if one {
        return Ok(());
    }
    for source in &report.sources {
        context.print(serde_json::to_string(source)?)?;
    }
    let mut sums = serde_json::to_value(report)?;
    if let Some(sums) = sums.as_object_mut() {
        sums.shift_remove("each");
        sums.shift_remove("sources");
    }
    context.print(sums)
}

fn print(context: &Context, report: &StatsReport, each: &[&BackupStats]) -> anyhow::Result<()> {
    let mut sources = table(&["source", "name", "host", "backups", "holds", "takes", "ratio"]);
    for source in &report.sources {
        sources.add_row([
            source.group.source.clone(),
            source.group.name.clone(),
            source.group.host.clone(),
            count(source.backups as u64),
            size(source.bytes_logical),
            size(source.bytes_stored),
            format!("{:.1}", source.ratio),
        ]);
    }
    context.print(lines_of(&sources))?;
    let mut backups = table(&["id", "time", "source", "name", "size", "alone", "alone, stored"]);
    for backup in each {
        backups.add_row([
            backup.id.short(),
            local_time(backup.time),
            backup.group.source.clone(),
            backup.group.name.clone(),
            size(backup.bytes),
            size(backup.bytes_alone),
            size(backup.bytes_alone_stored),
        ]);
    }
    context.print(format!("\n{}", lines_of(&backups)))?;
    if report.depths.len() > 1 {
        print_depths(context, report)?;
    }
    context.print(format!(
        "\n{} {} {} ({} of it different) in {} ({:.1}:1); {} of that are unused until the next prune",
        many(report.backups as u64, "backup"),
        if report.backups == 1 { "holds" } else { "hold" },
        size(report.bytes_logical),
        size(report.bytes_unique),
        size(report.bytes_stored),
        report.ratio,
        size(report.bytes_unused),
    ))
}

/// What rests on what, and what that saves.
fn print_depths(context: &Context, report: &StatsReport) -> anyhow::Result<()> {
    let mut depths = table(&["depth", "blobs", "holds", "takes"]);
    for one in &report.depths {
        depths.add_row([one.depth.to_string(), count(one.blobs), size(one.bytes), size(one.bytes_stored)]);
    }
    context.print(format!("\n{}", lines_of(&depths)))?;
    context.print(format!(
        "\nwithout deltas it would take about {} more; {} are kept only because others rest on them",
        size(report.bytes_saved_estimate),
        size(report.bytes_bases),
    ))
}
