//! Why a query gave no result, and how the server says so.

use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, ErrorResponseBody};

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

    pub(in super::super) fn into_server(self) -> Result<Box<ServerError>, QueryError> {
        match self {
            QueryError::Server(e) => Ok(e),
            other => Err(other),
        }
    }
}

pub(super) fn refused(what: impl fmt::Display) -> QueryError {
    QueryError::Protocol(what.to_string())
}

pub(super) fn server_error(body: &ErrorResponseBody) -> Result<ServerError, QueryError> {
    fields(body.fields())
}

pub(super) fn fields(mut all: ErrorFields<'_>) -> Result<ServerError, QueryError> {
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
