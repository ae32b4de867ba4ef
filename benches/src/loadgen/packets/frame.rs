//! The template of the frames of a run.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The shortest Ethernet frame, without FCS.
pub(super) const MIN_FRAME_LEN: u16 = 60;
/// MTU 1500 plus the Ethernet header.
pub(super) const MAX_FRAME_LEN: u16 = 1514;

const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Option<Vec<u8>> =
            text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::Option(format!("{text:?} is not a MAC address such as 02:00:00:00:00:01")))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The kind of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    /// UDP datagrams.
    Udp,
    /// TCP ACKs, as of established connections.
    TcpAck,
    /// TCP SYNs.
    TcpSyn,
}

impl PacketKind {
    /// The IP protocol number.
    pub fn ip_proto(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::TcpAck | Self::TcpSyn => 6,
        }
    }
}

/// The source addresses and ports of a run: flow `f` comes from address `first + f / 1024` and port
/// `16384 + f % 1024`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRange {
    /// The address of the first flows.
    pub first: Ipv4Addr,
    /// The number of flows.
    pub count: u32,
}

impl FlowRange {
    /// log2 of the number of ports per address.
    pub(super) const PORTS_LOG2: u32 = 10;
    pub(super) const FIRST_PORT: u16 = 16384;

    /// Flows from 198.18.0.0/15, the range for benchmarks (RFC 2544).
    pub fn benchmark(count: u32) -> Self {
        Self { first: Ipv4Addr::new(198, 18, 0, 1), count }
    }

    /// The last source address.
    pub fn last(self) -> Ipv4Addr {
        let offset = self.count.saturating_sub(1) >> Self::PORTS_LOG2;
        Ipv4Addr::from(u32::from(self.first).wrapping_add(offset))
    }
}

/// Ethernet addresses and destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) source_mac: MacAddr,
    pub(super) next_hop_mac: MacAddr,
    pub(super) destination: SocketAddrV4,
}

/// A frame with zero source address, source port and checksums, and the partial sums to complete them.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) frame: Vec<u8>,
    pub(super) ip_sum: u32,
    pub(super) l4_sum: u32,
}

impl Template {
    pub(super) fn new(route: Route, kind: PacketKind, frame_len: u16) -> Result<Self> {
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&frame_len) {
            let text = format!("frames have {MIN_FRAME_LEN} to {MAX_FRAME_LEN} bytes, not {frame_len}");
            return Err(Error::Option(text));
        }
        let frame_len = usize::from(frame_len);
        let mut frame = Vec::with_capacity(frame_len);
        frame.extend(route.next_hop_mac.0);
        frame.extend(route.source_mac.0);
        frame.extend([0x08, 0x00]);

        // A minimal ACK or SYN carries no data, the rest of the frame is padding; longer frames carry data.
        let l4_len = match kind {
            PacketKind::TcpAck | PacketKind::TcpSyn if frame_len == usize::from(MIN_FRAME_LEN) => TCP_LEN,
            _ => frame_len - ETHERNET_LEN - IP_LEN,
        };
        // Version and header length, DSCP, length, id, don't fragment, TTL, protocol, checksum, source
        frame.extend([0x45, 0]);
        frame.extend(be16(IP_LEN + l4_len));
        frame.extend([0, 0, 0x40, 0, 64, kind.ip_proto(), 0, 0, 0, 0, 0, 0]);
        frame.extend(route.destination.ip().octets());
        let ip_sum = native_sum(&frame[ETHERNET_LEN..]);

        frame.extend([0, 0]);
        frame.extend(route.destination.port().to_be_bytes());
        match kind {
            PacketKind::Udp => {
                frame.extend(be16(l4_len));
                frame.extend([0, 0]);
            }
            PacketKind::TcpAck | PacketKind::TcpSyn => {
                let flags = if kind == PacketKind::TcpSyn { 0x02 } else { 0x10 };
                let acknowledged: u32 = if kind == PacketKind::TcpSyn { 0 } else { 1 };
                frame.extend(1u32.to_be_bytes());
                frame.extend(acknowledged.to_be_bytes());
                frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
        }
        let l4_header_len = if kind == PacketKind::Udp { UDP_LEN } else { TCP_LEN };
        frame.extend(b"flowgate".iter().cycle().take(l4_len - l4_header_len));
        let pseudo_header = native_sum(&route.destination.ip().octets())
            + native_sum(&[0, kind.ip_proto()])
            + native_sum(&be16(l4_len));
        let l4_sum = fold(pseudo_header + native_sum(&frame[ETHERNET_LEN + IP_LEN..]));
        frame.resize(frame_len, 0);
        Ok(Self { frame, ip_sum: fold(ip_sum), l4_sum })
    }

    /// The first 60 bytes as words, for the BPF program.
    pub(super) fn words(&self) -> [u64; 8] {
        let mut header = [0; 64];
        header[..usize::from(MIN_FRAME_LEN)].copy_from_slice(&self.frame[..usize::from(MIN_FRAME_LEN)]);
        std::array::from_fn(|word| {
            u64::from_ne_bytes(header[word * 8..word * 8 + 8].try_into().expect("a word has 8 bytes"))
        })
    }
}

fn be16(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("a frame is shorter than 64 KiB").to_be_bytes()
}

/// The sum of 16-bit words in native byte order, as the BPF program adds them: by RFC 1071 section 2 (B) the sum of
/// byte-swapped words is the byte-swapped sum.
fn native_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}
