//! The command line: one file a command, thin. Data goes to stdout, everything else to stderr.

mod check;
mod context;
mod exit;
mod init;
mod restore;
mod screen;
mod settings;
mod snapshot;
mod snapshots;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use context::Context;

/// What `vault --help` ends with.
const EXIT_CODES: &str = "\
Exit codes: 0 ok · 1 other failure · 2 usage · 3 backup not committed · 4 repository damaged · 5 dump failed ·
6 restore target · 10 no repository · 11 busy · 12 wrong key · 13 rollback or identity mismatch ·
14 storage unreachable · 15 no space · 16 clock skew, prune refused

VAULT_REPO and VAULT_PASSWORD are enough to use a repository. With neither --repo nor VAULT_REPO it is a folder in
your data directory.";

/// Deduplicating, encrypted backups of databases.
///
/// vault splits dumps and snapshots into chunks, stores what is new of them, compressed and encrypted, in a folder or an
/// S3 bucket, and gives every one of them back, verified.
#[derive(Parser)]
#[command(name = "vault", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: settings::Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Every command, in the order in which people meet them.
#[derive(Subcommand)]
pub enum Command {
    Init(init::Args),
    Snapshot(snapshot::Args),
    Snapshots(snapshots::Args),
    Restore(restore::Args),
    Check(check::Args),
}

/// Parses the arguments, runs the command, prints the error if there is one, chooses the exit code.
pub fn main() -> ExitCode {
    // A file-size limit must be an error of the write, not the end of the process.
    exit::ignore_file_size_signal();
    let cli = Cli::parse();
    let context = match Context::new(&cli.global) {
        Ok(context) => context,
        Err(error) => return exit::report(&error, cli.global.json),
    };
    let done = match cli.command {
        Command::Init(args) => init::run(&context, args),
        Command::Snapshot(args) => snapshot::run(&context, args),
        Command::Snapshots(args) => snapshots::run(&context, args),
        Command::Restore(args) => restore::run(&context, args),
        Command::Check(args) => check::run(&context, args),
    };
    match done {
        Ok(code) => code,
        Err(error) => exit::report(&error, cli.global.json),
    }
}

/// The whole command line, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}
