//! What a user asks for, each as options -> plan -> execute -> report. Nothing here prints or reads the environment.

pub mod restore;
pub mod snapshot;
