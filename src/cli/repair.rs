//! `vault repair`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::context::Context;
use super::screen::count;
use crate::ops::repair::{RepairOptions, repair_index, repair_state};

/// Make anew what can be made from the rest: the index, or what this host remembers
///
/// Nothing is deleted. Look first with `vault check`; its findings say which repair helps.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault repair index --dry-run"
    "vault repair state                 # after the repository was put back from a copy on purpose"
))]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make all index objects anew from the directories of the packs
    Index {
        /// Only say what would be done
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
    /// Forget the backups that this host has seen, so that a repository that went back in time is taken as it is
    State,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open()?;
    let dry_run = match args.what {
        What::Index { dry_run } => dry_run,
        What::State => {
            repair_state(&repo);
            context.say("this host remembers nothing of the repository any more");
            if context.global.json {
                context.print(json!({ "repaired": "state" }))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    let options = RepairOptions { host: context.host(), now: context.now(), dry_run };
    let screen = context.screen();
    let report = repair_index(&repo, &options, &context.progress)?;
    drop(screen);
    if context.global.json {
        context.print(serde_json::to_string(&report)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (packs, what) in [
        (&report.packs_by_old_index, "its directory cannot be read: listed as the old index has it"),
        (&report.packs_unreadable, "its directory cannot be read, and nothing else says what it holds"),
        (&report.packs_missing, "was listed and is not in the store"),
    ] {
        packs.iter().try_for_each(|pack| context.print(format!("{pack}: {what}")))?;
    }
    context.say(format!(
        "{} {} index objects in place of {}, from {} packs; {} of them were in none",
        if dry_run { "would write" } else { "wrote" },
        count(report.index_objects_new as u64),
        count(report.index_objects_old as u64),
        count(report.packs as u64),
        count(report.packs_found as u64),
    ));
    if !dry_run {
        context.say("now look again: `vault check`");
    }
    Ok(ExitCode::SUCCESS)
}
