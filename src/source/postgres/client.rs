//! A small synchronous PostgreSQL client: login, simple queries, COPY in both directions, cancel requests.
//!
//! Made for moving much data: COPY OUT frames are taken apart inside the receive buffer, with no allocation per row.
//! Every wait looks at a [`Halt`], so an operation that is cancelled ends within a second, whatever the server does.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{
    COPY_DATA_TAG, CommandCompleteBody, DataRowBody, ErrorFields, ErrorResponseBody, Message,
};
use postgres_protocol::message::frontend;

use super::error::PostgresError;
use super::settings::{Settings, SslMode};
use super::stream::{Stream, untrusted, waits};
use crate::progress::{Cancelled, Progress};

/// Receive buffer. COPY data is handed on in pieces of up to this size.
const BUFFER_BYTES: usize = 256 << 10;
/// Payload of one CopyData message that we send.
const COPY_FRAME_BYTES: usize = 128 << 10;
/// A message other than CopyData that is longer than this is not believed.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// While sending COPY data, how often to look whether the server has refused it already.
const PEEK_EVERY_BYTES: usize = 4 << 20;

/// Tells clients that wait for a server to stop waiting.
#[derive(Clone)]
pub struct Halt {
    progress: Progress,
    failed: Arc<AtomicBool>,
}

impl Halt {
    /// Stops when the operation of `progress` is cancelled.
    pub fn new(progress: &Progress) -> Halt {
        Halt { progress: progress.clone(), failed: Arc::default() }
    }

    /// Stops all clients that share this: one of them has failed and the others need not finish.
    pub fn stop(&self) {
        self.failed.store(true, Relaxed);
    }

    /// Whether to stop.
    pub fn is_set(&self) -> bool {
        self.failed.load(Relaxed) || self.progress.is_cancelled()
    }

    /// Whether it is another client's failure, not the user, that stops this one.
    pub fn by_failure(&self) -> bool {
        self.failed.load(Relaxed) && !self.progress.is_cancelled()
    }
}

/// An error as the server reports it.
#[derive(Debug, Clone, Default)]
pub struct ServerError {
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Where in the query text, in characters from 1.
    pub position: Option<usize>,
    pub context: Option<String>,
    pub schema: Option<String>,
    pub table: Option<String>,
    pub constraint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Why a query gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The server refused it; the connection can be used on unless it was fatal.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The connection is gone.
    #[error("connection lost")]
    Io(#[source] io::Error),
    /// The server says what the protocol has no place for here; the connection is not used on.
    #[error("unexpected answer from the server: {0}")]
    Protocol(String),
    /// Whoever takes or gives the COPY data failed.
    #[error("the data could not be passed on")]
    Feed(#[source] io::Error),
}

impl QueryError {
    /// SQLSTATE, or an empty text if it was not the server that refused.
    pub fn code(&self) -> &str {
        match self {
            QueryError::Server(e) => &e.code,
            _ => "",
        }
    }

    pub(super) fn into_server(self) -> Result<Box<ServerError>, QueryError> {
        match self {
            QueryError::Server(e) => Ok(e),
            other => Err(other),
        }
    }
}

/// One row of a result, as text.
#[derive(Debug, Clone)]
pub struct Row(Vec<Option<String>>);

impl Row {
    /// The value of a column; an empty text for NULL and for a column that is not there.
    pub fn text(&self, column: usize) -> &str {
        self.optional(column).unwrap_or("")
    }

    /// The value of a column, `None` for NULL.
    pub fn optional(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    /// A boolean column.
    pub fn is_true(&self, column: usize) -> bool {
        self.text(column) == "t"
    }

    /// A number; 0 for NULL and for what is none.
    pub fn number<T: std::str::FromStr + Default>(&self, column: usize) -> T {
        self.text(column).parse().unwrap_or_default()
    }
}

/// What a COPY OUT gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub rows: u64,
    pub bytes: u64,
}

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
    /// Connects and logs in. `database` may differ from the one that `settings` name.
    pub fn connect(settings: &Settings, database: &str, halt: &Halt) -> Result<Client, PostgresError> {
        Client::connect_with(settings, database, &[], halt)
    }

    /// The same with further startup parameters, such as `replication`.
    pub fn connect_with(
        settings: &Settings,
        database: &str,
        parameters: &[(&str, &str)],
        halt: &Halt,
    ) -> Result<Client, PostgresError> {
        let attempt = |mode| Client::attempt(settings, mode, database, parameters, halt);
        let first = attempt(settings.ssl_mode);
        let result = match first {
            // pg_hba.conf may admit only plain connections.
            Err(QueryError::Server(ref e)) if settings.ssl_mode == SslMode::Prefer && e.code == "28000" => {
                attempt(SslMode::Disable).or(first)
            }
            result => result,
        };
        result.map_err(|error| match error {
            QueryError::Server(e) => login_error(settings, database, e),
            QueryError::Io(e) if super::error::is_cancelled(&e) => PostgresError::Cancelled(Cancelled),
            QueryError::Io(e) | QueryError::Feed(e) => match untrusted(&e, settings) {
                Some(hint) => {
                    PostgresError::Untrusted { at: settings.at(), mode: settings.ssl_mode.as_str(), hint, source: e }
                }
                None => PostgresError::Unreachable { at: settings.at(), source: e },
            },
            QueryError::Protocol(text) => PostgresError::Unreachable {
                at: settings.at(),
                source: io::Error::new(io::ErrorKind::InvalidData, text),
            },
        })
    }

    fn attempt(
        settings: &Settings,
        mode: SslMode,
        database: &str,
        parameters: &[(&str, &str)],
        halt: &Halt,
    ) -> Result<Client, QueryError> {
        let deadline = Instant::now() + settings.connect_timeout;
        let stream = open(settings, mode, deadline)?;
        let mut client = Client {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            out: BytesMut::new(),
            settings: settings.clone(),
            database: database.to_owned(),
            process_id: 0,
            secret_key: 0,
            version: 0,
            halt: halt.clone(),
            broken: false,
            notices: Vec::new(),
        };
        client.log_in(parameters, deadline)?;
        Ok(client)
    }

    fn log_in(&mut self, parameters: &[(&str, &str)], deadline: Instant) -> Result<(), QueryError> {
        let (user, database) = (self.settings.user.clone(), self.database.clone());
        let mut all = vec![
            ("user", user.as_str()),
            ("database", database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", "vault"),
        ];
        all.extend_from_slice(parameters);
        frontend::startup_message(all, &mut self.out).map_err(refused)?;
        self.send_by(Some(deadline))?;
        let mut scram = None;
        loop {
            match self.message_by(Some(deadline))? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    if !self.stream.is_private() {
                        return Err(refused(
                            "the server asks for the password in the clear over an open connection; set PGSSLMODE=require, \
                             or scram-sha-256 in its pg_hba.conf",
                        ));
                    }
                    let password = self.password()?;
                    frontend::password_message(password.as_bytes(), &mut self.out).map_err(refused)?;
                    self.send_by(Some(deadline))?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), self.password()?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.out).map_err(refused)?;
                    self.send_by(Some(deadline))?;
                }
                Message::AuthenticationSasl(body) => {
                    let offered = body.mechanisms().any(|m| Ok(m == sasl::SCRAM_SHA_256)).map_err(refused)?;
                    if !offered {
                        return Err(refused("the server offers no SCRAM-SHA-256"));
                    }
                    let password = self.password()?;
                    let state = sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
                    frontend::sasl_initial_response(sasl::SCRAM_SHA_256, state.message(), &mut self.out)
                        .map_err(refused)?;
                    scram = Some(state);
                    self.send_by(Some(deadline))?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    let state = scram.as_mut().ok_or_else(|| refused("SASL out of turn"))?;
                    state.update(body.data()).map_err(refused)?;
                    frontend::sasl_response(state.message(), &mut self.out).map_err(refused)?;
                    self.send_by(Some(deadline))?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let state = scram.as_mut().ok_or_else(|| refused("SASL out of turn"))?;
                    state.finish(body.data()).map_err(refused)?;
                }
                Message::BackendKeyData(body) => {
                    self.process_id = body.process_id();
                    self.secret_key = body.secret_key();
                }
                Message::ErrorResponse(body) => return Err(QueryError::Server(Box::new(server_error(&body)?))),
                Message::ReadyForQuery(_) => break,
                Message::AuthenticationGss
                | Message::AuthenticationKerberosV5
                | Message::AuthenticationSspi
                | Message::AuthenticationScmCredential => {
                    return Err(refused(
                        "the server asks for an authentication other than SCRAM, md5, password or trust",
                    ));
                }
                _ => return Err(refused("a message that has no place in a login")),
            }
        }
        let number = self.query("SHOW server_version_num")?;
        self.version = number.first().map_or(0, |row| row.number(0));
        Ok(())
    }

    fn password(&self) -> Result<String, QueryError> {
        match &self.settings.password {
            Some(password) => Ok(password.reveal().to_owned()),
            // What libpq would say; the server never sees an attempt.
            None => Err(QueryError::Server(Box::new(ServerError {
                severity: "FATAL".into(),
                code: NO_PASSWORD.into(),
                message: "the server asks for a password and none is set".into(),
                ..ServerError::default()
            }))),
        }
    }

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
                Message::DataRow(body) => rows.push(row(&body)?),
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

    /// Asks the server, over a connection of its own, to end what this one is doing.
    pub fn cancel(&self) {
        let deadline = Instant::now() + self.settings.connect_timeout.min(Duration::from_secs(1));
        let mode = if matches!(self.stream, Stream::Tls(_)) { self.settings.ssl_mode } else { SslMode::Disable };
        // Best effort: whether it arrives or not, this connection is closed next.
        if let Ok(mut stream) = open(&self.settings, mode, deadline) {
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

    fn protocol(&mut self, what: &str) -> QueryError {
        self.broken = true;
        QueryError::Protocol(what.to_owned())
    }

    fn start_query(&mut self, sql: &str) -> Result<(), QueryError> {
        if self.broken {
            return Err(QueryError::Io(io::ErrorKind::NotConnected.into()));
        }
        frontend::query(sql, &mut self.out).map_err(|e| QueryError::Protocol(format!("not a query: {e}")))?;
        self.send_by(None)
    }

    /// Writes all of `out`.
    fn send_by(&mut self, deadline: Option<Instant>) -> Result<(), QueryError> {
        let out = std::mem::take(&mut self.out);
        self.send_all(&out, deadline).map_err(QueryError::Io)?;
        self.out = out;
        self.out.clear();
        Ok(())
    }

    fn send_all(&mut self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
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
    fn receive(&mut self, deadline: Option<Instant>) -> Result<(), QueryError> {
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
    fn message_after(&mut self, failure: &mut Option<ServerError>) -> Result<Message, QueryError> {
        self.message_by(None).map_err(|e| match (e, failure.take()) {
            (QueryError::Io(e), Some(reason)) if !super::error::is_cancelled(&e) => {
                QueryError::Server(Box::new(reason))
            }
            (e, _) => e,
        })
    }

    /// What the server said before it closed the connection that we could no longer write to.
    fn last_words(&mut self) -> Option<QueryError> {
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        loop {
            if let Message::ErrorResponse(body) = self.message_by(deadline).ok()? {
                return Some(QueryError::Server(Box::new(server_error(&body).ok()?)));
            }
        }
    }

    /// Reads the next message that is not a remark.
    fn message_by(&mut self, deadline: Option<Instant>) -> Result<Message, QueryError> {
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

impl Client {
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

/// The server refused the data while it was still being sent.
#[derive(Debug, thiserror::Error)]
#[error("the server refused the data")]
struct Refusal;

fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

fn open(settings: &Settings, mode: SslMode, deadline: Instant) -> Result<Stream, QueryError> {
    let mut stream = Stream::open(settings, deadline).map_err(QueryError::Io)?;
    if mode == SslMode::Disable || matches!(stream, Stream::Unix(_)) {
        return Ok(stream);
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).map_err(QueryError::Io)?;
    let mut answer = [0u8; 1];
    loop {
        match stream.read(&mut answer) {
            Ok(1) => break,
            Ok(_) => return Err(QueryError::Io(io::ErrorKind::UnexpectedEof.into())),
            Err(e) if waits(&e) && Instant::now() < deadline => {}
            Err(e) if waits(&e) => {
                return Err(QueryError::Io(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer")));
            }
            Err(e) => return Err(QueryError::Io(e)),
        }
    }
    match answer[0] {
        b'S' => stream.secure(settings, deadline).map_err(QueryError::Io),
        b'N' if mode == SslMode::Prefer => Ok(stream),
        b'N' => Err(QueryError::Protocol(format!("the server has no TLS, and sslmode is {}", mode.as_str()))),
        _ => Err(QueryError::Protocol("no PostgreSQL server answers there".into())),
    }
}

/// SQLSTATE invalid_password, which also stands for a password that we do not have.
const NO_PASSWORD: &str = "28P01";

fn login_error(settings: &Settings, database: &str, error: Box<ServerError>) -> PostgresError {
    let hint = match error.code.as_str() {
        "28P01" if settings.password.is_none() => {
            "set PGPASSWORD, or write the password to ~/.pgpass (mode 0600)".to_owned()
        }
        "28P01" => "check the password (PGPASSWORD, PGPASSFILE, ~/.pgpass)".to_owned(),
        "28000" => "check the role's name, and pg_hba.conf on the server".to_owned(),
        "3D000" => "list the databases with: psql -l".to_owned(),
        "42501" => format!("let it in with: GRANT CONNECT ON DATABASE {database} TO {}", settings.user),
        "53300" => "end some connections, or raise max_connections".to_owned(),
        "57P03" => "the server starts or stops just now; try again".to_owned(),
        _ => "see the server's log".to_owned(),
    };
    PostgresError::Login {
        at: settings.at(),
        role: settings.user.clone(),
        database: database.to_owned(),
        hint,
        source: error,
    }
}

fn refused(what: impl fmt::Display) -> QueryError {
    QueryError::Protocol(what.to_string())
}

fn row(body: &DataRowBody) -> Result<Row, QueryError> {
    let buffer = body.buffer();
    let mut values = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next().map_err(refused)? {
        values.push(match range {
            None => None,
            Some(range) => {
                let bytes = buffer.get(range).ok_or_else(|| refused("a row shorter than its lengths"))?;
                let text = std::str::from_utf8(bytes).map_err(|_| {
                    refused(format!("{:?} is not UTF-8; such names cannot be handled", String::from_utf8_lossy(bytes)))
                })?;
                Some(text.to_owned())
            }
        });
    }
    Ok(Row(values))
}

fn command_tag(body: &CommandCompleteBody) -> Result<String, QueryError> {
    body.tag().map(str::to_owned).map_err(refused)
}

fn copy_count(tag: &str) -> Option<u64> {
    tag.strip_prefix("COPY ")?.parse().ok()
}

fn server_error(body: &ErrorResponseBody) -> Result<ServerError, QueryError> {
    fields(body.fields())
}

fn fields(mut all: ErrorFields<'_>) -> Result<ServerError, QueryError> {
    let mut error = ServerError::default();
    while let Some(field) = all.next().map_err(refused)? {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' if error.severity.is_empty() => error.severity = text,
            b'V' => error.severity = text,
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            b'P' => error.position = text.parse().ok(),
            b'W' => error.context = Some(text),
            b's' => error.schema = Some(text),
            b't' => error.table = Some(text),
            b'n' => error.constraint = Some(text),
            _ => {}
        }
    }
    Ok(error)
}
