//! Reading a file without filling the page cache with it: what a database has there stays.

use std::fs::File;
use std::io::{self, Read};

/// Reads a file on from where it stands. Pages that are in the page cache are used and stay; those that are read for this leave it
/// again (`RWF_DONTCACHE`, Linux 6.14 and later, on file systems that know it; elsewhere files are read as ever: to tell the
/// kernel to drop a file afterwards would drop what a database had there too).
pub(super) struct PastCache {
    file: File,
    #[cfg(target_os = "linux")]
    is_refused: bool,
}

impl PastCache {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(target_os = "linux")]
            is_refused: false,
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Read for PastCache {
    #[cfg(target_os = "linux")]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};

        const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
        /// From where the file stands.
        const ON: u64 = u64::MAX;
        if !self.is_refused {
            match preadv2(&self.file, &mut [io::IoSliceMut::new(buffer)], ON, DONTCACHE) {
                // Some file systems fail in ways of their own; what is wrong with the file itself a plain read says again.
                Err(error) if error != Errno::INTR => self.is_refused = true,
                other => return Ok(other?),
            }
        }
        self.file.read(buffer)
    }

    #[cfg(not(target_os = "linux"))]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn all_of_a_file_is_read_in_order() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut reader = PastCache::new(file(&bytes));
        let mut first = [0; 1000];
        reader.read_exact(&mut first).unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!([&first[..], &rest].concat(), bytes);
        assert_eq!(reader.read(&mut first).unwrap(), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_knows_no_such_reads_is_read_as_ever() {
        // A pipe refuses the flag.
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"some bytes").unwrap();
        drop(write);
        let mut reader = PastCache::new(File::from(std::os::fd::OwnedFd::from(read)));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"some bytes");
        assert!(reader.is_refused);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_error_is_the_one_of_a_plain_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = PastCache::new(File::open(folder.path()).unwrap());
        let error = reader.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
