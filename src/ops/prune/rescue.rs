//! Finds what backups reach that were committed since the survey, and keeps it.

use std::collections::{HashMap, HashSet};

use super::PruneError;
use super::execute::Run;
use super::plan::{CLAIMED, REACHED};
use super::survey::{explain, missing};
use crate::backend::BackendError;
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::ops::holdings::{Holdings, prefix_of};
use crate::ops::walk::{Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Progress;
use crate::repo::RepoError;
use crate::seal::keys::Kind;

impl Run<'_> {
    /// Takes out of `going` what backups reach that were committed since the survey.
    pub(super) fn recheck(&mut self, going: &mut HashMap<ObjectId, u64>) -> Result<(), PruneError> {
        let manifests = self.repo.list(Kind::Manifest)?;
        let mut spared = Vec::new();
        for (id, _) in self.repo.list(Kind::Index)? {
            if self.listing.contains_key(&id) {
                continue;
            }
            let index = match self.repo.load_index_object(&id) {
                Err(RepoError::Backend(BackendError::NotFound { .. })) => continue,
                other => other?,
            };
            let chunks = index.packs.iter().flat_map(|pack| &pack.directory).flat_map(|blob| &blob.contents.chunks);
            self.fresh.extend(chunks.map(|chunk| prefix_of(&chunk.id)));
            // A backup that this run took for dead has listed it after all.
            spared.extend(index.packs.iter().map(|pack| pack.pack).filter(|pack| going.contains_key(pack)));
            self.add_to_listing(id, &index);
        }
        self.fresh.sort_unstable();
        self.fresh.dedup();
        let mut new = Vec::new();
        for (id, _) in manifests {
            if self.known.insert(id) {
                match self.repo.snapshot(&id) {
                    Err(RepoError::Backend(BackendError::NotFound { .. })) => {}
                    other => new.push(other?),
                }
            }
        }
        let holdings = &mut self.survey.holdings;
        let mut rescue = Rescue { holdings, fresh: &self.fresh, going, spared, revived: Vec::new() };
        if !new.is_empty() {
            self.repo.load_index(&Progress::default())?;
            let reader = Reader::new(self.repo.clone(), 1, self.progress.clone());
            let mut walker = Walker::new(&reader);
            for snapshot in &new {
                let walked = walker.walk(0, &snapshot.manifest, &mut rescue);
                walked.map_err(|error| explain(error, &snapshot.id))?;
            }
        }
        let spared = rescue.with_bases()?;
        for pack in spared {
            going.remove(&pack);
            self.dead.remove(&pack);
        }
        Ok(())
    }
}

/// Finds what backups that were committed meanwhile reach in packs that are about to go.
struct Rescue<'a> {
    holdings: &'a mut Holdings,
    fresh: &'a [u64],
    going: &'a HashMap<ObjectId, u64>,
    spared: Vec<ObjectId>,
    /// Blobs of packs that stay, dead until now: what they rest on must stay with them.
    revived: Vec<u32>,
}

impl Rescue<'_> {
    /// Makes sure that a copy of a chunk stays. False if there is none.
    fn keep(&mut self, prefix: u64, bytes: u32) -> bool {
        if self.fresh.binary_search(&prefix).is_ok() {
            return true;
        }
        let copies: Vec<usize> =
            self.holdings.find(prefix).filter(|&position| self.holdings.chunks()[position].bytes == bytes).collect();
        let pack_of = |position: usize| self.holdings.packs[self.holdings.pack_of(position) as usize].id;
        let stays = |position: usize| {
            let pack = pack_of(position);
            !self.going.contains_key(&pack) || self.spared.contains(&pack)
        };
        let claimed = copies.iter().find(|&&at| stays(at) && self.holdings.flags[at] & CLAIMED != 0);
        let kept = claimed.or_else(|| copies.iter().find(|&&at| stays(at))).or(copies.first()).copied();
        let Some(position) = kept else { return false };
        if !stays(position) {
            let pack = pack_of(position);
            self.spared.push(pack);
        }
        if self.holdings.flags[position] & CLAIMED == 0 {
            self.revived.push(self.holdings.chunks()[position].blob);
        }
        // So that it is copied should its pack be repacked.
        self.holdings.flags[position] |= CLAIMED | REACHED;
        true
    }

    /// All packs to be spared, those with the bases of blobs that are needed after all included.
    fn with_bases(mut self) -> Result<Vec<ObjectId>, PruneError> {
        let (mut packs_done, mut blobs_done) = (0, 0);
        while packs_done < self.spared.len() || blobs_done < self.revived.len() {
            let mut needed: HashSet<u32> = self.revived[blobs_done..].iter().copied().collect();
            for pack in &self.spared[packs_done..] {
                if let Some(number) = self.holdings.pack(pack) {
                    needed.extend(self.holdings.packs[number as usize].blobs.clone());
                }
            }
            (packs_done, blobs_done) = (self.spared.len(), self.revived.len());
            let bases: Vec<_> =
                self.holdings.bases.iter().filter(|(blob, ..)| needed.contains(blob)).copied().collect();
            for (_, prefix, bytes) in bases {
                self.keep(prefix, bytes);
            }
        }
        Ok(self.spared)
    }
}

impl Visit for Rescue<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        if self.keep(prefix_of(&entry.id), entry.bytes) { Ok(()) } else { Err(missing(entry)) }
    }
}
