//! Opened blobs, or what of them is still wanted, and what the plan will ask for. Pure.
//!
//! A stream comes back to a blob where the same text stands once more, and where a place changed every day, what is there
//! now lies in blobs of many days that rest on each other. Which chunks of a blob will be asked for again, and when, is
//! known from the plan: those are kept, and of all that is kept those go first that are wanted last. As long as there is room
//! all that was opened is kept as it is: to copy what is wanted of it costs more than to hold it.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::parts::{Bytes, Part};
use crate::limits::BLOB_BYTES_MAX;
use crate::pipeline::stream::BlobPlace;
use crate::repo::index::BlobRow;

/// What was opened of a blob is kept as it is if all but an eighth is wanted.
const NEARLY_ALL: usize = 8;

/// Buffers that wait to be filled again, for each opener; more of them in the room that nothing is kept in.
pub(super) const SPARE_BUFFERS: usize = 3;
/// Others would have to grow, or hold more than they are needed for.
const SPARE_BYTES: Range<usize> = BLOB_BYTES_MAX / 2..BLOB_BYTES_MAX * 2;

/// What is kept, and what will be asked for.
pub(super) struct Kept {
    bytes_max: usize,
    bytes: usize,
    /// Buffers to be filled again, the ones used last at the end: they are still in the processor's cache.
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    spare_min: usize,
    blobs: HashMap<BlobPlace, Known>,
    /// Chunks and bases of the blobs that the plan knows.
    entries: usize,
    /// Blobs that somebody is opening.
    opening: HashSet<BlobPlace>,
    windows: u64,
    /// The latest window that was begun.
    now: u64,
    turn: u64,
}

/// A blob that the plan leads to, or that is kept.
#[derive(Default)]
struct Known {
    uses: Vec<Use>,
    /// Where its bases lie, once they have been looked up.
    bases: Option<Arc<[Part]>>,
    entries: usize,
    held: Option<Held>,
}

impl Known {
    /// The chunks that the plan will ask for, in order.
    fn wanted(&self) -> Vec<Range<usize>> {
        union(self.uses.iter().map(|planned| planned.positions.clone()).collect())
    }

    /// When the plan will ask for some of it for the first time.
    fn next_window(&self) -> Option<u64> {
        self.uses.iter().map(|planned| planned.window).min()
    }
}

/// A run of chunks that a window will ask for, be it for itself or to open another blob.
struct Use {
    window: u64,
    positions: Range<usize>,
}

struct Held {
    plaintext: Arc<Vec<u8>>,
    /// The chunks whose plaintexts these are, in order.
    runs: Vec<Range<usize>>,
    is_named: bool,
    depth: u8,
    /// The blob, as long as all that was opened of it is held, and not only what is wanted.
    loose: Option<Arc<BlobRow>>,
    /// The window and the turn in which it was last asked for.
    window: u64,
    turn: u64,
}

impl Kept {
    /// Keeps so many bytes, and so many spare buffers beside them.
    pub fn new(bytes_max: usize, spare_min: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            spare: Vec::new(),
            spare_bytes: 0,
            spare_min,
            blobs: HashMap::new(),
            entries: 0,
            opening: HashSet::new(),
            windows: 0,
            now: 0,
            turn: 0,
        }
    }

    /// An empty buffer that was used before.
    pub fn spare_buffer(&mut self) -> Option<Vec<u8>> {
        let buffer = self.spare.pop()?;
        self.spare_bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Takes back a buffer that nobody needs, or returns it if there is no room.
    pub fn give_back(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let bytes = buffer.capacity();
        let has_room = self.spare.len() < self.spare_min || self.bytes + self.spare_bytes + bytes <= self.bytes_max;
        if !has_room || !SPARE_BYTES.contains(&bytes) {
            return Some(buffer);
        }
        buffer.clear();
        self.spare_bytes += bytes;
        self.spare.push(buffer);
        None
    }

    /// The number of the next window that is planned.
    pub fn next_window(&mut self) -> u64 {
        self.windows += 1;
        self.windows
    }

    /// Notes that a window will ask for `part`. True if the window had not asked for anything of that blob.
    pub fn plan(&mut self, window: u64, part: &Part) -> bool {
        let known = self.blobs.entry(part.blob.place()).or_default();
        if known.entries == 0 {
            known.entries = part.blob.contents.chunks.len() + part.blob.contents.bases.len();
            self.entries += known.entries;
        }
        let is_first = known.uses.iter().rev().all(|before| before.window != window);
        known.uses.push(Use { window, positions: part.positions.clone() });
        is_first
    }

    /// How many chunks and bases the blobs have that the plan leads to.
    pub fn entries_planned(&self) -> usize {
        self.entries
    }

    pub fn bases_of(&self, blob: &BlobRow) -> Option<Arc<[Part]>> {
        self.blobs.get(&blob.place())?.bases.clone()
    }

    /// Remembers where the bases of a blob of the plan lie.
    pub fn set_bases(&mut self, blob: &BlobRow, bases: Arc<[Part]>) {
        if let Some(known) = self.blobs.get_mut(&blob.place()) {
            known.bases = Some(bases);
        }
    }

    /// A window is being opened.
    pub fn begin_window(&mut self, window: u64) {
        self.now = self.now.max(window);
    }

    /// A window has been opened or given up: nothing is kept for it any more. Returns what nobody wants.
    pub fn end_window(&mut self, window: u64, places: &[BlobPlace]) -> Vec<Arc<Vec<u8>>> {
        let mut unwanted = Vec::new();
        for place in places {
            let Some(known) = self.blobs.get_mut(place) else { continue };
            known.uses.retain(|planned| planned.window != window);
            if known.uses.is_empty() {
                unwanted.extend(self.remove(place));
            }
        }
        unwanted
    }

    /// `part` is being asked for by `window`.
    pub fn ask(&mut self, window: u64, part: &Part) {
        if let Some(known) = self.blobs.get_mut(&part.blob.place())
            && let Some(at) =
                known.uses.iter().position(|use_| use_.window == window && use_.positions == part.positions)
        {
            known.uses.remove(at);
        }
    }

    /// The plaintext of `part`, if it is kept. With `named_only` only if the blob's chunks were compared with their names.
    pub fn get(&mut self, part: &Part, named_only: bool) -> Option<Bytes> {
        let held = self.blobs.get_mut(&part.blob.place())?.held.as_mut()?;
        if named_only && !held.is_named {
            return None;
        }
        let mut at = 0;
        for run in &held.runs {
            if run.start <= part.positions.start && part.positions.end <= run.end {
                let start = at + part.blob.bytes_of(&(run.start..part.positions.start));
                let end = start + part.blob.bytes_of(&part.positions);
                self.turn += 1;
                (held.window, held.turn) = (self.now, self.turn);
                return Some((held.plaintext.clone(), start..end));
            }
            at += part.blob.bytes_of(run);
        }
        None
    }

    /// Whether anything of the blob is kept.
    pub fn is_held(&self, blob: &BlobRow) -> bool {
        self.blobs.get(&blob.place()).is_some_and(|known| known.held.is_some())
    }

    /// True if nobody else is opening the blob; then the caller does, and says so when it has.
    pub fn begin_opening(&mut self, blob: &BlobRow) -> bool {
        self.opening.insert(blob.place())
    }

    pub fn end_opening(&mut self, blob: &BlobRow) {
        self.opening.remove(&blob.place());
    }

    /// Where the last chunk ends that the plan will ask for of a blob.
    pub fn wanted_until(&self, blob: &BlobRow) -> Option<usize> {
        self.blobs.get(&blob.place())?.uses.iter().map(|planned| planned.positions.end).max()
    }

    /// Keeps the first chunks of a blob, as they were opened. Where there is no room for all of them, those that the plan will
    /// ask for are copied. Returns what had to go for it.
    pub fn keep(
        &mut self,
        blob: &Arc<BlobRow>,
        plaintext: Arc<Vec<u8>>,
        front: usize,
        is_named: bool,
    ) -> Vec<Arc<Vec<u8>>> {
        self.turn += 1;
        self.bytes += plaintext.capacity();
        let (depth, window, turn) = (blob.contents.depth, self.now, self.turn);
        let opened = 0..front;
        let held = Held { plaintext, runs: vec![opened], is_named, depth, loose: Some(blob.clone()), window, turn };
        let before = self.blobs.entry(blob.place()).or_default().held.replace(held);
        let mut gone: Vec<Arc<Vec<u8>>> = Vec::new();
        if let Some(before) = before {
            self.bytes -= before.plaintext.capacity();
            gone.push(before.plaintext);
        }
        while self.bytes > self.bytes_max
            && let Some(place) = self.loose_last()
        {
            gone.extend(self.tighten(&place));
        }
        while self.bytes > self.bytes_max
            && let Some(place) = self.wanted_last()
        {
            let known = self.blobs.get_mut(&place).expect("it was found there");
            if known.uses.is_empty() {
                gone.extend(self.remove(&place));
            } else if let Some(held) = known.held.take() {
                self.bytes -= held.plaintext.capacity();
                gone.push(held.plaintext);
            }
        }
        gone
    }

    /// Of the blobs that are held as they were opened, and that the plan will ask for, the one it asks for last.
    fn loose_last(&self) -> Option<BlobPlace> {
        let loose = self.blobs.iter().filter_map(|(place, known)| {
            known.held.as_ref()?.loose.as_ref()?;
            Some((known.next_window()?, place))
        });
        loose.max_by_key(|(next_window, _)| *next_window).map(|(_, place)| *place)
    }

    /// Keeps of a blob only what is wanted of it, unless that is nearly all. Returns what it took until now.
    fn tighten(&mut self, place: &BlobPlace) -> Option<Arc<Vec<u8>>> {
        let known = self.blobs.get_mut(place)?;
        let wanted = known.wanted().into_iter();
        let held = known.held.as_mut()?;
        let blob = held.loose.take()?;
        let opened = held.runs.first()?.clone();
        // What was planned since may lie beyond what was opened.
        let wanted =
            wanted.map(|run| run.start..run.end.min(opened.end)).filter(|run| !run.is_empty()).collect::<Vec<_>>();
        let runs = without_gaps(&blob, wanted, &opened);
        let bytes: usize = runs.iter().map(|run| blob.bytes_of(run)).sum();
        if bytes == 0 || bytes >= held.plaintext.capacity() / NEARLY_ALL * (NEARLY_ALL - 1) {
            return None;
        }
        let mut copied = Vec::with_capacity(bytes);
        runs.iter().for_each(|run| copied.extend_from_slice(&held.plaintext[blob.range_of(run)]));
        held.runs = runs;
        let before = std::mem::replace(&mut held.plaintext, Arc::new(copied));
        self.bytes = self.bytes - before.capacity() + bytes;
        Some(before)
    }

    /// What will be missed least. Of what no plan says anything about is taken that it will not be asked for, for as long as it
    /// has not been.
    fn wanted_last(&self) -> Option<BlobPlace> {
        let held = self.blobs.iter().filter_map(|(place, known)| Some((place, known, known.held.as_ref()?)));
        let last = held.max_by_key(|(_, known, held)| {
            match known.next_window() {
                // Whoever rests on a blob that is kept does not need those that it rests on.
                Some(next) => (next.saturating_sub(self.now), u8::MAX - held.depth, Reverse(held.turn)),
                None => (self.now - held.window, 0, Reverse(held.turn)),
            }
        });
        last.map(|(place, ..)| *place)
    }

    fn remove(&mut self, place: &BlobPlace) -> Option<Arc<Vec<u8>>> {
        let known = self.blobs.remove(place)?;
        self.entries -= known.entries;
        let held = known.held?;
        self.bytes -= held.plaintext.capacity();
        Some(held.plaintext)
    }
}

/// The chunks of a blob that are kept, where those of `wanted` are wanted: all that were opened, if that is hardly more.
fn without_gaps(blob: &BlobRow, wanted: Vec<Range<usize>>, opened: &Range<usize>) -> Vec<Range<usize>> {
    let bytes: usize = wanted.iter().map(|run| blob.bytes_of(run)).sum();
    let is_nearly_all = bytes >= blob.bytes_of(opened) / NEARLY_ALL * (NEARLY_ALL - 1);
    if is_nearly_all { vec![opened.clone()] } else { wanted }
}

/// Joins runs that overlap or touch, in order.
fn union(mut runs: Vec<Range<usize>>) -> Vec<Range<usize>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut() {
            Some(before) if run.start <= before.end => before.end = before.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::ChunkEntry;
    use crate::format::pack::{BlobContents, BlobKind};
    use crate::id::{ChunkId, ObjectId};

    const CHUNK: u32 = 10;
    const ALL: Range<usize> = 0..10;

    /// A blob of ten chunks of ten bytes, each of which is filled with its position.
    fn blob(number: u8, depth: u8) -> Arc<BlobRow> {
        let chunks = (0..10).map(|at| ChunkEntry { id: ChunkId([at; 32]), bytes: CHUNK }).collect();
        let contents = BlobContents { kind: BlobKind::Data, depth, chunks, bases: Vec::new() };
        Arc::new(BlobRow { pack: ObjectId([number; 32]), offset: 0, stored: 1, pack_bytes: 1, contents })
    }

    fn part(blob: &Arc<BlobRow>, positions: Range<usize>) -> Part {
        Part { blob: blob.clone(), positions }
    }

    fn plaintext(runs: &[Range<usize>]) -> Arc<Vec<u8>> {
        let positions = runs.iter().cloned().flatten();
        let bytes: Vec<u8> = positions.flat_map(|at| [at as u8; CHUNK as usize]).collect();
        Arc::new(bytes.into_boxed_slice().into_vec())
    }

    fn keep(kept: &mut Kept, blob: &Arc<BlobRow>) {
        kept.keep(blob, plaintext(&[ALL]), ALL.end, false);
    }

    #[test]
    fn where_there_is_no_room_for_all_the_chunks_are_kept_that_will_be_asked_for() {
        let mut kept = Kept::new(150, 0);
        let (one, other) = (blob(1, 0), blob(2, 0));
        assert!(kept.plan(1, &part(&one, 2..4)) && !kept.plan(1, &part(&one, 3..5)) && kept.plan(2, &part(&one, 8..9)));
        let wanted = |kept: &Kept| kept.blobs[&one.place()].wanted();
        assert_eq!(wanted(&kept), [2..5, 8..9]);
        assert_eq!((kept.wanted_until(&one), kept.wanted_until(&other)), (Some(9), None));
        keep(&mut kept, &one);
        assert_eq!(kept.bytes, 100);
        assert!(kept.get(&part(&one, ALL), false).is_some(), "until now there is room");
        kept.plan(3, &part(&other, ALL));
        keep(&mut kept, &other);
        assert_eq!(kept.bytes, 140);
        assert!(kept.get(&part(&other, ALL), false).is_some(), "all of it is wanted");
        assert_eq!(kept.end_window(3, &[other.place()]).len(), 1);
        let (bytes, range) = kept.get(&part(&one, 3..5), false).expect("it is kept");
        assert_eq!(bytes[range], [[3; 10], [4; 10]].concat());
        let (bytes, range) = kept.get(&part(&one, 8..9), false).expect("it is kept");
        assert_eq!(bytes[range], [8; 10]);
        assert!(kept.get(&part(&one, 4..6), false).is_none(), "a part of it was not wanted");
        assert!(kept.get(&part(&one, 3..5), true).is_none(), "nobody compared its names");
        kept.ask(1, &part(&one, 2..4));
        assert_eq!(wanted(&kept), [3..5, 8..9], "what was asked for is not wanted any more");
        assert!(kept.end_window(1, &[one.place()]).is_empty(), "the second window wants some of it");
        assert_eq!(kept.end_window(2, &[one.place()]).len(), 1, "then nobody does");
        assert_eq!((kept.bytes, kept.entries_planned(), kept.blobs.len()), (0, 0, 0));
    }

    #[test]
    fn nearly_all_that_was_opened_is_all_of_it() {
        let one = blob(1, 0);
        let [few, front, gap, gaps, most] =
            [vec![0..2, 4..8], vec![0..8; 1], vec![0..3, 4..8], vec![1..3, 4..8], vec![0..9; 1]];
        for (wanted, opened, kept) in [
            (&most, ALL, vec![ALL; 1]),
            (&front, ALL, front.clone()),
            (&gap, 0..8, front.clone()),
            (&gaps, 0..8, gaps.clone()),
            (&few, 0..8, few.clone()),
        ] {
            assert_eq!(without_gaps(&one, wanted.clone(), &opened), kept, "{wanted:?} of {opened:?}");
        }
    }

    #[test]
    fn what_is_wanted_last_goes_first_and_of_two_the_one_that_the_other_rests_on() {
        let mut kept = Kept::new(300, 0);
        let blobs: Vec<_> = [(1, 0), (2, 1), (3, 0), (4, 0), (5, 0)].map(|(number, depth)| blob(number, depth)).into();
        for (blob, window) in blobs.iter().zip([7, 7, 3, 9, 2]) {
            kept.plan(window, &part(blob, ALL));
        }
        kept.begin_window(1);
        let held = |kept: &Kept| -> Vec<bool> { blobs.iter().map(|blob| kept.is_held(blob)).collect() };
        blobs[..3].iter().for_each(|blob| keep(&mut kept, blob));
        keep(&mut kept, &blobs[3]);
        assert_eq!(held(&kept), [true, true, true, false, false], "the others are wanted before it");
        keep(&mut kept, &blobs[4]);
        assert_eq!(held(&kept), [false, true, true, false, true], "with the second at hand nobody needs the first");
    }

    #[test]
    fn without_a_plan_what_was_asked_for_last_is_kept_longest() {
        let mut kept = Kept::new(200, 0);
        let blobs: Vec<_> = (1..=3).map(|number| blob(number, number)).collect();
        let front = |blob: &Arc<BlobRow>| part(blob, 0..5);
        let whole = || plaintext(&[ALL]);
        kept.keep(&blobs[0], whole(), 5, true);
        kept.keep(&blobs[1], whole(), 5, true);
        assert!(kept.get(&front(&blobs[0]), true).is_some());
        let gone = kept.keep(&blobs[2], whole(), 5, true);
        assert_eq!((gone.len(), kept.bytes), (1, 200), "nothing is copied");
        assert!(kept.is_held(&blobs[0]) && !kept.is_held(&blobs[1]) && kept.is_held(&blobs[2]));
        let again = kept.keep(&blobs[2], whole(), 5, false);
        assert_eq!((again.len(), kept.bytes), (1, 200), "kept twice it counts once");
    }

    #[test]
    fn what_is_wanted_beyond_what_was_opened_is_not_there() {
        let mut kept = Kept::new(50, 0);
        let one = blob(1, 0);
        kept.plan(1, &part(&one, 1..3));
        let front = plaintext(&vec![0..6; 1]);
        kept.plan(2, &part(&one, 5..9));
        kept.keep(&one, front, 6, false);
        assert_eq!(kept.bytes, 30);
        assert!(kept.get(&part(&one, 1..3), false).is_some() && kept.get(&part(&one, 5..9), false).is_none());
    }

    #[test]
    fn spare_buffers_take_the_room_that_nothing_is_kept_in() {
        let buffer = || Vec::with_capacity(BLOB_BYTES_MAX);
        let mut kept = Kept::new(2 * BLOB_BYTES_MAX, 1);
        let one = blob(1, 0);
        kept.keep(&one, Arc::new(buffer()), ALL.end, false);
        assert_eq!(kept.give_back(buffer()), None, "one is kept in any case");
        assert!(kept.give_back(buffer()).is_some(), "there is no room for a second");
        assert!(kept.give_back(Vec::with_capacity(10)).is_some(), "it is of no use");
        assert!(kept.spare_buffer().is_some() && kept.spare_buffer().is_none());
        kept.plan(1, &part(&one, ALL));
        kept.end_window(1, &[one.place()]);
        assert!(kept.give_back(buffer()).is_none() && kept.give_back(buffer()).is_none());
        assert!(kept.give_back(buffer()).is_some());
    }
}
