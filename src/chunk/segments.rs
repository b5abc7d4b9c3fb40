//! Cuts a stream that comes in segments, of which several can be cut side by side.
//!
//! Where a chunk ends depends on where it began, so a segment that is cut before its turn is cut from a guess: as if a chunk
//! began where it begins. But cut points are found by content: a few chunks on both find the same one, and from there on they
//! agree. What was cut of the segment before that was in vain: some hundred KiB.

use super::Chunker;

/// The end of a chunk in its segment, and what was made of its bytes.
pub type Cut<T> = (usize, T);

/// Cuts a segment before its turn. Calls `each` with the bytes of every chunk.
pub fn cut_ahead<T>(chunker: &Chunker, segment: &[u8], each: impl Fn(&[u8]) -> T) -> Vec<Cut<T>> {
    let (mut cuts, mut at) = (Vec::new(), 0);
    while let Some(length) = chunker.cut(&segment[at..], false) {
        cuts.push((at + length, each(&segment[at..at + length])));
        at += length;
    }
    cuts
}

/// A stream whose segments are taken in one after the other.
#[derive(Default)]
pub struct Segments {
    /// The end of what was taken in, of which it cannot be decided yet where the chunk ends.
    begun: Vec<u8>,
}

impl Segments {
    /// Takes in the next segment, and what came of cutting it ahead, which may be nothing. `make` is called with the bytes of the
    /// chunks that were not cut ahead, `each` with all chunks in order, as [`Chunker::cut`] finds them from one end of the stream
    /// to the other. Returns how many bytes these have together, or the first error of `each`.
    pub fn take<T, E>(
        &mut self,
        chunker: &Chunker,
        segment: &[u8],
        ahead: Vec<Cut<T>>,
        at_end: bool,
        make: impl Fn(&[u8]) -> T,
        mut each: impl FnMut(T, &[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let before = self.begun.len();
        // No chunk that has begun before reaches further into the segment.
        let reached = segment.len().min(chunker.params().max as usize);
        if before > 0 {
            self.begun.extend_from_slice(&segment[..reached]);
        }
        let mut done = 0;
        while done < before {
            let Some(length) = chunker.cut(&self.begun[done..], at_end && reached == segment.len()) else {
                // The segment ends before the chunk does.
                self.begun.drain(..done);
                return Ok(done);
            };
            let chunk = &self.begun[done..done + length];
            each(make(chunk), chunk)?;
            done += length;
        }
        let (mut at, mut ahead, mut ahead_at) = (done - before, ahead.into_iter(), 0);
        loop {
            while ahead_at < at
                && let Some((end, _)) = ahead.next()
            {
                ahead_at = end;
            }
            let agreed = if ahead_at == at { ahead.next() } else { None };
            let next = agreed.inspect(|(end, _)| ahead_at = *end).or_else(|| {
                let end = at + chunker.cut(&segment[at..], at_end)?;
                Some((end, make(&segment[at..end])))
            });
            let Some((end, made)) = next else {
                self.begun.clear();
                self.begun.extend_from_slice(&segment[at..]);
                return Ok(before + at);
            };
            each(made, &segment[at..end])?;
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::format::manifest::ChunkerParams;

    const MAX: usize = 4096;

    fn chunker() -> Chunker {
        let gear = std::array::from_fn(|byte| {
            u64::from_le_bytes(*blake3::hash(&[byte as u8]).as_bytes().first_chunk().unwrap())
        });
        Chunker::new(ChunkerParams { chunker: 1, min: 256, avg: 1024, max: MAX as u32 }, &gear).unwrap()
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The chunks, from one end to the other.
    fn one_by_one(chunker: &Chunker, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut chunks, mut at) = (Vec::new(), 0);
        while let Some(length) = chunker.cut(&bytes[at..], true) {
            chunks.push(bytes[at..at + length].to_vec());
            at += length;
        }
        chunks
    }

    #[test]
    fn segments_are_cut_where_the_whole_is() {
        let chunker = chunker();
        for seed in 0..400 {
            let length = usize::try_from(seed * 331 % 90_000).unwrap();
            let mut bytes = noise(seed, length);
            match seed % 4 {
                // Nothing to find a cut point in; the same again and again; half of it.
                1 => bytes.fill(7),
                2 => (3000..length).for_each(|at| bytes[at] = bytes[at - 3000]),
                3 => bytes[length / 2..].fill(0),
                _ => {}
            }
            let lengths = noise(seed + 1000, 4000);
            // Segments of all lengths, some shorter than a chunk; of two out of three nothing was cut ahead.
            let mut lengths = lengths.as_chunks().0.iter().map(|&[a, b]| usize::from(a) << (b % 9));
            let (mut segments, mut rest) = (Segments::default(), &bytes[..]);
            let (mut chunks, mut taken, mut at_end) = (Vec::new(), 0, false);
            while !at_end {
                let (segment, later) = rest.split_at(lengths.next().unwrap().min(rest.len()));
                rest = later;
                at_end = rest.is_empty();
                let ahead = if seed % 3 == 0 { cut_ahead(&chunker, segment, <[u8]>::to_vec) } else { Vec::new() };
                let each = |made: Vec<u8>, chunk: &[u8]| {
                    assert_eq!(made, chunk);
                    chunks.push(made);
                    Ok::<_, Infallible>(())
                };
                let Ok(done) = segments.take(&chunker, segment, ahead, at_end, <[u8]>::to_vec, each);
                taken += done;
                assert!(segments.begun.len() < MAX, "what has begun is shorter than a chunk");
            }
            assert_eq!(chunks, one_by_one(&chunker, &bytes), "seed {seed}");
            assert_eq!(taken, length);
        }
    }

    #[test]
    fn what_was_cut_ahead_is_not_cut_again() {
        let (chunker, bytes) = (chunker(), noise(1, 300_000));
        let mut segments = Segments::default();
        let made = std::cell::Cell::new(0);
        let count = |chunk: &[u8]| made.set(made.get() + chunk.len());
        for (number, segment) in bytes.chunks(100_000).enumerate() {
            let ahead = cut_ahead(&chunker, segment, |_| ());
            assert!(ahead.last().unwrap().0 > segment.len() - MAX, "but for its end all of it");
            let Ok(_) = segments.take(&chunker, segment, ahead, number == 2, count, |(), _| Ok::<_, Infallible>(()));
        }
        assert!(made.get() < 3 * 4 * MAX, "{} bytes were cut where segments meet", made.get());
    }

    #[test]
    fn an_error_ends_it() {
        let (chunker, bytes) = (chunker(), noise(2, 50_000));
        let ahead = cut_ahead(&chunker, &bytes, |_| ());
        let mut left = 3;
        let taken = Segments::default().take(
            &chunker,
            &bytes,
            ahead,
            true,
            |_| (),
            |(), _| {
                left -= 1;
                if left == 0 { Err("enough") } else { Ok(()) }
            },
        );
        assert_eq!((taken, left), (Err("enough"), 0));
    }
}
