//! Echo requests to neighbours and their replies (RFC 792, RFC 4443 section 4): whether a packet of a certain size gets
//! there and back whole.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::datagram;
use crate::family::Address;
use crate::header::{ethernet, ethertype, icmp, icmpv4, icmpv6, ipv4, ipv6};
use crate::reject::icmp_pseudo_header;
use crate::rewrite::EtherAddrs;

/// The shortest IP packet that can hold a request of either family.
pub const REQUEST_LEN_MIN: usize = ipv6::LEN + icmp::LEN;

/// An echo request to one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The neighbour's Ethernet address and the interface's.
    pub ether: EtherAddrs,
    /// The VLAN identifier, for a frame with a tag (IEEE 802.1Q).
    pub vlan: Option<u16>,
    /// An address of the interface.
    pub src: IpAddr,
    /// The neighbour's address, of the same family.
    pub dst: IpAddr,
    /// The same in all requests of one sender.
    pub id: u16,
    /// Different for each request of one sender.
    pub sequence: u16,
}

/// An echo reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The address of the neighbour that replied.
    pub src: IpAddr,
    /// As in the request.
    pub id: u16,
    /// As in the request.
    pub sequence: u16,
    /// Length of the packet according to its IP header.
    pub ip_len: usize,
    /// Bytes of it that arrived.
    pub arrived_len: usize,
    /// Whether everything arrived, with the bytes that were sent.
    pub is_whole: bool,
}

impl Request {
    /// Writes a frame with an IP packet of `packet_len` bytes that must not be fragmented, and returns the length of the
    /// frame. `None` if it does not fit, is too short for a request, or the families differ.
    pub fn write(&self, packet_len: usize, out: &mut [u8]) -> Option<usize> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.write_as(src, dst, packet_len, out),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.write_as(src, dst, packet_len, out),
            _ => None,
        }
    }

    fn write_as<A: Address>(&self, src: A, dst: A, packet_len: usize, out: &mut [u8]) -> Option<usize> {
        let l3_offset = l3_offset(self.vlan.is_some());
        let frame = out.get_mut(..l3_offset + packet_len)?;
        let (head, packet) = frame.split_at_mut(l3_offset);
        head[..ethernet::ADDRS_LEN].copy_from_slice(&self.ether.0);
        if let Some(vlan) = self.vlan {
            head[ethernet::ETHERTYPE..ethernet::LEN].copy_from_slice(&ethertype::VLAN);
            head[ethernet::LEN..ethernet::LEN + 2].copy_from_slice(&vlan.to_be_bytes());
        }
        head[l3_offset - 2..].copy_from_slice(&A::ETHERTYPE);

        // The IP header is written first: it checks that the length fits into its field.
        let icmp_len = packet_len.checked_sub(A::HEADER_LEN).filter(|len| *len >= icmp::LEN)?;
        let (header, message) = packet.split_at_mut(A::HEADER_LEN);
        datagram::write_header(header, [src, dst], A::ICMP, icmp_len)?;
        let (fixed, payload) = message.split_at_mut(icmp::LEN);
        fixed.fill(0);
        fixed[icmp::TYPE] = if A::IS_V4 { icmpv4::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
        fixed[icmp::ECHO_ID..icmp::ECHO_SEQUENCE].copy_from_slice(&self.id.to_be_bytes());
        fixed[icmp::ECHO_SEQUENCE..].copy_from_slice(&self.sequence.to_be_bytes());
        payload.iter_mut().zip(pattern()).for_each(|(byte, fill)| *byte = fill);
        let sum = icmp_pseudo_header(src, dst, u16::try_from(icmp_len).ok()?);
        let checksum = sum.bytes(message).checksum();
        message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&checksum.0);
        Some(l3_offset + packet_len)
    }
}

impl Reply {
    /// The reply at the start of a received frame, whole or not; `None` if it is something else. A VLAN tag is skipped.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let l3_offset = l3_offset(frame.get(ethernet::ETHERTYPE..ethernet::LEN)? == ethertype::VLAN);
        let (head, packet) = frame.split_at_checked(l3_offset)?;
        let ethertype = [head[l3_offset - 2], head[l3_offset - 1]];
        if ethertype == Ipv4Addr::ETHERTYPE {
            Self::read_as::<Ipv4Addr>(packet)
        } else if ethertype == Ipv6Addr::ETHERTYPE {
            Self::read_as::<Ipv6Addr>(packet)
        } else {
            None
        }
    }

    fn read_as<A: Address + Into<IpAddr>>(packet: &[u8]) -> Option<Self> {
        let (header, message) = packet.split_at_checked(A::HEADER_LEN)?;
        let [src, _] = A::read_pair(header)?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (ip_len, protocol, is_fragment) = if A::IS_V4 {
            let fragment = field(ipv4::FLAGS_FRAGMENT) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET_MASK);
            (field(ipv4::TOTAL_LEN).into(), header[ipv4::PROTOCOL], fragment != 0)
        } else {
            // An IPv6 fragment has another next header, which is checked below.
            (A::HEADER_LEN + usize::from(field(ipv6::PAYLOAD_LEN)), header[ipv6::NEXT_HEADER], false)
        };
        let has_options = A::IS_V4 && header[ipv4::VERSION_IHL] != ipv4::VERSION_IHL_NO_OPTIONS;
        let fixed = message.first_chunk::<{ icmp::LEN }>()?;
        let kind = if A::IS_V4 { icmpv4::ECHO_REPLY } else { icmpv6::ECHO_REPLY };
        if protocol != A::ICMP || has_options || is_fragment || fixed[icmp::TYPE] != kind {
            return None;
        }
        // Short frames are padded (IEEE 802.3), so more may arrive than the packet has.
        let arrived_len = packet.len().min(ip_len);
        let payload = packet.get(A::HEADER_LEN + icmp::LEN..arrived_len).unwrap_or_default();
        Some(Self {
            src: src.into(),
            id: datagram::u16_at(fixed, icmp::ECHO_ID),
            sequence: datagram::u16_at(fixed, icmp::ECHO_SEQUENCE),
            ip_len,
            arrived_len,
            is_whole: arrived_len == ip_len && payload.iter().copied().eq(pattern().take(payload.len())),
        })
    }
}

/// Offset of the IP header in a frame.
const fn l3_offset(is_tagged: bool) -> usize {
    if is_tagged { ethernet::LEN + ethernet::TAG_LEN } else { ethernet::LEN }
}

/// The payload of a request: counts from 0 to 250 and starts anew.
fn pattern() -> impl Iterator<Item = u8> {
    // The period is a prime, so a piece of a split frame, which begins at a multiple of a power of two, does not pass for
    // the beginning.
    (0_u8..251).cycle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};

    fn request(src: &str, dst: &str, vlan: Option<u16>) -> Request {
        let ether = EtherAddrs::new(MacAddr([2, 0, 0, 0, 0, 9]), MacAddr([2, 0, 0, 0, 0, 1]));
        Request { ether, vlan, src: src.parse().unwrap(), dst: dst.parse().unwrap(), id: 0x1234, sequence: 7 }
    }

    fn written(request: &Request, packet_len: usize) -> Vec<u8> {
        let mut frame = vec![0xaa; 4096];
        let len = request.write(packet_len, &mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    /// The frame of the reply.
    fn answered(request: &Request, packet_len: usize) -> Vec<u8> {
        let mut frame = written(&Request { src: request.dst, dst: request.src, ..*request }, packet_len);
        let l4_offset = frame.len() - packet_len + if request.src.is_ipv4() { 20 } else { 40 };
        frame[l4_offset] = if request.src.is_ipv4() { icmpv4::ECHO_REPLY } else { icmpv6::ECHO_REPLY };
        frame
    }

    #[test]
    fn a_request_is_what_an_independent_parser_takes_for_one() {
        for (vlan, packet_len) in [(None, 1500), (Some(5), 1500), (None, REQUEST_LEN_MIN), (None, 1501)] {
            let frame = written(&request("10.0.0.1", "10.0.0.9", vlan), packet_len);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            assert_eq!(sliced.vlan_ids().first().map(|id| id.value()), vlan);
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("{sliced:?}") };
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.total_len), packet_len);
            assert!(header.dont_fragment && header.calc_header_checksum() == header.header_checksum);
            let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("{sliced:?}") };
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
            let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else { panic!("{icmp:?}") };
            assert_eq!((echo.id, echo.seq), (0x1234, 7));

            let frame = written(&request("fd00::1", "fd00::9", vlan), packet_len);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("{sliced:?}") };
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length) + 40, packet_len);
            let Some(TransportSlice::Icmpv6(icmp)) = &sliced.transport else { panic!("{sliced:?}") };
            assert!(icmp.is_checksum_valid(header.source, header.destination));
            assert!(matches!(icmp.icmp_type(), Icmpv6Type::EchoRequest(echo) if echo.seq == 7));
        }
    }

    #[test]
    fn what_cannot_be_a_request_is_not_written() {
        let mut room = [0; 1500];
        let ask = request("10.0.0.1", "10.0.0.9", None);
        assert_eq!(ask.write(1500, &mut room), None, "the Ethernet header does not fit");
        assert_eq!(ask.write(27, &mut room), None, "no room for the control message");
        assert_eq!(ask.write(28, &mut room), Some(42));
        assert_eq!(request("10.0.0.1", "fd00::9", None).write(100, &mut room), None);
    }

    #[test]
    fn a_reply_is_whole_only_with_all_the_bytes_that_were_sent() {
        for (src, dst) in [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")] {
            for vlan in [None, Some(5)] {
                let ask = request(src, dst, vlan);
                let frame = answered(&ask, 1500);
                let whole = Reply {
                    src: ask.dst,
                    id: 0x1234,
                    sequence: 7,
                    ip_len: 1500,
                    arrived_len: 1500,
                    is_whole: true,
                };
                assert_eq!(Reply::read(&frame), Some(whole));
                let cut = Reply { arrived_len: 1500 - 490, is_whole: false, ..whole };
                assert_eq!(Reply::read(&frame[..frame.len() - 490]), Some(cut));
                let mut wrong = frame.clone();
                wrong[1200] ^= 1;
                assert_eq!(Reply::read(&wrong), Some(Reply { is_whole: false, ..whole }));
                let mut padded = answered(&ask, REQUEST_LEN_MIN);
                padded.resize(100, 0);
                assert!(Reply::read(&padded).unwrap().is_whole, "padding is none of its bytes");
            }
        }
    }

    #[test]
    fn nothing_else_is_a_reply() {
        let ask = request("10.0.0.1", "10.0.0.9", None);
        assert_eq!(Reply::read(&written(&ask, 100)), None, "a request");
        let frame = answered(&ask, 1500);
        // The rest of a frame that was split begins in the middle of it; a fragment is a packet of its own.
        assert_eq!(Reply::read(&frame[1024..]), None);
        for (at, byte) in [(20, 0x20), (21, 1), (23, 17), (14, 0x46), (12, 0x86)] {
            let mut other = frame.clone();
            other[at] = byte;
            assert_eq!(Reply::read(&other), None, "byte {at}");
        }
        for len in 0..42 {
            assert_eq!(Reply::read(&frame[..len]), None, "{len} bytes");
        }
    }
}
