//! Copies what lives in packs that are partly dead: whole blobs as they are, the rest of others, and what is rebased, sealed
//! anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::execute::Run;
use super::{Fate, PruneError};
use crate::format::manifest::ChunkEntry;
use crate::format::pack::{BlobContents, BlobKind};
use crate::id::ObjectId;
use crate::limits::{BLOB_BYTES_MAX, BLOB_CHUNKS_MAX, CHAINED_BLOBS_TOGETHER};
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::chains::Chains;
use crate::ops::holdings::{Holdings, is_damage, prefix_of};
use crate::pipeline::PipelineError;
use crate::pipeline::delta::Guessed;
use crate::pipeline::packer::{Added, Blob, Packer, Pending};
use crate::pipeline::read::Reader;
use crate::progress::{Cancelled, Progress};
use crate::repo::index::BlobRow;
use crate::repo::{RepoError, Repository, pack_name};
use crate::seal::blob::Opener;

impl Run<'_> {
    /// Copies what lives in packs that are partly dead, and returns those packs: now nothing in them is needed.
    pub(super) fn repack(&mut self) -> Result<Vec<ObjectId>, PruneError> {
        let mut sources = Vec::new();
        let fates = self.survey.plan.fates.iter().enumerate();
        let numbers: Vec<usize> = fates.filter(|(_, fate)| **fate == Fate::Repack).map(|(number, _)| number).collect();
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        // What has just been removed is not to be looked for: of two copies of a base the local index would name either.
        self.repo.load_index(&Progress::default())?;
        self.progress.phase("copying what is in use");
        self.progress.add_items_total(numbers.len() as u64);
        let added = Arc::<Added>::default();
        let (sealers, level) = (self.options.sealers, self.options.level);
        let packer = Packer::start(self.repo.clone(), Arc::<Pending>::default(), added.clone(), None, sealers, level);
        let reader = Reader::new(self.repo.clone(), 1, self.progress.clone());
        let mut copier = Copier {
            repo: self.repo,
            holdings: &self.survey.holdings,
            claimed: &self.survey.plan.claimed,
            rebased: &self.survey.plan.rebased,
            reader: &reader,
            packer: &packer,
            opener: Opener::default(),
            chains: Chains::of(&self.survey.holdings, |blob| self.survey.plan.rebased.get(blob as usize))?,
            chained: Vec::new(),
            damaged: Vec::new(),
            gathered: [BlobKind::Data, BlobKind::Meta].map(|kind| Gathered::new(kind, Vec::new())),
        };
        let in_use = self.survey.holdings.blobs_with(&self.survey.plan.claimed)?;
        let mut rebased_all = true;
        for number in numbers {
            if self.progress.is_cancelled() {
                return Err(Cancelled.into());
            }
            let pack = &self.survey.holdings.packs[number];
            let copied = match pack.blobs.clone().any(|blob| in_use.get(blob as usize)) {
                true => copier.copy(number),
                false => Ok(()),
            };
            match copied {
                Ok(()) => sources.push(number),
                Err(PipelineError::Stopped) => break,
                Err(PipelineError::Repo(error)) if is_damage(&error) => {
                    self.report.damaged.push(error.to_string());
                    rebased_all &= !self.has_rebased(number);
                }
                Err(error) => return Err(error.into()),
            }
            self.progress.add_items(1);
        }
        let flushed = copier.copy_chained().and_then(|()| copier.flush());
        let damaged = std::mem::take(&mut copier.damaged);
        packer.finish()?;
        flushed?;
        rebased_all &= damaged.is_empty();
        for error in damaged.iter().map(ToString::to_string) {
            // Many chains may rest on one damaged blob.
            if !self.report.damaged.contains(&error) {
                self.report.damaged.push(error);
            }
        }
        self.report.bytes_copied += added.pack_bytes.load(Relaxed);
        if !rebased_all {
            // What could not be stored anew stays, and with it all that it may rest on.
            sources.retain(|number| !self.has_rebased(*number));
        }
        let sources: Vec<ObjectId> = sources.into_iter().map(|number| self.survey.holdings.packs[number].id).collect();

        // What index objects now say elsewhere, as the store has them.
        self.read_new_index_objects()?;
        let gone: HashSet<ObjectId> = sources.iter().copied().collect();
        let holdings = &self.survey.holdings;
        for (position, chunk) in holdings.chunks.iter().enumerate() {
            let pack = &holdings.packs[holdings.pack_of(&chunk?) as usize].id;
            let needed = self.survey.plan.claimed.get(position) && gone.contains(pack);
            if needed && !self.fresh.known.get(position) {
                let detail = "a chunk of it was not copied: nothing more was removed".to_owned();
                return Err(RepoError::Damaged { name: pack_name(pack), detail }.into());
            }
        }
        for pack in &sources {
            self.dead.insert(*pack, self.survey.stored[pack].0);
        }
        Ok(sources)
    }

    fn has_rebased(&self, number: usize) -> bool {
        self.survey.holdings.packs[number].blobs.clone().any(|blob| self.survey.plan.rebased.get(blob as usize))
    }
}

/// Chunks of blobs that are partly dead, gathered into new ones.
struct Gathered {
    contents: BlobContents,
    plaintext: Vec<u8>,
}

impl Gathered {
    fn new(kind: BlobKind, plaintext: Vec<u8>) -> Self {
        let contents = BlobContents { kind, depth: 0, chunks: Vec::new(), bases: Vec::new() };
        Self { contents, plaintext }
    }
}

/// Copies packs into a packer.
struct Copier<'a> {
    repo: &'a Arc<Repository>,
    holdings: &'a Holdings,
    claimed: &'a Bits,
    rebased: &'a Bits,
    reader: &'a Reader,
    packer: &'a Packer,
    opener: Opener,
    chains: Chains,
    /// Blobs that are rebased and not yet opened, and which chunks of theirs stay.
    chained: Vec<(u32, BlobRow, Vec<bool>)>,
    /// Why some of them cannot be opened.
    damaged: Vec<RepoError>,
    gathered: [Gathered; 2],
}

impl Copier<'_> {
    fn copy(&mut self, number: usize) -> Result<(), PipelineError> {
        let pack = &self.holdings.packs[number];
        let name = pack_name(&pack.id);
        let bytes = self.repo.backend.get(&name, None).map_err(RepoError::from)?;
        let damaged = |detail| RepoError::Damaged { name: name.clone(), detail };
        // Blobs are copied unopened: so the whole is compared first, or damage would get a name of its own.
        if ObjectId::of(&bytes) != pack.id {
            return Err(damaged("its bytes do not hash to its name".to_owned()).into());
        }
        let directory = pack.open_directory(&self.repo.keys, &bytes).map_err(damaged)?;
        for (blob, entry) in pack.blobs.clone().zip(directory) {
            let contents = &entry.contents;
            let live = contents.chunks.iter().map(|chunk| self.is_claimed(chunk, blob));
            let live: Vec<bool> = live.collect::<Result<_, _>>()?;
            let stored = &bytes[entry.offset as usize..(entry.offset + entry.stored) as usize];
            let rests = !contents.bases.is_empty();
            let is_whole = if rests { !self.rebased.get(blob as usize) } else { live.iter().all(|live| *live) };
            if !live.contains(&true) {
                continue;
            }
            if is_whole {
                // Copied, so that a few blobs on their way do not keep all of several packs in memory.
                let stored = Bytes::copy_from_slice(stored);
                self.packer.push(Blob::Sealed { contents: entry.contents, stored })?;
                continue;
            }
            let row = pack.row(entry);
            if rests {
                self.chained.push((blob, row, live));
            } else {
                let plaintext = self.reader.open(&mut self.opener, &row, stored)?;
                self.copy_part(&row, plaintext, &live)?;
            }
        }
        if self.chained.len() >= CHAINED_BLOBS_TOGETHER { self.copy_chained() } else { Ok(()) }
    }

    /// Copies out of blobs that rest on others, chain by chain, so that each is opened once.
    fn copy_chained(&mut self) -> Result<(), PipelineError> {
        let mut chained = std::mem::take(&mut self.chained);
        chained.sort_by_cached_key(|(blob, ..)| self.chains.path(*blob));
        for (_, row, live) in chained {
            match self.reader.open_chained(&mut self.opener, &row) {
                Ok(plaintext) => self.copy_part(&row, plaintext, &live)?,
                Err(PipelineError::Repo(error)) if is_damage(&error) => self.damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_claimed(&self, entry: &ChunkEntry, blob: u32) -> Result<bool, RepoError> {
        let copies = self.holdings.chunks.find(prefix_of(&entry.id))?;
        Ok(copies.iter().any(|(position, copy)| copy.blob == blob && self.claimed.get(position)))
    }

    fn copy_part(&mut self, row: &BlobRow, plaintext: Arc<Vec<u8>>, live: &[bool]) -> Result<(), PipelineError> {
        for (position, _) in live.iter().enumerate().filter(|(_, live)| **live) {
            let range = row.range_of(&(position..position + 1));
            let gathered = &self.gathered[row.contents.kind as usize - 1];
            let bytes = gathered.plaintext.len() + range.len();
            if bytes > BLOB_BYTES_MAX || gathered.contents.chunks.len() >= BLOB_CHUNKS_MAX {
                self.flush_kind(row.contents.kind)?;
            }
            let gathered = &mut self.gathered[row.contents.kind as usize - 1];
            gathered.plaintext.extend_from_slice(&plaintext[range]);
            gathered.contents.chunks.push(row.contents.chunks[position]);
        }
        self.reader.give_back(plaintext);
        Ok(())
    }

    fn flush_kind(&mut self, kind: BlobKind) -> Result<(), PipelineError> {
        let gathered = &mut self.gathered[kind as usize - 1];
        if gathered.contents.chunks.is_empty() {
            return Ok(());
        }
        let Gathered { contents, plaintext } = std::mem::replace(gathered, Gathered::new(kind, self.packer.buffer()));
        self.packer.push(Blob::Plain { contents, plaintext, candidates: Vec::new(), guessed: Guessed::default() })
    }

    fn flush(&mut self) -> Result<(), PipelineError> {
        self.flush_kind(BlobKind::Data)?;
        self.flush_kind(BlobKind::Meta)
    }
}
