//! What differs between IPv4 and IPv6: everything else is written once for both. Never decides anything.

use core::fmt;
use core::hash::Hash;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Checksum, Delta, Sum};
use crate::datagram::{self, Datagram};
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
    /// The protocol number of its control messages: ICMP or ICMPv6.
    const ICMP: u8;

    /// The address, if it is of this family.
    fn from_ip(addr: IpAddr) -> Option<Self>;

    /// What the address adds to a sum.
    fn sum(self) -> Sum;

    /// What a translation keeps of the sums of both addresses before and after. IPv4: the change of the header
    /// checksum, by them and one hop less. IPv6, which has no such checksum: the sum before.
    fn l3(from: Sum, to: Sum) -> u16;

    /// What the addresses of an arriving packet add to a sum, where a translation has kept `l3` of them.
    fn pseudo_addresses(pair: [Self; 2], l3: u16) -> Sum;

    /// The IP header of `frame`, whose EtherType says that it is of this family.
    ///
    /// # Errors
    /// [`Malformed`] when a length or version contradicts the bytes that are there.
    fn datagram(frame: &[u8]) -> Result<Datagram<Self>, Malformed>;

    /// Parses `frame`, whose EtherType says that it is of this family.
    ///
    /// # Errors
    /// [`Malformed`] when a length or version contradicts the bytes that are there.
    fn parse(frame: &[u8]) -> Result<Parsed<Self>, Malformed>;

    /// What [`parse`](Self::parse) says of a frame without IP options or extension headers that holds a TCP or
    /// UDP segment; none for all others. Quicker.
    fn plain(frame: &[u8]) -> Option<Packet<Self>>;

    /// Writes the Ethernet addresses, and addresses, hop limit and header checksum of a packet that is
    /// translated. `head` are the bytes before its transport header.
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()>;

    /// The source and destination in the IP header at `header`.
    fn read_pair(header: &[u8]) -> Option<[Self; 2]>;

    /// Writes source and destination into the IP header at `header` and keeps an IPv4 header checksum right.
    fn write_pair(header: &mut [u8], pair: [Self; 2]) -> Option<()>;

    /// Takes one from the hop limit in the IP header at `header` and keeps an IPv4 header checksum right.
    fn decrement_hops(header: &mut [u8]) -> Option<()>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for core::net::Ipv4Addr {}
    impl Sealed for core::net::Ipv6Addr {}
}

impl Address for Ipv4Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const IS_V4: bool = true;
    const HEADER_LEN: usize = 20;
    const ETHERTYPE: [u8; 2] = [0x08, 0x00];
    const ICMP: u8 = 1;

    #[inline]
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn sum(self) -> Sum {
        // Two words at once: folding adds the halves later (RFC 1071 section 2 A, any order).
        Sum::half_words(u32::from_ne_bytes(self.octets()))
    }

    #[inline]
    fn l3(from: Sum, to: Sum) -> u16 {
        Delta::between(from, to).and(Delta::TTL_DECREMENT).to_bits()
    }

    #[inline(always)]
    fn pseudo_addresses([src, dst]: [Self; 2], _l3: u16) -> Sum {
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
    fn plain(frame: &[u8]) -> Option<Packet<Self>> {
        parse::plain_v4(frame)
    }

    #[inline]
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()> {
        let head = head.first_chunk_mut::<34>()?;
        head[..12].copy_from_slice(&ether.0);
        head[22] = packet.ttl - 1;
        let checksum = Checksum([head[24], head[25]]).update(Delta::from_bits(translation.l3));
        head[24..26].copy_from_slice(&checksum.0);
        head[26..30].copy_from_slice(&translation.src.octets());
        head[30..34].copy_from_slice(&translation.dst.octets());
        Some(())
    }

    fn read_pair(header: &[u8]) -> Option<[Self; 2]> {
        let (pair, _) = header.get(12..20)?.as_chunks::<4>();
        Some([Self::from_octets(*pair.first()?), Self::from_octets(*pair.get(1)?)])
    }

    fn write_pair(header: &mut [u8], [src, dst]: [Self; 2]) -> Option<()> {
        let [old_src, old_dst] = Self::read_pair(header)?;
        let header = header.first_chunk_mut::<20>()?;
        let delta = Delta::between(old_src.sum().and(old_dst.sum()), src.sum().and(dst.sum()));
        let checksum = Checksum([header[10], header[11]]).update(delta);
        header[10..12].copy_from_slice(&checksum.0);
        header[12..16].copy_from_slice(&src.octets());
        header[16..20].copy_from_slice(&dst.octets());
        Some(())
    }

    fn decrement_hops(header: &mut [u8]) -> Option<()> {
        let header = header.first_chunk_mut::<20>()?;
        header[8] = header[8].checked_sub(1)?;
        let checksum = Checksum([header[10], header[11]]).update(Delta::TTL_DECREMENT);
        header[10..12].copy_from_slice(&checksum.0);
        Some(())
    }
}

impl Address for Ipv6Addr {
    const UNSPECIFIED: Self = Self::UNSPECIFIED;
    const IS_V4: bool = false;
    const HEADER_LEN: usize = 40;
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    const ICMP: u8 = 58;

    #[inline]
    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }
    }

    #[inline]
    fn sum(self) -> Sum {
        let bits = u128::from_ne_bytes(self.octets());
        let quarter = |shift: u32| Sum::half_words(((bits >> shift) & 0xffff_ffff) as u32);
        quarter(0).and(quarter(32)).and(quarter(64)).and(quarter(96))
    }

    #[inline]
    fn l3(from: Sum, _to: Sum) -> u16 {
        from.fold()
    }

    #[inline(always)]
    fn pseudo_addresses(_pair: [Self; 2], l3: u16) -> Sum {
        Sum::half_words(l3.into())
    }

    #[inline]
    fn datagram(frame: &[u8]) -> Result<Datagram<Self>, Malformed> {
        datagram::v6(frame)
    }

    fn parse(frame: &[u8]) -> Result<Parsed<Self>, Malformed> {
        parse::v6(frame)
    }

    #[inline(always)]
    fn plain(frame: &[u8]) -> Option<Packet<Self>> {
        parse::plain_v6(frame)
    }

    #[inline]
    fn rewrite(
        head: &mut [u8],
        packet: &Packet<Self>,
        translation: &Translation<Self>,
        ether: &EtherAddrs,
    ) -> Option<()> {
        // RFC 8200 has no checksum in the header.
        let head = head.first_chunk_mut::<54>()?;
        head[..12].copy_from_slice(&ether.0);
        head[21] = packet.ttl - 1;
        head[22..38].copy_from_slice(&translation.src.octets());
        head[38..54].copy_from_slice(&translation.dst.octets());
        Some(())
    }

    fn read_pair(header: &[u8]) -> Option<[Self; 2]> {
        let (pair, _) = header.get(8..40)?.as_chunks::<16>();
        Some([Self::from_octets(*pair.first()?), Self::from_octets(*pair.get(1)?)])
    }

    fn write_pair(header: &mut [u8], [src, dst]: [Self; 2]) -> Option<()> {
        let header = header.first_chunk_mut::<40>()?;
        header[8..24].copy_from_slice(&src.octets());
        header[24..40].copy_from_slice(&dst.octets());
        Some(())
    }

    fn decrement_hops(header: &mut [u8]) -> Option<()> {
        let header = header.first_chunk_mut::<40>()?;
        header[7] = header[7].checked_sub(1)?;
        Some(())
    }
}
