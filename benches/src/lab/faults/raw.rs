//! Hand-made packets, as from an attacker or an unusual network, sent through raw sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::error::{Error, Result};
use crate::lab::wire::{TCP, UDP, checksum, low16, transport_checksum};
use crate::netns::Namespace;

const FRAGMENT_HEADER: u8 = 44;

/// Sends complete IP packets of both families from a namespace, with any source address.
pub(super) struct RawSender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl RawSender {
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        // raw(7): IPPROTO_RAW means that the packet brings its own header.
        let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        let sockets = namespace.run(move || Ok((open(AddressFamily::Inet)?, open(AddressFamily::Inet6)?)));
        let label = namespace.label();
        let (v4, v6) = sockets.map_err(Error::errno(format!("open raw sockets in namespace {label}")))?;
        Ok(Self { v4, v6 })
    }

    /// Sends one packet; `destination` is the one in its header.
    pub(super) fn send(&self, packet: &[u8], destination: IpAddr) -> Result<()> {
        let socket = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        let to = SockaddrStorage::from(SocketAddr::new(destination, 0));
        sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())
            .map(drop)
            .map_err(Error::errno(format!("send a raw packet to {destination}")))
    }
}

/// A TCP segment without payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    /// What is added to the right checksum; zero leaves it right.
    pub(super) damage: u16,
}

impl Segment {
    pub(super) fn packet(&self) -> Vec<u8> {
        let Self { source, destination, .. } = *self;
        let mut segment = vec![0; 20];
        segment[0..2].copy_from_slice(&source.port().to_be_bytes());
        segment[2..4].copy_from_slice(&destination.port().to_be_bytes());
        segment[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = self.flags;
        segment[14..16].copy_from_slice(&8192_u16.to_be_bytes());
        let sum = transport_checksum((source.ip(), destination.ip()), TCP, &segment);
        segment[16..18].copy_from_slice(&sum.wrapping_add(self.damage).to_be_bytes());
        whole(source.ip(), destination.ip(), TCP, &segment)
    }
}

/// The fragments of a UDP datagram, each with at most `piece_len` bytes (a multiple of eight).
pub(super) fn fragments(
    source: SocketAddr,
    destination: SocketAddr,
    id: u32,
    payload: &[u8],
    piece_len: usize,
) -> Vec<Vec<u8>> {
    let mut datagram = vec![0; 8];
    datagram[0..2].copy_from_slice(&source.port().to_be_bytes());
    datagram[2..4].copy_from_slice(&destination.port().to_be_bytes());
    datagram[4..6].copy_from_slice(&low16(8 + payload.len()).to_be_bytes());
    datagram.extend_from_slice(payload);
    // RFC 768: a sum of zero is sent as ones.
    let sum = match transport_checksum((source.ip(), destination.ip()), UDP, &datagram) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    let count = datagram.len().div_ceil(piece_len);
    let pieces = datagram.chunks(piece_len).enumerate();
    pieces
        .map(|(number, piece)| {
            let (offset, more) = (low16(number * piece_len / 8), number + 1 < count);
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let flags = u16::from(more) << 13;
                    let id = low16(usize::try_from(id & 0xffff).unwrap_or_default());
                    let fragment = FragmentFields { id, flags_and_offset: flags | offset };
                    header_v4(source, destination, UDP, fragment, piece)
                }
                (source, destination) => {
                    let mut body = vec![UDP, 0];
                    body.extend_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
                    body.extend_from_slice(&id.to_be_bytes());
                    body.extend_from_slice(piece);
                    whole(source, destination, FRAGMENT_HEADER, &body)
                }
            }
        })
        .collect()
}

/// Whether the packet is a fragment with offset zero.
pub(super) fn is_first_fragment(packet: &[u8]) -> bool {
    let field = if packet[0] >> 4 == 4 {
        u16::from_be_bytes([packet[6], packet[7]]) << 3
    } else {
        u16::from_be_bytes([packet[42], packet[43]]) & !7
    };
    field == 0
}

fn whole(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header_v4(source, destination, protocol, FragmentFields::default(), body)
        }
        (source, destination) => header_v6(v6(source), v6(destination), protocol, body),
    }
}

/// The second word of an IPv4 header (RFC 791 section 3.1); all zero for a packet that is no fragment.
#[derive(Default)]
struct FragmentFields {
    id: u16,
    /// The flag "more fragments" is bit 13; the offset counts units of eight bytes.
    flags_and_offset: u16,
}

fn header_v4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    fragment: FragmentFields,
    body: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&low16(20 + body.len()).to_be_bytes());
    packet[4..6].copy_from_slice(&fragment.id.to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.flags_and_offset.to_be_bytes());
    (packet[8], packet[9]) = (64, protocol);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(0, &packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

fn header_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&low16(body.len()).to_be_bytes());
    (packet[6], packet[7]) = (protocol, 64);
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet.extend_from_slice(body);
    packet
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketHeaders, TransportHeader};

    use super::*;
    use crate::lab::wire::{ACK, RST};

    #[test]
    fn segments_are_what_an_independent_parser_reads() {
        let pairs = [("10.0.0.1:1000", "10.96.0.11:90"), ("[2001:db8::1]:1000", "[2001:db8::2]:90")];
        for (source, destination) in pairs {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let (sequence, acknowledgement, flags) = (7, 8, RST | ACK);
            let packet =
                Segment { source, destination, flags, sequence, acknowledgement, damage: 0 }.packet();
            let headers = PacketHeaders::from_ip_slice(&packet).unwrap();
            let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("{source}: no TCP") };
            assert!(tcp.rst && tcp.ack && tcp.sequence_number == 7 && tcp.destination_port == 90);
            let sum = match headers.net.unwrap() {
                etherparse::NetHeaders::Ipv4(ip, _) => {
                    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                    tcp.calc_checksum_ipv4(&ip, &[]).unwrap()
                }
                etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, &[]).unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(tcp.checksum, sum, "{source}");
        }
    }

    #[test]
    fn fragments_cover_the_datagram_once() {
        let (source, destination) = ("10.0.0.1:1000".parse().unwrap(), "10.96.0.12:7000".parse().unwrap());
        let packets = fragments(source, destination, 9, &[1; 3000], 1024);
        let offsets: Vec<_> = packets
            .iter()
            .map(|packet| u16::from_be_bytes([packet[6], packet[7]]))
            .map(|field| (field & 0x1fff, field & 0x2000 != 0))
            .collect();
        assert_eq!(offsets, [(0, true), (128, true), (256, false)]);
        assert_eq!(packets.iter().map(|packet| packet.len() - 20).sum::<usize>(), 3008);
    }
}
