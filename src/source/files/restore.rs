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

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;

use crossbeam_channel::{Receiver, bounded};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::fs::{chownat, fchmod, fchown, futimens, linkat, mkdirat, openat, readlinkat, renameat, renameat_with};
use rustix::fs::{statat, symlinkat, syncfs, unlinkat, utimensat};
use rustix::io::Errno;
use serde_json::Value;

use super::FilesError;
use super::beneath::Root;
use super::glob::Patterns;
use super::meta::{FILE, FOLDER, Given, HARDLINK, MISSING, SYMLINK, Status, set_xattrs};
use super::out::{Checked, reserve, write_sparse};
use super::plan::{
    Choice, Folder, Place, Plan, STREAM, hard_link_target, link_target, path_below, short_of, stays_inside,
};
use super::walk::READ;
use crate::format::manifest::Item;
use crate::limits::STREAM_BUFFER_BYTES;
use crate::progress::{Cancelled, Progress};
use crate::source::ItemSource;

/// The note that stands in the target until all is done, before the ending of temporary names.
const NOTE_NAME: &str = "RESTORE-NOT-FINISHED";
const NOTE: &str =
    "A restore into this folder has begun and has not ended. Unless vault is still at it, files are missing
here. To go on, run the same command with --resume; or remove the folder.\n";
/// Longest name that file systems take, in bytes.
const NAME_BYTES_MAX: usize = 255;
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

/// A file to be written.
struct Job {
    item: Item,
    folder: Arc<OwnedFd>,
    name: Vec<u8>,
    below: Vec<u8>,
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

    // Second pass: folders, and files on several threads.

    fn write_files(&self) -> Result<(), FilesError> {
        let writers = self.options.jobs.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        std::thread::scope(|scope| {
            let (jobs, queue) = bounded::<Job>(writers);
            let start_writer = |queue: Receiver<Job>| scope.spawn(move || self.run_jobs(&queue));
            let writers: Vec<_> = (0..writers).map(|_| start_writer(queue.clone())).collect();
            drop(queue);
            let mut place = Place::default();
            let mut stand_ins: HashMap<String, Item> = HashMap::new();
            let mut parent: Option<(Vec<u8>, Arc<OwnedFd>)> = None;
            let walked = each_item(self.source, self.progress, &mut |item| {
                if self.stopped.load(Relaxed) {
                    return Err(Cancelled.into());
                }
                let below = place.go_to(&item, &mut |_| Ok(()))?;
                let is_taken = self.choice.takes(&below);
                let item = match item.kind.as_str() {
                    FOLDER => {
                        place.enter(&item, &below, is_taken);
                        return if is_taken { self.make_folders(&mut place) } else { Ok(()) };
                    }
                    FILE | STREAM if is_taken => item,
                    FILE if self.plan.stand_ins.contains_key(&item.path) => {
                        stand_ins.insert(item.path.clone(), item);
                        return Ok(());
                    }
                    HARDLINK if is_taken && self.stands_in(&item) => {
                        let file = hard_link_target(&item).and_then(|target| stand_ins.remove(target));
                        file.ok_or(FilesError::Unsafe { path: item.path, why: "links to something that is no file" })?
                    }
                    _ => return Ok(()),
                };
                self.make_folders(&mut place)?;
                let (folder_path, name) = split(&below);
                let folder = match &parent {
                    Some((path, folder)) if path == folder_path => folder.clone(),
                    _ => {
                        let opened = if folder_path.is_empty() {
                            self.root.open_parent(name).map(|(root, _)| root)
                        } else {
                            self.root.open_folder(folder_path).map(Arc::new)
                        };
                        let folder = opened.map_err(|error| self.error(folder_path, "opened", error))?;
                        parent = Some((folder_path.to_vec(), folder.clone()));
                        folder
                    }
                };
                let name = name.to_vec();
                // Writers hang up only if they have all broken down, and then the scope says so.
                let _ = jobs.send(Job { item, folder, name, below });
                Ok(())
            });
            if let Err(error) = walked {
                self.fail(error);
            }
            // A scope ends when its threads have done their work, and they may still be freeing what is theirs: the
            // leak detector of a fuzz target calls that a leak.
            drop(jobs);
            for writer in writers {
                writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        match self.failed.lock().expect("no code panics while it holds this lock").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn stands_in(&self, link: &Item) -> bool {
        hard_link_target(link).and_then(|target| self.plan.stand_ins.get(target)).is_some_and(|path| *path == link.path)
    }

    fn fail(&self, error: FilesError) {
        self.failed.lock().expect("no code panics while it holds this lock").get_or_insert(error);
        self.stopped.store(true, Relaxed);
    }

    fn run_jobs(&self, queue: &Receiver<Job>) {
        for job in queue {
            if self.stopped.load(Relaxed) {
                continue;
            }
            if let Err(error) = self.write_file(&job) {
                self.fail(error);
            }
        }
    }

    /// Makes the folders that lead to where the walk is, and that one itself.
    fn make_folders(&self, place: &mut Place) -> Result<(), FilesError> {
        for folder in place.folders.iter_mut().filter(|folder| !folder.is_made) {
            let below = &folder.below;
            let make_error = |error: io::Error| self.error(below, "made", error);
            let (parent, name) = self.root.open_parent(below).map_err(make_error)?;
            match mkdirat(&*parent, name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) if self.options.overwrite != Overwrite::Refuse => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let there = openat(&*parent, name, flags, Mode::empty());
                    let there = there.map_err(|_| FilesError::Exists { path: self.path_of(below) })?;
                    // Whatever its mode was, it must be possible to write in it; it gets the right one at the end.
                    let _ = fchmod(&there, Mode::RWXU);
                }
                Err(Errno::EXIST) => return Err(FilesError::Exists { path: self.path_of(below) }),
                Err(errno) => return Err(make_error(errno.into())),
            }
            folder.is_made = true;
            if !folder.is_taken {
                self.made.lock().expect("no code panics while it holds this lock").insert(short_of(&folder.path));
            }
        }
        Ok(())
    }

    fn write_file(&self, job: &Job) -> Result<(), FilesError> {
        let (item, folder, name) = (&job.item, job.folder.as_fd(), &job.name[..]);
        self.progress.doing(&item.path);
        let given = Given::of(&item.meta);
        if self.options.overwrite == Overwrite::Resume
            && let Some(file) = self.there_already(job)?
        {
            self.give(file.as_fd(), &job.below, &given, 0o777)?;
            self.progress.add_bytes(item.bytes);
            self.count_file(item, true);
            return Ok(());
        }
        let long = item.bytes > 4 * STREAM_BUFFER_BYTES as u64;
        let _alone = long.then(|| self.long_file.lock().expect("no code panics while it holds this lock"));
        let temporary = self.temporary_name(name);
        let mut file = self.create(folder, &temporary, &job.below)?;
        self.write_bytes(&mut file, item, &job.below)?;
        self.give(file.as_fd(), &job.below, &given, 0o777)?;
        drop(file);
        self.rename(folder, &temporary, name, &job.below)?;
        if item.meta.contains_key("changing") {
            self.warn(
                &job.below,
                "it was written to while the snapshot was taken, and may be no state that it ever had",
            );
        }
        self.count_file(item, false);
        Ok(())
    }

    fn count_file(&self, item: &Item, kept: bool) {
        self.bytes.fetch_add(item.bytes, Relaxed);
        self.progress.add_items(1);
        let mut report = self.report();
        report.files += 1;
        report.kept += u64::from(kept);
    }

    fn write_bytes(&self, file: &mut File, item: &Item, below: &[u8]) -> Result<(), FilesError> {
        let sparse = self.options.sparse;
        if !sparse && item.bytes > STREAM_BUFFER_BYTES as u64 {
            reserve(file, 0, item.bytes).map_err(|error| self.error(below, "written", error))?;
        }
        let write = |bytes: &[u8]| if sparse { write_sparse(file, bytes) } else { file.write_all(bytes) };
        let mut out = Checked { write, failed: None, bytes: 0 };
        let read = self.source.read_item(item, &mut out);
        let (failed, bytes) = (out.failed, out.bytes);
        match (read, failed) {
            (_, Some(error)) => return Err(self.error(below, "written", error)),
            (Err(_), None) if self.progress.is_cancelled() => return Err(Cancelled.into()),
            (Err(source), None) => return Err(FilesError::Store { path: item.path.clone(), source }),
            (Ok(()), None) if bytes != item.bytes => {
                let source = io::Error::other(format!("{bytes} bytes came, {} were backed up", item.bytes));
                return Err(FilesError::Store { path: item.path.clone(), source });
            }
            (Ok(()), None) => {}
        }
        // Zeros at the end of a sparse file have not been written.
        if sparse { file.set_len(bytes).map_err(|error| self.error(below, "written", error)) } else { Ok(()) }
    }

    /// The file, if it is there and holds what it should. Anything else of that name is an error.
    fn there_already(&self, job: &Job) -> Result<Option<File>, FilesError> {
        let other = || FilesError::Exists { path: self.path_of(&job.below) };
        let read_error = |error| self.error(&job.below, "read", error);
        let flags = READ | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = match openat(&*job.folder, &job.name[..], flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Err(other()),
            Err(errno) => return Err(read_error(errno.into())),
        };
        let status = Status::of(&file).map_err(read_error)?;
        if status.file_type != FileType::RegularFile || status.size != job.item.bytes {
            return Err(other());
        }
        let mut hash = blake3::Hasher::new();
        let mut buffer = vec![0; STREAM_BUFFER_BYTES.min(usize::try_from(status.size).unwrap_or(usize::MAX).max(1))];
        loop {
            if self.progress.is_cancelled() {
                return Err(Cancelled.into());
            }
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => drop(hash.update(&buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        if hash.finalize().to_hex().as_str() == job.item.hash { Ok(Some(file)) } else { Err(other()) }
    }

    /// The name that a file has until it is whole.
    fn temporary_name(&self, name: &[u8]) -> Vec<u8> {
        let mut temporary = name.to_vec();
        if name.len() + self.suffix.len() > NAME_BYTES_MAX {
            temporary = blake3::hash(name).to_hex()[..32].as_bytes().to_vec();
        }
        temporary.extend_from_slice(self.suffix.as_bytes());
        temporary
    }

    fn create(&self, folder: BorrowedFd<'_>, temporary: &[u8], below: &[u8]) -> Result<File, FilesError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(folder, temporary, flags, Mode::RUSR | Mode::WUSR);
        let mut created = create();
        if matches!(created, Err(Errno::EXIST)) && self.options.overwrite != Overwrite::Refuse {
            // Left over by a restore that broke off.
            let _ = unlinkat(folder, temporary, AtFlags::empty());
            created = create();
        }
        created.map(File::from).map_err(|errno| self.error(below, "made", errno))
    }

    /// Gives a finished file its name.
    fn rename(&self, folder: BorrowedFd<'_>, temporary: &[u8], name: &[u8], below: &[u8]) -> Result<(), FilesError> {
        let renamed = match self.options.overwrite {
            Overwrite::Force => renameat(folder, temporary, folder, name),
            Overwrite::Refuse | Overwrite::Resume => {
                match renameat_with(folder, temporary, folder, name, RenameFlags::NOREPLACE) {
                    // File systems that cannot refuse to replace.
                    Err(Errno::INVAL | Errno::NOSYS) => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Err(Errno::NOENT) => renameat(folder, temporary, folder, name),
                        Ok(_) => Err(Errno::EXIST),
                        Err(errno) => Err(errno),
                    },
                    other => other,
                }
            }
        };
        renamed.map_err(|errno| match errno {
            Errno::EXIST => FilesError::Exists { path: self.path_of(below) },
            errno => self.error(below, "put in its place", errno),
        })
    }

    /// Gives an open file or folder its attributes, owner, mode and time back. Of these only the mode must succeed.
    fn give(&self, file: BorrowedFd<'_>, below: &[u8], given: &Given, mode_bits: u32) -> Result<(), FilesError> {
        if let Some(errno) = set_xattrs(file, given) {
            self.warn(below, &format!("its extended attributes could not be set: {}", io::Error::from(errno)));
        }
        let mut bits = if self.options.special_modes { 0o7777 } else { mode_bits };
        if let (true, Some((uid, gid))) = (self.options.owners, given.owner)
            && let Err(errno) = fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        {
            self.warn(below, &format!("its owner could not be set: {}", io::Error::from(errno)));
            // Another user's set-user-id program must not become ours.
            bits = mode_bits;
        }
        if let Some(mode) = given.mode {
            fchmod(file, Mode::from_raw_mode(mode & bits))
                .map_err(|errno| self.error(below, "given its mode", errno))?;
        }
        if let Some(times) = times(given)
            && let Err(errno) = futimens(file, &times)
        {
            self.warn(below, &format!("its time could not be set: {}", io::Error::from(errno)));
        }
        Ok(())
    }

    // Third pass: links, and what folders are like.

    fn write_rest(&self) -> Result<(), FilesError> {
        let mut place = Place::default();
        let mut leave = |folder: Folder| self.leave_folder(&folder);
        each_item(self.source, self.progress, &mut |item| {
            let below = place.go_to(&item, &mut leave)?;
            let is_taken = self.choice.takes(&below);
            if item.kind == FOLDER {
                place.enter(&item, &below, is_taken);
            }
            if !is_taken {
                return Ok(());
            }
            match item.kind.as_str() {
                FOLDER => {}
                SYMLINK => {
                    self.make_folders_again(&mut place)?;
                    self.write_symlink(&item, &below)?;
                }
                HARDLINK if !self.stands_in(&item) => {
                    self.make_folders_again(&mut place)?;
                    self.write_hard_link(&item, &below)?;
                }
                MISSING => {
                    self.report().missing += 1;
                    let why = item.meta.get("why").and_then(Value::as_str).unwrap_or("it could not be read");
                    self.warn(&below, &format!("missing in the snapshot: {why}"));
                }
                _ => {}
            }
            // What has bytes was counted when these were written.
            if !matches!(item.kind.as_str(), FILE | STREAM) {
                self.progress.add_items(1);
            }
            Ok(())
        })?;
        while let Some(folder) = place.folders.pop() {
            leave(folder)?;
        }
        Ok(())
    }

    /// As in the pass before, where those for files were made.
    fn make_folders_again(&self, place: &mut Place) -> Result<(), FilesError> {
        for folder in place.folders.iter_mut().filter(|folder| !folder.is_made) {
            match self.root.open_folder(&folder.below) {
                Ok(_) => folder.is_made = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make_folders(place),
                Err(error) => return Err(self.error(&folder.below, "opened", error)),
            }
        }
        Ok(())
    }

    fn leave_folder(&self, folder: &Folder) -> Result<(), FilesError> {
        let made =
            || self.made.lock().expect("no code panics while it holds this lock").contains(&short_of(&folder.path));
        if !folder.is_taken && !made() {
            return Ok(());
        }
        let open = self.root.open_folder(&folder.below).map_err(|error| self.error(&folder.below, "opened", error))?;
        self.report().folders += 1;
        self.give(open.as_fd(), &folder.below, &folder.given, 0o1777)
    }

    fn write_symlink(&self, item: &Item, below: &[u8]) -> Result<(), FilesError> {
        let target = link_target(item).expect("the first pass has read it");
        let wanted = match self.options.symlinks {
            Symlinks::None => false,
            Symlinks::Inside => stays_inside(below, &target),
            Symlinks::All => true,
        };
        if !wanted {
            self.report().symlinks_left_out += 1;
            return Ok(());
        }
        let make_error = |error: io::Error| self.error(below, "made", error);
        let (folder, name) = self.root.open_parent(below).map_err(make_error)?;
        let mut made = symlinkat(&target[..], &*folder, name);
        if made == Err(Errno::EXIST) && self.options.overwrite != Overwrite::Refuse {
            let there = readlinkat(&*folder, name, Vec::new());
            if there.is_ok_and(|there| there.as_bytes() == target) {
                made = Ok(());
            } else if self.options.overwrite == Overwrite::Force {
                unlinkat(&*folder, name, AtFlags::empty()).map_err(|errno| self.error(below, "replaced", errno))?;
                made = symlinkat(&target[..], &*folder, name);
            }
        }
        made.map_err(|errno| match errno {
            Errno::EXIST => FilesError::Exists { path: self.path_of(below) },
            errno => make_error(errno.into()),
        })?;
        let given = Given::of(&item.meta);
        if let (true, Some((uid, gid))) = (self.options.owners, given.owner) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            if let Err(errno) = chownat(&*folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
                self.warn(below, &format!("its owner could not be set: {}", io::Error::from(errno)));
            }
        }
        if let Some(times) = times(&given) {
            // Some file systems have no times for links; nobody misses them.
            let _ = utimensat(&*folder, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        self.report().symlinks += 1;
        Ok(())
    }

    fn write_hard_link(&self, item: &Item, below: &[u8]) -> Result<(), FilesError> {
        let target = hard_link_target(item).expect("the first pass has read it");
        if self.plan.linked_missing.contains(&short_of(target)) {
            self.report().missing += 1;
            self.warn(below, "missing in the snapshot: it is another name of a file that could not be read");
            return Ok(());
        }
        let first = self.plan.stand_ins.get(target).map_or(target, String::as_str);
        let first = path_below(first).expect("the first pass has read it");
        let link_error = |error: io::Error| self.error(below, "linked", error);
        let (from_folder, from) = self.root.open_parent(&first).map_err(link_error)?;
        let (folder, name) = self.root.open_parent(below).map_err(link_error)?;
        let temporary = self.temporary_name(name);
        if self.options.overwrite != Overwrite::Refuse {
            let _ = unlinkat(&*folder, &temporary[..], AtFlags::empty());
            let inode = |folder: &OwnedFd, name: &[u8]| {
                statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino)).ok()
            };
            let there = inode(&folder, name);
            if there.is_some() && there == inode(&from_folder, from) {
                self.report().hardlinks += 1;
                return Ok(());
            }
        }
        linkat(&*from_folder, from, &*folder, &temporary[..], AtFlags::empty())
            .map_err(|errno| link_error(errno.into()))?;
        self.rename(folder.as_fd(), &temporary, name, below)?;
        self.report().hardlinks += 1;
        Ok(())
    }
}

fn split(below: &[u8]) -> (&[u8], &[u8]) {
    match below.iter().rposition(|&byte| byte == b'/') {
        None => (b"", below),
        Some(at) => (&below[..at], &below[at + 1..]),
    }
}

fn times(given: &Given) -> Option<Timestamps> {
    let modified = given.modified?;
    let last_modification = Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds.into() };
    Some(Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification })
}
