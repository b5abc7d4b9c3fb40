//! The search of one blob.

use super::table::{hash_6, hash_10, hash_16, word};
use super::{Finder, MATCH_BYTES_MIN, Sequence};

/// So many bytes are read at a place that is looked up.
pub(super) const LOOKED_AT: usize = 16;

/// Matches of so many bytes are looked for first, and what is between them is filled with shorter ones: of text there is some
/// match nearly everywhere, and many of those that begin earlier lead away from where the stream goes on.
const LONG: usize = 128;

/// They are looked for so many bytes ahead.
const WINDOW: usize = 1024;

/// Where no long match is, one of so many bytes counts as one.
const RUN: usize = 48;

/// On the diagonal so many are enough.
const RUN_ON_DIAGONAL: usize = 32;

/// A match so near to the diagonal is where the stream goes on, with some bytes more or less. Rows are longer, most of them.
const DIAGONAL_WIDTH: usize = 64;

/// A shorter match on the diagonal may be the row after the one that was deleted, all but its number the same. So now and then
/// a long one is looked for so many bytes on,
const CHECKED: usize = 128;

/// or one that is so much longer; and if there is none the diagonal is believed for so many bytes.
const DOUBT: usize = 8;
const BELIEVED: usize = 4096;

/// A believed diagonal is looked at alone for so many bytes after new ones began.
const RESUMED: usize = 32;

/// So many bytes of the bases are remembered behind a match: what comes after some new bytes most likely begins there.
const AHEAD: usize = 32;

/// A shorter match is put off if a better one begins a byte later.
const PUT_OFF: usize = 32;

/// The step between places that are looked at grows by one with so many (log2) bytes of which none was found.
const STEP_LOG: u32 = 8;

/// What is stored of a literal, about, and of a match besides the bits of its offset.
const LITERAL_BITS: usize = 5;
const MATCH_BITS: usize = 12;

/// A match saves so much or is not worth it.
const GAIN_BITS_MIN: usize = 8;

/// What stood before, and again from `start` on.
#[derive(Debug, Clone, Copy)]
struct Match {
    start: usize,
    offset: usize,
    bytes: usize,
    /// What it saves.
    gain_bits: usize,
}

impl Match {
    fn end(&self) -> usize {
        self.start + self.bytes
    }

    fn better(self, other: Option<Self>) -> Self {
        other.filter(|other| other.gain_bits > self.gain_bits).unwrap_or(self)
    }
}

/// A place of the text was compared with what stood `offset` before, and is the same up to `until`. So is each place between,
/// which makes the same match.
#[derive(Debug, Clone, Copy, Default)]
struct Compared {
    offset: usize,
    until: usize,
}

/// What may stand at a place of the text: at the three recent offsets, on the diagonal, and what the tables have of it.
type Candidates = [Compared; 6];

/// Places are those of the bases, and behind them those of the text.
pub(super) struct Search<'a> {
    tables: &'a mut Finder,
    bases: &'a [u8],
    text: &'a [u8],
    /// No match goes on behind this byte of the text.
    end: usize,
    /// So much of the text is handed on.
    done: usize,
    /// The offsets that zstd repeats for next to nothing.
    recent: [usize; 3],
    /// The offset at which the bases go on as the text does. To begin with both begin alike.
    diagonal: usize,
    /// Where it is when what is added to a row is added to the next one too.
    drifted: usize,
    /// The offset of the last run elsewhere. One that is there again tells that the diagonal is.
    suspected: usize,
    /// Up to here short matches on the diagonal are believed.
    believed_until: usize,
}

impl<'a> Search<'a> {
    pub fn new(tables: &'a mut Finder, bases: &'a [u8], text: &'a [u8]) -> Self {
        let (end, diagonal) = (text.len(), bases.len());
        Self {
            tables,
            bases,
            text,
            end,
            done: 0,
            recent: [1, 4, 8],
            diagonal,
            drifted: diagonal,
            suspected: diagonal,
            believed_until: 0,
        }
    }

    /// Hands on all sequences of the text.
    pub fn run(&mut self, hand_on: &mut impl FnMut(Sequence)) {
        let mut at = 0;
        while at < self.places() {
            let window = (at + WINDOW).min(self.places());
            // What begins with known bytes tells rows apart that differ in the first one that is new.
            let long = self.long(at.saturating_sub(LOOKED_AT - 1), window);
            if let Some(long) = long {
                self.end = long.start;
                self.fill(at, long.start, hand_on);
                self.end = self.text.len();
                self.take(long, hand_on);
                at = self.done;
            } else {
                at = self.fill(at, window, hand_on);
            }
        }
    }

    /// So many places of the text may be looked up.
    fn places(&self) -> usize {
        (self.text.len() + 1).saturating_sub(LOOKED_AT)
    }

    /// The first long match that is found at `from..until`, or else the longest run.
    fn long(&mut self, from: usize, until: usize) -> Option<Match> {
        if self.done < self.believed_until
            && let Some(run) = self.resumed(from.max(self.done), until)
        {
            return Some(run);
        }
        let (mut best, mut diagonal, mut elsewhere): (Option<Match>, Compared, Compared) = Default::default();
        let mut at = from;
        while at < until {
            // Once there is a run elsewhere the stream may have left the diagonal.
            if at >= self.done
                && best.is_none()
                && let Some(run) = self.on_diagonal(at, self.diagonal, &mut diagonal)
            {
                return Some(self.check(at, run));
            }
            if let Some(run) = self.sampled(at, &mut elsewhere).filter(|run| run.bytes >= RUN) {
                if best.is_none_or(|best| run.bytes > best.bytes) {
                    if run.bytes >= LONG || self.is_on_diagonal(run.offset) {
                        return Some(self.check(at, run));
                    }
                    best = Some(run);
                }
                // A longer one is found behind this one as well.
                at = at.max(run.end() - LOOKED_AT);
            }
            at += 1;
        }
        best
    }

    /// The next run on the diagonal, where it is believed, or as much farther on as the last one was.
    fn resumed(&self, from: usize, until: usize) -> Option<Match> {
        let (mut diagonal, mut drifted) = Default::default();
        (from..until.min(from + RESUMED)).find_map(|at| {
            self.on_diagonal(at, self.diagonal, &mut diagonal)
                .or_else(|| self.on_diagonal(at, self.drifted, &mut drifted))
        })
    }

    /// The run from this offset, if there is one.
    #[inline(always)]
    fn on_diagonal(&self, at: usize, offset: usize, compared: &mut Compared) -> Option<Match> {
        self.compare(at, offset, compared).filter(|run| run.bytes >= RUN_ON_DIAGONAL)
    }

    /// This run, or, if it is short, a longer one near by that tells of another diagonal for certain.
    fn check(&mut self, at: usize, run: Match) -> Match {
        if run.bytes >= LONG || at < self.believed_until {
            return run;
        }
        let until = (at + CHECKED).min(self.places());
        let mut elsewhere = Compared::default();
        let longer = (at + 1..until)
            .filter_map(|at| self.sampled(at, &mut elsewhere))
            .find(|other| other.bytes > run.bytes + DOUBT);
        let Some(longer) = longer else {
            self.believed_until = until + BELIEVED;
            return run;
        };
        if longer.bytes >= LONG || self.is_suspected(longer.offset) {
            return longer;
        }
        self.suspected = longer.offset;
        run
    }

    /// Hands on the matches that begin in `from..until` and are worth it. Returns up to where it looked.
    fn fill(&mut self, from: usize, until: usize, hand_on: &mut impl FnMut(Sequence)) -> usize {
        let (mut at, mut candidates) = (from, Candidates::default());
        while at < until {
            match self.look(at, &mut candidates) {
                None => at += 1 + ((at - self.done) >> STEP_LOG),
                Some(found) => {
                    let best = self.put_off(found, at + 1, until, &mut candidates);
                    self.take(best, hand_on);
                    (at, candidates) = (self.done, Candidates::default());
                }
            }
        }
        at
    }

    /// The best match at a place of the text, which is remembered, of those that were not found a byte before.
    #[inline(always)]
    fn look(&mut self, at: usize, candidates: &mut Candidates) -> Option<Match> {
        let (bytes, place) = (&self.text[at..], self.bases.len() + at);
        let (six, ten) = (hash_6(bytes), hash_10(bytes));
        let [first, second, third] = self.recent.map(Some);
        let diagonal = (!self.recent.contains(&self.diagonal)).then_some(self.diagonal);
        let [by_six, by_ten] =
            [self.tables.by_six.get(six), self.tables.by_ten.get(ten)].map(|found| found.map(|found| place - found));
        let mut best = None;
        for (offset, compared) in [first, second, third, diagonal, by_six, by_ten].into_iter().zip(candidates) {
            if let Some(found) = offset.and_then(|offset| self.compare(at, offset, compared)) {
                best = Some(found.better(best));
            }
        }
        self.tables.by_six.put(six, place);
        self.tables.by_ten.put(ten, place);
        best
    }

    /// This short match, or a better one that begins in `from..until`, each a byte later than the one before.
    fn put_off(&mut self, found: Match, from: usize, until: usize, candidates: &mut Candidates) -> Match {
        let mut best = found;
        for at in from..until {
            if best.bytes >= PUT_OFF {
                break;
            }
            match self.look(at, candidates) {
                Some(later) if later.gain_bits > best.gain_bits => best = later,
                _ => break,
            }
        }
        best
    }

    /// The match with a sample of the bases at a place of the text.
    #[inline(always)]
    fn sampled(&self, at: usize, compared: &mut Compared) -> Option<Match> {
        let place = self.tables.samples.get(hash_16(&self.text[at..]))?;
        self.compare(at, self.bases.len() + at - place, compared)
    }

    /// What a match at `at` with the bytes `offset` before would be, if it is worth it and was not `compared` already.
    #[inline(always)]
    fn compare(&self, at: usize, offset: usize, compared: &mut Compared) -> Option<Match> {
        if compared.offset == offset && at < compared.until {
            return None;
        }
        let place = (self.bases.len() + at).checked_sub(offset)?;
        let same = self.text[at..].first_chunk::<MATCH_BYTES_MIN>() == self.from(place).first_chunk();
        if same { self.extend(at, place, compared) } else { None }
    }

    fn extend(&self, at: usize, place: usize, compared: &mut Compared) -> Option<Match> {
        let offset = self.bases.len() + at - place;
        let ahead = same_bytes(&self.text[at..self.end.max(at)], self.from(place));
        *compared = Compared { offset, until: at + ahead };
        let (start, bytes) = match self.done.checked_sub(at) {
            None => {
                let back = same_bytes_back(&self.text[self.done..at], self.until(place));
                (at - back, back + ahead)
            }
            Some(handed_on) => (self.done, ahead.checked_sub(handed_on)?),
        };
        let cost = if self.recent.contains(&offset) { MATCH_BITS } else { match_bits(offset) };
        let gain_bits = (bytes * LITERAL_BITS).checked_sub(cost)?;
        (bytes >= MATCH_BYTES_MIN && gain_bits >= GAIN_BITS_MIN).then_some(Match { start, offset, bytes, gain_bits })
    }

    /// Hands a match on, and learns from it where what comes next may stand.
    fn take(&mut self, found: Match, hand_on: &mut impl FnMut(Sequence)) {
        let Match { start, offset, bytes, .. } = found;
        hand_on(Sequence { literals: start - self.done, offset, matched: bytes });
        self.done = found.end();
        self.recent = match self.recent {
            [first, second, third] if offset == first => [first, second, third],
            [first, second, third] if offset == second => [second, first, third],
            [first, second, _] => [offset, first, second],
        };
        let stood_until = self.bases.len() + self.done - offset;
        if stood_until <= self.bases.len() {
            if bytes >= RUN_ON_DIAGONAL {
                self.follow(offset, bytes);
            }
            let last = self.bases.len().saturating_sub(LOOKED_AT);
            for place in stood_until..(stood_until + AHEAD).min(last) {
                self.remember(&self.bases[place..], place);
            }
        }
        for at in [start + 2, self.done - 2] {
            if at + LOOKED_AT <= self.text.len() {
                self.remember(&self.text[at..], self.bases.len() + at);
            }
        }
    }

    fn remember(&mut self, bytes: &[u8], place: usize) {
        self.tables.by_six.put(hash_6(bytes), place);
    }

    /// Takes the offset of a run for the diagonal, unless it led there for the first time and is short.
    fn follow(&mut self, offset: usize, bytes: usize) {
        if bytes >= LONG || self.is_on_diagonal(offset) || self.is_suspected(offset) {
            self.drifted = (2 * offset).checked_sub(self.diagonal).filter(|next| *next > 0).unwrap_or(offset);
            self.diagonal = offset;
        } else {
            self.suspected = offset;
        }
    }

    fn is_suspected(&self, offset: usize) -> bool {
        offset.abs_diff(self.suspected) <= DIAGONAL_WIDTH
    }

    fn is_on_diagonal(&self, offset: usize) -> bool {
        offset.abs_diff(self.diagonal) <= DIAGONAL_WIDTH
    }

    /// The bytes from a place on: of the bases, or of the text.
    #[inline(always)]
    fn from(&self, place: usize) -> &'a [u8] {
        match place.checked_sub(self.bases.len()) {
            None => &self.bases[place..],
            Some(at) => &self.text[at..],
        }
    }

    /// The bytes before a place.
    fn until(&self, place: usize) -> &'a [u8] {
        match place.checked_sub(self.bases.len()) {
            None => &self.bases[..place],
            Some(at) => &self.text[..at],
        }
    }
}

/// What is stored of a match, about.
fn match_bits(offset: usize) -> usize {
    MATCH_BITS + offset.ilog2() as usize
}

/// How many bytes are the same at the beginning of both.
#[inline(always)]
fn same_bytes(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let mut same = 0;
    while most - same >= 32 && a[same..same + 32] == b[same..same + 32] {
        same += 32;
    }
    while most - same >= 8 {
        let differ = word(&a[same..]) ^ word(&b[same..]);
        if differ != 0 {
            return same + differ.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

/// How many bytes are the same at the end of both.
#[inline(always)]
fn same_bytes_back(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[a.len() - most..], &b[b.len() - most..]);
    let mut left = most;
    while left >= 8 {
        let differ = word(&a[left - 8..]) ^ word(&b[left - 8..]);
        if differ != 0 {
            return most - left + differ.leading_zeros() as usize / 8;
        }
        left -= 8;
    }
    most - left + a[..left].iter().rev().zip(b[..left].iter().rev()).take_while(|(a, b)| a == b).count()
}
