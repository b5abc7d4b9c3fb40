//! How far a long operation has come: counters that the work adds to and the screen reads. No I/O.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Shared by the threads of one operation and whoever shows it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Default)]
struct Inner {
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    items: AtomicU64,
    items_total: AtomicU64,
    doing: Mutex<String>,
    cancelled: AtomicBool,
}

/// The counters at one moment. A total of 0 is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressView {
    pub bytes: u64,
    pub bytes_total: u64,
    pub items: u64,
    pub items_total: u64,
    pub doing: String,
}

impl Progress {
    /// Adds processed bytes.
    pub fn add_bytes(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Relaxed);
    }

    /// Adds finished items (tables, files, packs).
    pub fn add_items(&self, items: u64) {
        self.0.items.fetch_add(items, Relaxed);
    }

    /// Raises the expected number of bytes; estimates are welcome.
    pub fn add_bytes_total(&self, bytes: u64) {
        self.0.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// Raises the expected number of items.
    pub fn add_items_total(&self, items: u64) {
        self.0.items_total.fetch_add(items, Relaxed);
    }

    /// Says what is going on, e.g. the table being read.
    pub fn doing(&self, what: &str) {
        what.clone_into(&mut self.0.doing.lock().expect("no code panics while it holds this lock"));
    }

    /// Starts a new phase: all counters at zero.
    pub fn phase(&self, what: &str) {
        for counter in [&self.0.bytes, &self.0.bytes_total, &self.0.items, &self.0.items_total] {
            counter.store(0, Relaxed);
        }
        self.doing(what);
    }

    /// Asks the operation to stop at the next chance (Ctrl-C).
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Relaxed);
    }

    /// Whether the operation should stop. Looked at between chunks of work of at most some milliseconds.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Relaxed)
    }

    /// `Err` holding [`Cancelled`] once cancelled.
    pub fn check(&self) -> std::io::Result<()> {
        if self.is_cancelled() { Err(std::io::Error::other(Cancelled)) } else { Ok(()) }
    }

    /// Reads the counters.
    pub fn view(&self) -> ProgressView {
        ProgressView {
            bytes: self.0.bytes.load(Relaxed),
            bytes_total: self.0.bytes_total.load(Relaxed),
            items: self.0.items.load(Relaxed),
            items_total: self.0.items_total.load(Relaxed),
            doing: self.0.doing.lock().expect("no code panics while it holds this lock").clone(),
        }
    }
}

/// The operation was asked to stop.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped before the end, as asked")]
pub struct Cancelled;
