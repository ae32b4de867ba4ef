//! Headers, addresses and checksums: what the bytes of a frame mean.
//!
//! Parses a frame once into a value whose offsets are proven ([`parse`]), translates it in place
//! ([`rewrite`]), as it does errors about what it translated ([`icmp`]), answers what nobody serves ([`refusal`]), asks hosts for an echo ([`echo`]),
//! lowers the segment size of connections ([`mss`]) and keeps checksums right ([`checksum`]). All of it is written
//! once for both families ([`family`]). Never knows a service, a backend or a flow; never allocates; holds
//! no unsafe code.
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod datagram;
pub mod echo;
pub mod family;
pub mod fragment;
pub mod icmp;
pub mod mss;
pub mod parse;
pub mod refusal;
pub mod rewrite;
mod sctp;

pub use addr::{FiveTuple, FiveTuple4, FiveTuple6, L4Port, MacAddr, Protocol};
pub use datagram::{Datagram, Fragment};
pub use family::Address;
pub use parse::{EtherType, Malformed, Packet, Packet4, Packet6, Parsed, TcpFlags};
pub use rewrite::{EtherAddrs, Translation, Translation4, Translation6};
