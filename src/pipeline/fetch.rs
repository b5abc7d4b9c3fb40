//! Sealed blobs out of the store.
//!
//! A folder is asked for what is wanted, no more: the kernel reads ahead. Where every request is a round trip, neighbours come
//! together: who knows what comes next has it fetched beforehand ([`Fetcher::announce`]), and for who reads a pack in order
//! without knowing more than the next blob, ever longer pieces are fetched. What was fetched is kept for a while, as it is
//! stored; whoever opens a blob finds out whether its bytes are right.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;

use crate::backend::BackendError;
use crate::id::ObjectId;
use crate::limits::{FETCH_GAP_BYTES, FETCHED_BYTES, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PLANNED_PIECE_BYTES, RUNS_KEPT};
use crate::repo::index::BlobRow;
use crate::repo::local_packs::LocalPacks;
use crate::repo::{Repository, pack_name};

/// Gets blobs for readers. Usable from several threads at once; they share what was fetched.
pub struct Fetcher {
    repo: Arc<Repository>,
    is_far: bool,
    /// Packs that are read from this host's own disk.
    local: Option<Arc<LocalPacks>>,
    pieces: Mutex<Pieces>,
    arrived: Condvar,
}

/// A range of a pack, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    pub pack: ObjectId,
    pub range: Range<u32>,
}

impl Extent {
    /// Where a blob lies.
    pub fn of(blob: &BlobRow) -> Self {
        Self { pack: blob.pack, range: blob.offset..blob.offset + blob.stored }
    }

    fn bytes(&self) -> usize {
        self.range.len()
    }

    fn covers(&self, other: &Self) -> bool {
        self.pack == other.pack && self.range.start <= other.range.start && other.range.end <= self.range.end
    }
}

impl Fetcher {
    pub fn new(repo: Arc<Repository>) -> Self {
        let is_far = repo.backend.properties().is_far();
        Self { repo, is_far, local: None, pieces: Mutex::default(), arrived: Condvar::new() }
    }

    /// From now on packs that are there are not asked of the store.
    pub fn use_local(&mut self, packs: Option<Arc<LocalPacks>>) {
        self.local = packs;
    }

    /// Whether it pays to say beforehand what will be asked for.
    pub fn is_far(&self) -> bool {
        self.is_far
    }

    /// Gets blobs of one pack that lie close together, in order.
    pub fn get_run(&self, run: &[&BlobRow]) -> Result<Vec<Bytes>, BackendError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Vec::new()) };
        let end = last.offset + last.stored;
        if self.is_far {
            return run.iter().map(|blob| self.get_far(blob, end)).collect();
        }
        let bytes = self.get_exactly(&Extent { pack: first.pack, range: first.offset..end })?;
        let at = |blob: &BlobRow| (blob.offset - first.offset) as usize;
        Ok(run.iter().map(|blob| bytes.slice(at(blob)..at(blob) + blob.stored as usize)).collect())
    }

    /// Gets one blob.
    pub fn get(&self, blob: &BlobRow) -> Result<Bytes, BackendError> {
        if self.is_far { self.get_far(blob, 0) } else { self.get_exactly(&Extent::of(blob)) }
    }

    fn get_exactly(&self, extent: &Extent) -> Result<Bytes, BackendError> {
        let range = u64::from(extent.range.start)..u64::from(extent.range.end);
        self.repo.backend.get(&pack_name(&extent.pack), Some(range))
    }

    /// `until` says how far into the pack more is wanted for certain.
    fn get_far(&self, blob: &BlobRow, until: u32) -> Result<Bytes, BackendError> {
        let wanted = Extent::of(blob);
        if let Some(bytes) = self.local.as_ref().and_then(|local| local.get(&wanted.pack, wanted.range.clone())) {
            return Ok(bytes);
        }
        let mut pieces = self.lock();
        loop {
            match pieces.find(&wanted) {
                Some(Some(bytes)) => return Ok(bytes),
                Some(None) => pieces = self.arrived.wait(pieces).expect("no code panics while it holds this lock"),
                None => break,
            }
        }
        let piece = pieces.ahead_of(&wanted, until, blob.pack_bytes);
        pieces.begin(piece.clone());
        drop(pieces);
        match self.fetch(&piece) {
            Ok(bytes) => Ok(cut_out(&piece, &bytes, &wanted)),
            Err(error @ (BackendError::Unreachable { .. } | BackendError::Denied { .. })) => Err(error),
            // The blob may be there, if what comes after it is not.
            Err(_) if piece != wanted => self.get_exactly(&wanted),
            Err(error) => Err(error),
        }
    }

    /// Leaves out what is here or on its way, and returns what is left in pieces that are worth a request each. Each of them
    /// must be fetched, by any thread: whoever asks for a part of one waits for that.
    pub fn announce(&self, mut wanted: Vec<Extent>) -> Vec<Extent> {
        if let Some(local) = &self.local {
            wanted.retain(|extent| !local.has(&extent.pack));
        }
        let mut pieces = self.lock();
        let missing = wanted.into_iter().filter(|extent| pieces.position(extent).is_none()).collect();
        let joined = join(missing);
        joined.iter().for_each(|piece| pieces.begin(piece.clone()));
        joined
    }

    /// Fetches a piece that was begun.
    pub fn fetch(&self, piece: &Extent) -> Result<Bytes, BackendError> {
        // Also if a thread panics: others may be waiting.
        let begun = Begun { fetcher: self, piece };
        let outcome = self.get_exactly(piece);
        if let Ok(bytes) = &outcome {
            self.lock().arrive(piece, bytes.clone());
        }
        drop(begun);
        outcome
    }

    /// Gives up pieces that nobody will fetch any more.
    pub fn give_up(&self, piece: &Extent) {
        drop(Begun { fetcher: self, piece });
    }

    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().expect("no code panics while it holds this lock")
    }
}

/// A piece that is being fetched: when this is dropped, it is here or given up.
struct Begun<'f> {
    fetcher: &'f Fetcher,
    piece: &'f Extent,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.fetcher.lock().end(self.piece);
        self.fetcher.arrived.notify_all();
    }
}

/// Pieces of packs that are here or on their way, and how far packs have been read in order. Pure.
#[derive(Default)]
struct Pieces {
    /// In the order in which they go: first those that have been read to their end, then the oldest.
    held: VecDeque<Piece>,
    runs: VecDeque<Run>,
}

struct Piece {
    extent: Extent,
    /// None while it is on its way.
    bytes: Option<Bytes>,
}

/// A pack that is read in order.
struct Run {
    pack: ObjectId,
    /// Where the last piece of it ended, and how long that was.
    end: u32,
    bytes: u32,
}

impl Pieces {
    /// The bytes of `wanted`; `None` within while they are on their way.
    fn find(&mut self, wanted: &Extent) -> Option<Option<Bytes>> {
        let at = self.position(wanted)?;
        let piece = &self.held[at];
        let found = piece.bytes.as_ref().map(|bytes| cut_out(&piece.extent, bytes, wanted));
        if found.is_some() && piece.extent.range.end == wanted.range.end {
            let done = self.held.remove(at).expect("it was found there");
            self.held.push_front(done);
        }
        Some(found)
    }

    fn position(&self, wanted: &Extent) -> Option<usize> {
        self.held.iter().position(|piece| piece.extent.covers(wanted))
    }

    /// What to ask for when `wanted` is: with what follows it, if the pack has been read in order so far, twice as much each
    /// time. So no more than twice of what is wanted is fetched, whatever the order.
    fn ahead_of(&mut self, wanted: &Extent, until: u32, pack_bytes: u32) -> Extent {
        let Range { start, end } = wanted.range.clone();
        let before = self.runs.iter().position(|run| run.pack == wanted.pack).and_then(|at| self.runs.remove(at));
        let bytes = match before {
            Some(run) if start >= run.end && start - run.end <= FETCH_GAP_BYTES => {
                run.bytes.saturating_mul(2).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
            }
            // Somebody else's thread was a little faster.
            Some(run) if end <= run.end && run.end - end <= PIECE_BYTES_MAX => {
                self.runs.push_back(run);
                return wanted.clone();
            }
            _ => 0,
        };
        let end = end.max(until).max(start.saturating_add(bytes).min(pack_bytes));
        self.runs.push_back(Run { pack: wanted.pack, end, bytes: end - start });
        if self.runs.len() > RUNS_KEPT {
            self.runs.pop_front();
        }
        Extent { pack: wanted.pack, range: start..end }
    }

    fn begin(&mut self, extent: Extent) {
        self.held.push_back(Piece { extent, bytes: None });
    }

    fn arrive(&mut self, extent: &Extent, bytes: Bytes) {
        if let Some(piece) = self.held.iter_mut().find(|piece| piece.bytes.is_none() && piece.extent == *extent) {
            piece.bytes = Some(bytes);
        }
        let mut held: usize = self.held.iter().map(|piece| piece.extent.bytes()).sum();
        while held > FETCHED_BYTES
            && let Some(oldest) = self.held.iter().position(|piece| piece.bytes.is_some() && piece.extent != *extent)
        {
            held -= self.held.remove(oldest).expect("it was found there").extent.bytes();
        }
    }

    /// Forgets a piece that has not arrived.
    fn end(&mut self, extent: &Extent) {
        self.held.retain(|piece| piece.bytes.is_some() || piece.extent != *extent);
    }
}

fn cut_out(piece: &Extent, bytes: &Bytes, wanted: &Extent) -> Bytes {
    let start = (wanted.range.start - piece.range.start) as usize;
    bytes.slice(start..start + wanted.bytes())
}

/// Joins what lies close together in one pack, in the order in which it is first wanted.
fn join(wanted: Vec<Extent>) -> Vec<Extent> {
    let mut sorted: Vec<(usize, Extent)> = wanted.into_iter().enumerate().collect();
    sorted.sort_unstable_by_key(|(_, extent)| (extent.pack, extent.range.start));
    let mut joined: Vec<(usize, Extent)> = Vec::new();
    for (turn, extent) in sorted {
        match joined.last_mut() {
            Some((first, piece))
                if piece.pack == extent.pack
                    && extent.range.start <= piece.range.end.saturating_add(FETCH_GAP_BYTES)
                    && extent.range.end.max(piece.range.end) - piece.range.start <= PLANNED_PIECE_BYTES =>
            {
                piece.range.end = piece.range.end.max(extent.range.end);
                *first = turn.min(*first);
            }
            _ => joined.push((turn, extent)),
        }
    }
    joined.sort_unstable_by_key(|(turn, _)| *turn);
    joined.into_iter().map(|(_, piece)| piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u32 = 1 << 10;

    fn extent(pack: u8, range: Range<u32>) -> Extent {
        Extent { pack: ObjectId([pack; 32]), range }
    }

    fn arrived(pieces: &mut Pieces, extent: &Extent) {
        pieces.begin(extent.clone());
        pieces.arrive(extent, vec![0; extent.bytes()].into());
    }

    #[test]
    fn a_pack_that_is_read_in_order_is_read_ahead_of_in_ever_longer_pieces() {
        let mut pieces = Pieces::default();
        let (pack_bytes, mut at, mut lengths) = (3 << 20, 0, Vec::new());
        while at < pack_bytes {
            let wanted = extent(1, at..at + 64 * K);
            if pieces.find(&wanted).is_none() {
                let piece = pieces.ahead_of(&wanted, 0, pack_bytes);
                lengths.push(piece.range.len() as u32 / K);
                arrived(&mut pieces, &piece);
            }
            at += 64 * K;
        }
        assert_eq!(lengths, [64, 256, 512, 1024, 1024, 192], "twice as long each time, and not past the end");
    }

    #[test]
    fn what_is_read_here_and_there_is_not_read_ahead_of() {
        let mut pieces = Pieces::default();
        for at in [0, 9000 * K, 3000 * K, 1000 * K, 5000 * K] {
            let wanted = extent(1, at..at + 10 * K);
            assert_eq!(pieces.ahead_of(&wanted, 0, 16 << 20), wanted, "at {at}");
        }
        let wanted = extent(1, 7000 * K..7010 * K);
        assert_eq!(pieces.ahead_of(&wanted, 7100 * K, 16 << 20).range, 7000 * K..7100 * K, "but what is wanted is");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_was_read_goes_before_what_was_not() {
        let mut pieces = Pieces::default();
        let piece = |number: u32| extent(1, number * PIECE_BYTES_MAX..(number + 1) * PIECE_BYTES_MAX);
        let beginning = |number: u32| extent(1, number * PIECE_BYTES_MAX..number * PIECE_BYTES_MAX + K);
        let fit = FETCHED_BYTES as u32 / PIECE_BYTES_MAX;
        (0..fit).for_each(|number| arrived(&mut pieces, &piece(number)));
        assert!(pieces.find(&beginning(1)).is_some());
        assert!(pieces.find(&piece(2)).is_some());
        arrived(&mut pieces, &piece(fit));
        let held = |pieces: &Pieces, number| pieces.position(&piece(number)).is_some();
        assert!(!held(&pieces, 2), "it was read to its end");
        assert!(held(&pieces, 0) && held(&pieces, 1), "these were not");
        arrived(&mut pieces, &piece(fit + 1));
        assert!(!held(&pieces, 0) && held(&pieces, 1), "then the oldest goes");
        pieces.begin(piece(fit + 2));
        assert_eq!(pieces.find(&piece(fit + 2)), Some(None), "it is on its way");
        pieces.end(&piece(fit + 2));
        assert_eq!(pieces.find(&piece(fit + 2)), None, "given up");
    }

    #[test]
    fn what_lies_close_together_is_one_piece_and_what_is_wanted_first_comes_first() {
        let gap = FETCH_GAP_BYTES;
        let wanted = vec![
            extent(2, 500..600),
            extent(1, 1000..2000),
            extent(2, 0..400),
            extent(1, 2000 + gap..2500 + gap),
            extent(1, 2501 + 2 * gap..2600 + 2 * gap),
        ];
        let expected = [extent(2, 0..600), extent(1, 1000..2500 + gap), extent(1, 2501 + 2 * gap..2600 + 2 * gap)];
        assert_eq!(join(wanted), expected);
        let half = PLANNED_PIECE_BYTES / 2;
        let three: Vec<_> = (0..3).map(|number| extent(1, number * half..(number + 1) * half)).collect();
        assert_eq!(
            join(three),
            [extent(1, 0..2 * half), extent(1, 2 * half..3 * half)],
            "no piece is longer than the most"
        );
    }
}
