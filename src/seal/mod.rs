//! Compresses, encrypts and names. Pure: randomness comes in as bytes, nothing is read or written.
//!
//! Layouts: format-spec/keys.md, box.md, blob.md.

pub mod blob;
pub mod boxed;
pub mod keys;
mod matches;
mod sequences;
pub mod slot;
