//! Where a stream is in its earlier version, by what was seen of it there: rows that all grew lead away from it evenly.

use std::collections::VecDeque;

/// So many places are remembered: the way goes on as between the first and the last of them.
const SEEN_MAX: usize = 8;
/// It leads away by no more than one byte in so many.
const GROWTH_SHARE_MIN: i64 = 2;

/// Who was seen no longer ago than this, in bytes, is followed.
const FOLLOWED_BYTES: u64 = 24 << 20;

/// A place of the stream, and how many bytes farther on that was in its earlier version.
type Seen = (u64, i64);

/// The places at which a stream was seen, in order.
#[derive(Debug)]
pub struct Track {
    seen: VecDeque<Seen>,
}

impl Track {
    /// From where the stream is known to be.
    pub fn from(at: u64, drift: i64) -> Self {
        Self { seen: VecDeque::from([(at, drift)]) }
    }

    /// The stream was seen behind what it is known from.
    pub fn see(&mut self, at: u64, drift: i64) {
        let position = self.seen.partition_point(|(other, _)| *other <= at);
        if position == 0 {
            return;
        }
        self.seen.insert(position, (at, drift));
        if self.seen.len() > SEEN_MAX {
            self.seen.pop_front();
        }
    }

    /// Whether the stream was seen not long before byte `at`, since its place was known.
    pub fn is_followed(&self, at: u64) -> bool {
        self.seen.len() > 1 && self.seen.back().is_some_and(|(last, _)| at <= last + FOLLOWED_BYTES)
    }

    /// How many bytes farther on byte `at` of the stream should be.
    pub fn drift(&self, at: u64) -> i64 {
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else { return 0 };
        let along = i128::from(last.0.saturating_sub(first.0).max(1));
        let beyond = i128::from(at.saturating_sub(last.0));
        let grown = i128::from(last.1 - first.1) * beyond / along;
        let most = beyond / i128::from(GROWTH_SHARE_MIN);
        last.1 + i64::try_from(grown.clamp(-most, most)).expect("less than the length of a stream")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_leads_on_as_it_did() {
        let mut track = Track::from(1000, 50);
        assert_eq!([0, 1000, 9000].map(|at| track.drift(at)), [50; 3], "nothing else is known yet");
        // One byte more in a hundred, told out of order.
        for at in [3000, 2000, 5000, 4000] {
            track.see(at, 50 - (at as i64 - 1000) / 100);
        }
        assert_eq!(track.drift(5000), 10);
        assert!(track.is_followed(6000) && !track.is_followed(1 << 30) && !Track::from(0, 0).is_followed(0));
        assert_eq!(track.drift(25_000), -190);
        track.see(900, 7_000_000);
        assert_eq!(track.drift(5000), 10, "what lies before the place that is known says nothing");
    }

    #[test]
    fn the_last_places_count_and_none_leads_far_away() {
        let mut track = Track::from(0, 0);
        (1..=20).for_each(|n| track.see(n * 1000, if n < 10 { 0 } else { 10 * (n as i64 - 9) }));
        assert_eq!(track.drift(21_000), 120, "ten bytes in a thousand of late");
        track.see(20_001, 1 << 40);
        assert_eq!(track.drift(20_001 + 2000), (1 << 40) + 1000);
        assert_eq!(Track::from(5, i64::MAX / 2).drift(u64::MAX), i64::MAX / 2);
    }
}
