//! The command line as its users meet it: what it prints, what its exit codes are, what it refuses.
//!
//! Each test runs the built program in a home of its own.

#[path = "cli/full.rs"]
mod full;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/newer.rs"]
mod newer;
#[cfg(feature = "s3")]
#[path = "cli/rights.rs"]
mod rights;
#[cfg(feature = "s3")]
#[path = "cli/s3.rs"]
mod s3;
#[path = "cli/secrets.rs"]
mod secrets;
#[path = "cli/stop.rs"]
mod stop;
#[path = "cli/wrong.rs"]
mod wrong;
