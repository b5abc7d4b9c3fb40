//! `vault prune`.

use std::process::ExitCode;

use jiff::SignedDuration;

use super::context::{Context, cores};
use super::screen::{count, lines_of, local_time, many, size, table};
use super::values::{duration, share};
use crate::ops::prune::{Fate, PruneOptions, PruneReport, prune};
use crate::ops::retention::{Decision, KeepRules};

/// Drop the backups that no keep rule keeps, and remove what no backup needs any more
///
/// Rules are looked at for each source, name and host on its own, newest backup first; a backup that any rule keeps stays, and
/// the newest of each always does. Days, weeks, months and years are UTC's.
///
/// Backups may run at the same time, on any host. What is about to go is marked, waits for the grace, and is deleted by
/// this or a later prune, once no running backup can rest on it. A prune that is killed leaves a whole repository.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault prune --keep-days 30 --dry-run"
    "vault prune --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-tag release"
    "vault prune --keep-last 1 --grace 0s              # nothing else may be backing up for this to free all at once"
))]
pub struct Args {
    /// Keep the newest N
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_last: Option<u32>,
    /// Keep everything younger than N days
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_days: Option<u32>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_hourly: Option<u32>,
    /// ... days
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_daily: Option<u32>,
    /// ... weeks
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_weekly: Option<u32>,
    /// ... months
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_monthly: Option<u32>,
    /// ... years
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Keep rules")]
    keep_yearly: Option<u32>,
    /// Keep what carries this tag; may be given more than once
    #[arg(long, value_name = "TAG", help_heading = "Keep rules")]
    keep_tag: Vec<String>,
    /// Only say what would go, why, and how much that frees
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// How long marked data stays, e.g. 0s, 30m, 23h, 7d
    #[arg(long, value_name = "TIME", default_value = "23h", value_parser = duration)]
    grace: SignedDuration,
    /// How much of a pack may be dead before the rest is copied out of it [default: 5%, or 0% without a grace]
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    max_unused: Option<f64>,
    /// Delete packs that are wholly dead, copy nothing: needs no room
    #[arg(long)]
    no_repack: bool,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let keep = KeepRules {
        last: args.keep_last.unwrap_or(0),
        hourly: args.keep_hourly.unwrap_or(0),
        daily: args.keep_daily.unwrap_or(0),
        weekly: args.keep_weekly.unwrap_or(0),
        monthly: args.keep_monthly.unwrap_or(0),
        yearly: args.keep_yearly.unwrap_or(0),
        days: args.keep_days.unwrap_or(0),
        tags: args.keep_tag,
    };
    let repo = context.open()?;
    let options = PruneOptions {
        keep,
        grace: args.grace,
        max_unused: args.max_unused,
        repack: !args.no_repack,
        dry_run: args.dry_run,
        host: context.host(),
        now: context.now(),
        sealers: cores(),
        level: super::snapshot::COMPRESSION,
    };
    let screen = context.screen();
    let report = prune(&repo, &options, &context.progress)?;
    drop(screen);
    if context.global.json {
        print_json(context, &report)?
    } else {
        print(context, &report)?
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each backup and each pack that does not simply stay, then the sums.
fn print_json(context: &Context, report: &PruneReport) -> anyhow::Result<()> {
    for backup in &report.backups {
        context.print(serde_json::to_string(backup)?)?;
    }
    for pack in &report.plan {
        context.print(serde_json::to_string(pack)?)?;
    }
    let mut sums = serde_json::to_value(report)?;
    if let Some(sums) = sums.as_object_mut() {
        sums.shift_remove("backups");
        sums.shift_remove("plan");
    }
    context.print(sums)
}

fn print(context: &Context, report: &PruneReport) -> anyhow::Result<()> {
    let all = report.dry_run || context.global.verbose > 0;
    let shown: Vec<&Decision> = report.backups.iter().filter(|backup| all || !backup.keep).collect();
    if !shown.is_empty() && !context.global.quiet {
        let mut lines = table(&["", "id", "time", "source", "name", "host", "why"]);
        for backup in shown {
            let reasons: Vec<_> = backup.reasons.iter().map(ToString::to_string).collect();
            lines.add_row([
                if backup.keep { "keep" } else { "drop" }.to_owned(),
                backup.id.short(),
                local_time(backup.time),
                backup.group.source.clone(),
                backup.group.name.clone(),
                backup.group.host.clone(),
                if backup.keep { reasons.join(", ") } else { "no rule keeps it".to_owned() },
            ]);
        }
        context.print(lines_of(&lines))?;
    }
    for damaged in &report.damaged {
        context.warn(format!("{damaged} is damaged and stays as it is: run `vault check --read-data`"));
    }
    if context.global.verbose > 0 {
        for pack in report.plan.iter().filter(|pack| pack.fate != Fate::Keep) {
            let fate = serde_json::to_value(pack.fate)?;
            let fate = fate.as_str().unwrap_or_default();
            context.print(format!(
                "pack {} {fate}: {} of {} dead",
                pack.pack,
                size(pack.dead_bytes),
                size(pack.bytes)
            ))?;
        }
    }
    context.say(summary(report));
    if report.packs_waiting > 0 {
        let when =
            report.waiting_until.map_or_else(|| "later".to_owned(), |time| format!("after {}", local_time(time)));
        context.say(format!(
            "marked: {}, {}; a prune {when} deletes what is marked",
            many(report.packs_waiting as u64, "pack"),
            size(report.packs_waiting_bytes)
        ));
    }
    for holder in &report.held_by {
        context.say(format!("running on {} since {} (process {})", holder.host, local_time(holder.since), holder.pid));
    }
    Ok(())
}

fn summary(report: &PruneReport) -> String {
    let (drops, frees) = if report.dry_run { ("would drop", "would free about") } else { ("dropped", "freed") };
    let packs = size(report.packs_bytes);
    let freed = match u64::try_from(report.bytes_freed) {
        Ok(bytes) => format!("{frees} {} of {packs}", size(bytes)),
        // What was stored anew without its bases may take more than these did.
        Err(_) => format!("packs take {} more than {packs} before", size(report.bytes_freed.unsigned_abs())),
    };
    let unused = match report.unused_bytes {
        0 => String::new(),
        bytes => format!("; {} in packs that are mostly alive stay unused", size(bytes)),
    };
    let (dropped, all) = (report.backups_dropped as u64, report.backups_dropped + report.backups_kept);
    format!("{drops} {} of {}, {freed}{unused}", count(dropped), many(all as u64, "backup"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "a keep rule takes a number from 1 up".to_owned())
}
