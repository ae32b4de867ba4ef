//! The node's own addresses that serve NodePorts. Never an address that the node does not have.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{NodeAddresses, Settings};
use crate::model::{Desired, NetState};

/// The addresses that serve NodePorts, ascending.
pub(super) fn node_addresses(desired: &Desired, net: &NetState, settings: &Settings) -> Vec<IpAddr> {
    let own: Vec<IpAddr> = match settings.node_addresses {
        NodeAddresses::Interfaces => {
            net.interfaces.iter().flat_map(|interface| interface.addresses.iter().copied()).collect()
        }
        NodeAddresses::NodeObject => {
            desired.node(&settings.node_name).map(|node| node.addresses.clone()).unwrap_or_default()
        }
    };
    // A link-local address is not unique: a NodePort on it would mean another node elsewhere.
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut addresses: Vec<IpAddr> =
        own.into_iter().filter(usable).filter(|ip| selected(&settings.nodeport_addresses, *ip)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// P306: a list without a range of the address's family selects all of that family.
fn selected(ranges: &[IpNet], ip: IpAddr) -> bool {
    let mut of_family = ranges.iter().filter(|net| net.addr().is_ipv4() == ip.is_ipv4()).peekable();
    of_family.peek().is_none() || of_family.any(|net| net.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_the_other_family_select_everything() {
        // P306
        let v6: Vec<IpNet> = vec!["fd00::/8".parse().unwrap()];
        let v4: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let ip = |text: &str| text.parse().unwrap();
        assert!(selected(&v6, ip("192.0.2.1")) && selected(&v6, ip("fd00::1")));
        assert!(!selected(&v6, ip("2001:db8::1")) && !selected(&v4, ip("192.0.2.1")));
        assert!(selected(&[], ip("192.0.2.1")) && selected(&v4, ip("10.9.9.9")));
    }
}
