//! From the bytes of a frame to a packet whose offsets are proven. Never changes a byte.
//!
//! Three outcomes (ours, not ours, malformed) are three answers: see [`parse`].

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{FiveTuple, L4Port, Protocol};
use crate::checksum::{Checksum, Sum};
use crate::datagram::{self, Datagram};
use crate::family::Address;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;

/// The EtherType of a VLAN tag (IEEE 802.1Q).
pub const CUSTOMER_TAG: [u8; 2] = [0x81, 0x00];

/// The EtherType of the outer tag of a provider's network (IEEE 802.1ad).
pub const SERVICE_TAG: [u8; 2] = [0x88, 0xa8];

/// What the EtherType of a frame says.
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
    /// That of `frame`; none when it ends within its Ethernet header.
    #[inline]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let head = frame.first_chunk::<ETHERNET_LEN>()?;
        Some(Self::from_wire([head[12], head[13]]))
    }

    /// What the two bytes of an EtherType say.
    #[inline]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        match bytes {
            Ipv4Addr::ETHERTYPE => Self::Ipv4,
            Ipv6Addr::ETHERTYPE => Self::Ipv6,
            CUSTOMER_TAG | SERVICE_TAG => Self::Tag,
            _ => Self::Other,
        }
    }
}

/// What a well-formed IP packet of one family holds.
///
/// Its tag has a byte of its own: within the packet, as a niche, it would lie where the protocol does, and
/// the compiler then keeps both in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Parsed<A> {
    /// TCP, UDP or SCTP, not a fragment.
    L4(Packet<A>),
    /// ICMP or ICMPv6, not a fragment.
    Icmp,
    /// A fragment of a packet, the first one included.
    Fragment,
    /// A protocol that has no ports we know.
    NotL4,
}

/// Why the bytes of a frame cannot be what its headers say.
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
    /// A port is zero, which no flow can have.
    PortZero,
}

/// An IP packet with a TCP, UDP or SCTP header, all lengths checked against the frame it was parsed from.
///
/// The proof is void once the frame is shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// The five-tuple as the headers have it.
    pub tuple: FiveTuple<A>,
    /// Where the IP header starts in the frame.
    pub l3_offset: u16,
    /// Where the transport header starts in the frame.
    pub l4_offset: u16,
    /// Bytes from the transport header to the end of the packet; Ethernet padding is not counted.
    pub l4_len: u16,
    /// Remaining hops.
    pub ttl: u8,
    /// The TCP flags; for SCTP what its first chunk comes to; none for UDP.
    pub tcp_flags: TcpFlags,
    /// The transport checksum as received; none for SCTP, whose CRC is computed anew.
    pub l4_checksum: Checksum,
}

/// An IPv4 packet.
pub type Packet4 = Packet<Ipv4Addr>;

/// An IPv6 packet.
pub type Packet6 = Packet<Ipv6Addr>;

impl<A: Address> Packet<A> {
    /// A value to fill room with that no packet has.
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

    /// The transport header and what follows, of the frame that this was parsed from.
    pub(crate) fn l4<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        frame.get(usize::from(self.l4_offset)..)?.get(..usize::from(self.l4_len))
    }

    /// Length of the IP packet in bytes, headers included.
    #[inline]
    pub const fn ip_len(&self) -> u16 {
        self.l4_offset - self.l3_offset + self.l4_len
    }

    /// The upper half of the acknowledgement number of a TCP segment.
    #[inline]
    pub fn tcp_acked(&self, frame: &[u8]) -> u16 {
        let at = usize::from(self.l4_offset) + 8;
        frame.get(at..at + 2).map_or(0, |high| u16::from_be_bytes([high[0], high[1]]))
    }

    /// The sequence number of a TCP segment; zero for other protocols.
    pub fn tcp_sequence(&self, frame: &[u8]) -> u32 {
        let at = usize::from(self.l4_offset) + 4;
        let field = frame.get(at..at + 4).and_then(|field| field.first_chunk::<4>());
        field.filter(|_| self.tuple.protocol == Protocol::Tcp).map_or(0, |field| u32::from_be_bytes(*field))
    }

    /// Whether the transport checksum still waits for a device to complete it.
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
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
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
    whole(frame, &datagram::v4(frame)?)
}

/// Parses an IPv6 frame.
pub(crate) fn v6(frame: &[u8]) -> Result<Parsed<Ipv6Addr>, Malformed> {
    whole(frame, &datagram::v6(frame)?)
}

fn whole<A: Address>(frame: &[u8], datagram: &Datagram<A>) -> Result<Parsed<A>, Malformed> {
    if datagram.fragment.is_some() {
        return Ok(Parsed::Fragment);
    }
    transport(frame, datagram)
}

/// The segment of an IPv4 frame without IP options, which nearly all are: every offset is a constant. None for
/// everything else, which [`v4`] tells apart.
#[inline(always)]
pub(crate) fn plain_v4(frame: &[u8]) -> Option<Packet4> {
    let head = frame.first_chunk::<{ ETHERNET_LEN + 20 }>()?;
    let total_len = u16::from_be_bytes([head[16], head[17]]);
    // RFC 791: any fragment has "more fragments" set or an offset.
    let is_fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff != 0;
    let fits = total_len >= 20 && usize::from(total_len) + ETHERNET_LEN <= frame.len();
    if head[14] != 0x45 || is_fragment || !fits || !matches!(head[23], 6 | 17) {
        return None;
    }
    let datagram = Datagram {
        src: Ipv4Addr::from_octets([head[26], head[27], head[28], head[29]]),
        dst: Ipv4Addr::from_octets([head[30], head[31], head[32], head[33]]),
        l3_offset: ETHERNET_LEN_U16,
        l4_offset: ETHERNET_LEN_U16 + 20,
        l4_len: total_len - 20,
        ttl: head[22],
        protocol: head[23],
        fragment: None,
    };
    segment(transport(frame, &datagram))
}

/// The segment of an IPv6 frame without extension headers; none for everything else.
#[inline(always)]
pub(crate) fn plain_v6(frame: &[u8]) -> Option<Packet6> {
    let head = frame.first_chunk::<{ ETHERNET_LEN + 40 }>()?;
    let payload_len = u16::from_be_bytes([head[18], head[19]]);
    let fits = payload_len <= u16::MAX - 40 && usize::from(payload_len) + ETHERNET_LEN + 40 <= frame.len();
    if head[14] >> 4 != 6 || !fits || !matches!(head[20], 6 | 17) {
        return None;
    }
    let [src, dst] = *head[22..].as_chunks::<16>().0 else { return None };
    let datagram = Datagram {
        src: Ipv6Addr::from_octets(src),
        dst: Ipv6Addr::from_octets(dst),
        l3_offset: ETHERNET_LEN_U16,
        l4_offset: ETHERNET_LEN_U16 + 40,
        l4_len: payload_len,
        ttl: head[21],
        protocol: head[20],
        fragment: None,
    };
    segment(transport(frame, &datagram))
}

#[inline(always)]
fn segment<A>(parsed: Result<Parsed<A>, Malformed>) -> Option<Packet<A>> {
    match parsed {
        Ok(Parsed::L4(packet)) => Some(packet),
        _ => None,
    }
}

/// The transport header of a whole packet, whose lengths were checked.
#[inline(always)]
fn transport<A: Address>(frame: &[u8], datagram: &Datagram<A>) -> Result<Parsed<A>, Malformed> {
    let &Datagram { src, dst, l3_offset, l4_offset, l4_len, ttl, protocol, .. } = datagram;
    let l4 = &frame[usize::from(l4_offset)..usize::from(l4_offset) + usize::from(l4_len)];
    let (protocol, checksum, tcp_flags) = match protocol {
        6 => {
            let tcp = l4.first_chunk::<20>().ok_or(Malformed::Truncated)?;
            let data_offset = u16::from(tcp[12] >> 4) * 4;
            if data_offset < 20 || data_offset > l4_len {
                return Err(Malformed::L4Length);
            }
            (Protocol::Tcp, tcp.as_chunks::<2>().0[8], TcpFlags(tcp[13]))
        }
        17 => {
            let udp = l4.first_chunk::<8>().ok_or(Malformed::Truncated)?;
            // RFC 768 has the length count the datagram; shorter than the packet would be a second truth.
            if u16::from_be_bytes([udp[4], udp[5]]) != l4_len {
                return Err(Malformed::L4Length);
            }
            (Protocol::Udp, udp.as_chunks::<2>().0[3], TcpFlags::default())
        }
        132 => (Protocol::Sctp, Checksum::NONE.0, sctp_flags(l4)?),
        other if other == A::ICMP => return Ok(Parsed::Icmp),
        _ => return Ok(Parsed::NotL4),
    };
    // All begin with the ports.
    let [src_port, dst_port, ..] = *l4.as_chunks::<2>().0 else { return Err(Malformed::Truncated) };
    let (src_port, dst_port) = (L4Port::from_wire(src_port), L4Port::from_wire(dst_port));
    if src_port == L4Port::new(0) || dst_port == L4Port::new(0) {
        return Err(Malformed::PortZero);
    }
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

/// What the first chunk of an SCTP packet comes to in terms of TCP (RFC 9260 sections 3.2 and 4).
#[cold]
pub(crate) fn sctp_flags(l4: &[u8]) -> Result<TcpFlags, Malformed> {
    let header = l4.first_chunk::<16>().ok_or(Malformed::Truncated)?;
    Ok(match header[12] {
        1 => TcpFlags::SYN,
        2 => TcpFlags::SYN.union(TcpFlags::ACK),
        6 => TcpFlags::RST.union(TcpFlags::ACK),
        7 | 8 | 14 => TcpFlags::FIN.union(TcpFlags::ACK),
        _ => TcpFlags::ACK,
    })
}

const ETHERNET_LEN_U16: u16 = 14;

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
        assert_eq!(with(37, 0), Err(Malformed::PortZero));
        let mut short_tcp = tcp();
        short_tcp[46] = 0x40;
        assert_eq!(parse(&short_tcp), Err(Malformed::L4Length));
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
        let plain = plain_v6(&frame).unwrap();
        assert_eq!((plain.tuple.dst, plain.l4_offset, plain.l4_len, plain.ttl), ([2; 16].into(), 54, 9, 9));
        // Destination options of eight bytes.
        frame.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
        (frame[19], frame[20]) = (17, 60);
        assert_eq!(plain_v6(&frame), None);
        let Ok(Parsed::L4(packet)) = v6(&frame) else { panic!("not a packet") };
        assert_eq!((packet.tuple, packet.l4_offset, packet.l4_len), (plain.tuple, 62, 9));
    }

    proptest! {
        #[test]
        fn plain_ipv6_is_what_the_whole_parser_says(
            src in any::<u128>(), dst in any::<u128>(), payload in proptest::collection::vec(any::<u8>(), 0..40),
            tcp in any::<bool>(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in 0..4_usize,
        ) {
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6(src.to_be_bytes(), dst.to_be_bytes(), 64);
            let mut frame = Vec::new();
            if tcp { builder.tcp(1, 2, 3, 4).write(&mut frame, &payload).unwrap() } else { builder.udp(1, 2).write(&mut frame, &payload).unwrap() }
            prop_assert!(plain_v6(&frame).is_some());
            let at = at.index(frame.len());
            frame[at] = byte;
            frame.truncate(frame.len() - cut);
            match (plain_v6(&frame), v6(&frame)) {
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
            if let Some(packet) = plain_v4(&bytes) {
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
