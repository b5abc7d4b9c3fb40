//! Decides what becomes of every pack, and which copy of a chunk stays. Pure: no store, no clock.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{Fate, MAX_UNUSED, PruneError, PruneOptions};
use crate::id::ObjectId;
use crate::ops::holdings::Holdings;
use crate::ops::holdings::bits::Bits;
use crate::repo::{RepoError, pack_name};

/// What should become of every listed pack, in their order.
pub(super) struct Plan {
    pub(super) fates: Vec<Fate>,
    /// Bytes of each that nothing needs.
    pub(super) dead_bytes: Vec<u64>,
    /// The copies of chunks that stay, by position.
    pub(super) claimed: Bits,
}

/// Chooses the copies that stay among those that are `reached`, and the fate of every listed pack.
///
/// `stored` are the packs of the store, with their bytes; what is `marked` is chosen last.
pub(super) fn plan(
    holdings: &Holdings,
    mut reached: Bits,
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
    let mut claimed = Bits::new(holdings.chunks.len());
    let mut bases_reached = Bits::new(holdings.blobs.len());
    loop {
        // Of several copies the one stays that lies in the pack with most that is alive.
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
        // While the index lists a blob, its bases are stored: dead blobs of packs that may be kept as they are count too.
        let neighbours = max_unused > 0.0 || !options.repack;
        if !reach_bases(holdings, &claimed, &mut reached, &mut bases_reached, neighbours)? {
            break;
        }
    }
    let mut live_raw = vec![0u64; holdings.blobs.len()];
    for (position, chunk) in holdings.chunks.iter().enumerate() {
        let chunk = chunk?;
        if claimed.get(position) {
            live_raw[chunk.blob as usize] += u64::from(chunk.bytes);
        }
    }
    // A blob that rests on others stays whole while anything of it is in use: sealed anew without its bases the rest would
    // take more than all of it.
    for (live, held) in live_raw.iter_mut().zip(&holdings.blobs) {
        if *live > 0 && held.depth > 0 {
            *live = u64::from(held.raw_bytes);
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
    Ok(Plan { fates, dead_bytes: plan_dead_bytes, claimed })
}

/// Reaches the bases of blobs in use, or with `neighbours` of all blobs in packs of which anything is in use; says whether
/// any was new. Blobs whose bases have been reached are noted in `done`.
fn reach_bases(
    holdings: &Holdings,
    claimed: &Bits,
    reached: &mut Bits,
    done: &mut Bits,
    neighbours: bool,
) -> Result<bool, RepoError> {
    if holdings.bases.is_empty() {
        return Ok(false);
    }
    let mut in_use = holdings.blobs_with(claimed)?;
    if neighbours {
        for pack in &holdings.packs {
            if pack.blobs.clone().any(|blob| in_use.get(blob as usize)) {
                for blob in pack.blobs.clone() {
                    in_use.set(blob as usize);
                }
            }
        }
    }
    let more = holdings.reach_bases(&in_use, done, reached, || {
        let detail = "a base of chunks in use is in no pack that the index lists".to_owned();
        Err(RepoError::Damaged { name: "the index".to_owned(), detail })
    })?;
    done.set_all_of(&in_use);
    Ok(more)
}
