//! Addresses, ranges, ports, protocols and times in the spelling of Kubernetes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::SystemTime;

use flowgate_wire::Protocol;
use ipnet::{IpNet, Ipv4Net};

use crate::model::unreachable_kind;

/// An IP address as `ParseIPSloppy` of Kubernetes reads it: octets and groups may have leading zeros and octets are
/// decimal (P110); an IPv4-mapped address is IPv4. The API server refuses such spellings of new objects; those that it
/// stored before stay.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    let parsed = if text.contains(':') { ipv6(text).map(IpAddr::V6) } else { ipv4(text).map(IpAddr::V4) };
    parsed.map(|ip| ip.to_canonical()).ok_or_else(|| format!("{text:?} is not an IP address"))
}

/// An address that clients can aim at. Link-local ones are served as kube-proxy serves them; what never arrives by a
/// wire is not.
pub(super) fn frontend_ip(text: &str) -> Result<IpAddr, String> {
    let ip = ip(text)?;
    match unreachable_kind(ip) {
        Some(kind) => Err(format!("{ip} is {kind}")),
        None => Ok(ip),
    }
}

/// The address of an endpoint. Link-local ones are refused as the API server refuses them: they are bound to a link,
/// which an object cannot name.
pub(super) fn endpoint_ip(text: &str) -> Result<IpAddr, String> {
    let ip = frontend_ip(text)?;
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if is_link_local { Err(format!("{ip} is a link-local address")) } else { Ok(ip) }
}

/// An address range; surrounding blanks and leading zeros are ignored, host bits are cleared (P110). A range of
/// IPv4-mapped addresses is one of IPv4.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let refuse = || format!("{text:?} is not an address range such as 10.0.0.0/8");
    let (address, length) = text.trim().split_once('/').ok_or_else(refuse)?;
    let is_number = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| is_number).ok_or_else(refuse)?;
    let net = if address.contains(':') {
        ipv6(address).and_then(|ip| match (ip.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(v4), Some(length)) => Ipv4Net::new(v4, length).ok().map(IpNet::V4),
            _ => IpNet::new(IpAddr::V6(ip), length).ok(),
        })
    } else {
        ipv4(address).and_then(|ip| IpNet::new(IpAddr::V4(ip), length).ok())
    };
    net.map(|net| net.trunc()).ok_or_else(refuse)
}

/// Four decimal octets. Rust's parser refuses leading zeros.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let octets: Option<Vec<u8>> = text.split('.').map(octet).collect();
    octets.and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(Ipv4Addr::from)
}

/// Groups of hexadecimal digits, the last two of which may be an IPv4 address.
fn ipv6(text: &str) -> Option<Ipv6Addr> {
    // The longest spelling that any group can have without leading zeros; a longer text is not worth a copy.
    if text.len() > ADDRESS_LEN_MAX {
        return None;
    }
    let group = |group: &str| -> Option<String> {
        if group.contains('.') {
            return ipv4(group).map(|v4| v4.to_string());
        }
        let significant = group.trim_start_matches('0');
        Some(if significant.is_empty() && !group.is_empty() { "0" } else { significant }.to_owned())
    };
    let groups: Option<Vec<String>> = text.split(':').map(group).collect();
    groups?.join(":").parse().ok()
}

/// A port number from 1 to 65535.
pub(super) fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port: use 1 to 65535")),
    }
}

/// The name of a port, of the characters that Kubernetes allows; it may be empty.
pub(super) fn port_name(name: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.len() <= PORT_NAME_LEN_MAX && name.bytes().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(format!("{name:?} is not a port name: use at most 63 of a-z, 0-9 and '-'"))
    }
}

/// A protocol name, in capitals; unset or empty means TCP.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    let name = name.filter(|name| !name.is_empty()).unwrap_or("TCP");
    let protocol = Protocol::from_str(name).map_err(|error| error.to_string())?;
    if protocol.name() == name {
        Ok(protocol)
    } else {
        Err(format!("unknown protocol {name:?}: write {protocol}"))
    }
}

/// A time in RFC 3339; `None` if it is in another form.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    text.trim().parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

fn octet(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return None;
    }
    match text.trim_start_matches('0') {
        "" => Some(0),
        significant => significant.parse().ok(),
    }
}

/// Of a DNS label (RFC 1035, 2.3.4).
const PORT_NAME_LEN_MAX: usize = 63;
/// Eight groups with some leading zeros each.
const ADDRESS_LEN_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p110_what_older_api_servers_stored_is_read() {
        let v6 = |text: &str| ip(text).map(|ip| ip.to_string());
        assert_eq!(v6("::ffff:010.0.0.1"), Ok("10.0.0.1".into()));
        assert_eq!(v6("fd00:0000:000000:0:0:0:0:00001"), Ok("fd00::1".into()));
        assert_eq!(v6("64:ff9b::192.0.2.1"), Ok("64:ff9b::c000:201".into()));
        for text in
            ["fd00::1%eth0", ":::", "1:2", "::1.2.3", "fd00::10000", "1.2.3.4:5", "[fd00::1]", " fd00::1"]
        {
            assert!(ip(text).is_err(), "{text}");
        }
        let net = |text: &str| cidr(text).map(|net| net.to_string());
        assert_eq!(net("::ffff:10.0.0.0/104"), Ok("10.0.0.0/8".into()));
        assert_eq!(net("::ffff:10.0.0.0/64"), Ok("::/64".into()));
        assert_eq!(net("10.0.0.0/008"), Ok("10.0.0.0/8".into()));
    }

    #[test]
    fn p110_leading_zeros_are_decimal() {
        assert_eq!(ip("172.30.0.041"), Ok(IpAddr::from([172, 30, 0, 41])));
        assert_eq!(ip("010.000.0.1"), Ok(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(ip("::ffff:10.0.0.1"), Ok(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(cidr(" 010.1.2.3/8 ").map(|net| net.to_string()), Ok("10.0.0.0/8".into()));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "10.0.0", "10.0.0.256", "10.0.0.1.2", "a.b.c.d", "+1.0.0.1", "10.0.0.1/8", "1..2.3"]
        {
            assert_eq!(ip(text), Err(format!("{text:?} is not an IP address")));
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "/8", "10.0.0.0/+8"] {
            assert!(cidr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_that_reaches_nobody_is_refused_and_a_link_local_one_is_no_endpoint() {
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "ff0e::1"] {
            assert!(frontend_ip(text).is_err() && endpoint_ip(text).is_err(), "{text}");
        }
        for text in ["169.254.1.1", "fe80::1"] {
            assert!(frontend_ip(text).is_ok() && endpoint_ip(text).is_err(), "{text}");
        }
        assert!(endpoint_ip("10.0.0.1").is_ok() && endpoint_ip("fd00::1").is_ok());
    }

    #[test]
    fn ports_and_protocols_are_those_of_kubernetes() {
        assert_eq!(port(65_535), Ok(65_535));
        assert!(port(0).is_err() && port(-1).is_err() && port(65_536).is_err());
        assert_eq!(protocol(None), Ok(Protocol::Tcp));
        assert_eq!(protocol(Some("")), Ok(Protocol::Tcp));
        assert_eq!(protocol(Some("udp")), Err("unknown protocol \"udp\": write UDP".into()));
        assert_eq!(protocol(Some("QUIC")), Err("unknown protocol \"QUIC\": use TCP, UDP or SCTP".into()));
    }
}
