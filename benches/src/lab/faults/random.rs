//! The random numbers of fault cases and soak, repeatable from their seed.

/// SplitMix64.
pub(in crate::lab) struct Random(pub(in crate::lab) u64);

impl Random {
    pub(in crate::lab) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ (mixed >> 31)) >> 32).expect("it has 32 bits")
    }
}
