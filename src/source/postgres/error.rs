//! What goes wrong with PostgreSQL, as far as a caller can act on it or a user can understand it.

use std::io;

use super::client::{QueryError, ServerError};
use crate::progress::Cancelled;

/// A failed snapshot, restore or connection. Names the database, table and role, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// The request itself is wrong.
    #[error("{0}")]
    Usage(String),
    #[error("cannot reach PostgreSQL at {at}; check host and port (PGHOST, PGPORT) and that the server runs")]
    Unreachable { at: String, source: io::Error },
    #[error("the certificate of PostgreSQL at {at} is refused, as sslmode is {mode}; {hint}")]
    Untrusted { at: String, mode: &'static str, hint: String, source: io::Error },
    #[error("PostgreSQL at {at} does not let role {role} into database {database}; {hint}")]
    Login { at: String, role: String, database: String, hint: String, source: Box<ServerError> },
    /// The source is reached but cannot be backed up as it is: rights, locks, versions, missing tools.
    #[error("{message}")]
    Source { message: String, source: Option<Box<ServerError>> },
    /// Reading broke off; nothing of the item it names is complete.
    #[error("dump failed: {what}")]
    Dump { what: String, source: Box<QueryError> },
    #[error("dump failed: {tool} {outcome}{}", tail(.stderr))]
    Tool { tool: String, outcome: String, stderr: String },
    /// The target cannot take the restore, or broke off while taking it.
    #[error("{message}")]
    Target { message: String, source: Option<Box<QueryError>> },
    /// What came back is not what the snapshot says.
    #[error("{0}")]
    Mismatch(String),
    /// Whoever takes or gives the items failed, not PostgreSQL.
    #[error("{what}")]
    Items { what: String, source: io::Error },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Which side an error is on; exit codes follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    Usage,
    /// The server, the way to it, or a right on it (a backup is not committed).
    Source,
    DumpFailed,
    RestoreTarget,
    /// The repository's side.
    Items,
    Cancelled,
}

impl PostgresError {
    /// Says which side the error is on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PostgresError::Usage(_) => ErrorKind::Usage,
            PostgresError::Unreachable { .. }
            | PostgresError::Untrusted { .. }
            | PostgresError::Login { .. }
            | PostgresError::Source { .. } => ErrorKind::Source,
            PostgresError::Dump { .. } | PostgresError::Tool { .. } => ErrorKind::DumpFailed,
            PostgresError::Target { .. } | PostgresError::Mismatch(_) => ErrorKind::RestoreTarget,
            PostgresError::Items { .. } => ErrorKind::Items,
            PostgresError::Cancelled(_) => ErrorKind::Cancelled,
        }
    }

    pub(super) fn source(message: impl Into<String>) -> PostgresError {
        PostgresError::Source { message: message.into(), source: None }
    }

    pub(super) fn target(message: impl Into<String>) -> PostgresError {
        PostgresError::Target { message: message.into(), source: None }
    }

    /// An error of the one who takes or gives items, unless it says that the operation was cancelled.
    pub(super) fn items(what: impl Into<String>, source: io::Error) -> PostgresError {
        if is_cancelled(&source) {
            PostgresError::Cancelled(Cancelled)
        } else {
            PostgresError::Items { what: what.into(), source }
        }
    }

    /// A query that failed while `what` was read.
    pub(super) fn dump(what: impl Into<String>, error: QueryError) -> PostgresError {
        match error {
            QueryError::Io(e) if is_cancelled(&e) => PostgresError::Cancelled(Cancelled),
            QueryError::Feed(e) => PostgresError::items(what, e),
            e => PostgresError::Dump { what: what.into(), source: Box::new(e) },
        }
    }

    /// A query that failed while `what` was restored.
    pub(super) fn restore(what: impl Into<String>, error: QueryError) -> PostgresError {
        match error {
            QueryError::Io(e) if is_cancelled(&e) => PostgresError::Cancelled(Cancelled),
            QueryError::Feed(e) => PostgresError::items(what, e),
            e => PostgresError::Target { message: what.into(), source: Some(Box::new(e)) },
        }
    }
}

/// Whether `error` carries [`Cancelled`].
pub(super) fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cancelled>())
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; its last words:\n{stderr}") }
}
