//! The third pass: links, and what folders are like.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Uid, chownat, linkat, readlinkat, statat, symlinkat, unlinkat, utimensat};
use rustix::io::Errno;
use serde_json::Value;

use super::make::times;
use super::{Overwrite, Symlinks, Work, each_item};
use crate::format::manifest::Item;
use crate::source::files::FilesError;
use crate::source::files::meta::{FILE, FOLDER, Given, HARDLINK, MISSING, SYMLINK};
use crate::source::files::plan::{
    Folder, Place, STREAM, hard_link_target, link_target, path_below, short_of, stays_inside,
};

impl Work<'_> {
    pub(super) fn write_rest(&self) -> Result<(), FilesError> {
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
