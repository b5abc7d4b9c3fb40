//! `vault forget`.

use std::process::ExitCode;

use serde_json::json;

use super::context::Context;
use super::screen::{local_time, size};
use crate::ops::forget::{ForgetOptions, forget};

/// Drop single backups, at once; `vault prune` then removes what only they held
///
/// Either every ID names one backup, or none is dropped. A backup whose manifest is damaged or lost is dropped by its whole
/// ID.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault forget 60e08b95 a4128e0f"
    "vault forget latest:stdin:test --dry-run"
))]
pub struct Args {
    /// Which snapshots
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Only say what would go
    #[arg(long, short = 'n')]
    dry_run: bool,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let options = ForgetOptions { words: args.ids, host: context.host(), now: context.now(), dry_run: args.dry_run };
    let report = forget(&repo, &options)?;
    for dropped in &report.dropped {
        if context.global.json {
            let mut line = json!({ "dry_run": report.dry_run });
            let fields = serde_json::to_value(dropped)?;
            if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
                line.extend(fields.clone());
            }
            context.print(line)?;
            continue;
        }
        let facts = dropped.facts.as_ref().map_or_else(
            || "its manifest cannot be read".to_owned(),
            |facts| format!("{} {} of {}, {}", facts.source, facts.name, local_time(facts.time), size(facts.bytes)),
        );
        context.say(format!(
            "{} {}: {facts}",
            if report.dry_run { "would drop" } else { "dropped" },
            dropped.id.short()
        ));
    }
    if !report.dry_run {
        context.say("`vault prune` frees what only they held");
    }
    Ok(ExitCode::SUCCESS)
}
