//! Finds what backups reach that were committed since the survey, and keeps it.

use std::collections::{HashMap, HashSet};

use super::PruneError;
use super::execute::Run;
use super::survey::{explain, missing};
use crate::backend::BackendError;
use crate::format::index::Index;
use crate::format::manifest::ChunkEntry;
use crate::format::pack::BlobKind;
use crate::id::ObjectId;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
use crate::ops::holdings::{Holdings, prefix_of};
use crate::ops::walk::{Visit, Walker};
use crate::pipeline::PipelineError;
use crate::pipeline::read::Reader;
use crate::progress::Progress;
use crate::repo::RepoError;
use crate::seal::keys::Kind;

impl Run<'_> {
    /// Reads the index objects that were put since this run last looked. Returns the packs that they list.
    pub(super) fn read_new_index_objects(&mut self) -> Result<Vec<ObjectId>, PruneError> {
        let mut packs = Vec::new();
        for (id, _) in self.repo.list(Kind::Index)? {
            if self.listing.contains_key(&id) {
                continue;
            }
            let index = match self.repo.load_index_object(&id) {
                Err(RepoError::Backend(BackendError::NotFound { .. })) => continue,
                other => other?,
            };
            self.fresh.add(&self.survey.holdings, &self.survey.plan.claimed, &index)?;
            packs.extend(index.packs.iter().map(|pack| pack.pack));
            self.add_to_listing(id, &index);
        }
        Ok(packs)
    }

    /// Takes out of `going` what backups reach that were committed since the survey.
    pub(super) fn recheck(&mut self, going: &mut HashMap<ObjectId, u64>) -> Result<(), PruneError> {
        let manifests = self.repo.list(Kind::Manifest)?;
        // A backup that this run took for dead has listed some after all.
        let mut spared = self.read_new_index_objects()?;
        spared.retain(|pack| going.contains_key(pack));
        let mut new = Vec::new();
        for (id, _) in manifests {
            if self.known.insert(id) {
                match self.repo.snapshot(&id) {
                    Err(RepoError::Backend(BackendError::NotFound { .. })) => {}
                    other => new.push(other?),
                }
            }
        }
        let survey = &mut self.survey;
        let mut rescue = Rescue {
            holdings: &survey.holdings,
            claimed: &mut survey.plan.claimed,
            fresh: &self.fresh,
            going,
            spared,
            revived: Vec::new(),
        };
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

/// What index objects put since the survey list.
pub(super) struct Fresh {
    /// All copies of their chunks that the survey knows, by position.
    pub(super) known: Bits,
    /// Prefixes of the others: what backups have stored meanwhile.
    others: HashSet<u64>,
    /// What blobs rest on that backups have stored meanwhile, if the survey knows it and nothing claims it, by prefix.
    bases: HashMap<u64, Base>,
}

/// A chunk that blobs rest on.
#[derive(Clone, Copy)]
struct Base {
    bytes: u32,
    /// Depth of the least deep of the blobs that rest on it.
    below: u8,
}

impl Base {
    /// Whether those who rest on it find it in this copy.
    fn is(self, copy: &Row, holdings: &Holdings) -> bool {
        copy.bytes == self.bytes && holdings.blob_of(copy).depth < self.below
    }
}

impl Fresh {
    pub(super) fn new(holdings: &Holdings) -> Self {
        Self { known: Bits::new(holdings.chunks.len()), others: HashSet::new(), bases: HashMap::new() }
    }

    /// Adds what an index object lists. `claimed` are the copies that stay or are copied: on those a repack's own blobs rest.
    pub(super) fn add(&mut self, holdings: &Holdings, claimed: &Bits, index: &Index) -> Result<(), RepoError> {
        for blob in index.packs.iter().flat_map(|pack| &pack.directory) {
            for chunk in &blob.contents.chunks {
                let prefix = prefix_of(&chunk.id);
                let copies = holdings.chunks.find(prefix)?;
                for (position, _) in copies.iter() {
                    self.known.set(position);
                }
                if copies.is_empty() {
                    self.others.insert(prefix);
                }
            }
            for base in &blob.contents.bases {
                let prefix = prefix_of(&base.id);
                let base = Base { bytes: base.bytes, below: blob.contents.depth };
                let copies = holdings.chunks.find(prefix)?;
                if copies.is_empty() || copies.iter().any(|(at, copy)| claimed.get(at) && base.is(copy, holdings)) {
                    continue;
                }
                let known = self.bases.entry(prefix).or_insert(base);
                known.below = known.below.min(base.below);
            }
        }
        Ok(())
    }
}

/// Finds what backups that were committed meanwhile reach in packs that are about to go.
struct Rescue<'a> {
    holdings: &'a Holdings,
    claimed: &'a mut Bits,
    fresh: &'a Fresh,
    going: &'a HashMap<ObjectId, u64>,
    spared: Vec<ObjectId>,
    /// Blobs of packs that stay, dead until now: what they rest on must stay with them.
    revived: Vec<u32>,
}

impl Rescue<'_> {
    /// Makes sure that a copy of a chunk stays. False if there is none.
    fn keep_chunk(&mut self, prefix: u64, bytes: u32) -> Result<bool, RepoError> {
        let copies = self.holdings.chunks.find(prefix)?;
        if self.fresh.others.contains(&prefix) || copies.iter().any(|(position, _)| self.fresh.known.get(position)) {
            return Ok(true);
        }
        let copies: Vec<_> = copies.iter().filter(|(_, copy)| copy.bytes == bytes).collect();
        Ok(self.keep_one_of(&copies))
    }

    /// Makes sure that a base stays where those who rest on it look for it. A copy that a backup has stored meanwhile may lie
    /// too deep for them; what was claimed has been copied if its pack goes, and lies no deeper.
    fn keep_base(&mut self, prefix: u64, base: Base) -> Result<(), RepoError> {
        let copies = self.holdings.chunks.find(prefix)?;
        let copies: Vec<_> = copies.iter().filter(|(_, copy)| base.is(copy, self.holdings)).collect();
        if !copies.iter().any(|(position, _)| self.claimed.get(*position) && self.fresh.known.get(*position)) {
            self.keep_one_of(&copies);
        }
        Ok(())
    }

    /// Makes sure that one of the copies stays. False if there is none.
    fn keep_one_of(&mut self, copies: &[(usize, &Row)]) -> bool {
        let pack_of = |copy: &Row| self.holdings.packs[self.holdings.pack_of(copy) as usize].id;
        let stays = |copy: &Row| {
            let pack = pack_of(copy);
            !self.going.contains_key(&pack) || self.spared.contains(&pack)
        };
        let claimed = copies.iter().find(|(position, copy)| stays(copy) && self.claimed.get(*position));
        let kept = claimed.or_else(|| copies.iter().find(|(_, copy)| stays(copy))).or(copies.first()).copied();
        let Some((position, copy)) = kept else { return false };
        if !stays(copy) {
            let pack = pack_of(copy);
            self.spared.push(pack);
        }
        // So that it is copied should its pack be repacked.
        if self.claimed.set(position) {
            self.revived.push(copy.blob);
        }
        true
    }

    /// All packs to be spared, those with the bases of blobs that are needed after all included.
    fn with_bases(mut self) -> Result<Vec<ObjectId>, PruneError> {
        let fresh = self.fresh;
        for (prefix, base) in &fresh.bases {
            self.keep_base(*prefix, *base)?;
        }
        let (mut packs_done, mut blobs_done) = (0, 0);
        while packs_done < self.spared.len() || blobs_done < self.revived.len() {
            let mut needed: HashSet<u32> = self.revived[blobs_done..].iter().copied().collect();
            for pack in &self.spared[packs_done..] {
                if let Some(number) = self.holdings.pack(pack) {
                    needed.extend(self.holdings.packs[number as usize].blobs.clone());
                }
            }
            (packs_done, blobs_done) = (self.spared.len(), self.revived.len());
            let holdings = self.holdings;
            for base in holdings.bases_of(|blob| needed.contains(&blob)) {
                let base = base?;
                let below = holdings.blob_of(&base).depth;
                self.keep_base(base.prefix, Base { bytes: base.bytes, below })?;
            }
        }
        Ok(self.spared)
    }
}

impl Visit for Rescue<'_> {
    fn chunk(&mut self, _: BlobKind, entry: &ChunkEntry) -> Result<(), PipelineError> {
        if self.keep_chunk(prefix_of(&entry.id), entry.bytes)? { Ok(()) } else { Err(missing(entry)) }
    }
}
