//! The last chunks of a stream laid along the list of an older version, wherever in it they stand: by the distances of their cut
//! points alone.

use std::collections::VecDeque;

use super::align::{Alignment, Best, Fronts, sure};
use super::rescan::{Passed, Way};
use crate::format::manifest::ChunkEntry;

/// Where the last chunks agree best with a list.
#[derive(Default)]
pub struct Laid {
    /// How well, in bits.
    pub score: i32,
    /// So many chunks of the list were looked at.
    pub count: usize,
    /// Which of the last chunks ends where the chunk of the list does that has this number, and starts and ends at these bytes.
    last: usize,
    number: usize,
    start: u64,
    end: u64,
}

/// Lays the `last` chunks along a list: `scan` calls with every chunk of it, in order. Those of `bytes_max` say nothing.
pub fn lay(last: Vec<ChunkEntry>, bytes_max: u32, scan: impl FnOnce(&mut dyn FnMut(ChunkEntry))) -> Laid {
    let mut fronts = Fronts::default();
    fronts.extend([last], bytes_max);
    let mut along = Alignment::default();
    let (mut laid, mut start) = (Laid::default(), 0u64);
    scan(&mut |entry| {
        along.add(&fronts, &entry, false);
        let Best { score, last } = along.best()[0];
        let (number, end) = (laid.count, start + u64::from(entry.bytes));
        if score > laid.score {
            laid = Laid { score, last, number, start, end, ..laid };
        }
        (laid.count, start) = (number + 1, end);
    });
    laid
}

impl Laid {
    /// Whether no accident agrees so well.
    pub fn is_sure(&self) -> bool {
        self.score >= sure(self.count)
    }

    /// Where a stream goes on of which `last` was laid here.
    pub fn way(&self, mut last: VecDeque<Passed>) -> Option<Way> {
        last.drain(..self.last.min(last.len()));
        let drift = self.end.cast_signed() - last.front()?.end().cast_signed();
        Some(Way { number: self.number as u64, start: self.start, drift, last })
    }
}
