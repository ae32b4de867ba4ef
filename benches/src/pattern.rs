//! Pseudo-random bytes derived from a seed and a position, so that the receiver of a stream can check every byte.

use std::fmt;

/// The byte stream of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

/// The first byte that was not the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Its offset in the stream.
    pub offset: u64,
    /// The expected byte.
    pub expected: u8,
    /// The received byte.
    pub received: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, expected, received } = self;
        write!(f, "byte {offset} is {received:#04x}, not {expected:#04x}")
    }
}

impl Pattern {
    /// The pattern of `/bytes/N`, the same on all servers.
    pub const HTTP: Self = Self::new(0x666c_6f77_6761_7465);

    /// The pattern of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Writes the bytes from `offset` on.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        self.walk(offset, bytes.len(), |place, part| bytes[place..place + part.len()].copy_from_slice(part));
    }

    /// The bytes from `offset` on.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// Checks that `bytes` are those from `offset` on.
    pub fn check(self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut first = None;
        self.walk(offset, bytes.len(), |place, part| {
            let received = &bytes[place..place + part.len()];
            if first.is_none() && received != part {
                let at = received.iter().zip(part).position(|(received, expected)| received != expected);
                let at = at.expect("unequal slices of one length differ somewhere");
                let offset = offset + u64::try_from(place + at).expect("an offset fits 64 bits");
                first = Some(Mismatch { offset, expected: part[at], received: received[at] });
            }
        });
        first.map_or(Ok(()), Err)
    }

    /// Calls `each` for every word of `offset..offset + len`, with the position in that range and the bytes.
    fn walk(self, offset: u64, len: usize, mut each: impl FnMut(usize, &[u8])) {
        let mut skip = usize::try_from(offset % 8).expect("less than 8");
        let (mut index, mut place) = (offset / 8, 0);
        while place < len {
            let word = self.word(index).to_le_bytes();
            let part = &word[skip..(skip + len - place).min(8)];
            each(place, part);
            place += part.len();
            (index, skip) = (index + 1, 0);
        }
    }

    /// SplitMix64, which computes any word without its predecessors.
    fn word(self, index: u64) -> u64 {
        let z = self.seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_the_stream_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new(7);
        let whole = pattern.bytes(0, 100);
        for start in 0..40 {
            for len in 0..40 {
                let offset = u64::try_from(start).unwrap();
                assert_eq!(pattern.bytes(offset, len), whole[start..start + len]);
                assert_eq!(pattern.check(offset, &whole[start..start + len]), Ok(()));
            }
        }
        assert_ne!(whole, Pattern::new(8).bytes(0, 100));
    }

    #[test]
    fn one_wrong_bit_is_found_wherever_it_is() {
        let pattern = Pattern::new(1);
        for place in 0..64 {
            let mut bytes = pattern.bytes(1000, 64);
            bytes[place] ^= 0x10;
            let mismatch = pattern.check(1000, &bytes).unwrap_err();
            assert_eq!(mismatch.offset, 1000 + u64::try_from(place).unwrap());
            assert_eq!(mismatch.received ^ mismatch.expected, 0x10);
        }
    }
}
