//! A store in a folder: every object a file, its name the path below the folder.
//!
//! A put writes a temporary file, fsyncs it, and hard-links it to its name, which fails if the name is taken; then it
//! fsyncs the folder. Temporary files lie in [`TEMP_FOLDER`] below the root, a name that no object can have; those of a
//! process that died are removed by a later put, a day on.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, CWD, OFlags, RenameFlags, fadvise, renameat_with};
use rustix::io::{Errno, pread};

use crate::huge_pages::in_huge_pages;
use crate::limits::PAGE_CACHE_BYTES;

use super::{
    Backend, BackendError, ObjectInfo, Properties, PutReceipt, check_name, check_prefix, check_put, checked_range,
};

/// Where objects are written before they get their name. `~` is in no object name.
pub const TEMP_FOLDER: &str = "tmp~";

/// A temporary file this much older than the newest one was left by a process that died.
const TEMP_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder as a store.
pub struct Local {
    root: PathBuf,
    location: String,
    /// Permission bits of new files and folders: those of the root, so that a repository shared by a group stays so.
    mode: u32,
    /// Folders known to be on disk with all that leads to them.
    durable: Mutex<HashSet<PathBuf>>,
    swept: AtomicBool,
    /// Bytes of objects that were written.
    written: AtomicU64,
    #[cfg(test)]
    refuse_links: bool,
    /// So many fsyncs of files fail, one after the other.
    #[cfg(test)]
    failing_syncs: std::sync::atomic::AtomicU32,
}

impl Local {
    /// Opens the store in the folder `root`; [`BackendError::NoStore`] if there is no such folder.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, BackendError> {
        let given = root.as_ref();
        let location = given.display().to_string();
        let failed = |error: io::Error| match errno(&error) {
            Some(Errno::NOENT) => no_store(&location),
            _ => from_io("repository", &location, "open", error),
        };
        // Absolute, so that a process that changes its folder keeps its repository.
        let root = std::path::absolute(given).map_err(failed)?;
        let facts = fs::metadata(&root).map_err(failed)?;
        if !facts.is_dir() {
            return Err(failed(io::Error::from(Errno::NOTDIR)));
        }
        Ok(Self {
            location: root.display().to_string(),
            root,
            mode: facts.mode() & 0o2777,
            durable: Mutex::default(),
            swept: AtomicBool::new(false),
            written: AtomicU64::new(0),
            #[cfg(test)]
            refuse_links: false,
            #[cfg(test)]
            failing_syncs: Default::default(),
        })
    }

    /// Makes the folder `root`, and those that lead to it, unless it is there; then opens it. New folders are for their
    /// owner only.
    pub fn create(root: impl AsRef<Path>) -> Result<Self, BackendError> {
        let given = root.as_ref();
        let location = given.display().to_string();
        let root = std::path::absolute(given).map_err(|error| from_io("repository", &location, "create", error))?;
        make_folders(&root, None).map_err(|error| from_io("repository", &location, "create", error))?;
        Self::open(&root)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What failed with `error` on the object `name`; `missing` if that may mean that the object is not there.
    fn error(&self, name: &str, action: &'static str, error: io::Error) -> BackendError {
        if errno(&error) == Some(Errno::NOENT) && !self.root.is_dir() {
            return no_store(&self.location);
        }
        from_io(name, &self.location, action, error)
    }

    fn not_found(&self, name: &str) -> BackendError {
        if self.root.is_dir() {
            BackendError::NotFound { name: name.to_owned(), location: self.location.clone() }
        } else {
            no_store(&self.location)
        }
    }

    /// Writes `bytes` to a new temporary file and fsyncs it. The file is gone again if that fails.
    fn write_temp(&self, bytes: &[u8]) -> io::Result<Temp> {
        let folder = self.root.join(TEMP_FOLDER);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = folder.join(data_encoding::HEXLOWER.encode(&random));
        let open = || File::options().write(true).create_new(true).mode(self.mode & 0o666).open(&path);
        let file = match open() {
            Err(error) if errno(&error) == Some(Errno::NOENT) && self.root.is_dir() => {
                make_folders(&folder, Some(self.mode))?;
                open()?
            }
            other => other?,
        };
        let mut temp = Temp { path, file };
        temp.file.write_all(bytes)?;
        #[cfg(test)]
        if self.failing_syncs.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(Errno::IO.into());
        }
        temp.file.sync_all()?;
        // The next backup finds its bases in the page cache if this was a small one; a large one must not fill it, and drive out
        // what a database has there.
        let written = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if written >= PAGE_CACHE_BYTES {
            let _ = fadvise(&temp.file, 0, None, Advice::DontNeed);
        }
        Ok(temp)
    }

    /// Gives the temporary file its name unless that is taken. Makes the folder if needed.
    fn link(&self, temp: &Temp, path: &Path) -> io::Result<Linked> {
        let parent = path.parent().expect("an object lies below the root");
        let outcome = match self.link_once(temp, path) {
            Err(error) if errno(&error) == Some(Errno::NOENT) && self.root.is_dir() => {
                make_folders(parent, Some(self.mode))?;
                self.link_once(temp, path)
            }
            other => other,
        };
        match outcome {
            Ok(()) => Ok(Linked::New),
            Err(error) if errno(&error) == Some(Errno::EXIST) => {
                // A network file system may have done it and lost the answer: then the name is this very file's.
                let (mine, there) = (temp.file.metadata()?, fs::symlink_metadata(path)?);
                Ok(if (mine.dev(), mine.ino()) == (there.dev(), there.ino()) { Linked::New } else { Linked::Taken })
            }
            Err(error) => Err(error),
        }
    }

    fn link_once(&self, temp: &Temp, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.refuse_links {
            return Ok(renameat_with(CWD, &temp.path, CWD, path, RenameFlags::NOREPLACE)?);
        }
        match fs::hard_link(&temp.path, path) {
            // No hard links on this file system, or not for this user.
            Err(error) if matches!(errno(&error), Some(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK)) => {
                match renameat_with(CWD, &temp.path, CWD, path, RenameFlags::NOREPLACE) {
                    Err(Errno::INVAL | Errno::NOSYS) => Err(io::Error::other(
                        "this file system can neither hard-link nor rename without replacing; choose another one",
                    )),
                    other => Ok(other?),
                }
            }
            other => other,
        }
    }

    /// Makes the entries of the folder that holds `path` durable, and, once, those of all folders above it.
    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().expect("an object lies below the root");
        sync_folder(parent)?;
        let known = |folder: &Path| self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(folder);
        if !known(parent) {
            // Another process may have made these folders, and have died before it synced them.
            for above in parent.ancestors().skip(1).take_while(|above| above.starts_with(&self.root)) {
                sync_folder(above)?;
            }
            self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(parent.to_owned());
        }
        Ok(())
    }

    /// Removes what processes that died have left, once, judging age by the store's own clock. Errors do no harm.
    fn sweep(&self, newest: &Temp) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let (Ok(Ok(now)), Ok(entries)) =
            (newest.file.metadata().map(|facts| facts.modified()), fs::read_dir(self.root.join(TEMP_FOLDER)))
        else {
            return;
        };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|facts| facts.modified()).map(|then| now.duration_since(then));
            if matches!(age, Ok(Ok(age)) if age > TEMP_AGE_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn list_folder(
        &self,
        folder: &Path,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let failed = |error| self.error(prefix, "list", error);
        let entries = match fs::read_dir(folder) {
            // The root's absence is no empty store.
            Err(error) if matches!(errno(&error), Some(Errno::NOENT | Errno::NOTDIR)) && self.root.is_dir() => {
                return Ok(());
            }
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(file_name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{file_name}");
            if check_name(&name).is_err() {
                continue;
            }
            let facts = match fs::metadata(entry.path()) {
                Err(error) if errno(&error) == Some(Errno::NOENT) => continue, // deleted meanwhile
                other => other.map_err(|error| self.error(&name, "list", error))?,
            };
            if facts.is_dir() {
                self.list_folder(&entry.path(), &format!("{name}/"), each)?;
            } else if facts.is_file() {
                let modified = Timestamp::new(facts.mtime(), facts.mtime_nsec() as i32)
                    .map_err(|error| self.error(&name, "list", io::Error::other(error)))?;
                each(ObjectInfo { name, bytes: facts.len(), modified })?;
            }
        }
        Ok(())
    }
}

impl Backend for Local {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        check_put(name, &self.location, &bytes)?;
        let failed = |error| self.error(name, "put", error);
        let path = self.path(name);
        let mut attempt = 1;
        let linked = loop {
            if fs::symlink_metadata(&path).is_ok() {
                break Linked::Taken;
            }
            // What a failed fsync was about may be lost although the next fsync of that file succeeds: so a new file.
            // The temporary file can be gone before it is linked if another host's clock is a day off.
            let outcome = self.write_temp(&bytes).and_then(|temp| {
                self.sweep(&temp);
                self.link(&temp, &path)
            });
            match outcome {
                Ok(linked) => break linked,
                Err(error) if attempt < 2 && matches!(errno(&error), Some(Errno::IO | Errno::NOENT | Errno::STALE)) => {
                    attempt += 1;
                }
                Err(error) => return Err(failed(error)),
            }
        };
        // Also when the name was taken: who hears that it exists relies on it, and its writer may have died before this.
        self.sync_parent(&path).map_err(failed)?;
        match linked {
            Linked::New => Ok(PutReceipt { store_time: Timestamp::now() }),
            Linked::Taken => {
                Err(BackendError::AlreadyExists { name: name.to_owned(), location: self.location.clone() })
            }
        }
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        check_name(name)?;
        let damaged =
            |detail: String| BackendError::Damaged { name: name.to_owned(), location: self.location.clone(), detail };
        let failed = |error: io::Error| match errno(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => self.not_found(name),
            Some(Errno::IO) => damaged(error.to_string()),
            _ => self.error(name, "get", error),
        };
        // NONBLOCK: whoever can write to the folder could have made this a pipe.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(self.path(name)).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if facts.is_dir() {
            return Err(self.not_found(name));
        }
        if !facts.is_file() {
            return Err(damaged("it is not a regular file".to_owned()));
        }
        let (start, len) = checked_range(name, &self.location, facts.len(), range)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|error| failed(io::Error::other(error)))?;
        in_huge_pages(&mut bytes);
        while bytes.len() < len {
            let at = start + bytes.len() as u64;
            match pread(&file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(damaged(format!("it ended at {at} bytes while being read"))),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        bytes.truncate(len);
        Ok(bytes.into())
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        check_prefix(prefix)?;
        self.list_folder(&self.path(prefix), prefix, each)
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        check_name(name)?;
        let failed = |error| self.error(name, "delete", error);
        let path = self.path(name);
        match fs::remove_file(&path) {
            // Or an object that had been deleted could come back, and name others that have not.
            Ok(()) => sync_folder(path.parent().expect("an object lies below the root")).map(|()| true).map_err(failed),
            Err(error) if matches!(errno(&error), Some(Errno::NOENT | Errno::NOTDIR)) && self.root.is_dir() => {
                Ok(false)
            }
            Err(_) if path.is_dir() => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    fn properties(&self) -> Properties {
        Properties { location: self.location.clone(), kind: "local", parallel_requests: 4 }
    }
}

/// A temporary file; removes its name when dropped.
struct Temp {
    path: PathBuf,
    file: File,
}

impl Drop for Temp {
    fn drop(&mut self) {
        // Gone already if it was renamed; if this fails, the sweep of a later day removes it.
        let _ = fs::remove_file(&self.path);
    }
}

enum Linked {
    New,
    Taken,
}

fn no_store(location: &str) -> BackendError {
    BackendError::NoStore { location: location.to_owned(), hint: "; `vault init` makes a repository".to_owned() }
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn from_io(name: &str, location: &str, action: &'static str, error: io::Error) -> BackendError {
    let (name, location) = (name.to_owned(), location.to_owned());
    match errno(&error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => BackendError::NoSpace { name, location },
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            BackendError::Denied { name, location, action, detail: error.to_string() }
        }
        Some(
            Errno::IO | Errno::STALE | Errno::NXIO | Errno::NODEV | Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::NOTCONN,
        ) => BackendError::Unreachable { location, detail: format!("{action} {name}: {error}") },
        _ => BackendError::Other { name, location, action, detail: error.to_string() },
    }
}

/// Makes `folder` and those that lead to it, each durable; with the permission bits `mode` or for the owner only.
fn make_folders(folder: &Path, mode: Option<u32>) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode.unwrap_or(0o700)).create(folder) {
        Ok(()) => {}
        Err(error) if errno(&error) == Some(Errno::EXIST) => return Ok(()),
        Err(error) if errno(&error) == Some(Errno::NOENT) => {
            let above = folder.parent().ok_or(error)?;
            make_folders(above, mode)?;
            return make_folders(folder, mode);
        }
        // On a read-only file system an existing folder is no error either.
        Err(_) if folder.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Some(mode) = mode {
        // What the umask took away from a group's folder. Some file systems have no permissions to set.
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(mode));
    }
    folder.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems cannot fsync folders; nothing more can be done on them.
        Err(error) if matches!(errno(&error), Some(Errno::INVAL | Errno::NOTSUP)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Local) {
        let folder = tempfile::tempdir().unwrap();
        let store = Local::create(folder.path().join("repo")).unwrap();
        (folder, store)
    }

    fn names(store: &Local) -> Vec<String> {
        let mut names = Vec::new();
        store
            .list("", &mut |object| {
                names.push(object.name);
                Ok(())
            })
            .unwrap();
        names.sort();
        names
    }

    #[test]
    fn without_hard_links_a_rename_creates_once_too() {
        let (_folder, mut store) = store();
        store.refuse_links = true;
        store.put("a/b", Bytes::from_static(b"first")).unwrap();
        let second = store.put("a/b", Bytes::from_static(b"second"));
        assert!(matches!(second, Err(BackendError::AlreadyExists { .. })), "{second:?}");
        assert_eq!(store.get("a/b", None).unwrap(), "first");
        assert_eq!(fs::read_dir(store.root.join(TEMP_FOLDER)).unwrap().count(), 0, "no temporary file stays");
        // The check before the put is not what keeps it: the rename itself refuses.
        let temp = store.write_temp(b"third").unwrap();
        assert!(matches!(store.link(&temp, &store.path("a/b")), Ok(Linked::Taken)));
        assert_eq!(store.get("a/b", None).unwrap(), "first");
    }

    #[test]
    fn a_link_whose_answer_was_lost_is_recognised_by_its_file() {
        let (_folder, store) = store();
        let temp = store.write_temp(b"bytes").unwrap();
        fs::hard_link(&temp.path, store.path("a")).unwrap();
        assert!(matches!(store.link(&temp, &store.path("a")), Ok(Linked::New)), "the name is this very file's");
        let equal = store.write_temp(b"bytes").unwrap();
        assert!(
            matches!(store.link(&equal, &store.path("a")), Ok(Linked::Taken)),
            "equal bytes of another put are not"
        );
    }

    #[test]
    fn a_crash_between_link_and_unlink_leaves_only_what_the_sweep_removes() {
        let (_folder, store) = store();
        let temp = store.write_temp(b"bytes").unwrap();
        assert!(matches!(store.link(&temp, &store.path("a")), Ok(Linked::New)));
        let left = temp.path.clone();
        std::mem::forget(temp); // no Drop: the process died
        assert_eq!(names(&store), ["a"], "the second name is not listed");
        assert_eq!(store.get("a", None).unwrap(), "bytes");

        let day_and_more = std::time::SystemTime::now() - TEMP_AGE_MAX - Duration::from_secs(60);
        store.put("b", Bytes::new()).unwrap();
        assert!(left.exists(), "a fresh temporary file may be another process's");
        File::options().write(true).open(&left).unwrap().set_modified(day_and_more).unwrap();
        Local::open(store.root()).unwrap().put("c", Bytes::new()).unwrap();
        assert!(!left.exists(), "an old one is swept");
        assert_eq!(store.get("a", None).unwrap(), "bytes", "and its object stays");
    }

    #[test]
    fn a_failed_fsync_is_answered_with_a_new_file_once() {
        let (_folder, store) = store();
        let left_over = || fs::read_dir(store.root.join(TEMP_FOLDER)).unwrap().count();
        store.failing_syncs.store(1, Ordering::Relaxed);
        store.put("a", Bytes::from_static(b"bytes")).unwrap();
        assert_eq!(store.get("a", None).unwrap(), "bytes");
        assert_eq!(left_over(), 0);

        store.failing_syncs.store(2, Ordering::Relaxed);
        let outcome = store.put("b", Bytes::from_static(b"bytes"));
        assert!(matches!(outcome, Err(BackendError::Unreachable { .. })), "{outcome:?}");
        assert_eq!((names(&store), left_over()), (vec!["a".to_owned()], 0), "what was not synced gets no name");
        assert_eq!(store.failing_syncs.load(Ordering::Relaxed), 0, "both were asked for");
    }

    #[test]
    fn new_folders_and_files_take_after_the_root() {
        let (_folder, store) = store();
        store.put("a/b", Bytes::new()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(store.root()), 0o700);
        assert_eq!((mode(&store.path("a")), mode(&store.path("a/b"))), (0o700, 0o600));

        fs::set_permissions(store.root(), fs::Permissions::from_mode(0o2770)).unwrap();
        let store = Local::open(store.root()).unwrap();
        store.put("c/d", Bytes::new()).unwrap();
        assert_eq!(mode(&store.path("c")), 0o2770, "a group's repository stays the group's");
    }

    #[test]
    fn a_pipe_is_no_object_and_does_not_hang() {
        let (_folder, store) = store();
        rustix::fs::mkfifoat(CWD, store.path("pipe"), rustix::fs::Mode::RUSR).unwrap();
        assert!(matches!(store.get("pipe", None), Err(BackendError::Damaged { .. })));
        assert_eq!(names(&store), [""; 0]);
    }
}
