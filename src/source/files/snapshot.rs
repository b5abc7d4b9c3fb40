//! Files as items.
//!
//! One thread walks, compares with the parent snapshot, writes the items that have no bytes and hands files to readers.
//! The parent's items stand in the same order, so they are read along, one after another, and never held in memory.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};
use std::thread::available_parallelism;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{Advice, FileType, fadvise, readlinkat};
use serde_json::{Map, Value, json};

use super::FilesError;
use super::glob::Patterns;
use super::meta::{FILE, FOLDER, HARDLINK, MISSING, SYMLINK, Status, add_xattrs, escape_link_target};
use super::past_cache::PastCache;
use super::turns::Turns;
use super::walk::{Found, READ, Step, Tree, Walk, compare, reason};
use crate::format::manifest::Item;
use crate::limits::{HELPERS_MAX, SEGMENT_BYTES};
use crate::progress::{Cancelled, Progress};
use crate::source::{ItemFacts, ItemSink, ItemSource, SourceFacts, TakeInError};

/// Items of the parent read ahead.
const PARENT_ITEMS_AHEAD: usize = 256;
/// Files may be finished at most this many orders ahead of the oldest one that is still being read: the lines of those
/// that are ahead wait in memory.
const ORDERS_AHEAD_MAX: u64 = 8 << 10;
/// How often a file that changes while it is read is read.
const ATTEMPTS: u32 = 3;
/// A longer file is read only twice, and in turn if its name is new.
const LONG_FILE_BYTES: u64 = 64 << 20;
/// Warnings of one kind that are told one by one.
const WARNINGS_LISTED_MAX: usize = 100;

/// What to take a snapshot of.
#[derive(Debug, Clone, Default)]
pub struct FilesOptions {
    /// Folders and files. Their last names must differ; symbolic links named here are followed, others never.
    pub paths: Vec<PathBuf>,
    /// Patterns ([`PatternError`](super::PatternError) has the syntax) of what is left out.
    pub excludes: Vec<String>,
    /// Folders that must never be taken in, silently reached through one of `paths`: the repository itself, its cache.
    pub never: Vec<PathBuf>,
    /// Leave out what lies on another file system than the path it is reached from.
    pub one_file_system: bool,
    /// Files read side by side; `None` for the number of cores.
    pub jobs: Option<NonZeroUsize>,
}

/// Pushes the files below `options.paths` into `sink`. Files that are as `parent` has them are not read.
///
/// A file that cannot be read becomes an item of kind `missing`, and the facts warn of it by name; if no file could be
/// read at all, that is an error. So is a path of `options` that cannot be read. A file that changes while it is read
/// is read again, and kept with a warning if it does not come to rest.
pub fn snapshot(
    options: &FilesOptions,
    parent: Option<&dyn ItemSource>,
    sink: &dyn ItemSink,
    progress: &Progress,
) -> Result<SourceFacts, FilesError> {
    let trees = open_trees(&options.paths)?;
    let excludes = Patterns::new(&options.excludes)?;
    let readers = options.jobs.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let turns = Turns::new(readers.div_ceil(1 + HELPERS_MAX));
    let (notes, read, line) = Default::default();
    let run = Run { trees: &trees, sink, progress, notes, read, line, turns };
    std::thread::scope(|scope| {
        let (to_walk, from_parent) = bounded(PARENT_ITEMS_AHEAD);
        // Without a parent the channel ends here, or the walk would wait for it.
        match parent {
            Some(parent) => drop(scope.spawn({
                let run = &run;
                move || run.read_parent(parent, &to_walk)
            })),
            None => drop(to_walk),
        }
        let (jobs, queue) = bounded(readers);
        for _ in 0..readers {
            let (run, queue) = (&run, queue.clone());
            scope.spawn(move || run.read_files(&queue));
        }
        drop(queue);
        let walker = Walker {
            run: &run,
            excludes,
            never: options.never.iter().filter_map(|path| identity(path)).collect(),
            one_file_system: options.one_file_system,
            parent: Parent { items: from_parent, next: None },
            jobs,
            order: 0,
            links: HashMap::new(),
        };
        if let Err(error) = walker.walk() {
            run.line.fail(error);
        }
    });
    if let Some(error) = run.line.failed.into_inner().expect("no code panics while it holds this lock") {
        return Err(error);
    }
    let notes = run.notes.into_inner().expect("no code panics while it holds this lock");
    notes.facts(run.read.into_inner())
}

fn open_trees(paths: &[PathBuf]) -> Result<Vec<Tree>, FilesError> {
    let mut trees = paths.iter().map(|path| Tree::open(path)).collect::<Result<Vec<_>, _>>()?;
    if trees.is_empty() {
        return Err(FilesError::NoPath);
    }
    trees.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    trees.dedup_by(|a, b| a.name == b.name && a.path == b.path);
    if let Some([first, second]) = trees.array_windows().find(|[a, b]| a.name == b.name) {
        let (first, second) = (first.clone(), second.clone());
        return Err(FilesError::SameName { name: first.name, first: first.path, second: second.path });
    }
    Ok(trees)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let status = Status::new(&rustix::fs::stat(path).ok()?);
    Some((status.device, status.inode))
}

fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// What the threads of one snapshot share.
struct Run<'r> {
    trees: &'r [Tree],
    sink: &'r dyn ItemSink,
    progress: &'r Progress,
    notes: Mutex<Notes>,
    /// Files that were read or taken over.
    read: AtomicU64,
    line: Line,
    turns: Turns,
}

/// A file to be read.
struct Job {
    order: u64,
    tree: usize,
    path: String,
    below: Vec<u8>,
    links: u64,
    /// It is read when it is its turn.
    in_turn: bool,
}

/// What people should know at the end, by item path.
#[derive(Default)]
struct Notes {
    missing: Vec<(String, String)>,
    missing_count: u64,
    changing: Vec<(String, String)>,
    changing_count: u64,
    other: Vec<(String, String)>,
    other_count: u64,
}

impl Notes {
    fn facts(mut self, read: u64) -> Result<SourceFacts, FilesError> {
        for notes in [&mut self.missing, &mut self.changing, &mut self.other] {
            notes.sort_unstable();
        }
        if let (0, Some((path, why))) = (read, self.missing.first()) {
            return Err(FilesError::NothingRead { missing: self.missing_count, first: format!("{path}: {why}") });
        }
        let mut facts = SourceFacts::default();
        for (notes, count, what) in [
            (
                self.missing,
                self.missing_count,
                "are missing in the snapshot, too: its items of kind \"missing\" name them",
            ),
            (
                self.changing,
                self.changing_count,
                "changed while they were read: `changing` stands in their items' meta",
            ),
            (self.other, self.other_count, "have such a warning"),
        ] {
            let listed = notes.len() as u64;
            facts.warnings.extend(notes.into_iter().map(|(path, why)| format!("{path}: {why}")));
            if count > listed {
                facts.warnings.push(format!("{} more files {what}", count - listed));
            }
        }
        facts.consistency.insert("kind".to_owned(), json!("file by file"));
        facts.consistency.insert("missing".to_owned(), json!(self.missing_count));
        facts.consistency.insert("changing".to_owned(), json!(self.changing_count));
        Ok(facts)
    }

    fn add(list: &mut Vec<(String, String)>, count: &mut u64, path: &str, why: &str) {
        *count += 1;
        if list.len() < WARNINGS_LISTED_MAX {
            list.push((path.to_owned(), why.to_owned()));
        }
    }
}

/// Orders that are being read, and the first failure.
#[derive(Default)]
struct Line {
    open: Mutex<BTreeSet<u64>>,
    moved: Condvar,
    stopped: AtomicBool,
    failed: Mutex<Option<FilesError>>,
}

impl Line {
    /// Waits until `order` is not too far ahead. False once something has failed.
    fn enter(&self, order: u64) -> bool {
        let mut open = self.open.lock().expect("no code panics while it holds this lock");
        while !self.stopped.load(Relaxed) && open.first().is_some_and(|first| first + ORDERS_AHEAD_MAX <= order) {
            open = self.moved.wait(open).expect("no code panics while it holds this lock");
        }
        open.insert(order);
        !self.stopped.load(Relaxed)
    }

    fn leave(&self, order: u64) {
        self.open.lock().expect("no code panics while it holds this lock").remove(&order);
        self.moved.notify_one();
    }

    fn fail(&self, error: FilesError) {
        self.failed.lock().expect("no code panics while it holds this lock").get_or_insert(error);
        let _open = self.open.lock().expect("no code panics while it holds this lock");
        self.stopped.store(true, Relaxed);
        self.moved.notify_one();
    }
}

impl Run<'_> {
    fn check(&self) -> Result<(), FilesError> {
        if self.progress.is_cancelled() { Err(Cancelled.into()) } else { Ok(()) }
    }

    fn store_error(&self, path: &str, source: io::Error) -> FilesError {
        if self.progress.is_cancelled() {
            return Cancelled.into();
        }
        FilesError::Store { path: path.to_owned(), source }
    }

    /// Writes an item that has no bytes.
    fn put(&self, order: u64, path: &str, kind: &str, meta: Map<String, Value>) -> Result<(), FilesError> {
        let facts = ItemFacts { rows: None, meta };
        let put = || self.sink.begin(order, path, kind)?.finish(facts);
        put().map_err(|source| self.store_error(path, source))?;
        self.progress.add_items(1);
        Ok(())
    }

    fn put_missing(&self, order: u64, path: &str, links: u64, why: &str) -> Result<(), FilesError> {
        self.note_missing(path, why);
        let mut meta = Map::new();
        meta.insert("why".to_owned(), json!(why));
        if links > 1 {
            meta.insert("links".to_owned(), json!(links));
        }
        self.put(order, path, MISSING, meta)
    }

    fn note_missing(&self, path: &str, why: &str) {
        let notes = &mut *self.notes.lock().expect("no code panics while it holds this lock");
        Notes::add(&mut notes.missing, &mut notes.missing_count, path, why);
    }

    fn note_changing(&self, path: &str) {
        let notes = &mut *self.notes.lock().expect("no code panics while it holds this lock");
        let why = "it changed each time it was read: what is kept of it may be no state that it ever had";
        Notes::add(&mut notes.changing, &mut notes.changing_count, path, why);
    }

    fn note(&self, path: &str, why: &str) {
        let notes = &mut *self.notes.lock().expect("no code panics while it holds this lock");
        Notes::add(&mut notes.other, &mut notes.other_count, path, why);
    }

    /// The thread that reads the parent's items.
    fn read_parent(&self, parent: &dyn ItemSource, to_walk: &Sender<Item>) {
        let mut wanted = true;
        let read = parent.each_item(&mut |item| {
            wanted = to_walk.send(item).is_ok();
            if wanted { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
        if let (Err(error), true) = (read, wanted) {
            self.note("the parent snapshot", &format!("not all of it could be read, so files are read again: {error}"));
        }
    }

    /// A thread that reads files.
    fn read_files(&self, queue: &Receiver<Job>) {
        for job in queue {
            if !self.line.stopped.load(Relaxed)
                && let Err(error) = self.read_file(&job)
            {
                self.line.fail(error);
            }
            self.line.leave(job.order);
        }
    }

    fn read_file(&self, job: &Job) -> Result<(), FilesError> {
        let missing = |why: &str| self.put_missing(job.order, &job.path, job.links, why);
        let store_error = |error| self.store_error(&job.path, error);
        let _turn = job.in_turn.then(|| self.turns.wait());
        self.progress.doing(&job.path);
        let mut attempt = 1;
        loop {
            let looked = now_seconds();
            let opened = self.trees[job.tree].root.open(&job.below, READ);
            let (file, before) = match opened.and_then(|file| Status::of(&file).map(|status| (file, status))) {
                Ok((file, status)) if status.file_type == FileType::RegularFile => (std::fs::File::from(file), status),
                Ok(_) => return missing("it is no longer a regular file"),
                Err(error) => return missing(&reason(&error)),
            };
            if before.size > SEGMENT_BYTES as u64 {
                let _ = fadvise(&file, 0, None, Advice::Sequential);
            }
            let mut file = PastCache::new(file);
            let mut stream = self.sink.begin(job.order, &job.path, FILE).map_err(store_error)?;
            // What the file held when it was opened: a log that grows meanwhile ends where it ended then.
            let held = if before.size == 0 { u64::MAX } else { before.size };
            let read = match stream.take_in(&mut (&mut file).take(held)) {
                Ok(read) => read,
                Err(TakeInError::Store(error)) => return Err(store_error(error)),
                Err(TakeInError::Read(error)) => {
                    stream.discard().map_err(store_error)?;
                    return missing(&reason(&error));
                }
            };
            let after = Status::of(file.file());
            // A size of 0 is what files have that are made up while they are read.
            let whole = read == before.size || before.size == 0;
            let at_rest = whole && after.is_ok_and(|after| after.is_same_state(&before));
            let attempts = if before.size > LONG_FILE_BYTES { ATTEMPTS - 1 } else { ATTEMPTS };
            if !at_rest && attempt < attempts {
                attempt += 1;
                stream.discard().map_err(store_error)?;
                continue;
            }
            let mut meta = before.file_meta(looked);
            if let Some(why) = add_xattrs(file.file().as_fd(), &mut meta) {
                self.note(&job.path, why);
            }
            if !at_rest {
                meta.insert("changing".to_owned(), json!(true));
                self.note_changing(&job.path);
            }
            stream.finish(ItemFacts { rows: None, meta }).map_err(store_error)?;
            self.read.fetch_add(1, Relaxed);
            self.progress.add_items(1);
            return Ok(());
        }
    }
}

/// The parent's items, read along with the walk.
struct Parent {
    items: Receiver<Item>,
    next: Option<Item>,
}

impl Parent {
    /// The item of that path, if there is one. Paths must be asked for in their order.
    fn take(&mut self, path: &str) -> Option<Item> {
        loop {
            let item = match self.next.take() {
                Some(item) => item,
                None => self.items.recv().ok()?,
            };
            match compare(&item.path, path) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Some(item),
                std::cmp::Ordering::Greater => {
                    self.next = Some(item);
                    return None;
                }
            }
        }
    }
}

/// The thread that walks.
struct Walker<'r> {
    run: &'r Run<'r>,
    excludes: Patterns,
    never: Vec<(u64, u64)>,
    one_file_system: bool,
    parent: Parent,
    jobs: Sender<Job>,
    order: u64,
    /// Path of the first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), String>,
}

impl Walker<'_> {
    fn walk(mut self) -> Result<(), FilesError> {
        for (at, tree) in self.run.trees.iter().enumerate() {
            let mut walk = Walk::new(tree);
            let mut device = None;
            while let Some(step) = walk.next()? {
                self.run.check()?;
                if self.run.line.stopped.load(Relaxed) {
                    return Ok(());
                }
                match step {
                    Step::Lost { path, why } => self.run.note_missing(&path, &why),
                    Step::Found(found) => {
                        let device = *device.get_or_insert(found.status.device);
                        self.take(&mut walk, at, tree, found, device)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order - 1
    }

    fn take(&mut self, walk: &mut Walk, at: usize, tree: &Tree, found: Found, device: u64) -> Result<(), FilesError> {
        let run = self.run;
        let (status, path) = (found.status, found.path.as_str());
        let is_top = found.below.len() == tree.file.as_ref().map_or(0, Vec::len);
        if !self.excludes.is_empty() && self.is_excluded(tree, &found) {
            return Ok(());
        }
        match status.file_type {
            FileType::Directory => {
                let is_mount = status.device != device;
                let mut meta = status.meta();
                if is_top {
                    meta.insert("from".to_owned(), json!(shown(tree)));
                }
                if self.never.contains(&(status.device, status.inode)) {
                    run.note(path, "left out: it belongs to the repository that this snapshot goes to");
                } else if !(is_mount && self.one_file_system) {
                    self.enter(walk, &found, &mut meta);
                }
                let order = self.next_order();
                run.put(order, path, FOLDER, meta)
            }
            FileType::RegularFile => {
                run.progress.add_items_total(1);
                run.progress.add_bytes_total(status.size);
                if status.links > 1 {
                    let first = self.links.entry((status.device, status.inode)).or_insert_with(|| path.to_owned());
                    if first != path {
                        let mut meta = Map::new();
                        meta.insert("target".to_owned(), json!(first));
                        let order = self.next_order();
                        return run.put(order, path, HARDLINK, meta);
                    }
                }
                self.take_file(at, found)
            }
            FileType::Symlink => {
                let mut meta = status.meta();
                let target = tree.root.open_parent(&found.below).and_then(|(folder, name)| {
                    let target = readlinkat(&*folder, name, Vec::new())?;
                    Ok(escape_link_target(target.as_bytes()))
                });
                let order = self.next_order();
                match target {
                    Ok(target) => {
                        meta.insert("target".to_owned(), json!(target));
                        run.put(order, path, SYMLINK, meta)
                    }
                    Err(error) => run.put_missing(order, path, 0, &reason(&error)),
                }
            }
            other => {
                let what = match other {
                    FileType::Fifo => "a named pipe",
                    FileType::Socket => "a socket",
                    FileType::CharacterDevice | FileType::BlockDevice => "a device",
                    _ => "of a kind that is not known",
                };
                run.note(path, &format!("left out: it is {what}"));
                Ok(())
            }
        }
    }

    fn is_excluded(&self, tree: &Tree, found: &Found) -> bool {
        let mut path = crate::source::unescape_name(&tree.name).expect("it was escaped when it was opened");
        if tree.file.is_none() && !found.below.is_empty() {
            path.push(b'/');
            path.extend_from_slice(&found.below);
        }
        self.excludes.matches(&path, Some(&tree.absolute(&found.below)))
    }

    fn enter(&self, walk: &mut Walk, found: &Found, meta: &mut Map<String, Value>) {
        let error = match &found.folder {
            Some(Err(error)) => Some(reason(error)),
            _ => walk.enter(found).err().map(|error| reason(&error)),
        };
        if let Some(why) = error {
            let why = format!("what it holds could not be listed: {why}");
            self.run.note_missing(&found.path, &why);
            meta.insert("why".to_owned(), json!(why));
        } else if let Some(Ok(folder)) = &found.folder
            && let Some(why) = add_xattrs(folder.as_fd(), meta)
        {
            self.run.note(&found.path, why);
        }
    }

    fn take_file(&mut self, tree: usize, found: Found) -> Result<(), FilesError> {
        let run = self.run;
        let order = self.next_order();
        let earlier = self.parent.take(&found.path);
        let in_turn = earlier.is_none() && found.status.size > LONG_FILE_BYTES && run.sink.makes_deltas();
        if let Some(item) = earlier.filter(|item| found.status.is_unchanged(item)) {
            let facts = ItemFacts { rows: None, meta: item.meta.clone() };
            if run.sink.reuse(order, &item, facts).map_err(|error| run.store_error(&found.path, error))? {
                run.read.fetch_add(1, Relaxed);
                run.progress.add_items(1);
                return Ok(());
            }
        }
        if run.line.enter(order) {
            let Found { path, below, status, .. } = found;
            let job = Job { order, tree, path, below, links: status.links, in_turn };
            // Readers hang up only if they have all broken down, and then the scope says so.
            let _ = self.jobs.send(job);
        }
        Ok(())
    }
}

fn shown(tree: &Tree) -> String {
    tree.path.to_string_lossy().into_owned()
}
