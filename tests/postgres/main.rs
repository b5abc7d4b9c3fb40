//! PostgreSQL as a source and a target, against a real server.
//!
//! `VAULT_TEST_PGHOST`, `VAULT_TEST_PGPORT`, `VAULT_TEST_PGUSER`, `VAULT_TEST_PGPASSWORD` name a server whose superuser
//! that is; without them the tests are named on stdout as skipped. Items are kept in memory, so nothing else is tested;
//! in `command_line`, `order` and `progress` they go the whole way.

mod command_line;
mod connections;
mod errors;
mod every_kind;
#[allow(dead_code)]
#[path = "../cli/harness.rs"]
mod harness;
mod items;
mod options;
mod order;
mod progress;
mod server;
