//! Headers, addresses and checksums: what the bytes of a frame mean.
//!
//! Read [`parse`] first: a frame is parsed once into a [`Packet`] whose offsets are proven. [`rewrite`] translates it in
//! place, [`icmp`] translates errors about it, [`reject`] writes resets and ICMP errors, [`mss`] clamps segment sizes,
//! [`fragment`] handles fragments, [`segment`] reads what connection tracking needs, [`echo`] measures paths, [`checksum`] has the arithmetic and [`header`] every number.
//! All of it is written once for IPv4 and IPv6; [`family::Address`] has what differs. Nothing here knows a Service, a
//! backend or a flow, allocates, or is unsafe. Ids such as P502 in the tests are defined in `control/KUBERNETES.md`.
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod datagram;
pub mod echo;
pub mod family;
pub mod fragment;
pub mod hash;
pub mod header;
pub mod icmp;
pub mod mss;
mod options;
pub mod parse;
pub mod reject;
pub mod rewrite;
mod sctp;
pub mod segment;

pub use addr::{FiveTuple, FiveTuple4, FiveTuple6, L4Port, MacAddr, Protocol};
pub use datagram::{Datagram, Fragment};
pub use family::Address;
pub use parse::{EtherType, Malformed, Packet, Packet4, Packet6, Parsed, TcpFlags};
pub use rewrite::{EtherAddrs, Translation, Translation4, Translation6};
pub use segment::{ChecksumState, SctpPacket, TcpSegment};
