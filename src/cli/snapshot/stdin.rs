//! `vault snapshot stdin`.

use std::ffi::OsString;

use serde_json::Map;

use super::What;
use crate::cli::context::Context;
use crate::cli::exit::usage;
use crate::ops::snapshot::Taken;
use crate::source::stdin;

/// One stream: standard input, or the output of a command that vault runs
///
/// With a command, any exit code but 0, any signal and an empty output mean that no snapshot is committed. A shell pipe
/// hides the first two: prefer `vault snapshot stdin --name NAME -- CMD ARGS…`.
///
/// Do not let the producer compress: vault does it after it has looked for what is stored already, and a compressed stream
/// changes from its first new byte on.
#[derive(clap::Args)]
#[command(after_help = crate::cli::EXIT_CODES, after_long_help = examples!(
    "vault snapshot stdin --name shop -- mysqldump --single-transaction shop"
    "tar -cf - /etc | vault snapshot stdin --name etc"
    "vault restore latest:stdin:shop --stdout | mysql shop"
))]
pub struct Args {
    /// What to call the stream
    #[arg(long)]
    name: String,
    /// The command to run, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub fn run(context: &Context, args: &super::Args, stdin: &Args) -> anyhow::Result<Taken> {
    if stdin.name.is_empty() {
        return Err(usage("--name must not be empty"));
    }
    let what = What { source: "stdin", name: stdin.name.clone(), options: Map::new() };
    let progress = &context.progress;
    super::take(context, args, what, |sink, _| match &stdin.command[..] {
        [] => stdin::snapshot_stdin(&stdin.name, sink, progress),
        command => stdin::snapshot_command(command, &stdin.name, sink, progress),
    })
}
