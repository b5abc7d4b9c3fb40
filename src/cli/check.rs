//! `vault check`.

use std::process::ExitCode;
use std::time::Duration;

use jiff::SignedDuration;

use super::context::{Context, cores};
use super::exit::Exit;
use super::screen::{many, size};
use super::values::{duration, share};
use crate::ops::check::{CheckOptions, CheckReport, Finding, FindingKind, ReadData, Status, check};

/// Check that all that is stored is there and unchanged
///
/// Without --read-data: every object but the packs is read and opened, every pack is there with its size, and every
/// backup leads to chunks that are stored. With it, every byte is read, decrypted and hashed again.
///
/// Results are remembered: --read-data-subset and --max-duration take up the packs that were verified longest ago, so that
/// a short check every night gets around.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault check"
    "vault check --read-data --max-duration 30m"
    "vault check --read-data-subset 5%                     # or 1/7, or 10GB"
    "vault check --json | jq -r 'select(.status).status'   # clean or damaged"
))]
pub struct Args {
    /// Read every byte
    #[arg(long)]
    read_data: bool,
    /// Read a part: 5% or 10GB of what was verified longest ago, or the N-th of M parts as N/M
    #[arg(long, value_name = "PART", conflicts_with = "read_data", value_parser = subset)]
    read_data_subset: Option<ReadData>,
    /// Take up no more data after this long, e.g. 30m or 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_duration: Option<SignedDuration>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let read_data = match (args.read_data_subset, args.read_data || args.max_duration.is_some()) {
        (Some(part), _) => part,
        (None, true) => ReadData::All,
        (None, false) => ReadData::None,
    };
    let max_duration = args.max_duration.map(|time| Duration::try_from(time).unwrap_or_default());
    let options = CheckOptions { read_data, max_duration, threads: cores(), now: context.now() };
    let screen = context.screen();
    let report = check(&repo, &options, &context.progress)?;
    drop(screen);
    if context.global.json {
        print_json(context, &report)?
    } else {
        print(context, &report)?
    }
    Ok(match report.status {
        Status::Clean => Exit::Ok,
        Status::Damaged => Exit::Damaged,
    }
    .into())
}

/// A line for each finding, then the sums with the status.
fn print_json(context: &Context, report: &CheckReport) -> anyhow::Result<()> {
    for finding in &report.findings {
        context.print(serde_json::to_string(finding)?)?;
    }
    let mut sums = serde_json::to_value(report)?;
    if let Some(sums) = sums.as_object_mut() {
        sums.insert("findings".to_owned(), report.findings.len().into());
    }
    context.print(sums)
}

fn print(context: &Context, report: &CheckReport) -> anyhow::Result<()> {
    for finding in &report.findings {
        context.print(line_of(finding))?;
    }
    let garbage = report.garbage.packs_unlisted_bytes + report.garbage.dead_bytes;
    if garbage > 0 {
        context.say(format!("{} belong to no backup: the next `vault prune` looks after them", size(garbage)));
    }
    let read = match report.packs_read {
        0 => "no data read, see --read-data".to_owned(),
        packs => format!(
            "{} ({}) read, {} hashed again",
            many(packs as u64, "pack"),
            size(report.packs_read_bytes),
            size(report.bytes_verified)
        ),
    };
    let found = match report.status {
        Status::Clean => "clean".to_owned(),
        Status::Damaged => format!("damaged, {}", many(report.findings.len() as u64, "finding")),
    };
    context.say(format!(
        "{found}: {} with {}, {} ({}); {read}",
        many(report.backups as u64, "backup"),
        many(report.items, "item"),
        many(report.packs as u64, "pack"),
        size(report.packs_bytes),
    ));
    let hints = report.findings.iter().filter_map(hint);
    hints.collect::<std::collections::BTreeSet<_>>().into_iter().for_each(|hint| context.say(hint));
    Ok(())
}

fn line_of(finding: &Finding) -> String {
    let mut line = format!("{}: {}", finding.object, finding.detail);
    if !finding.backups.is_empty() {
        let backups: Vec<_> = finding.backups.iter().map(crate::id::ObjectId::short).collect();
        line += &format!("; backups hit: {}", backups.join(" "));
    }
    if finding.items_hit > 0 {
        let items: Vec<_> = finding.items.iter().take(5).map(|item| item.escape_debug().to_string()).collect();
        let more = if finding.items_hit > items.len() as u64 { ", ..." } else { "" };
        line += &format!("; {}: {}{more}", many(finding.items_hit, "item"), items.join(", "));
    }
    line
}

/// What to type next.
fn hint(finding: &Finding) -> Option<&'static str> {
    Some(match finding.kind {
        FindingKind::Index | FindingKind::MissingChunks => {
            "next: `vault repair index` makes the index anew from the packs, then check again"
        }
        FindingKind::LostBackup => {
            "next: bring the lost manifest back from a copy of the repository, or accept its loss with `vault forget ID`"
        }
        FindingKind::Pack | FindingKind::PackSize | FindingKind::MissingPack => {
            "next: bring the damaged packs back from a copy of the repository, or take new backups of the sources that are hit"
        }
        _ => return None,
    })
}

fn subset(text: &str) -> Result<ReadData, String> {
    if text.ends_with('%') {
        return share(text).map(ReadData::Share);
    }
    if let Some((part, of)) = text.split_once('/') {
        let wrong = || format!("{text:?} is not N/M with N from 1 to M");
        let (part, of) = (part.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
        return if 1 <= part && part <= of { Ok(ReadData::Part { part, of }) } else { Err(wrong()) };
    }
    let bytes = text.parse::<bytesize::ByteSize>().map_err(|_| format!("{text:?} is none of 5%, 1/7, 10GB"))?;
    Ok(ReadData::Bytes(bytes.as_u64()))
}
