//! Addresses, ranges, ports, protocols and times in the spelling of Kubernetes.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::SystemTime;

use flowgate_wire::Protocol;
use ipnet::IpNet;

/// An IP address; octets with leading zeros are decimal (P110), and an IPv4-mapped address is IPv4.
pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    // Rust's parser refuses leading zeros, that of Kubernetes (`ParseIPSloppy`) reads them as decimal.
    let octets: Option<Vec<u8>> = text.split('.').map(octet).collect();
    if let Some(Ok(octets)) = octets.map(<[u8; 4]>::try_from) {
        return Ok(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let parsed: Option<IpAddr> = text.parse().ok();
    parsed.map(|ip| ip.to_canonical()).ok_or_else(|| format!("{text:?} is not an IP address"))
}

/// A unicast address that is not bound to a link or a host.
pub(super) fn unicast_ip(text: &str) -> Result<IpAddr, String> {
    let ip = ip(text)?;
    let what = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_loopback() => "a loopback address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return Ok(ip),
    };
    Err(format!("{ip} is {what}"))
}

/// An address range; surrounding blanks and leading zeros are ignored, host bits are cleared (P110).
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let refuse = || format!("{text:?} is not an address range such as 10.0.0.0/8");
    let (address, length) = text.trim().split_once('/').ok_or_else(refuse)?;
    let length: u8 = if length.starts_with('+') { None } else { length.parse().ok() }.ok_or_else(refuse)?;
    let net = ip(address).ok().and_then(|ip| IpNet::new(ip, length).ok()).ok_or_else(refuse)?;
    Ok(net.trunc())
}

/// A port number from 1 to 65535.
pub(super) fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{number} is not a port: use 1 to 65535")),
    }
}

/// A protocol name, in capitals; unset means TCP.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    let name = name.unwrap_or("TCP");
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_address_that_reaches_nobody_is_refused() {
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255", "::1", "fe80::1"]
        {
            assert!(unicast_ip(text).is_err(), "{text}");
        }
        assert!(unicast_ip("10.0.0.1").is_ok() && unicast_ip("fd00::1").is_ok());
    }

    #[test]
    fn ports_and_protocols_are_those_of_kubernetes() {
        assert_eq!(port(65_535), Ok(65_535));
        assert!(port(0).is_err() && port(-1).is_err() && port(65_536).is_err());
        assert_eq!(protocol(None), Ok(Protocol::Tcp));
        assert_eq!(protocol(Some("udp")), Err("unknown protocol \"udp\": write UDP".into()));
        assert_eq!(protocol(Some("QUIC")), Err("unknown protocol \"QUIC\": use TCP, UDP or SCTP".into()));
    }
}
