//! A small synchronous PostgreSQL client: login, simple queries, COPY in both directions, cancel requests.
//!
//! Made for moving much data. Every wait looks at a [`Halt`], so an operation that is cancelled ends within a second,
//! whatever the server does.

mod copy;
mod error;
mod halt;
mod login;
mod row;
mod wire;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::backend::{CommandCompleteBody, Message};
use postgres_protocol::message::frontend;

use super::settings::{Settings, SslMode};
use super::stream::{Stream, waits};
pub use copy::Copied;
pub use error::{QueryError, ServerError};
use error::{refused, server_error};
pub use halt::Halt;
pub use row::Row;

/// A connection to one database.
pub struct Client {
    stream: Stream,
    /// Bytes received and not yet used: `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    out: BytesMut,
    settings: Settings,
    database: String,
    process_id: i32,
    secret_key: i32,
    version: u32,
    halt: Halt,
    broken: bool,
    notices: Vec<String>,
}

impl Client {
    /// The server's version as in `server_version_num`: 150014 is 15.14.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The database this is connected to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// What the server remarked since the last call; at most some.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Runs statements and returns the rows of the last one that has any.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>, QueryError> {
        self.run(sql).map(|(rows, _)| rows)
    }

    /// Runs statements and returns the tag of the last one, such as `UPDATE 3`.
    pub fn execute(&mut self, sql: &str) -> Result<String, QueryError> {
        self.run(sql).map(|(_, tag)| tag)
    }

    fn run(&mut self, sql: &str) -> Result<(Vec<Row>, String), QueryError> {
        self.start_query(sql)?;
        let (mut rows, mut tag, mut failure) = (Vec::new(), String::new(), None);
        loop {
            match self.message_after(&mut failure)? {
                Message::RowDescription(_) => rows.clear(),
                Message::DataRow(body) => rows.push(row::row(&body)?),
                Message::CommandComplete(body) => tag = command_tag(&body)?,
                Message::EmptyQueryResponse => {}
                Message::ErrorResponse(body) => failure = Some(server_error(&body)?),
                Message::CopyInResponse(_) => {
                    frontend::copy_fail("no data is given here", &mut self.out).map_err(refused)?;
                    self.send_by(None)?;
                }
                Message::CopyOutResponse(_) | Message::CopyData(_) | Message::CopyDone => {}
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.protocol("a message that has no place in a query")),
            }
        }
        failure.map_or(Ok((rows, tag)), |e| Err(QueryError::Server(Box::new(e))))
    }

    /// Asks the server, over a connection of its own, to end what this one is doing.
    pub fn cancel(&self) {
        let deadline = Instant::now() + self.settings.connect_timeout.min(Duration::from_secs(1));
        let mode = if matches!(self.stream, Stream::Tls(_)) { self.settings.ssl_mode } else { SslMode::Disable };
        // Best effort: whether it arrives or not, this connection is closed next.
        if let Ok(mut stream) = login::open(&self.settings, mode, deadline) {
            let mut message = BytesMut::new();
            frontend::cancel_request(self.process_id, self.secret_key, &mut message);
            if stream.write_all(&message).and_then(|()| stream.flush()).is_ok() {
                // The server closes once the signal is sent.
                while Instant::now() < deadline {
                    match stream.read(&mut [0]) {
                        Err(e) if waits(&e) => {}
                        _ => break,
                    }
                }
            }
        }
    }

    /// Ends what is going on; the connection is of no use afterwards.
    fn abandon(&mut self) {
        if !self.broken {
            self.broken = true;
            self.cancel();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.broken {
            self.out.clear();
            frontend::terminate(&mut self.out);
            // One write without waiting: a server that does not listen finds the socket closed.
            let _ = self.stream.write(&self.out).and_then(|_| self.stream.flush());
        }
    }
}

fn command_tag(body: &CommandCompleteBody) -> Result<String, QueryError> {
    body.tag().map(str::to_owned).map_err(refused)
}
