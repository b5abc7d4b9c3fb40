//! Whether pieces of something new stand in what was before, and where its end does.

use memchr::memmem;

/// Pieces that are looked for all over what is new, so many bytes long, and how many must be found: of text that is as likely as
/// any other of its kind one in seven is found by accident, of rows of 60 bytes of which each has changed one in two.
const PIECES_ALL_OVER: usize = 16;
const PIECE_ALL_OVER_BYTES: usize = 24;
const FOUND_MIN: usize = 4;

/// Pieces that are looked for at its end, so many bytes long, so far from each other.
const PIECES_AT_END: usize = 24;
const PIECE_BYTES: usize = 16;
const STRIDE_BYTES: usize = 271;
/// They are looked for as far as this from where they should be, and all over only if that fails.
const NEAR_BYTES: usize = 128 << 10;
/// What is found more often says nothing about the place: it is in every row.
const PLACES_MAX: usize = 4;
/// Pieces agree whose places differ by no more, from row to row.
const AGREE_BYTES: i64 = 1 << 10;
/// So many must.
const AGREE_MIN: u32 = 4;

/// Whether `new` may be compressed against `old` with profit: for much less than it takes to do that.
pub fn has_much_of(old: &[u8], new: &[u8]) -> bool {
    let parts = new.chunks(new.len().div_ceil(PIECES_ALL_OVER).max(PIECE_ALL_OVER_BYTES));
    let pieces = parts.filter_map(|part| part.get(..PIECE_ALL_OVER_BYTES));
    pieces.filter(|piece| memmem::find(old, piece).is_some()).take(FOUND_MIN).count() == FOUND_MIN
}

/// How many bytes farther on in `old` the end of `new` stands than in `new`, by what is `expected`; `None` if too little of it is found.
pub fn find_end(new: &[u8], old: &[u8], expected: usize) -> Option<i64> {
    let end = expected.saturating_add(new.len());
    let near = end.saturating_sub(NEAR_BYTES).min(old.len())..end.saturating_add(NEAR_BYTES).min(old.len());
    let found = find_end_in(new, &old[near.clone()]).map(|drift| drift + near.start as i64);
    found.or_else(|| find_end_in(new, old))
}

fn find_end_in(new: &[u8], old: &[u8]) -> Option<i64> {
    let mut found: Vec<(i64, usize)> = Vec::new();
    for number in 0..PIECES_AT_END {
        let Some(at) = new.len().checked_sub(number * STRIDE_BYTES + PIECE_BYTES) else { break };
        let places: Vec<_> = memmem::find_iter(old, &new[at..at + PIECE_BYTES]).take(PLACES_MAX + 1).collect();
        if places.len() <= PLACES_MAX {
            found.extend(places.into_iter().map(|place| (place as i64 - at as i64, number)));
        }
    }
    found.sort_unstable();
    let (mut agree_most, mut best) = (AGREE_MIN - 1, None);
    for (first, (drift, _)) in found.iter().enumerate() {
        let agreeing = found[first..].iter().take_while(|(other, _)| other - drift <= AGREE_BYTES);
        let (count, numbers) = agreeing.fold((0, 0u32), |(count, all), (_, number)| (count + 1, all | 1 << number));
        if numbers.count_ones() > agree_most {
            (agree_most, best) = (numbers.count_ones(), Some(found[first + count / 2].0));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a table, with so many bytes more in each.
    fn rows(numbers: std::ops::Range<u32>, more: usize) -> Vec<u8> {
        let row = |number: u32| {
            let digest = blake3::hash(&number.to_le_bytes()).to_hex();
            format!("{number}\t{}\tthe same text in all rows{}\n", &digest[..24], "\tN".repeat(more))
        };
        numbers.flat_map(|number| row(number).into_bytes()).collect()
    }

    #[test]
    fn rows_that_grew_or_shrank_are_worth_it_and_other_rows_are_not() {
        let (old, grown) = (rows(0..20_000, 0), rows(8000..20_000, 1));
        assert!(has_much_of(&old, &grown) && has_much_of(&grown, &old));
        assert!(!has_much_of(&old, &rows(20_000..40_000, 0)));
        for short in [&b""[..], b"the same text in all rows", &old[..64]] {
            assert!(!has_much_of(&old, short), "too little to tell");
        }
    }

    #[test]
    fn rows_that_grew_are_found_and_others_are_not() {
        let old = rows(0..20_000, 0);
        let length = |numbers: std::ops::Range<u32>| i64::try_from(rows(numbers, 0).len()).unwrap();
        for (from, to) in [(0, 1000), (4000, 5000), (18_000, 20_000)] {
            let new = rows(from..to, 1);
            let stands = length(0..to) - i64::try_from(new.len()).unwrap();
            for expected in [0, stands.unsigned_abs() as usize, old.len(), usize::MAX] {
                let drift = find_end(&new, &old, expected).unwrap();
                assert!((stands - 100..stands + 600).contains(&drift), "{drift}, not {stands}, by {expected}");
            }
        }
        for nothing in [&rows(30_000..31_000, 0)[..], b"", &rows(0..1, 0)] {
            assert_eq!(find_end(nothing, &old, 0), None, "what is not there, or too little to tell");
        }
        // What is in every row is found everywhere.
        let text = b"a text that all rows have, whichever they are\n".repeat(2000);
        assert_eq!(find_end(&text[..50_000], &text, 20_000), None);
    }
}
