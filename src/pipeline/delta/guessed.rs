//! What of a blob is tried against what stood there, and what came of it: where it helps, the stream is seen in it.

use std::ops::Range;
use std::sync::Arc;

use super::find::{find_end, has_much_of};
use super::guess::Guess;
use super::window::Known;
use crate::format::manifest::ChunkEntry;

/// One chunk in so many is looked for, the last first, until one is found.
const LOOK_STEP: usize = 6;

/// What of a blob is tried.
#[derive(Debug, Default)]
pub struct Guessed {
    guess: Option<Arc<Guess>>,
    chunks: Vec<Tried>,
}

/// Where a chunk may stand.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// So many bytes farther on.
    pub drift: i64,
    /// The first of its bases, which stands there.
    pub base: Known,
}

/// A chunk that is tried.
#[derive(Debug)]
struct Tried {
    attempt: Attempt,
    /// The byte of the stream at which it starts.
    at: u64,
    /// Where it lies in the blob.
    place: Range<usize>,
}

impl Guessed {
    /// Adds a chunk that starts at byte `at` of its stream, and lies at `place` in the blob: it is tried against the base of
    /// `attempt` and what comes after that.
    pub fn add(&mut self, (guess, attempt): (&Arc<Guess>, Attempt), at: u64, place: Range<usize>) {
        self.guess.get_or_insert_with(|| guess.clone());
        self.chunks.push(Tried { attempt, at, place });
    }

    fn bytes(&self) -> usize {
        self.chunks.iter().map(|tried| tried.place.len()).sum()
    }

    /// Whether it is worth trying: part of the blob is known to be there, or much of it is found.
    pub fn may_help(&self, blob: &[u8], base_bytes: &[u8]) -> bool {
        self.bytes() < blob.len() || has_much_of(base_bytes, blob)
    }

    /// The blob stands alone.
    pub fn failed(&self) {
        if let (Some(guess), Some(first)) = (&self.guess, self.chunks.first()) {
            guess.failed(first.at, first.attempt.drift);
        }
    }

    /// The blob rests on `bases`.
    pub fn helped(&self, blob: &[u8], bases: &[ChunkEntry], base_bytes: &[u8]) {
        let Some(guess) = &self.guess else { return };
        guess.helped(self.bytes() as u64);
        let seen = |tried: &Tried| {
            let position = bases.iter().position(|entry| *entry == tried.attempt.base.entry)?;
            let before: u64 = bases[..position].iter().map(|entry| u64::from(entry.bytes)).sum();
            let drift = find_end(&blob[tried.place.clone()], base_bytes, usize::try_from(before).ok()?)?;
            // The bases follow each other in the earlier version, so they begin there as far before that base as in the blob.
            let begins = |start: u64, before: u64| start.cast_signed() - before.cast_signed();
            let end = tried.at + tried.place.len() as u64;
            Some((end, begins(tried.attempt.base.start, before) - tried.at.cast_signed() + drift))
        };
        if let Some((at, drift)) = self.chunks.iter().rev().step_by(LOOK_STEP).find_map(seen) {
            guess.see(at, drift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    #[test]
    fn rows_that_all_grew_are_followed_by_what_is_seen_of_them() {
        let row = |number: u32| blake3::hash(&number.to_le_bytes()).to_hex()[..40].to_owned();
        let old: Vec<u8> = (0..130_000).flat_map(|number| (row(number) + "\n").into_bytes()).collect();
        let new: Vec<u8> = (0..130_000).flat_map(|number| (row(number) + "\t\\N\n").into_bytes()).collect();
        let known = |number: u8, start: usize| {
            let entry = ChunkEntry { id: ChunkId([number; 32]), bytes: 50_000 };
            Known { entry, start: start as u64 }
        };
        let guess = Arc::new(Guess::new(0));
        let chunk = 60_000;
        for blob in 0..8usize {
            // Ten chunks, tried against where the track leads, and a chunk of something else before them.
            let at = blob * 10 * chunk;
            let stands = at.saturating_add_signed(guess.drift(at as u64) as isize);
            let bases: Vec<Known> =
                (0..13).map(|number| known(number, stands + usize::from(number) * 50_000)).collect();
            let base_bytes = [vec![b'x'; 50_000], old[stands..stands + 13 * 50_000].to_vec()].concat();
            let entries: Vec<ChunkEntry> = [known(99, 0)].iter().chain(&bases).map(|known| known.entry).collect();
            let plaintext = [b"before".to_vec(), new[at..at + 10 * chunk].to_vec()].concat();
            let mut guessed = Guessed::default();
            for (number, base) in bases.into_iter().take(10).enumerate() {
                let start = 6 + number * chunk;
                guessed.add((&guess, Attempt { drift: 0, base }), (at + number * chunk) as u64, start..start + chunk);
            }
            assert!(guessed.may_help(&plaintext, &base_bytes));
            guessed.helped(&plaintext, &entries, &base_bytes);
            let end = at + 10 * chunk;
            let is = (end / 44 * 41) as i64 - end as i64;
            let drift = guess.drift(end as u64);
            assert!((drift - is).abs() < 1000, "{drift} after blob {blob}, not {is}");
        }
    }

    #[test]
    fn what_is_not_in_the_bases_says_nothing_about_the_place() {
        let text: Vec<u8> =
            (0..4000u32).flat_map(|number| blake3::hash(&number.to_le_bytes()).as_bytes().to_vec()).collect();
        let base = Known { entry: ChunkEntry { id: ChunkId([1; 32]), bytes: 50_000 }, start: 700 };
        let guess = Arc::new(Guess::new(0));
        let mut guessed = Guessed::default();
        guessed.add((&guess, Attempt { drift: 0, base }), 0, 0..50_000);
        assert!(!guessed.may_help(&text[..50_000], &text[60_000..110_000]));
        guessed.helped(&text[..50_000], &[base.entry], &text[60_000..110_000]);
        guessed.helped(&text[..50_000], &[], &text[..50_000]);
        assert_eq!(guess.drift(50_000), 0);
        guessed.helped(&text[..50_000], &[base.entry], &text[..50_000]);
        assert_eq!(guess.drift(50_000), 700);
        let nothing = Guessed::default();
        assert!(nothing.may_help(b"x", b""), "what is not tried is known");
        nothing.helped(b"x", &[], b"");
    }
}
