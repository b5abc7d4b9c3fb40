//! The store under a repository: five calls, and the contract that every store keeps.
//!
//! Implementations: [`local`] (a folder), `s3` (anything that speaks S3), [`memory`] (tests). What cuts across them
//! (recording, faults, bandwidth) is a decorator that wraps any other backend. `tests/backends.rs` holds the conformance
//! suite that each of them passes.

use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;

/// A flat store of immutable named objects.
///
/// # Contract
///
/// - **Names** are `/`-separated, made of `a-z 0-9 - _ .`, at most 128 bytes, no component empty, `.` or `..`
///   ([`check_name`]). Any other name is refused with [`BackendError::BadName`] before the store is touched.
/// - **Created once.** `put` either creates the whole object or nothing; an object under that name is never replaced:
///   the second put gets [`BackendError::AlreadyExists`], whatever its bytes, and of any number of simultaneous puts of
///   one name exactly one succeeds. A put whose answer was lost and that is retried succeeds if the stored bytes are its own.
/// - **Durable.** When `put` returns, the object survives power loss. A reader sees all of an object or none of it.
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
    /// `prefix` is empty or ends with `/`. An error from `each` ends the listing and is returned.
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

/// Why a store could not do what was asked. Each says what failed on which object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    #[error("{name}: no such object in {location}")]
    NotFound { name: String, location: String },
    #[error("{name}: already exists in {location}")]
    AlreadyExists { name: String, location: String },
    #[error("{name:?} is not a valid object name")]
    BadName { name: String },
    #[error("{name}: holds {actual_bytes} bytes, fewer than the {wanted_bytes} asked for")]
    ShortRange { name: String, actual_bytes: u64, wanted_bytes: u64 },
    /// The folder or bucket itself is missing.
    #[error("{location} does not exist")]
    NoStore { location: String },
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
