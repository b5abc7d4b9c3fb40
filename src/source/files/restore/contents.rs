//! The second pass: folders, and the bytes of files on several threads.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::available_parallelism;

use crossbeam_channel::{Receiver, bounded};
use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Overwrite, Work, each_item};
use crate::format::manifest::Item;
use crate::limits::STREAM_BUFFER_BYTES;
use crate::progress::Cancelled;
use crate::source::files::FilesError;
use crate::source::files::meta::{FILE, FOLDER, Given, HARDLINK, Status};
use crate::source::files::out::{Checked, reserve, write_sparse};
use crate::source::files::plan::{Place, STREAM, hard_link_target};
use crate::source::files::walk::READ;

/// A file to be written.
struct Job {
    item: Item,
    folder: Arc<OwnedFd>,
    name: Vec<u8>,
    below: Vec<u8>,
}

impl Work<'_> {
    pub(super) fn write_files(&self) -> Result<(), FilesError> {
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
}

fn split(below: &[u8]) -> (&[u8], &[u8]) {
    match below.iter().rposition(|&byte| byte == b'/') {
        None => (b"", below),
        Some(at) => (&below[..at], &below[at + 1..]),
    }
}
