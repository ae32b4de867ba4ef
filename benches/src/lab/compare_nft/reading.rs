//! What arrives at an end, in words that are the same for both gateways: the source address and port that a gateway chose
//! have no numbers in them, and checksums are judged instead of shown.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::lab::topology::{GATEWAY_FABRIC, ipv6_of};
use crate::lab::wire::{ICMP, ICMPV6, SCTP, TCP, UDP, checksum, crc32c, transport_checksum};

/// One of the two ends of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Client,
    Backend,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// A packet that arrived.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// From its IP header on; whole, if it came in fragments.
    pub(super) packet: Vec<u8>,
    /// The number that its sender put into identification or flow label.
    pub(super) number: u16,
    /// The number at the beginning of its payload, if it came in fragments.
    pub(super) payload_number: Option<u16>,
    /// For ICMP the port is zero, or the identifier of an echo at its client's end.
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Number, source and destination of the packet that an ICMP error is about.
    pub(super) about: Option<(u16, SocketAddr, SocketAddr)>,
    /// All of it, for a packet that was forwarded.
    pub(super) whole: String,
    /// The same without IPv4 options and IPv6 extension headers.
    pub(super) bare: String,
    /// What an answer says, without what each gateway may choose for its own packets.
    pub(super) answer: String,
}

impl Reading {
    /// Whether whoever sent it gave up on the fragments of a packet (RFC 792, RFC 4443 section 3.3).
    pub(super) fn tells_of_a_lost_fragment(&self) -> bool {
        let Some(head) = Head::parse(&self.packet) else { return false };
        let kind = self.packet.get(head.body_at..head.body_at + 2);
        matches!((head.protocol, kind), (ICMP, Some([11, 1])) | (ICMPV6, Some([3, 1])))
    }
}

/// Reads a packet; `None` for one that nobody here sends, such as neighbour discovery.
pub(super) fn read(packet: &[u8], at: End, was_cut: bool) -> Option<Reading> {
    let head = Head::parse(packet)?;
    let body = packet.get(head.body_at..head.end)?;
    let ports = matches!(head.protocol, TCP | UDP | SCTP).then(|| body.get(..4)).flatten();
    let port = |at: usize| ports.map_or(0, |ports| u16::from_be_bytes([ports[at], ports[at + 1]]));
    // The identifier of an echo is its client's port.
    let id = body.get(4..6).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let (from_port, to_port) = match (head.protocol, *body.first()?) {
        (ICMP, 8) | (ICMPV6, 128) => (id, 0),
        (ICMP, 0) | (ICMPV6, 129) => (0, id),
        _ => (port(0), port(2)),
    };
    let source = SocketAddr::new(head.source, from_port);
    let destination = SocketAddr::new(head.destination, to_port);
    let is_masqueraded = at == End::Backend && is_gateway(head.source) && ports.is_some();
    let is_error = is_error(head.protocol, *body.first()?);
    if head.protocol == ICMPV6 && !is_error && !matches!(body[0], 128 | 129) {
        return None;
    }
    let quoted =
        if is_error { body.get(8..).and_then(|quote| Some((Head::parse(quote)?, quote))) } else { None };
    let about = quoted.as_ref().map(|(head, quote)| {
        let (source, destination) = head.ends(quote);
        (head.number, source, destination)
    });
    let from = if is_masqueraded { "gateway:*".to_owned() } else { source.to_string() };
    let sound = if is_sound(&head, packet, body) { "" } else { "CORRUPT " };
    let front = format!("{sound}{from} > {destination} {}", head.text(packet, was_cut));
    let (answer, rest) = if let Some((inner, quote)) = &quoted {
        let message = format!("error {}/{} {}", body[0], body[1], hex(&body[4..8]));
        let (source, to) = inner.ends_text(quote, at);
        // Whoever sends an error chooses from where, and how much of the packet it quotes.
        let answer = format!("to {} {message} about {source} > {to}", head.destination);
        (answer, format!("{message} about {source} > {to} {}", quote_text(inner, quote, at)))
    } else {
        let answer =
            format!("{source} > {destination} protocol {} {}", head.protocol, answer_text(&head, body));
        (answer, body_text(&head, body))
    };
    let options = head.options(packet, was_cut);
    let payload_at = if head.protocol == UDP { 8 } else { 20 };
    let payload_number = body.get(payload_at..payload_at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    Some(Reading {
        packet: packet[..head.end].to_vec(),
        number: head.number,
        payload_number: payload_number.filter(|_| was_cut),
        source,
        destination,
        about,
        whole: format!("{front} [{options}] {rest}"),
        bare: format!("{front} {rest}"),
        answer,
    })
}

/// IP packets out of Ethernet frames, those in fragments put together, each with whether it was; what is not complete does not
/// count.
pub(super) fn reassemble(frames: &[Vec<u8>]) -> Vec<(Vec<u8>, bool)> {
    let mut packets = Vec::new();
    let mut trains: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for frame in frames {
        if !matches!(frame.get(12..14), Some([0x08, 0] | [0x86, 0xdd])) {
            continue;
        }
        let packet = &frame[14..];
        let Some(head) = Head::parse(packet) else { continue };
        match head.fragment {
            None => packets.push((packet.to_vec(), false)),
            Some(fragment) => {
                trains.entry((head.source, head.destination, fragment.id)).or_default().push((head, packet));
            }
        }
    }
    packets.extend(trains.into_values().filter_map(|train| Some((join(train)?, true))));
    packets
}

/// One packet from all its fragments; `None` if one is missing.
fn join(mut train: Vec<(Head, &[u8])>) -> Option<Vec<u8>> {
    let offset = |head: &Head| head.fragment.map_or(0, |fragment| fragment.offset);
    train.sort_by_key(|(head, _)| offset(head));
    let (first, packet) = train.first()?;
    // Without the fragment header of IPv6.
    let mut whole = packet[..first.fragment?.header_at].to_vec();
    let start = whole.len();
    for (head, packet) in &train {
        let at = offset(head);
        if at > whole.len() - start {
            return None;
        }
        whole.truncate(start + at);
        whole.extend(packet.get(head.body_at..head.end)?);
    }
    if train.last()?.0.fragment?.more {
        return None;
    }
    let len = u16::try_from(if first.is_v4 { whole.len() } else { whole.len() - 40 }).ok()?;
    if first.is_v4 {
        whole[2..4].copy_from_slice(&len.to_be_bytes());
        whole[6..8].fill(0);
        whole[10..12].fill(0);
        let sum = checksum(0, &whole[..start]);
        whole[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        whole[4..6].copy_from_slice(&len.to_be_bytes());
        whole[6] = first.protocol;
    }
    Some(whole)
}

/// An IP header.
struct Head {
    is_v4: bool,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    number: u16,
    fragment: Option<FragmentField>,
    body_at: usize,
    /// Where the packet ends; what is behind it is padding.
    end: usize,
}

#[derive(Clone, Copy)]
struct FragmentField {
    id: u32,
    /// In bytes.
    offset: usize,
    more: bool,
    /// Where the fragment header of IPv6 is, or the end of that of IPv4.
    header_at: usize,
}

impl Head {
    fn parse(packet: &[u8]) -> Option<Self> {
        let half = |at: usize| packet.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        match packet.first()? >> 4 {
            4 => {
                let body_at = usize::from(packet[0] & 15) * 4;
                let field = half(6)?;
                let (offset, more) = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
                let fragment = FragmentField { id: half(4)?.into(), offset, more, header_at: body_at };
                let at = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
                Some(Self {
                    is_v4: true,
                    source: at(12)?,
                    destination: at(16)?,
                    protocol: packet[9],
                    number: half(4)?,
                    fragment: (more || offset > 0).then_some(fragment),
                    body_at,
                    end: packet.len().min(half(2)?.into()),
                })
            }
            6 => {
                let at = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
                let mut head = Self {
                    is_v4: false,
                    source: at(8)?,
                    destination: at(24)?,
                    protocol: packet[6],
                    number: half(2)?,
                    fragment: None,
                    body_at: 40,
                    end: packet.len().min(40 + usize::from(half(4)?)),
                };
                head.skip_extensions(packet)?;
                Some(head)
            }
            _ => None,
        }
    }

    /// Hop-by-hop options, routing header, fragment header, destination options (RFC 8200 section 4).
    fn skip_extensions(&mut self, packet: &[u8]) -> Option<()> {
        while matches!(self.protocol, 0 | 43 | 44 | 60) {
            let header = packet.get(self.body_at..self.body_at + 8)?;
            if self.protocol == 44 {
                let field = u16::from_be_bytes([header[2], header[3]]);
                let (offset, more) = (usize::from(field & !7), field & 1 != 0);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                // RFC 6946: an atomic fragment is whole.
                let is_cut = more || offset > 0;
                self.fragment = is_cut.then_some(FragmentField { id, offset, more, header_at: self.body_at });
            }
            let words = if self.protocol == 44 { 0 } else { usize::from(header[1]) };
            self.protocol = header[0];
            self.body_at += 8 * (words + 1);
            if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
                break;
            }
        }
        Some(())
    }

    /// Source and destination of a quoted packet.
    fn ends(&self, quote: &[u8]) -> (SocketAddr, SocketAddr) {
        let port = |at: usize| match quote.get(self.body_at + at..self.body_at + at + 2) {
            Some(two) if matches!(self.protocol, TCP | UDP | SCTP) => u16::from_be_bytes([two[0], two[1]]),
            _ => 0,
        };
        (SocketAddr::new(self.source, port(0)), SocketAddr::new(self.destination, port(2)))
    }

    fn text(&self, packet: &[u8], was_cut: bool) -> String {
        if self.is_v4 {
            // Where the source is replaced, fragments get an identification of the gateway's.
            let number = if was_cut { "cut".to_owned() } else { self.number.to_string() };
            let flags = if was_cut { 0 } else { packet[6] >> 5 };
            format!(
                "protocol {} ttl {} tos {} id {number} flags {flags}",
                self.protocol, packet[8], packet[1]
            )
        } else {
            format!("protocol {} hops {} label {}", self.protocol, packet[7], hex(&packet[..4]))
        }
    }

    /// IPv4 options or IPv6 extension headers.
    fn options(&self, packet: &[u8], was_cut: bool) -> String {
        let from = if self.is_v4 { 20 } else { 40 };
        if was_cut { String::new() } else { hex(&packet[from..self.body_at]) }
    }

    /// [`Self::ends`] in words. At the backend a gateway's choice has no number.
    fn ends_text(&self, quote: &[u8], at: End) -> (String, String) {
        let (source, destination) = self.ends(quote);
        let is_chosen = at == End::Backend && is_gateway(self.destination);
        let to = if is_chosen { "gateway:*".to_owned() } else { destination.to_string() };
        (source.to_string(), to)
    }
}

/// The body of the quoted packet of an error. At the backend its destination is what the gateway chose.
fn quote_text(head: &Head, quote: &[u8], at: End) -> String {
    let mut bytes = quote.to_vec();
    if at == End::Backend && is_gateway(head.destination) {
        let (checksum_at, len) = match head.protocol {
            TCP => (16, 2),
            SCTP => (8, 4),
            _ => (6, 2),
        };
        for (place, len) in [(2, 2), (checksum_at, len)] {
            bytes.iter_mut().skip(head.body_at + place).take(len).for_each(|byte| *byte = 0);
        }
    }
    hex(&bytes[bytes.len().min(head.body_at)..])
}

/// Transport header and payload without ports and checksum.
fn body_text(head: &Head, body: &[u8]) -> String {
    let mut bytes = body.to_vec();
    let checksum_at = match head.protocol {
        TCP => 16..18,
        UDP => 6..8,
        SCTP => 8..12,
        _ => 2..4,
    };
    let none = if head.protocol == UDP && body.get(6..8) == Some(&[0, 0]) { "without checksum " } else { "" };
    if let Some(field) = bytes.get_mut(checksum_at) {
        field.fill(0);
    }
    let from = if matches!(head.protocol, TCP | UDP | SCTP) { 4 } else { 0 };
    format!("{none}{}", hex(bytes.get(from..).unwrap_or_default()))
}

fn answer_text(head: &Head, body: &[u8]) -> String {
    match head.protocol {
        TCP if body.len() >= 20 => {
            format!("flags {} sequence {} acknowledgement {}", body[13], hex(&body[4..8]), hex(&body[8..12]))
        }
        SCTP if body.len() >= 16 => format!("tag {} chunk {}", hex(&body[4..8]), body[12]),
        _ => hex(body),
    }
}

/// Whether all checksums are right.
fn is_sound(head: &Head, packet: &[u8], body: &[u8]) -> bool {
    if head.is_v4 && checksum(0, &packet[..head.body_at]) != 0 {
        return false;
    }
    let ends = (head.source, head.destination);
    match head.protocol {
        TCP => transport_checksum(ends, TCP, body) == 0,
        UDP => {
            let field = body.get(4..6).map_or(0, |two| usize::from(u16::from_be_bytes([two[0], two[1]])));
            let covered = body.get(..field).unwrap_or(body);
            body.get(6..8) == Some(&[0, 0]) || transport_checksum(ends, UDP, covered) == 0
        }
        SCTP if body.len() >= 12 => {
            let zeroed = [&body[..8], &[0; 4], &body[12..]].concat();
            crc32c(&zeroed).to_le_bytes() == body[8..12]
        }
        ICMP => checksum(0, body) == 0,
        ICMPV6 => transport_checksum(ends, ICMPV6, body) == 0,
        _ => true,
    }
}

fn is_error(protocol: u8, kind: u8) -> bool {
    (protocol == ICMP && matches!(kind, 3 | 4 | 5 | 11 | 12)) || (protocol == ICMPV6 && kind < 128)
}

fn is_gateway(address: IpAddr) -> bool {
    address == IpAddr::V4(GATEWAY_FABRIC) || address == IpAddr::V6(ipv6_of(GATEWAY_FABRIC))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
