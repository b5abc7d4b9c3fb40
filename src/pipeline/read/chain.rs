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
}

impl Step {
    fn first(window: Option<u64>) -> Self {
        Self { depth: 0, window, compare: false }
    }

    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
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

    /// The plaintext of chunks whose place is known.
    pub fn part(&self, opener: &mut Opener, part: &Part) -> Result<Bytes, PipelineError> {
        let piece = self.piece(opener, part, None, None);
        self.verified(opener, part, piece)
    }

    /// The plaintext of chunks, not compared with their names. `sealed` is their blob, if it was fetched.
    pub(super) fn piece(
        &self,
        opener: &mut Opener,
        part: &Part,
        sealed: Option<&[u8]>,
        window: Option<u64>,
    ) -> Result<Bytes, PipelineError> {
        self.step(opener, part, sealed, Step::first(window))
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
                let step = Step { depth: 0, window: None, compare: true };
                self.step(opener, part, None, step).and_then(compared)
            }
            other => other,
        }
    }

    fn compare(&self, blob: &BlobRow, positions: &Range<usize>, plaintext: &[u8]) -> Result<(), PipelineError> {
        let chunks = &blob.contents.chunks[positions.clone()];
        compare_names(&self.repo.keys, blob.contents.kind, chunks, plaintext).map_err(|error| in_blob(blob, &error))
    }

    fn step(
        &self,
        opener: &mut Opener,
        part: &Part,
        sealed: Option<&[u8]>,
        step: Step,
    ) -> Result<Bytes, PipelineError> {
        let blob = &*part.blob;
        let mut kept = self.kept();
        if let Some(window) = step.window {
            kept.ask(window, part);
        }
        loop {
            if let Some(bytes) = kept.get(part, step.compare) {
                return Ok(bytes);
            }
            if kept.begin_opening(blob) {
                break;
            }
            // A blob rests on less deep ones only: nobody waits for who is waiting.
            kept = self.opened.wait(kept).expect("no code panics while it holds this lock");
        }
        drop(kept);
        let _opening = Opening { reader: self, blob };
        let plaintext = match sealed {
            Some(sealed) => self.open_after_bases(opener, blob, sealed, step)?,
            None => {
                let sealed = self.fetcher.get(blob).map_err(RepoError::from)?;
                self.open_after_bases(opener, blob, &sealed, step)?
            }
        };
        // Without a plan, who has read a part may come back for more.
        let keep_all = step.window.is_none() && !part.is_whole();
        Ok((self.keep(blob, plaintext, keep_all, step.compare), blob.range_of(&part.positions)))
    }

    /// Fetches and opens a blob, and keeps it for those that rest on it.
    pub(crate) fn open_chained(&self, opener: &mut Opener, blob: &BlobRow) -> Result<Arc<Vec<u8>>, PipelineError> {
        let all = Part { positions: 0..blob.contents.chunks.len(), blob: Arc::new(blob.clone()) };
        let piece = self.piece(opener, &all, None, None);
        let (plaintext, _) = self.verified(opener, &all, piece)?;
        Ok(if self.kept().is_held(blob) { plaintext } else { self.keep(blob, plaintext, true, true) })
    }

    /// Opens a blob that was fetched, after its bases.
    pub(crate) fn open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let plaintext = self.open_after_bases(opener, blob, sealed, Step::first(None))?;
        self.compare(blob, &(0..blob.contents.chunks.len()), &plaintext)?;
        Ok(plaintext)
    }

    fn open_after_bases(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
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
            self.join(&mut bases, self.step(opener, part, None, step.deeper())?);
        }
        let mut plaintext = self.spare_buffer();
        let opened = opener.open_unnamed(&self.repo.keys, contents, sealed, bases.bytes(), &mut plaintext);
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

    /// Keeps of an opened blob what will be asked for, or all of it. Returns it.
    fn keep(&self, blob: &BlobRow, plaintext: Arc<Vec<u8>>, all: bool, is_named: bool) -> Arc<Vec<u8>> {
        let whole = 0..blob.contents.chunks.len();
        let wanted = if all { vec![whole.clone()] } else { self.kept().wanted(blob) };
        if wanted.is_empty() {
            return plaintext;
        }
        let (plaintext, kept) = if wanted != [whole] {
            let mut copied = Vec::with_capacity(wanted.iter().map(|run| blob.bytes_of(run)).sum());
            wanted.iter().for_each(|run| copied.extend_from_slice(&plaintext[blob.range_of(run)]));
            (plaintext, Arc::new(copied))
        } else if plaintext.capacity() > plaintext.len() / 4 * 5 {
            // What is kept takes no more memory than it counts for.
            let exact = Arc::new(plaintext.as_slice().to_vec());
            self.give_back(plaintext);
            (exact.clone(), exact)
        } else {
            (plaintext.clone(), plaintext)
        };
        let gone = self.kept().keep(blob, kept, wanted, is_named);
        gone.into_iter().for_each(|plaintext| self.give_back(plaintext));
        plaintext
    }
}

fn in_blob(blob: &BlobRow, error: &OpenError) -> PipelineError {
    damaged(&format!("{} (blob at {})", pack_name(&blob.pack), blob.offset), error).into()
}
