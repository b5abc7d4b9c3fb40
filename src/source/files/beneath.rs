//! Names below a folder handle, and nowhere else.
//!
//! A path that is opened here can name only what lies below the folder that the handle was opened on: no component may be
//! a symbolic link, `..` or a mount's magic link, whatever somebody renames or swaps at the same time. On Linux the kernel
//! keeps that promise in one call (`openat2`); where that is missing each component is opened on its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// A folder below which things are opened. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Root(Arc<OwnedFd>);

impl Root {
    pub fn new(folder: OwnedFd) -> Self {
        Self(Arc::new(folder))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what `path` names; the folder itself if it is empty. Nothing is followed, not in the last place either.
    pub fn open(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_empty() {
            return Ok(openat(&*self.0, ".", flags, Mode::empty())?);
        }
        #[cfg(target_os = "linux")]
        match open_in_one_call(self.as_fd(), path, flags) {
            // Kernels before 5.6, and sandboxes that know no newer call.
            Err(Errno::NOSYS | Errno::PERM) => {}
            other => return Ok(other?),
        }
        Ok(open_stepwise(self.as_fd(), path, flags)?)
    }

    /// Opens a folder.
    pub fn open_folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the folder that `path` lies in, and returns it with the last name.
    pub fn open_parent<'p>(&self, path: &'p [u8]) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        match path.iter().rposition(|&byte| byte == b'/') {
            None => Ok((self.0.clone(), path)),
            Some(at) => Ok((Arc::new(self.open_folder(&path[..at])?), &path[at + 1..])),
        }
    }
}

#[cfg(target_os = "linux")]
fn open_in_one_call(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(folder, path, flags, Mode::empty(), resolve) {
            // The kernel could not be sure because of a rename elsewhere.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn open_stepwise(folder: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut names = path.split(|&byte| byte == b'/').peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::XDEV);
        }
        let here = at.as_ref().map_or(folder, AsFd::as_fd);
        let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = Some(openat(here, name, if names.peek().is_some() { step } else { flags }, Mode::empty())?);
    }
    at.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_the_folder_can_be_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let outside = tempfile::tempdir().expect("a temporary folder");
        fs::write(outside.path().join("secret"), b"x").expect("written");
        fs::create_dir_all(folder.path().join("a/b")).expect("made");
        fs::write(folder.path().join("a/b/file"), b"x").expect("written");
        symlink(outside.path(), folder.path().join("link")).expect("made");
        symlink("a", folder.path().join("inner")).expect("made");
        symlink(outside.path().join("secret"), folder.path().join("a/secret")).expect("made");
        let handle = OwnedFd::from(fs::File::open(folder.path()).expect("opened"));
        let root = Root::new(handle);
        let deep = outside.path().join("secret");
        let absolute = deep.to_str().expect("text").as_bytes();
        let bad: [&[u8]; 7] = [b"link/secret", b"inner/b/file", b"a/secret", b"..", b"a/../../x", b"link", absolute];
        for path in bad {
            let shown = String::from_utf8_lossy(path);
            root.open(path, OFlags::RDONLY).expect_err(&shown);
            open_stepwise(root.as_fd(), path, OFlags::RDONLY | OFlags::NOFOLLOW).expect_err(&shown);
        }
        for path in [&b"a/b/file"[..], b"a"] {
            root.open(path, OFlags::RDONLY).expect("it lies below");
            open_stepwise(root.as_fd(), path, OFlags::RDONLY | OFlags::NOFOLLOW).expect("it lies below");
        }
        root.open_folder(b"").expect("the folder itself");
        let (_, name) = root.open_parent(b"a/b/file").expect("it lies below");
        assert_eq!(name, b"file");
    }
}
