//! The IP header of a frame, whatever it carries. Never looks behind the last IP header.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::parse::{ETHERNET_LEN, Malformed};

/// An IP packet whose lengths were checked against the frame it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Where the IP header starts in the frame.
    pub l3_offset: u16,
    /// Where what it carries starts in the frame: after options and extension headers.
    pub l4_offset: u16,
    /// Bytes from there to the end of the packet; Ethernet padding is not counted.
    pub l4_len: u16,
    /// Remaining hops.
    pub ttl: u8,
    /// The IANA number of what it carries. An extension header that is none of ours to walk stands for itself.
    pub protocol: u8,
    /// Which part of a larger packet this is; none for a whole one.
    pub fragment: Option<Fragment>,
}

/// Which part of a larger packet a fragment is (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What all fragments of one packet share; 16 bits in IPv4.
    pub id: u32,
    /// Where its bytes belong in the payload of the packet, in bytes.
    pub offset: u16,
    /// Whether others come behind it.
    pub more: bool,
    /// Where the identification stands in the frame.
    pub id_offset: u16,
}

impl<A> Datagram<A> {
    /// Length of the IP packet in bytes, headers included.
    #[inline]
    pub const fn ip_len(&self) -> u16 {
        self.l4_offset - self.l3_offset + self.l4_len
    }

    /// What the packet carries, as far as it is in the frame.
    #[inline]
    pub fn payload<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let from = usize::from(self.l4_offset);
        frame.get(from..from + usize::from(self.l4_len)).unwrap_or(&[])
    }
}

/// The IPv4 header after an Ethernet header.
pub(crate) fn v4(frame: &[u8]) -> Result<Datagram<Ipv4Addr>, Malformed> {
    let head = frame.first_chunk::<{ ETHERNET_LEN + 20 }>().ok_or(Malformed::Truncated)?;
    if head[14] >> 4 != 4 {
        return Err(Malformed::Version);
    }
    let header_len = u16::from(head[14] & 0x0f) * 4;
    if header_len < 20 {
        return Err(Malformed::HeaderLength);
    }
    let total_len = u16::from_be_bytes([head[16], head[17]]);
    if total_len < header_len || usize::from(total_len) + ETHERNET_LEN > frame.len() {
        return Err(Malformed::TotalLength);
    }
    let flags_and_offset = u16::from_be_bytes([head[20], head[21]]);
    let (offset, more) = ((flags_and_offset & 0x1fff) * 8, flags_and_offset & 0x2000 != 0);
    let fragment = (offset != 0 || more).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([head[18], head[19]])),
        offset,
        more,
        id_offset: 18,
    });
    Ok(Datagram {
        src: Ipv4Addr::from_octets([head[26], head[27], head[28], head[29]]),
        dst: Ipv4Addr::from_octets([head[30], head[31], head[32], head[33]]),
        l3_offset: ETHERNET_LEN_U16,
        l4_offset: ETHERNET_LEN_U16 + header_len,
        l4_len: total_len - header_len,
        ttl: head[22],
        protocol: head[23],
        fragment,
    })
}

/// The IPv6 header after an Ethernet header, and the extension headers behind it.
///
/// Hop-by-hop, routing, fragment and destination options are walked, at most [`EXTENSIONS_MAX`]: RFC 8504
/// section 5.3 lets a host limit them. A routing header that has hops left makes the destination one of
/// many, so it stands for itself, and so does whatever comes behind a fragment that is not the first.
pub(crate) fn v6(frame: &[u8]) -> Result<Datagram<Ipv6Addr>, Malformed> {
    let head = frame.first_chunk::<{ ETHERNET_LEN + 40 }>().ok_or(Malformed::Truncated)?;
    if head[14] >> 4 != 6 {
        return Err(Malformed::Version);
    }
    let payload_len = u16::from_be_bytes([head[18], head[19]]);
    if usize::from(payload_len) + ETHERNET_LEN + 40 > frame.len() || payload_len > u16::MAX - 40 {
        return Err(Malformed::TotalLength);
    }
    let (src, rest) = head[22..].split_first_chunk::<16>().ok_or(Malformed::Truncated)?;
    let dst = rest.first_chunk::<16>().ok_or(Malformed::Truncated)?;
    let mut datagram = Datagram {
        src: Ipv6Addr::from_octets(*src),
        dst: Ipv6Addr::from_octets(*dst),
        l3_offset: ETHERNET_LEN_U16,
        l4_offset: ETHERNET_LEN_U16 + 40,
        l4_len: payload_len,
        ttl: head[21],
        protocol: head[20],
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
        if !is_extension(datagram.protocol) || datagram.fragment.is_some_and(|part| part.offset != 0) {
            return Ok(());
        }
        let payload = datagram.payload(frame);
        let &[next, len, third, segments_left, ..] = payload else { return Err(Malformed::Truncated) };
        let header_len = match datagram.protocol {
            FRAGMENT => 8,
            _ => (u16::from(len) + 1) * 8,
        };
        if header_len > datagram.l4_len {
            return Err(Malformed::Truncated);
        }
        match datagram.protocol {
            ROUTING if segments_left != 0 => return Ok(()),
            // RFC 8200 section 4.5: a second fragment header makes no sense.
            FRAGMENT if datagram.fragment.is_some() => return Err(Malformed::HeaderLength),
            FRAGMENT => datagram.fragment = fragment(payload, third, segments_left, datagram.l4_offset),
            _ => {}
        }
        datagram.protocol = next;
        datagram.l4_offset += header_len;
        datagram.l4_len -= header_len;
    }
    Ok(())
}

/// RFC 6946: a fragment that is the whole packet is no fragment.
fn fragment(header: &[u8], high: u8, low: u8, at: u16) -> Option<Fragment> {
    let offset_and_more = u16::from_be_bytes([high, low]);
    let (offset, more) = (offset_and_more & 0xfff8, offset_and_more & 1 == 1);
    let id = u32::from_be_bytes(*header.get(4..)?.first_chunk::<4>()?);
    (offset != 0 || more).then_some(Fragment { id, offset, more, id_offset: at + 4 })
}

pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Extension headers that are walked at most.
pub const EXTENSIONS_MAX: usize = 6;

const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const ETHERNET_LEN_U16: u16 = 14;
