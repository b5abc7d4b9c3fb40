//! Bases by the place alone. Where hardly a cut point is where it was, as in short rows that all changed a little, nobody knows where
//! the stream is; but rows that keep their lengths stand where they stood, and those that all grew lead away from it evenly. So what
//! stood there is tried, as long as it helps.

use std::sync::{Mutex, MutexGuard};

use super::track::Tracks;
use crate::limits::{GUESSED_BYTES_AGAIN, GUESSED_BYTES_FIRST, GUESSED_BYTES_MAX};

/// Of what nobody knows, one byte in so many is tried, whatever came of it before.
const ALWAYS_ONE_IN: i64 = 128;
/// Where it helped, so many times as much may be tried.
const EARNS: i64 = 8;

/// How much of a stream may be tried so, and where: who cuts it asks, and those who seal its blobs tell.
#[derive(Debug)]
pub struct Guess {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In bytes.
    left: i64,
    /// Once begun it goes on while something is left: a chunk here and there would have all their blobs tried.
    is_trying: bool,
    has_helped: bool,
    tracks: Tracks,
}

impl Guess {
    /// Of a stream that begins so many bytes farther on in its earlier version.
    pub fn new(drift: i64) -> Self {
        let (left, tracks) = (GUESSED_BYTES_FIRST, Tracks::from(0, drift));
        Self { state: Mutex::new(State { left, is_trying: false, has_helped: false, tracks }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    /// Cut points say how many bytes farther on the stream is from byte `at` on.
    pub fn set_out(&self, at: u64, drift: i64) {
        self.state().tracks.set_out(at, drift);
    }

    /// How many bytes farther on byte `at` should be.
    pub fn drift(&self, at: u64) -> i64 {
        self.state().tracks.now().drift(at)
    }

    /// How many bytes farther on byte `at` should be, if the stream was seen not long ago.
    pub fn followed(&self, at: u64) -> Option<i64> {
        let state = self.state();
        let track = state.tracks.now();
        track.is_followed(at).then(|| track.drift(at))
    }

    /// Byte `at` was seen so many bytes farther on.
    pub fn see(&self, at: u64, drift: i64) {
        self.state().tracks.see(at, drift);
    }

    /// Whether a chunk of `bytes` may be tried, which counts.
    pub fn spend(&self, bytes: u32) -> bool {
        let (mut state, bytes) = (self.state(), i64::from(bytes));
        let wanted = if state.is_trying { bytes } else { GUESSED_BYTES_AGAIN };
        state.is_trying = state.left >= wanted;
        state.left += bytes / ALWAYS_ONE_IN - if state.is_trying { bytes } else { 0 };
        state.is_trying
    }

    /// So many bytes were compressed against what stood there, and it helped: several times as many may be tried. What is on its
    /// way to be compressed says nothing yet.
    pub fn helped(&self, bytes: u64) {
        let mut state = self.state();
        let earned = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(EARNS);
        state.left = state.left.saturating_add(earned).min(GUESSED_BYTES_MAX);
        state.has_helped = true;
    }

    /// What stood so many bytes farther on than byte `at` did not help: if nothing ever did, less is tried from now on.
    pub fn failed(&self, at: u64, drift: i64) {
        let mut state = self.state();
        state.tracks.fail(at, drift);
        if !state.has_helped {
            state.left = state.left.min(GUESSED_BYTES_AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 64 << 10;

    /// How many of `count` chunks are tried, if of each that was is said whether it helped, or nothing.
    fn tried(count: usize, helps: Option<bool>) -> usize {
        let guess = Guess::new(0);
        let try_one = |_: &usize| {
            let may = guess.spend(CHUNK);
            match helps {
                Some(true) if may => guess.helped(u64::from(CHUNK)),
                Some(false) if may => guess.failed(0, 0),
                _ => {}
            }
            may
        };
        (0..count).filter(try_one).count()
    }

    #[test]
    fn what_helps_is_tried_on_and_what_does_not_hardly() {
        assert_eq!(tried(10_000, Some(true)), 10_000);
        for (helps, first) in [(None, GUESSED_BYTES_FIRST), (Some(false), GUESSED_BYTES_AGAIN)] {
            let (tried, first) = (tried(10_000, helps), usize::try_from(first).unwrap() / CHUNK as usize);
            assert!((first + 60..first + 90).contains(&tried), "{tried}, {first} to begin with");
        }
    }

    #[test]
    fn one_failure_after_it_helped_does_not_end_it() {
        let guess = Guess::new(0);
        assert!(guess.spend(CHUNK));
        guess.helped(u64::from(CHUNK));
        guess.failed(0, 0);
        let first = u32::try_from(GUESSED_BYTES_FIRST).unwrap();
        assert!((0..first / CHUNK).all(|_| guess.spend(CHUNK)));
    }
}
