//! Addresses, ports and protocols in the form they have on the wire.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

use crate::header::ip_protocol;

/// A transport port in network order; [`number`](Self::number) is for configuration and output.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct L4Port([u8; 2]);

impl L4Port {
    /// The port with this number in host order.
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// From the two bytes of a header.
    #[inline]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(bytes)
    }

    /// The two bytes as they stand in a header.
    #[inline]
    pub const fn wire(self) -> [u8; 2] {
        self.0
    }

    /// The number in host order.
    #[inline]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl PartialOrd for L4Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for L4Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for L4Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for L4Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// A transport protocol that a Service port can have, with its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = ip_protocol::TCP,
    /// RFC 768.
    Udp = ip_protocol::UDP,
    /// RFC 9260.
    Sctp = ip_protocol::SCTP,
}

impl Protocol {
    /// The protocol with this IANA number, if it is one of the three.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            ip_protocol::TCP => Some(Self::Tcp),
            ip_protocol::UDP => Some(Self::Udp),
            ip_protocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IANA number.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name that Kubernetes uses: `TCP`, `UDP` or `SCTP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that is no protocol name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownProtocol(
    /// The text found.
    pub String,
);

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown protocol {:?}: use TCP, UDP or SCTP", self.0)
    }
}

impl core::error::Error for UnknownProtocol {}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownProtocol(text.to_owned()))
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct MacAddr(
    /// The six bytes in wire order.
    pub [u8; 6],
);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Protocol, addresses and ports of a packet as they stand in its headers (the term is that of RFC 6146 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple<A> {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: L4Port,
    /// Destination port.
    pub dst_port: L4Port,
}

/// The five-tuple of an IPv4 packet.
pub type FiveTuple4 = FiveTuple<Ipv4Addr>;

/// The five-tuple of an IPv6 packet.
pub type FiveTuple6 = FiveTuple<Ipv6Addr>;

impl<A> FiveTuple<A> {
    /// The tuple of a packet in the other direction.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

impl<A: Into<IpAddr>> FiveTuple<A> {
    /// The same tuple with addresses of either family.
    #[inline]
    pub fn any_family(self) -> FiveTuple<IpAddr> {
        let Self { protocol, src, dst, src_port, dst_port } = self;
        FiveTuple { protocol, src: src.into(), dst: dst.into(), src_port, dst_port }
    }
}

impl<A: Copy + Into<IpAddr>> fmt::Display for FiveTuple<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |addr: A, port: L4Port| SocketAddr::new(addr.into(), port.number());
        let Self { protocol, src, dst, src_port, dst_port } = *self;
        write!(f, "{protocol} {} -> {}", end(src, src_port), end(dst, dst_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_network_order_and_prints_its_number() {
        let port = L4Port::new(80);
        assert_eq!(port.wire(), [0, 80]);
        assert_eq!(port.to_string(), "80");
        assert!(L4Port::new(255) < L4Port::new(256));
    }

    #[test]
    fn protocol_names_are_those_of_kubernetes_in_any_case() {
        assert_eq!("udp".parse(), Ok(Protocol::Udp));
        assert_eq!(Protocol::from_number(132), Some(Protocol::Sctp));
        let refusal = "icmp".parse::<Protocol>().unwrap_err();
        assert_eq!(refusal.to_string(), "unknown protocol \"icmp\": use TCP, UDP or SCTP");
    }

    #[test]
    fn reversing_twice_changes_nothing() {
        let tuple = FiveTuple {
            protocol: Protocol::Tcp,
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            src_port: L4Port::new(1),
            dst_port: L4Port::new(2),
        };
        assert_eq!(tuple.reversed().reversed(), tuple);
        assert_eq!(tuple.to_string(), "TCP 10.0.0.1:1 -> 10.0.0.2:2");
    }
}
