//! `vault diff`.

use std::process::ExitCode;

use super::context::Context;
use super::screen::{count, size};
use crate::ops::diff::{Change, DiffReport, ItemDiff, diff};
use crate::repo::snapshots::find;

/// Show which items differ between two snapshots, with rows and bytes
///
/// NEW are bytes that only the second one has in that item, GONE those that only the first one has.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!("vault diff 60e08b95 latest:postgres"))]
pub struct Args {
    /// The earlier snapshot
    #[arg(value_name = "ID")]
    from: String,
    /// The later snapshot
    #[arg(value_name = "ID")]
    to: String,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let (repo, snapshots) = context.open_to_read()?;
    let (from, to) = (find(&snapshots, &args.from)?, find(&snapshots, &args.to)?);
    let screen = context.screen();
    let report = diff(&repo, from, to, &context.progress)?;
    drop(screen);
    if context.global.json {
        return print_json(context, &report).map(|()| ExitCode::SUCCESS);
    }
    if !report.items.is_empty() {
        let head = ["SIZE", "CHANGE", "ROWS", "NEW", "GONE"];
        context.print(format!(
            "  {:>10} {:>10} {:>12} {:>10} {:>10}  ITEM",
            head[0], head[1], head[2], head[3], head[4]
        ))?;
    }
    report.items.iter().try_for_each(|item| context.print(line_of(item)))?;
    context.print(format!(
        "{} changed, {} added, {} removed, {} as they were; {} rows, {}; {} new, {} gone",
        count(report.changed),
        count(report.added),
        count(report.removed),
        count(report.unchanged),
        signed(report.rows_delta, count),
        signed(report.bytes_delta, size),
        size(report.bytes_new),
        size(report.bytes_gone),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each item that differs, then the sums.
fn print_json(context: &Context, report: &DiffReport) -> anyhow::Result<()> {
    for item in &report.items {
        context.print(serde_json::to_string(item)?)?;
    }
    let mut sums = serde_json::to_value(report)?;
    if let Some(sums) = sums.as_object_mut() {
        sums.shift_remove("items");
    }
    context.print(sums)
}

fn line_of(item: &ItemDiff) -> String {
    let mark = match item.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Changed => '~',
    };
    let rows = if item.rows.is_some() || item.rows_delta != 0 { signed(item.rows_delta, count) } else { String::new() };
    format!(
        "{mark} {:>10} {:>10} {rows:>12} {:>10} {:>10}  {}",
        size(item.bytes),
        signed(item.bytes_delta, size),
        size(item.bytes_new),
        size(item.bytes_gone),
        item.path.escape_debug(),
    )
}

fn signed(number: i64, text: impl Fn(u64) -> String) -> String {
    let sign = if number < 0 { "-" } else { "+" };
    format!("{sign}{}", text(number.unsigned_abs()))
}
