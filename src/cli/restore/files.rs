//! `vault restore` of files.

use serde_json::json;

use super::out::Output;
use super::{Outcome, Run};
use crate::cli::exit::usage;
use crate::cli::screen::{many, size};
use crate::source::ItemSource;
use crate::source::files::{FilesRestoreOptions, Overwrite, Symlinks, restore};

/// `--symlinks`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum SymlinksArg {
    None,
    /// Those that cannot lead out of the target
    Inside,
    All,
}

pub fn run(run: &Run<'_>) -> anyhow::Result<Outcome> {
    let args = run.args;
    args.refuse_postgres("files")?;
    let Some(target) = &args.target else {
        return if args.stdout { to_stdout(run) } else { Err(usage("say where to: --target DIR")) };
    };
    let mut options = FilesRestoreOptions::new(target);
    options.includes.clone_from(&args.include);
    options.excludes.clone_from(&args.exclude);
    options.overwrite = match (args.force, args.resume) {
        (true, _) => Overwrite::Force,
        (_, true) => Overwrite::Resume,
        _ => Overwrite::Refuse,
    };
    options.symlinks = match args.symlinks {
        Some(SymlinksArg::None) => Symlinks::None,
        None | Some(SymlinksArg::Inside) => Symlinks::Inside,
        Some(SymlinksArg::All) => Symlinks::All,
    };
    options.owners = options.owners && !args.no_owner;
    options.jobs = args.jobs;
    let report = restore(&options, run.items, &run.context.progress)?;
    Ok(Outcome {
        text: format!(
            "restored {} and {}, {}, into {}, verified,",
            many(report.files, "file"),
            many(report.folders, "folder"),
            size(report.bytes),
            target.display()
        ),
        fields: json!({
            "target": target,
            "files": report.files,
            "folders": report.folders,
            "symlinks": report.symlinks,
            "hardlinks": report.hardlinks,
            "bytes": report.bytes,
            "kept": report.kept,
            "missing": report.missing,
            "symlinks_left_out": report.symlinks_left_out,
        }),
        warnings: report.warnings,
        ..Outcome::default()
    })
}

/// The bytes of the one file that `--include` names by its whole path.
fn to_stdout(run: &Run<'_>) -> anyhow::Result<Outcome> {
    let [path] = &run.args.include[..] else {
        return Err(usage("name the file to write to standard output: --include PATH, as `vault show` lists it"));
    };
    let mut bytes = None;
    run.items.each_item(&mut |item| {
        if item.path == *path && item.kind == "file" {
            run.context.progress.add_bytes_total(item.bytes);
            let mut out = Output::new(item.bytes)?;
            let restored = run.items.read_item(&item, &mut out);
            out.end(restored)?;
            bytes = Some(item.bytes);
        }
        Ok(())
    })?;
    let Some(bytes) = bytes else {
        return Err(usage(format!("no file {path:?} in the snapshot: `vault show` lists what there is")));
    };
    Ok(Outcome { text: format!("restored {}, verified,", size(bytes)), ..Outcome::default() })
}
