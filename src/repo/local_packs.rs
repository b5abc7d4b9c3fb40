//! Packs of a store that is far away, kept on this host's own disk as they are stored: those that it has put there, so that the
//! next backup finds bases without a request, and those that a check has read, until it ends.
//!
//! A file is written whole, then gets its name; it is used only after all of it has been hashed and found to be what its name
//! says. Any of it may vanish or be damaged at any time, and any number of processes may use the folder: what is not there, or
//! not right, comes from the store.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use crate::id::ObjectId;
use crate::limits::{LOCAL_PACKS_BYTES, LOCAL_PACKS_COUNT, LOCAL_PACKS_OPEN};
use crate::repo::private_folder;

/// Packs of one repository in a folder.
pub struct LocalPacks {
    folder: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Files whose bytes were found right, the ones used last at the end.
    open: VecDeque<(ObjectId, File)>,
    /// Bytes that may still be written by this process; none once a write has failed.
    bytes_left: u64,
}

impl LocalPacks {
    /// Those in `folder`, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self::with_bytes_max(folder, LOCAL_PACKS_BYTES)
    }

    fn with_bytes_max(folder: PathBuf, bytes_max: u64) -> Self {
        // What one run writes is bounded as well: a first backup of terabytes would otherwise pass through this disk.
        Self { folder, bytes_max, state: Mutex::new(State { open: VecDeque::new(), bytes_left: bytes_max }) }
    }

    /// Keeps a pack, in place of the oldest ones. Does nothing where that cannot be.
    pub fn put(&self, pack: &ObjectId, bytes: &[u8]) {
        let count = bytes.len() as u64;
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        if state.bytes_left < count {
            return;
        }
        state.bytes_left -= count;
        drop(state);
        if let Err(error) = self.write(pack, bytes) {
            tracing::debug!("no more packs are kept in {}: {error}", self.folder.display());
            self.state.lock().expect("no code panics while it holds this lock").bytes_left = 0;
        }
    }

    fn write(&self, pack: &ObjectId, bytes: &[u8]) -> io::Result<()> {
        private_folder(&self.folder)?;
        let room = rustix::fs::statvfs(&self.folder)?;
        if room.f_bavail.saturating_mul(room.f_frsize) < 2 * self.bytes_max {
            return Err(Errno::NOSPC.into());
        }
        self.make_room(bytes.len() as u64)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = self.path(pack);
        let temp = path.with_extension(HEXLOWER.encode(&random));
        let written = File::options().write(true).create_new(true).mode(0o600).open(&temp);
        let written = written.and_then(|mut file| file.write_all(bytes)).and_then(|()| fs::rename(&temp, &path));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&temp);
        })
    }

    /// Removes the oldest files, whatever they are, until there is room for so many bytes.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            // Another process may have removed it meanwhile.
            let Ok(facts) = entry.metadata() else { continue };
            files.push((facts.modified()?, facts.len(), entry.path()));
        }
        files.sort_unstable();
        let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        let mut left = files.len();
        for (_, file_bytes, path) in files {
            if held + bytes <= self.bytes_max && left < LOCAL_PACKS_COUNT {
                break;
            }
            let _ = fs::remove_file(path);
            (held, left) = (held - file_bytes, left - 1);
        }
        Ok(())
    }

    /// Whether a pack is here and whole.
    pub fn has(&self, pack: &ObjectId) -> bool {
        self.with_file(pack, |_| ()).is_some()
    }

    /// The bytes of a range of a pack, if it is here and whole.
    pub fn get(&self, pack: &ObjectId, range: Range<u32>) -> Option<Bytes> {
        self.with_file(pack, |file| read_range(file, range).ok())?
    }

    fn with_file<T>(&self, pack: &ObjectId, work: impl FnOnce(&File) -> T) -> Option<T> {
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        let known = state.open.iter().position(|(known, _)| known == pack).and_then(|at| state.open.remove(at));
        let file = match known {
            Some((_, file)) => file,
            None => self.open(pack)?,
        };
        let done = work(&file);
        state.open.push_back((*pack, file));
        if state.open.len() > LOCAL_PACKS_OPEN {
            state.open.pop_front();
        }
        Some(done)
    }

    /// Opens a pack if its bytes are right; one that is not goes.
    fn open(&self, pack: &ObjectId) -> Option<File> {
        let path = self.path(pack);
        let mut file = File::open(&path).ok()?;
        match hash(&mut file) {
            Ok(found) if found == *pack => Some(file),
            other => {
                tracing::debug!("{} is not used: {other:?}", path.display());
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    fn path(&self, pack: &ObjectId) -> PathBuf {
        Path::new(&self.folder).join(pack.hex())
    }
}

fn hash(file: &mut File) -> io::Result<ObjectId> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(ObjectId(*hasher.finalize().as_bytes())),
            count => hasher.update(&buffer[..count]),
        };
    }
}

fn read_range(file: &File, range: Range<u32>) -> io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(range.len());
    while bytes.len() < range.len() {
        let at = u64::from(range.start) + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(range.len());
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(fill: u8, bytes: usize) -> (ObjectId, Vec<u8>) {
        let bytes = vec![fill; bytes];
        (ObjectId::of(&bytes), bytes)
    }

    #[test]
    fn what_was_put_is_there_for_other_processes_too() {
        let folder = tempfile::tempdir().unwrap();
        let (id, bytes) = pack(1, 1000);
        let packs = LocalPacks::new(folder.path().join("packs"));
        assert_eq!(packs.get(&id, 0..10), None);
        packs.put(&id, &bytes);
        let other = LocalPacks::new(folder.path().join("packs"));
        for packs in [&packs, &other] {
            assert!(packs.has(&id) && !packs.has(&pack(2, 10).0));
            assert_eq!(packs.get(&id, 100..300).unwrap(), bytes[100..300]);
        }
        assert_eq!(packs.get(&id, 900..1100), None, "past its end there is nothing");
        fs::remove_dir_all(folder.path().join("packs")).unwrap();
        assert_eq!(LocalPacks::new(folder.path().join("packs")).get(&id, 0..10), None, "any of it may vanish");
    }

    #[test]
    fn a_damaged_file_is_not_used_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (id, bytes) = pack(1, 1000);
        let path = folder.path().join(id.hex());
        let mut flipped = bytes.clone();
        flipped[999] ^= 1;
        for damaged in [&flipped[..], &bytes[..999], &[]] {
            LocalPacks::new(folder.path().to_owned()).put(&id, &bytes);
            fs::write(&path, damaged).unwrap();
            assert_eq!(LocalPacks::new(folder.path().to_owned()).get(&id, 0..10), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_oldest_go_first_and_a_run_writes_no_more_than_there_is_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let packs = || LocalPacks::with_bytes_max(folder.path().to_owned(), 2500);
        let ids: Vec<_> = (1..=3)
            .map(|number| {
                let (id, bytes) = pack(number, 1000);
                packs().put(&id, &bytes);
                // Further apart than the clock of the file system is coarse.
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number.into());
                File::options().write(true).open(folder.path().join(id.hex())).unwrap().set_modified(at).unwrap();
                id
            })
            .collect();
        let kept: Vec<_> = ids.iter().map(|id| packs().get(id, 0..1).is_some()).collect();
        assert_eq!(kept, [false, true, true]);

        let one = packs();
        let ids: Vec<_> = (4..=6)
            .map(|number| {
                let (id, bytes) = pack(number, 1000);
                one.put(&id, &bytes);
                id
            })
            .collect();
        let kept: Vec<_> = ids.iter().map(|id| one.get(id, 0..1).is_some()).collect();
        assert_eq!(kept, [true, true, false], "the third would have passed the bound of a run");
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("packs"), b"a file").unwrap();
        let packs = LocalPacks::new(folder.path().join("packs"));
        let (id, bytes) = pack(1, 10);
        packs.put(&id, &bytes);
        assert_eq!(packs.get(&id, 0..10), None);
    }
}
