//! One stream from a pipe: standard input, or the output of a command that vault runs itself.
//!
//! A producer that dies, that exits with anything but 0, or that prints nothing fails the snapshot.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value};

use crate::limits::STREAM_BUFFER_BYTES;
use crate::progress::Progress;
use crate::source::{ItemFacts, ItemSink, SourceFacts, TakeInError, escape_component};

/// Lines of a producer's standard error that are kept for the error message.
const STDERR_LINES_KEPT: usize = 20;
/// How long a silent input is waited for before a look at whether the run was cancelled.
const CANCEL_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Why a stream was not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StdinError {
    #[error("{command} cannot be started: {source}")]
    Start { command: String, source: io::Error },
    #[error("{command} failed with {status}{stderr}")]
    Failed { command: String, status: String, stderr: String },
    #[error("{from} gave no bytes: an empty stream is not a backup")]
    Empty { from: String },
    #[error("reading {from}: {source}")]
    Read { from: String, source: io::Error },
    #[error(transparent)]
    Store(io::Error),
}

/// Takes in all of standard input as the one item `name`.
pub fn snapshot_stdin(name: &str, sink: &dyn ItemSink, progress: &Progress) -> Result<SourceFacts, StdinError> {
    let from = "standard input";
    // Not through the buffer of `io::stdin`, which would hold back bytes that are waited for.
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|source| StdinError::Read { from: from.to_owned(), source })?;
    copy(File::from(input), from, name, sink, progress, || Ok(()))
}

/// Runs `command` and takes in its standard output. Its standard error goes to ours.
pub fn snapshot_command(
    command: &[OsString],
    name: &str,
    sink: &dyn ItemSink,
    progress: &Progress,
) -> Result<SourceFacts, StdinError> {
    let shown = command[0].to_string_lossy().into_owned();
    let start_error = |source| StdinError::Start { command: shown.clone(), source };
    let mut producer = Producer(
        crate::source::command(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that all of it can be stopped.
            .process_group(0)
            .spawn()
            .map_err(start_error)?,
    );
    let output = producer.0.stdout.take().expect("it was asked for");
    // A larger pipe means fewer switches between the two; a smaller one is no error.
    let _ = rustix::pipe::fcntl_setpipe_size(&output, STREAM_BUFFER_BYTES);
    let stderr = drain(producer.0.stderr.take().expect("it was asked for"));
    let finished = |producer: &mut Producer, stderr: JoinHandle<Vec<String>>| -> Result<(), StdinError> {
        let status = producer.0.wait().map_err(|source| StdinError::Read { from: shown.clone(), source })?;
        let lines = stderr.join().unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let stderr = if lines.is_empty() { String::new() } else { format!(":\n  {}", lines.join("\n  ")) };
        Err(StdinError::Failed { command: shown.clone(), status: status_text(status), stderr })
    };
    let facts = copy(output, &shown, name, sink, progress, || finished(&mut producer, stderr))?;
    Ok(facts)
}

/// A child that does not outlive its snapshot.
struct Producer(Child);

impl Drop for Producer {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            if let Some(group) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Passes a producer's standard error on and keeps the last lines.
fn drain(stderr: impl Read + Send + 'static) -> JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut kept = VecDeque::new();
        let mut reader = io::BufReader::new(stderr);
        let mut line = Vec::new();
        // Lines without an end are cut, so that a flood of them stays bounded.
        while let Ok(1..) = io::BufRead::read_until(&mut (&mut reader).take(4096), b'\n', &mut line) {
            let _ = io::stderr().write_all(&line);
            if kept.len() == STDERR_LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
        kept.into()
    })
}

/// `ended` is asked once the input has ended; only if it agrees is the item finished.
fn copy(
    input: impl Read + AsFd + Send,
    from: &str,
    name: &str,
    sink: &dyn ItemSink,
    progress: &Progress,
    ended: impl FnOnce() -> Result<(), StdinError>,
) -> Result<SourceFacts, StdinError> {
    progress.doing(name);
    let mut stream = sink.begin(0, &escape_component(name), "stream").map_err(StdinError::Store)?;
    let mut input = Input { input, progress, head: Vec::new() };
    let bytes = stream.take_in(&mut input).map_err(|error| match error {
        TakeInError::Store(error) => StdinError::Store(error),
        TakeInError::Read(source) => match progress.check() {
            Err(cancelled) => StdinError::Store(cancelled),
            Ok(()) => StdinError::Read { from: from.to_owned(), source },
        },
    })?;
    ended()?;
    if bytes == 0 {
        return Err(StdinError::Empty { from: from.to_owned() });
    }
    stream.finish(ItemFacts::default()).map_err(StdinError::Store)?;
    progress.check().map_err(StdinError::Store)?;
    let warnings = compressed_as(&input.head).map(|(what, instead)| {
        format!("{name} is already compressed ({what}): little of it will be found again tomorrow; {instead}")
    });
    let mut consistency = Map::new();
    consistency.insert("kind".to_owned(), Value::from("stream"));
    Ok(SourceFacts { engine: Map::new(), consistency, warnings: warnings.into_iter().collect() })
}

/// An input that ends with an error when the run is cancelled, however long it says nothing.
struct Input<'p, R> {
    input: R,
    progress: &'p Progress,
    /// Its first [`HEAD_BYTES`].
    head: Vec<u8>,
}

impl<R: Read + AsFd> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.progress.check()?;
            if poll(&mut [PollFd::new(&self.input, PollFlags::IN)], Some(&CANCEL_LOOK))? > 0 {
                break;
            }
        }
        let length = self.input.read(buffer)?;
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&buffer[..length.min(room)]);
        Ok(length)
    }
}

/// Bytes of a stream's beginning that are looked at.
const HEAD_BYTES: usize = 512;

/// Says what a stream is compressed with, and what to do instead.
fn compressed_as(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let pipe = "let the producer write plain output; vault compresses after it has deduplicated";
    let known: [(&[u8], &str, &str); 7] = [
        (b"\x1f\x8b", "gzip", pipe),
        (b"\x28\xb5\x2f\xfd", "zstd", pipe),
        (b"\xfd7zXZ\0", "xz", pipe),
        (b"BZh", "bzip2", pipe),
        (b"\x04\x22\x4d\x18", "lz4", pipe),
        (b"PK\x03\x04", "zip", pipe),
        (b"PGDMP", "pg_dump -Fc", "use `pg_dump -Fc -Z0` or plain `pg_dump`, or better `vault snapshot postgres`"),
    ];
    let (_, what, instead) = known.into_iter().find(|(magic, _, _)| head.starts_with(magic))?;
    // A custom dump made with -Z0 says so in its header: after magic, version, sizes and format comes the compression.
    if what == "pg_dump -Fc" && custom_dump_is_plain(head) {
        return None;
    }
    Some((what, instead))
}

/// Header of a custom-format archive (PostgreSQL's pg_backup_archiver.c): `PGDMP`, three bytes of version, size of an int,
/// size of an offset, format, then the compression: an int in versions before 1.15, one byte of algorithm since.
fn custom_dump_is_plain(head: &[u8]) -> bool {
    match head.get(5..12) {
        Some(&[1, minor, _, _, _, _, algorithm]) if minor >= 15 => algorithm == 0,
        Some(&[1, _, _, int_bytes, _, _, _]) => {
            head.get(11..12 + usize::from(int_bytes)).is_some_and(|level| level.iter().all(|&b| b == 0))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_streams_are_told_from_plain_ones() {
        assert_eq!(compressed_as(b"\x1f\x8b\x08...").map(|found| found.0), Some("gzip"));
        assert_eq!(compressed_as(b"--\n-- PostgreSQL database dump").map(|found| found.0), None);
        // Headers as pg_dump 15 writes them: with default compression the level is -1 (sign byte 1), with -Z0 it is 0.
        let header = |level: [u8; 5]| [&b"PGDMP\x01\x0e\x00\x04\x08\x01"[..], &level].concat();
        assert_eq!(compressed_as(&header([1, 1, 0, 0, 0])).map(|found| found.0), Some("pg_dump -Fc"));
        assert_eq!(compressed_as(&header([0, 0, 0, 0, 0])), None);
    }
}
