//! The IP header of a frame, whatever it carries: nothing behind the last IP header is read.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;
use crate::family::Address;
use crate::header::ip_protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
use crate::header::{ethernet, ipv4, ipv6, short};
use crate::options;
use crate::parse::Malformed;

/// An IP packet whose lengths were checked against the frame it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Offset of the IP header in the frame.
    pub l3_offset: u16,
    /// Offset of the payload in the frame: after options and extension headers.
    pub l4_offset: u16,
    /// Length of the payload; Ethernet padding is not counted.
    pub l4_len: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IANA number of the payload. An extension header that is not walked counts as payload.
    pub protocol: u8,
    /// `None` for a packet that is not fragmented.
    pub fragment: Option<Fragment>,
}

/// Which part of a larger packet a fragment is (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, the same in all fragments of one packet; 16 bits in IPv4.
    pub id: u32,
    /// Position of its bytes in the payload of the packet, in bytes.
    pub offset: u16,
    /// The flag "more fragments".
    pub more: bool,
    /// Offset of the identification in the frame.
    pub id_offset: u16,
}

impl<A> Datagram<A> {
    /// Length of the IP packet in bytes, headers included.
    #[inline]
    pub const fn ip_len(&self) -> u16 {
        self.l4_offset - self.l3_offset + self.l4_len
    }

    /// The payload; empty if `frame` is shorter than the frame that was parsed.
    #[inline]
    pub fn payload<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let from = usize::from(self.l4_offset);
        frame.get(from..from + usize::from(self.l4_len)).unwrap_or(&[])
    }
}

/// Parses the IPv4 header of a frame.
pub(crate) fn v4(frame: &[u8]) -> Result<Datagram<Ipv4Addr>, Malformed> {
    let ip = ipv4_header(frame).ok_or(Malformed::Truncated)?;
    if ip[ipv4::VERSION_IHL] >> 4 != 4 {
        return Err(Malformed::Version);
    }
    let header_len = u16::from(ip[ipv4::VERSION_IHL] & ipv4::IHL_MASK) * 4;
    if header_len < IPV4_LEN {
        return Err(Malformed::HeaderLength);
    }
    let total_len = u16_at(ip, ipv4::TOTAL_LEN);
    // A frame longer than its packet is padded; a shorter one is truncated.
    if total_len < header_len || usize::from(total_len) + ethernet::LEN > frame.len() {
        return Err(Malformed::TotalLength);
    }
    let flags_and_offset = u16_at(ip, ipv4::FLAGS_FRAGMENT);
    // In units of eight bytes. 13 bits times eight fit into 16.
    let offset = (flags_and_offset & ipv4::FRAGMENT_OFFSET_MASK) * 8;
    let more = flags_and_offset & ipv4::MORE_FRAGMENTS != 0;
    let fragment = (offset != 0 || more).then(|| Fragment {
        id: u16_at(ip, ipv4::ID).into(),
        offset,
        more,
        id_offset: const { short(ethernet::LEN + ipv4::ID) },
    });
    if header_len > IPV4_LEN {
        let options = usize::from(ETHERNET_LEN + IPV4_LEN)..usize::from(ETHERNET_LEN + header_len);
        options::check_v4(frame.get(options).ok_or(Malformed::Truncated)?)?;
    }
    let [src, dst] = *ip[ipv4::SRC..].as_chunks::<4>().0 else { return Err(Malformed::Truncated) };
    Ok(Datagram {
        src: Ipv4Addr::from_octets(src),
        dst: Ipv4Addr::from_octets(dst),
        l3_offset: ETHERNET_LEN,
        l4_offset: ETHERNET_LEN + header_len,
        l4_len: total_len - header_len,
        ttl: ip[ipv4::TTL],
        protocol: ip[ipv4::PROTOCOL],
        fragment,
    })
}

/// Parses the IPv6 header of a frame and the extension headers behind it.
///
/// Hop-by-hop, routing, fragment and destination options are walked, at most [`EXTENSIONS_MAX`]: RFC 8504
/// section 5.3 allows a limit. A routing header with segments left is not walked, since its packet has another final
/// destination, nor is what follows a fragment header of a later fragment, since that is the middle of a packet.
pub(crate) fn v6(frame: &[u8]) -> Result<Datagram<Ipv6Addr>, Malformed> {
    let ip = ipv6_header(frame).ok_or(Malformed::Truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(Malformed::Version);
    }
    let payload_len = u16_at(ip, ipv6::PAYLOAD_LEN);
    // The second condition keeps `ip_len`, which has 16 bits, from overflowing.
    if usize::from(payload_len) + ethernet::LEN + ipv6::LEN > frame.len() || payload_len > u16::MAX - IPV6_LEN
    {
        return Err(Malformed::TotalLength);
    }
    let [src, dst] = *ip[ipv6::SRC..].as_chunks::<16>().0 else { return Err(Malformed::Truncated) };
    let mut datagram = Datagram {
        src: Ipv6Addr::from_octets(src),
        dst: Ipv6Addr::from_octets(dst),
        l3_offset: ETHERNET_LEN,
        l4_offset: ETHERNET_LEN + IPV6_LEN,
        l4_len: payload_len,
        ttl: ip[ipv6::HOP_LIMIT],
        protocol: ip[ipv6::NEXT_HEADER],
        fragment: None,
    };
    if is_extension(datagram.protocol) {
        walk_extensions(frame, &mut datagram)?;
    }
    Ok(datagram)
}

#[cold]
fn walk_extensions(frame: &[u8], datagram: &mut Datagram<Ipv6Addr>) -> Result<(), Malformed> {
    for _ in 0..EXTENSIONS_MAX {
        // Behind the fragment header of a later fragment there is payload, whatever its next header field names.
        if !is_extension(datagram.protocol) || datagram.fragment.is_some_and(|part| part.offset != 0) {
            return Ok(());
        }
        let payload = datagram.payload(frame);
        let header = payload.first_chunk::<{ ipv6::EXTENSION_UNIT }>().ok_or(Malformed::Truncated)?;
        let header_len = extension_len(datagram.protocol, header);
        if header_len > datagram.l4_len {
            return Err(Malformed::Truncated);
        }
        match datagram.protocol {
            HOP_BY_HOP => options::check_hop_by_hop(&payload[2..usize::from(header_len)])?,
            ROUTING if header[ipv6::SEGMENTS_LEFT] != 0 => return Ok(()),
            // RFC 8200 section 4.5 has one fragment header; with two, the offset of the data would be ambiguous.
            FRAGMENT if datagram.fragment.is_some() => return Err(Malformed::HeaderLength),
            FRAGMENT => datagram.fragment = fragment(header, datagram.l4_offset),
            _ => {}
        }
        datagram.protocol = header[0];
        datagram.l4_offset += header_len;
        datagram.l4_len -= header_len;
    }
    Ok(())
}

/// `None` for an atomic fragment, one that is the whole packet: RFC 6946 section 4 treats it as unfragmented.
fn fragment(header: &[u8; ipv6::EXTENSION_UNIT], header_offset: u16) -> Option<Fragment> {
    let offset_and_more = u16_at(header, ipv6::FRAGMENT_OFFSET);
    let offset = offset_and_more & ipv6::FRAGMENT_OFFSET_MASK;
    let more = offset_and_more & ipv6::MORE_FRAGMENTS != 0;
    let id = u32::from_be_bytes(*header.last_chunk::<4>()?);
    let id_offset = header_offset + const { short(ipv6::FRAGMENT_ID) };
    (offset != 0 || more).then_some(Fragment { id, offset, more, id_offset })
}

/// Whether this is an extension header that is walked.
pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Length of an extension header in bytes. A fragment header has no length field: its second byte is reserved.
pub(crate) fn extension_len(protocol: u8, header: &[u8; ipv6::EXTENSION_UNIT]) -> u16 {
    let units = if protocol == FRAGMENT { 1 } else { u16::from(header[1]) + 1 };
    units * const { short(ipv6::EXTENSION_UNIT) }
}

/// The IPv4 header of an untagged frame, without options.
#[inline(always)]
pub(crate) fn ipv4_header(frame: &[u8]) -> Option<&[u8; ipv4::LEN]> {
    // One length check for both headers; the compiler sees that the second step cannot fail.
    frame.first_chunk::<{ ethernet::LEN + ipv4::LEN }>()?.last_chunk()
}

/// The fixed IPv6 header of an untagged frame.
#[inline(always)]
pub(crate) fn ipv6_header(frame: &[u8]) -> Option<&[u8; ipv6::LEN]> {
    frame.first_chunk::<{ ethernet::LEN + ipv6::LEN }>()?.last_chunk()
}

/// Writes the IP header of a packet of our own with `payload_len` bytes of payload: no options, not to be fragmented.
pub(crate) fn write_header<A: Address>(
    header: &mut [u8],
    pair: [A; 2],
    protocol: u8,
    payload_len: usize,
) -> Option<()> {
    let header = header.get_mut(..A::HEADER_LEN)?;
    header.fill(0);
    if A::IS_V4 {
        let total_len = u16::try_from(A::HEADER_LEN + payload_len).ok()?;
        header[ipv4::VERSION_IHL] = ipv4::VERSION_IHL_NO_OPTIONS;
        header[ipv4::TOTAL_LEN..ipv4::ID].copy_from_slice(&total_len.to_be_bytes());
        header[ipv4::FLAGS_FRAGMENT..ipv4::TTL].copy_from_slice(&ipv4::DONT_FRAGMENT.to_be_bytes());
        header[ipv4::TTL] = DEFAULT_TTL;
        header[ipv4::PROTOCOL] = protocol;
        let checksum = Sum::ZERO.bytes(header).checksum();
        header[ipv4::CHECKSUM..ipv4::SRC].copy_from_slice(&checksum.0);
    } else {
        let payload_len = u16::try_from(payload_len).ok()?;
        header[0] = ipv6::VERSION;
        header[ipv6::PAYLOAD_LEN..ipv6::NEXT_HEADER].copy_from_slice(&payload_len.to_be_bytes());
        header[ipv6::NEXT_HEADER] = protocol;
        header[ipv6::HOP_LIMIT] = DEFAULT_TTL;
    }
    // Updates the checksum over zero addresses that was written above.
    A::write_pair(header, pair)
}

/// The two bytes at `at` in network order. `at` is a constant, so there is no bounds check at run time.
#[inline(always)]
pub(crate) fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// TTL and hop limit of packets of our own (the default that RFC 1700 recommends).
pub(crate) const DEFAULT_TTL: u8 = 64;

/// Most extension headers that are walked.
pub const EXTENSIONS_MAX: usize = 6;

pub(crate) const ETHERNET_LEN: u16 = short(ethernet::LEN);
pub(crate) const IPV4_LEN: u16 = short(ipv4::LEN);
pub(crate) const IPV6_LEN: u16 = short(ipv6::LEN);
