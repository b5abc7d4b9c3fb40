//! `vault man`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::context::Context;

/// Write the manual pages, one a command, into a folder
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault man ~/.local/share/man/man1 && man vault-snapshot"
))]
pub struct Args {
    /// The folder; it is made if it does not exist
    folder: PathBuf,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let what = || format!("manual pages in {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(what)?;
    clap_mangen::generate_to(super::command(), &args.folder).with_context(what)?;
    context.say(format!("manual pages written into {}", args.folder.display()));
    Ok(ExitCode::SUCCESS)
}
