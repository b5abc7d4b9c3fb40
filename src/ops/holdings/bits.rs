//! A bit for each of many things that are numbered from 0.

/// Bits, all clear at first.
#[derive(Debug, Clone)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    pub fn get(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    /// Sets a bit; says whether it was clear.
    pub fn set(&mut self, at: usize) -> bool {
        let was_clear = !self.get(at);
        self.0[at / 64] |= 1 << (at % 64);
        was_clear
    }

    pub fn unset(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    /// Whether any bit is set.
    pub fn any(&self) -> bool {
        self.0.iter().any(|word| *word != 0)
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Sets what is set in others, which are as many.
    pub fn set_all_of(&mut self, others: &Bits) {
        self.0.iter_mut().zip(&others.0).for_each(|(word, other)| *word |= other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_once_and_cleared_together() {
        let mut bits = Bits::new(130);
        assert!([0, 63, 64, 129].iter().all(|&at| bits.set(at) && !bits.set(at)));
        assert_eq!((0..130).filter(|&at| bits.get(at)).collect::<Vec<_>>(), [0, 63, 64, 129]);
        let mut more = Bits::new(130);
        more.set(5);
        more.set_all_of(&bits);
        assert_eq!((0..130).filter(|&at| more.get(at)).collect::<Vec<_>>(), [0, 5, 63, 64, 129]);
        more.unset(63);
        assert!(more.any() && !more.get(63) && more.get(64));
        more.clear();
        assert!(!more.any());
        assert!((0..130).all(|at| !more.get(at)));
    }
}
