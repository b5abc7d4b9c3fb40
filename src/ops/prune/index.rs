//! Index objects without the packs that go: written and proved before those they replace are deleted.

use std::collections::HashSet;

use super::PruneError;
use super::execute::Run;
use super::lease::is_no_space;
use crate::format::index::{Index, PackIndex};
use crate::id::ObjectId;
use crate::limits::{INDEX_BYTES_TARGET, INDEX_CHUNKS_MAX};
use crate::repo::{RepoError, object_name};
use crate::seal::keys::Kind;

/// Small index objects are merged once there are this many.
const SMALL_OBJECTS_MAX: usize = 8;

impl Run<'_> {
    pub(super) fn add_to_listing(&mut self, id: ObjectId, index: &Index) {
        self.listing.insert(id, listed(index));
    }

    /// Puts an index object, and has the store's own answer prove it before anything is deleted.
    fn put_proved(&self, index: &Index) -> Result<(ObjectId, (Vec<ObjectId>, usize)), PruneError> {
        let id = self.repo.save(Kind::Index, &index.encode())?.id;
        if self.repo.load_index_object(&id)? != *index {
            let name = object_name(Kind::Index, &id);
            return Err(RepoError::Damaged { name, detail: "it is not what was put".to_owned() }.into());
        }
        Ok((id, listed(index)))
    }

    /// Replaces index objects that list any of `unlist` by objects without those packs. Small ones are merged where an
    /// object is written anyway, and to `tidy` if there are many.
    pub(super) fn rewrite_index(&mut self, unlist: &HashSet<ObjectId>, tidy: bool) -> Result<(), PruneError> {
        let lists_some = |packs: &[ObjectId]| packs.is_empty() || packs.iter().any(|pack| unlist.contains(pack));
        let mut old: Vec<ObjectId> =
            self.listing.iter().filter(|(_, (packs, _))| lists_some(packs)).map(|(id, _)| *id).collect();
        let is_small = |chunks: usize| chunks < INDEX_CHUNKS_MAX / 2;
        let small: Vec<ObjectId> = self
            .listing
            .iter()
            .filter(|(_, (packs, chunks))| !lists_some(packs) && is_small(*chunks))
            .map(|(id, _)| *id)
            .collect();
        let stays = |id: &ObjectId| self.listing[id].0.iter().any(|pack| !unlist.contains(pack));
        // A run that has changed the index anyway leaves it tidy.
        let many = if self.report.index_objects_replaced > 0 { 2 } else { SMALL_OBJECTS_MAX };
        if old.iter().any(stays) || (tidy && small.len() >= many) {
            old.extend(small);
        }
        if old.is_empty() {
            return Ok(());
        }
        self.still_ours()?;
        let mut seen: HashSet<ObjectId> = unlist.clone();
        for (id, (packs, _)) in &self.listing {
            if !old.contains(id) {
                seen.extend(packs);
            }
        }
        // Of what is put only what lists remember is kept: half of a large repository's index may be rewritten.
        let mut new: Vec<(ObjectId, (Vec<ObjectId>, usize))> = Vec::new();
        let mut full: Option<Index> = None;
        let mut filling = Filling::default();
        for id in &old {
            for pack in self.repo.load_index_object(id)?.packs {
                if !seen.insert(pack.pack) {
                    continue;
                }
                if filling.is_full() {
                    let next = std::mem::take(&mut filling).index;
                    if let Some(index) = full.replace(next) {
                        new.push(self.put_proved(&index)?);
                    }
                }
                filling.add(pack);
            }
        }
        let packs = std::mem::take(&mut filling).index.packs;
        if let Some(index) = full.filter(|_| !packs.is_empty()) {
            new.push(self.put_proved(&index)?);
        }
        let is_empty = packs.is_empty();
        if !is_empty || old.len() > 1 {
            // Only the last one says what all of them take the place of: before it is there, nothing is lost. One that lists
            // nothing has them go all at once: one after the other, a blob might be listed longer than its bases.
            match self.put_proved(&Index { supersedes: old.clone(), packs }) {
                Err(PruneError::Repo(error)) if is_empty && is_no_space(&error) => {}
                other => new.push(other?),
            }
        }
        if let Err(lapsed) = self.still_ours() {
            for (id, _) in &new {
                self.repo.backend.delete(&object_name(Kind::Index, id))?;
            }
            return Err(lapsed);
        }
        self.listing.extend(new);
        for id in &old {
            self.repo.backend.delete(&object_name(Kind::Index, id))?;
            self.listing.remove(id);
            self.report.index_objects_replaced += 1;
        }
        let empty: Vec<ObjectId> =
            self.listing.extract_if(.., |_, (packs, _)| packs.is_empty()).map(|(id, _)| id).collect();
        for id in empty {
            self.repo.backend.delete(&object_name(Kind::Index, &id))?;
        }
        Ok(())
    }
}

/// What a listing remembers of an index object: its packs, and the number of its chunks.
fn listed(index: &Index) -> (Vec<ObjectId>, usize) {
    let chunks = index.packs.iter().flat_map(|pack| &pack.directory).map(|blob| blob.contents.chunks.len()).sum();
    (index.packs.iter().map(|pack| pack.pack).collect(), chunks)
}

/// Packs gathered for one index object.
#[derive(Default)]
struct Filling {
    index: Index,
    chunks: usize,
    bytes: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.chunks >= INDEX_CHUNKS_MAX || self.bytes >= INDEX_BYTES_TARGET
    }

    fn add(&mut self, pack: PackIndex) {
        let contents = pack.directory.iter().map(|blob| &blob.contents);
        for blob in contents {
            self.chunks += blob.chunks.len();
            self.bytes += 14 + 36 * (blob.chunks.len() + blob.bases.len());
        }
        self.bytes += 40;
        self.index.packs.push(pack);
    }
}
