//! Which packs a check reads.

use super::structure::PackState;
use super::{CheckOptions, ReadData};
use crate::ops::holdings::Holdings;
use crate::repo::Repository;

/// The packs to read, in the order in which to read them.
pub(super) fn choose(
    repo: &Repository,
    options: &CheckOptions,
    holdings: &Holdings,
    packs: &[PackState],
) -> Vec<usize> {
    let whole = (0..packs.len()).filter(|&number| packs[number] == PackState::Whole);
    let mut chosen: Vec<usize> = match options.read_data {
        ReadData::None => return Vec::new(),
        ReadData::Part { part, of } => {
            let of = u64::from(of.max(1));
            let part_of = |number: usize| {
                let id = holdings.packs[number].id;
                u64::from_be_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes")) % of + 1
            };
            whole.filter(|&number| part_of(number) == u64::from(part)).collect()
        }
        _ => whole.collect(),
    };
    let oldest_first = |&number: &usize| {
        let id = &holdings.packs[number].id;
        (repo.index.verified(id), *id)
    };
    chosen.sort_by_cached_key(oldest_first);
    let bytes_of = |number: usize| u64::from(holdings.packs[number].bytes);
    let total: u64 = chosen.iter().map(|&number| bytes_of(number)).sum();
    let budget = match options.read_data {
        ReadData::Share(share) => (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64,
        ReadData::Bytes(bytes) => bytes,
        _ => return chosen,
    };
    let mut taken = 0;
    chosen.retain(|&number| {
        let take = taken < budget;
        taken += bytes_of(number);
        take
    });
    chosen
}
