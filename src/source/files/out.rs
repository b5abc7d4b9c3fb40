//! Bytes into a file that is being restored.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Runs of zeros are left out of sparse files in blocks of this size.
const SPARSE_BLOCK: usize = 4 << 10;

/// Reserves room for `bytes` from byte `at` on: that there is none is told at once, and writing takes less of the processor then.
/// False where the file system cannot.
pub fn reserve(file: &File, at: u64, bytes: u64) -> io::Result<bool> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, at, bytes) {
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(errno.into()),
        reserved => Ok(reserved.is_ok()),
    }
}

/// Writes `bytes` to a file that has nothing there yet, and goes over blocks of zeros.
pub fn write_sparse(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let began = file.stream_position()?;
    let (mut at, mut written) = (0, 0);
    let mut write_up_to = |at: usize, next: usize| -> io::Result<()> {
        file.write_all_at(&bytes[written..at], began + written as u64)?;
        written = next;
        Ok(())
    };
    while at < bytes.len() {
        let to_boundary = SPARSE_BLOCK - ((began + at as u64) % SPARSE_BLOCK as u64) as usize;
        let next = bytes.len().min(at + to_boundary);
        if bytes[at..next].iter().fold(0, |all, byte| all | byte) == 0 {
            write_up_to(at, next)?;
        }
        at = next;
    }
    write_up_to(at, at)?;
    file.seek(SeekFrom::Start(began + bytes.len() as u64)).map(drop)
}

/// Remembers that writing failed, so that it is not taken for a failure to read.
pub struct Checked<W> {
    pub write: W,
    pub failed: Option<io::Error>,
    pub bytes: u64,
}

impl<W: FnMut(&[u8]) -> io::Result<()>> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.write)(bytes) {
            Ok(()) => {
                self.bytes += bytes.len() as u64;
                Ok(bytes.len())
            }
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.failed.get_or_insert(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
