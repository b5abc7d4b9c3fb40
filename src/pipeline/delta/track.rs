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

/// What is less far from each other, in bytes, is about the same place.
pub const ASTRAY_BYTES: u64 = 32 << 10;

/// Where the stream is by what was said last, and by what was said before: of the two the one at which it is found.
#[derive(Debug)]
pub struct Tracks {
    now: Track,
    other: Option<Track>,
}

impl Tracks {
    /// From where the stream is known to be.
    pub fn from(at: u64, drift: i64) -> Self {
        Self { now: Track::from(at, drift), other: None }
    }

    pub fn now(&self) -> &Track {
        &self.now
    }

    /// From byte `at` on the stream may be so many bytes farther on.
    pub fn set_out(&mut self, at: u64, drift: i64) {
        let before = std::mem::replace(&mut self.now, Track::from(at, drift));
        if before.drift(at).abs_diff(drift) > ASTRAY_BYTES {
            self.other = Some(before);
        }
    }

    /// The stream was seen: what lies before the last place that was said tells about the other.
    pub fn see(&mut self, at: u64, drift: i64) {
        if !self.now.see(at, drift)
            && let Some(other) = &mut self.other
        {
            other.see(at, drift);
        }
    }

    /// It was not found so many bytes farther on than byte `at`, and not seen there of late: then the other is as likely.
    pub fn fail(&mut self, at: u64, drift: i64) {
        let is_there = self.now.drift(at).abs_diff(drift) <= ASTRAY_BYTES;
        if let Some(other) = self.other.as_mut().filter(|_| is_there && !self.now.is_followed(at)) {
            std::mem::swap(&mut self.now, other);
        }
    }
}

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

    /// The stream was seen. Returns whether that lies behind what it is known from; else it says nothing.
    pub fn see(&mut self, at: u64, drift: i64) -> bool {
        let position = self.seen.partition_point(|(other, _)| *other < at);
        if position > 0 {
            self.seen.insert(position, (at, drift));
        }
        if self.seen.len() > SEEN_MAX {
            self.seen.pop_front();
        }
        position > 0
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
    fn of_two_tracks_that_is_taken_at_which_the_stream_is_found() {
        let mut tracks = Tracks::from(0, 0);
        tracks.set_out(1_000_000, 10);
        tracks.fail(1_500_000, 10);
        assert_eq!(tracks.now().drift(1_500_000), 10, "there is no other");
        // By accident; what was sent before tells of the one before.
        tracks.set_out(9_000_000, -2_000_000);
        tracks.see(8_000_000, 12);
        tracks.see(9_000_000, 12);
        assert_eq!(tracks.now().drift(9_000_000), -2_000_000);
        tracks.fail(9_500_000, -2_000_000);
        assert_eq!(tracks.now().drift(9_500_000), 12);
        tracks.fail(9_600_000, -2_000_000);
        assert_eq!(tracks.now().drift(9_600_000), 12, "it was tried elsewhere");
        tracks.fail(9_700_000, 12);
        assert_eq!(tracks.now().drift(9_700_000), 12, "it was seen there just now");
        tracks.fail(900_000_000, 12);
        assert_eq!(tracks.now().drift(900_000_000), -2_000_000);
    }

    #[test]
    fn the_last_places_count_and_none_leads_far_away() {
        let mut track = Track::from(0, 0);
        for n in 1..=20 {
            track.see(n * 1000, if n < 10 { 0 } else { 10 * (n as i64 - 9) });
        }
        assert_eq!(track.drift(21_000), 120, "ten bytes in a thousand of late");
        track.see(20_001, 1 << 40);
        assert_eq!(track.drift(20_001 + 2000), (1 << 40) + 1000);
        assert_eq!(Track::from(5, i64::MAX / 2).drift(u64::MAX), i64::MAX / 2);
    }
}
