//! The decisions of the XDP program in plain Rust, written from the RFCs: the oracle of the property test. Shares no code with
//! the program.

use std::collections::HashMap;
use std::net::IpAddr;

use flowgate_xsk::steering::{SteeringSet, VipKey, VlanKey};

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
    match parse(set, ifindex, frame) {
        Err(reason) => reason,
        Ok(packet) => steer(set, fragments, &packet),
    }
}

fn steer(set: &SteeringSet, fragments: &mut Fragments, packet: &Packet) -> &'static str {
    let own = set.own_addresses.contains(&packet.to);
    let to_vip = set.vips.iter().any(|vip| vip.addr == packet.to);
    let key = (packet.to, packet.from, packet.id, packet.id_protocol);
    match packet.kind {
        Kind::Whole => by_ports(set, packet),
        Kind::Echo if set.echo_addresses.contains(&packet.to) => "redirect_echo",
        Kind::Echo => "pass_not_ours",
        Kind::Error => match by_ports(set, packet) {
            "pass_not_ours" => "pass_not_ours",
            _ => "redirect_icmp_error",
        },
        Kind::First => {
            let reason = by_ports(set, packet);
            let ours = reason != "pass_not_ours";
            if ours || to_vip || fragments.contains_key(&key) {
                fragments.insert(key, ours);
            }
            reason
        }
        Kind::Later => {
            let default = has_ports(packet.protocol) && to_vip && !own;
            if *fragments.get(&key).unwrap_or(&default) { "redirect_fragment" } else { "pass_fragment" }
        }
    }
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
    } else if !own
        && (set.cluster_ips.contains(&to) || set.service_cidrs.iter().any(|range| covers(*range, to)))
    {
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

fn parse(set: &SteeringSet, ifindex: u32, frame: &[u8]) -> Result<Packet, Passed> {
    let tag = [0x8100, 0x88a8];
    let mut ethertype = be16(frame, 12)?;
    let mut l3 = &frame[14..];
    if tag.contains(&ethertype) {
        let (id, inner) = (be16(l3, 0)? & 0xfff, be16(l3, 2)?);
        if tag.contains(&inner) || !set.vlans.contains(&VlanKey { ifindex, ethertype, id }) {
            return Err("pass_vlan");
        }
        (ethertype, l3) = (inner, &l3[4..]);
    }
    match ethertype {
        0x0800 => parse_v4(l3),
        0x86dd => parse_v6(l3),
        _ => Err("pass_not_ip"),
    }
}

fn parse_v4(l3: &[u8]) -> Result<Packet, Passed> {
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
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    if offset > 0 {
        Ok(Packet { kind: Kind::Later, ..packet })
    } else if more {
        if has_ports(protocol) {
            with_ports(Packet { kind: Kind::First, ..packet }, l4)
        } else {
            Err("pass_fragment")
        }
    } else if protocol == 1 {
        parse_icmp(packet, l4, &[3, 11, 12], 8, embedded_v4)
    } else {
        with_ports(packet, l4)
    }
}

fn parse_v6(l3: &[u8]) -> Result<Packet, Passed> {
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
        from: v6(&l3[8..24])?,
        protocol: l3[6],
        to_port: 0,
        from_port: 0,
        id: 0,
        id_protocol: 0,
    };
    let (packet, rest) = extensions(packet, &l3[40..end])?;
    match (packet.kind, packet.protocol) {
        (Kind::Later, _) => Ok(packet),
        (Kind::Whole, 58) => parse_icmp(packet, rest, &[1, 2, 3, 4], 128, embedded_v6),
        (Kind::First, other) if !has_ports(other) => Err("pass_fragment"),
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
    let address = std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("16 bytes"));
    if address.to_ipv4_mapped().is_some() { Err("pass_not_ours") } else { Ok(address.into()) }
}
