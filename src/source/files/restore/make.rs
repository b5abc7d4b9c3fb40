//! Names, folders and files that are made, and what they are given back.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::fs::{fchmod, fchown, futimens, mkdirat, openat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::{Overwrite, Work};
use crate::source::files::FilesError;
use crate::source::files::meta::{Given, set_xattrs};
use crate::source::files::plan::{Place, short_of};

/// Longest name that file systems take, in bytes.
const NAME_BYTES_MAX: usize = 255;

impl Work<'_> {
    /// Makes the folders that lead to where the walk is, and that one itself.
    pub(super) fn make_folders(&self, place: &mut Place) -> Result<(), FilesError> {
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

    /// The name that a file has until it is whole.
    pub(super) fn temporary_name(&self, name: &[u8]) -> Vec<u8> {
        let mut temporary = name.to_vec();
        if name.len() + self.suffix.len() > NAME_BYTES_MAX {
            temporary = blake3::hash(name).to_hex()[..32].as_bytes().to_vec();
        }
        temporary.extend_from_slice(self.suffix.as_bytes());
        temporary
    }

    pub(super) fn create(&self, folder: BorrowedFd<'_>, temporary: &[u8], below: &[u8]) -> Result<File, FilesError> {
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
    pub(super) fn rename(
        &self,
        folder: BorrowedFd<'_>,
        temporary: &[u8],
        name: &[u8],
        below: &[u8],
    ) -> Result<(), FilesError> {
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
    pub(super) fn give(
        &self,
        file: BorrowedFd<'_>,
        below: &[u8],
        given: &Given,
        mode_bits: u32,
    ) -> Result<(), FilesError> {
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
}

pub(super) fn times(given: &Given) -> Option<Timestamps> {
    let modified = given.modified?;
    let last_modification = Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds.into() };
    Some(Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification })
}
