//! `vault completions`.

use std::process::ExitCode;

use super::context::Context;

/// Write a completion script for your shell to standard output
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault completions bash > ~/.local/share/bash-completion/completions/vault"
    "vault completions zsh > ~/.zfunc/_vault       # a folder on your $fpath"
    "vault completions fish > ~/.config/fish/completions/vault.fish"
))]
pub struct Args {
    shell: clap_complete::Shell,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "vault", &mut script);
    context.print_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
