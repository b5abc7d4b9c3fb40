//! Opens blobs after those that they rest on.

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use super::kept::Kept;
use super::parts::{Bytes, Joined, Part};
use super::{Reader, missing_chunk, stream_error};
use crate::format::manifest::{ChunkEntry, bytes_of};
use crate::limits::DELTA_DEPTH_MAX;
use crate::pipeline::PipelineError;
use crate::repo::index::{BlobRow, Location};
use crate::repo::{RepoError, damaged, pack_name};
use crate::seal::blob::{OpenError, Opener, compare_names};

/// What a blob is opened for.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// How many blobs wait for this one.
    depth: u8,
    /// The window of the plan, if there is one.
    window: Option<u64>,
    /// Whether every chunk of every blob on the way is compared with its name, so that the error names the one at fault. Bytes
    /// that a wrong base leads to are found out either way.
    compare: bool,
    /// How many chunks of it may be asked for that no plan knows of, from the first one on.
    front: usize,
}

impl Step {
    /// By the plan.
    fn planned(window: u64) -> Self {
        Self { depth: 0, window: Some(window), compare: false, front: 0 }
    }

    /// Without one.
    fn unplanned(front: usize) -> Self {
        Self { depth: 0, window: None, compare: false, front }
    }

    fn deeper(self) -> Self {
        let front = if self.window.is_some() { 0 } else { usize::MAX };
        Self { depth: self.depth + 1, front, ..self }
    }
}

/// Somebody opens a blob: when this is dropped, it is kept or not wanted, or it failed.
struct Opening<'r> {
    reader: &'r Reader,
    blob: &'r BlobRow,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.reader.kept().end_opening(self.blob);
        self.reader.opened.notify_all();
    }
}

impl Reader {
    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no code panics while it holds this lock")
    }

    fn locate_base(&self, base: &ChunkEntry, depth: u8) -> Result<Location, PipelineError> {
        let find = || self.repo.index.find_base(base, depth, |_| true);
        match find() {
            Some(found) => Ok(found),
            None => self.look_again(find)?.ok_or_else(|| missing_chunk(&base.id)),
        }
    }

    /// The plaintext of chunks whose place is known. `front` is how many chunks of their blob the caller may ask for, from the
    /// first one on.
    pub fn part(&self, opener: &mut Opener, part: &Part, front: usize) -> Result<Bytes, PipelineError> {
        let piece = self.step_for(opener, part, Step::unplanned(front));
        self.verified(opener, part, piece)
    }

    /// The plaintexts of parts of one blob, which was fetched as `sealed`, not compared with their names.
    pub(super) fn pieces(
        &self,
        opener: &mut Opener,
        parts: &[&Part],
        sealed: &[u8],
        window: Option<u64>,
    ) -> Result<Vec<Bytes>, PipelineError> {
        self.step(opener, parts, Some(sealed), window.map_or(Step::unplanned(usize::MAX), Step::planned))
    }

    /// Compares chunks with their names. If that or opening them failed because of one of the bases, they are opened again, so
    /// that the error names that one.
    pub(super) fn verified(
        &self,
        opener: &mut Opener,
        part: &Part,
        piece: Result<Bytes, PipelineError>,
    ) -> Result<Bytes, PipelineError> {
        let compared = |(bytes, range): Bytes| {
            self.compare(&part.blob, &part.positions, &bytes[range.clone()])?;
            Ok((bytes, range))
        };
        match piece.and_then(compared) {
            Err(PipelineError::Repo(RepoError::Damaged { .. })) if !part.blob.contents.bases.is_empty() => {
                let step = Step { compare: true, ..Step::unplanned(usize::MAX) };
                self.step_for(opener, part, step).and_then(compared)
            }
            other => other,
        }
    }

    fn compare(&self, blob: &BlobRow, positions: &Range<usize>, plaintext: &[u8]) -> Result<(), PipelineError> {
        let chunks = &blob.contents.chunks[positions.clone()];
        compare_names(&self.repo.keys, blob.contents.kind, chunks, plaintext).map_err(|error| in_blob(blob, &error))
    }

    fn step_for(&self, opener: &mut Opener, part: &Part, step: Step) -> Result<Bytes, PipelineError> {
        Ok(self.step(opener, &[part], None, step)?.pop().expect("one part in, one piece out"))
    }

    /// The plaintexts of `parts`, which are of one blob.
    fn step(
        &self,
        opener: &mut Opener,
        parts: &[&Part],
        sealed: Option<&[u8]>,
        step: Step,
    ) -> Result<Vec<Bytes>, PipelineError> {
        let blob = &parts[0].blob;
        let ask = |kept: &mut Kept| {
            if let Some(window) = step.window {
                parts.iter().for_each(|part| kept.ask(window, part));
            }
        };
        let mut kept = self.kept();
        loop {
            let held: Option<Vec<Bytes>> = parts.iter().map(|part| kept.get(part, step.compare)).collect();
            if let Some(held) = held {
                ask(&mut kept);
                return Ok(held);
            }
            if kept.begin_opening(blob) {
                break;
            }
            // A blob rests on less deep ones only: nobody waits for who is waiting. Whoever opens it keeps this as well, which has
            // not been asked for yet.
            kept = self.opened.wait(kept).expect("no code panics while it holds this lock");
        }
        ask(&mut kept);
        let chunks = blob.contents.chunks.len();
        let wanted = match step.window {
            Some(_) => kept.wanted_until(blob),
            None if parts[0].is_whole() => None,
            None => Some(step.front.min(chunks)),
        };
        drop(kept);
        let _opening = Opening { reader: self, blob };
        let ends = parts.iter().map(|part| part.positions.end).chain(wanted);
        let front = if step.compare { chunks } else { ends.max().unwrap_or(chunks) };
        let plaintext = match sealed {
            Some(sealed) => self.open_after_bases(opener, blob, sealed, front, step)?,
            None => {
                let sealed = self.fetcher.get(blob).map_err(RepoError::from)?;
                self.open_after_bases(opener, blob, &sealed, front, step)?
            }
        };
        if wanted.is_some() {
            self.keep(blob, &plaintext, front, step.compare);
        }
        Ok(parts.iter().map(|part| (plaintext.clone(), blob.range_of(&part.positions))).collect())
    }

    /// Fetches and opens a blob, and keeps it for those that rest on it.
    pub(crate) fn open_chained(&self, opener: &mut Opener, blob: &BlobRow) -> Result<Arc<Vec<u8>>, PipelineError> {
        let chunks = blob.contents.chunks.len();
        let all = Part { positions: 0..chunks, blob: Arc::new(blob.clone()) };
        let (plaintext, _) = self.part(opener, &all, chunks)?;
        let is_held = self.kept().is_held(blob);
        if !is_held {
            self.keep(&all.blob, &plaintext, chunks, true);
        }
        Ok(plaintext)
    }

    /// Opens a blob that was fetched, after its bases.
    pub(crate) fn open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let whole = 0..blob.contents.chunks.len();
        let plaintext = self.open_after_bases(opener, blob, sealed, whole.end, Step::unplanned(whole.end))?;
        self.compare(blob, &whole, &plaintext)?;
        Ok(plaintext)
    }

    /// The plaintext of the first chunks of a blob, `front` of them, or of more.
    fn open_after_bases(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
        front: usize,
        step: Step,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let contents = &blob.contents;
        if step.depth > DELTA_DEPTH_MAX {
            return Err(stream_error("its chunks rest on each other too deep"));
        }
        let planned = step.window.and_then(|_| self.kept().bases_of(blob));
        let parts = planned.map_or_else(|| self.locate_bases(blob), Ok)?;
        let mut bases = Joined::new(bytes_of(&contents.bases));
        for part in &*parts {
            self.join(&mut bases, self.step_for(opener, part, step.deeper())?);
        }
        let mut plaintext = self.spare_buffer();
        let wanted = blob.bytes_of(&(0..front));
        let opened = opener.open_front(&self.repo.keys, contents, sealed, bases.bytes(), wanted, &mut plaintext);
        opened.map_err(|error| in_blob(blob, &error))?;
        if step.compare {
            self.compare(blob, &(0..contents.chunks.len()), &plaintext)?;
        }
        self.take_back(bases);
        Ok(Arc::new(plaintext))
    }

    fn locate_bases(&self, blob: &BlobRow) -> Result<Arc<[Part]>, PipelineError> {
        Part::runs(&blob.contents.bases, |base| self.locate_base(base, blob.contents.depth))
    }

    /// Keeps what was opened of a blob, its first chunks.
    fn keep(&self, blob: &Arc<BlobRow>, plaintext: &Arc<Vec<u8>>, front: usize, is_named: bool) {
        let gone = self.kept().keep(blob, plaintext.clone(), front, is_named);
        gone.into_iter().for_each(|plaintext| self.give_back(plaintext));
    }
}

fn in_blob(blob: &BlobRow, error: &OpenError) -> PipelineError {
    damaged(&format!("{} (blob at {})", pack_name(&blob.pack), blob.offset), error).into()
}
