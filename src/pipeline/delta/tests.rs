//! Histories of cut points: what is found is compared with what the chunks were made of.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::earlier::Earlier;
use crate::format::manifest::ChunkEntry;
use crate::id::ChunkId;
use crate::pipeline::PipelineError;
use crate::progress::Cancelled;

const CHUNK_BYTES_MAX: u64 = 256 << 10;
/// The name of every chunk that nobody has.
const NEW: ChunkId = ChunkId([0xff; 32]);

/// Numbers as good as random (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
pub struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A length as the chunker's: mostly 16 to 160 KiB, some at the upper bound.
    fn length(&mut self) -> u64 {
        let length = (16 << 10) + self.below(80 << 10) + self.below(64 << 10);
        if self.below(20) == 0 { CHUNK_BYTES_MAX } else { length }
    }
}

/// A chunk of the new version: its bytes, and the earlier chunks it was made of. Nothing was: it is new.
pub struct Made {
    pub bytes: u64,
    of: Vec<u64>,
    /// It is one earlier chunk, unchanged.
    is_same: bool,
}

fn id(number: u64) -> ChunkId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ChunkId(bytes)
}

pub fn entries(lengths: &[u64]) -> Vec<ChunkEntry> {
    let entry = |(number, bytes): (u64, &u64)| ChunkEntry { id: id(number), bytes: u32::try_from(*bytes).unwrap() };
    (0..).zip(lengths).map(entry).collect()
}

fn walk(earlier: &[ChunkEntry]) -> Earlier {
    walk_counted(earlier, Arc::default())
}

/// Counts the chunks of the earlier version that are passed over.
fn walk_counted(earlier: &[ChunkEntry], passed: Arc<AtomicU64>) -> Earlier {
    let earlier = earlier.to_vec();
    walk_by(move |each| {
        earlier.iter().try_for_each(|entry| {
            passed.fetch_add(1, Relaxed);
            each(*entry)
        })
    })
}

fn walk_by(
    walk: impl Fn(&mut dyn FnMut(ChunkEntry) -> Result<(), PipelineError>) -> Result<(), PipelineError>
    + Send
    + Sync
    + 'static,
) -> Earlier {
    Earlier::walked(Arc::new(walk), u32::try_from(CHUNK_BYTES_MAX).unwrap())
}

/// Changes scattered over all chunks: one cut point in `lost_one_in` is lost, and each chunk loses about one byte in
/// `shrunk_one_in`.
pub fn scattered(lengths: &[u64], numbers: &mut Numbers, lost_one_in: u64, shrunk_one_in: u64) -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    let mut is_open = false;
    for (number, bytes) in (0..).zip(lengths) {
        let shrunk = (bytes / shrunk_one_in) * numbers.below(200) / 100;
        let bytes = bytes - shrunk;
        match made.last_mut().filter(|last| is_open && last.bytes + bytes <= CHUNK_BYTES_MAX) {
            Some(last) => {
                last.bytes += bytes;
                last.of.push(number);
            }
            None => made.push(Made { bytes, of: vec![number], is_same: false }),
        }
        is_open = numbers.below(lost_one_in) == 0;
    }
    made
}

/// The share of bytes that could have all their bases and had them.
fn share_found(earlier: &[u64], made: &[Made]) -> f64 {
    let earlier = entries(earlier);
    let mut walked = walk(&earlier);
    let (mut at, mut possible, mut found) = (0, 0, 0);
    for chunk in made {
        let id = if chunk.is_same { id(chunk.of[0]) } else { NEW };
        let bases = walked.follow(&ChunkEntry { id, bytes: u32::try_from(chunk.bytes).unwrap() }, at, chunk.is_same);
        if !chunk.is_same && !chunk.of.is_empty() {
            possible += chunk.bytes;
            found += chunk.bytes * u64::from(chunk.of.iter().all(|number| bases.contains(&earlier[*number as usize])));
        }
        at += chunk.bytes;
    }
    found as f64 / possible as f64
}

/// The least share over some histories.
fn least(history: impl Fn(&mut Numbers) -> (Vec<u64>, Vec<Made>)) -> f64 {
    let share = |seed| {
        let (earlier, made) = history(&mut Numbers(seed));
        share_found(&earlier, &made)
    };
    (0..40).map(share).fold(1.0, f64::min)
}

pub fn lengths(numbers: &mut Numbers, count: usize) -> Vec<u64> {
    (0..count).map(|_| numbers.length()).collect()
}

#[test]
fn scattered_changes_leave_the_place_known() {
    let share = least(|numbers| {
        let earlier = lengths(numbers, 4000);
        let made = scattered(&earlier, numbers, 12, 400);
        (earlier, made)
    });
    assert!(share > 0.97, "{share}");
}

#[test]
fn rows_that_leave_everywhere_leave_the_place_known() {
    let share = least(|numbers| {
        let earlier = lengths(numbers, 4000);
        let made = scattered(&earlier, numbers, 12, 60);
        (earlier, made)
    });
    assert!(share > 0.9, "{share}");
}

#[test]
fn what_is_put_in_or_taken_out_is_stepped_over() {
    let share = least(|numbers| {
        let earlier = lengths(numbers, 4000);
        let mut made = scattered(&earlier, numbers, 12, 400);
        for _ in 0..6 {
            let at = usize::try_from(numbers.below(made.len() as u64 - 400)).unwrap();
            let count = usize::try_from(numbers.below(300)).unwrap();
            if numbers.below(2) == 0 {
                made.drain(at..at + count);
            } else {
                let new = |_| Made { bytes: numbers.length(), of: Vec::new(), is_same: false };
                let new: Vec<_> = (0..count).map(new).collect();
                made.splice(at..at, new);
            }
        }
        (earlier, made)
    });
    assert!(share > 0.9, "{share}");
}

/// As scattered changes, of which two in three chunks saw none.
fn changed_here_and_there(lengths: &[u64], numbers: &mut Numbers) -> Vec<Made> {
    let mut made = scattered(lengths, numbers, 40, 1 << 40);
    for chunk in made.iter_mut().filter(|chunk| chunk.of.len() == 1) {
        chunk.is_same = numbers.below(3) > 0;
    }
    made
}

#[test]
fn what_is_farther_away_than_the_window_reaches_is_found_by_what_is_stored_of_it() {
    let share = least(|numbers| {
        let earlier = lengths(numbers, 12_000);
        let mut made = changed_here_and_there(&earlier, numbers);
        let tail = made.split_off(8000);
        // Its order is another, or most of what came before it is gone.
        if numbers.below(2) == 0 {
            made.splice(0..0, tail);
        } else {
            made.truncate(2000);
            made.extend(tail);
        }
        (earlier, made)
    });
    assert!(share > 0.95, "{share}");
}

#[test]
fn what_is_farther_away_and_has_changed_everywhere_is_found_by_its_cut_points() {
    let share = least(|numbers| {
        let earlier = lengths(numbers, 12_000);
        let mut made = scattered(&earlier, numbers, 12, 400);
        let tail = made.split_off(7000);
        match numbers.below(3) {
            // Its order is another.
            0 => {
                made.splice(0..0, tail);
            }
            // Most of what came before it is gone.
            1 => {
                made.truncate(2000);
                made.extend(tail);
            }
            // As much again has come before it.
            _ => {
                let new = |_| Made { bytes: numbers.length(), of: Vec::new(), is_same: false };
                let new: Vec<_> = (0..4000).map(new).collect();
                made.extend(new);
                made.extend(tail);
            }
        }
        (earlier, made)
    });
    assert!(share > 0.9, "{share}");
}

#[test]
fn for_what_stands_nowhere_an_earlier_version_is_not_read_again_and_again() {
    // Stored, but by another item; and new.
    for (is_stored, times) in [(true, 2..16), (false, 16..80)] {
        let numbers = &mut Numbers(1);
        let earlier = entries(&lengths(numbers, 10_000));
        let all = earlier.len() as u64;
        let passed = Arc::<AtomicU64>::default();
        let mut walked = walk_counted(&earlier, passed.clone());
        let mut at = 0;
        for number in 0..40_000 {
            let bytes = u32::try_from(numbers.length()).unwrap();
            walked.follow(&ChunkEntry { id: id(1_000_000 + number), bytes }, at, is_stored);
            at += u64::from(bytes);
        }
        let passed = passed.load(Relaxed);
        assert!(
            (times.start * all..times.end * all).contains(&passed),
            "{passed} chunks of {all}, stored: {is_stored}"
        );
    }
}

#[test]
fn an_earlier_version_that_cannot_be_read_is_not_asked_for_again_and_again() {
    let numbers = &mut Numbers(1);
    let asked = Arc::<AtomicU64>::default();
    let counted = asked.clone();
    let mut walked = walk_by(move |_| {
        counted.fetch_add(1, Relaxed);
        Err(PipelineError::from(Cancelled))
    });
    for number in 0..1000 {
        let new = ChunkEntry { id: id(number), bytes: u32::try_from(numbers.length()).unwrap() };
        walked.follow(&new, number * 80_000, number % 2 == 0);
    }
    // Once beside the stream, and once where the place was lost.
    assert_eq!(asked.load(Relaxed), 2);
}

#[test]
fn a_copy_of_the_same_text_farther_on_leads_nobody_astray() {
    let share = least(|numbers| {
        let mut earlier = lengths(numbers, 3000);
        let copy: Vec<_> = earlier[500..700].to_vec();
        earlier.splice(1500..1500, copy);
        let mut made = scattered(&earlier, numbers, 12, 400);
        // What is the same in the two copies has the same name there, and is stored.
        for chunk in made.iter_mut().filter(|chunk| chunk.of.len() == 1 && (500..700).contains(&chunk.of[0])) {
            if numbers.below(2) == 0 {
                *chunk = Made { bytes: earlier[chunk.of[0] as usize], of: vec![chunk.of[0] + 1000], is_same: true };
            }
        }
        (earlier, made)
    });
    assert!(share > 0.95, "{share}");
}

#[test]
fn unchanged_stretches_and_chunks_of_the_largest_size_lead_on() {
    let share = least(|numbers| {
        let mut earlier = lengths(numbers, 3000);
        earlier[900..1200].fill(CHUNK_BYTES_MAX);
        let mut made = scattered(&earlier, numbers, 12, 1 << 40);
        for chunk in made.iter_mut().filter(|chunk| chunk.of.len() == 1) {
            chunk.is_same = numbers.below(3) > 0;
        }
        (earlier, made)
    });
    assert!(share > 0.95, "{share}");
}

#[test]
fn a_stranger_has_no_bases_for_long() {
    for seed in 0..10 {
        let mut numbers = Numbers(seed);
        let mut walked = walk(&entries(&lengths(&mut numbers, 2000)));
        let (mut at, mut with) = (0, 0);
        for _ in 0..2000 {
            let new = ChunkEntry { id: NEW, bytes: u32::try_from(numbers.length()).unwrap() };
            with += usize::from(!walked.follow(&new, at, false).is_empty());
            at += u64::from(new.bytes);
        }
        assert!(with < 400, "{with} of 2,000 chunks that have nothing in common had bases");
    }
}
