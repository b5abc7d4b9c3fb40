//! `vault init`.

use std::process::ExitCode;

use serde_json::json;

use super::context::Context;
use super::settings;
use crate::repo::Repository;

/// Make a new repository, in a folder or a bucket
///
/// The password comes from VAULT_PASSWORD, VAULT_PASSWORD_FILE, VAULT_PASSWORD_COMMAND or --password-file, or is asked for
/// on the terminal. Without it nobody can ever read the repository: keep it where the repository is not.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Name of the key slot, for `vault key list`
    #[arg(long, default_value = "first")]
    label: String,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let secret = match settings::secret(&context.global, &context.file)? {
        Some(secret) => secret,
        None => settings::ask_new_password()?,
    };
    let backend = context.new_backend()?;
    let repo = Repository::init(backend, &secret, &args.label, context.now(), &context.places)?;
    let location = repo.backend.properties().location;
    if context.global.json {
        context.print(json!({ "repository": repo.config.repository, "location": location }))?;
    }
    context.say(format!("made repository {} in {location}", repo.config.repository));
    Ok(ExitCode::SUCCESS)
}
