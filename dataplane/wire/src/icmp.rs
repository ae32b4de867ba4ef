//! ICMP messages (RFC 792, RFC 4443) that arrive: errors about packets of flows are translated, echo requests answered.
//! Errors of our own are written in [`reject`](crate::reject).

use crate::addr::{FiveTuple, L4Port, Protocol};
use crate::checksum::{Checksum, Delta, Sum};
use crate::datagram::{self, Datagram, u16_at};
use crate::family::Address;
use crate::header::ip_protocol::{FRAGMENT, ROUTING};
use crate::header::{self, ethernet, icmpv4, icmpv6, ipv4, ipv6, ports, short, tcp, udp};
use crate::reject::{icmp_pseudo_header, may_be_answered};
use crate::rewrite::EtherAddrs;
use crate::sctp;

/// The kinds of ICMP messages that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<A> {
    /// An error about a packet that has ports.
    Error(Quoted<A>),
    /// An echo request.
    EchoRequest,
    /// Anything else: left to the kernel.
    Other,
}

/// The packet that an error quotes, at least up to its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Its five-tuple.
    pub tuple: FiveTuple<A>,
    /// Offset of its IP header in the frame.
    l3_offset: u16,
    /// Offset of its transport header in the frame.
    l4_offset: u16,
    /// End of the message in the frame.
    end: u16,
}

/// The addresses of an error after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedError<A> {
    /// New source.
    pub src: A,
    /// New destination.
    pub dst: A,
    /// The quoted packet as its sender, the new destination, sent it. Has the same protocol.
    pub about: FiveTuple<A>,
}

impl<A: Address> Message<A> {
    /// The message in `datagram`, which was parsed from `frame`.
    ///
    /// Errors are those of RFC 792 types 3, 11 and 12 and RFC 4443 types 1 to 4. One that quotes no ports, a later
    /// fragment or a packet with routing segments left (RFC 8200 section 4.4) is [`Message::Other`], as is a fragment,
    /// and a packet that is not ICMP.
    pub fn of(frame: &[u8], datagram: &Datagram<A>) -> Self {
        // A fragment may hold half of the quoted header, so the kernel reassembles it.
        if datagram.protocol != A::ICMP || datagram.fragment.is_some() {
            return Self::Other;
        }
        let message = datagram.payload(frame);
        let Some((header, quote)) = message.split_first_chunk::<{ header::icmp::LEN }>() else {
            return Self::Other;
        };
        match header[header::icmp::TYPE] {
            kind if kind == echo_request::<A>() => Self::EchoRequest,
            kind if is_error::<A>(kind) => quoted(quote, datagram).map_or(Self::Other, Self::Error),
            _ => Self::Other,
        }
    }
}

/// Rewrites the error in `frame`: Ethernet addresses, TTL less one, outer addresses, and the addresses and ports of the
/// quoted packet. Checksums are updated, so that a wrong one stays wrong; the CRC of an SCTP packet that is not quoted
/// whole cannot be. `datagram` and `quoted` must have been parsed from `frame`. `None` if the TTL is used up; parts of
/// the frame may have been written then.
pub fn translate<A: Address>(
    frame: &mut [u8],
    datagram: &Datagram<A>,
    quoted: &Quoted<A>,
    to: &TranslatedError<A>,
    ether: &EtherAddrs,
) -> Option<()> {
    let (head, message) = frame.split_at_mut_checked(usize::from(datagram.l4_offset))?;
    head.first_chunk_mut::<{ ethernet::ADDRS_LEN }>()?.copy_from_slice(&ether.0);
    let header = head.get_mut(usize::from(datagram.l3_offset)..)?;
    // Each of these updates the outer IPv4 header checksum by itself; errors are rare enough for that.
    A::decrement_ttl(header)?;
    A::write_pair(header, [to.src, to.dst])?;
    let within = |offset: u16| usize::from(offset - datagram.l4_offset);
    let quote = message.get_mut(within(quoted.l3_offset)..within(quoted.end))?;
    let l4_offset = usize::from(quoted.l4_offset - quoted.l3_offset);
    // The quoted packet is payload of the ICMP checksum. Summing the bytes that may change before and after is simpler
    // than adding up the single changes, of which a checksum within the quote is one. The TCP checksum is the last.
    let changing = quote.len().min(l4_offset + tcp::CHECKSUM + 2);
    let before = Sum::ZERO.bytes(&quote[..changing]);
    translate_quote(quote, l4_offset, &quoted.tuple, &to.about)?;
    let after = Sum::ZERO.bytes(&quote[..changing]);
    let outer = |src, dst| icmp_pseudo_header(src, dst, datagram.l4_len);
    // ICMPv6 covers the outer addresses by its pseudo header, ICMP does not: there `outer` is zero for both.
    let delta = Delta::between(outer(datagram.src, datagram.dst), outer(to.src, to.dst))
        .and(Delta::between(before, after));
    update(message, header::icmp::CHECKSUM, delta)
}

/// Routes the error in `frame` without translation: Ethernet addresses, TTL less one. `None` if the TTL is used up.
pub fn route<A: Address>(frame: &mut [u8], datagram: &Datagram<A>, ether: &EtherAddrs) -> Option<()> {
    A::decrement_ttl(frame.get_mut(usize::from(datagram.l3_offset)..)?)?;
    frame.first_chunk_mut::<{ ethernet::ADDRS_LEN }>()?.copy_from_slice(&ether.0);
    Some(())
}

/// Whether `datagram`, whole or the first fragment of one, is an echo request.
pub fn is_echo_request<A: Address>(frame: &[u8], datagram: &Datagram<A>) -> bool {
    let message = datagram.payload(frame);
    let begins = datagram.fragment.is_none_or(|part| part.offset == 0);
    datagram.protocol == A::ICMP
        && begins
        && message.len() >= header::icmp::LEN
        && message[header::icmp::TYPE] == echo_request::<A>()
}

/// Turns the echo request in `frame` into its reply (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2), which leaves by the
/// link of its arrival. `None` for one that gets no reply: its sender is not a single host, or it has IPv4 options.
///
/// A fragment of a request becomes that fragment of the reply: identifier, sequence number and data are the same, and only the
/// first holds type and checksum. The caller tells whether a later one is of a request.
pub fn reply_to_echo<A: Address>(frame: &mut [u8], datagram: &Datagram<A>) -> Option<()> {
    // RFC 1122 section 3.2.2.6 has a reply reverse a recorded route, which is not worth its code.
    let has_options = A::IS_V4 && usize::from(datagram.l4_offset - datagram.l3_offset) != A::HEADER_LEN;
    if has_options || !may_be_answered(frame, datagram.src.into()) {
        return None;
    }
    let (head, message) = frame.split_at_mut_checked(usize::from(datagram.l4_offset))?;
    if datagram.fragment.is_none_or(|part| part.offset == 0) {
        // Identifier, sequence number and data are returned as they are, so the type is all that changes in the sum.
        let kind = message.first_mut()?;
        let before = Sum::ZERO.word([*kind, 0]);
        *kind = echo_reply::<A>();
        let after = Sum::ZERO.word([*kind, 0]);
        update(message, header::icmp::CHECKSUM, Delta::between(before, after))?;
    }
    let (ether, header) = head.split_at_mut_checked(usize::from(datagram.l3_offset))?;
    // Back over the same link, without a route lookup: the request proves that the sender is reachable there.
    let (to, from) = ether.get_mut(..ethernet::ADDRS_LEN)?.split_at_mut(ethernet::ADDR_LEN);
    to.swap_with_slice(from);
    A::write_pair(header, [datagram.dst, datagram.src])?;
    set_ttl::<A>(header, datagram::DEFAULT_TTL)
}

/// The packet that the error in `datagram` quotes; `None` without ports.
fn quoted<A: Address>(quote: &[u8], datagram: &Datagram<A>) -> Option<Quoted<A>> {
    let (protocol, l4_offset) = transport_of::<A>(quote)?;
    let protocol = Protocol::from_number(protocol)?;
    let [src, dst] = A::read_pair(quote)?;
    let [s0, s1, d0, d1] = *quote.get(l4_offset..)?.first_chunk::<{ ports::LEN }>()?;
    let (src_port, dst_port) = (L4Port::from_wire([s0, s1]), L4Port::from_wire([d0, d1]));
    let l3_offset = datagram.l4_offset + const { short(header::icmp::LEN) };
    Some(Quoted {
        tuple: FiveTuple { protocol, src, dst, src_port, dst_port },
        l3_offset,
        l4_offset: l3_offset + u16::try_from(l4_offset).ok()?,
        end: datagram.l4_offset + datagram.l4_len,
    })
}

/// The protocol of a quoted packet and the offset of its transport header; `None` if the quote ends before it.
fn transport_of<A: Address>(quote: &[u8]) -> Option<(u8, usize)> {
    if A::IS_V4 {
        // Not parsed as a packet: its lengths are those of the original, and the quote is usually shorter.
        let ip = quote.first_chunk::<{ ipv4::LEN }>()?;
        let header_len = usize::from(ip[ipv4::VERSION_IHL] & ipv4::IHL_MASK) * 4;
        let is_later_fragment = u16_at(ip, ipv4::FLAGS_FRAGMENT) & ipv4::FRAGMENT_OFFSET_MASK != 0;
        let is_valid = ip[ipv4::VERSION_IHL] >> 4 == 4 && header_len >= ipv4::LEN && !is_later_fragment;
        return is_valid.then_some((ip[ipv4::PROTOCOL], header_len));
    }
    let ip = quote.first_chunk::<{ ipv6::LEN }>().filter(|ip| ip[0] >> 4 == 6)?;
    let (mut protocol, mut at) = (ip[ipv6::NEXT_HEADER], ipv6::LEN);
    for _ in 0..datagram::EXTENSIONS_MAX {
        if !datagram::is_extension(protocol) {
            break;
        }
        let extension = quote.get(at..)?.first_chunk::<{ ipv6::EXTENSION_UNIT }>()?;
        let is_later_fragment = protocol == FRAGMENT
            && u16_at(extension, ipv6::FRAGMENT_OFFSET) & ipv6::FRAGMENT_OFFSET_MASK != 0;
        let is_en_route = protocol == ROUTING && extension[ipv6::SEGMENTS_LEFT] != 0;
        if is_later_fragment || is_en_route {
            return None;
        }
        at += usize::from(datagram::extension_len(protocol, extension));
        protocol = extension[0];
    }
    Some((protocol, at))
}

/// Translates a quoted packet, whose transport header may be cut off behind its ports.
fn translate_quote<A: Address>(
    quote: &mut [u8],
    l4_offset: usize,
    from: &FiveTuple<A>,
    to: &FiveTuple<A>,
) -> Option<()> {
    let len = ip_len::<A>(quote)?;
    // Updates the quoted header checksum too, which routers may have left with their own TTL.
    A::write_pair(quote, [to.src, to.dst])?;
    // The CRC covers the whole packet, so it can be computed only where all of it is quoted.
    let whole = quote.get_mut(l4_offset..len).filter(|packet| packet.len() >= header::sctp::LEN);
    if let (Protocol::Sctp, Some(packet)) = (from.protocol, whole) {
        sctp::translate(packet, to.src_port, to.dst_port);
        return Some(());
    }
    let l4 = quote.get_mut(l4_offset..)?;
    let fields = l4.first_chunk_mut::<{ ports::LEN }>()?;
    fields[ports::SRC..ports::DST].copy_from_slice(&to.src_port.wire());
    fields[ports::DST..].copy_from_slice(&to.dst_port.wire());
    let all = |t: &FiveTuple<A>| Sum::ZERO.addr(t.src).addr(t.dst).port(t.src_port).port(t.dst_port);
    let delta = Delta::between(all(from), all(to));
    match from.protocol {
        // RFC 792 has errors quote no more than eight bytes of the segment, before the checksum of TCP.
        Protocol::Tcp => update(l4, tcp::CHECKSUM, delta).unwrap_or(()),
        Protocol::Udp => {
            if let Some(field) =
                l4.get_mut(udp::CHECKSUM..udp::LEN).and_then(|field| field.first_chunk_mut::<2>())
                && *field != Checksum::NONE.0
            {
                *field = Checksum(*field).update(delta).or_all_ones().0;
            }
        }
        Protocol::Sctp => {}
    }
    Some(())
}

/// Length of a quoted packet according to its IP header.
fn ip_len<A: Address>(quote: &[u8]) -> Option<usize> {
    let field = |at: usize| Some(usize::from(u16::from_be_bytes(*quote.get(at..)?.first_chunk::<2>()?)));
    if A::IS_V4 { field(ipv4::TOTAL_LEN) } else { Some(A::HEADER_LEN + field(ipv6::PAYLOAD_LEN)?) }
}

/// Updates the checksum at `at`; `None` if the bytes end before it.
fn update(bytes: &mut [u8], at: usize, delta: Delta) -> Option<()> {
    let field = bytes.get_mut(at..)?.first_chunk_mut::<2>()?;
    *field = Checksum(*field).update(delta).0;
    Some(())
}

fn set_ttl<A: Address>(header: &mut [u8], ttl: u8) -> Option<()> {
    if !A::IS_V4 {
        *header.get_mut(ipv6::HOP_LIMIT)? = ttl;
        return Some(());
    }
    // TTL and protocol share a word of the header checksum.
    let word = header.get_mut(ipv4::TTL..)?.first_chunk_mut::<2>()?;
    let before = Sum::ZERO.word(*word);
    word[0] = ttl;
    let after = Sum::ZERO.word(*word);
    update(header, ipv4::CHECKSUM, Delta::between(before, after))
}

const fn is_error<A: Address>(kind: u8) -> bool {
    // Source quench and redirect are for routers on the link and not for the sender behind us.
    if A::IS_V4 {
        matches!(kind, icmpv4::UNREACHABLE | icmpv4::TIME_EXCEEDED | icmpv4::PARAMETER_PROBLEM)
    } else {
        matches!(
            kind,
            icmpv6::UNREACHABLE | icmpv6::PACKET_TOO_BIG | icmpv6::TIME_EXCEEDED | icmpv6::PARAMETER_PROBLEM
        )
    }
}

const fn echo_request<A: Address>() -> u8 {
    if A::IS_V4 { icmpv4::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST }
}

const fn echo_reply<A: Address>() -> u8 {
    if A::IS_V4 { icmpv4::ECHO_REPLY } else { icmpv6::ECHO_REPLY }
}

#[cfg(test)]
mod tests;
