//! Control messages: errors about packets of flows, and echo requests (RFC 792, RFC 4443).

use std::net::{IpAddr, SocketAddr};

use flowgate_dataplane::Verdict;
use flowgate_tables::spec::RouteHopSpec;
use flowgate_wire::Protocol;

use super::checksums::{sctp_checksum, sum};
use super::flows::Side;
use super::packet::{Tuple, hex};
use super::places::{Way, hops, way};
use super::services::{is_own_address, may_answer_kept};
use super::verdicts::held_for;
use super::{Decided, Difference, Fate, Model};

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) ip_len: u16,
    /// Where the message begins.
    pub(crate) at: usize,
    pub(crate) kind: Message,
}

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// An error about a packet with these ports, whose transport header begins there.
    Error {
        about: Tuple,
        l4_at: usize,
    },
    EchoRequest,
    Other,
}

/// Reads the message at `at`, in a packet whose IP header is read.
pub(crate) fn message(frame: &[u8], at: usize, v4: bool) -> Message {
    let end = if v4 {
        14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))
    } else {
        54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))
    };
    let Some(&kind) = frame[..end].get(at..).filter(|message| message.len() >= 8).map(|message| &message[0])
    else {
        return Message::Other;
    };
    match (v4, kind) {
        (true, 8) | (false, 128) => Message::EchoRequest,
        (true, 3 | 11 | 12) | (false, 1..=4) => quoted(&frame[..end], at + 8, v4).unwrap_or(Message::Other),
        _ => Message::Other,
    }
}

/// The packet that is quoted from `at` on. Quotes with extension headers are not made by the hosts here.
fn quoted(frame: &[u8], at: usize, v4: bool) -> Option<Message> {
    let quote = frame.get(at..)?;
    let (protocol, len, addrs) = if v4 {
        let head = quote.get(..20)?;
        let is_later_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0;
        let len = usize::from(head[0] & 15) * 4;
        if head[0] >> 4 != 4 || len < 20 || is_later_fragment {
            return None;
        }
        (head[9], len, [12, 16])
    } else {
        let head = quote.get(..40)?;
        let mut len = 40;
        let mut next = head[6];
        while next == 0 {
            next = *quote.get(len)?;
            len += 8 * (usize::from(*quote.get(len + 1)?) + 1);
        }
        (next, len, [8, 24])
    };
    let protocol = Protocol::from_number(protocol)?;
    let ports = quote.get(len..len + 4)?;
    let addr = |at: usize| -> IpAddr {
        if v4 {
            IpAddr::from(<[u8; 4]>::try_from(&quote[at..at + 4]).unwrap())
        } else {
            IpAddr::from(<[u8; 16]>::try_from(&quote[at..at + 16]).unwrap())
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    let about = Tuple {
        protocol,
        src: SocketAddr::new(addr(addrs[0]), port(0)),
        dst: SocketAddr::new(addr(addrs[1]), port(2)),
    };
    Some(Message::Error { about, l4_at: at + len })
}

impl Model {
    /// Judges what became of a control message.
    pub(super) fn control(&mut self, decided: &Decided<'_>, control: &Control) -> Result<Fate, Difference> {
        match control.kind {
            Message::Other => self.passes(decided, "not_l4"),
            Message::EchoRequest => self.echo(decided, control),
            Message::Error { about, .. } => self.error(decided, control, about),
        }
    }

    fn echo(&mut self, decided: &Decided<'_>, control: &Control) -> Result<Fate, Difference> {
        let mut vips = self.world.services.iter().flat_map(|service| &service.frontends);
        let is_vip = vips.any(|frontend| frontend.addr == control.dst);
        if !self.config.echo_vips || !is_vip || is_own_address(&self.world, control.dst) {
            return self.passes(decided, "not_ours");
        }
        if decided.verdict != Verdict::Reply {
            return Err(format!("was to be answered, got {:?}", decided.verdict));
        }
        self.count(decided.worker, "echoes_answered");
        Ok(Fate::Answered)
    }

    /// An error goes where an answer to the packet that it is about would go, and changes no flow.
    fn error(&mut self, decided: &Decided<'_>, control: &Control, about: Tuple) -> Result<Fate, Difference> {
        if control.dst != about.src.ip() {
            return self.passes(decided, "not_ours");
        }
        if control.ttl <= 1 {
            return self.ends(decided, "drop", "ttl_expired");
        }
        let answer = about.reversed();
        let found = self.flows.find(&answer);
        if found.is_none()
            && (!may_answer_kept(&self.world, &answer) || is_own_address(&self.world, control.dst))
        {
            return self.ends(decided, "drop", "no_flow");
        }
        let (to, before) = match found {
            Some((at, side)) => {
                let flow = &self.flows.0[at];
                let direction = if side == Side::Client { &flow.client } else { &flow.server };
                (flow.translated(side), direction.hop.clone())
            }
            None => (answer, None),
        };
        let sender = if to.src.ip() == answer.src.ip() { control.src } else { to.src.ip() };
        let all = hops(&self.world, to.dst.ip());
        if all.is_empty() {
            return self.ends(decided, "drop", "no_route");
        }
        let may_take = |hop: &RouteHopSpec| match &before {
            Some((old, among)) if all.contains(old) => hop == old || !among.contains(hop),
            _ => true,
        };
        let mut refused = Vec::new();
        for hop in all.iter().filter(|hop| may_take(hop)) {
            match (way(&self.world, hop, to.dst.ip()), decided.verdict) {
                (Way::NeighbourKey(neighbour), _) if held_for(decided) == Some(neighbour) => {
                    return Ok(Fate::Waits(neighbour));
                }
                (Way::Open { mtu, .. }, Verdict::Drop(_)) if control.ip_len > mtu => {
                    return self.ends(decided, "drop", "too_big");
                }
                (Way::Open { egress, ether, mtu }, Verdict::Transmit(by))
                    if egress == by && control.ip_len <= mtu =>
                {
                    let wanted = rewritten(decided.before, control, sender, &to, &ether);
                    match judge(decided.before, decided.after, &wanted, control) {
                        Ok(()) => {
                            let event = if found.is_some() { "icmp_errors_translated" } else { "routed" };
                            self.count(decided.worker, event);
                            return Ok(Fate::Sent(egress));
                        }
                        Err(what) => refused.push(what),
                    }
                }
                (way, _) => refused.push(format!("{way:?}")),
            }
        }
        Err(format!("{:?} of an error is none of the ways: {}", decided.verdict, refused.join("; ")))
    }
}

/// The error as its receiver must see it, checksums aside: about the packet that it sent itself.
fn rewritten(before: &[u8], control: &Control, sender: IpAddr, to: &Tuple, ether: &[u8; 12]) -> Vec<u8> {
    let mut wanted = before.to_vec();
    let v4 = control.src.is_ipv4();
    wanted[..12].copy_from_slice(ether);
    wanted[if v4 { 22 } else { 21 }] -= 1;
    write_pair(&mut wanted, 14, sender, to.dst.ip());
    let Message::Error { l4_at, .. } = control.kind else { return wanted };
    let about = to.reversed();
    write_pair(&mut wanted, control.at + 8, about.src.ip(), about.dst.ip());
    wanted[l4_at..l4_at + 2].copy_from_slice(&about.src.port().to_be_bytes());
    wanted[l4_at + 2..l4_at + 4].copy_from_slice(&about.dst.port().to_be_bytes());
    wanted
}

fn write_pair(frame: &mut [u8], header: usize, src: IpAddr, dst: IpAddr) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame[header + 12..header + 16].copy_from_slice(&src.octets());
            frame[header + 16..header + 20].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame[header + 8..header + 24].copy_from_slice(&src.octets());
            frame[header + 24..header + 40].copy_from_slice(&dst.octets());
        }
        _ => panic!("two families"),
    }
}

/// Compares an error with how it must be, and all of its checksums with how right they were.
fn judge(before: &[u8], after: &[u8], wanted: &[u8], control: &Control) -> Result<(), String> {
    let v4 = control.src.is_ipv4();
    let Message::Error { about, l4_at } = control.kind else { return Err("no error".into()) };
    let end = 14 + usize::from(control.ip_len);
    let mut wanted = wanted.to_vec();
    let message_field = control.at + 2..control.at + 4;
    let mut fields = if v4 { Vec::from([24..26, control.at + 18..control.at + 20]) } else { Vec::new() };
    fields.push(message_field);
    let l4_field = match about.protocol {
        Protocol::Tcp => l4_at + 16..l4_at + 18,
        Protocol::Udp => l4_at + 6..l4_at + 8,
        Protocol::Sctp => l4_at + 8..l4_at + 12,
    };
    let has_l4_field =
        l4_field.end <= end && (about.protocol != Protocol::Sctp || before.get(l4_field.clone()).is_some());
    if has_l4_field {
        fields.push(l4_field.clone());
    }
    for field in fields {
        let bytes = after.get(field.clone()).ok_or("shorter than it was")?;
        wanted[field].copy_from_slice(bytes);
    }
    if wanted != after {
        return Err(format!("the error must be {}", hex(&wanted)));
    }
    if v4 {
        for header in [14..control.at, control.at + 8..l4_at] {
            if sum_of(before, header.clone()) != sum_of(after, header) {
                return Err("a header checksum is not as right as it was".into());
            }
        }
    }
    let message = |frame: &[u8]| {
        let pseudo = if v4 { 0 } else { u32::from(sum(&frame[22..54])) };
        (pseudo + u32::from(sum(&frame[control.at..end]))) % 0xffff
    };
    if message(before) != message(after) {
        return Err("the checksum of the message is not as right as it was".into());
    }
    if !has_l4_field || (about.protocol == Protocol::Udp && before[l4_field] == [0, 0]) {
        return Ok(());
    }
    let quoted = |frame: &[u8]| {
        if about.protocol == Protocol::Sctp {
            let packet = &frame[l4_at..end];
            return u32::from_le_bytes([packet[8], packet[9], packet[10], packet[11]])
                ^ sctp_checksum(packet);
        }
        let addrs = if v4 { control.at + 20..control.at + 28 } else { control.at + 16..control.at + 48 };
        (u32::from(sum(&frame[addrs])) + u32::from(sum(&frame[l4_at..end]))) % 0xffff
    };
    let is_cut =
        about.protocol == Protocol::Sctp && before[control.at + 8..end].len() < quoted_len(before, control);
    if is_cut || quoted(before) == quoted(after) {
        return Ok(());
    }
    Err("the checksum of the quoted packet is not as right as it was".into())
}

/// The length that the header of the quoted packet gives.
fn quoted_len(frame: &[u8], control: &Control) -> usize {
    let header = &frame[control.at + 8..];
    if control.src.is_ipv4() {
        usize::from(u16::from_be_bytes([header[2], header[3]]))
    } else {
        40 + usize::from(u16::from_be_bytes([header[4], header[5]]))
    }
}

fn sum_of(frame: &[u8], range: std::ops::Range<usize>) -> u16 {
    sum(&frame[range]) % 0xffff
}
