//! A decorator that bounds the bandwidth a store is used with.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Backend, BackendError, ObjectInfo, Properties, PutReceipt};
use crate::progress::Progress;

/// The longest sleep between two looks at whether the operation was cancelled.
const STEP: Duration = Duration::from_millis(50);

/// Bytes per second; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    pub up: Option<NonZeroU64>,
    pub down: Option<NonZeroU64>,
}

/// Makes puts and gets wait, so that over time no more bytes go through than [`Rates`] say.
///
/// One object goes through at full speed; the next one waits until the time of the first has passed. A wait ends with
/// [`BackendError::Interrupted`] within a moment when the operation is cancelled. Listings and deletes do not count.
pub struct Limited<B> {
    inner: B,
    up: Lane,
    down: Lane,
    progress: Progress,
}

impl<B: Backend> Limited<B> {
    /// Bounds what goes to and from `inner`; `progress` says when to stop waiting.
    pub fn new(inner: B, rates: Rates, progress: Progress) -> Self {
        Self { inner, up: Lane::new(rates.up), down: Lane::new(rates.down), progress }
    }

    fn wait(&self, lane: &Lane, bytes: u64, name: &str, action: &'static str) -> Result<(), BackendError> {
        let Some(turn) = lane.take(bytes, Instant::now()) else { return Ok(()) };
        loop {
            if self.progress.is_cancelled() {
                return Err(BackendError::Interrupted { name: name.to_owned(), action });
            }
            match turn.checked_duration_since(Instant::now()) {
                None | Some(Duration::ZERO) => return Ok(()),
                Some(left) => thread::sleep(left.min(STEP)),
            }
        }
    }
}

impl<B: Backend> Backend for Limited<B> {
    fn put(&self, name: &str, bytes: Bytes) -> Result<PutReceipt, BackendError> {
        self.wait(&self.up, bytes.len() as u64, name, "put")?;
        self.inner.put(name, bytes)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        match range {
            Some(range) => {
                self.wait(&self.down, range.end.saturating_sub(range.start), name, "get")?;
                self.inner.get(name, Some(range))
            }
            // Its length is known only afterwards; the next one pays.
            None => {
                self.wait(&self.down, 0, name, "get")?;
                let bytes = self.inner.get(name, None)?;
                self.down.take(bytes.len() as u64, Instant::now());
                Ok(bytes)
            }
        }
    }

    fn list(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(ObjectInfo) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        self.inner.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.delete(name)
    }

    fn properties(&self) -> Properties {
        self.inner.properties()
    }
}

/// One direction: a bucket of tokens that may be overdrawn by one object, kept as the time when it is level again.
struct Lane {
    rate: Option<NonZeroU64>,
    free_at: Mutex<Option<Instant>>,
}

impl Lane {
    fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, free_at: Mutex::new(None) }
    }

    /// Books `bytes` behind what is booked already and returns when they may go; `None` without a limit.
    fn take(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = free_at.map_or(now, |free_at| free_at.max(now));
        // An absurd range takes a year, not an overflow.
        let seconds = (bytes as f64 / rate.get() as f64).min(31_536_000.0);
        *free_at = Some(turn + Duration::from_secs_f64(seconds));
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_booked_one_after_the_other() {
        let lane = Lane::new(NonZeroU64::new(1000));
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        assert_eq!(lane.take(500, now), Some(now), "the first goes at once");
        assert_eq!(lane.take(2000, now), Some(after(500)));
        assert_eq!(lane.take(0, now), Some(after(2500)));
        assert_eq!(lane.take(1, after(9000)), Some(after(9000)), "time unused is not saved up");
        assert_eq!(Lane::new(None).take(u64::MAX, now), None);
        lane.take(u64::MAX, now);
        lane.take(u64::MAX, now);
    }
}
