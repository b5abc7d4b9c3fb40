//! Messages to and from the server. Every wait looks at the halt.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::Client;
use super::error::{QueryError, ServerError, fields, server_error};
use crate::progress::Cancelled;
use crate::source::postgres::error::is_cancelled;
use crate::source::postgres::stream::waits;

/// Receive buffer. COPY data is handed on in pieces of up to this size.
pub(super) const BUFFER_BYTES: usize = 256 << 10;
/// A message other than CopyData that is longer than this is not believed.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

impl Client {
    pub(super) fn protocol(&mut self, what: &str) -> QueryError {
        self.broken = true;
        QueryError::Protocol(what.to_owned())
    }

    pub(super) fn start_query(&mut self, sql: &str) -> Result<(), QueryError> {
        if self.broken {
            return Err(QueryError::Io(io::ErrorKind::NotConnected.into()));
        }
        frontend::query(sql, &mut self.out).map_err(|e| QueryError::Protocol(format!("not a query: {e}")))?;
        self.send_by(None)
    }

    /// Writes all of `out`.
    pub(super) fn send_by(&mut self, deadline: Option<Instant>) -> Result<(), QueryError> {
        let out = std::mem::take(&mut self.out);
        self.send_all(&out, deadline).map_err(QueryError::Io)?;
        self.out = out;
        self.out.clear();
        Ok(())
    }

    pub(super) fn send_all(&mut self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let mut flushing = false;
        loop {
            let result = if flushing { self.stream.flush().map(|()| 0) } else { self.stream.write(bytes) };
            match result {
                Ok(_) if flushing => return Ok(()),
                Ok(0) if !bytes.is_empty() => return self.lost(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    flushing = bytes.is_empty();
                }
                Err(e) if waits(&e) => self.still_waiting(deadline)?,
                Err(e) => return self.lost(e),
            }
        }
    }

    /// Reads more bytes behind those in the buffer; there must be room or nothing unread.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> Result<(), QueryError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // COPY data can keep coming without a wait, so a look at the halt is due here too.
        if self.halt.is_set() {
            self.still_waiting(None).map_err(QueryError::Io)?;
        }
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return self.lost(io::ErrorKind::UnexpectedEof.into()).map_err(QueryError::Io),
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(e) if waits(&e) => self.still_waiting(deadline).map_err(QueryError::Io)?,
                Err(e) => return self.lost(e).map_err(QueryError::Io),
            }
        }
    }

    /// After a wait without result: goes on, unless halted or past the deadline.
    fn still_waiting(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        if self.halt.is_set() {
            self.abandon();
            return Err(io::Error::other(Cancelled));
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            self.broken = true;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
        }
        Ok(())
    }

    fn lost<T>(&mut self, error: io::Error) -> io::Result<T> {
        self.broken = true;
        Err(error)
    }

    /// Reads the next message. If the connection ends after an error was reported, that error is the reason.
    pub(super) fn message_after(&mut self, failure: &mut Option<ServerError>) -> Result<Message, QueryError> {
        self.message_by(None).map_err(|e| match (e, failure.take()) {
            (QueryError::Io(e), Some(reason)) if !is_cancelled(&e) => QueryError::Server(Box::new(reason)),
            (e, _) => e,
        })
    }

    /// What the server said before it closed the connection that we could no longer write to.
    pub(super) fn last_words(&mut self) -> Option<QueryError> {
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        loop {
            if let Message::ErrorResponse(body) = self.message_by(deadline).ok()? {
                return Some(QueryError::Server(Box::new(server_error(&body).ok()?)));
            }
        }
    }

    /// Reads the next message that is not a remark.
    pub(super) fn message_by(&mut self, deadline: Option<Instant>) -> Result<Message, QueryError> {
        loop {
            let total = loop {
                match self.buffer[self.start..self.end].first_chunk() {
                    None => self.receive(deadline)?,
                    Some(&[_, a, b, c, d]) => break u32::from_be_bytes([a, b, c, d]) as usize + 1,
                }
            };
            if !(5..=MESSAGE_BYTES_MAX).contains(&total) {
                return Err(self.protocol("a message of impossible length"));
            }
            while self.end - self.start < total {
                if self.buffer.len() < total {
                    self.buffer.resize(total, 0);
                }
                self.receive(deadline)?;
            }
            let mut frame = BytesMut::from(&self.buffer[self.start..self.start + total]);
            self.start += total;
            if self.start == self.end {
                // A long message made the buffer grow; give that back.
                self.buffer.truncate(BUFFER_BYTES);
                self.buffer.shrink_to(BUFFER_BYTES);
                (self.start, self.end) = (0, 0);
            }
            let parsed = Message::parse(&mut frame).ok().flatten();
            match parsed.ok_or_else(|| self.protocol("a message that does not parse"))? {
                Message::NoticeResponse(body) => {
                    if self.notices.len() < 50 {
                        let notice = fields(body.fields())?;
                        self.notices.push(format!("{}: {}", notice.severity, notice.message));
                    }
                }
                Message::ParameterStatus(_) | Message::NotificationResponse(_) => {}
                message => return Ok(message),
            }
        }
    }
}
