//! Echo requests to neighbours and what comes back of them (RFC 792, RFC 4443 section 4): whether a packet of a certain
//! size gets there and back whole. Never decides whom to ask.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::family::Address;
use crate::parse::ETHERNET_LEN;
use crate::refusal::{HOPS, icmp_sum};
use crate::rewrite::EtherAddrs;

/// The shortest IP packet that a request can be.
pub const REQUEST_LEN_MIN: usize = Ipv6Addr::HEADER_LEN + ICMP_HEADER_LEN;

/// A question to one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its Ethernet address, and that of the interface.
    pub ether: EtherAddrs,
    /// The VLAN identifier of the tag, if there is one (IEEE 802.1Q).
    pub vlan: Option<u16>,
    /// An address of the interface.
    pub src: IpAddr,
    /// The neighbour; of the same family.
    pub dst: IpAddr,
    /// Tells the questions of one asker from those of others.
    pub id: u16,
    /// Tells the questions of one asker apart.
    pub sequence: u16,
}

/// What came back of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answers.
    pub src: IpAddr,
    /// As in the request.
    pub id: u16,
    /// As in the request.
    pub sequence: u16,
    /// How long the IP packet says it is.
    pub said_len: usize,
    /// How much of it arrived.
    pub arrived_len: usize,
    /// Whether that is all of it, with the bytes that were sent.
    pub is_whole: bool,
}

impl Request {
    /// Writes a frame with an IP packet of `packet_len` bytes that nobody may fragment, and says how long the frame is.
    /// None if it does not fit, is too short for a request, or the families differ.
    pub fn write(&self, packet_len: usize, out: &mut [u8]) -> Option<usize> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.write_as(src, dst, packet_len, out),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.write_as(src, dst, packet_len, out),
            _ => None,
        }
    }

    fn write_as<A: Address>(&self, src: A, dst: A, packet_len: usize, out: &mut [u8]) -> Option<usize> {
        let l3_offset = if self.vlan.is_some() { ETHERNET_LEN + TAG_LEN } else { ETHERNET_LEN };
        let frame = out.get_mut(..l3_offset + packet_len)?;
        let (head, packet) = frame.split_at_mut(l3_offset);
        head[..12].copy_from_slice(&self.ether.0);
        if let Some(vlan) = self.vlan {
            head[12..14].copy_from_slice(&ETHERTYPE_8021Q);
            head[14..16].copy_from_slice(&vlan.to_be_bytes());
        }
        head[l3_offset - 2..].copy_from_slice(&A::ETHERTYPE);

        let icmp_len = packet_len.checked_sub(A::HEADER_LEN).filter(|len| *len >= ICMP_HEADER_LEN)?;
        let (header, message) = packet.split_at_mut(A::HEADER_LEN);
        write_header(header, src, dst, packet_len)?;
        let (icmp, payload) = message.split_at_mut(ICMP_HEADER_LEN);
        icmp.fill(0);
        icmp[0] = if A::IS_V4 { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
        icmp[4..6].copy_from_slice(&self.id.to_be_bytes());
        icmp[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        payload.iter_mut().zip(pattern()).for_each(|(byte, fill)| *byte = fill);
        let checksum = icmp_sum(src, dst, u16::try_from(icmp_len).ok()?).bytes(message).checksum();
        message[2..4].copy_from_slice(&checksum.0);
        Some(l3_offset + packet_len)
    }
}

impl Reply {
    /// The reply that a received frame begins with, whole or not. None if it is something else. A tag is skipped.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let is_tagged = frame.get(12..14)? == ETHERTYPE_8021Q;
        let l3_offset = if is_tagged { ETHERNET_LEN + TAG_LEN } else { ETHERNET_LEN };
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
        let (said_len, protocol, is_fragment) = if A::IS_V4 {
            let is_fragment = header[6] & MORE_FRAGMENTS_AND_OFFSET != 0 || header[7] != 0;
            (u16::from_be_bytes([header[2], header[3]]).into(), header[9], is_fragment)
        } else {
            (A::HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])), header[6], false)
        };
        let has_options = A::IS_V4 && header[0] != 0x45;
        let icmp = message.first_chunk::<ICMP_HEADER_LEN>()?;
        let kind = if A::IS_V4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
        if protocol != A::ICMP || has_options || is_fragment || icmp[0] != kind {
            return None;
        }
        // Short frames are padded (IEEE 802.3).
        let arrived_len = packet.len().min(said_len);
        let payload = packet.get(A::HEADER_LEN + ICMP_HEADER_LEN..arrived_len).unwrap_or_default();
        Some(Self {
            src: src.into(),
            id: u16::from_be_bytes([icmp[4], icmp[5]]),
            sequence: u16::from_be_bytes([icmp[6], icmp[7]]),
            said_len,
            arrived_len,
            is_whole: arrived_len == said_len && payload.iter().copied().eq(pattern().take(payload.len())),
        })
    }
}

fn write_header<A: Address>(header: &mut [u8], src: A, dst: A, packet_len: usize) -> Option<()> {
    if A::IS_V4 {
        let [high, low] = u16::try_from(packet_len).ok()?.to_be_bytes();
        header[..12].copy_from_slice(&[0x45, 0, high, low, 0, 0, DONT_FRAGMENT, 0, HOPS, A::ICMP, 0, 0]);
        header[12..20].fill(0);
        let checksum = crate::checksum::Sum::ZERO.bytes(header).checksum();
        header[10..12].copy_from_slice(&checksum.0);
    } else {
        let [high, low] = u16::try_from(packet_len - A::HEADER_LEN).ok()?.to_be_bytes();
        header[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, A::ICMP, HOPS]);
    }
    A::write_pair(header, [src, dst])
}

/// What a request carries: bytes of which no two stretches of some length are alike.
fn pattern() -> impl Iterator<Item = u8> {
    // A prime below 256, so that a piece which begins anywhere else does not pass for the whole.
    (0_u8..251).cycle()
}

const ICMP_HEADER_LEN: usize = 8;
const TAG_LEN: usize = 4;
const ETHERTYPE_8021Q: [u8; 2] = [0x81, 0x00];
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS_AND_OFFSET: u8 = 0x3f;

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

    /// The frame that comes back.
    fn answered(request: &Request, packet_len: usize) -> Vec<u8> {
        let mut frame = written(&Request { src: request.dst, dst: request.src, ..*request }, packet_len);
        let l4_offset = frame.len() - packet_len + if request.src.is_ipv4() { 20 } else { 40 };
        frame[l4_offset] = if request.src.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
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
                    said_len: 1500,
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
