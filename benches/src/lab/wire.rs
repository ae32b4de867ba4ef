//! Numbers and checksums of packets, for all that forges or judges them. Shares no code with the packet path that it tests.

use std::net::IpAddr;

/// Protocol numbers of the IP header (RFC 5237).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// Flags of a TCP segment (RFC 9293 section 3.1).
pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;
pub(super) const URG: u8 = 32;

/// The checksum over pseudo header and body (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(super) fn transport_checksum(ends: (IpAddr, IpAddr), protocol: u8, body: &[u8]) -> u16 {
    let sum = |address: IpAddr| match address {
        IpAddr::V4(address) => words(&address.octets()),
        IpAddr::V6(address) => words(&address.octets()),
    };
    let pseudo = sum(ends.0) + sum(ends.1) + u32::from(protocol) + u32::from(low16(body.len()));
    checksum(pseudo, body)
}

/// The Internet checksum (RFC 1071).
pub(super) fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

fn words(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    bytes.chunks(2).map(word).sum()
}

/// RFC 9260 appendix A, bit by bit: packets here are short and few.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1)))
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// A length in a header.
pub(super) fn low16(value: usize) -> u16 {
    u16::try_from(value).expect("no packet here is longer than 64 KiB")
}
