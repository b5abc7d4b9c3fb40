//! Takes a stream in from whoever is read, several threads side by side: each reads a segment, hashes it and cuts it ahead, and
//! hands it on in its turn. So a segment stays in the cache next to one core until little of it is left to do, and no thread
//! waits at a middle that another has not reached.

use std::io::{self, Read};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::format::pack::BlobKind;
use crate::limits::SEGMENT_BYTES;
use crate::pipeline::PipelineError;
use crate::pipeline::stream::{Shared, StreamWriter};
use crate::source::TakeInError;

/// Takes in all that `input` has. Returns how many bytes that were.
pub(super) fn take_in(stream: &mut StreamWriter, input: &mut (dyn Read + Send)) -> Result<u64, TakeInError> {
    let (shared, kind) = stream.shared();
    let (mut buffer, mut bytes) = (shared.segment_buffer(), 0);
    loop {
        let length = fill(input, &mut buffer).map_err(TakeInError::Read)?;
        if length == SEGMENT_BYTES
            && let Some(at) = stream.next_at()
        {
            return Ok(bytes + SideBySide::new(&shared, kind, at, stream, input).run(buffer)?);
        }
        stream.push(&buffer[..length]).map_err(store_error)?;
        bytes += length as u64;
        if length < SEGMENT_BYTES {
            shared.give_back(buffer);
            return Ok(bytes);
        }
    }
}

fn store_error(error: PipelineError) -> TakeInError {
    TakeInError::Store(error.into())
}

/// Reads until the buffer is full or the input ends. Returns how many bytes came.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The input, which one thread reads at a time.
struct Line<'i> {
    input: &'i mut (dyn Read + Send),
    /// Segments that were read.
    segments: u64,
    has_ended: bool,
}

/// The stream, into which segments go in order.
struct Turn<'i> {
    stream: &'i mut StreamWriter,
    /// Segments that it has.
    segments: u64,
    bytes: u64,
    failed: Option<TakeInError>,
}

struct SideBySide<'i> {
    shared: &'i Arc<Shared>,
    kind: BlobKind,
    /// Where the first segment begins in the stream.
    at: u64,
    line: Mutex<Line<'i>>,
    turn: Mutex<Turn<'i>>,
    is_next: Condvar,
}

impl<'i> SideBySide<'i> {
    fn new(
        shared: &'i Arc<Shared>,
        kind: BlobKind,
        at: u64,
        stream: &'i mut StreamWriter,
        input: &'i mut (dyn Read + Send),
    ) -> Self {
        let line = Mutex::new(Line { input, segments: 1, has_ended: false });
        let turn = Mutex::new(Turn { stream, segments: 0, bytes: 0, failed: None });
        Self { shared, kind, at, line, turn, is_next: Condvar::new() }
    }

    /// `first` is the first segment, already read.
    fn run(self, first: Vec<u8>) -> Result<u64, TakeInError> {
        let helpers = self.shared.helpers.swap(0, Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| self.work(self.shared.segment_buffer(), None));
            }
            self.work(first, Some((0, SEGMENT_BYTES)));
        });
        self.shared.helpers.fetch_add(helpers, Relaxed);
        let turn = self.turn.into_inner().expect("no code panics while it holds this lock");
        turn.failed.map_or(Ok(turn.bytes), Err)
    }

    /// What each thread does until the input has ended. `read` is a segment that is in the buffer: its number and length.
    fn work(&self, mut buffer: Vec<u8>, mut read: Option<(u64, usize)>) {
        loop {
            let next = read.take().map_or_else(|| self.read(&mut buffer), |read| Ok(Some(read)));
            let (number, length) = match next {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => {
                    self.fail(self.lock_turn(), TakeInError::Read(error));
                    break;
                }
            };
            if !self.hand_on(number, &buffer[..length]) {
                break;
            }
        }
        self.shared.give_back(buffer);
    }

    /// Reads the next segment, of which only the last is shorter than others. None if there is no other.
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        let line = &mut *self.line.lock().expect("no code panics while it holds this lock");
        if line.has_ended {
            return Ok(None);
        }
        // Whoever fails to read is the last to have tried.
        line.has_ended = true;
        let length = fill(line.input, buffer)?;
        line.has_ended = length < SEGMENT_BYTES;
        let number = line.segments;
        line.segments += 1;
        Ok((length > 0).then_some((number, length)))
    }

    /// Returns whether all is well.
    fn hand_on(&self, number: u64, segment: &[u8]) -> bool {
        let at = self.at + number * SEGMENT_BYTES as u64;
        let ahead = (segment.len() == SEGMENT_BYTES).then(|| self.shared.look_ahead(self.kind, at, segment));
        let is_waiting = |turn: &mut Turn<'_>| turn.segments < number && turn.failed.is_none();
        let waited = self.is_next.wait_while(self.lock_turn(), is_waiting);
        let mut turn = waited.expect("no code panics while it holds this lock");
        if turn.failed.is_some() {
            return false;
        }
        let taken = match ahead {
            Some(ahead) => turn.stream.push_segment(segment, ahead),
            None => turn.stream.push(segment),
        };
        if let Err(error) = taken {
            self.fail(turn, store_error(error));
            return false;
        }
        turn.segments += 1;
        turn.bytes += segment.len() as u64;
        self.is_next.notify_all();
        true
    }

    fn lock_turn(&self) -> MutexGuard<'_, Turn<'i>> {
        self.turn.lock().expect("no code panics while it holds this lock")
    }

    fn fail(&self, mut turn: MutexGuard<'_, Turn<'i>>, error: TakeInError) {
        turn.failed.get_or_insert(error);
        self.is_next.notify_all();
    }
}
