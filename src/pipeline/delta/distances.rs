//! How common the distances of cut points are: common ones agree by accident.
//!
//! Rows of equal length that are cut in the text that all of them have lie at few distances, and so do those that are cut soon
//! after the least length.

use std::collections::HashMap;

/// Distances are counted in classes so many bytes wide.
const CLASS_BYTES: u64 = 1 << 10;
/// What cut points that may be anywhere in so many bytes have in common by accident is what `place::gain` allows for: of chunks whose
/// lengths are as usual most say as much as that, and those just above the average a bit less.
const RANGE_BYTES: u64 = 256 << 10;

/// Distances, counted.
#[derive(Default)]
pub struct Distances {
    classes: HashMap<u64, u64>,
    all: u64,
}

impl Distances {
    pub fn add(&mut self, bytes: u64) {
        *self.classes.entry(bytes / CLASS_BYTES).or_default() += 1;
        self.all += 1;
    }

    /// One that was added leaves.
    pub fn remove(&mut self, bytes: u64) {
        *self.classes.entry(bytes / CLASS_BYTES).or_default() -= 1;
        self.all -= 1;
    }

    /// What it counts less, in bits, that a distance agrees with one of these.
    pub fn commonness(&self, bytes: u64) -> i32 {
        let class = bytes / CLASS_BYTES;
        let counts = (class.saturating_sub(1)..=class + 1).filter_map(|class| self.classes.get(&class));
        commonness(counts.sum(), self.all, 3 * CLASS_BYTES)
    }
}

/// What it counts less, in bits, that a distance agrees with one of `all` of which `about` are in a range of `range_bytes` around it.
pub fn commonness(about: u64, all: u64, range_bytes: u64) -> i32 {
    // One of them may be the right one.
    let others = about.saturating_sub(1);
    (others * RANGE_BYTES / (all.max(1) * range_bytes)).max(1).ilog2().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_have_counts_less_and_what_one_has_counts_in_full() {
        let mut distances = Distances::default();
        assert_eq!(distances.commonness(50_000), 0);
        // Scattered over 64 KiB, and as many at one place.
        (0..1024).for_each(|number| distances.add(16_384 + number * 64));
        let scattered = distances.commonness(50_000);
        (0..1024).for_each(|_| distances.add(300_000));
        assert_eq!(scattered, 1);
        assert_eq!(distances.commonness(50_000), 0);
        assert_eq!([299_900, 300_100].map(|bytes| distances.commonness(bytes)), [5; 2]);
        distances.add(500_000);
        assert_eq!(distances.commonness(500_000), 0, "nobody else has it");
        (0..1024).for_each(|_| distances.remove(300_000));
        assert_eq!((distances.commonness(300_000), distances.commonness(50_000)), (0, scattered));
    }
}
