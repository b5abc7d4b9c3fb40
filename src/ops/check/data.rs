//! Reads packs whole: hashes every byte, opens every blob, names every chunk again.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};

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
    let (mut read, mut verified) = (DataRead::default(), Vec::new());
    let mut left = chosen;
    while !left.is_empty() && !run.is_over() {
        let mut batch = run.read_batch(left)?;
        left = &left[batch.len()..];
        run.open_later(&mut batch)?;
        for pack in batch {
            let held = &holdings.packs[pack.number];
            read.packs += 1;
            read.bytes += u64::from(held.bytes);
            read.plaintext += pack.plaintext_bytes;
            match pack.finish(held.blobs.len()) {
                Some(bad) => read.bad.push(bad),
                None => verified.push(held.id),
            }
        }
        repo.index.set_verified(&verified, options.now.as_second());
        verified.clear();
    }
    if progress.is_cancelled() {
        return Err(Cancelled.into());
    }
    read.bad.sort_by_key(|bad| bad.pack);
    Ok(read)
}

/// A pack that is to be read: its place among those that are left, its number, its bytes or why they cannot be had.
struct Fetched {
    at: usize,
    number: usize,
    bytes: Result<Bytes, RepoError>,
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

    /// Reads the first packs of `left`, in order.
    fn read_batch(&self, left: &[usize]) -> Result<Vec<PackRead>, PipelineError> {
        let done: Mutex<Vec<(usize, PackRead)>> = Mutex::default();
        let later = AtomicUsize::new(0);
        let claim = |at: usize| {
            let is_full = at >= PACKS_TOGETHER || later.load(Relaxed) >= CHAINED_BLOBS_TOGETHER;
            left.get(at).copied().filter(|_| !is_full && !self.is_over())
        };
        let is_far = self.repo.backend.properties().is_far();
        // A far store would be asked for them a second time.
        let last = if is_far && self.local.is_none() { 0 } else { LAST_PACKS_EACH * self.threads };
        std::thread::scope(|scope| {
            let (send, fetched) = bounded(0);
            if is_far {
                scope.spawn(move || self.fetch_packs(left, claim, &send));
            }
            let read = self.side_by_side(|reader, at| {
                let get = |number| self.repo.backend.get(&self.name_of(number), None).map_err(RepoError::from);
                let next = if is_far {
                    fetched.recv().ok()
                } else {
                    claim(at).map(|number| Fetched { at, number, bytes: get(number) })
                };
                let Some(Fetched { at, number, bytes }) = next else { return Ok(false) };
                let pack = reader.read(number, bytes, left.len() - at <= last)?;
                let waiting: u64 = pack.later.iter().map(|(_, row)| u64::from(row.stored)).sum();
                later.fetch_add(pack.later.len(), Relaxed);
                self.progress.add_bytes(u64::from(self.holdings.packs[number].bytes).saturating_sub(waiting));
                self.progress.add_items(u64::from(pack.later.is_empty()));
                done.lock().expect("no code panics while it holds this lock").push((at, pack));
                Ok(true)
            });
            // Who fetches stops when nobody takes what comes.
            drop(fetched);
            read
        })?;
        let mut done = done.into_inner().expect("no code panics while it holds this lock");
        done.sort_by_key(|(at, _)| *at);
        // What was taken up was the beginning: what comes after a gap is read again.
        let whole = done.iter().zip(0..).take_while(|((at, _), place)| at == place).count();
        done.truncate(whole);
        Ok(done.into_iter().map(|(_, pack)| pack).collect())
    }

    /// Fetches packs of a far store in pieces, so that the next are on their way while the ones before are opened. Ends when a
    /// pack is not to be read, or when nobody takes one.
    fn fetch_packs(&self, left: &[usize], claim: impl Fn(usize) -> Option<usize>, send: &Sender<Fetched>) {
        let bytes_of = |number: usize| self.holdings.packs[number].bytes;
        let pieces: Vec<(usize, Range<u32>)> = left
            .iter()
            .take(PACKS_TOGETHER)
            .enumerate()
            .flat_map(|(at, &number)| {
                let bytes = bytes_of(number);
                let starts = (0..bytes.max(1)).step_by(CHECKED_PIECE_BYTES as usize);
                starts.map(move |start| (at, start..bytes.min(start + CHECKED_PIECE_BYTES)))
            })
            .collect();
        let backend = &self.repo.backend;
        let get = |(at, range): &(usize, Range<u32>)| {
            let piece = backend.get(&self.name_of(left[*at]), Some(u64::from(range.start)..u64::from(range.end)));
            piece.map_err(RepoError::from)
        };
        let mut pack = Ok(Vec::new());
        // An error only ends it.
        let _ = in_order(backend.properties().parallel_requests, &pieces, get, |(at, range), piece| {
            let number = left[*at];
            if range.start == 0 {
                claim(*at).ok_or(())?;
                pack = Ok(Vec::with_capacity(bytes_of(number) as usize));
            }
            match (&mut pack, piece) {
                (Ok(pack), Ok(piece)) => pack.extend_from_slice(&piece),
                (Ok(_), Err(error)) => pack = Err(error),
                (Err(_), _) => {}
            }
            if range.end < bytes_of(number) {
                return Ok(());
            }
            let bytes = std::mem::replace(&mut pack, Ok(Vec::new())).map(Bytes::from);
            send.send(Fetched { at: *at, number, bytes }).map_err(|_| ())
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
