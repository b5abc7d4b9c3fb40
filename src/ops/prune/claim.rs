//! Chooses which copy of each chunk stays, and follows the copies to what they rest on. Pure.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::PruneError;
use crate::id::ObjectId;
use crate::ops::holdings::Holdings;
use crate::ops::holdings::bits::Bits;
use crate::repo::{RepoError, pack_name};

/// What choosing goes by.
pub(super) struct Claims<'a> {
    holdings: &'a Holdings,
    /// Packs that are in the store in full, by number.
    whole: Vec<bool>,
    /// Packs that are chosen last.
    marked: &'a HashSet<ObjectId>,
    /// While the index lists a blob, its bases are stored: dead blobs of packs that may be kept as they are count too.
    neighbours: bool,
}

/// What stays.
pub(super) struct Claimed {
    /// Copies of chunks, by position.
    pub(super) copies: Bits,
    /// Blobs whose bases stay with them, by number.
    pub(super) in_use: Bits,
}

impl<'a> Claims<'a> {
    pub(super) fn new(
        holdings: &'a Holdings,
        stored: &HashMap<ObjectId, (u64, Timestamp)>,
        marked: &'a HashSet<ObjectId>,
        neighbours: bool,
    ) -> Self {
        let is_whole = |id, bytes| stored.get(id).is_some_and(|(stored, _)| *stored == u64::from(bytes));
        let whole = holdings.packs.iter().map(|pack| is_whole(&pack.id, pack.bytes)).collect();
        Self { holdings, whole, marked, neighbours }
    }

    /// Claims copies of chunks that are `reached` and of all that those rest on. Blobs that are `rebased` need no bases any
    /// more. Errors if a chunk has no copy that can be had.
    pub(super) fn claim(&self, mut reached: Bits, rebased: &Bits) -> Result<Claimed, PruneError> {
        let mut copies = Bits::new(self.holdings.chunks.len());
        let mut done = Bits::new(self.holdings.blobs.len());
        loop {
            self.choose(&reached, &mut copies)?;
            let in_use = self.in_use(&copies, rebased)?;
            let more = self.holdings.reach_bases(&in_use, &done, &mut reached, || {
                let detail = "a base of chunks in use is in no pack that the index lists".to_owned();
                Err(RepoError::Damaged { name: "the index".to_owned(), detail })
            })?;
            if !more {
                return Ok(Claimed { copies, in_use });
            }
            done.set_all_of(&in_use);
        }
    }

    /// Blobs whose bases are needed: those with a chunk that is `claimed`, and what stays beside them.
    fn in_use(&self, claimed: &Bits, rebased: &Bits) -> Result<Bits, RepoError> {
        let mut in_use = self.holdings.blobs_with(claimed)?;
        for pack in &self.holdings.packs {
            let blobs = || pack.blobs.clone().map(|blob| blob as usize);
            if blobs().any(|blob| rebased.get(blob)) {
                // The pack will go, and with it what nobody needs of it.
                blobs().filter(|blob| rebased.get(*blob)).for_each(|blob| in_use.unset(blob));
            } else if self.neighbours && blobs().any(|blob| in_use.get(blob)) {
                blobs().for_each(|blob| {
                    in_use.set(blob);
                });
            }
        }
        Ok(in_use)
    }

    /// Of several copies the one stays that lies in the pack with most that is alive.
    fn choose(&self, reached: &Bits, claimed: &mut Bits) -> Result<(), PruneError> {
        let Self { holdings, whole, marked, .. } = self;
        let mut reached_bytes = vec![0u64; holdings.packs.len()];
        for (position, chunk) in holdings.chunks.iter().enumerate() {
            let chunk = chunk?;
            if reached.get(position) {
                reached_bytes[holdings.pack_of(&chunk) as usize] += u64::from(chunk.bytes);
            }
        }
        let rank = |pack: u32| {
            let held = &holdings.packs[pack as usize];
            let reached = u128::from(reached_bytes[pack as usize]) * 1_000_000_000 / u128::from(held.bytes.max(1));
            (!whole[pack as usize], marked.contains(&held.id), u128::MAX - reached, held.id)
        };
        claimed.clear();
        holdings.chunks.each_run(|start, copies| {
            if !reached.get(start) {
                return Ok(());
            }
            // Of what can be had the least deep comes first: a base stays where what rests on it looks for it.
            let best = copies.iter().min_by_key(|&copy| {
                let blob = holdings.blob_of(copy);
                (!whole[blob.pack as usize], blob.depth, rank(blob.pack))
            });
            let best = best.expect("a run has at least one copy");
            let pack = holdings.pack_of(best) as usize;
            if !whole[pack] {
                let name = pack_name(&holdings.packs[pack].id);
                let detail = "backups need it, and it is missing or cut short; nothing was removed, \
                              `vault check` names the backups and `vault forget` drops them";
                return Err(RepoError::Damaged { name, detail: detail.to_owned() });
            }
            for (position, _) in (start..).zip(copies).filter(|(_, copy)| copy.blob == best.blob) {
                claimed.set(position);
            }
            Ok(())
        })?;
        Ok(())
    }
}
