//! What differs between IPv4 and IPv6: everything else is written once for both, generic over [`Address`].

use core::fmt;
use core::hash::Hash;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Checksum, Delta, Sum};
use crate::datagram::{self, Datagram};
use crate::header::{ethernet, ethertype, ip_protocol, ipv4, ipv6};
use crate::parse::{self, Malformed, Packet, Parsed};
use crate::rewrite::{EtherAddrs, Translation};

/// An address of one of the two families, and what differs between their headers.
pub trait Address:
    sealed::Sealed + Copy + Eq + Ord + Hash + fmt::Display + fmt::Debug + Into<IpAddr> + Send + Sync + 'static
{
    /// The unspecified address, which no packet can come from.
    const UNSPECIFIED: Self;
    /// Whether this is IPv4.
    const IS_V4: bool;
    /// Length of the header without options and extension headers, in bytes.
    const HEADER_LEN: usize;
    /// The EtherType of the family.
    const ETHERTYPE: [u8; 2];
    /// The protocol number of ICMP or ICMPv6.
    const ICMP: u8;
    /// What a translation precomputes from both pairs of addresses: [`HeaderDelta`] or [`AddressSum`].
    type L3Sum: L3Sum;

    /// Whether no packet that a router forwards may come from this address: "martian source" is the Linux kernel's word
    /// (`net/ipv4/route.c`, `ip_route_input_slow`; `net/ipv6/ip6_input.c`, `ip6_rcv_core`; `net/ipv6/ip6_output.c`,
    /// `ip6_forward`).
    fn is_martian_source(self) -> bool;

    /// The address, if it is of this family.
    fn from_ip(addr: IpAddr) -> Option<Self>;

    /// The one's complement sum of the address's words.
    fn sum(self) -> Sum;

    /// The sum of the addresses of a packet that arrives, for its pseudo header; `l3_sum` is that of the translation of
    /// its flow.
    fn pseudo_addresses(pair: [Self; 2], l3_sum: Self::L3Sum) -> Sum;

    /// Parses the IP header of `frame`, whose EtherType is that of this family.
    ///
    /// # Errors
    /// [`Malformed`] when a length or version contradicts the bytes that are there.
    fn datagram(frame: &[u8]) -> Result<Datagram<Self>, Malformed>;

    /// Parses `frame`, whose EtherType is that of this family.
    ///
    /// # Errors
    /// [`Malformed`] when a length or version contradicts the bytes that are there.
    fn parse(frame: &[u8]) -> Result<Parsed<Self>, Malformed>;

    /// The packet that [`parse`](Self::parse) finds in a frame without IP options or extension headers that holds a TCP
    /// or UDP packet; `None` for all other frames, which need [`parse`](Self::parse).
    fn parse_fast(frame: &[u8]) -> Option<Packet<Self>>;

    /// Writes the Ethernet addresses, IP addresses, TTL and header checksum of a packet that is translated. `head` has
    /// the bytes before its transport header.
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()>;

    /// Source and destination in the IP header at `header`.
    fn read_pair(header: &[u8]) -> Option<[Self; 2]>;

    /// Writes source and destination into the IP header at `header` and updates an IPv4 header checksum.
    fn write_pair(header: &mut [u8], pair: [Self; 2]) -> Option<()>;

    /// Decrements TTL or hop limit in the IP header at `header` and updates an IPv4 header checksum. `None` if it is
    /// zero already.
    fn decrement_ttl(header: &mut [u8]) -> Option<()>;
}

/// 16 bits that a translation precomputes from the addresses before and after, so that no packet has to sum them.
pub trait L3Sum: Copy + Eq + fmt::Debug + Send + Sync {
    /// From the sums of both addresses before and after translation.
    fn precompute(from: Sum, to: Sum) -> Self;

    /// The form that a conntrack entry stores.
    fn to_bits(self) -> u16;

    /// The inverse of [`L3Sum::to_bits`].
    fn from_bits(bits: u16) -> Self;

    /// The change of the transport checksum by new ports and, since the pseudo header covers them, addresses: of ports
    /// before and after translation, in memory order, source first, and the sums of both addresses likewise.
    fn l4_delta_of(self, ports: [u32; 2], addresses: [Sum; 2]) -> Delta;
}

/// IPv4: the change of the header checksum, by new addresses and a TTL that is one less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HeaderDelta(Delta);

/// IPv6, whose header has no checksum: the folded sum of the addresses before translation. With it a checksum that was
/// left to a device is recognised without summing 32 bytes of addresses per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct AddressSum(u16);

impl HeaderDelta {
    /// [`L3Sum::l4_delta_of`], which needs no addresses here: the header checksum covers them too, besides a TTL that is one
    /// less.
    #[inline(always)]
    #[must_use]
    pub const fn l4_delta(self, ports: [u32; 2]) -> Delta {
        // One sum and one fold: a packet pays for this.
        self.0.and(Delta::TTL_INCREMENT).and_words(ports)
    }
}

impl L3Sum for HeaderDelta {
    #[inline]
    fn precompute(from: Sum, to: Sum) -> Self {
        Self(Delta::between(from, to).and(Delta::TTL_DECREMENT))
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0.to_bits()
    }

    #[inline(always)]
    fn from_bits(bits: u16) -> Self {
        Self(Delta::from_bits(bits))
    }

    #[inline]
    fn l4_delta_of(self, ports: [u32; 2], _addresses: [Sum; 2]) -> Delta {
        self.l4_delta(ports)
    }
}

impl L3Sum for AddressSum {
    #[inline]
    fn precompute(from: Sum, _to: Sum) -> Self {
        Self(from.fold())
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    #[inline]
    fn l4_delta_of(self, ports: [u32; 2], [from, to]: [Sum; 2]) -> Delta {
        Delta::between(from, to).and_words(ports)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for core::net::Ipv4Addr {}
    impl Sealed for core::net::Ipv6Addr {}
}

impl Address for Ipv4Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const IS_V4: bool = true;
    const HEADER_LEN: usize = ipv4::LEN;
    const ETHERTYPE: [u8; 2] = ethertype::IPV4;
    const ICMP: u8 = ip_protocol::ICMP;
    type L3Sum = HeaderDelta;

    fn is_martian_source(self) -> bool {
        // RFC 1122 section 3.2.1.3: "this" network, loopback, groups and the limited broadcast address. The rest of class E
        // is forwarded, as by the kernel since Linux 2.6.25.
        self.octets()[0] == 0 || self.is_loopback() || self.is_multicast() || self.is_broadcast()
    }

    #[inline]
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn sum(self) -> Sum {
        // Two words at once: folding adds the halves later (RFC 1071 section 2 (A): any order).
        Sum::two_words(u32::from_ne_bytes(self.octets()))
    }

    #[inline(always)]
    fn pseudo_addresses([src, dst]: [Self; 2], _l3_sum: HeaderDelta) -> Sum {
        // The 16 bits of an IPv4 translation hold the header delta; two additions are cheap.
        src.sum().and(dst.sum())
    }

    #[inline]
    fn datagram(frame: &[u8]) -> Result<Datagram<Self>, Malformed> {
        datagram::v4(frame)
    }

    fn parse(frame: &[u8]) -> Result<Parsed<Self>, Malformed> {
        parse::v4(frame)
    }

    #[inline(always)]
    fn parse_fast(frame: &[u8]) -> Option<Packet<Self>> {
        parse::fast_v4(frame)
    }

    #[inline]
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()> {
        // One length check for both headers; the split that follows costs nothing.
        let head = head.first_chunk_mut::<{ ethernet::LEN + ipv4::LEN }>()?;
        let (ethernet, ip) = head.split_at_mut(ethernet::LEN);
        ethernet[..ethernet::ADDRS_LEN].copy_from_slice(&ether.0);
        ip[ipv4::TTL] = packet.ttl - 1;
        // RFC 1624: updated and not computed anew, so that a header that was damaged on the way stays damaged.
        let checksum = Checksum([ip[ipv4::CHECKSUM], ip[ipv4::CHECKSUM + 1]]).update(translation.l3_sum.0);
        ip[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&checksum.0);
        ip[ipv4::SRC..ipv4::DST].copy_from_slice(&translation.src.octets());
        ip[ipv4::DST..ipv4::LEN].copy_from_slice(&translation.dst.octets());
        Some(())
    }

    fn read_pair(header: &[u8]) -> Option<[Self; 2]> {
        let (pair, _) = header.get(ipv4::SRC..ipv4::LEN)?.as_chunks::<4>();
        Some([Self::from_octets(*pair.first()?), Self::from_octets(*pair.get(1)?)])
    }

    fn write_pair(header: &mut [u8], [src, dst]: [Self; 2]) -> Option<()> {
        let [old_src, old_dst] = Self::read_pair(header)?;
        let header = header.first_chunk_mut::<{ ipv4::LEN }>()?;
        update_header_checksum(
            header,
            Delta::between(old_src.sum().and(old_dst.sum()), src.sum().and(dst.sum())),
        );
        header[ipv4::SRC..ipv4::DST].copy_from_slice(&src.octets());
        header[ipv4::DST..].copy_from_slice(&dst.octets());
        Some(())
    }

    fn decrement_ttl(header: &mut [u8]) -> Option<()> {
        let header = header.first_chunk_mut::<{ ipv4::LEN }>()?;
        // Checked: the sender of a packet chooses its TTL, and zero is possible on the wire.
        header[ipv4::TTL] = header[ipv4::TTL].checked_sub(1)?;
        update_header_checksum(header, Delta::TTL_DECREMENT);
        Some(())
    }
}

fn update_header_checksum(header: &mut [u8; ipv4::LEN], delta: Delta) {
    let checksum = Checksum([header[ipv4::CHECKSUM], header[ipv4::CHECKSUM + 1]]).update(delta);
    header[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&checksum.0);
}

impl Address for Ipv6Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const IS_V4: bool = false;
    const HEADER_LEN: usize = ipv6::LEN;
    const ETHERTYPE: [u8; 2] = ethertype::IPV6;
    const ICMP: u8 = ip_protocol::ICMPV6;
    type L3Sum = AddressSum;

    fn is_martian_source(self) -> bool {
        // RFC 4291 sections 2.5.2, 2.5.3, 2.5.5.2, 2.5.6 and 2.7: none of these leaves its node or link.
        self.is_unspecified()
            || self.is_loopback()
            || self.is_multicast()
            || self.is_unicast_link_local()
            || self.to_ipv4_mapped().is_some()
    }

    #[inline]
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }
    }

    #[inline]
    fn sum(self) -> Sum {
        // Four quarters of 32 bits in a sum of 64: no carry to look after before the fold.
        let bits = u128::from_ne_bytes(self.octets());
        let quarter = |shift: u32| Sum::two_words(((bits >> shift) & 0xffff_ffff) as u32);
        quarter(0).and(quarter(32)).and(quarter(64)).and(quarter(96))
    }

    #[inline(always)]
    fn pseudo_addresses(_pair: [Self; 2], l3_sum: AddressSum) -> Sum {
        // The packet was found by its addresses, so they are those of the flow.
        Sum::two_words(l3_sum.0.into())
    }

    #[inline]
    fn datagram(frame: &[u8]) -> Result<Datagram<Self>, Malformed> {
        datagram::v6(frame)
    }

    fn parse(frame: &[u8]) -> Result<Parsed<Self>, Malformed> {
        parse::v6(frame)
    }

    #[inline(always)]
    fn parse_fast(frame: &[u8]) -> Option<Packet<Self>> {
        parse::fast_v6(frame)
    }

    #[inline]
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()> {
        // RFC 8200 section 3: the header has no checksum, so addresses and hop limit are all that changes.
        let head = head.first_chunk_mut::<{ ethernet::LEN + ipv6::LEN }>()?;
        let (ethernet, ip) = head.split_at_mut(ethernet::LEN);
        ethernet[..ethernet::ADDRS_LEN].copy_from_slice(&ether.0);
        ip[ipv6::HOP_LIMIT] = packet.ttl - 1;
        ip[ipv6::SRC..ipv6::DST].copy_from_slice(&translation.src.octets());
        ip[ipv6::DST..ipv6::LEN].copy_from_slice(&translation.dst.octets());
        Some(())
    }

    fn read_pair(header: &[u8]) -> Option<[Self; 2]> {
        let (pair, _) = header.get(ipv6::SRC..ipv6::LEN)?.as_chunks::<16>();
        Some([Self::from_octets(*pair.first()?), Self::from_octets(*pair.get(1)?)])
    }

    fn write_pair(header: &mut [u8], [src, dst]: [Self; 2]) -> Option<()> {
        let header = header.first_chunk_mut::<{ ipv6::LEN }>()?;
        header[ipv6::SRC..ipv6::DST].copy_from_slice(&src.octets());
        header[ipv6::DST..].copy_from_slice(&dst.octets());
        Some(())
    }

    fn decrement_ttl(header: &mut [u8]) -> Option<()> {
        let header = header.first_chunk_mut::<{ ipv6::LEN }>()?;
        header[ipv6::HOP_LIMIT] = header[ipv6::HOP_LIMIT].checked_sub(1)?;
        Some(())
    }
}
