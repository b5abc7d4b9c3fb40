//! Finds what of a blob stands in its bases, or before in itself: the sequences of its zstd frame.
//!
//! zstd's own search looks at every byte of the bases before it begins. Here one place in 32 of them is remembered; as long as
//! the stream goes on as its earlier version does, both are compared, not searched; and what changed is looked up byte by
//! byte. Where each row changed, the rest of the row is found on the diagonal (Myers 1986: the places of both versions that are
//! equally far apart) that the row before led to.

mod search;
mod table;

use self::search::{LOOKED_AT, Search};
use self::table::{Table, hash_16};

/// One place in so many of the bases is remembered for long matches.
const SAMPLED_EVERY: usize = 32;

/// New bytes, and then bytes that stood before: a sequence of RFC 8878, section 3.1.1.3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// How many bytes are new. May be none.
    pub literals: usize,
    /// So many bytes before stands what follows them.
    pub offset: usize,
    /// How many bytes stood there, [`MATCH_BYTES_MIN`] or more.
    pub matched: usize,
}

/// The shortest match.
pub const MATCH_BYTES_MIN: usize = 4;

/// The tables of a search, for one blob after another.
pub struct Finder {
    /// One place in [`SAMPLED_EVERY`] of the bases, by sixteen bytes.
    samples: Table<16>,
    /// What was looked at of the text, and what the bases go on with behind a match.
    by_six: Table<15>,
    /// What was looked at of the text.
    by_ten: Table<15>,
}

impl Finder {
    pub fn new() -> Self {
        Self { samples: Table::new(), by_six: Table::new(), by_ten: Table::new() }
    }

    /// Hands on the sequences of `text` in order. The bytes behind the last one are new. `text` follows `bases` for the offsets.
    ///
    /// There are bases, and both have at most [`table::PLACE_MAX`] bytes together.
    pub fn find(&mut self, bases: &[u8], text: &[u8], mut hand_on: impl FnMut(Sequence)) {
        assert!(!bases.is_empty() && bases.len() + text.len() <= table::PLACE_MAX, "places fit the tables");
        self.samples.clear();
        self.by_six.clear();
        self.by_ten.clear();
        self.sample(bases);
        Search::new(self, bases, text).run(&mut hand_on);
    }

    /// Remembers one place in [`SAMPLED_EVERY`] of the bases. Where between two multiples of that varies, so that rows of such a
    /// length are not always sampled in what all of them have.
    fn sample(&mut self, bases: &[u8]) {
        let last = bases.len().saturating_sub(LOOKED_AT + SAMPLED_EVERY);
        for (number, place) in (0..last).step_by(SAMPLED_EVERY).enumerate() {
            let place = place + (number as u32).wrapping_mul(0x9E37_79B1) as usize / (1 << 16) % SAMPLED_EVERY;
            self.samples.put(hash_16(&bases[place..]), place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequences of `text`, which are seen to make it again out of `bases` and their literals.
    fn sequences(bases: &[u8], text: &[u8]) -> Vec<Sequence> {
        let (mut finder, mut found) = (Finder::new(), Vec::new());
        finder.find(bases, &[b'x'; 5000], |_| {});
        finder.find(bases, text, |sequence| found.push(sequence));
        let mut made = bases.to_vec();
        for Sequence { literals, offset, matched } in &found {
            assert!(*matched >= MATCH_BYTES_MIN);
            let at = made.len() - bases.len();
            made.extend_from_slice(&text[at..at + literals]);
            (0..*matched).for_each(|_| made.push(made[made.len() - offset]));
        }
        let at = made.len() - bases.len();
        made.extend_from_slice(&text[at..]);
        assert!(made[bases.len()..] == *text, "sequences make what they were found in");
        found
    }

    /// How many bytes no match stands for.
    fn literals(text: &[u8], sequences: &[Sequence]) -> usize {
        text.len() - sequences.iter().map(|sequence| sequence.matched).sum::<usize>()
    }

    fn digest(of: impl std::fmt::Display) -> String {
        blake3::hash(of.to_string().as_bytes()).to_hex().to_string()
    }

    fn rows(numbers: impl IntoIterator<Item = u32>, row: impl Fn(u32) -> String) -> Vec<u8> {
        numbers.into_iter().flat_map(|number| (row(number) + "\n").into_bytes()).collect()
    }

    #[test]
    fn what_stayed_is_one_match_up_to_each_change() {
        let base = rows(0..10_000, |number| format!("{number}\t{}", digest(number)));
        let mut text = base.clone();
        for at in [0, 1000, 100_000, 100_010, 300_000] {
            text[at] ^= 0x80;
        }
        text.drain(400_000..400_200);
        let found = sequences(&base, &text);
        let [offset, drained] = [base.len(), base.len() - 200];
        let offsets: Vec<_> = found.iter().map(|sequence| sequence.offset).collect();
        assert_eq!(offsets, [offset, offset, offset, offset, offset, drained]);
        assert_eq!(literals(&text, &found), 5);
    }

    #[test]
    fn what_moved_is_found_and_what_is_new_only_where_it_repeats() {
        let base = rows(0..10_000, digest);
        let mut text = rows(20_000..21_000, digest);
        text.extend_from_slice(&base[300_000..600_000]);
        text.extend_from_slice(&base[..300_000]);
        text.extend_from_slice(&text.clone()[..30_000]);
        let found = sequences(&base, &text);
        assert!(found.len() < 20_000 && found.iter().filter(|sequence| sequence.matched > 10_000).count() >= 3);
        assert!(literals(&text, &found) <= 65_000, "{}", literals(&text, &found));
    }

    #[test]
    fn rows_that_are_alike_but_for_a_number_are_matched_with_themselves() {
        // Those of one length and a number that counts: the row after one that was deleted is like itself for all but a digit.
        for width in [80, 186, 500] {
            let row = |number: u32| format!("{number}\t4\t0\t{:width$}", "");
            let base = rows(300_000..308_000, row);
            for every in [40, 200, 1000] {
                let text = rows((300_000..308_000).filter(|number| number % every != 0), row);
                let (found, deleted) = (sequences(&base, &text), 8000 / every as usize);
                assert!(found.len() < deleted * 4, "{width}: {} matches, {deleted} rows deleted", found.len());
            }
        }
    }

    #[test]
    fn rows_that_all_changed_are_matched_with_themselves() {
        type Row = fn(u32) -> String;
        fn time(n: u32, day: u32) -> String {
            let (amount, second) = (n.wrapping_mul(2_654_435_761) % 99_991, n.wrapping_mul(day) % 86_400);
            let state = ["new", "paid", "done"][amount as usize % 3];
            format!("{n}\t{amount}\t{}\t2026-11-21 {:02}:{:02}\t{state}", digest(n), second / 3600, second % 3600)
        }
        fn number(n: u32, day: u32) -> String {
            format!("{}\t{}", n * day % 90_000, digest(n))
        }
        fn alike(n: u32, day: u32) -> String {
            format!("{n:07}\t{}\t{}\tsome words that every row has", &digest(n)[..16], &digest(n * 2 + day)[..8])
        }
        let changed: [(&str, usize, usize, Row, Row); 6] = [
            ("a column is new", 1, 4, |n| format!("{n}\t{}", digest(n)), |n| format!("{n}\t{}\t\\N", digest(n))),
            ("digits are new", 1, 9, |n| alike(n, 1), |n| alike(n, 2)),
            (
                "a word is another",
                2,
                1,
                |n| format!("sent\t{n}\t{}", digest(n)),
                |n| format!("gone away\t{n}\t{}", digest(n)),
            ),
            (
                "a number is new",
                1,
                5,
                |n| format!("{n}\t{}", number(n, 7919)),
                |n| format!("{n}\t{}", number(n, 104_729)),
            ),
            ("a time of the day is new", 1, 7, |n| time(n, 2_246_822_519), |n| time(n, 3_266_489_917)),
            (
                "a count is longer",
                1,
                5,
                |n| format!("{n}\t{}", digest(n)),
                |n| format!("{n}\t{}\t{}", n * n % 12_345, digest(n)),
            ),
        ];
        for (what, per_row, new, before, after) in changed {
            for first in [0, 2000] {
                let (base, text) = (rows(0..20_000 + first, before), rows(first..20_000 + first, after));
                let found = sequences(&base, &text);
                assert!(found.len() < 21_000 * per_row, "{what}: {} matches", found.len());
                assert!(literals(&text, &found) < 20_000 * new, "{what}: {} literals", literals(&text, &found));
            }
        }
    }

    #[test]
    fn any_bytes_are_made_again() {
        let random = |seed: u64, bytes: usize, values: u8| {
            let mut random = vec![0; bytes];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut random);
            random.iter_mut().for_each(|byte| *byte %= values);
            random
        };
        for seed in 1..40 {
            for values in [1, 2, 4, 200] {
                let bytes = [0, 1, 15, 16, 17, 100, 5000, 70_000][seed as usize % 8];
                let base = random(seed, [1, 7, 40, 3000, 100_000][seed as usize % 5], values);
                let mut text = random(seed * 99, bytes, values);
                sequences(&base, &text);
                let middle = text.len() / 2;
                text.splice(middle..middle, base.iter().copied());
                sequences(&base, &text);
            }
        }
    }
}
