//! The decisions of the XDP program in plain Rust, written from the RFCs: the oracle of the property test. Shares no code with
//! the program.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use flowgate_xsk::steering::{StationKey, SteeringSet, VipKey, VlanKey};

/// Decisions on first fragments.
pub type Fragments = HashMap<(IpAddr, IpAddr, u32, u8), bool>;

/// A reason to pass, by its name.
type Passed = &'static str;

const MALFORMED: Passed = "pass_malformed";
const TRUNCATED: Passed = "pass_truncated";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    First,
    Later,
    Error,
    Echo,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    kind: Kind,
    to: IpAddr,
    from: IpAddr,
    protocol: u8,
    to_port: u16,
    from_port: u16,
    /// Of a fragment: its id, and the protocol if that is part of a datagram's key.
    id: u32,
    id_protocol: u8,
}

/// The reason under which the program counts a frame, while a socket is there.
pub fn decide(set: &SteeringSet, ifindex: u32, fragments: &mut Fragments, frame: &[u8]) -> &'static str {
    let mut envelope = Envelope::default();
    let for_us = |envelope: &Envelope| is_for_us(set, ifindex, frame, envelope.vlan);
    let reason = match parse(set, ifindex, frame, &mut envelope) {
        Err(reason) => reason,
        Ok(_) if !for_us(&envelope) => return "pass_other_host",
        Ok(packet) => steer(set, fragments, &packet),
    };
    // The same for every protocol, and whatever is wrong behind the IP header.
    let may_be_ours = ["pass_not_l4", "pass_fragment", "pass_malformed", "pass_not_ours", "pass_extensions"]
        .contains(&reason);
    match envelope.to {
        Some(to) if may_be_ours && for_us(&envelope) && is_unserved(set, to) => "redirect_unserved",
        _ => reason,
    }
}

/// What is known of a frame whatever it holds.
#[derive(Default)]
struct Envelope {
    vlan: u16,
    /// The destination, unless only the kernel may have the packet.
    to: Option<IpAddr>,
}

/// Whether the frame is sent to the Ethernet address of this interface, or of the VLAN; to any that is no group's while that
/// is not known.
fn is_for_us(set: &SteeringSet, ifindex: u32, frame: &[u8], vlan: u16) -> bool {
    let Some(&address) = frame.first_chunk::<6>() else { return false };
    let has = |vlan| set.stations.contains(&StationKey { ifindex, vlan, address });
    let is_known = set.stations.iter().any(|station| station.ifindex == ifindex && station.vlan == 0);
    address[0] & 1 == 0 && (!is_known || has(0) || has(vlan))
}

fn is_unserved(set: &SteeringSet, to: IpAddr) -> bool {
    let in_range = || set.service_cidrs.iter().any(|range| covers(*range, to));
    !set.own_addresses.contains(&to) && (set.cluster_ips.contains(&to) || in_range())
}

fn steer(set: &SteeringSet, fragments: &mut Fragments, packet: &Packet) -> &'static str {
    let own = set.own_addresses.contains(&packet.to);
    let to_vip = set.vips.iter().any(|vip| vip.addr == packet.to);
    let key = (packet.to, packet.from, packet.id, packet.id_protocol);
    match packet.kind {
        Kind::Whole => by_ports(set, packet),
        Kind::Echo => echo(set, packet.to),
        Kind::Error => match by_ports(set, packet) {
            "pass_not_ours" => "pass_not_ours",
            _ => "redirect_icmp_error",
        },
        Kind::First => {
            let reason = if is_icmp(packet.protocol) { echo(set, packet.to) } else { by_ports(set, packet) };
            let ours = reason != "pass_not_ours";
            if ours || to_vip || fragments.contains_key(&key) {
                fragments.insert(key, ours);
            }
            reason
        }
        Kind::Later => {
            let of_echo = is_icmp(packet.protocol) && set.echo_addresses.contains(&packet.to);
            let default = has_ports(packet.protocol) && to_vip && !own || of_echo;
            if *fragments.get(&key).unwrap_or(&default) { "redirect_fragment" } else { "pass_fragment" }
        }
    }
}

fn echo(set: &SteeringSet, to: IpAddr) -> &'static str {
    if set.echo_addresses.contains(&to) { "redirect_echo" } else { "pass_not_ours" }
}

fn is_icmp(protocol: u8) -> bool {
    [1, 58].contains(&protocol)
}

fn by_ports(set: &SteeringSet, packet: &Packet) -> &'static str {
    let &Packet { to, from, protocol, to_port, from_port, .. } = packet;
    let own = set.own_addresses.contains(&to);
    let nodeports = match protocol {
        6 => &set.nodeports_tcp,
        17 => &set.nodeports_udp,
        _ => &set.nodeports_sctp,
    };
    if set.vips.contains(&VipKey { addr: to, port: to_port, protocol }) {
        "redirect_vip"
    } else if nodeports.contains(to_port) && set.node_addresses.contains(&to) {
        "redirect_nodeport"
    } else if set.snat_ports.contains(to_port) && set.snat_addresses.contains(&to) {
        "redirect_snat_reply"
    } else if set.reply_sources.contains(&VipKey { addr: from, port: from_port, protocol }) && !own {
        "redirect_kept_reply"
    } else if is_unserved(set, to) {
        "redirect_unserved"
    } else {
        "pass_not_ours"
    }
}

fn covers((base, bits): (IpAddr, u8), address: IpAddr) -> bool {
    match (base, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits),
        _ => false,
    }
}

fn has_ports(protocol: u8) -> bool {
    [6, 17, 132].contains(&protocol)
}

fn parse(set: &SteeringSet, ifindex: u32, frame: &[u8], envelope: &mut Envelope) -> Result<Packet, Passed> {
    let tag = [0x8100, 0x88a8];
    let mut ethertype = be16(frame, 12)?;
    let mut l3 = &frame[14..];
    if tag.contains(&ethertype) {
        let (mut id, mut inner) = (be16(l3, 0)? & 0xfff, be16(l3, 2)?);
        // A priority tag, and behind it another one.
        if id == 0 && tag.contains(&inner) {
            (ethertype, l3) = (inner, &l3[4..]);
            (id, inner) = (be16(l3, 0)? & 0xfff, be16(l3, 2)?);
        }
        let is_served = id == 0 || set.vlans.contains(&VlanKey { ifindex, ethertype, id });
        if tag.contains(&inner) || !is_served {
            return Err("pass_vlan");
        }
        envelope.vlan = id;
        (ethertype, l3) = (inner, &l3[4..]);
    }
    match ethertype {
        0x0800 => parse_v4(l3, envelope),
        0x86dd => parse_v6(l3, envelope),
        _ => Err("pass_not_ip"),
    }
}

fn parse_v4(l3: &[u8], envelope: &mut Envelope) -> Result<Packet, Passed> {
    let (version, header_len) = (byte(l3, 0)? >> 4, usize::from(byte(l3, 0)? & 15) * 4);
    at_least(l3, 20)?;
    let total_len = usize::from(be16(l3, 2)?);
    if version != 4 || header_len < 20 || total_len < header_len {
        return Err(MALFORMED);
    }
    if total_len > l3.len() {
        return Err(TRUNCATED);
    }
    let l4 = &l3[header_len..total_len];
    let (fragment, protocol) = (be16(l3, 6)?, l3[9]);
    let packet = Packet {
        kind: Kind::Whole,
        to: v4(&l3[16..20]),
        from: v4(&l3[12..16]),
        protocol,
        to_port: 0,
        from_port: 0,
        id: u32::from(be16(l3, 4)?),
        id_protocol: protocol,
    };
    envelope.to = Some(packet.to);
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    if offset > 0 {
        Ok(Packet { kind: Kind::Later, ..packet })
    } else if more {
        let first = Packet { kind: Kind::First, ..packet };
        if has_ports(protocol) { with_ports(first, l4) } else { first_of_echo(first, l4, (1, 8)) }
    } else if protocol == 1 {
        parse_icmp(packet, l4, &[3, 11, 12], 8, embedded_v4)
    } else {
        with_ports(packet, l4)
    }
}

fn parse_v6(l3: &[u8], envelope: &mut Envelope) -> Result<Packet, Passed> {
    at_least(l3, 40)?;
    let end = 40 + usize::from(be16(l3, 4)?);
    if l3[0] >> 4 != 6 {
        return Err(MALFORMED);
    }
    if end > l3.len() {
        return Err(TRUNCATED);
    }
    let packet = Packet {
        kind: Kind::Whole,
        to: v6(&l3[24..40])?,
        // The maps have IPv4 addresses as v4-mapped ones.
        from: IpAddr::V6(Ipv6Addr::from(*l3[8..].first_chunk().expect("16 bytes"))).to_canonical(),
        protocol: l3[6],
        to_port: 0,
        from_port: 0,
        id: 0,
        id_protocol: 0,
    };
    envelope.to = Some(packet.to);
    let (packet, rest) = extensions(packet, &l3[40..end])?;
    // Neighbour discovery and multicast listeners, from the link.
    if (packet.kind, packet.protocol) == (Kind::Whole, 58) && rest.len() >= 8 {
        let hops = match rest[0] {
            133..=137 => Some(255),
            130..=132 | 143 => Some(1),
            _ => None,
        };
        envelope.to = envelope.to.filter(|_| hops != Some(l3[7]));
    }
    match (packet.kind, packet.protocol) {
        (Kind::Later, _) => Ok(packet),
        (Kind::Whole, 58) => parse_icmp(packet, rest, &[1, 2, 3, 4], 128, embedded_v6),
        (Kind::First, other) if !has_ports(other) => first_of_echo(packet, rest, (58, 128)),
        _ => with_ports(packet, rest),
    }
}

/// Follows at most six extension headers; afterwards `protocol` is the upper layer's.
fn extensions(mut packet: Packet, mut rest: &[u8]) -> Result<(Packet, &[u8]), Passed> {
    for count in 0.. {
        let kind = packet.protocol;
        if ![0, 43, 44, 60].contains(&kind) {
            break;
        }
        if count == 6 || (count > 0 && kind == 0) {
            return Err("pass_extensions");
        }
        at_least(rest, 8)?;
        packet.protocol = rest[0];
        let mut len = 8;
        if kind == 44 {
            packet.id = u32::from(be16(rest, 4)?) << 16 | u32::from(be16(rest, 6)?);
            if be16(rest, 2)? >> 3 > 0 {
                return Ok((Packet { kind: Kind::Later, ..packet }, rest));
            }
            if rest[3] & 1 == 1 {
                packet.kind = Kind::First;
            }
        } else {
            len += usize::from(rest[1]) * 8;
            at_least(rest, len)?;
            if kind == 43 && rest[3] > 0 {
                return Err("pass_extensions");
            }
        }
        rest = &rest[len..];
    }
    Ok((packet, rest))
}

fn with_ports(packet: Packet, l4: &[u8]) -> Result<Packet, Passed> {
    let len = match packet.protocol {
        6 => 20,
        17 => 8,
        132 => 12,
        _ => return Err("pass_not_l4"),
    };
    at_least(l4, len)?;
    Ok(Packet { from_port: be16(l4, 0)?, to_port: be16(l4, 2)?, ..packet })
}

/// The first fragment of a message: whether it is an echo request.
fn first_of_echo(packet: Packet, message: &[u8], (protocol, kind): (u8, u8)) -> Result<Packet, Passed> {
    let is_echo = packet.protocol == protocol && message.len() >= 8 && message[0] == kind;
    if is_echo { Ok(packet) } else { Err("pass_fragment") }
}

fn parse_icmp(
    packet: Packet,
    message: &[u8],
    errors: &[u8],
    echo: u8,
    embedded: fn(Packet, &[u8]) -> Result<Packet, Passed>,
) -> Result<Packet, Passed> {
    at_least(message, 8)?;
    match message[0] {
        kind if kind == echo => Ok(Packet { kind: Kind::Echo, ..packet }),
        kind if errors.contains(&kind) => embedded(packet, &message[8..]),
        _ => Err("pass_not_l4"),
    }
}

fn embedded_v4(outer: Packet, inner: &[u8]) -> Result<Packet, Passed> {
    at_least(inner, 20)?;
    let header_len = usize::from(inner[0] & 15) * 4;
    if inner[0] >> 4 != 4 || header_len < 20 {
        return Err(MALFORMED);
    }
    at_least(inner, header_len)?;
    if be16(inner, 6)? & 0x1fff > 0 {
        return Err("pass_fragment");
    }
    if v4(&inner[12..16]) != outer.to {
        return Err("pass_not_ours");
    }
    let packet = Packet { from: v4(&inner[16..20]), protocol: inner[9], ..outer };
    answers_of(packet, &inner[header_len..])
}

fn embedded_v6(outer: Packet, inner: &[u8]) -> Result<Packet, Passed> {
    at_least(inner, 40)?;
    if inner[0] >> 4 != 6 {
        return Err(MALFORMED);
    }
    if v6(&inner[8..24])? != outer.to {
        return Err("pass_not_ours");
    }
    let packet = Packet { from: v6(&inner[24..40])?, protocol: inner[6], ..outer };
    let (packet, rest) = extensions(packet, &inner[40..])?;
    if packet.kind == Kind::Later {
        return Err("pass_fragment");
    }
    answers_of(packet, rest)
}

fn answers_of(packet: Packet, l4: &[u8]) -> Result<Packet, Passed> {
    if !has_ports(packet.protocol) {
        return Err("pass_not_l4");
    }
    at_least(l4, 4)?;
    Ok(Packet { kind: Kind::Error, to_port: be16(l4, 0)?, from_port: be16(l4, 2)?, ..packet })
}

fn at_least(bytes: &[u8], len: usize) -> Result<(), Passed> {
    if bytes.len() < len { Err(MALFORMED) } else { Ok(()) }
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Passed> {
    bytes.get(at).copied().ok_or(MALFORMED)
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Passed> {
    Ok(u16::from_be_bytes([byte(bytes, at)?, byte(bytes, at + 1)?]))
}

fn v4(bytes: &[u8]) -> IpAddr {
    IpAddr::from(<[u8; 4]>::try_from(bytes).expect("four bytes"))
}

/// v4-mapped addresses do not appear in packets.
fn v6(bytes: &[u8]) -> Result<IpAddr, Passed> {
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("16 bytes"));
    if address.to_ipv4_mapped().is_some() { Err("pass_not_ours") } else { Ok(address.into()) }
}
