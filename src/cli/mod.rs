//! The command line: one file a command, thin. Data goes to stdout, everything else to stderr.

/// What every `--help` ends with. Wrapped by clap to the width of the terminal.
macro_rules! exit_codes {
    () => {
        "Exit codes: 0 ok · 1 other failure · 2 usage · 3 backup not committed · 4 repository damaged · 5 dump failed · \
        6 restore target · 10 no repository · 11 busy · 12 wrong key · 13 rollback or identity mismatch · \
        14 storage unreachable · 15 no space · 16 clock skew, prune refused · 130 stopped by Ctrl-C, 143 by SIGTERM\n\n\
        VAULT_REPO and VAULT_PASSWORD are enough to use a repository. With neither --repo nor VAULT_REPO it is a folder \
        in your data directory."
    };
}

/// Examples, one a line, and then what every `--help` ends with.
macro_rules! examples {
    ($($example:literal)*) => {
        concat!("Examples:\n", $("  ", $example, "\n",)* "\n", exit_codes!())
    };
}

mod check;
mod completions;
mod context;
mod demo;
mod diff;
mod doctor;
mod exit;
mod forget;
mod init;
mod key;
mod man;
mod prune;
mod repair;
mod restore;
mod screen;
mod secret;
mod settings;
mod show;
mod snapshot;
mod snapshots;
mod stats;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use context::Context;

const EXIT_CODES: &str = exit_codes!();

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
    Show(show::Args),
    Diff(diff::Args),
    Stats(stats::Args),
    Restore(restore::Args),
    Forget(forget::Args),
    Prune(prune::Args),
    Check(check::Args),
    Repair(repair::Args),
    Key(key::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Parses the arguments, runs the command, prints the error if there is one, chooses the exit code.
pub fn main() -> ExitCode {
    // A file-size limit must be an error of the write, not the end of the process.
    exit::ignore_file_size_signal();
    secret::hide_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::report_arguments(&error),
    };
    match run(cli.command, &cli.global) {
        Ok(code) => code,
        Err(error) => exit::report(&error, cli.global.json),
    }
}

fn run(command: Command, global: &settings::Global) -> anyhow::Result<ExitCode> {
    let context = Context::new(global)?;
    match command {
        Command::Init(args) => init::run(&context, args),
        Command::Snapshot(args) => snapshot::run(&context, args),
        Command::Snapshots(args) => snapshots::run(&context, args),
        Command::Diff(args) => diff::run(&context, args),
        Command::Stats(args) => stats::run(&context, args),
        Command::Show(args) => show::run(&context, args),
        Command::Restore(args) => restore::run(&context, args),
        Command::Forget(args) => forget::run(&context, args),
        Command::Prune(args) => prune::run(&context, args),
        Command::Check(args) => check::run(&context, args),
        Command::Repair(args) => repair::run(&context, args),
        Command::Key(args) => key::run(&context, args),
        Command::Doctor(args) => doctor::run(&context, args),
        Command::Demo(args) => demo::run(&context, args),
        Command::Completions(args) => completions::run(&context, args),
        Command::Man(args) => man::run(&context, args),
    }
}

/// The whole command line, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}
