//! The section `[snat]`: the sources of translated flows.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer};

use super::value::{first_repeated, parse_with};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Snat {
    /// A family without any: the primary address of each interface.
    #[serde(deserialize_with = "addresses")]
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(deserialize_with = "ports")]
    pub(crate) ports: RangeInclusive<u16>,
}

impl Default for Snat {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: DEFAULT_PORTS }
    }
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    parse_with(deserializer, |addresses: Vec<IpAddr>| {
        if let Some(addr) = addresses.iter().find(|addr| !is_source(addr)) {
            return Err(format!("`{addr}` is no address that packets can come from and be answered to"));
        }
        match first_repeated(&addresses) {
            Some(twice) => Err(format!("`{twice}` is listed twice")),
            None => Ok(addresses),
        }
    })
}

/// Whether packets can have the address as their source and be answered beyond the link.
const fn is_source(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    }
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RangeInclusive<u16>, D::Error> {
    parse_with(deserializer, |text: String| port_range(&text))
}

/// A range such as `49152-65535`.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let shape = || format!("`{text}` is not a range of ports such as \"49152-65535\"");
    let (lower, upper) = text.split_once('-').ok_or_else(shape)?;
    let number = |part: &str| part.trim().parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(shape);
    let (lower, upper) = (number(lower)?, number(upper)?);
    if lower > upper { Err(format!("{lower} is above {upper}")) } else { Ok(lower..=upper) }
}

/// The dynamic ports (RFC 6335 section 6), on which nobody registers a server. They leave the kernel the lower 16,384 of its
/// 28,232 ephemeral ports, and lie above the NodePorts.
pub(crate) const DEFAULT_PORTS: RangeInclusive<u16> = 49_152..=65_535;
