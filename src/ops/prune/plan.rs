//! Decides what becomes of every pack, and which copy of a chunk stays. Pure: no store, no clock.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::claim::{Claimed, Claims};
use super::{Fate, MAX_UNUSED, PruneError, PruneOptions, rebase};
use crate::id::ObjectId;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::{HeldBlob, Holdings};
use crate::repo::RepoError;

/// What should become of every listed pack, in their order.
pub(super) struct Plan {
    pub(super) fates: Vec<Fate>,
    /// Bytes of each that nothing needs.
    pub(super) dead_bytes: Vec<u64>,
    /// The copies of chunks that stay, by position.
    pub(super) claimed: Bits,
    /// Blobs that are stored anew without their bases, by number. All packs with one of them are copied and go together.
    pub(super) rebased: Bits,
    /// How many bytes more than now they will take, going by those that stand alone already.
    pub(super) rebased_bytes_more: u64,
}

/// Chooses the copies that stay among those that are `reached`, and the fate of every listed pack.
///
/// `stored` are the packs of the store, with their bytes; what is `marked` is chosen last.
pub(super) fn plan(
    holdings: &Holdings,
    reached: Bits,
    stored: &HashMap<ObjectId, (u64, Timestamp)>,
    marked: &HashSet<ObjectId>,
    options: &PruneOptions,
) -> Result<Plan, PruneError> {
    let max_unused = options.max_unused.unwrap_or(if options.grace.is_zero() { 0.0 } else { MAX_UNUSED });
    let claims = Claims::new(holdings, stored, marked, max_unused > 0.0 || !options.repack);
    let mut rebased = Bits::new(holdings.blobs.len());
    let mut claimed = claims.claim(reached.clone(), &rebased)?;
    if options.repack {
        rebased = rebase::choose(holdings, &reached, &claimed)?;
        if rebased.any() {
            claimed = claims.claim(reached, &rebased)?;
        }
    }
    let Claimed { copies, raw_bytes: mut live_raw, in_use } = claimed;
    for (blob, (live, held)) in live_raw.iter_mut().zip(&holdings.blobs).enumerate() {
        if !rebased.get(blob) {
            *live = held.kept_bytes(*live);
        }
    }
    let rebased_bytes_more = rebase::bytes_more(holdings, &rebased, &live_raw);
    let (mut fates, mut plan_dead_bytes) = (Vec::new(), Vec::new());
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
        let has_rebased = pack.blobs.clone().any(|blob| rebased.get(blob as usize));
        fates.push(match (live, stored.contains_key(&pack.id)) {
            // Even with nothing alive: until what rests on it has been stored anew, it is needed.
            (_, true) if has_rebased => Fate::Repack,
            (0, true) => Fate::Dead,
            (0, false) => Fate::Missing,
            _ if has_dead && dead_bytes as f64 > max_unused * f64::from(pack.bytes) && options.repack => Fate::Repack,
            // Rounding must not hide the last dead chunk from who wants none.
            _ if has_dead && max_unused == 0.0 && options.repack => Fate::Repack,
            _ => Fate::Keep,
        });
        plan_dead_bytes.push(if live == 0 { u64::from(pack.bytes) } else { dead_bytes });
    }
    if options.repack {
        keep_bases_of_listed(holdings, &mut fates, &in_use)?;
    }
    Ok(Plan { fates, dead_bytes: plan_dead_bytes, claimed: copies, rebased, rebased_bytes_more })
}

/// While the index lists a blob, its bases are stored, even if nothing needs the blob: dead packs that hold bases of blobs in
/// packs about to be repacked go together with those. `in_use` are blobs whose bases stay.
fn keep_bases_of_listed(holdings: &Holdings, fates: &mut [Fate], in_use: &Bits) -> Result<(), RepoError> {
    let mut done = Bits::new(holdings.blobs.len());
    done.set_all_of(in_use);
    loop {
        let is_listed = |blob: &HeldBlob| matches!(fates[blob.pack as usize], Fate::Keep | Fate::Repack);
        let mut asked = Bits::new(holdings.blobs.len());
        for (number, _) in holdings.blobs.iter().enumerate().filter(|(_, blob)| is_listed(blob)) {
            if !done.get(number) {
                asked.set(number);
            }
        }
        if !asked.any() {
            return Ok(());
        }
        let mut later = HashSet::new();
        holdings.look_up_bases(
            |blob| asked.get(blob as usize),
            |base, _, copies| {
                let below = holdings.blob_of(base).depth;
                let copies = || copies.iter().filter(|copy| copy.bytes == base.bytes);
                let found = || copies().map(|copy| holdings.blob_of(copy)).filter(|held| held.depth < below);
                if !found().any(is_listed) {
                    later.extend(found().map(|held| held.pack as usize).filter(|pack| fates[*pack] == Fate::Dead));
                }
                Ok(())
            },
        )?;
        if later.is_empty() {
            return Ok(());
        }
        done.set_all_of(&asked);
        later.into_iter().for_each(|pack| fates[pack] = Fate::Repack);
    }
}
