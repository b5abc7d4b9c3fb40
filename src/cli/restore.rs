//! `vault restore`.

mod files;
mod stream;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::context::{Context, cores};
use super::exit::usage;
use super::screen::{count, size};
use crate::ops::restore::SnapshotItems;
use crate::repo::snapshots::{Snapshot, find};

/// Bring a snapshot back, every byte verified
///
/// ID is a backup ID, any unique beginning of one, `latest`, `latest:SOURCE` or `latest:SOURCE:NAME`.
///
/// Every chunk is decrypted and compared with its name, every item with the length and hash in the manifest. If that or the
/// target fails, the exit code says so, and what is there is plainly marked as unfinished.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES, after_long_help = examples!(
    "vault restore latest:files --target /srv/back"
    "vault restore 60e08b95 --target /srv/back --include 'app/uploads/**' --force"
    "vault restore latest:stdin:shop --stdout | mysql shop"
    "vault restore latest --validate-only"
))]
pub struct Args {
    /// Which snapshot
    #[arg(value_name = "ID")]
    id: String,
    /// Folder to restore into
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// Write the bytes of one item to standard output
    #[arg(long, conflicts_with = "target")]
    stdout: bool,
    /// Read, decrypt and check everything, and write nothing
    #[arg(long, conflicts_with_all = ["target", "stdout", "include", "exclude"])]
    validate_only: bool,
    /// Only what matches; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Not what matches; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Overwrite what is in the target already
    #[arg(long)]
    force: bool,
    /// Go on with a restore that broke off
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Leave out the owners that the snapshot has
    #[arg(long)]
    no_owner: bool,
    /// Symbolic links to make: none, those that stay inside the target, or all
    #[arg(long, value_name = "WHICH", default_value = "inside")]
    symlinks: files::SymlinksArg,
    /// How much to do side by side [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

/// One restore.
struct Run<'r> {
    context: &'r Context,
    args: &'r Args,
    snapshot: &'r Snapshot,
    items: &'r SnapshotItems,
}

/// What came of it: a sentence for people, and the fields of the object for scripts.
struct Outcome {
    text: String,
    fields: Value,
    warnings: Vec<String>,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open_with_index()?;
    let snapshots = repo.snapshots()?;
    let snapshot = find(&snapshots, &args.id)?;
    let manifest = &snapshot.manifest;
    let items = SnapshotItems::new(repo.clone(), manifest.clone(), cores(), context.progress.clone());
    let run = Run { context, args: &args, snapshot, items: &items };
    let started = Instant::now();
    let screen = context.screen();
    let outcome = match (args.validate_only, manifest.source.as_str()) {
        (true, _) => validate(&run)?,
        (false, "files") => files::run(&run)?,
        (false, "stdin") => stream::run(&run)?,
        (false, other) => return Err(usage(format!("this vault cannot restore a snapshot of {other}"))),
    };
    drop(screen);
    let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
    outcome.warnings.iter().for_each(|warning| context.warn(warning));
    context.say(format!("{} in {seconds:.1} s", outcome.text));
    // Standard output may be the data's.
    if context.global.json && !args.stdout {
        let mut object = json!({ "id": snapshot.id, "source": manifest.source, "verified": true });
        let fields = object.as_object_mut().expect("it was just made as one");
        fields.extend(outcome.fields.as_object().cloned().unwrap_or_default());
        fields.insert("seconds".to_owned(), seconds.into());
        fields.insert("warnings".to_owned(), outcome.warnings.into());
        context.print(object)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(run: &Run<'_>) -> anyhow::Result<Outcome> {
    run.context.progress.add_bytes_total(run.snapshot.manifest.bytes);
    let (items, bytes) = run.items.validate()?;
    Ok(Outcome {
        text: format!("{} items, {}: all there and unchanged, checked", count(items), size(bytes)),
        fields: json!({ "target": null, "items": items, "bytes": bytes }),
        warnings: Vec::new(),
    })
}
