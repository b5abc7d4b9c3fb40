//! Decides what becomes of every pack, and which copy of a chunk stays. Pure: no store, no clock.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{Fate, MAX_UNUSED, PruneError, PruneOptions};
use crate::id::ObjectId;
use crate::ops::holdings::Holdings;
use crate::repo::{RepoError, pack_name};

/// A copy of a chunk that stays.
pub(super) const CLAIMED: u8 = 1;

/// A chunk that some backup reaches.
pub(super) const REACHED: u8 = 2;

/// What should become of every listed pack, in their order.
pub(super) struct Plan {
    pub(super) fates: Vec<Fate>,
    /// Bytes of each that nothing needs.
    pub(super) dead_bytes: Vec<u64>,
}

/// Chooses the copies that stay among those that [`REACHED`] is set on, and the fate of every listed pack. Sets
/// [`CLAIMED`] on the copies that stay.
///
/// `stored` are the packs of the store, with their bytes; what is `marked` is chosen last.
pub(super) fn plan(
    holdings: &mut Holdings,
    stored: &HashMap<ObjectId, (u64, Timestamp)>,
    marked: &HashSet<ObjectId>,
    options: &PruneOptions,
) -> Result<Plan, PruneError> {
    let (mut fates, mut plan_dead_bytes) = (Vec::new(), Vec::new());
    let whole: Vec<bool> = holdings
        .packs
        .iter()
        .map(|pack| stored.get(&pack.id).is_some_and(|(bytes, _)| *bytes == u64::from(pack.bytes)))
        .collect();
    let max_unused = options.max_unused.unwrap_or(if options.grace.is_zero() { 0.0 } else { MAX_UNUSED });
    loop {
        // Of several copies the one stays that lies in the pack with most that is alive.
        let mut reached_bytes = vec![0u64; holdings.packs.len()];
        for (position, chunk) in holdings.chunks().iter().enumerate() {
            if holdings.flags[position] & REACHED != 0 {
                reached_bytes[holdings.pack_of(position) as usize] += u64::from(chunk.bytes);
            }
        }
        let rank = |pack: u32| {
            let held = &holdings.packs[pack as usize];
            let reached = u128::from(reached_bytes[pack as usize]) * 1_000_000_000 / u128::from(held.bytes.max(1));
            (!whole[pack as usize], marked.contains(&held.id), u128::MAX - reached, held.id)
        };
        let mut claimed = Vec::new();
        for run in holdings.runs() {
            if holdings.flags[run.start] & REACHED == 0 {
                continue;
            }
            // Of what can be had the least deep comes first: a base stays where what rests on it looks for it.
            let best = run.clone().min_by_key(|&position| {
                let pack = holdings.pack_of(position);
                let depth = holdings.blobs[holdings.chunks()[position].blob as usize].depth;
                (!whole[pack as usize], depth, rank(pack))
            });
            let best = best.expect("a run has at least one copy");
            if !whole[holdings.pack_of(best) as usize] {
                let name = pack_name(&holdings.packs[holdings.pack_of(best) as usize].id);
                let detail = "backups need it, and it is missing or cut short; nothing was removed, \
                              `vault check` names the backups and `vault forget` drops them";
                return Err(RepoError::Damaged { name, detail: detail.to_owned() }.into());
            }
            let blob = holdings.chunks()[best].blob;
            claimed.extend(run.filter(|&position| holdings.chunks()[position].blob == blob));
        }
        holdings.flags.iter_mut().for_each(|flags| *flags &= !CLAIMED);
        for position in claimed {
            holdings.flags[position] |= CLAIMED;
        }
        // While the index lists a blob, its bases are stored: dead blobs of packs that may be kept as they are count too.
        if !reach_bases(holdings, max_unused > 0.0 || !options.repack)? {
            break;
        }
    }
    let mut live_raw = vec![0u64; holdings.blobs.len()];
    for (position, chunk) in holdings.chunks().iter().enumerate() {
        if holdings.flags[position] & CLAIMED != 0 {
            live_raw[chunk.blob as usize] += u64::from(chunk.bytes);
        }
    }
    for pack in &holdings.packs {
        let (mut live, mut dead_bytes) = (0, 0);
        for blob in pack.blobs.clone() {
            let held = &holdings.blobs[blob as usize];
            let raw = u64::from(held.raw_bytes);
            live += live_raw[blob as usize];
            dead_bytes += u64::from(held.stored) * (raw - live_raw[blob as usize].min(raw)) / raw.max(1);
        }
        let has_dead =
            pack.blobs.clone().any(|blob| live_raw[blob as usize] < u64::from(holdings.blobs[blob as usize].raw_bytes));
        fates.push(match (live, stored.contains_key(&pack.id)) {
            (0, true) => Fate::Dead,
            (0, false) => Fate::Missing,
            _ if has_dead && dead_bytes as f64 > max_unused * f64::from(pack.bytes) && options.repack => Fate::Repack,
            // Rounding must not hide the last dead chunk from who wants none.
            _ if has_dead && max_unused == 0.0 && options.repack => Fate::Repack,
            _ => Fate::Keep,
        });
        plan_dead_bytes.push(if live == 0 { u64::from(pack.bytes) } else { dead_bytes });
    }
    Ok(Plan { fates, dead_bytes: plan_dead_bytes })
}

/// Reaches the bases of blobs in use, or with `neighbours` of all blobs in packs of which anything is in use; says whether
/// any was new.
fn reach_bases(holdings: &mut Holdings, neighbours: bool) -> Result<bool, PruneError> {
    if holdings.bases.is_empty() {
        return Ok(false);
    }
    let mut in_use = vec![false; holdings.blobs.len()];
    for (position, chunk) in holdings.chunks().iter().enumerate() {
        in_use[chunk.blob as usize] |= holdings.flags[position] & CLAIMED != 0;
    }
    if neighbours {
        for pack in &holdings.packs {
            if pack.blobs.clone().any(|blob| in_use[blob as usize]) {
                pack.blobs.clone().for_each(|blob| in_use[blob as usize] = true);
            }
        }
    }
    let bases: Vec<_> = holdings.bases.iter().filter(|(blob, ..)| in_use[*blob as usize]).copied().collect();
    let mut more = false;
    for (_, prefix, bytes) in bases {
        let mut found = false;
        for position in holdings.find(prefix) {
            if holdings.chunks()[position].bytes == bytes {
                found = true;
                more |= holdings.flags[position] & REACHED == 0;
                holdings.flags[position] |= REACHED;
            }
        }
        if !found {
            let detail = "a base of chunks in use is in no pack that the index lists".to_owned();
            return Err(RepoError::Damaged { name: "the index".to_owned(), detail }.into());
        }
    }
    Ok(more)
}
