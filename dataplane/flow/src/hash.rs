//! The keyed hash of a five-tuple.
//!
//! Attackers choose addresses and ports, so the hash must be keyed with a secret of this boot. It is
//! multilinear hashing over 32-bit words (Lemire and Kaser, "Strongly universal string hashing is fast",
//! 2014): `(k0 + k1*x1 + ... + kn*xn mod 2^64) >> 32` is strongly universal, so without the key no two
//! tuples can be made to collide with more than chance. A fixed bijection then breaks up the arithmetic
//! progressions that consecutive ports would leave. Multiplications of 64 bits and shifts only: an XDP
//! program computes the same.

use std::hash::{BuildHasher, Hasher, RandomState};

use flowgate_wire::FiveTuple;

use crate::address::FlowAddress;

/// The secret of this boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey(
    /// One word added, two multiplied with ports and protocol, eight with the words of the addresses. IPv4
    /// needs two of these.
    pub [u64; Self::WORDS],
);

impl HashKey {
    /// Words of a key.
    pub const WORDS: usize = 11;

    /// A key from the operating system's randomness.
    pub fn random() -> Self {
        // RandomState is seeded by the OS; each finish gives an independent word.
        Self(std::array::from_fn(|i| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_usize(i);
            hasher.finish()
        }))
    }

    /// The hash of a five-tuple.
    #[inline(always)]
    pub fn hash<A: FlowAddress>(&self, tuple: &FiveTuple<A>) -> FlowHash {
        let [added, ports, protocol, ref addrs @ ..] = self.0;
        let [s0, s1] = tuple.src_port.wire();
        let [d0, d1] = tuple.dst_port.wire();
        let sum = added
            .wrapping_add(A::pair_hash([tuple.src, tuple.dst], addrs))
            .wrapping_add(ports.wrapping_mul(u64::from(u32::from_ne_bytes([s0, s1, d0, d1]))))
            .wrapping_add(protocol.wrapping_mul(u64::from(tuple.protocol.number())));
        FlowHash(mix((sum >> 32) as u32))
    }
}

/// The keyed hash of a five-tuple, which selects the two buckets of its conntrack entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowHash(
    /// The 32 bits.
    pub u32,
);

impl FlowHash {
    /// The tag of the entry within its bucket; not zero, which marks a free slot.
    #[inline]
    pub const fn tag(self) -> u8 {
        // The low bits: buckets are selected by the high ones, so entries of one bucket differ in their tags.
        let tag = (self.0 & 0xff) as u8;
        if tag == 0 { 1 } else { tag }
    }

    /// The two buckets, of `bucket_count`, that the entry may be in.
    #[inline]
    pub const fn buckets(self, bucket_count: u32) -> [u32; 2] {
        // Multiplication by the golden ratio of 2^32 (Knuth, TAOCP 3, section 6.4): a second hash from the same 32 bits.
        let second = self.0.wrapping_mul(0x9e37_79b1);
        [scale(self.0, bucket_count), scale(second, bucket_count)]
    }
}

/// Maps 32 bits evenly onto `0..count`: multiply and shift in place of a division (Lemire 2019).
const fn scale(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// The 32-bit finisher of MurmurHash3 (public domain), a bijection.
const fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use flowgate_wire::{L4Port, Protocol};

    fn tuple(host: u32, port: u16) -> FiveTuple<Ipv4Addr> {
        FiveTuple {
            protocol: Protocol::Tcp,
            src: host.into(),
            dst: 0x0a00_0001.into(),
            src_port: L4Port::new(port),
            dst_port: L4Port::new(80),
        }
    }

    #[test]
    fn another_key_gives_another_hash() {
        let hashes: Vec<_> = (0..8).map(|_| HashKey::random().hash(&tuple(1, 1))).collect();
        assert!(hashes.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn consecutive_ports_and_hosts_fill_buckets_like_chance() {
        let key = HashKey([
            0x1234_5678_9abc_def1,
            0x1111_2222_3333_4445,
            0x9876_5432_10fe_dcbb,
            0x5a5a_a5a5_1234_4321,
            7,
            11,
            13,
            17,
            19,
            23,
            29,
        ]);
        let bucket_count = 1 << 10;
        let mut load = vec![0_u32; bucket_count as usize];
        for host in 0..64 {
            for port in 1024..2048 {
                load[key.hash(&tuple(0x0a01_0000 + host, port)).buckets(bucket_count)[0] as usize] += 1;
            }
        }
        // Mean 64, standard deviation 8: six of them leave room for 1024 draws.
        assert!(load.iter().all(|&n| (16..=112).contains(&n)), "{:?}", load.iter().max());
    }

    #[test]
    fn a_tag_is_never_zero_and_buckets_are_in_range() {
        for hash in (0..=u32::MAX).step_by(65_521) {
            assert_ne!(FlowHash(hash).tag(), 0);
            assert!(FlowHash(hash).buckets(7).iter().all(|&bucket| bucket < 7));
        }
    }
}
