//! Opens blobs after those that they rest on, and keeps what may be asked for again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::parts::{Bytes, Joined, Part};
use super::{Reader, missing_chunk, stream_error};
use crate::format::manifest::ChunkEntry;
use crate::id::ObjectId;
use crate::limits::{DELTA_DEPTH_MAX, OPENED_BYTES};
use crate::pipeline::PipelineError;
use crate::repo::index::{BlobRow, Location};
use crate::repo::{RepoError, damaged, pack_name};
use crate::seal::blob::{Opener, compare_names};

/// A blob that was opened.
pub(super) struct OpenedBlob {
    pack: ObjectId,
    offset: u32,
    plaintext: Arc<Vec<u8>>,
    /// Whether its chunks were compared with their names.
    is_named: bool,
}

impl OpenedBlob {
    fn is(&self, blob: &BlobRow) -> bool {
        self.pack == blob.pack && self.offset == blob.offset
    }
}

/// Which blobs of a chain have their chunks compared with their names. Bytes that a wrong base leads to are found out either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    /// None: the caller compares those chunks that it needs.
    Nothing,
    /// The one that was asked for.
    Last,
    All,
}

impl Compare {
    /// Whether the blob is one of them for which `depth` others wait.
    fn includes(self, depth: u8) -> bool {
        match self {
            Self::Nothing => false,
            Self::Last => depth == 0,
            Self::All => true,
        }
    }
}

impl Reader {
    fn locate_base(&self, base: &ChunkEntry, depth: u8) -> Result<Location, PipelineError> {
        let find = || self.repo.index.find_base(base, depth, |_| true);
        match find() {
            Some(found) => Ok(found),
            None => self.look_again(find)?.ok_or_else(|| missing_chunk(&base.id)),
        }
    }

    /// The plaintext of chunks whose place is known. They are compared with their names, the rest of their blob is not.
    pub fn part(&self, opener: &mut Opener, part: &Part) -> Result<Bytes, PipelineError> {
        let (bytes, range) = self.piece(opener, part, 0, Compare::Nothing)?;
        let contents = &part.blob.contents;
        let chunks = &contents.chunks[part.positions.clone()];
        compare_names(&self.repo.keys, contents.kind, chunks, &bytes[range.clone()])
            .map_err(|error| damaged(&name_of_blob(&part.blob), &error))?;
        Ok((bytes, range))
    }

    fn piece(&self, opener: &mut Opener, part: &Part, depth: u8, compare: Compare) -> Result<Bytes, PipelineError> {
        let plaintext = self.fetch_and_open(opener, &part.blob, depth, compare, !part.is_whole())?;
        Ok((plaintext, part.blob.range_of(&part.positions)))
    }

    /// `keep` says that somebody may come back for more of it.
    fn fetch_and_open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        depth: u8,
        compare: Compare,
        keep: bool,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let is_named = compare.includes(depth);
        if let Some(plaintext) = self.kept(blob, is_named) {
            return Ok(plaintext);
        }
        let sealed = self.fetcher.get(blob).map_err(RepoError::from)?;
        let mut plaintext = self.open_at(opener, blob, &sealed, depth, compare)?;
        if keep {
            // What is kept takes no more memory than it counts for.
            if plaintext.capacity() > plaintext.len() / 4 * 5 {
                let exact = Arc::new(plaintext.as_slice().to_vec());
                self.give_back(std::mem::replace(&mut plaintext, exact));
            }
            self.keep(blob, &plaintext, is_named);
        }
        Ok(plaintext)
    }

    /// Fetches and opens a blob, and keeps it for those that rest on it.
    pub(crate) fn open_chained(&self, opener: &mut Opener, blob: &BlobRow) -> Result<Arc<Vec<u8>>, PipelineError> {
        blame(blob, |compare| self.fetch_and_open(opener, blob, 0, compare, true))
    }

    /// Opens a blob, after its bases.
    pub(crate) fn open(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        blame(blob, |compare| self.open_at(opener, blob, sealed, 0, compare))
    }

    /// `depth` counts how many blobs wait for this one.
    fn open_at(
        &self,
        opener: &mut Opener,
        blob: &BlobRow,
        sealed: &[u8],
        depth: u8,
        compare: Compare,
    ) -> Result<Arc<Vec<u8>>, PipelineError> {
        let contents = &blob.contents;
        if depth > DELTA_DEPTH_MAX {
            return Err(stream_error("its chunks rest on each other too deep"));
        }
        let mut parts: Vec<Part> = Vec::new();
        for base in &contents.bases {
            if !parts.last_mut().is_some_and(|part| part.extend(base)) {
                parts.push(self.locate_base(base, contents.depth)?.into());
            }
        }
        let mut bases = Joined::new(contents.bases.iter().map(|base| base.bytes as usize).sum());
        for part in &parts {
            self.join(&mut bases, self.piece(opener, part, depth + 1, compare)?);
        }
        let mut plaintext = self.spare_buffer();
        let keys = &self.repo.keys;
        let opened = opener.open_unnamed(keys, contents, sealed, bases.bytes(), &mut plaintext);
        let opened = opened.and_then(|()| match compare.includes(depth) {
            true => compare_names(keys, contents.kind, &contents.chunks, &plaintext),
            false => Ok(()),
        });
        opened.map_err(|error| damaged(&name_of_blob(blob), &error))?;
        self.take_back(bases);
        Ok(Arc::new(plaintext))
    }

    /// Keeps an opened blob for whoever asks for it next.
    pub(super) fn keep(&self, blob: &BlobRow, plaintext: &Arc<Vec<u8>>, is_named: bool) {
        let new = OpenedBlob { pack: blob.pack, offset: blob.offset, plaintext: plaintext.clone(), is_named };
        let mut opened = self.opened.lock().expect("no code panics while it holds this lock");
        opened.push_back(new);
        let mut bytes: usize = opened.iter().map(|kept| kept.plaintext.len()).sum();
        let mut oldest = Vec::new();
        while bytes > OPENED_BYTES * self.openers
            && let Some(kept) = opened.pop_front()
        {
            bytes -= kept.plaintext.len();
            oldest.push(kept.plaintext);
        }
        drop(opened);
        oldest.into_iter().for_each(|plaintext| self.give_back(plaintext));
    }

    /// A blob that is still open; the ones used last are kept longest. With `is_named` its chunks have been compared with
    /// their names.
    pub(super) fn kept(&self, blob: &BlobRow, is_named: bool) -> Option<Arc<Vec<u8>>> {
        let lock = || self.opened.lock().expect("no code panics while it holds this lock");
        let take = |opened: &mut VecDeque<OpenedBlob>| {
            let at = opened.iter().position(|kept| kept.is(blob))?;
            opened.remove(at)
        };
        let mut opened = lock();
        let mut kept = take(&mut opened)?;
        if is_named && !kept.is_named {
            drop(opened);
            let contents = &blob.contents;
            compare_names(&self.repo.keys, contents.kind, &contents.chunks, &kept.plaintext).ok()?;
            kept.is_named = true;
            opened = lock();
            // Somebody else may have opened it meanwhile.
            take(&mut opened);
        }
        let plaintext = kept.plaintext.clone();
        opened.push_back(kept);
        Some(plaintext)
    }

    pub(super) fn is_opened(&self, blob: &BlobRow) -> bool {
        let opened = self.opened.lock().expect("no code panics while it holds this lock");
        opened.iter().any(|kept| kept.is(blob))
    }
}

fn name_of_blob(blob: &BlobRow) -> String {
    format!("{} (blob at {})", pack_name(&blob.pack), blob.offset)
}

/// Opens a blob. If that fails because of one of its bases, it is opened again, so that the error names that one.
fn blame(
    blob: &BlobRow,
    mut open: impl FnMut(Compare) -> Result<Arc<Vec<u8>>, PipelineError>,
) -> Result<Arc<Vec<u8>>, PipelineError> {
    match open(Compare::Last) {
        Err(PipelineError::Repo(RepoError::Damaged { .. })) if !blob.contents.bases.is_empty() => open(Compare::All),
        other => other,
    }
}
