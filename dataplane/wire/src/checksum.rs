//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! One's complement sums do not depend on byte order as long as every word is read the same way
//! (RFC 1071 section 2 (B)), so all sums here are over words in *memory* order: nothing is swapped.
//! [`Sum`] is a running sum, [`Delta`] a folded difference, [`Checksum`] the two bytes in a header:
//! three types, so that none is taken for another.

use crate::addr::L4Port;
use crate::family::Address;

/// A running one's complement sum of 16-bit words in memory order, not yet folded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// Adds one word: two bytes at an even offset.
    #[inline]
    #[must_use]
    pub const fn word(self, bytes: [u8; 2]) -> Self {
        Self(self.0 + u16::from_ne_bytes(bytes) as u64)
    }

    /// The sum of two words, given as four bytes in memory order.
    #[inline]
    #[must_use]
    pub const fn two_words(both: u32) -> Self {
        Self(both as u64)
    }

    /// Both sums, in any order.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds an address.
    #[inline]
    #[must_use]
    pub fn addr<A: Address>(self, addr: A) -> Self {
        self.and(addr.sum())
    }

    /// Adds a port.
    #[inline]
    #[must_use]
    pub const fn port(self, port: L4Port) -> Self {
        self.word(port.wire())
    }

    /// Adds a run of bytes that starts at an even offset; an odd tail is padded with a zero byte.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Four bytes at a time: a packet has fewer than 2^16 such numbers, so 64 bits hold their sum and no carry is
        // lost before the fold.
        let mut sum = self.0;
        let (words, tail) = bytes.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let (pairs, odd) = tail.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            // Zero on the right in memory order is right for either byte order (RFC 1071 section 4.1).
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// The pseudo header of a transport protocol (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1).
    #[inline]
    #[must_use]
    pub fn pseudo_header<A: Address>(src: A, dst: A, protocol: u8, l4_len: u16) -> Self {
        Self::ZERO.addr(src).addr(dst).protocol(protocol, l4_len)
    }

    /// Adds the rest of a pseudo header: protocol and length.
    #[inline]
    #[must_use]
    pub const fn protocol(self, protocol: u8, l4_len: u16) -> Self {
        // The length has 32 bits in IPv6; the upper ones are zero and add nothing.
        self.word([0, protocol]).word(l4_len.to_be_bytes())
    }

    /// The sum folded to 16 bits, in memory order. Zero only if every added word was zero.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The checksum of what was added.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> Checksum {
        Checksum((!self.fold()).to_ne_bytes())
    }
}

/// What a change of some words does to a checksum over them: `~m + m'` of RFC 1624, folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// The change of the IPv4 header checksum by one TTL decrement.
    // The TTL is the first byte of its word, and in one's complement `~w + (w - k)` is `~k` for every word `w`.
    pub const TTL_DECREMENT: Self = Self(!u16::from_ne_bytes([1, 0]));

    /// The change of a checksum that does not cover a TTL relative to one that does, after one TTL decrement.
    pub const TTL_INCREMENT: Self = Self(u16::from_ne_bytes([1, 0]));

    /// This change and that from two words to two others, each pair as four bytes in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn and_words(self, [old, new]: [u32; 2]) -> Self {
        // The complement of both words at once; the sum fits into 34 bits.
        Self(fold(!old as u64 + new as u64 + self.0 as u64))
    }

    /// The change from words that sum to `old` to words that sum to `new`.
    #[inline]
    #[must_use]
    pub const fn between(old: Sum, new: Sum) -> Self {
        // Folded once per flow, so that a packet needs one addition.
        Self(add(!old.fold(), new.fold()))
    }

    /// Both changes, in any order.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The form that a conntrack entry stores.
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The inverse of [`Delta::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

/// A checksum as it stands in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Checksum(
    /// The two bytes in wire order.
    pub [u8; 2],
);

impl Checksum {
    /// RFC 768: the sender computed none.
    pub const NONE: Self = Self([0, 0]);

    /// RFC 1624 equation 3: `HC' = ~(~HC + ~m + m')`.
    #[inline]
    #[must_use]
    pub const fn update(self, delta: Delta) -> Self {
        // Not the shorter `HC + m + ~m'` of RFC 1141, which gives 0xffff where a full sum gives 0x0000 (RFC 1624
        // section 3).
        Self((!add(!u16::from_ne_bytes(self.0), delta.0)).to_ne_bytes())
    }

    /// RFC 768: a computed zero is sent as all ones, since zero means that there is none.
    #[inline]
    #[must_use]
    pub const fn or_all_ones(self) -> Self {
        let field = u16::from_ne_bytes(self.0);
        Self(if field == 0 { u16::MAX } else { field }.to_ne_bytes())
    }

    /// Whether the field holds the bare pseudo-header sum that Linux leaves for a device to complete
    /// (`CHECKSUM_PARTIAL`; `net/ipv4/tcp_ipv4.c`, `__tcp_v4_send_check`).
    #[inline]
    #[must_use]
    pub const fn is_partial(self, pseudo_header: Sum) -> bool {
        // A complete checksum equals it by chance once in 2^16; completing it again then gives the same value.
        let field = u16::from_ne_bytes(self.0);
        field == pseudo_header.fold()
    }
}

/// Adds two words and the carry (RFC 1071 section 2).
#[inline]
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    // No second carry: the largest sum that carried is 0xfffe.
    sum + carry as u16
}

/// Folds 64 bits to 16 without a branch (RFC 1071 section 4.1 has a loop).
#[inline]
const fn fold(sum: u64) -> u16 {
    // A number plus itself with its halves swapped: both halves of the result are the sum of the halves, and the carry
    // out of the lower one has been added to the upper one, which is the end-around carry.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn same(a: Checksum, b: Checksum) -> bool {
        let norm = |c: Checksum| if c.0 == [0xff, 0xff] { [0, 0] } else { c.0 };
        norm(a) == norm(b)
    }

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold().to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4_gives_zero_and_not_all_ones() {
        // HC = 0xDD2F, m = 0x5555, m' = 0x3285: equation 3 gives 0x0000 where RFC 1141 gave 0xFFFF.
        let delta = Delta::between(Sum::ZERO.word([0x55, 0x55]), Sum::ZERO.word([0x32, 0x85]));
        assert_eq!(Checksum([0xdd, 0x2f]).update(delta), Checksum([0x00, 0x00]));
    }

    #[test]
    fn a_computed_zero_is_sent_as_all_ones() {
        assert_eq!(Checksum([0, 0]).or_all_ones(), Checksum([0xff, 0xff]));
        assert_eq!(Checksum([0, 1]).or_all_ones(), Checksum([0, 1]));
    }

    /// As RFC 1071 section 4.1 has it: until nothing is left to carry.
    fn folded_by_the_book(mut sum: u64) -> u64 {
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    proptest! {
        #[test]
        fn folding_and_adding_agree_with_the_loop_of_rfc_1071(sum in any::<u64>(), shift in 0..64_u32, a in any::<u16>(), b in any::<u16>()) {
            prop_assert_eq!(u64::from(fold(sum >> shift)), folded_by_the_book(sum >> shift));
            prop_assert_eq!(u64::from(add(a, b)), folded_by_the_book(u64::from(a) + u64::from(b)));
        }

        #[test]
        fn an_incremental_update_equals_a_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 2..200),
            at in any::<proptest::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // A header always has a non-zero word; the all-zero sum is the one case that differs.
            bytes[0] |= 1;
            let at = 2 * at.index(bytes.len() / 2);
            prop_assume!(at != 0 || new[0] & 1 == 1);
            let before = Sum::ZERO.bytes(&bytes).checksum();
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&new);
            let delta = Delta::between(Sum::ZERO.word(old), Sum::ZERO.word(new));
            prop_assert!(same(before.update(delta), Sum::ZERO.bytes(&bytes).checksum()));
        }

        #[test]
        fn a_ttl_decrement_has_the_same_delta_whatever_the_word(ttl in 1_u8.., protocol in any::<u8>(), rest in any::<[u8; 2]>()) {
            let before = Sum::ZERO.word([ttl, protocol]).word(rest).checksum();
            let after = Sum::ZERO.word([ttl - 1, protocol]).word(rest).checksum();
            prop_assert!(same(before.update(Delta::TTL_DECREMENT), after));
        }

        #[test]
        fn deltas_add_up_in_any_order(a in any::<u16>(), b in any::<u16>(), check in any::<[u8; 2]>()) {
            let (a, b) = (Delta::from_bits(a), Delta::from_bits(b));
            let one_by_one = Checksum(check).update(a).update(b);
            prop_assert!(same(one_by_one, Checksum(check).update(a.and(b))));
            prop_assert_eq!(a.and(b), b.and(a));
        }

        #[test]
        fn the_change_of_two_words_at_once_is_that_of_both(old in any::<u32>(), new in any::<u32>(), delta in any::<u16>(), check in any::<[u8; 2]>()) {
            let delta = Delta::from_bits(delta);
            let both = delta.and(Delta::between(Sum::two_words(old), Sum::two_words(new)));
            prop_assert!(same(Checksum(check).update(delta.and_words([old, new])), Checksum(check).update(both)));
            let unchanged = Delta::TTL_DECREMENT.and(Delta::TTL_INCREMENT);
            prop_assert!(same(Checksum(check).update(unchanged), Checksum(check)));
        }

        #[test]
        fn any_split_of_the_bytes_gives_the_same_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<proptest::sample::Index>()) {
            let cut = 2 * cut.index(bytes.len() / 2 + 1);
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(Sum::ZERO.bytes(head).bytes(tail).fold(), Sum::ZERO.bytes(&bytes).fold());
        }
    }
}
