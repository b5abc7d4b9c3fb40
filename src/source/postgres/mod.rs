//! PostgreSQL, 13 and later: databases out of a server as items, and back into one.
//!
//! The logical way: the schema as `pg_dump` writes it, the rows as COPY gives them, all of one exported snapshot per
//! database. What the items are called and hold: format-spec/sources.md.

mod catalog;
mod client;
mod error;
mod export;
mod large_objects;
mod order;
mod quote;
mod restore;
mod schema;
mod script;
mod session;
mod settings;
mod snapshot;
mod stream;
mod tools;

pub use client::{Client, Copied, Halt, QueryError, Row, ServerError};
pub use error::{ErrorKind, PostgresError};
pub use export::{ExportOptions, export_dir, export_sql};
pub use order::SORTED_BYTES_MAX;
pub use quote::{ident, literal, qualified};
pub use restore::{DatabaseReport, RestoreOptions, RestoreReport, TableReport, restore};
pub use settings::{Dsn, Host, Password, Settings, SslMode};
pub use snapshot::{SnapshotOptions, snapshot};
pub use tools::ToolSearch;
