//! From the bytes of a frame to a [`Packet`] whose offsets are proven; reads only.
//!
//! [`Address::parse`] has three outcomes: ours (`Ok(Parsed::L4)`), not ours (the other variants of [`Parsed`]) and
//! malformed (`Err`). [`Address::parse_fast`] finds the common case of the first in fewer instructions.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{FiveTuple, L4Port, Protocol};
use crate::checksum::{Checksum, Sum};
use crate::datagram::{self, Datagram, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, ipv4_header, ipv6_header, u16_at};
use crate::family::Address;
use crate::header::{ethernet, ethertype, ip_protocol, ipv4, ipv6, short, tcp, udp};

/// What the EtherType of a frame announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// An IPv4 packet follows.
    Ipv4,
    /// An IPv6 packet follows.
    Ipv6,
    /// A VLAN tag follows (IEEE 802.1Q or 802.1ad).
    Tag,
    /// Anything else.
    Other,
}

impl EtherType {
    /// The EtherType of `frame`; `None` when it ends within its Ethernet header.
    #[inline]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let header = frame.first_chunk::<{ ethernet::LEN }>()?;
        Some(Self::from_wire([header[ethernet::ETHERTYPE], header[ethernet::ETHERTYPE + 1]]))
    }

    /// The EtherType with these two bytes.
    #[inline]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        match bytes {
            ethertype::IPV4 => Self::Ipv4,
            ethertype::IPV6 => Self::Ipv6,
            ethertype::VLAN | ethertype::QINQ => Self::Tag,
            _ => Self::Other,
        }
    }
}

/// What a well-formed IP packet of one family holds.
// `repr(u8)` gives the discriminant a byte of its own. As a niche it would share the byte of the packet's protocol, and
// the compiler then has the whole packet in memory and not in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Parsed<A> {
    /// TCP, UDP or SCTP, not a fragment.
    L4(Packet<A>),
    /// ICMP or ICMPv6, not a fragment.
    Icmp,
    /// A fragment of a packet, the first one included.
    Fragment,
    /// Any other protocol.
    NotL4,
}

/// How the bytes of a frame contradict its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The frame ends within a header.
    Truncated,
    /// The IP version is not that of the EtherType.
    Version,
    /// The IPv4 header length is below 20 bytes or beyond the packet (RFC 791 section 3.1), or an extension
    /// header contradicts those before it.
    HeaderLength,
    /// The length in the IP header is below its headers or beyond the frame.
    TotalLength,
    /// The TCP data offset or the UDP length contradicts the packet (RFC 9293 3.1, RFC 768).
    L4Length,
    /// An option of IPv4, or a hop-by-hop option of IPv6, contradicts its length or must not be forwarded.
    Options,
    /// An IPv4 source route (RFC 7126 sections 4.3 and 4.4).
    SourceRoute,
}

/// An IP packet with a TCP, UDP or SCTP header, all lengths checked against the frame it was parsed from.
///
/// The proof is void once the frame is shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// The five-tuple as the headers have it.
    pub tuple: FiveTuple<A>,
    /// Offset of the IP header in the frame.
    pub l3_offset: u16,
    /// Offset of the transport header in the frame.
    pub l4_offset: u16,
    /// Length from the transport header to the end of the packet; Ethernet padding is not counted.
    pub l4_len: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The TCP flags; for SCTP the flags that its chunks correspond to; none for UDP.
    pub tcp_flags: TcpFlags,
    /// The transport checksum as received; [`Checksum::NONE`] for SCTP, whose CRC is computed anew.
    pub l4_checksum: Checksum,
}

/// An IPv4 packet.
pub type Packet4 = Packet<Ipv4Addr>;

/// An IPv6 packet.
pub type Packet6 = Packet<Ipv6Addr>;

impl<A: Address> Packet<A> {
    /// Fills the unused places of an array; no parsed packet is equal to it.
    pub const EMPTY: Self = Self {
        tuple: FiveTuple {
            protocol: Protocol::Udp,
            src: A::UNSPECIFIED,
            dst: A::UNSPECIFIED,
            src_port: L4Port::new(0),
            dst_port: L4Port::new(0),
        },
        l3_offset: 0,
        l4_offset: 0,
        l4_len: 0,
        ttl: 0,
        tcp_flags: TcpFlags(0),
        l4_checksum: Checksum::NONE,
    };

    /// The transport header and payload, in the frame that this was parsed from.
    pub(crate) fn l4<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        frame.get(usize::from(self.l4_offset)..)?.get(..usize::from(self.l4_len))
    }

    /// Length of the IP packet in bytes, headers included.
    #[inline]
    pub const fn ip_len(&self) -> u16 {
        self.l4_offset - self.l3_offset + self.l4_len
    }

    /// Whether the transport checksum was left to a device to complete: see [`Checksum::is_partial`].
    #[inline]
    pub fn has_partial_checksum(&self) -> bool {
        let FiveTuple { protocol, src, dst, .. } = self.tuple;
        self.l4_checksum.is_partial(Sum::pseudo_header(src, dst, protocol.number(), self.l4_len))
    }
}

/// The flag byte of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpFlags(
    /// The byte as received.
    pub u8,
);

impl TcpFlags {
    /// Finish.
    pub const FIN: Self = Self(0x01);
    /// Synchronise.
    pub const SYN: Self = Self(0x02);
    /// Reset.
    pub const RST: Self = Self(0x04);
    /// Acknowledgement field significant.
    pub const ACK: Self = Self(0x10);

    /// Whether every flag of `flags` is set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any flag of `flags` is set.
    #[inline]
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Whether this segment asks for a new connection: SYN without ACK, RST or FIN.
    #[inline]
    pub const fn opens(self) -> bool {
        // RFC 9293 section 3.10.7.2 looks at RST and ACK before SYN; with FIN it is a probe that no stack sends.
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }

    /// Whether this segment goes on with a connection: ACK without SYN, RST or FIN.
    #[inline(always)]
    pub const fn continues(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::ACK.0
    }

    /// These flags, but none of the given ones.
    #[inline]
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Both sets.
    #[inline]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Parses an IPv4 frame.
pub(crate) fn v4(frame: &[u8]) -> Result<Parsed<Ipv4Addr>, Malformed> {
    unfragmented(frame, &datagram::v4(frame)?)
}

/// Parses an IPv6 frame.
pub(crate) fn v6(frame: &[u8]) -> Result<Parsed<Ipv6Addr>, Malformed> {
    unfragmented(frame, &datagram::v6(frame)?)
}

fn unfragmented<A: Address>(frame: &[u8], datagram: &Datagram<A>) -> Result<Parsed<A>, Malformed> {
    if datagram.fragment.is_some() {
        return Ok(Parsed::Fragment);
    }
    transport(frame, datagram)
}

/// A TCP or UDP packet in an IPv4 frame without IP options, so that every offset is a constant. `None` for all other
/// frames, malformed ones included: [`v4`] tells them apart.
#[inline(always)]
pub(crate) fn fast_v4(frame: &[u8]) -> Option<Packet4> {
    let ip = ipv4_header(frame)?;
    let total_len = u16_at(ip, ipv4::TOTAL_LEN);
    // RFC 791: every fragment has "more fragments" set, an offset, or both.
    let is_fragment =
        u16_at(ip, ipv4::FLAGS_FRAGMENT) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET_MASK) != 0;
    let fits = total_len >= IPV4_LEN && usize::from(total_len) + ethernet::LEN <= frame.len();
    // One comparison checks the version and that there are no options.
    let has_options = ip[ipv4::VERSION_IHL] != ipv4::VERSION_IHL_NO_OPTIONS;
    if has_options || is_fragment || !fits || !is_tcp_or_udp(ip[ipv4::PROTOCOL]) {
        return None;
    }
    let [src, dst] = *ip[ipv4::SRC..].as_chunks::<4>().0 else { return None };
    let datagram = Datagram {
        src: Ipv4Addr::from_octets(src),
        dst: Ipv4Addr::from_octets(dst),
        l3_offset: ETHERNET_LEN,
        l4_offset: ETHERNET_LEN + IPV4_LEN,
        l4_len: total_len - IPV4_LEN,
        ttl: ip[ipv4::TTL],
        protocol: ip[ipv4::PROTOCOL],
        fragment: None,
    };
    packet_of(transport(frame, &datagram))
}

/// A TCP or UDP packet in an IPv6 frame without extension headers; `None` for all other frames.
#[inline(always)]
pub(crate) fn fast_v6(frame: &[u8]) -> Option<Packet6> {
    let ip = ipv6_header(frame)?;
    let payload_len = u16_at(ip, ipv6::PAYLOAD_LEN);
    let fits = payload_len <= u16::MAX - IPV6_LEN
        && usize::from(payload_len) + ethernet::LEN + ipv6::LEN <= frame.len();
    if ip[0] >> 4 != 6 || !fits || !is_tcp_or_udp(ip[ipv6::NEXT_HEADER]) {
        return None;
    }
    let [src, dst] = *ip[ipv6::SRC..].as_chunks::<16>().0 else { return None };
    let datagram = Datagram {
        src: Ipv6Addr::from_octets(src),
        dst: Ipv6Addr::from_octets(dst),
        l3_offset: ETHERNET_LEN,
        l4_offset: ETHERNET_LEN + IPV6_LEN,
        l4_len: payload_len,
        ttl: ip[ipv6::HOP_LIMIT],
        protocol: ip[ipv6::NEXT_HEADER],
        fragment: None,
    };
    packet_of(transport(frame, &datagram))
}

#[inline(always)]
const fn is_tcp_or_udp(protocol: u8) -> bool {
    matches!(protocol, ip_protocol::TCP | ip_protocol::UDP)
}

#[inline(always)]
fn packet_of<A>(parsed: Result<Parsed<A>, Malformed>) -> Option<Packet<A>> {
    match parsed {
        Ok(Parsed::L4(packet)) => Some(packet),
        _ => None,
    }
}

/// The transport header of an unfragmented packet, whose IP lengths were checked.
#[inline(always)]
fn transport<A: Address>(frame: &[u8], datagram: &Datagram<A>) -> Result<Parsed<A>, Malformed> {
    let &Datagram { src, dst, l3_offset, l4_offset, l4_len, ttl, protocol, .. } = datagram;
    // In bounds: the IP lengths were checked. All later checks are against `l4`, which ends where the packet does, so
    // Ethernet padding is never taken for payload.
    let l4 = &frame[usize::from(l4_offset)..usize::from(l4_offset) + usize::from(l4_len)];
    // Checksums and ports are taken as two-byte chunks: one 16-bit load each, where indexing makes two of 8 bits.
    let (protocol, checksum, tcp_flags) = match protocol {
        ip_protocol::TCP => {
            let tcp = l4.first_chunk::<{ tcp::LEN }>().ok_or(Malformed::Truncated)?;
            let data_offset = u16::from(tcp[tcp::DATA_OFFSET] >> 4) * 4;
            if usize::from(data_offset) < tcp::LEN || data_offset > l4_len {
                return Err(Malformed::L4Length);
            }
            (Protocol::Tcp, tcp.as_chunks::<2>().0[tcp::CHECKSUM / 2], TcpFlags(tcp[tcp::FLAGS]))
        }
        ip_protocol::UDP => {
            let udp = l4.first_chunk::<{ udp::LEN }>().ok_or(Malformed::Truncated)?;
            // A datagram may end before its packet does: what follows are UDP options (RFC 9868 section 7), which middleboxes
            // leave alone. Zero stands for a jumbogram (RFC 2675), which no frame holds.
            if !(UDP_LEN..=l4_len).contains(&u16_at(udp, udp::DATAGRAM_LEN)) {
                return Err(Malformed::L4Length);
            }
            (Protocol::Udp, udp.as_chunks::<2>().0[udp::CHECKSUM / 2], TcpFlags::default())
        }
        ip_protocol::SCTP => (Protocol::Sctp, Checksum::NONE.0, sctp_flags(l4)?),
        other if other == A::ICMP => return Ok(Parsed::Icmp),
        _ => return Ok(Parsed::NotL4),
    };
    // All three protocols begin with source and destination port. Zero is a port like others: RFC 768 has it stand for a
    // sender that expects no answer, and netfilter translates it in every protocol.
    let [src_port, dst_port, ..] = *l4.as_chunks::<2>().0 else { return Err(Malformed::Truncated) };
    let (src_port, dst_port) = (L4Port::from_wire(src_port), L4Port::from_wire(dst_port));
    Ok(Parsed::L4(Packet {
        tuple: FiveTuple { protocol, src, dst, src_port, dst_port },
        l3_offset,
        l4_offset,
        l4_len,
        ttl,
        tcp_flags,
        l4_checksum: Checksum(checksum),
    }))
}

const UDP_LEN: u16 = short(udp::LEN);

/// The TCP flags that the chunks of an SCTP packet correspond to (RFC 9260 sections 3.2 and 4).
#[cold]
pub(crate) fn sctp_flags(l4: &[u8]) -> Result<TcpFlags, Malformed> {
    crate::sctp::read(l4).map(|packet| packet.flags).ok_or(Malformed::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket};
    use proptest::prelude::*;

    fn udp(payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64).udp(1234, 80);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    fn tcp() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64)
            .tcp(1234, 80, 7, 1024)
            .syn();
        let mut frame = Vec::new();
        builder.write(&mut frame, b"hello").unwrap();
        frame
    }

    fn parse(frame: &[u8]) -> Result<Parsed<Ipv4Addr>, Malformed> {
        v4(frame)
    }

    fn l4(frame: &[u8]) -> Packet4 {
        match parse(frame) {
            Ok(Parsed::L4(packet)) => packet,
            other => panic!("not a packet: {other:?}"),
        }
    }

    #[test]
    fn a_udp_datagram_has_its_tuple_and_lengths() {
        let packet = l4(&udp(b"payload"));
        assert_eq!(packet.tuple.to_string(), "UDP 192.0.2.1:1234 -> 10.0.0.1:80");
        assert_eq!((packet.l3_offset, packet.l4_offset, packet.l4_len), (14, 34, 15));
        assert_eq!((packet.ip_len(), packet.ttl), (35, 64));
    }

    #[test]
    fn ethernet_padding_is_not_part_of_the_packet() {
        let mut frame = udp(b"");
        frame.resize(60, 0);
        assert_eq!(l4(&frame).l4_len, 8);
    }

    #[test]
    fn a_tcp_syn_opens_and_a_syn_ack_does_not() {
        let packet = l4(&tcp());
        assert!(packet.tcp_flags.opens());
        assert!(!TcpFlags::SYN.union(TcpFlags::ACK).opens());
        assert!(!TcpFlags::SYN.union(TcpFlags::RST).opens());
    }

    #[test]
    fn ip_options_move_the_transport_header() {
        let mut frame = udp(b"x");
        frame.splice(34..34, [1, 1, 1, 1]);
        frame[14] = 0x46;
        frame[16..18].copy_from_slice(&33_u16.to_be_bytes());
        let packet = l4(&frame);
        assert_eq!((packet.l4_offset, packet.tuple.dst_port), (38, L4Port::new(80)));
    }

    #[test]
    fn what_is_not_ours_is_not_malformed() {
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(EtherType::of(&arp), Some(EtherType::Other));
        assert_eq!(EtherType::of(&arp[..13]), None);
        let mut icmp = udp(b"");
        icmp[23] = 1;
        assert_eq!(parse(&icmp), Ok(Parsed::Icmp));
        icmp[23] = 50;
        assert_eq!(parse(&icmp), Ok(Parsed::NotL4));
        let mut first_fragment = udp(b"");
        first_fragment[20] = 0x20;
        assert_eq!(parse(&first_fragment), Ok(Parsed::Fragment));
        let mut dont_fragment = udp(b"");
        dont_fragment[20] = 0x40;
        l4(&dont_fragment);
    }

    #[test]
    fn each_contradiction_has_its_name() {
        let frame = udp(b"abc");
        let with = |at: usize, byte: u8| {
            let mut frame = frame.clone();
            frame[at] = byte;
            parse(&frame)
        };
        assert_eq!(parse(&frame[..33]), Err(Malformed::Truncated));
        assert_eq!(parse(&[]), Err(Malformed::Truncated));
        assert_eq!(with(14, 0x65), Err(Malformed::Version));
        assert_eq!(with(14, 0x44), Err(Malformed::HeaderLength));
        assert_eq!(with(14, 0x4f), Err(Malformed::TotalLength));
        assert_eq!(with(17, 200), Err(Malformed::TotalLength));
        assert_eq!(with(39, 99), Err(Malformed::L4Length));
        assert_eq!(with(39, 7), Err(Malformed::L4Length));
        assert_eq!(with(39, 0), Err(Malformed::L4Length));
        let mut short_tcp = tcp();
        short_tcp[46] = 0x40;
        assert_eq!(parse(&short_tcp), Err(Malformed::L4Length));
    }

    #[test]
    fn a_datagram_may_be_shorter_than_its_packet_and_come_from_port_zero() {
        // RFC 9868: four bytes of options behind a datagram of twelve.
        let mut frame = udp(b"data\xff\xfb\0\0");
        frame[39] = 12;
        frame[34..36].copy_from_slice(&[0, 0]);
        let packet = l4(&frame);
        assert_eq!((packet.tuple.src_port, packet.l4_len, packet.ip_len()), (L4Port::new(0), 16, 36));
        assert_eq!(fast_v4(&frame), Some(packet));
    }

    #[test]
    fn a_checksum_left_to_the_device_is_told_from_a_complete_one() {
        let mut frame = udp(b"some payload");
        assert!(!l4(&frame).has_partial_checksum());
        let packet = l4(&frame);
        let pseudo = Sum::pseudo_header(packet.tuple.src, packet.tuple.dst, 17, packet.l4_len);
        frame[40..42].copy_from_slice(&pseudo.fold().to_ne_bytes());
        assert!(l4(&frame).has_partial_checksum());
    }

    #[test]
    fn an_ipv6_datagram_with_and_without_extension_headers() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([1; 16], [2; 16], 9).udp(1234, 80);
        builder.write(&mut frame, b"x").unwrap();
        let plain = fast_v6(&frame).unwrap();
        assert_eq!((plain.tuple.dst, plain.l4_offset, plain.l4_len, plain.ttl), ([2; 16].into(), 54, 9, 9));
        // Destination options of eight bytes.
        frame.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        (frame[19], frame[20]) = (17, 60);
        assert_eq!(fast_v6(&frame), None);
        let Ok(Parsed::L4(packet)) = v6(&frame) else { panic!("not a packet") };
        assert_eq!((packet.tuple, packet.l4_offset, packet.l4_len), (plain.tuple, 62, 9));
    }

    proptest! {
        #[test]
        fn fast_ipv6_is_what_the_whole_parser_gives(
            [src, dst] in any::<[u128; 2]>(), payload in proptest::collection::vec(any::<u8>(), 0..40), tcp in any::<bool>(),
            (at, byte) in any::<(proptest::sample::Index, u8)>(), cut in 0..4_usize,
        ) {
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6(src.to_be_bytes(), dst.to_be_bytes(), 64);
            let mut frame = Vec::new();
            if tcp { builder.tcp(1, 2, 3, 4).write(&mut frame, &payload).unwrap() } else { builder.udp(1, 2).write(&mut frame, &payload).unwrap() }
            prop_assert!(fast_v6(&frame).is_some());
            let at = at.index(frame.len());
            frame[at] = byte;
            frame.truncate(frame.len() - cut);
            match (fast_v6(&frame), v6(&frame)) {
                (Some(packet), whole) => prop_assert_eq!(whole, Ok(Parsed::L4(packet))),
                (None, Ok(Parsed::L4(packet))) => prop_assert!(packet.l4_offset > 54 || packet.tuple.protocol == Protocol::Sctp),
                (None, _) => {}
            }
        }

        #[test]
        fn random_bytes_never_panic_and_agree_with_etherparse(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), shape in 0..4_u8) {
            if shape > 0 && bytes.len() > 24 {
                bytes[12..14].copy_from_slice(&[8, 0]);
                bytes[14] = 0x40 | (bytes[14] & 0x0f);
                if shape > 1 { bytes[20] = 0x40; bytes[21] = 0; bytes[23] = if shape == 2 { 6 } else { 17 }; }
            }
            if let Some(packet) = fast_v4(&bytes) {
                prop_assert_eq!(parse(&bytes), Ok(Parsed::L4(packet)));
            }
            if let Ok(Parsed::L4(packet)) = parse(&bytes) {
                let oracle = SlicedPacket::from_ethernet(&bytes).expect("etherparse takes what we take");
                let ports = match oracle.transport.expect("has a transport header") {
                    etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
                    etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(ports, (packet.tuple.src_port.number(), packet.tuple.dst_port.number()));
            }
        }
    }
}
