//! What a user asks for, each as options -> plan -> execute -> report. Nothing here prints or reads the environment.

pub mod check;
pub mod diff;
pub mod forget;
pub mod holdings;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod retention;
pub mod snapshot;
pub mod stats;
pub mod walk;
