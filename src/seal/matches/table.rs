//! Places by the bytes that begin there.

/// A place is below this: bases and text are hardly longer than 6 MiB together.
pub const PLACE_MAX: usize = 1 << PLACE_BITS;

const PLACE_BITS: u32 = 23;

/// The last place of each of `1 << LOG` hashes. Beside it lies more of the hash, so that hardly any place has to be looked at
/// in vain.
pub struct Table<const LOG: u32> {
    entries: Vec<u32>,
}

impl<const LOG: u32> Table<LOG> {
    pub fn new() -> Self {
        Self { entries: vec![0; 1 << LOG] }
    }

    pub fn clear(&mut self) {
        self.entries.fill(0);
    }

    #[inline(always)]
    pub fn put(&mut self, hash: u64, place: usize) {
        let (slot, more) = Self::split(hash);
        self.entries[slot] = more | place as u32;
    }

    /// A place at which the bytes of this hash most likely begin.
    #[inline(always)]
    pub fn get(&self, hash: u64) -> Option<usize> {
        let (slot, more) = Self::split(hash);
        let differ = self.entries[slot] ^ more;
        (differ >> PLACE_BITS == 0).then_some(differ as usize)
    }

    #[inline(always)]
    fn split(hash: u64) -> (usize, u32) {
        ((hash >> (64 - LOG)) as usize, ((hash >> (64 - LOG - (32 - PLACE_BITS))) as u32) << PLACE_BITS)
    }
}

/// The hash of the first six bytes. `bytes` has eight at least.
#[inline(always)]
pub fn hash_6(bytes: &[u8]) -> u64 {
    (word(bytes) << 16).wrapping_mul(PRIME_1)
}

/// The hash of the first ten bytes.
#[inline(always)]
pub fn hash_10(bytes: &[u8]) -> u64 {
    hash_words(word(bytes), word(&bytes[2..]))
}

/// The hash of the first sixteen bytes.
#[inline(always)]
pub fn hash_16(bytes: &[u8]) -> u64 {
    hash_words(word(bytes), word(&bytes[8..]))
}

#[inline(always)]
fn hash_words(first: u64, second: u64) -> u64 {
    (first.wrapping_mul(PRIME_1) ^ second).rotate_left(32).wrapping_mul(PRIME_2)
}

/// Of xxHash64: multiplied by an odd number of many bits, all bits of a word reach the high ones of the product.
const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;

#[inline(always)]
pub fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"))
}
