//! Folders in a stable order: each before what it holds, names within one sorted by the bytes of their item path.

use std::cmp::Ordering;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use rustix::fs::{AtFlags, Dir, FileType, OFlags, statat};

use super::FilesError;
use super::beneath::Root;
use super::meta::Status;
use crate::format::manifest::ITEM_PATH_BYTES_MAX;
use crate::source::{escape_name, unescape_name};

/// Folders above this depth keep their handle while their subfolders are walked; deeper ones are opened again.
const OPEN_DEPTH_MAX: usize = 64;

/// One of the paths that a snapshot is taken of.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The folder itself; of a single file the folder that it lies in.
    pub root: Root,
    /// The single file.
    pub file: Option<Vec<u8>>,
    /// First component of its items' paths.
    pub name: String,
    /// Where it is, links resolved.
    pub path: PathBuf,
}

/// Something that was found.
#[derive(Debug)]
pub struct Found {
    /// The item path.
    pub path: String,
    /// The path below the root of its tree, as the file system has it.
    pub below: Vec<u8>,
    pub status: Status,
    /// A folder's handle, or why it could not be listed.
    pub folder: Option<io::Result<OwnedFd>>,
}

/// What a step of the walk came upon.
#[derive(Debug)]
pub enum Step {
    Found(Found),
    /// A name (as item path) that cannot become an item, and why.
    Lost {
        path: String,
        why: String,
    },
}

impl Tree {
    /// Opens a path. Symbolic links that the path itself names are followed.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let error = |source| FilesError::Root { path: path.to_owned(), source };
        let real = path.canonicalize().map_err(error)?;
        let name = path.file_name().or_else(|| real.file_name()).map(|name| name.as_encoded_bytes());
        let name = escape_name(name.unwrap_or(b"root"));
        let status = std::fs::metadata(&real).map_err(error)?;
        let (folder, file) = match (status.is_dir(), real.parent(), real.file_name()) {
            (true, ..) => (real.as_path(), None),
            (false, Some(parent), Some(file)) if status.is_file() => (parent, Some(file.as_encoded_bytes().to_vec())),
            _ => return Err(error(io::Error::other("it is neither a folder nor a regular file"))),
        };
        let handle = std::fs::File::open(folder).map_err(error)?;
        Ok(Self { root: Root::new(handle.into()), file, name, path: real })
    }

    /// The path on this host of something below, as bytes.
    pub fn absolute(&self, below: &[u8]) -> Vec<u8> {
        let mut path = self.path.as_os_str().as_encoded_bytes().to_vec();
        if self.file.is_none() && !below.is_empty() {
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(below);
        }
        path
    }
}

/// A folder that is being walked.
struct Level {
    names: IntoIter<Box<str>>,
    handle: Option<OwnedFd>,
    path_bytes: usize,
    below_bytes: usize,
}

/// Walks one tree. [`next`](Walk::next) gives one file after another; [`skip`](Walk::skip) leaves out what a folder holds.
pub struct Walk<'t> {
    tree: &'t Tree,
    started: bool,
    levels: Vec<Level>,
    path: String,
    below: Vec<u8>,
}

impl<'t> Walk<'t> {
    pub fn new(tree: &'t Tree) -> Self {
        Self { tree, started: false, levels: Vec::new(), path: tree.name.clone(), below: Vec::new() }
    }

    /// Goes into the folder that was just found: its names come next. Not to be called for anything else.
    pub fn enter(&mut self, found: &Found) -> io::Result<()> {
        let Some(Ok(handle)) = &found.folder else { return Ok(()) };
        let names = list(handle)?;
        if self.levels.len() > OPEN_DEPTH_MAX {
            self.levels.last_mut().expect("it is longer than zero").handle = None;
        }
        let handle = Some(handle.try_clone()?);
        let (path_bytes, below_bytes) = (found.path.len(), found.below.len());
        self.levels.push(Level { names: names.into_iter(), handle, path_bytes, below_bytes });
        Ok(())
    }

    /// The next file or folder, or `None` at the end. Errors are of the walk as a whole.
    pub fn next(&mut self) -> Result<Option<Step>, FilesError> {
        if !self.started {
            self.started = true;
            return self.first().map(Some);
        }
        let name = loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.path_bytes);
            self.below.truncate(level.below_bytes);
            match level.names.next() {
                Some(name) => break name,
                None => drop(self.levels.pop()),
            }
        };
        let raw = unescape_name(&name).expect("it was escaped when it was listed");
        self.path.push('/');
        self.path.push_str(&name);
        if !self.below.is_empty() {
            self.below.push(b'/');
        }
        self.below.extend_from_slice(&raw);
        if self.path.len() > ITEM_PATH_BYTES_MAX {
            let shown = self.path.chars().take(200).collect::<String>() + "…";
            let why = format!("its path is longer than {ITEM_PATH_BYTES_MAX} bytes");
            return Ok(Some(Step::Lost { path: shown, why }));
        }
        let status = self.status(&raw);
        Ok(Some(match status {
            Ok(status) => Step::Found(self.found(status)),
            Err(error) => Step::Lost { path: self.path.clone(), why: reason(&error) },
        }))
    }

    fn first(&mut self) -> Result<Step, FilesError> {
        let tree = self.tree;
        let error = |source| FilesError::Root { path: tree.path.clone(), source };
        self.below = tree.file.clone().unwrap_or_default();
        let at = if tree.file.is_some() { &self.below[..] } else { b"." };
        let status = statat(tree.root.as_fd(), at, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| error(errno.into()))?;
        let found = self.found(Status::new(&status));
        match found.folder {
            Some(Err(source)) => Err(error(source)),
            _ => Ok(Step::Found(found)),
        }
    }

    fn found(&self, status: Status) -> Found {
        let folder = (status.file_type == FileType::Directory).then(|| self.tree.root.open_folder(&self.below));
        Found { path: self.path.clone(), below: self.below.clone(), status, folder }
    }

    fn status(&mut self, name: &[u8]) -> io::Result<Status> {
        let level = self.levels.last_mut().expect("a name was taken from it");
        if level.handle.is_none() {
            level.handle = Some(self.tree.root.open_folder(&self.below[..level.below_bytes])?);
        }
        let handle = level.handle.as_ref().expect("it was just opened");
        Ok(Status::new(&statat(handle, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }
}

/// Names in a folder, escaped and sorted.
fn list(folder: &OwnedFd) -> io::Result<Vec<Box<str>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(escape_name(name).into_boxed_str());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// How flags of a file that is read: nothing is waited for, should it have become a pipe or a terminal.
pub const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Why something could not be read, for people.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it vanished while the snapshot was taken".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Order of item paths in a snapshot of files: component by component, by their bytes.
pub fn compare(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_what_it_holds_and_that_before_the_next_name() {
        let paths = ["a", "a/b", "a/b/c", "a/b.c", "a.b", "a.b/x", "b"];
        assert!(paths.is_sorted_by(|a, b| compare(a, b) == Ordering::Less));
    }
}
