//! `vault snapshot files`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::What;
use crate::backend::location::Location;
use crate::cli::context::Context;
use crate::ops::snapshot::Taken;
use crate::source::files::{FilesOptions, snapshot};

/// Folders and files, with modes, owners, times, links and extended attributes
///
/// A file that is as the last snapshot has it (size, times, inode, mode, owner) is not read again. One that cannot be read
/// is named in a warning and stands in the snapshot as missing. Symbolic links are kept as links. The repository itself
/// and vault's cache are left out.
///
/// Patterns: `*` and `?` within a name, `**` across folders, `[a-z]`; a pattern with a slash is matched from the top of a
/// tree (or from the root of the file system, if it begins with one), any other against each name.
#[derive(clap::Args)]
#[command(after_help = crate::cli::EXIT_CODES, after_long_help = examples!(
    "vault snapshot files /srv/app /etc --exclude '*.tmp' --exclude 'cache/**'"
    "vault restore latest:files --target /srv/back"
    "vault restore latest:files --target /srv/back --include app/uploads"
))]
pub struct Args {
    /// Folders and files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Leave out what matches; may be given more than once
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out what lies on other file systems than the paths
    #[arg(long, short = 'x')]
    one_file_system: bool,
    /// What to call it [default: the paths]; later snapshots of this name are compared with this one
    #[arg(long)]
    name: Option<String>,
    /// Files read side by side; long ones of new names in turn, each by several threads [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

pub fn run(context: &Context, args: &super::Args, files: &Args) -> anyhow::Result<Taken> {
    let mut never = vec![context.places.cache.clone()];
    if let Location::Folder(path) = context.location()? {
        never.push(path);
    }
    let options = FilesOptions {
        paths: files.paths.clone(),
        excludes: files.exclude.clone(),
        never,
        one_file_system: files.one_file_system,
        jobs: files.jobs,
    };
    let mut decided = Map::new();
    if !files.exclude.is_empty() {
        decided.insert("exclude".to_owned(), files.exclude.clone().into());
    }
    if files.one_file_system {
        decided.insert("one_file_system".to_owned(), Value::Bool(true));
    }
    let what =
        What { source: "files", name: files.name.clone().unwrap_or_else(|| name_of(&files.paths)), options: decided };
    super::take(context, args, what, |sink, parent| snapshot(&options, parent, sink, &context.progress))
}

/// The same for the same paths, in whatever order and from wherever they are named.
fn name_of(paths: &[PathBuf]) -> String {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let mut names: Vec<_> = paths.iter().map(|path| absolute(path).to_string_lossy().into_owned()).collect();
    names.sort();
    names.dedup();
    names.join(" ")
}
