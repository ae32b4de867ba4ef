//! Protocol numbers, header lengths, field offsets and message types, each named once. Every offset counts bytes from
//! the start of the header that it belongs to.

/// A length or offset in the 16 bits that packets have for theirs. To be used in constants, where the check is one of
/// the compiler.
#[expect(clippy::cast_possible_truncation, reason = "asserted")]
pub(crate) const fn short(len: usize) -> u16 {
    assert!(len <= u16::MAX as usize);
    len as u16
}

/// Ethernet II (IEEE 802.3 section 3.2) and its VLAN tags (IEEE 802.1Q section 9).
pub mod ethernet {
    /// Length of a header without tags.
    pub const LEN: usize = 14;
    /// Length of one address.
    pub const ADDR_LEN: usize = 6;
    /// Length of both addresses: destination, then source.
    pub const ADDRS_LEN: usize = 12;
    /// Offset of the EtherType of an untagged frame, and of a tag.
    pub const ETHERTYPE: usize = 12;
    /// Length of a VLAN tag: its EtherType and the control information.
    pub const TAG_LEN: usize = 4;
    /// The VLAN identifier within the control information; priority and drop eligibility are above it.
    pub const VLAN_ID_MASK: u16 = 0x0fff;
    /// The bit of the first address byte that marks a group address.
    pub const GROUP_BIT: u8 = 0x01;
}

/// EtherTypes, as they stand in a frame.
pub mod ethertype {
    /// IPv4 (RFC 894).
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// IPv6 (RFC 2464).
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// VLAN tag, customer tag (IEEE 802.1Q).
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// Service tag, the outer tag of a provider network (IEEE 802.1ad).
    pub const QINQ: [u8; 2] = [0x88, 0xa8];
}

/// Values of the IPv4 protocol field and the IPv6 next header field (IANA protocol numbers).
pub mod ip_protocol {
    /// IPv6 hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// IPv4 (RFC 791 section 3.1).
pub mod ipv4 {
    /// Length of a header without options.
    pub const LEN: usize = 20;
    /// Offset of version and header length.
    pub const VERSION_IHL: usize = 0;
    /// Version 4 and a header length of five words: no options.
    pub const VERSION_IHL_NO_OPTIONS: u8 = 0x45;
    /// The header length in words of four bytes, within its byte.
    pub const IHL_MASK: u8 = 0x0f;
    /// Offset of the length of the packet, header included.
    pub const TOTAL_LEN: usize = 2;
    /// Offset of the identification.
    pub const ID: usize = 4;
    /// Offset of flags and fragment offset.
    pub const FLAGS_FRAGMENT: usize = 6;
    /// "Don't fragment", within flags and fragment offset.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// "More fragments", within flags and fragment offset.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// The fragment offset in units of eight bytes, within flags and fragment offset.
    pub const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;
    /// Offset of the time to live.
    pub const TTL: usize = 8;
    /// Offset of the protocol.
    pub const PROTOCOL: usize = 9;
    /// Offset of the header checksum.
    pub const CHECKSUM: usize = 10;
    /// Offset of the source address; the destination follows.
    pub const SRC: usize = 12;
    /// Offset of the destination address.
    pub const DST: usize = 16;
    /// Largest packet that every host takes, and that an ICMP error may fill (RFC 1812 section 4.3.2.3).
    pub const ICMP_ERROR_LEN_MAX: usize = 576;
}

/// IPv4 options: the first byte of each (RFC 791 section 3.1, IANA).
pub mod ipv4_option {
    /// End of the list.
    pub const END: u8 = 0;
    /// Padding of one byte.
    pub const NOP: u8 = 1;
    /// Record route.
    pub const RECORD_ROUTE: u8 = 7;
    /// Internet timestamp.
    pub const TIMESTAMP: u8 = 68;
    /// Format of a timestamp option: each with the address of its host.
    pub const TIMESTAMP_AND_ADDRESS: u8 = 1;
    /// Format of a timestamp option: the addresses are given.
    pub const TIMESTAMP_PRESPECIFIED: u8 = 3;
    /// Loose source route.
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Commercial security.
    pub const CIPSO: u8 = 134;
    /// Strict source route.
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
    /// Router alert (RFC 2113).
    pub const ROUTER_ALERT: u8 = 148;
}

/// IPv6 options in hop-by-hop and destination headers (RFC 8200 section 4.2).
pub mod ipv6_option {
    /// Padding of one byte, without a length.
    pub const PAD1: u8 = 0;
    /// The bits of a type that tell what a node does that does not know it; 0: it skips the option.
    pub const ACTION_MASK: u8 = 0xc0;
}

/// IPv6 and its extension headers (RFC 8200 sections 3 and 4).
pub mod ipv6 {
    /// Length of the fixed header.
    pub const LEN: usize = 40;
    /// Version 6 in the first byte, traffic class zero.
    pub const VERSION: u8 = 0x60;
    /// Offset of the length of what follows the fixed header.
    pub const PAYLOAD_LEN: usize = 4;
    /// Offset of the next header.
    pub const NEXT_HEADER: usize = 6;
    /// Offset of the hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Offset of the source address; the destination follows.
    pub const SRC: usize = 8;
    /// Offset of the destination address.
    pub const DST: usize = 24;
    /// Length of the fragment header, and the unit in which other extension headers are measured.
    pub const EXTENSION_UNIT: usize = 8;
    /// Offset of the routing header's remaining segments.
    pub const SEGMENTS_LEFT: usize = 3;
    /// Offset of fragment offset and "more fragments" in a fragment header.
    pub const FRAGMENT_OFFSET: usize = 2;
    /// The fragment offset in bytes, within that field.
    pub const FRAGMENT_OFFSET_MASK: u16 = 0xfff8;
    /// "More fragments", within that field.
    pub const MORE_FRAGMENTS: u16 = 0x0001;
    /// Offset of the identification in a fragment header.
    pub const FRAGMENT_ID: usize = 4;
    /// The MTU of every link at least, which an ICMPv6 error may fill (RFC 4443 section 2.4 (c)).
    pub const MIN_MTU: usize = 1280;
}

/// What the headers of TCP, UDP and SCTP have in common.
pub mod ports {
    /// Offset of the source port.
    pub const SRC: usize = 0;
    /// Offset of the destination port.
    pub const DST: usize = 2;
    /// Length of both.
    pub const LEN: usize = 4;
}

/// TCP (RFC 9293 section 3.1).
pub mod tcp {
    /// Length of a header without options.
    pub const LEN: usize = 20;
    /// Offset of the sequence number.
    pub const SEQUENCE: usize = 4;
    /// Offset of the acknowledgement number.
    pub const ACKNOWLEDGEMENT: usize = 8;
    /// Offset of the header length, in words of four bytes in the upper half of its byte.
    pub const DATA_OFFSET: usize = 12;
    /// Offset of the flags.
    pub const FLAGS: usize = 13;
    /// Offset of the window.
    pub const WINDOW: usize = 14;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;
    /// Option kind: end of the list.
    pub const OPTION_END: u8 = 0;
    /// Option kind: padding of one byte.
    pub const OPTION_NOP: u8 = 1;
    /// Option kind: maximum segment size.
    pub const OPTION_MSS: u8 = 2;
    /// Length of the maximum segment size option.
    pub const OPTION_MSS_LEN: u8 = 4;
    /// Option kind: window scale (RFC 7323 section 2.2).
    pub const OPTION_WINDOW_SCALE: u8 = 3;
    /// Length of the window scale option.
    pub const OPTION_WINDOW_SCALE_LEN: u8 = 3;
    /// The largest shift of a window; a larger one counts as this (RFC 7323 section 2.3).
    pub const WINDOW_SCALE_MAX: u8 = 14;
}

/// UDP (RFC 768).
pub mod udp {
    /// Length of the header.
    pub const LEN: usize = 8;
    /// Offset of the length of the datagram, header included.
    pub const DATAGRAM_LEN: usize = 4;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 6;
}

/// SCTP (RFC 9260 section 3).
pub mod sctp {
    /// Length of the common header.
    pub const LEN: usize = 12;
    /// Offset of the verification tag.
    pub const TAG: usize = 4;
    /// Offset of the CRC32c, which is little endian.
    pub const CHECKSUM: usize = 8;
    /// Length of a chunk header: type, flags, length.
    pub const CHUNK_LEN: usize = 4;
    /// Chunk type: opens an association.
    pub const INIT: u8 = 1;
    /// Chunk type: answers an INIT.
    pub const INIT_ACK: u8 = 2;
    /// Chunk type: ends an association at once.
    pub const ABORT: u8 = 6;
    /// Chunk type: ends an association in order.
    pub const SHUTDOWN: u8 = 7;
    /// Chunk type: answers a SHUTDOWN.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Chunk type: echoes the cookie of an INIT ACK, which opens the association.
    pub const COOKIE_ECHO: u8 = 10;
    /// Chunk type: answers a SHUTDOWN ACK.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    /// Flag of ABORT and SHUTDOWN COMPLETE: the sender knows no association, and the verification tag is that of the packet
    /// that it answers.
    pub const REFLECTED_TAG: u8 = 1;
}

/// What ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.1) have in common.
pub mod icmp {
    /// Length of the header of all messages that are handled: type, code, checksum and four bytes that differ.
    pub const LEN: usize = 8;
    /// Offset of the type.
    pub const TYPE: usize = 0;
    /// Offset of the code.
    pub const CODE: usize = 1;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 2;
    /// Offset of the identifier of an echo request or reply.
    pub const ECHO_ID: usize = 4;
    /// Offset of the sequence number of an echo request or reply.
    pub const ECHO_SEQUENCE: usize = 6;
}

/// Types and codes of ICMP (RFC 792).
pub mod icmpv4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: no route to the network.
    pub const CODE_NET_UNREACHABLE: u8 = 0;
    /// Code of [`UNREACHABLE`]: the host does not answer on its link.
    pub const CODE_HOST_UNREACHABLE: u8 = 1;
    /// Code of [`UNREACHABLE`]: the port is not served.
    pub const CODE_PORT_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed and "don't fragment" set (RFC 1191 section 4).
    pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
    /// Source quench (deprecated by RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded; code 0 is the TTL.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Types and codes of ICMPv6 (RFC 4443 section 2.1).
pub mod icmpv6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Code of [`UNREACHABLE`]: no route to the destination.
    pub const CODE_NO_ROUTE: u8 = 0;
    /// Code of [`UNREACHABLE`]: the destination does not answer on its link.
    pub const CODE_ADDRESS_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: the port is not served.
    pub const CODE_PORT_UNREACHABLE: u8 = 4;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded; code 0 is the hop limit.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Set in the type of every message that is no error.
    pub const INFORMATIONAL_BIT: u8 = 0x80;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
}
