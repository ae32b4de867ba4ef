//! Frames built from their layers, the inner one first. Without checksums, which the program does not read.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

/// Port, in host byte order.
pub type Port = u16;

/// An Ethernet frame.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], &ethertype.to_be_bytes()[..], payload].concat()
}

/// A frame with one more tag in front of its EtherType.
pub fn tagged(ethertype: u16, id: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &ethertype.to_be_bytes(), &id.to_be_bytes(), &frame[12..]].concat()
}

/// The fields of an IPv4 header that tests set.
#[derive(Debug, Clone, Copy)]
pub struct V4 {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub protocol: u8,
    pub id: u16,
    /// Flags and offset as in the header.
    pub fragment: u16,
    /// Words of NOP options.
    pub options: u8,
}

impl V4 {
    pub fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Self {
        Self { from, to, protocol, id: 0, fragment: 0, options: 0 }
    }

    /// The packet.
    pub fn with(self, payload: &[u8]) -> Vec<u8> {
        let options = vec![1; usize::from(self.options) * 4];
        let len = u16::try_from(20 + options.len() + payload.len()).expect("a small packet");
        [
            &[0x45 + self.options, 0][..],
            &len.to_be_bytes(),
            &self.id.to_be_bytes(),
            &self.fragment.to_be_bytes(),
            &[64, self.protocol, 0, 0],
            &self.from.octets(),
            &self.to.octets(),
            &options,
            payload,
        ]
        .concat()
    }
}

/// An IPv6 packet.
pub fn v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("a small packet");
    [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[next, 64], &from.octets(), &to.octets(), payload].concat()
}

/// An extension header with options or a route in it, `len` times 8 bytes beyond the first 8. For a routing header
/// `left`: segments left.
pub fn extension(next: u8, len: u8, left: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, len, 0, left, 0, 0, 0, 0][..], &vec![0; usize::from(len) * 8], payload].concat()
}

/// A fragment header; `offset` with the flag in its lowest bit.
pub fn fragment(next: u8, offset: u16, id: u32, payload: &[u8]) -> Vec<u8> {
    [&[next, 0][..], &offset.to_be_bytes(), &id.to_be_bytes(), payload].concat()
}

/// A header of TCP, UDP or SCTP, with a little payload.
pub fn l4(protocol: u8, from: Port, to: Port) -> Vec<u8> {
    let rest = match protocol {
        TCP => 16,
        UDP => 4,
        SCTP => 8,
        other => panic!("protocol {other} has no ports"),
    };
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend(vec![0; rest]);
    if protocol == TCP {
        header[12] = 0x50;
    }
    header.extend(b"hello");
    header
}

/// An ICMP or ICMPv6 message.
pub fn icmp(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], payload].concat()
}
