//! Cuts a stream into chunks by its content. Pure.
//!
//! Parameters, table and algorithm: format-spec/chunking.md. Cut points are part of the format: the crate that finds them
//! is pinned, and golden cuts are compared in the tests.

mod halves;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

use crate::format::manifest::ChunkerParams;
use crate::limits::CHUNK_BYTES_MAX;

pub use halves::{Cut, cut_halves};

/// A geometry and a gear table.
#[derive(Clone)]
pub struct Chunker {
    params: ChunkerParams,
    masks: (u64, u64),
    gear: Box<[u64; 256]>,
    gear_shifted: Box<[u64; 256]>,
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
        Ok(Self {
            params,
            masks: select_masks(avg as usize, Normalization::Level1),
            gear: Box::new(*gear),
            gear_shifted: Box::new(gear.map(|word| word << 1)),
        })
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
        let (mask_s, mask_l) = self.masks;
        let window = &buf[..buf.len().min(max)];
        let (_, length) = cut_gear(
            window,
            self.params.min as usize,
            self.params.avg as usize,
            max,
            mask_s,
            mask_l,
            mask_s << 1,
            mask_l << 1,
            &self.gear[..],
            &self.gear_shifted[..],
        );
        Some(length)
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
    const GOLDEN: &[usize] = &[168854, 80429, 102732, 80399, 17952, 51470, 26935, 91074, 160819, 34799, 74089, 110448];
}
