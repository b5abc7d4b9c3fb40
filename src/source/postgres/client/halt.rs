//! Stops clients that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::progress::Progress;

/// Tells clients that wait for a server to stop waiting.
#[derive(Clone)]
pub struct Halt {
    progress: Progress,
    failed: Arc<AtomicBool>,
}

impl Halt {
    /// Stops when the operation of `progress` is cancelled.
    pub fn new(progress: &Progress) -> Halt {
        Halt { progress: progress.clone(), failed: Arc::default() }
    }

    /// Stops all clients that share this: one of them has failed and the others need not finish.
    pub fn stop(&self) {
        self.failed.store(true, Relaxed);
    }

    /// Whether to stop.
    pub fn is_set(&self) -> bool {
        self.failed.load(Relaxed) || self.progress.is_cancelled()
    }

    /// Whether it is another client's failure, not the user, that stops this one.
    pub fn by_failure(&self) -> bool {
        self.failed.load(Relaxed) && !self.progress.is_cancelled()
    }
}
