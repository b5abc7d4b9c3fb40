//! BLAKE3 of a stream whose segments are hashed side by side.
//!
//! The hash of a stream is a tree over it. A segment of 2^n KiB, at a multiple of its length, is a subtree, whose root needs
//! nothing but the segment and its place. The tree: BLAKE3 paper (github.com/BLAKE3-team/BLAKE3-specs), section 2.1; the stack
//! of subtrees that wait for their neighbours: section 5.1.2.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

/// The hash of a stream whose segments come in order.
pub struct StreamHash {
    segment_bytes: usize,
    segments: u64,
    /// Of each size one, the largest first, but for the last: it is merged only once more comes, as the uppermost of all
    /// merges is another.
    subtrees: Vec<ChainingValue>,
    /// The hash of the first segment, if that is all.
    alone: Option<Hash>,
}

/// The hash of a segment, or of a half of one.
pub struct SegmentHash {
    subtree: ChainingValue,
    /// Only of what a stream begins with.
    alone: Option<Hash>,
}

impl SegmentHash {
    /// `at` is where it begins in its stream.
    pub fn new(at: u64, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(at).update(bytes);
        Self { subtree: hasher.finalize_non_root(), alone: (at == 0).then(|| hasher.finalize()) }
    }

    /// Of the segment of whose halves these are.
    pub fn of_halves(first: &Self, second: &Self) -> Self {
        let (first_half, second_half) = (&first.subtree, &second.subtree);
        Self {
            subtree: merge_subtrees_non_root(first_half, second_half, Mode::Hash),
            alone: first.alone.map(|_| merge_subtrees_root(first_half, second_half, Mode::Hash)),
        }
    }
}

impl StreamHash {
    /// Segments have `segment_bytes`, a power of two of at least 1024.
    pub fn new(segment_bytes: usize) -> Self {
        Self { segment_bytes, segments: 0, subtrees: Vec::new(), alone: None }
    }

    /// Where the next segment begins in the stream.
    pub fn next_at(&self) -> u64 {
        self.segments * self.segment_bytes as u64
    }

    /// Takes in the next whole segment.
    pub fn push(&mut self, segment: SegmentHash) {
        // As many subtrees are left as the number of segments has ones in binary.
        while self.subtrees.len() > self.segments.count_ones() as usize {
            self.merge_last();
        }
        self.subtrees.push(segment.subtree);
        self.alone = segment.alone;
        self.segments += 1;
    }

    fn merge_last(&mut self) {
        if let (Some(second), Some(first)) = (self.subtrees.pop(), self.subtrees.pop()) {
            self.subtrees.push(merge_subtrees_non_root(&first, &second, Mode::Hash));
        }
    }

    /// Ends the stream with what comes after its last whole segment.
    pub fn finish(mut self, last: &[u8]) -> Hash {
        if self.segments == 0 {
            return blake3::hash(last);
        }
        if !last.is_empty() {
            self.push(SegmentHash::new(self.next_at(), last));
        }
        while self.subtrees.len() > 2 {
            self.merge_last();
        }
        match &self.subtrees[..] {
            [first, second] => merge_subtrees_root(first, second, Mode::Hash),
            _ => self.alone.expect("one segment is the first"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_in_segments(stream: &[u8], segment_bytes: usize, in_halves: bool) -> Hash {
        let mut hash = StreamHash::new(segment_bytes);
        let (segments, last) = stream.split_at(stream.len() / segment_bytes * segment_bytes);
        for segment in segments.chunks(segment_bytes) {
            let (at, (first, second)) = (hash.next_at(), segment.split_at(segment_bytes / 2));
            hash.push(if in_halves {
                let second = SegmentHash::new(at + first.len() as u64, second);
                SegmentHash::of_halves(&SegmentHash::new(at, first), &second)
            } else {
                SegmentHash::new(at, segment)
            });
        }
        hash.finish(last)
    }

    #[test]
    fn it_is_the_hash_of_the_whole() {
        let mut bytes = vec![0; 80_000];
        Hasher::new().update(b"stream").finalize_xof().fill(&mut bytes);
        for segment_bytes in [2048, 4096, 8192] {
            for length in (0..40).flat_map(|n| [n * 1024, n * 1024 + 1, n * 1999]) {
                let stream = &bytes[..length];
                for in_halves in [false, true] {
                    let hash = hash_in_segments(stream, segment_bytes, in_halves);
                    assert_eq!(hash, blake3::hash(stream), "{length} bytes in segments of {segment_bytes}");
                }
            }
        }
    }
}
