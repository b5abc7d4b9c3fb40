//! `vault check`.

use std::process::ExitCode;

use super::context::Context;

/// Check that all that is stored is there and unchanged
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {}

pub fn run(context: &Context, _args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open_with_index()?;
    repo.snapshots()?;
    Ok(ExitCode::SUCCESS)
}
