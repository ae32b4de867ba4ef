//! How the addresses of a family are stored in an entry and hashed.

use crate::sync::{AtomicU16, AtomicU64, Ordering};
use std::fmt::Debug;
use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_wire::Address;
use flowgate_wire::checksum::Delta;
use flowgate_wire::family::{AddressSum, HeaderDelta};

/// An address family that a flow table can have.
pub trait FlowAddress: Address {
    /// The field of an entry that stores source and destination.
    type Pair: PairCell<Self>;
    /// The field of an entry that stores the change of the transport checksum.
    type L4Delta: DeltaCell<Self>;

    /// The addresses' part of the multilinear hash, modulo 2^64.
    fn pair_hash(pair: [Self; 2], key: &[u64; 8]) -> u64;

    /// Whom the address stands for where the flows of clients are counted: for IPv6 its /64, within which a host chooses and
    /// changes its addresses as it likes (RFC 4291 section 2.5.4, RFC 8981).
    #[must_use]
    fn client(self) -> Self;
}

/// Source and destination in words that several threads read and write, in wire order in memory. Only each word is
/// atomic: the sequence word of the entry tells whether they belong together.
pub trait PairCell<A>: Debug + Default + Send + Sync {
    /// Whether it holds these two.
    fn is(&self, src: A, dst: A) -> bool;
    /// Source and destination.
    fn load(&self) -> [A; 2];
    /// Stores source and destination.
    fn store(&self, pair: [A; 2]);
}

/// The change of the transport checksum, as an entry stores it.
pub trait DeltaCell<A: Address>: Debug + Default + Send + Sync {
    /// The change; `ports` are those before and after translation, in memory order, source first.
    fn load(&self, l3_sum: A::L3Sum, ports: [u32; 2]) -> Delta;
    /// Stores the change.
    fn store(&self, delta: Delta);
}

/// Of IPv4, where the change follows from that of the header checksum and the ports: nothing is stored. A few additions
/// per packet, for two bytes of an entry that has none to spare.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Derived;

impl DeltaCell<Ipv4Addr> for Derived {
    #[inline(always)]
    fn load(&self, l3_sum: HeaderDelta, ports: [u32; 2]) -> Delta {
        l3_sum.l4_delta(ports)
    }

    fn store(&self, _delta: Delta) {}
}

impl DeltaCell<Ipv6Addr> for AtomicU16 {
    #[inline(always)]
    fn load(&self, _l3_sum: AddressSum, _ports: [u32; 2]) -> Delta {
        Delta::from_bits(self.load(Ordering::Relaxed))
    }

    fn store(&self, delta: Delta) {
        self.store(delta.to_bits(), Ordering::Relaxed);
    }
}

impl FlowAddress for Ipv4Addr {
    type Pair = AtomicU64;
    type L4Delta = Derived;

    #[inline]
    fn pair_hash([src, dst]: [Self; 2], key: &[u64; 8]) -> u64 {
        let word = |addr: Self| u64::from(u32::from_ne_bytes(addr.octets()));
        key[0].wrapping_mul(word(src)).wrapping_add(key[1].wrapping_mul(word(dst)))
    }

    fn client(self) -> Self {
        self
    }
}

impl PairCell<Ipv4Addr> for AtomicU64 {
    #[inline]
    fn is(&self, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
        self.load(Ordering::Relaxed) == pack(src, dst)
    }

    #[inline]
    fn load(&self) -> [Ipv4Addr; 2] {
        let [a, b, c, d, e, f, g, h] = self.load(Ordering::Relaxed).to_ne_bytes();
        [Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h)]
    }

    #[inline]
    fn store(&self, [src, dst]: [Ipv4Addr; 2]) {
        self.store(pack(src, dst), Ordering::Relaxed);
    }
}

#[inline]
fn pack(src: Ipv4Addr, dst: Ipv4Addr) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (src.octets(), dst.octets());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

impl FlowAddress for Ipv6Addr {
    type Pair = [AtomicU64; 4];
    type L4Delta = AtomicU16;

    #[inline(always)]
    fn pair_hash([src, dst]: [Self; 2], key: &[u64; 8]) -> u64 {
        // Half as many multiplications as words (Lemire and Kaser 2014, "multilinear-HM"): one product of two sums of
        // key and word in place of two products.
        let ([a, b], [c, d]) = (halves(src), halves(dst));
        let product = |word: u64, at: usize| {
            let (low, high) = (word & u64::from(u32::MAX), word >> 32);
            key[at].wrapping_add(low).wrapping_mul(key[at + 1].wrapping_add(high))
        };
        product(a, 0).wrapping_add(product(b, 2)).wrapping_add(product(c, 4)).wrapping_add(product(d, 6))
    }

    fn client(self) -> Self {
        Self::from_bits(self.to_bits() >> 64 << 64)
    }
}

impl PairCell<Ipv6Addr> for [AtomicU64; 4] {
    #[inline]
    fn is(&self, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
        let ([a, b], [c, d]) = (halves(src), halves(dst));
        // Differences are joined with "or" and tested once: four early exits would be four branches to predict.
        let differ = |at: usize, word: u64| self[at].load(Ordering::Relaxed) ^ word;
        differ(0, a) | differ(1, b) | differ(2, c) | differ(3, d) == 0
    }

    #[inline]
    fn load(&self) -> [Ipv6Addr; 2] {
        let half = |at: usize| self[at].load(Ordering::Relaxed);
        [join([half(0), half(1)]), join([half(2), half(3)])]
    }

    #[inline]
    fn store(&self, [src, dst]: [Ipv6Addr; 2]) {
        let ([a, b], [c, d]) = (halves(src), halves(dst));
        self.iter().zip([a, b, c, d]).for_each(|(cell, word)| cell.store(word, Ordering::Relaxed));
    }
}

#[inline]
fn halves(addr: Ipv6Addr) -> [u64; 2] {
    let octets = addr.octets();
    let [first, second] = *octets.as_chunks::<8>().0 else { return [0; 2] };
    [u64::from_ne_bytes(first), u64::from_ne_bytes(second)]
}

#[inline]
fn join([first, second]: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&first.to_ne_bytes());
    octets[8..].copy_from_slice(&second.to_ne_bytes());
    Ipv6Addr::from_octets(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pair_is_what_was_stored_in_the_order_of_the_wire(src in any::<u128>(), dst in any::<u128>()) {
            let pair = [Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst)];
            let cell = <Ipv6Addr as FlowAddress>::Pair::default();
            cell.store(pair);
            prop_assert_eq!(PairCell::load(&cell), pair);
            prop_assert!(cell.is(pair[0], pair[1]));
            prop_assert!(src == dst || !cell.is(pair[1], pair[0]));
            let first: Vec<u8> = cell.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
            prop_assert_eq!(&first[..16], &pair[0].octets());
        }
    }
}
