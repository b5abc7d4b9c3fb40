//! The way to a server, up to the first query.

use std::io::{self, Read, Write};
use std::time::Instant;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::error::{QueryError, ServerError, refused, server_error};
use super::wire::BUFFER_BYTES;
use super::{Client, Halt};
use crate::progress::Cancelled;
use crate::source::postgres::error::{PostgresError, is_cancelled};
use crate::source::postgres::settings::{Settings, SslMode};
use crate::source::postgres::stream::{Stream, untrusted, waits};

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
            QueryError::Io(e) if is_cancelled(&e) => PostgresError::Cancelled(Cancelled),
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
}

pub(super) fn open(settings: &Settings, mode: SslMode, deadline: Instant) -> Result<Stream, QueryError> {
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
