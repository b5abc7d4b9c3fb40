//! Where the gear hash of a window of bytes fits a mask. Pure.

/// Bytes of a stretch that is rolled over side by side with the next: each step waits for the one before it, but not for those
/// of the other stretch.
const STRETCH_BYTES: usize = 4096;
/// What a byte has put into the hash has left it after so many others.
const WINDOW_BYTES: usize = u64::BITS as usize;

/// The gear hash while it rolls over bytes: of each that is taken in, the window before it moves up by one bit.
pub struct Gear<'t> {
    table: &'t [u64; 256],
    hash: u64,
}

impl<'t> Gear<'t> {
    /// Nothing has been taken in.
    pub fn new(table: &'t [u64; 256]) -> Self {
        Self { table, hash: 0 }
    }

    /// Takes in `bytes` until the hash has no bit of `mask`; returns how many came before the byte of which that is true.
    pub fn roll_to(&mut self, mask: u64, bytes: &[u8]) -> Option<usize> {
        let (doubles, rest) = bytes.as_chunks::<{ 2 * STRETCH_BYTES }>();
        let mut at = 0;
        for double in doubles {
            if let Some(found) = self.roll_side_by_side(mask, double) {
                return Some(at + found);
            }
            at += double.len();
        }
        Some(at + self.roll_on(mask, rest)?)
    }

    // Not a part of its caller, for which there would be too few registers: a fifth slower.
    #[inline(never)]
    fn roll_side_by_side(&mut self, mask: u64, bytes: &[u8; 2 * STRETCH_BYTES]) -> Option<usize> {
        let (front, back) = bytes.split_at(STRETCH_BYTES);
        let (table, mut hash) = (self.table, self.hash);
        let before_back = &front[STRETCH_BYTES - WINDOW_BYTES..];
        let mut back_hash = before_back.iter().fold(0, |hash, byte| roll(table, hash, *byte));
        let (mut at, mut found_back) = (0, None);
        'rolled: for (eight, back_eight) in front.as_chunks::<8>().0.iter().zip(back.as_chunks::<8>().0) {
            for pair in [0, 2, 4, 6] {
                let (between, back_between);
                (between, hash) = roll_two(table, hash, [eight[pair], eight[pair + 1]]);
                if between & mask == 0 {
                    return Some(at + pair);
                }
                if hash & mask == 0 {
                    return Some(at + pair + 1);
                }
                (back_between, back_hash) = roll_two(table, back_hash, [back_eight[pair], back_eight[pair + 1]]);
                if back_between & mask == 0 {
                    (at, found_back) = (at + pair + 2, Some(at + pair));
                    break 'rolled;
                }
                if back_hash & mask == 0 {
                    (at, found_back) = (at + pair + 2, Some(at + pair + 1));
                    break 'rolled;
                }
            }
            at += 8;
        }
        let Some(found_back) = found_back else {
            self.hash = back_hash;
            return None;
        };
        // It may fit in what is left of the first stretch.
        self.hash = hash;
        let sooner = self.roll_on(mask, &front[at..]).map(|found| at + found);
        sooner.or(Some(STRETCH_BYTES + found_back))
    }

    /// The same as [`Self::roll_to`], from one end to the other.
    fn roll_on(&mut self, mask: u64, bytes: &[u8]) -> Option<usize> {
        let (table, mut hash) = (self.table, self.hash);
        let (pairs, rest) = bytes.as_chunks::<2>();
        for (number, pair) in pairs.iter().enumerate() {
            let between;
            (between, hash) = roll_two(table, hash, *pair);
            if between & mask == 0 {
                return Some(2 * number);
            }
            if hash & mask == 0 {
                return Some(2 * number + 1);
            }
        }
        for byte in rest {
            hash = roll(table, hash, *byte);
            if hash & mask == 0 {
                return Some(bytes.len() - 1);
            }
        }
        self.hash = hash;
        None
    }
}

/// The hash after one more byte.
fn roll(table: &[u64; 256], hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(table[usize::from(byte)])
}

/// The hashes after one more byte and after two: what the next two wait for is one shift and one sum.
fn roll_two(table: &[u64; 256], hash: u64, bytes: [u8; 2]) -> (u64, u64) {
    let [first, second] = bytes.map(|byte| table[usize::from(byte)]);
    ((hash << 1).wrapping_add(first), (hash << 2).wrapping_add((first << 1).wrapping_add(second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash after each of the bytes.
    fn one_by_one(table: &[u64; 256], bytes: &[u8]) -> Vec<u64> {
        let rolled = bytes.iter().scan(0, |hash, byte| {
            *hash = roll(table, *hash, *byte);
            Some(*hash)
        });
        rolled.collect()
    }

    #[test]
    fn it_stops_where_one_byte_after_the_other_does() {
        let mut random = blake3::Hasher::new().finalize_xof();
        let mut stopped_there = 0;
        for _ in 0..16 {
            let (mut words, mut bytes) = ([0; 256 * 8], vec![0; 3 * STRETCH_BYTES + 500]);
            random.fill(&mut words);
            random.fill(&mut bytes);
            let table: [u64; 256] = std::array::from_fn(|byte| u64::from_le_bytes(words.as_chunks().0[byte]));
            let hashes = one_by_one(&table, &bytes);
            let around = |at: usize| at.saturating_sub(70)..at + 70;
            let places = (0..=3).flat_map(|stretch| around(stretch * STRETCH_BYTES));
            for at in places.chain((0..bytes.len()).step_by(397)) {
                // As many bits as make it stop at this byte, but hardly before it; on the upper ones more bytes have an influence.
                for mask in [!hashes[at], !hashes[at] & (u64::MAX << 30), !hashes[at] & 0x1ff0_0000_0000] {
                    let stops = hashes.iter().position(|hash| hash & mask == 0);
                    assert_eq!(Gear::new(&table).roll_to(mask, &bytes), stops, "mask {mask:x}, made for {at}");
                    stopped_there += u32::from(stops == Some(at));
                    // In two pieces: the second goes on with the hash of the first.
                    for split in [at * 7 % bytes.len(), at + 1] {
                        let (first, second) = bytes.split_at(split);
                        let mut gear = Gear::new(&table);
                        let found = gear.roll_to(mask, first);
                        let found = found.or_else(|| Some(split + gear.roll_to(mask, second)?));
                        assert_eq!(found, stops, "mask {mask:x}, made for {at}, in two pieces: {split} bytes first");
                    }
                }
            }
            assert_eq!(Gear::new(&table).roll_to(u64::MAX, &bytes), None);
        }
        assert!(stopped_there > 10_000, "{stopped_there} masks stopped it where they were made for");
    }
}
