//! `vault restore`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;

use super::context::{Context, cores};
use super::exit::usage;
use super::screen::{count, size};
use crate::ops::restore::SnapshotItems;
use crate::repo::snapshots::find;
use crate::source::ItemSource;

/// Bring a snapshot back, every byte verified
///
/// ID is a backup ID, any unique beginning of one, `latest`, `latest:SOURCE` or `latest:SOURCE:NAME`.
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Which snapshot
    #[arg(value_name = "ID")]
    id: String,
    /// Write the bytes to standard output
    #[arg(long)]
    stdout: bool,
    /// Read, decrypt and check everything, and write nothing
    #[arg(long, conflicts_with = "stdout")]
    validate_only: bool,
}

pub fn run(context: &Context, args: Args) -> anyhow::Result<ExitCode> {
    let repo = context.open_with_index()?;
    let snapshots = repo.snapshots()?;
    let snapshot = find(&snapshots, &args.id)?;
    let items = SnapshotItems::new(repo.clone(), snapshot.manifest.clone(), cores(), context.progress.clone());
    context.progress.add_bytes_total(snapshot.manifest.bytes);
    let started = std::time::Instant::now();
    let screen = context.screen();
    if args.validate_only {
        let (items, bytes) = items.validate()?;
        drop(screen);
        context.say(format!("{} items, {}: all there and unchanged", count(items), size(bytes)));
        return Ok(ExitCode::SUCCESS);
    }
    match snapshot.manifest.source.as_str() {
        "stdin" if args.stdout => {
            let mut out = io::stdout().lock();
            items.each_item(&mut |item| items.read_item(&item, &mut out))?;
            out.flush().context("standard output")?;
        }
        "stdin" => return Err(usage("say where to: --stdout")),
        other => return Err(usage(format!("this vault cannot restore a snapshot of {other}"))),
    }
    drop(screen);
    let seconds = started.elapsed().as_secs_f64();
    context.say(format!("restored {} in {seconds:.1} s, verified", size(snapshot.manifest.bytes)));
    Ok(ExitCode::SUCCESS)
}
