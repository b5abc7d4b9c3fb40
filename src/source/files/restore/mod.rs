//! Items back into a folder.
//!
//! Names in a snapshot are somebody else's. So the whole list is checked before anything is written: every path in its
//! place after the folder it lies in, nothing twice, nothing absolute, no `..`. All that is created lies below one handle
//! of the target folder and is reached without following a symbolic link ([`super::beneath`]), whoever renames what
//! meanwhile. A file has a temporary name ending in `.vault-partial` until its hash is verified; so has a note in the target
//! until all is done.
//!
//! Three passes over the items: check; folders and the bytes of files, these on several threads; symbolic links, hard
//! links, and the modes and times of folders, which would change while something is created in them.

mod contents;
mod make;
mod rest;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::fs::{AtFlags, syncfs, unlinkat};

use super::FilesError;
use super::beneath::Root;
use super::glob::Patterns;
use super::out::Checked;
use super::plan::{Choice, Plan, hard_link_target};
use crate::format::manifest::Item;
use crate::progress::{Cancelled, Progress};
use crate::source::ItemSource;

/// The note that stands in the target until all is done, before the ending of temporary names.
const NOTE_NAME: &str = "RESTORE-NOT-FINISHED";
const NOTE: &str =
    "A restore into this folder has begun and has not ended. Unless vault is still at it, files are missing
here. To go on, run the same command with --resume; or remove the folder.\n";
/// Warnings that are told one by one.
const WARNINGS_LISTED_MAX: usize = 100;

/// Where and how to restore.
#[derive(Debug, Clone)]
pub struct FilesRestoreOptions {
    /// The folder to restore into; made if it is missing.
    pub target: PathBuf,
    /// Patterns of what is restored; everything, if there are none. Syntax: [`PatternError`](super::PatternError).
    pub includes: Vec<String>,
    /// Patterns of what is not.
    pub excludes: Vec<String>,
    pub overwrite: Overwrite,
    pub symlinks: Symlinks,
    /// Give files their owners back. Only root can; the default is to do so as root.
    pub owners: bool,
    /// Give set-user-id and set-group-id bits back.
    pub special_modes: bool,
    /// Leave runs of zeros unwritten.
    pub sparse: bool,
    /// Wait at the end until everything is on the disk, so that a power loss takes nothing back.
    pub sync: bool,
    /// Files written side by side; `None` for the number of cores.
    pub jobs: Option<NonZeroUsize>,
}

/// What to do with what is in the target already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overwrite {
    /// The target must be empty.
    #[default]
    Refuse,
    /// Go on with a restore that broke off: files that hold what they should are kept, any other file is an error.
    Resume,
    /// Replace files. What the snapshot does not have stays.
    Force,
}

/// Which symbolic links are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Symlinks {
    None,
    /// Those that cannot lead out of the target.
    #[default]
    Inside,
    All,
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesReport {
    pub files: u64,
    pub folders: u64,
    pub symlinks: u64,
    pub hardlinks: u64,
    /// Bytes of all files, also of those kept.
    pub bytes: u64,
    /// Files among them that were there already ([`Overwrite::Resume`]).
    pub kept: u64,
    /// Files that could not be read when the snapshot was taken.
    pub missing: u64,
    /// Symbolic links not made, because of [`Symlinks`].
    pub symlinks_left_out: u64,
    pub warnings: Vec<String>,
}

impl FilesRestoreOptions {
    /// Everything into `target`, which must be empty.
    pub fn new(target: impl Into<PathBuf>) -> Self {
        Self {
            target: target.into(),
            includes: Vec::new(),
            excludes: Vec::new(),
            overwrite: Overwrite::default(),
            symlinks: Symlinks::default(),
            owners: rustix::process::geteuid().is_root(),
            special_modes: false,
            sparse: false,
            sync: false,
            jobs: None,
        }
    }
}

/// Restores the items of a files snapshot, or of a stdin snapshot, whose stream becomes a file of that name.
///
/// Nothing is written if any name in the snapshot is unsafe. When this fails later, what has its own name is whole and
/// verified, the rest is missing or called `*.vault-partial`, and a note in the target says so.
pub fn restore(
    options: &FilesRestoreOptions,
    source: &dyn ItemSource,
    progress: &Progress,
) -> Result<FilesReport, FilesError> {
    let choice = Choice { includes: Patterns::new(&options.includes)?, excludes: Patterns::new(&options.excludes)? };
    let mut plan = Plan::default();
    each_item(source, progress, &mut |item| plan.check(&item, &choice))?;
    if plan.items == 0 && !options.includes.is_empty() {
        return Err(FilesError::NothingMatches { patterns: options.includes.join(", ") });
    }
    progress.add_items_total(plan.items);
    progress.add_bytes_total(plan.bytes);
    let work = Work {
        options,
        choice,
        source,
        progress,
        root: open_target(options)?,
        suffix: plan.suffix(),
        plan,
        report: Mutex::default(),
        bytes: AtomicU64::new(0),
        warnings: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        failed: Mutex::default(),
        made: Mutex::default(),
        long_file: Mutex::default(),
    };
    work.put_note()?;
    work.write_files()?;
    work.write_rest()?;
    work.finish()
}

/// Writes the bytes of one item, verified, to `out`, which is called `name` in errors. Returns their number.
pub fn restore_stream(
    source: &dyn ItemSource,
    item: &Item,
    out: &mut dyn Write,
    name: &str,
    progress: &Progress,
) -> Result<u64, FilesError> {
    let mut out = Checked { write: |bytes: &[u8]| out.write_all(bytes), failed: None, bytes: 0 };
    match source.read_item(item, &mut out) {
        Ok(()) => Ok(out.bytes),
        Err(_) if progress.is_cancelled() => Err(Cancelled.into()),
        Err(error) => Err(match out.failed {
            Some(error) => target_error(Path::new(name), "written", error),
            None => FilesError::Store { path: item.path.clone(), source: error },
        }),
    }
}

/// Goes through the items; errors of `each` come out as they are.
fn each_item(
    source: &dyn ItemSource,
    progress: &Progress,
    each: &mut dyn FnMut(Item) -> Result<(), FilesError>,
) -> Result<(), FilesError> {
    let mut failed = None;
    let listed = source.each_item(&mut |item| {
        let done = if progress.is_cancelled() { Err(Cancelled.into()) } else { each(item) };
        done.map_err(|error| {
            failed = Some(error);
            io::Error::other("see `failed`")
        })
    });
    match (failed, listed) {
        (Some(error), _) => Err(error),
        (None, Err(_)) if progress.is_cancelled() => Err(Cancelled.into()),
        (None, Err(source)) => Err(FilesError::Store { path: "the list of items".to_owned(), source }),
        (None, Ok(())) => Ok(()),
    }
}

/// Makes or opens the target folder and looks whether it may be written to.
fn open_target(options: &FilesRestoreOptions) -> Result<Root, FilesError> {
    let path = &options.target;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| target_error(path, "made", error))?;
    let open_error = |error| target_error(path, "opened", error);
    let root = Root::new(File::open(path).map_err(open_error)?.into());
    if options.overwrite == Overwrite::Refuse {
        for entry in rustix::fs::Dir::read_from(root.as_fd()).map_err(|errno| open_error(errno.into()))? {
            let entry = entry.map_err(|errno| open_error(errno.into()))?;
            // A file system of its own has this from the start.
            if !matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found") {
                return Err(FilesError::NotEmpty { path: path.clone() });
            }
        }
    }
    Ok(root)
}

fn target_error(path: &Path, verb: &'static str, source: io::Error) -> FilesError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            FilesError::NoSpace { path, source }
        }
        _ => FilesError::Target { path, verb, source },
    }
}

/// One restore under way.
struct Work<'w> {
    options: &'w FilesRestoreOptions,
    choice: Choice,
    plan: Plan,
    source: &'w dyn ItemSource,
    progress: &'w Progress,
    root: Root,
    suffix: String,
    report: Mutex<FilesReport>,
    bytes: AtomicU64,
    warnings: AtomicU64,
    stopped: AtomicBool,
    failed: Mutex<Option<FilesError>>,
    /// Folders that were made on the way to something chosen, and are not chosen themselves.
    made: Mutex<HashSet<[u8; 16]>>,
    /// Held while a file is written that the source itself reads on several threads.
    long_file: Mutex<()>,
}

impl Work<'_> {
    fn path_of(&self, below: &[u8]) -> PathBuf {
        self.options.target.join(OsStr::from_bytes(below))
    }

    fn error(&self, below: &[u8], verb: &'static str, source: impl Into<io::Error>) -> FilesError {
        target_error(&self.path_of(below), verb, source.into())
    }

    fn warn(&self, below: &[u8], what: &str) {
        if self.warnings.fetch_add(1, Relaxed) < WARNINGS_LISTED_MAX as u64 {
            let warning = format!("{}: {what}", self.path_of(below).display());
            self.report().warnings.push(warning);
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, FilesReport> {
        self.report.lock().expect("no code panics while it holds this lock")
    }

    fn note_name(&self) -> String {
        NOTE_NAME.to_owned() + &self.suffix
    }

    fn put_note(&self) -> Result<(), FilesError> {
        let name = self.note_name();
        let mut file = self.create(self.root.as_fd(), name.as_bytes(), name.as_bytes())?;
        file.write_all(NOTE.as_bytes()).map_err(|error| self.error(name.as_bytes(), "written", error))
    }

    fn finish(self) -> Result<FilesReport, FilesError> {
        if self.options.sync {
            self.progress.doing("waiting for the disk");
            syncfs(self.root.as_fd()).map_err(|errno| self.error(b"", "written to the disk", errno))?;
        }
        let name = self.note_name();
        let removed = unlinkat(self.root.as_fd(), &name, AtFlags::empty());
        removed.map_err(|errno| self.error(name.as_bytes(), "removed", errno))?;
        let mut report = self.report.into_inner().expect("no code panics while it holds this lock");
        report.bytes = self.bytes.into_inner();
        report.warnings.sort_unstable();
        let more = self.warnings.into_inner().saturating_sub(WARNINGS_LISTED_MAX as u64);
        if more > 0 {
            report.warnings.push(format!("{more} more such warnings"));
        }
        Ok(report)
    }

    fn stands_in(&self, link: &Item) -> bool {
        hard_link_target(link).and_then(|target| self.plan.stand_ins.get(target)).is_some_and(|path| *path == link.path)
    }

    fn fail(&self, error: FilesError) {
        self.failed.lock().expect("no code panics while it holds this lock").get_or_insert(error);
        self.stopped.store(true, Relaxed);
    }
}
