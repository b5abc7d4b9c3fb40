//! `vault init`.

use std::process::ExitCode;

use serde_json::json;

use super::context::Context;
use super::exit::{CliError, Exit};
use super::secret;
use crate::backend::probe::{Verdict, probe_location};
use crate::backend::{Backend, BackendError};
use crate::format::config::{Config, DeltaParams};
use crate::id::RepoId;
use crate::limits::{DELTA_DEPTH_MAX, DELTA_DEPTH_STD};
use crate::repo::{RepoError, Repository, random};

/// Make a new repository, in a folder or a bucket
///
/// The password comes from VAULT_PASSWORD, VAULT_PASSWORD_FILE, VAULT_PASSWORD_COMMAND or --password-file, or is asked for
/// on the terminal. Without it nobody can ever read the repository: keep it where the repository is not.
///
/// Before anything is made, the store is asked whether it does what a repository needs; `vault doctor` asks again.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault --repo /srv/backups init"
    "vault --repo s3://backups/databases init        # AWS_* say where and who; see docs/operations.md"
))]
pub struct Args {
    /// Name of the key slot, for `vault key list`
    #[arg(long, default_value = "first")]
    label: String,
    /// How long chains of changes may get: 8 stores least, less restores faster, 0 stores all that changed in full
    ///
    /// What changed is stored against what it was the day before, that against the day before that, and so on; after so many
    /// it is stored against where the chain began. A restore reads the whole chain. It is fixed with the repository;
    /// `vault snapshot --delta off` leaves it out once.
    #[arg(long, value_name = "N", default_value_t = DELTA_DEPTH_STD,
          value_parser = clap::value_parser!(u8).range(..=i64::from(DELTA_DEPTH_MAX)))]
    delta_depth: u8,
    /// Make it even if the store does not do what a repository needs
    #[arg(long)]
    unsafe_store: bool,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let secret = match secret::given(&context.global, &context.file)? {
        Some(secret) => secret,
        None => secret::ask_new_password()?,
    };
    let backend = context.new_backend()?;
    match backend.get("config", None) {
        Ok(_) => return Err(RepoError::Exists { location: backend.properties().location }.into()),
        Err(BackendError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    probe(context, args.unsafe_store)?;
    let config =
        Config { delta: DeltaParams { depth: args.delta_depth }, ..Config::new(RepoId(random()?), context.now()) };
    let repo = Repository::init_with(backend, &secret, &args.label, config, &context.places)?;
    let location = repo.backend.properties().location;
    if context.global.json {
        context.print(json!({ "repository": repo.config.repository, "location": location }))?;
    }
    context.say(format!("made repository {} in {location}", repo.config.repository));
    context.say("keep its password where the repository is not: without it nobody can read the backups");
    Ok(ExitCode::SUCCESS)
}

/// Warns of what the store does not do; refuses one that is not safe.
fn probe(context: &Context, unsafe_store: bool) -> anyhow::Result<()> {
    let report = probe_location(&context.location()?)?;
    for finding in report.findings.iter().filter(|finding| finding.verdict != Verdict::Ok) {
        context.warn(format!("{}: {}", finding.name, finding.detail));
    }
    // Where nothing can be stored, making the repository fails with the better error.
    let stores = report.findings.len() > 1;
    if report.verdict() == Verdict::Fail && stores && !unsafe_store {
        let message = format!("{} is not safe for a repository; --unsafe-store makes it all the same", report.location);
        return Err(CliError { exit: Exit::Other, message }.into());
    }
    Ok(())
}
