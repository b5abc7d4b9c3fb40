//! Chooses which copy of each chunk stays, and follows the copies to what they rest on. Pure.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::PruneError;
use crate::id::ObjectId;
use crate::ops::holdings::Holdings;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::rows::Row;
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
    /// Plaintext bytes of these, by blob.
    pub(super) raw_bytes: Vec<u64>,
    /// Blobs whose bases stay with them, by number.
    pub(super) in_use: Bits,
}

impl Claimed {
    fn take(&mut self, position: usize, copy: &Row) {
        let blob = copy.blob as usize;
        self.copies.set(position);
        self.raw_bytes[blob] += u64::from(copy.bytes);
        self.in_use.set(blob);
    }
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
        let mut done = Bits::new(self.holdings.blobs.len());
        loop {
            let mut claimed = self.choose(&reached)?;
            self.settle_bases(&mut claimed.in_use, rebased);
            let more = self.holdings.reach_bases(&claimed.in_use, &done, &mut reached, || {
                let detail = "a base of chunks in use is in no pack that the index lists".to_owned();
                Err(RepoError::Damaged { name: "the index".to_owned(), detail })
            })?;
            if !more {
                return Ok(claimed);
            }
            done.set_all_of(&claimed.in_use);
        }
    }

    /// Blobs whose bases are needed, where those with a claimed chunk are `in_use`: what stays beside them too, and no blob that
    /// is rebased.
    fn settle_bases(&self, in_use: &mut Bits, rebased: &Bits) {
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
    }

    /// Of several copies the one stays that lies in the pack with most that is alive.
    fn choose(&self, reached: &Bits) -> Result<Claimed, PruneError> {
        let Self { holdings, whole, marked, .. } = self;
        let blobs = holdings.blobs.len();
        let mut claimed =
            Claimed { copies: Bits::new(holdings.chunks.len()), raw_bytes: vec![0; blobs], in_use: Bits::new(blobs) };
        let mut reached_bytes = vec![0u64; holdings.packs.len()];
        let mut has_several = false;
        holdings.chunks.each_run(|start, copies| {
            for (_, copy) in (start..).zip(copies).filter(|(position, _)| reached.get(*position)) {
                reached_bytes[holdings.pack_of(copy) as usize] += u64::from(copy.bytes);
            }
            if !reached.get(start) {
                return Ok(());
            }
            if let [only] = copies {
                self.can_be_had(only)?;
                claimed.take(start, only);
            } else {
                has_several = true;
            }
            Ok::<_, RepoError>(())
        })?;
        if !has_several {
            return Ok(claimed);
        }
        let rank = |pack: u32| {
            let held = &holdings.packs[pack as usize];
            let reached = u128::from(reached_bytes[pack as usize]) * 1_000_000_000 / u128::from(held.bytes.max(1));
            (marked.contains(&held.id), Reverse(reached), held.id)
        };
        holdings.chunks.each_run(|start, copies| {
            if copies.len() == 1 || !reached.get(start) {
                return Ok(());
            }
            // Of what can be had the least deep comes first: a base stays where what rests on it looks for it.
            let best = copies.iter().min_by_key(|&copy| {
                let blob = holdings.blob_of(copy);
                (!whole[blob.pack as usize], blob.depth, rank(blob.pack))
            });
            let best = best.expect("a run has at least one copy");
            self.can_be_had(best)?;
            for (position, copy) in (start..).zip(copies).filter(|(_, copy)| copy.blob == best.blob) {
                claimed.take(position, copy);
            }
            Ok::<_, RepoError>(())
        })?;
        Ok(claimed)
    }

    fn can_be_had(&self, copy: &Row) -> Result<(), RepoError> {
        let pack = self.holdings.pack_of(copy) as usize;
        if self.whole[pack] {
            return Ok(());
        }
        let name = pack_name(&self.holdings.packs[pack].id);
        let detail = "backups need it, and it is missing or cut short; nothing was removed, \
                      `vault check` names the backups and `vault forget` drops them";
        Err(RepoError::Damaged { name, detail: detail.to_owned() })
    }
}
