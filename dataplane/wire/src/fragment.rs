//! Fragments of a packet (RFC 791 section 3.2, RFC 8200 section 4.5): which bytes each holds, and how it is rewritten.
//! Stateless: the fragment cache is in the data plane.

use crate::addr::{FiveTuple, L4Port, Protocol};
use crate::checksum::{Checksum, Delta, Sum};
use crate::datagram::{Datagram, Fragment, u16_at};
use crate::family::Address;
use crate::header::{ethernet, ipv4, ipv6, short, tcp, udp};
use crate::parse::{Malformed, Packet, TcpFlags, sctp_flags};
use crate::rewrite::EtherAddrs;
use crate::{header, sctp};

/// The bytes of a fragment in the packet that it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRange {
    /// Position of the first, in the fragmentable part of the packet.
    pub start: u16,
    /// Position behind the last.
    pub end: u16,
    /// The flag "more fragments".
    pub more: bool,
}

/// Why a fragment cannot be part of any packet that may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidFragment {
    /// It is the first and does not hold its headers whole (RFC 7112), or it would overwrite the transport header
    /// of the first (RFC 1858, RFC 3128).
    Tiny,
    /// Its lengths contradict each other or the largest packet.
    Malformed(Malformed),
}

impl FragmentRange {
    /// The bytes that `fragment` of `datagram` holds.
    ///
    /// # Errors
    /// [`InvalidFragment`] when there are none, when their number is no multiple of eight though others follow, when they end
    /// beyond the largest packet, or when they begin within the transport header.
    pub fn of<A: Address>(datagram: &Datagram<A>, fragment: &Fragment) -> Result<Self, InvalidFragment> {
        let too_long = InvalidFragment::Malformed(Malformed::TotalLength);
        // Of IPv6 the extension headers behind the fragment header count too: they are part of what was fragmented.
        let len = datagram.ip_len() + datagram.l3_offset - part_offset(datagram, fragment);
        if len == 0 || (fragment.more && !len.is_multiple_of(UNIT)) {
            return Err(too_long);
        }
        // Offset plus length beyond the largest packet is the "ping of death".
        let end = fragment.offset.checked_add(len).ok_or(too_long)?;
        // RFC 791 section 3.1: the total length counts the header; RFC 8200 section 3: the payload length does not.
        if A::IS_V4 && usize::from(end) > usize::from(u16::MAX) - A::HEADER_LEN {
            return Err(too_long);
        }
        let start = fragment.offset;
        match Protocol::from_number(datagram.protocol) {
            // RFC 3128: it would overwrite ports or flags that the first fragment was judged by.
            Some(protocol) if start != 0 && start < header_len(protocol) => Err(InvalidFragment::Tiny),
            _ => Ok(Self { start, end, more: fragment.more }),
        }
    }
}

/// Parses the first fragment of a packet: `l4_len` counts the bytes in this fragment. The second value is the length of
/// the datagram, which only UDP has in its header: the packet is at least as long, and longer with UDP options (RFC 9868).
///
/// # Errors
/// [`InvalidFragment`] when the transport header is not whole or contradicts itself.
pub fn parse_first<A: Address>(
    frame: &[u8],
    datagram: &Datagram<A>,
    protocol: Protocol,
) -> Result<(Packet<A>, Option<u16>), InvalidFragment> {
    let &Datagram { src, dst, l3_offset, l4_offset, l4_len, ttl, .. } = datagram;
    let l4 = datagram.payload(frame);
    let malformed = InvalidFragment::Malformed(Malformed::L4Length);
    if l4_len < header_len(protocol) {
        return Err(InvalidFragment::Tiny);
    }
    let (l4_checksum, tcp_flags, datagram_len) = match protocol {
        Protocol::Tcp => {
            let tcp = l4.first_chunk::<{ tcp::LEN }>().ok_or(InvalidFragment::Tiny)?;
            let data_offset = u16::from(tcp[tcp::DATA_OFFSET] >> 4) * 4;
            if usize::from(data_offset) < tcp::LEN {
                return Err(malformed);
            }
            // RFC 7112 section 5: options in a later fragment would escape filters.
            if data_offset > l4_len {
                return Err(InvalidFragment::Tiny);
            }
            (Checksum([tcp[tcp::CHECKSUM], tcp[tcp::CHECKSUM + 1]]), TcpFlags(tcp[tcp::FLAGS]), None)
        }
        Protocol::Udp => {
            let udp = l4.first_chunk::<{ udp::LEN }>().ok_or(InvalidFragment::Tiny)?;
            let datagram_len = u16_at(udp, udp::DATAGRAM_LEN);
            // One that is whole in its first fragment leaves options for the others.
            if datagram_len < header_len(protocol) {
                return Err(malformed);
            }
            (Checksum([udp[udp::CHECKSUM], udp[udp::CHECKSUM + 1]]), TcpFlags::default(), Some(datagram_len))
        }
        Protocol::Sctp => (Checksum::NONE, sctp_flags(l4).map_err(InvalidFragment::Malformed)?, None),
    };
    let [s0, s1, d0, d1, ..] = *l4 else { return Err(InvalidFragment::Tiny) };
    let (src_port, dst_port) = (L4Port::from_wire([s0, s1]), L4Port::from_wire([d0, d1]));
    let tuple = FiveTuple { protocol, src, dst, src_port, dst_port };
    let packet = Packet { tuple, l3_offset, l4_offset, l4_len, ttl, tcp_flags, l4_checksum };
    Ok((packet, datagram_len))
}

/// Position of the transport header in the fragmentable part: behind extension headers that only the destination reads.
pub fn l4_start<A: Address>(datagram: &Datagram<A>, fragment: &Fragment) -> u16 {
    datagram.l4_offset - part_offset(datagram, fragment)
}

/// Rewrites a fragment that has no transport header: Ethernet addresses, TTL less one, IP addresses. Its TTL must be
/// above 1. `None` only for a frame that `datagram` was not parsed from.
pub fn rewrite<A: Address>(
    frame: &mut [u8],
    datagram: &Datagram<A>,
    pair: [A; 2],
    ether: &EtherAddrs,
) -> Option<()> {
    let (ethernet, header) = frame.split_at_mut_checked(usize::from(datagram.l3_offset))?;
    *ethernet.first_chunk_mut::<{ ethernet::ADDRS_LEN }>()? = ether.0;
    A::decrement_ttl(header)?;
    A::write_pair(header, pair)
}

/// Writes another identification into `fragment` and updates an IPv4 header checksum. IPv4 takes the lower 16 bits.
pub fn write_identification<A: Address>(
    frame: &mut [u8],
    datagram: &Datagram<A>,
    fragment: &Fragment,
    id: u32,
) -> Option<()> {
    let bytes = id.to_be_bytes();
    let at = usize::from(fragment.id_offset);
    if !A::IS_V4 {
        *frame.get_mut(at..)?.first_chunk_mut::<4>()? = bytes;
        return Some(());
    }
    let new = [bytes[2], bytes[3]];
    let field = frame.get_mut(at..)?.first_chunk_mut::<2>()?;
    // IPv6 has no checksum over the identification; in IPv4 it is one word of the header checksum.
    let delta = Delta::between(Sum::ZERO.word(*field), Sum::ZERO.word(new));
    *field = new;
    let checksum =
        frame.get_mut(usize::from(datagram.l3_offset) + ipv4::CHECKSUM..)?.first_chunk_mut::<2>()?;
    *checksum = Checksum(*checksum).update(delta).0;
    Some(())
}

/// The checksum of a fragmented SCTP packet after its first four bytes, the ports, were changed from one of `ports` to
/// the other: `received` is the old one, `len` the length of the whole packet in bytes.
///
/// The other fragments are not needed: the CRC changes by the CRC of the change and its distance from the end alone. A
/// wrong checksum stays wrong, and zero stays zero, since it stands for none (RFC 9653).
pub fn sctp_checksum(received: [u8; 4], ports: [[u8; 4]; 2], len: u16) -> [u8; 4] {
    sctp::update(received, ports, len)
}

/// Offset in the frame of the fragmentable part.
fn part_offset<A: Address>(datagram: &Datagram<A>, fragment: &Fragment) -> u16 {
    // IPv6: it begins behind the fragment header, whose last field is the identification of four bytes.
    if A::IS_V4 {
        datagram.l4_offset
    } else {
        fragment.id_offset + const { short(ipv6::EXTENSION_UNIT - ipv6::FRAGMENT_ID) }
    }
}

/// Bytes of the transport header that a first fragment must hold; for SCTP with the header of the first chunk.
const fn header_len(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => const { short(tcp::LEN) },
        Protocol::Udp => const { short(udp::LEN) },
        Protocol::Sctp => const { short(header::sctp::LEN + header::sctp::CHUNK_LEN) },
    }
}

/// Fragments begin at multiples of this many bytes.
const UNIT: u16 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use proptest::prelude::*;

    fn v4(protocol: u8, flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![1; 12];
        frame.extend(Ipv4Addr::ETHERTYPE);
        let total = u16::try_from(20 + payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0x12, 0x34]);
        frame.extend(flags_and_offset.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 192, 0, 2, 1, 10, 0, 0, 1]);
        let checksum = Sum::ZERO.bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&checksum.0);
        frame.extend(payload);
        frame
    }

    fn part(frame: &[u8]) -> Result<FragmentRange, InvalidFragment> {
        let datagram = Ipv4Addr::datagram(frame).unwrap();
        FragmentRange::of(&datagram, &datagram.fragment.unwrap())
    }

    #[test]
    fn a_part_lies_within_the_largest_packet_and_outside_of_the_header() {
        assert_eq!(part(&v4(17, 0x2000, &[0; 16])), Ok(FragmentRange { start: 0, end: 16, more: true }));
        assert_eq!(part(&v4(17, 2, &[0; 3])), Ok(FragmentRange { start: 16, end: 19, more: false }));
        let too_long = Err(InvalidFragment::Malformed(Malformed::TotalLength));
        assert_eq!(part(&v4(17, 0x2000, &[0; 15])), too_long);
        assert_eq!(part(&v4(17, 2, &[])), too_long);
        // The ping of death.
        assert_eq!(part(&v4(17, 0x1fff, &[0; 8])), too_long);
        assert_eq!(part(&v4(6, 1, &[0; 8])), Err(InvalidFragment::Tiny));
        assert_eq!(part(&v4(6, 2, &[0; 8])), Err(InvalidFragment::Tiny));
        assert!(part(&v4(6, 3, &[0; 8])).is_ok());
        assert!(part(&v4(17, 1, &[0; 8])).is_ok());
    }

    #[test]
    fn a_first_fragment_holds_its_header_whole() {
        let ask = |frame: &[u8]| {
            let datagram = Ipv4Addr::datagram(frame).unwrap();
            parse_first(frame, &datagram, Protocol::from_number(datagram.protocol).unwrap())
        };
        let udp = [0x0f, 0xa0, 0, 53, 0, 40, 0xab, 0xcd, 1, 2, 3, 4, 5, 6, 7, 8];
        let (packet, datagram_len) = ask(&v4(17, 0x2000, &udp)).unwrap();
        assert_eq!((packet.tuple.src_port, packet.tuple.dst_port), (L4Port::new(4000), L4Port::new(53)));
        assert_eq!((packet.l4_len, datagram_len, packet.l4_checksum.0), (16, Some(40), [0xab, 0xcd]));
        assert_eq!(ask(&v4(6, 0x2000, &[0; 16])), Err(InvalidFragment::Tiny));
        let mut options_elsewhere = [1; 24];
        options_elsewhere[12] = 0x70;
        assert_eq!(ask(&v4(6, 0x2000, &options_elsewhere)), Err(InvalidFragment::Tiny));
        let mut short = udp;
        short[5] = 7;
        assert_eq!(ask(&v4(17, 0x2000, &short)), Err(InvalidFragment::Malformed(Malformed::L4Length)));
        // Options follow in the other fragments.
        short[5] = 16;
        assert_eq!(ask(&v4(17, 0x2000, &short)).map(|(_, len)| len), Ok(Some(16)));
    }

    /// An IPv6 fragment with destination options in what was cut up.
    fn v6() -> Vec<u8> {
        let mut frame = vec![1; 12];
        frame.extend(Ipv6Addr::ETHERTYPE);
        frame.extend([0x60, 0, 0, 0, 0, 32, 44, 64]);
        frame.extend([0x20; 32]);
        frame.extend([60, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
        frame.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend([0x0f, 0xa0, 0, 53, 0, 40, 0xab, 0xcd, 1, 2, 3, 4, 5, 6, 7, 8]);
        frame
    }

    #[test]
    fn extension_headers_behind_the_fragment_header_are_part_of_what_was_cut_up() {
        let mut frame = v6();
        let datagram = Ipv6Addr::datagram(&frame).unwrap();
        let fragment = datagram.fragment.unwrap();
        assert_eq!(
            FragmentRange::of(&datagram, &fragment),
            Ok(FragmentRange { start: 0, end: 24, more: true })
        );
        assert_eq!(l4_start(&datagram, &fragment), 8);
        assert!(parse_first(&frame, &datagram, Protocol::Udp).is_ok());
        write_identification(&mut frame, &datagram, &fragment, 7).unwrap();
        assert_eq!(Ipv6Addr::datagram(&frame).unwrap().fragment.unwrap().id, 7);
    }

    proptest! {
        #[test]
        fn a_rewritten_fragment_keeps_its_payload_and_a_right_header_checksum(
            payload in proptest::collection::vec(any::<u8>(), 8..64), id in any::<u16>(), src in any::<u32>(), dst in any::<u32>(),
        ) {
            let mut frame = v4(17, 185, &payload);
            let datagram = Ipv4Addr::datagram(&frame).unwrap();
            let pair = [Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst)];
            rewrite(&mut frame, &datagram, pair, &EtherAddrs([7; 12])).unwrap();
            write_identification(&mut frame, &datagram, &datagram.fragment.unwrap(), id.into()).unwrap();
            let after = Ipv4Addr::datagram(&frame).unwrap();
            prop_assert_eq!([after.src, after.dst], pair);
            prop_assert_eq!((after.ttl, after.fragment.unwrap().id), (63, u32::from(id)));
            prop_assert_eq!(Sum::ZERO.bytes(&frame[14..34]).fold(), u16::MAX);
            prop_assert!(frame.ends_with(&payload));
        }

        #[test]
        fn the_checksum_of_sctp_follows_its_ports_from_afar(
            body in proptest::collection::vec(any::<u8>(), 12..200), ports in any::<[u8; 4]>(), wrong in any::<bool>(),
        ) {
            let whole = |ports: &[u8], field: &[u8]| [ports, &body[..4], field, &body[4..]].concat();
            let crc = |ports: &[u8]| crc32c::crc32c(&whole(ports, &[0; 4]));
            let old = [0x0f, 0xa0, 0, 80];
            let error = u32::from(wrong) << 7;
            let received = crc(&old) ^ error;
            prop_assume!(received != 0);
            let len = u16::try_from(body.len() + 8).unwrap();
            let updated = u32::from_le_bytes(sctp_checksum(received.to_le_bytes(), [old, ports], len));
            prop_assert_eq!(updated, crc(&ports) ^ error);
        }
    }
}
