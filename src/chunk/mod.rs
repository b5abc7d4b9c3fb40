//! Cuts a stream into chunks by its content. Pure.
//!
//! Parameters, table and algorithm: format-spec/chunking.md. Cut points are part of the format: the tests compare golden cuts,
//! and those of the pinned crate `fastcdc`, whose masks these are.

mod scan;
mod segments;

use fastcdc::v2020::{Normalization, select_masks};

use crate::format::manifest::ChunkerParams;
use crate::limits::CHUNK_BYTES_MAX;

use scan::Gear;
pub use segments::{Cut, Segments, cut_ahead};

/// A geometry and a gear table.
#[derive(Clone)]
pub struct Chunker {
    params: ChunkerParams,
    masks: (u64, u64),
    gear: Box<[u64; 256]>,
}

/// A geometry that this vault cannot cut by.
#[derive(Debug, thiserror::Error)]
#[error("chunk geometry {params:?} is not one this vault knows: use a newer vault")]
pub struct GeometryError {
    params: ChunkerParams,
}

impl Chunker {
    /// `gear` is the repository's table. Sizes must be even, in order, and within the limits of format-spec/chunking.md.
    pub fn new(params: ChunkerParams, gear: &[u64; 256]) -> Result<Self, GeometryError> {
        let ChunkerParams { chunker, min, avg, max } = params;
        let fits = chunker == 1
            && [min, avg, max].iter().all(|size| size % 2 == 0)
            && min >= 64
            && min < avg
            && avg < max
            && avg >= 256
            && max as usize <= CHUNK_BYTES_MAX;
        if !fits {
            return Err(GeometryError { params });
        }
        Ok(Self { params, masks: select_masks(avg as usize, Normalization::Level1), gear: Box::new(*gear) })
    }

    /// The geometry.
    pub fn params(&self) -> ChunkerParams {
        self.params
    }

    /// Returns the length in bytes of the first chunk of `buf`, or `None` if more input is needed to decide.
    ///
    /// `buf` starts at a chunk boundary. Unless `at_end`, a decision needs `max` bytes. The result is in `min..=max`,
    /// except for the last chunk of a stream, which may be shorter. An empty `buf` holds no chunk.
    ///
    /// FastCDC with two-byte rolling and normalisation level 1: Xia et al., "The Design of Fast Content-Defined
    /// Chunking", IEEE TPDS 2020. Parameters: format-spec/chunking.md.
    pub fn cut(&self, buf: &[u8], at_end: bool) -> Option<usize> {
        let max = self.params.max as usize;
        if buf.is_empty() || (buf.len() < max && !at_end) {
            return None;
        }
        let ChunkerParams { min, avg, .. } = self.params;
        let length = buf.len().min(max);
        // The hash rolls over two bytes at a time: an odd last one is in no pair.
        let pairs = length / 2 * 2;
        let (min, avg) = ((min as usize).min(pairs), (avg as usize).min(pairs));
        let (mask_s, mask_l) = self.masks;
        let mut gear = Gear::new(&self.gear);
        let found = gear.roll_to(mask_s, &buf[min..avg]).map(|at| min + at);
        let found = found.or_else(|| gear.roll_to(mask_l, &buf[avg..pairs]).map(|at| avg + at));
        Some(found.unwrap_or(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::config::standard_chunker;
    use crate::id::RepoId;
    use crate::seal::keys::{Keys, MasterKey};

    fn chunker() -> Chunker {
        let keys = Keys::derive(&MasterKey { secret: [1; 32], epoch: 0 }, RepoId([2; 16]));
        Chunker::new(standard_chunker(), keys.cdc_table()).unwrap()
    }

    /// Bytes that look random and are the same everywhere (xorshift64*).
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252u64;
        std::iter::repeat_with(|| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(2_685_821_657_736_338_717).to_le_bytes()
        })
        .take(len.div_ceil(8))
        .flatten()
        .take(len)
        .collect()
    }

    fn lengths(mut buf: &[u8]) -> Vec<usize> {
        let chunker = chunker();
        let mut out = Vec::new();
        while let Some(length) = chunker.cut(buf, true) {
            out.push(length);
            buf = &buf[length..];
        }
        out
    }

    #[test]
    fn chunks_fill_the_stream_and_stay_within_their_sizes() {
        for len in [0, 1, 100, 16_383, 16_384, 16_385, 300_001, 3_000_000] {
            let all = lengths(&noise(len));
            assert_eq!(all.iter().sum::<usize>(), len, "nothing is lost of {len}");
            for length in all.iter().rev().skip(1) {
                assert!((16_384..=262_144).contains(length), "{length} of {len}");
            }
        }
        assert_eq!(lengths(&vec![0; 600_000]), [262_144, 262_144, 75_712], "without content to cut at, max is");
    }

    #[test]
    fn an_insertion_moves_no_cut_but_its_own() {
        let old = noise(4_000_000);
        let mut new = old.clone();
        new.splice(2_000_000..2_000_000, *b"inserted");
        let from_end = |buf: &[u8]| {
            let total = buf.len();
            let mut at = 0;
            lengths(buf)
                .iter()
                .map(|length| {
                    at += length;
                    total - at
                })
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (before, after) = (from_end(&old), from_end(&new));
        let common = before.intersection(&after).filter(|&&left| left < 1_500_000).count();
        assert!(common > 10, "cuts behind the insertion are found again: {common}");
    }

    /// Golden cuts: a change here is a change of the format.
    #[test]
    fn golden_cuts_have_not_moved() {
        let got = lengths(&noise(1_000_000));
        assert_eq!(got, GOLDEN, "cut points are part of the format");
    }

    #[test]
    fn cuts_are_those_of_the_crate_in_every_geometry() {
        let mut gear = [0; 256];
        gear.iter_mut().zip(noise(2048).as_chunks().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        let shifted = gear.map(|word: u64| word << 1);
        let random = noise(400_000);
        for (number, seed) in random[..900].chunks(3).enumerate() {
            let [a, b, c] = [0, 1, 2].map(|at| 2 * u32::from(seed[at]));
            let params =
                ChunkerParams { chunker: 1, min: 64 + a, avg: 600 + 3 * a + b, max: 2000 + 4 * a + 4 * b + 9 * c };
            let chunker = Chunker::new(params, &gear).unwrap();
            let [min, avg, max] = [params.min, params.avg, params.max].map(|size| size as usize);
            let (mask_s, mask_l) = chunker.masks;
            // Streams of every length, odd ones too, and some without anything to cut at.
            let mut rest = random[number * 700..][..20_000 + number].to_vec();
            if number % 3 == 0 {
                rest[5_000..9_000].fill(0);
            }
            let mut rest = &rest[..];
            while !rest.is_empty() {
                let theirs = fastcdc::v2020::cut_gear(
                    &rest[..rest.len().min(max)],
                    min,
                    avg,
                    max,
                    mask_s,
                    mask_l,
                    mask_s << 1,
                    mask_l << 1,
                    &gear,
                    &shifted,
                );
                assert_eq!(chunker.cut(rest, true), Some(theirs.1), "{params:?}, {} bytes left", rest.len());
                rest = &rest[theirs.1..];
            }
        }
    }
    const GOLDEN: &[usize] = &[168854, 80429, 102732, 80399, 17952, 51470, 26935, 91074, 160819, 34799, 74089, 110448];
}
