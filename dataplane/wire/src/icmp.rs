//! Control messages (RFC 792, RFC 4443) that are passed on or answered: errors with the packet that they are about,
//! and echo requests. Writes no error of its own: see [`refusal`](crate::refusal). Never decides where one goes.

use crate::addr::{FiveTuple, L4Port, Protocol};
use crate::checksum::{Checksum, Delta, Sum};
use crate::datagram::{self, Datagram};
use crate::family::Address;
use crate::refusal::{self, icmp_sum};
use crate::rewrite::EtherAddrs;
use crate::sctp;

/// What a control message is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<A> {
    /// An error about a packet that has ports.
    Error(Quoted<A>),
    /// An echo request.
    EchoRequest,
    /// Anything else: the host's own business.
    Other,
}

/// The packet that an error is about, as far as the error quotes it: at least to its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Its five-tuple.
    pub tuple: FiveTuple<A>,
    /// Where its IP header starts in the frame.
    l3_offset: u16,
    /// Where its transport header starts in the frame.
    l4_offset: u16,
    /// Where the message ends in the frame.
    end: u16,
}

/// What an error is made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewError<A> {
    /// New source.
    pub src: A,
    /// New destination.
    pub dst: A,
    /// The packet that it is about, as the new destination knows it. Has the same protocol.
    pub about: FiveTuple<A>,
}

impl<A: Address> Message<A> {
    /// The control message that `datagram`, parsed from `frame`, carries.
    ///
    /// Errors are those of RFC 792 types 3, 11 and 12 and RFC 4443 types 1 to 4. One that quotes no ports, a later
    /// fragment or a packet that was still to be routed elsewhere (RFC 8200 section 4.4) is [`Message::Other`], as is
    /// a fragment of a message and whatever is no control message.
    pub fn of(frame: &[u8], datagram: &Datagram<A>) -> Self {
        if datagram.protocol != A::ICMP || datagram.fragment.is_some() {
            return Self::Other;
        }
        let message = datagram.payload(frame);
        let Some((header, quote)) = message.split_first_chunk::<HEADER_LEN>() else { return Self::Other };
        match header[0] {
            kind if kind == echo_request::<A>() => Self::EchoRequest,
            kind if is_error::<A>(kind) => quoted(quote, datagram).map_or(Self::Other, Self::Error),
            _ => Self::Other,
        }
    }
}

/// Rewrites the error in `frame`: Ethernet addresses, hop limit less one, outer addresses, and the addresses and
/// ports of the packet that it quotes. Checksums are updated, so that a wrong one stays wrong; the CRC of an SCTP
/// packet that is not quoted whole cannot be. `datagram` and `quoted` must be what was parsed from `frame`. None
/// if the hops are used up; then some of it may be written already.
pub fn translate<A: Address>(
    frame: &mut [u8],
    datagram: &Datagram<A>,
    quoted: &Quoted<A>,
    to: &NewError<A>,
    ether: &EtherAddrs,
) -> Option<()> {
    let (head, message) = frame.split_at_mut_checked(usize::from(datagram.l4_offset))?;
    head.first_chunk_mut::<12>()?.copy_from_slice(&ether.0);
    let header = head.get_mut(usize::from(datagram.l3_offset)..)?;
    A::decrement_hops(header)?;
    A::write_pair(header, [to.src, to.dst])?;
    let within = |offset: u16| usize::from(offset - datagram.l4_offset);
    let quote = message.get_mut(within(quoted.l3_offset)..within(quoted.end))?;
    let l4_offset = usize::from(quoted.l4_offset - quoted.l3_offset);
    // All that changes lies before: the TCP checksum comes last.
    let changing = quote.len().min(l4_offset + 18);
    let before = Sum::ZERO.bytes(&quote[..changing]);
    translate_quote(quote, l4_offset, &quoted.tuple, &to.about)?;
    let after = Sum::ZERO.bytes(&quote[..changing]);
    let outer = |src, dst| icmp_sum(src, dst, datagram.l4_len);
    let delta = Delta::between(outer(datagram.src, datagram.dst), outer(to.src, to.dst))
        .and(Delta::between(before, after));
    update(message, CHECKSUM, delta)
}

/// Sends the error in `frame` on as it is: Ethernet addresses, hop limit less one. None if the hops are used up.
pub fn route<A: Address>(frame: &mut [u8], datagram: &Datagram<A>, ether: &EtherAddrs) -> Option<()> {
    A::decrement_hops(frame.get_mut(usize::from(datagram.l3_offset)..)?)?;
    frame.first_chunk_mut::<12>()?.copy_from_slice(&ether.0);
    Some(())
}

/// Makes the echo request in `frame` its answer (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2), back by the link
/// that it came by. None for one that gets no answer: its sender is not a single host, or it has IPv4 options,
/// which a host would have to turn round.
pub fn answer_echo<A: Address>(frame: &mut [u8], datagram: &Datagram<A>) -> Option<()> {
    let has_options = A::IS_V4 && usize::from(datagram.l4_offset - datagram.l3_offset) != A::HEADER_LEN;
    if has_options || !refusal::may_be_answered(frame, datagram.src.into()) {
        return None;
    }
    let (head, message) = frame.split_at_mut_checked(usize::from(datagram.l4_offset))?;
    let kind = message.first_mut()?;
    let before = Sum::ZERO.word([*kind, 0]);
    *kind = echo_reply::<A>();
    let after = Sum::ZERO.word([*kind, 0]);
    update(message, CHECKSUM, Delta::between(before, after))?;
    let (ether, header) = head.split_at_mut_checked(usize::from(datagram.l3_offset))?;
    let (to, from) = ether.get_mut(..12)?.split_at_mut(6);
    to.swap_with_slice(from);
    A::write_pair(header, [datagram.dst, datagram.src])?;
    set_hops::<A>(header, refusal::HOPS)
}

/// The packet that the error in `datagram` quotes; none if it has no ports that are known.
fn quoted<A: Address>(quote: &[u8], datagram: &Datagram<A>) -> Option<Quoted<A>> {
    let (protocol, l4_offset) = transport_of::<A>(quote)?;
    let protocol = Protocol::from_number(protocol)?;
    let [src, dst] = A::read_pair(quote)?;
    let ports = quote.get(l4_offset..)?.first_chunk::<4>()?;
    let (src_port, dst_port) =
        (L4Port::from_wire([ports[0], ports[1]]), L4Port::from_wire([ports[2], ports[3]]));
    let l3_offset = datagram.l4_offset + u16::try_from(HEADER_LEN).ok()?;
    Some(Quoted {
        tuple: FiveTuple { protocol, src, dst, src_port, dst_port },
        l3_offset,
        l4_offset: l3_offset + u16::try_from(l4_offset).ok()?,
        end: datagram.l4_offset + datagram.l4_len,
    })
}

/// The protocol of a quoted packet and where its transport header starts; none if that is not there. The lengths in
/// its headers may be larger than the quote.
fn transport_of<A: Address>(quote: &[u8]) -> Option<(u8, usize)> {
    if A::IS_V4 {
        let head = quote.first_chunk::<20>()?;
        let header_len = usize::from(head[0] & 0x0f) * 4;
        let is_later_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0;
        let is_right = head[0] >> 4 == 4 && header_len >= 20 && !is_later_fragment;
        return is_right.then_some((head[9], header_len));
    }
    let head = quote.first_chunk::<40>().filter(|head| head[0] >> 4 == 6)?;
    let (mut protocol, mut at) = (head[6], 40);
    for _ in 0..datagram::EXTENSIONS_MAX {
        if !datagram::is_extension(protocol) {
            break;
        }
        let extension = quote.get(at..)?.first_chunk::<8>()?;
        at += match protocol {
            datagram::FRAGMENT if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 => {
                return None;
            }
            datagram::FRAGMENT => 8,
            datagram::ROUTING if extension[3] != 0 => return None,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        protocol = extension[0];
    }
    Some((protocol, at))
}

/// Writes `to` into a quoted packet of `from`, whose transport header may be cut off behind its ports.
fn translate_quote<A: Address>(
    quote: &mut [u8],
    l4_offset: usize,
    from: &FiveTuple<A>,
    to: &FiveTuple<A>,
) -> Option<()> {
    let len = len_of::<A>(quote)?;
    A::write_pair(quote, [to.src, to.dst])?;
    let whole = quote.get_mut(l4_offset..len).filter(|packet| packet.len() >= sctp::HEADER_LEN);
    if let (Protocol::Sctp, Some(packet)) = (from.protocol, whole) {
        sctp::translate(packet, to.src_port, to.dst_port);
        return Some(());
    }
    let l4 = quote.get_mut(l4_offset..)?;
    let ports = l4.first_chunk_mut::<4>()?;
    ports[..2].copy_from_slice(&to.src_port.wire());
    ports[2..].copy_from_slice(&to.dst_port.wire());
    let all = |t: &FiveTuple<A>| Sum::ZERO.addr(t.src).addr(t.dst).port(t.src_port).port(t.dst_port);
    let delta = Delta::between(all(from), all(to));
    match from.protocol {
        Protocol::Tcp => update(l4, 16, delta).unwrap_or(()),
        Protocol::Udp => {
            if let Some(field) = l4.get_mut(6..8).and_then(|field| field.first_chunk_mut::<2>())
                && *field != Checksum::NONE.0
            {
                *field = Checksum(*field).update(delta).or_all_ones().0;
            }
        }
        Protocol::Sctp => {}
    }
    Some(())
}

/// The length that the IP header of a quoted packet gives, in bytes from its start.
fn len_of<A: Address>(quote: &[u8]) -> Option<usize> {
    let field = |at: usize| Some(usize::from(u16::from_be_bytes(*quote.get(at..)?.first_chunk::<2>()?)));
    if A::IS_V4 { field(2) } else { Some(A::HEADER_LEN + field(4)?) }
}

/// Updates the checksum at `at`, if it is there.
fn update(bytes: &mut [u8], at: usize, delta: Delta) -> Option<()> {
    let field = bytes.get_mut(at..)?.first_chunk_mut::<2>()?;
    *field = Checksum(*field).update(delta).0;
    Some(())
}

fn set_hops<A: Address>(header: &mut [u8], hops: u8) -> Option<()> {
    if !A::IS_V4 {
        *header.get_mut(7)? = hops;
        return Some(());
    }
    let before = Sum::ZERO.word(*header.get(8..)?.first_chunk::<2>()?);
    *header.get_mut(8)? = hops;
    let after = Sum::ZERO.word(*header.get(8..)?.first_chunk::<2>()?);
    update(header, 10, Delta::between(before, after))
}

const fn is_error<A: Address>(kind: u8) -> bool {
    if A::IS_V4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

const fn echo_request<A: Address>() -> u8 {
    if A::IS_V4 { 8 } else { 128 }
}

const fn echo_reply<A: Address>() -> u8 {
    if A::IS_V4 { 0 } else { 129 }
}

/// Of all messages that count here: type, code, checksum and four bytes that differ.
const HEADER_LEN: usize = 8;
const CHECKSUM: usize = 2;

#[cfg(test)]
mod tests;
