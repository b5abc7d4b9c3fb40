//! `vault restore` of a stream.

use anyhow::Context as _;
use serde_json::json;

use super::out::Output;
use super::{Outcome, Run, files};
use crate::cli::exit::usage;
use crate::cli::screen::size;
use crate::source::ItemSource;

pub fn run(run: &Run<'_>) -> anyhow::Result<Outcome> {
    run.args.refuse_postgres("stdin")?;
    if run.args.target.is_some() {
        return files::run(run);
    }
    if !run.args.stdout {
        return Err(usage("say where to: --stdout, or --target DIR for a file of that name"));
    }
    let bytes = run.snapshot.manifest.bytes;
    run.context.progress.add_bytes_total(bytes);
    let mut out = Output::new(bytes).context("standard output")?;
    let restored = run.items.each_item(&mut |item| run.items.read_item(&item, &mut out));
    out.end(restored)?;
    let text = format!("restored {}, verified,", size(bytes));
    Ok(Outcome { text, fields: json!({ "bytes": bytes }), ..Outcome::default() })
}
