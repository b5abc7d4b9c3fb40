//! Where the gear hash of a window of bytes fits a mask. Pure.

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
        let mut hash = self.hash;
        let (eights, rest) = bytes.as_chunks::<8>();
        for (number, eight) in eights.iter().enumerate() {
            for pair in 0..4 {
                let [first, second] = [0, 1].map(|at| self.table[usize::from(eight[2 * pair + at])]);
                // Two at once: what the next two wait for is one shift and one sum.
                let between = (hash << 1).wrapping_add(first);
                hash = (hash << 2).wrapping_add((first << 1).wrapping_add(second));
                if between & mask == 0 {
                    return Some(number * 8 + 2 * pair);
                }
                if hash & mask == 0 {
                    return Some(number * 8 + 2 * pair + 1);
                }
            }
        }
        for (at, byte) in rest.iter().enumerate() {
            hash = (hash << 1).wrapping_add(self.table[usize::from(*byte)]);
            if hash & mask == 0 {
                return Some(eights.len() * 8 + at);
            }
        }
        self.hash = hash;
        None
    }
}
