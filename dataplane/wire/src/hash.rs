//! The one mixing function for hashes that nobody attacks: selection of backends and paths. The flow table, whose keys
//! attackers choose, has a keyed hash of its own.

/// The finisher of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits in which every bit of the
/// input changes half of the output.
#[inline]
pub const fn splitmix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What the generator SplitMix64 adds to its state before each output: 2^64 divided by the golden ratio, made odd.
pub const SPLITMIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_output_of_the_generator_with_seed_zero() {
        assert_eq!(splitmix(SPLITMIX_STEP), 0xe220_a839_7b1d_cdaf);
    }
}
