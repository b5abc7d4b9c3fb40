//! Reads packs whole: hashes every byte, opens every blob, names every chunk again.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::CheckOptions;
use super::pack_reader::{BadPack, PackRead, PackReader};
use super::read_packs::ReadPacks;
use crate::limits::{CHAINED_BLOBS_TOGETHER, CHECKED_PIECE_BYTES};
use crate::ops::holdings::chains::Chains;
use crate::ops::holdings::{Holdings, is_damage};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::index::BlobRow;
use crate::repo::together::in_order;
use crate::repo::{RepoError, Repository, pack_name};

/// Results of so many packs at most are remembered at once.
const PACKS_TOGETHER: usize = 256;

/// Stored bytes of blobs that a thread opens one after the other, and has fetched together from a far store: two threads have
/// room for theirs in [`FETCHED_BYTES`](crate::limits::FETCHED_BYTES). Fewer where every thread would not get [`RUNS_EACH`].
const RUN_BYTES: RangeInclusive<usize> = 64 << 10..=2 << 20;
/// Runs that a thread takes of few blobs, one after the other, so that none waits long for another's last.
const RUNS_EACH: usize = 8;
/// Of so many packs at the end, for each thread, blobs that stand alone are opened in runs as well: whoever is done with the
/// last but one does not wait for the last.
const LAST_PACKS_EACH: usize = 2;

/// What reading packs came to.
#[derive(Default)]
pub(super) struct DataRead {
    pub(super) packs: usize,
    pub(super) bytes: u64,
    pub(super) plaintext: u64,
    pub(super) bad: Vec<BadPack>,
}

pub(super) fn read_packs(
    repo: &Arc<Repository>,
    options: &CheckOptions,
    holdings: &Holdings,
    chosen: &[usize],
    progress: &Progress,
) -> Result<DataRead, PipelineError> {
    let threads = options.threads.clamp(1, chosen.len().max(1));
    let local = ReadPacks::of(repo, holdings);
    let packs = local.as_ref().map(|local| local.packs.clone());
    let run = Run {
        repo,
        holdings,
        bases: Reader::new(repo.clone(), threads, Progress::default()).with_local_packs(packs),
        chains: Chains::of(holdings, |_| true)?,
        local,
        threads,
        ends: options.max_duration.map(|most| Instant::now() + most),
        progress,
    };
    let mut read = std::thread::scope(|scope| {
        let (send, fetched) = bounded(0);
        let supply = if repo.backend.properties().is_far() {
            scope.spawn(|| run.fetch_packs(chosen, send));
            Supply::Far(fetched)
        } else {
            Supply::Near(AtomicUsize::new(0))
        };
        // When it is dropped, who fetches stops.
        run.read_all(chosen, supply, options.now.as_second())
    })?;
    if progress.is_cancelled() {
        return Err(Cancelled.into());
    }
    read.bad.sort_by_key(|bad| bad.pack);
    Ok(read)
}

/// A pack that is to be read: its place among those that were chosen, and its bytes or why they cannot be had.
struct Fetched {
    at: usize,
    bytes: Result<Bytes, RepoError>,
}

/// Where the chosen packs come from, one after the other.
enum Supply {
    /// Whoever reads one gets it: the place of the next.
    Near(AtomicUsize),
    /// They are fetched beforehand, also while others are opened.
    Far(Receiver<Fetched>),
}

/// A run over packs. First they are read whole, as many as leave so many blobs of chains; then these are opened, chain by
/// chain, so that each is opened once, however many rest on it.
struct Run<'a> {
    repo: &'a Arc<Repository>,
    holdings: &'a Holdings,
    /// For blobs that rest on others. All threads share it, and the blobs that it keeps.
    bases: Reader,
    chains: Chains,
    local: Option<ReadPacks>,
    threads: usize,
    ends: Option<Instant>,
    progress: &'a Progress,
}

impl Run<'_> {
    /// Whether no more packs are to be read.
    fn is_over(&self) -> bool {
        self.progress.is_cancelled() || self.ends.is_some_and(|ends| Instant::now() >= ends)
    }

    /// Runs `work` on several threads; it is called again and again with numbers from 0 on, until it says that it is done.
    fn side_by_side(
        &self,
        work: impl Fn(&mut PackReader, usize) -> Result<bool, PipelineError> + Sync,
    ) -> Result<(), PipelineError> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let mut reader = PackReader::new(self.repo, self.holdings, &self.chains, self.local.as_ref());
            while !failed.load(Relaxed) {
                match work(&mut reader, next.fetch_add(1, Relaxed)) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        failed.store(true, Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("reading packs does not panic"))
        })
    }

    /// Reads all packs, batch after batch.
    fn read_all(&self, chosen: &[usize], supply: Supply, now: i64) -> Result<DataRead, PipelineError> {
        let (mut read, mut verified) = (DataRead::default(), Vec::new());
        loop {
            let mut batch = self.read_batch(chosen, &supply)?;
            if batch.is_empty() {
                return Ok(read);
            }
            self.open_later(&mut batch)?;
            for pack in batch {
                let held = &self.holdings.packs[pack.number];
                read.packs += 1;
                read.bytes += u64::from(held.bytes);
                read.plaintext += pack.plaintext_bytes;
                match pack.finish(held.blobs.len()) {
                    Some(bad) => read.bad.push(bad),
                    None => verified.push(held.id),
                }
            }
            self.repo.index.set_verified(&verified, now);
            verified.clear();
        }
    }

    /// Reads the next packs: none if all have been read, or no more are to be.
    fn read_batch(&self, chosen: &[usize], supply: &Supply) -> Result<Vec<PackRead>, PipelineError> {
        let done: Mutex<Vec<PackRead>> = Mutex::default();
        let later = AtomicUsize::new(0);
        // A far store would be asked for them a second time.
        let is_asked_again = matches!(supply, Supply::Far(_)) && self.local.is_none();
        let last = if is_asked_again { 0 } else { LAST_PACKS_EACH * self.threads };
        self.side_by_side(|reader, turn| {
            let is_full = turn >= PACKS_TOGETHER || later.load(Relaxed) >= CHAINED_BLOBS_TOGETHER;
            let next = if is_full || self.is_over() { None } else { self.next(chosen, supply) };
            let Some(Fetched { at, bytes }) = next else { return Ok(false) };
            let number = chosen[at];
            let pack = reader.read(number, bytes, chosen.len() - at <= last)?;
            let waiting: u64 = pack.later.iter().map(|(_, row)| u64::from(row.stored)).sum();
            later.fetch_add(pack.later.len(), Relaxed);
            self.progress.add_bytes(u64::from(self.holdings.packs[number].bytes).saturating_sub(waiting));
            self.progress.add_items(u64::from(pack.later.is_empty()));
            done.lock().expect("no code panics while it holds this lock").push(pack);
            Ok(true)
        })?;
        Ok(done.into_inner().expect("no code panics while it holds this lock"))
    }

    fn next(&self, chosen: &[usize], supply: &Supply) -> Option<Fetched> {
        match supply {
            Supply::Near(next) => {
                let at = next.fetch_add(1, Relaxed);
                let name = self.name_of(*chosen.get(at)?);
                Some(Fetched { at, bytes: self.repo.backend.get(&name, None).map_err(RepoError::from) })
            }
            Supply::Far(fetched) => fetched.recv().ok(),
        }
    }

    /// Fetches packs of a far store in pieces, so that the next are on their way while the ones before are opened. Ends when
    /// nobody takes one.
    fn fetch_packs(&self, chosen: &[usize], send: Sender<Fetched>) {
        let bytes_of = |at: usize| self.holdings.packs[chosen[at]].bytes;
        let pieces_of = |at: usize| {
            let bytes = bytes_of(at);
            let starts = (0..bytes.max(1)).step_by(CHECKED_PIECE_BYTES as usize);
            starts.map(move |start| (at, start..bytes.min(start + CHECKED_PIECE_BYTES)))
        };
        let pieces: Vec<(usize, Range<u32>)> = (0..chosen.len()).flat_map(pieces_of).collect();
        let backend = &self.repo.backend;
        let get = |(at, range): &(usize, Range<u32>)| {
            let range = u64::from(range.start)..u64::from(range.end);
            backend.get(&self.name_of(chosen[*at]), Some(range)).map_err(RepoError::from)
        };
        let mut pack = Ok(Vec::new());
        // An error only ends it.
        let _ = in_order(backend.properties().parallel_requests, &pieces, get, |(at, range), piece| {
            if range.start == 0 {
                pack = Ok(Vec::with_capacity(bytes_of(*at) as usize));
            }
            match (&mut pack, piece) {
                (Ok(pack), Ok(piece)) => pack.extend_from_slice(&piece),
                (Ok(_), Err(error)) => pack = Err(error),
                (Err(_), _) => {}
            }
            if range.end < bytes_of(*at) {
                return Ok(());
            }
            let bytes = std::mem::replace(&mut pack, Ok(Vec::new())).map(Bytes::from);
            send.send(Fetched { at: *at, bytes }).map_err(|_| ())
        });
    }

    fn name_of(&self, number: usize) -> String {
        pack_name(&self.holdings.packs[number].id)
    }

    /// Opens the blobs of a batch that reading left.
    fn open_later(&self, batch: &mut [PackRead]) -> Result<(), PipelineError> {
        let mut waiting: Vec<Waiting> = Vec::new();
        for (place, pack) in batch.iter_mut().enumerate() {
            self.progress.add_items(u64::from(!pack.later.is_empty()));
            waiting.extend(pack.later.drain(..).map(|(blob, row)| (self.chains.path(blob), place, row)));
        }
        waiting.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        let runs = in_runs(&waiting, self.threads);
        let done: Mutex<Vec<(usize, u32, Result<u64, String>)>> = Mutex::default();
        self.side_by_side(|reader, at| {
            let Some(run) = runs.get(at) else { return Ok(false) };
            self.bases.fetch_ahead(run.iter().map(|(_, _, row)| row));
            for (path, place, row) in *run {
                if self.progress.is_cancelled() {
                    return Err(Cancelled.into());
                }
                let opened = match self.bases.open_chained(&mut reader.opener, row) {
                    Ok(plaintext) => {
                        let bytes = plaintext.len() as u64;
                        self.bases.give_back(plaintext);
                        Ok(bytes)
                    }
                    Err(PipelineError::Repo(error)) if !is_damage(&error) => return Err(error.into()),
                    Err(error) => Err(format!("blob at {}: {error}", row.offset)),
                };
                let blob = *path.last().expect("a path ends with the blob itself");
                done.lock().expect("no code panics while it holds this lock").push((*place, blob, opened));
                self.progress.add_bytes(u64::from(row.stored));
            }
            Ok(true)
        })?;
        for (place, blob, opened) in done.into_inner().expect("no code panics while it holds this lock") {
            match opened {
                Ok(bytes) => batch[place].plaintext_bytes += bytes,
                Err(detail) => batch[place].bad.push((blob, detail)),
            }
        }
        Ok(())
    }
}

/// A blob that reading left: the path to it, its pack's place in the batch, and itself.
type Waiting = (Vec<u32>, usize, BlobRow);

/// Blobs in the order of their chains, in runs of whole chains: neighbours lie side by side in the packs of a day.
fn in_runs(waiting: &[Waiting], threads: usize) -> Vec<&[Waiting]> {
    let stored = |blobs: &[Waiting]| blobs.iter().map(|(_, _, row)| row.stored as usize).sum::<usize>();
    let bytes_max = (stored(waiting) / (threads * RUNS_EACH)).clamp(*RUN_BYTES.start(), *RUN_BYTES.end());
    let (mut runs, mut start, mut end) = (Vec::new(), 0, 0);
    for chain in waiting.chunk_by(|(one, ..), (other, ..)| one[0] == other[0]) {
        if end > start && stored(&waiting[start..end]) + stored(chain) > bytes_max {
            runs.push(&waiting[start..end]);
            start = end;
        }
        end += chain.len();
    }
    if end > start {
        runs.push(&waiting[start..end]);
    }
    runs
}
