//! Standard output of a restore.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl};

use crate::source::files::reserve;

/// Standard output without a buffer of its own: pieces are as long as blobs.
pub struct Output {
    file: File,
    is_reserved: bool,
}

impl Output {
    /// If it is a file, room for `bytes` is reserved.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let facts = file.metadata()?;
        if !facts.is_file() || bytes == 0 {
            return Ok(Self { file, is_reserved: false });
        }
        let at = match fcntl_getfl(&file)?.contains(OFlags::APPEND) {
            true => facts.len(),
            false => io::Seek::stream_position(&mut &file)?,
        };
        let is_reserved = reserve(&file, at, bytes)?;
        Ok(Self { file, is_reserved })
    }

    /// Gives back what was reserved and not written, after `done` failed.
    pub fn end<T, E>(self, done: Result<T, E>) -> Result<T, E> {
        if self.is_reserved
            && done.is_err()
            && let Ok(facts) = self.file.metadata()
        {
            // As long as it is already: only what lies behind its end goes.
            let _ = self.file.set_len(facts.len());
        }
        done
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
