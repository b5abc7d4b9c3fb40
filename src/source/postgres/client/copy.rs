//! COPY in both directions.
//!
//! Frames that come are taken apart inside the receive buffer, with no allocation per row; those that go are large.

use std::io::{self, Write};

use postgres_protocol::message::backend::{COPY_DATA_TAG, Message};
use postgres_protocol::message::frontend;

use super::error::{QueryError, refused, server_error};
use super::{Client, command_tag};
use crate::progress::Cancelled;

/// Payload of one CopyData message that we send.
const COPY_FRAME_BYTES: usize = 128 << 10;
/// While sending COPY data, how often to look whether the server has refused it already.
const PEEK_EVERY_BYTES: usize = 4 << 20;

/// What a COPY OUT gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub rows: u64,
    pub bytes: u64,
}

impl Client {
    /// Runs `COPY ... TO STDOUT` and hands its bytes to `take`, many rows at a time.
    ///
    /// Comes back without an error only after the server has ended the copy and counted as many rows as came in.
    pub fn copy_out(&mut self, sql: &str, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<Copied, QueryError> {
        self.start_query(sql)?;
        let mut failure = None;
        loop {
            match self.message_after(&mut failure)? {
                Message::CopyOutResponse(_) => break,
                Message::ErrorResponse(body) => failure = Some(server_error(&body)?),
                Message::ReadyForQuery(_) => {
                    let missing = || QueryError::Protocol("the statement copies nothing".into());
                    return Err(failure.map_or_else(missing, |e| QueryError::Server(Box::new(e))));
                }
                _ => return Err(self.protocol("a message that has no place before a copy")),
            }
        }
        let mut copied = Copied { rows: 0, bytes: 0 };
        self.copy_data(&mut copied, take)?;
        let (mut done, mut counted) = (false, None);
        loop {
            match self.message_after(&mut failure)? {
                // After a remark between the rows.
                Message::CopyData(body) => {
                    copied.rows += 1;
                    copied.bytes += body.data().len() as u64;
                    if let Err(e) = take(body.data()) {
                        self.abandon();
                        return Err(QueryError::Feed(e));
                    }
                    self.copy_data(&mut copied, take)?;
                }
                Message::CopyDone => done = true,
                Message::CommandComplete(body) => counted = copy_count(&command_tag(&body)?),
                Message::ErrorResponse(body) => failure = Some(server_error(&body)?),
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.protocol("a message that has no place after a copy")),
            }
        }
        match failure {
            Some(e) => Err(QueryError::Server(Box::new(e))),
            None if done && counted == Some(copied.rows) => Ok(copied),
            None => Err(QueryError::Protocol(format!(
                "the copy ended after {} rows, and the server counts {counted:?}",
                copied.rows
            ))),
        }
    }

    /// Passes on CopyData messages until another message begins.
    fn copy_data(
        &mut self,
        copied: &mut Copied,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), QueryError> {
        // Payload bytes still to come of the message that is being read.
        let mut rest = 0usize;
        loop {
            // Payloads move down over the headers between them, so that one call hands on many rows.
            let (mut from, mut to) = (self.start, self.start);
            let mut other = false;
            loop {
                if rest > 0 {
                    let length = rest.min(self.end - from);
                    if from != to {
                        self.buffer.copy_within(from..from + length, to);
                    }
                    from += length;
                    to += length;
                    rest -= length;
                    if rest > 0 {
                        break;
                    }
                }
                let Some(&[tag, a, b, c, d]) = self.buffer[from..self.end].first_chunk() else { break };
                if tag != COPY_DATA_TAG {
                    other = true;
                    break;
                }
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if length < 4 {
                    return Err(self.protocol("a CopyData message shorter than its length"));
                }
                copied.rows += 1;
                rest = length - 4;
                from += 5;
            }
            if to > self.start {
                copied.bytes += (to - self.start) as u64;
                if let Err(e) = take(&self.buffer[self.start..to]) {
                    self.abandon();
                    return Err(QueryError::Feed(e));
                }
            }
            self.start = from;
            if other {
                return Ok(());
            }
            self.receive(None)?;
        }
    }

    /// Runs `COPY ... FROM STDIN`; `feed` writes the data. Returns the rows that the server counted.
    ///
    /// If `feed` fails the copy is undone and its error comes back as [`QueryError::Feed`], unless it failed because the
    /// server had refused the data: then that refusal comes back.
    pub fn copy_in(
        &mut self,
        sql: &str,
        feed: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<u64, QueryError> {
        self.start_query(sql)?;
        let (mut tag, mut failure, mut fed) = (String::new(), None, None);
        loop {
            match self.message_after(&mut failure)? {
                Message::CopyInResponse(_) if fed.is_none() => {
                    let mut writer = CopyWriter { client: self, frame: Vec::new(), unpeeked: 0 };
                    let result = feed(&mut writer).and_then(|()| writer.send_frame());
                    match &result {
                        Ok(()) => frontend::copy_done(&mut self.out),
                        Err(_) => frontend::copy_fail("the data broke off", &mut self.out).map_err(refused)?,
                    }
                    fed = Some(result);
                    if let Err(e) = self.send_by(None) {
                        return Err(self.last_words().unwrap_or(e));
                    }
                }
                Message::CommandComplete(body) => tag = command_tag(&body)?,
                Message::ErrorResponse(body) => failure = Some(server_error(&body)?),
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.protocol("a message that has no place in a copy")),
            }
        }
        match (fed, failure) {
            // 57014 is the answer to our own CopyFail.
            (Some(Err(e)), Some(refusal)) if refusal.code == "57014" || !is_refusal(&e) => Err(QueryError::Feed(e)),
            (_, Some(refusal)) => Err(QueryError::Server(Box::new(refusal))),
            (Some(Err(e)), None) => Err(QueryError::Feed(e)),
            (fed, None) => match copy_count(&tag) {
                Some(rows) if fed.is_some() => Ok(rows),
                _ => Err(QueryError::Protocol(format!("a copy that ends with {tag:?}"))),
            },
        }
    }

    /// Whether an error waits among what has been received, looking past remarks.
    fn refused_already(&mut self) -> bool {
        if self.end < self.buffer.len() && self.receive(None).is_err() {
            return true;
        }
        let mut at = self.start;
        while let Some(&[tag, a, b, c, d]) = self.buffer[at..self.end].first_chunk() {
            if tag == b'E' {
                return true;
            }
            at = at.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize + 1);
            if at > self.end {
                break;
            }
        }
        false
    }
}

/// Gathers COPY data into large frames.
struct CopyWriter<'c> {
    client: &'c mut Client,
    frame: Vec<u8>,
    unpeeked: usize,
}

impl CopyWriter<'_> {
    fn send_frame(&mut self) -> io::Result<()> {
        if self.frame.len() <= 5 {
            return Ok(());
        }
        let length = u32::try_from(self.frame.len() - 1).expect("a frame is some KiB long");
        self.frame[1..5].copy_from_slice(&length.to_be_bytes());
        if self.client.halt.is_set() {
            return Err(io::Error::other(Cancelled));
        }
        self.client.send_all(&self.frame, None)?;
        self.unpeeked += self.frame.len();
        self.frame.truncate(5);
        if self.unpeeked >= PEEK_EVERY_BYTES {
            self.unpeeked = 0;
            // During a copy the server only speaks to refuse it (or to remark something, which is read at the end).
            if self.client.stream.has_input() && self.client.refused_already() {
                return Err(io::Error::other(Refusal));
            }
        }
        Ok(())
    }
}

impl Write for CopyWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame.is_empty() {
            self.frame.reserve_exact(COPY_FRAME_BYTES + 5);
            self.frame.extend_from_slice(&[b'd', 0, 0, 0, 0]);
        }
        let room = COPY_FRAME_BYTES + 5 - self.frame.len();
        let taken = bytes.len().min(room);
        self.frame.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.send_frame()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The server refused the data while it was still being sent.
#[derive(Debug, thiserror::Error)]
#[error("the server refused the data")]
struct Refusal;

fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

fn copy_count(tag: &str) -> Option<u64> {
    tag.strip_prefix("COPY ")?.parse().ok()
}
