//! Decides which blobs are stored anew without their bases: where what backups reach would take less alone than with all
//! that it rests on. Pure.

use super::claim::Claimed;
use crate::ops::holdings::bits::Bits;
use crate::ops::holdings::{HeldBlob, Holdings};
use crate::repo::RepoError;

/// Blobs that rest on each other may take so many percent of what backups reach of them would take alone.
const KEPT_PERCENT_MAX: u64 = 115;

/// Blobs that stand alone, in bytes: others would take as much of theirs.
#[derive(Default)]
struct Alone {
    stored: u64,
    raw: u64,
}

impl Alone {
    fn add(&mut self, held: &HeldBlob) {
        self.stored += u64::from(held.stored);
        self.raw += u64::from(held.raw_bytes);
    }

    /// What so many bytes of plaintext would take alone.
    fn bytes_for(&self, raw: u64) -> u64 {
        let bytes = u128::from(raw) * u128::from(self.stored) / u128::from(self.raw.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Blobs that rest on each other, directly or not.
#[derive(Default)]
struct Group {
    /// Stored bytes of all of them.
    kept: u64,
    alone: Alone,
    /// Plaintext bytes that backups reach.
    reached_raw: u64,
}

impl Group {
    fn is_worth_it(&self) -> bool {
        let alone_bytes = self.alone.bytes_for(self.reached_raw);
        u128::from(self.kept) * 100 > u128::from(alone_bytes) * u128::from(KEPT_PERCENT_MAX)
    }
}

/// The blobs to be stored anew. `reached` are the chunks that backups lead to, `claimed` is what would stay.
pub(super) fn choose(holdings: &Holdings, reached: &Bits, claimed: &Claimed) -> Result<Bits, RepoError> {
    let mut rebased = Bits::new(holdings.blobs.len());
    if holdings.bases.is_empty() {
        return Ok(rebased);
    }
    let Claimed { copies, in_use, .. } = claimed;
    let mut links = link(holdings, in_use, copies)?;
    let firsts = links.firsts();
    let mut groups: Vec<Group> = firsts.iter().map(|_| Group::default()).collect();
    let mut group_of = |blob| firsts.binary_search(&links.first_of(blob)).ok();
    for (blob, held) in (0..).zip(&holdings.blobs).filter(|(blob, _)| in_use.get(*blob as usize)) {
        if let Some(group) = group_of(blob) {
            let group = &mut groups[group];
            group.kept += u64::from(held.stored);
            if held.depth == 0 {
                group.alone.add(held);
            }
        }
    }
    let mut reached_raw = vec![0; holdings.blobs.len()];
    holdings.chunks.each_run(|start, run| {
        for (_, chunk) in (start..).zip(run).filter(|(position, _)| reached.get(*position) && copies.get(*position)) {
            reached_raw[chunk.blob as usize] += u64::from(chunk.bytes);
        }
        Ok::<_, RepoError>(())
    })?;
    for (blob, raw) in (0..).zip(reached_raw).filter(|(_, raw)| *raw > 0) {
        if let Some(group) = group_of(blob) {
            groups[group].reached_raw += raw;
        }
    }
    for blob in (0..).take(holdings.blobs.len()).filter(|blob| in_use.get(*blob as usize)) {
        if group_of(blob).is_some_and(|group| groups[group].is_worth_it()) {
            rebased.set(blob as usize);
        }
    }
    Ok(rebased)
}

/// How many bytes more than now what stays of the `rebased` blobs takes without bases; `live_raw` are the plaintext bytes of every
/// blob that stay.
pub(super) fn bytes_more(holdings: &Holdings, rebased: &Bits, live_raw: &[u64]) -> u64 {
    let mut alone = Alone::default();
    let (mut chained_now, mut chained_raw) = (0u64, 0u64);
    let blobs = holdings.blobs.iter().zip(live_raw).enumerate();
    for (_, (held, live)) in blobs.filter(|(blob, _)| rebased.get(*blob)) {
        if held.depth == 0 {
            alone.add(held);
        } else {
            let raw = u64::from(held.raw_bytes);
            chained_now += u64::from(held.stored) * live.min(&raw) / raw.max(1);
            chained_raw += live;
        }
    }
    alone.bytes_for(chained_raw).saturating_sub(chained_now)
}

/// Which blobs rest on each other: for each blob another of its group, up to the first one (Tarjan, "Efficiency of a Good But
/// Not Linear Set Union Algorithm", J. ACM 1975).
struct Links {
    towards_first: Vec<u32>,
    linked: Bits,
}

impl Links {
    fn first_of(&mut self, blob: u32) -> u32 {
        let mut at = blob;
        while self.towards_first[at as usize] != at {
            let next = self.towards_first[at as usize];
            self.towards_first[at as usize] = self.towards_first[next as usize];
            at = next;
        }
        at
    }

    fn join(&mut self, one: u32, other: u32) {
        let (one_first, other_first) = (self.first_of(one), self.first_of(other));
        self.towards_first[one_first.max(other_first) as usize] = one_first.min(other_first);
        self.linked.set(one as usize);
        self.linked.set(other as usize);
    }

    /// The first blob of every group of more than one, in order.
    fn firsts(&mut self) -> Vec<u32> {
        let count = u32::try_from(self.towards_first.len()).expect("blobs are numbered by u32");
        (0..count).filter(|blob| self.linked.get(*blob as usize) && self.first_of(*blob) == *blob).collect()
    }
}

/// Joins every blob in use with those that hold its bases.
fn link(holdings: &Holdings, in_use: &Bits, claimed: &Bits) -> Result<Links, RepoError> {
    let count = u32::try_from(holdings.blobs.len()).expect("blobs are numbered by u32");
    let mut links = Links { towards_first: (0..count).collect(), linked: Bits::new(holdings.blobs.len()) };
    holdings.look_up_bases(
        |blob| in_use.get(blob as usize),
        |base, start, copies| {
            for (_, copy) in (start..).zip(copies).filter(|(position, _)| claimed.get(*position)) {
                links.join(base.blob, copy.blob);
            }
            Ok(())
        },
    )?;
    Ok(links)
}
