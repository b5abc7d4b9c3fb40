//! The command line as its users meet it: what it prints, what its exit codes are, what it refuses.
//!
//! Each test runs the built program in a home of its own.

#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/secrets.rs"]
mod secrets;
#[path = "cli/wrong.rs"]
mod wrong;
