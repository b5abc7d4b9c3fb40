//! vault: a content-addressed, deduplicating, compressing, encrypting backup store for databases.
//!
//! Arrows point one way: `cli -> ops -> pipeline, repo -> backend, source, format, seal, chunk -> id, limits, huge_pages`.
//! The bytes of a repository are described in `format-spec/`; `docs/architecture.md` is the map of this code.

pub mod backend;
pub mod chunk;
pub mod cli;
pub mod format;
mod huge_pages;
pub mod id;
pub mod limits;
pub mod ops;
pub mod pipeline;
pub mod progress;
pub mod repo;
pub mod seal;
pub mod source;
