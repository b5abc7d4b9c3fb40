//! Cuts the two halves of a buffer side by side.
//!
//! Where a chunk ends depends on where it began, so the second half is cut from a place that is a guess. But cut points are
//! found by content: a few chunks after the middle both find the same one, and from there on they agree. What was cut before
//! that in the second half was in vain: some hundred KiB.

use super::Chunker;

/// The end of a chunk in the buffer, and what was made of its bytes.
pub type Cut<T> = (usize, T);

/// Cuts `buf`, which starts at a chunk boundary, as far as it can be decided, as `chunker` does from one end to the other. Calls
/// `each` with the bytes of every chunk.
pub fn cut_halves<T: Send>(
    chunker: &Chunker,
    buf: &[u8],
    at_end: bool,
    each: impl Fn(&[u8]) -> T + Sync,
) -> Vec<Cut<T>> {
    let middle = buf.len() / 2;
    let next = |start: usize| {
        let length = chunker.cut(&buf[start..], at_end)?;
        Some((start + length, each(&buf[start..start + length])))
    };
    let cut = |mut start: usize, until: usize| {
        let mut cuts = Vec::new();
        while start < until
            && let Some(cut) = next(start)
        {
            start = cut.0;
            cuts.push(cut);
        }
        cuts
    };
    let (mut cuts, guessed) = rayon::join(|| cut(0, middle), || cut(middle, buf.len()));
    let mut guessed = guessed.into_iter().peekable();
    let mut at = cuts.last().map_or(0, |(end, _)| *end);
    if at < middle {
        // Undecided before the middle.
        return cuts;
    }
    let mut guessed_at = middle;
    loop {
        while guessed_at < at
            && let Some((end, _)) = guessed.next()
        {
            guessed_at = end;
        }
        if guessed_at == at {
            cuts.extend(guessed);
            return cuts;
        }
        let Some(cut) = next(at) else { return cuts };
        at = cut.0;
        cuts.push(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::ChunkerParams;

    fn chunker() -> Chunker {
        let gear = std::array::from_fn(|byte| {
            u64::from_le_bytes(*blake3::hash(&[byte as u8]).as_bytes().first_chunk().unwrap())
        });
        Chunker::new(ChunkerParams { chunker: 1, min: 256, avg: 1024, max: 4096 }, &gear).unwrap()
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Ends of chunks, from one end to the other.
    fn one_by_one(chunker: &Chunker, buf: &[u8], at_end: bool) -> Vec<usize> {
        let (mut ends, mut at) = (Vec::new(), 0);
        while let Some(length) = chunker.cut(&buf[at..], at_end) {
            at += length;
            ends.push(at);
        }
        ends
    }

    #[test]
    fn halves_are_cut_where_the_whole_is() {
        let chunker = chunker();
        for seed in 0..300 {
            let length = usize::try_from(seed * 331 % 90_000).unwrap();
            let mut bytes = noise(seed, length);
            match seed % 4 {
                // Nothing to find a cut point in; the same again and again; half of it.
                1 => bytes.fill(7),
                2 => (3000..length).for_each(|at| bytes[at] = bytes[at - 3000]),
                3 => bytes[length / 2..].fill(0),
                _ => {}
            }
            for at_end in [false, true] {
                let cuts = cut_halves(&chunker, &bytes, at_end, <[u8]>::to_vec);
                let ends: Vec<usize> = cuts.iter().map(|(end, _)| *end).collect();
                assert_eq!(ends, one_by_one(&chunker, &bytes, at_end), "seed {seed}");
                let made: Vec<u8> = cuts.into_iter().flat_map(|(_, made)| made).collect();
                assert!(bytes.starts_with(&made) && (!at_end || made.len() == length));
            }
        }
    }
}
