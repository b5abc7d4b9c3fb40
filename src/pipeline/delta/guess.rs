//! Bases by the place alone. Where hardly a cut point is where it was, as in short rows that all changed a little, nobody knows where
//! the stream is; but rows that keep their lengths stand where they stood. So what stood there is tried, as long as it helps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use crate::limits::{GUESSED_BYTES_FIRST, GUESSED_BYTES_MAX};

/// Of what nobody knows, one byte in so many is tried, whatever came of it before.
const ALWAYS_ONE_IN: i64 = 128;
/// Where it helped, so many times as much may be tried.
const EARNS: i64 = 8;

/// How much of a stream may be tried so.
#[derive(Debug)]
pub struct Guess {
    /// In bytes.
    left: AtomicI64,
    /// Once begun it goes on while something is left: a chunk here and there would have all their blobs tried.
    is_trying: AtomicBool,
}

impl Default for Guess {
    fn default() -> Self {
        Self { left: AtomicI64::new(GUESSED_BYTES_FIRST), is_trying: AtomicBool::new(false) }
    }
}

impl Guess {
    /// Whether a chunk of `bytes` may be tried, which counts.
    pub fn spend(&self, bytes: u32) -> bool {
        let bytes = i64::from(bytes);
        let left = self.left.fetch_add(bytes / ALWAYS_ONE_IN, Relaxed);
        let wanted = if self.is_trying.load(Relaxed) { bytes } else { GUESSED_BYTES_FIRST };
        let is_left = left >= wanted;
        self.is_trying.store(is_left, Relaxed);
        if is_left {
            self.left.fetch_sub(bytes, Relaxed);
        }
        is_left
    }

    /// So many bytes were compressed against what stood there, and it helped: several times as many may be tried. What is on its
    /// way to be compressed says nothing yet.
    fn earn(&self, bytes: u64) {
        let earned = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(EARNS);
        let _ =
            self.left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_add(earned).min(GUESSED_BYTES_MAX)));
    }
}

/// What of a blob is tried.
#[derive(Debug, Default)]
pub struct Guessed {
    guess: Option<Arc<Guess>>,
    bytes: u64,
}

impl Guessed {
    /// So many bytes more of the stream of `guess`.
    pub fn add(&mut self, guess: &Arc<Guess>, bytes: u32) {
        self.guess.get_or_insert_with(|| guess.clone());
        self.bytes += u64::from(bytes);
    }

    /// The blob rests on its bases.
    pub fn helped(self) {
        if let Some(guess) = self.guess {
            guess.earn(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 64 << 10;

    /// How many of `count` chunks are tried, if each that was is said to have helped or not.
    fn tried(count: usize, helps: bool) -> usize {
        let guess = Arc::<Guess>::default();
        let try_one = |_: &usize| {
            let may = guess.spend(CHUNK);
            if may && helps {
                let mut guessed = Guessed::default();
                guessed.add(&guess, CHUNK);
                guessed.helped();
            }
            may
        };
        (0..count).filter(try_one).count()
    }

    #[test]
    fn what_helps_is_tried_on_and_what_does_not_hardly() {
        assert_eq!(tried(10_000, true), 10_000);
        let first = usize::try_from(GUESSED_BYTES_FIRST).unwrap() / CHUNK as usize;
        let tried = tried(10_000, false);
        assert!((first + 60..first + 90).contains(&tried), "{tried}, {first} to begin with");
    }
}
