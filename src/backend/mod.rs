//! The store under a repository: five calls, and the contract that every store keeps.
//!
//! Implementations: [`local`] (a folder), `s3` (anything that speaks S3), [`memory`] (tests). What cuts across them
//! (recording, faults, bandwidth) is a decorator that wraps any other backend. `tests/backends.rs` holds the conformance
//! suite that each of them passes.

pub mod fault;
pub mod limit;
pub mod local;
pub mod location;
pub mod memory;
pub mod probe;
pub mod recording;
#[cfg(feature = "s3")]
pub mod s3;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

pub use local::Local;
pub use memory::Memory;
#[cfg(feature = "s3")]
pub use s3::{S3, S3Keys, S3Options, S3Times};

/// A flat store of immutable named objects.
///
/// # Contract
///
/// - **Names** are `/`-separated, made of `a-z 0-9 - _ .`, at most 128 bytes, no component empty, `.` or `..`
///   ([`check_name`]). Any other name is refused with [`BackendError::BadName`] before the store is touched. No name is
///   the folder of another: who has put `a/b` does not put `a`.
/// - **Small.** An object is at most [`OBJECT_BYTES_MAX`] long; a longer one is not put, and what a hostile store passes
///   off as one is [`BackendError::Damaged`] and takes no memory.
/// - **Created once.** `put` either creates the whole object or nothing; an object under that name is never replaced:
///   the second put gets [`BackendError::AlreadyExists`], whatever its bytes, and of any number of simultaneous puts of
///   one name exactly one succeeds. A put whose answer was lost and that is retried succeeds if the stored bytes are its own.
/// - **Durable.** When `put` returns, the object survives power loss, and so it does when it answers `AlreadyExists`.
///   What `delete` has removed does not come back. A reader sees all of an object or none of it. A put that failed may
///   still have created the whole object (the answer was lost).
/// - **Listed.** An object whose put has returned is in every later listing; one whose delete has returned is in none.
///   A listing that cannot be completed is an error, never a short answer: an empty list means that nothing is there.
/// - **Errors are typed.** "Missing" ([`BackendError::NotFound`]) is only ever said when the store answered so.
/// - Transient failures have been retried (with back-off) before an error is returned.
/// - All calls may come from several threads at once.
pub trait Backend: Send + Sync {
    /// Creates the object `name` holding `bytes`. Returns when it is durable.
    ///
    /// Errors: `AlreadyExists`, `NoSpace`, `Denied`, `Unreachable`, ...
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError>;

    /// Returns the object's bytes, or those of `range` (in bytes from its start).
    ///
    /// A range that reaches past the end is [`BackendError::ShortRange`], never a short answer; an empty range of an
    /// existing object is empty.
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError>;

    /// Calls `each` with every object whose name begins with `prefix`, in no particular order.
    ///
    /// `prefix` is empty or a valid name followed by `/`; anything else is `BadName`. What lies in the store and cannot
    /// be an object (its name is not valid) is left out. An error from `each` ends the listing and is returned.
    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError>;

    /// Removes the object; says whether it was there. A missing object is no error.
    fn delete(&self, name: &str) -> Result<bool, BackendError>;

    /// Says what is known about this store without asking it; no I/O.
    fn properties(&self) -> Properties;
}

/// What a store answered to a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReceipt {
    /// The store's own clock at the time of the put (S3: the `Date` of the answer; a folder: this host's clock).
    pub store_time: Timestamp,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Full name, from the root of the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When the store took it in, by the store's clock; resolution one second or finer.
    pub modified: Timestamp,
}

/// Facts about a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Where it is, for people: a path or `s3://bucket/prefix`. Never holds a secret.
    pub location: String,
    /// `local`, `s3` or `memory`.
    pub kind: &'static str,
    /// How many puts or gets are worth having under way at once.
    pub parallel_requests: usize,
}

impl Properties {
    /// Whether every request is a round trip, as of anything but a folder.
    pub fn is_far(&self) -> bool {
        self.kind != "local"
    }
}

/// Why a store could not do what was asked. Each says what failed on which object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    #[error("{name}: no such object in {location}")]
    NotFound { name: String, location: String },
    #[error("{name}: already exists in {location}")]
    AlreadyExists { name: String, location: String },
    /// What was given as a repository's URL is none, or holds a secret. Never repeats a secret.
    #[error("{detail}")]
    BadLocation { detail: String },
    #[error("{name:?} is not a valid object name")]
    BadName { name: String },
    #[error("{name}: holds {actual_bytes} bytes, fewer than the {wanted_bytes} asked for")]
    ShortRange { name: String, actual_bytes: u64, wanted_bytes: u64 },
    /// The folder or bucket itself is missing.
    #[error("{location} does not exist{hint}")]
    NoStore {
        location: String,
        /// What to do about it, beginning with a separator; or empty.
        hint: String,
    },
    #[error("{name}: {location} denies {action}: {detail}")]
    Denied { name: String, location: String, action: &'static str, detail: String },
    #[error("{location} cannot be reached: {detail}")]
    Unreachable { location: String, detail: String },
    #[error("{name}: no space left in {location}")]
    NoSpace { name: String, location: String },
    /// What arrived is not what the store says it holds.
    #[error("{name}: damaged in {location} or on the way: {detail}")]
    Damaged { name: String, location: String, detail: String },
    /// Stopped by the caller (Ctrl-C) or by a fault injected in a test.
    #[error("{action} {name}: interrupted")]
    Interrupted { name: String, action: &'static str },
    #[error("{name}: {action} failed in {location}: {detail}")]
    Other { name: String, location: String, action: &'static str, detail: String },
}

/// Longest object name in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest object in bytes: a pack.
pub const OBJECT_BYTES_MAX: usize = crate::limits::PACK_BYTES_MAX;

/// Refuses names that the contract does not allow.
pub fn check_name(name: &str) -> Result<(), BackendError> {
    let fits = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.split('/').all(|part| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
        });
    if fits { Ok(()) } else { Err(BackendError::BadName { name: name.to_owned() }) }
}

/// Refuses prefixes that the contract of [`Backend::list`] does not allow.
pub fn check_prefix(prefix: &str) -> Result<(), BackendError> {
    if prefix.is_empty() {
        return Ok(());
    }
    let bad = || BackendError::BadName { name: prefix.to_owned() };
    check_name(prefix.strip_suffix('/').ok_or_else(bad)?).map_err(|_| bad())
}

/// Cuts `range` out of the whole `bytes` of an object, as [`Backend::get`] promises.
fn slice(name: &str, location: &str, bytes: &Bytes, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
    let (start, len) = checked_range(name, location, bytes.len() as u64, range)?;
    Ok(if len == 0 { Bytes::new() } else { bytes.slice(start as usize..start as usize + len) })
}

/// Turns the range of a get into offset and length, given how long the object is.
fn checked_range(
    name: &str,
    location: &str,
    object_bytes: u64,
    range: Option<Range<u64>>,
) -> Result<(u64, usize), BackendError> {
    let (start, end) = match range {
        None => (0, object_bytes),
        Some(range) if range.is_empty() => return Ok((0, 0)),
        Some(range) => (range.start, range.end),
    };
    if end > object_bytes {
        return Err(BackendError::ShortRange { name: name.to_owned(), actual_bytes: object_bytes, wanted_bytes: end });
    }
    if end - start > OBJECT_BYTES_MAX as u64 {
        let detail = too_long(object_bytes);
        return Err(BackendError::Damaged { name: name.to_owned(), location: location.to_owned(), detail });
    }
    Ok((start, (end - start) as usize))
}

/// Refuses to put what is longer than [`OBJECT_BYTES_MAX`].
fn check_put(name: &str, location: &str, bytes: &Bytes) -> Result<(), BackendError> {
    check_name(name)?;
    if bytes.len() <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    let detail = too_long(bytes.len() as u64);
    Err(BackendError::Other { name: name.to_owned(), location: location.to_owned(), action: "put", detail })
}

fn too_long(bytes: u64) -> String {
    format!("it holds {bytes} bytes, and no object is longer than {OBJECT_BYTES_MAX}")
}

macro_rules! forward_to_inner {
    ($($pointer:ty),*) => {$(
        impl<B: Backend + ?Sized> Backend for $pointer {
            fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
                (**self).put(name, bytes)
            }
            fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
                (**self).get(name, range)
            }
            fn list(
                &self,
                prefix: &str,
                each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
            ) -> Result<(), BackendError> {
                (**self).list(prefix, each)
            }
            fn delete(&self, name: &str) -> Result<bool, BackendError> {
                (**self).delete(name)
            }
            fn properties(&self) -> Properties {
                (**self).properties()
            }
        }
    )*};
}

forward_to_inner!(&B, Box<B>, Arc<B>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_anything_that_could_leave_the_store_are_refused() {
        for name in ["config", "packs/00/00ff", "a", "a.b", "x_y-z/0", &"a".repeat(NAME_BYTES_MAX)] {
            check_name(name).unwrap_or_else(|error| panic!("{name:?} is a valid name: {error}"));
        }
        let too_long = "a".repeat(NAME_BYTES_MAX + 1);
        for name in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "A", "a b", "a\0", "a\n", "é", "a\\b",
            &too_long,
        ] {
            assert!(matches!(check_name(name), Err(BackendError::BadName { .. })), "{name:?} is not a valid name");
        }
    }

    #[test]
    fn a_prefix_is_empty_or_a_folder() {
        for prefix in ["", "packs/", "packs/00/"] {
            check_prefix(prefix).unwrap_or_else(|error| panic!("{prefix:?} is a valid prefix: {error}"));
        }
        for prefix in ["/", "packs", "packs//", "../", "packs/../", "Packs/"] {
            assert!(matches!(check_prefix(prefix), Err(BackendError::BadName { .. })), "{prefix:?} is no prefix");
        }
    }
}
