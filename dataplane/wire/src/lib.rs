//! Headers, addresses and checksums: what the bytes of a frame mean.
//!
//! Parses a frame once into a value whose offsets are proven ([`parse`]), translates it in place
//! ([`rewrite`]), answers what nobody serves ([`refusal`]) and keeps checksums right ([`checksum`]). Never knows a service, a backend or a
//! flow; never allocates; holds no unsafe code.
#![forbid(unsafe_code)]

pub mod addr;
pub mod checksum;
pub mod parse;
pub mod refusal;
pub mod rewrite;

pub use addr::{FiveTuple, FiveTuple4, L4Port, MacAddr, Protocol};
pub use parse::{Malformed, Packet4, Parsed, TcpFlags, parse};
pub use rewrite::{EtherAddrs, Translation4};
