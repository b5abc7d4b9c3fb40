//! zstd frames of sequences that were found elsewhere.

use std::ptr::NonNull;

use zstd::zstd_safe::zstd_sys::ZSTD_ResetDirective::ZSTD_reset_session_and_parameters;
use zstd::zstd_safe::zstd_sys::{
    ZSTD_CCtx, ZSTD_CCtx_reset, ZSTD_CCtx_setParameter, ZSTD_Sequence, ZSTD_cParameter as Parameter,
    ZSTD_compressSequences, ZSTD_createCCtx, ZSTD_freeCCtx, ZSTD_isError, ZSTD_strategy,
};

use crate::seal::matches::{MATCH_BYTES_MIN, Sequence};

/// A block of a zstd frame has at most so many bytes (RFC 8878, section 3.1.1.2.4).
const BLOCK_BYTES_MAX: usize = 128 << 10;

/// The sequences of a frame, block by block.
pub struct Blocks {
    sequences: Vec<ZSTD_Sequence>,
    /// Of the block that is open.
    left: usize,
    literals: usize,
    /// Of all blocks.
    bytes: usize,
    prefix_bytes: usize,
}

impl Blocks {
    pub fn new() -> Self {
        Self { sequences: Vec::new(), left: BLOCK_BYTES_MAX, literals: 0, bytes: 0, prefix_bytes: 0 }
    }

    /// Begins a frame whose matches reach back into a prefix of so many bytes.
    pub fn begin(&mut self, prefix_bytes: usize) {
        let mut sequences = std::mem::take(&mut self.sequences);
        sequences.clear();
        *self = Self { sequences, prefix_bytes, ..Self::new() };
    }

    /// A match that crosses the end of a block is in both. What of it is too short for a match becomes literals.
    pub fn push(&mut self, sequence: Sequence) {
        self.push_literals(sequence.literals);
        let mut rest = sequence.matched;
        assert!((1..=self.prefix_bytes + self.bytes).contains(&sequence.offset), "a match is of what stands before it");
        while rest > 0 {
            let now = rest.min(self.left);
            if now < MATCH_BYTES_MIN {
                self.push_literals(now);
            } else {
                self.add(sequence.offset, now);
                self.bytes += now;
                self.left -= now;
                self.end_full_block();
            }
            rest -= now;
        }
    }

    /// Ends the frame of a plaintext of so many bytes.
    pub fn finish(&mut self, plaintext_bytes: usize) {
        self.push_literals(plaintext_bytes.checked_sub(self.bytes).expect("sequences are of the plaintext"));
        if self.left < BLOCK_BYTES_MAX {
            self.end_block();
        }
    }

    fn push_literals(&mut self, mut count: usize) {
        self.bytes += count;
        while count > 0 {
            let now = count.min(self.left);
            self.literals += now;
            self.left -= now;
            count -= now;
            self.end_full_block();
        }
    }

    fn end_full_block(&mut self) {
        if self.left == 0 {
            self.end_block();
        }
    }

    /// zstd takes a sequence without a match for the end of a block.
    fn end_block(&mut self) {
        self.add(0, 0);
        self.left = BLOCK_BYTES_MAX;
    }

    fn add(&mut self, offset: usize, matched: usize) {
        let literals = std::mem::take(&mut self.literals);
        self.sequences.push(ZSTD_Sequence {
            offset: offset as u32,
            litLength: literals as u32,
            matchLength: matched as u32,
            rep: 0,
        });
    }
}

/// Makes frames of sequences, one after another.
///
/// The library that wraps zstd has no call for this.
pub struct SequenceDeflater(NonNull<ZSTD_CCtx>);

// SAFETY: a context belongs to no thread; zstd asks only that two do not use it at once, and all calls here are by `&mut`.
unsafe impl Send for SequenceDeflater {}

impl Drop for SequenceDeflater {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody else has it.
        unsafe { ZSTD_freeCCtx(self.0.as_ptr()) };
    }
}

impl SequenceDeflater {
    pub fn new() -> Self {
        // SAFETY: it takes nothing, and gives null where there is no memory.
        Self(NonNull::new(unsafe { ZSTD_createCCtx() }).expect("memory for a zstd context"))
    }

    /// Appends the frame of `plaintext`, made of its sequences, which are finished, to `packed`, which has room for it.
    /// Prefix and plaintext have at most 8 MiB together. Errors are zstd's codes.
    pub fn compress(&mut self, blocks: &Blocks, plaintext: &[u8], packed: &mut Vec<u8>) -> Result<(), usize> {
        assert_eq!((blocks.bytes, blocks.literals), (plaintext.len(), 0), "the sequences are those of the plaintext");
        let window_log = usize::BITS - (blocks.prefix_bytes + blocks.bytes).leading_zeros();
        let context = self.0.as_ptr();
        // SAFETY: the context is alive.
        check(unsafe { ZSTD_CCtx_reset(context, ZSTD_reset_session_and_parameters) })?;
        for (parameter, value) in [
            (Parameter::ZSTD_c_windowLog, window_log.clamp(10, 23) as i32),
            (Parameter::ZSTD_c_minMatch, MATCH_BYTES_MIN as i32),
            // Nothing is searched: the smallest tables. From this strategy on, tables of codes are weighed by what they take.
            (Parameter::ZSTD_c_hashLog, 6),
            (Parameter::ZSTD_c_chainLog, 6),
            (Parameter::ZSTD_c_strategy, ZSTD_strategy::ZSTD_lazy as i32),
            (Parameter::ZSTD_c_checksumFlag, 0),
            (STABLE_IN_BUFFER, 1),
            (STABLE_OUT_BUFFER, 1),
            (BLOCK_DELIMITERS, 1),
            (REPCODE_RESOLUTION, 1),
        ] {
            // SAFETY: the context is alive; zstd refuses values that are out of range.
            check(unsafe { ZSTD_CCtx_setParameter(context, parameter, value) })?;
        }
        let (sequences, room) = (&blocks.sequences, packed.spare_capacity_mut());
        // SAFETY: the buffers are as long as is said. zstd does not look at what the matches stand for, but at the plaintext
        // alone; `Blocks` adds up the bytes of its sequences to those of the plaintext, none of a block to more than a block
        // may have, no match to fewer than the least, and each block has its end.
        let written = check(unsafe {
            ZSTD_compressSequences(
                context,
                room.as_mut_ptr().cast(),
                room.len(),
                sequences.as_ptr(),
                sequences.len(),
                plaintext.as_ptr().cast(),
                plaintext.len(),
            )
        })?;
        // SAFETY: zstd has written so many into the room behind what there was.
        unsafe { packed.set_len(packed.len() + written) };
        Ok(())
    }
}

/// zstd needs no buffers of its own.
const STABLE_IN_BUFFER: Parameter = Parameter::ZSTD_c_experimentalParam9;
const STABLE_OUT_BUFFER: Parameter = Parameter::ZSTD_c_experimentalParam10;

/// Blocks end where the sequences say.
const BLOCK_DELIMITERS: Parameter = Parameter::ZSTD_c_experimentalParam11;

/// Offsets that are repeated are stored as such.
const REPCODE_RESOLUTION: Parameter = Parameter::ZSTD_c_experimentalParam19;

fn check(code: usize) -> Result<usize, usize> {
    // SAFETY: it looks at the number alone.
    if unsafe { ZSTD_isError(code) } == 0 { Ok(code) } else { Err(code) }
}

#[cfg(test)]
mod tests {
    use zstd::zstd_safe::{DCtx, compress_bound};

    use super::*;

    /// The frame of these sequences, inflated against the prefix.
    fn there_and_back(prefix: &[u8], plaintext: &[u8], sequences: &[Sequence]) -> Vec<u8> {
        let (mut blocks, mut packed) = (Blocks::new(), Vec::with_capacity(compress_bound(plaintext.len())));
        let mut deflater = SequenceDeflater::new();
        for _ in 0..2 {
            blocks.begin(prefix.len());
            sequences.iter().for_each(|sequence| blocks.push(*sequence));
            blocks.finish(plaintext.len());
            packed.clear();
            deflater.compress(&blocks, plaintext, &mut packed).map_err(zstd::zstd_safe::get_error_name).unwrap();
        }
        let mut inflated = Vec::with_capacity(plaintext.len());
        let mut context = DCtx::create();
        context.ref_prefix(prefix).unwrap();
        context.decompress(&mut inflated, &packed).map_err(zstd::zstd_safe::get_error_name).unwrap();
        inflated
    }

    #[test]
    fn matches_and_literals_may_end_anywhere_in_a_block() {
        let prefix: Vec<u8> = (0..400_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        for literals in [0, 1, BLOCK_BYTES_MAX - 5, BLOCK_BYTES_MAX - 3, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX, 300_000]
        {
            for matched in [4, 5, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 2, 5 * BLOCK_BYTES_MAX] {
                for last in [0, 1, 200_000] {
                    let mut plaintext = vec![b'a'; literals];
                    plaintext.extend_from_slice(&prefix[7..7 + matched]);
                    plaintext.resize(plaintext.len() + last, b'z');
                    let sequence = Sequence { literals, offset: prefix.len() - 7 + literals, matched };
                    let inflated = there_and_back(&prefix, &plaintext, &[sequence]);
                    assert!(inflated == plaintext, "{literals} literals, {matched} matched, {last} literals");
                }
            }
        }
    }

    #[test]
    fn a_plaintext_without_any_match_is_a_frame() {
        for bytes in [0, 1, 7, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1] {
            let plaintext = vec![b'a'; bytes];
            assert!(there_and_back(b"prefix", &plaintext, &[]) == plaintext, "{bytes} bytes");
        }
    }

    #[test]
    #[should_panic(expected = "stands before it")]
    fn a_match_of_what_is_not_there_is_refused() {
        let mut blocks = Blocks::new();
        blocks.begin(10);
        blocks.push(Sequence { literals: 5, offset: 16, matched: 4 });
    }
}
