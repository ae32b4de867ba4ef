//! Kernel routes under the real binary: several next hops, next hops of the other family, and routes without a next hop.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{FABRIC, Host, ipv6_of};

use crate::support::{Lab, eventually, get_from_here, number, rows};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// An address that several hosts have: which of them is reached is a matter of routes.
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 9);

/// A Service with one backend, at [`ANYWHERE`], and an HTTP server for it in each host of the lab.
fn with_anycast_backend(lab: &Lab) -> Result<()> {
    for host in lab.topology.backends() {
        host.namespace.ip(&format!("addr add {ANYWHERE}/32 dev lo"))?;
        host.namespace.ip(&format!("addr add {}/128 dev lo nodad", ipv6_of(ANYWHERE)))?;
    }
    let service = ServiceSpec::single("web", CLUSTER_IP, L4Protocol::Tcp, 80, 8080).dual_stack();
    lab.gateway.manifests().apply(&service, &[ANYWHERE])?;
    eventually("the Service has its backends", || Ok(lab.active_backends()?.len() == 2))
}

fn targets() -> [SocketAddr; 2] {
    [SocketAddr::from((CLUSTER_IP, 80)), SocketAddr::from((ipv6_of(CLUSTER_IP), 80))]
}

/// Who answers so many connections.
fn answers(lab: &Lab, target: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    let names =
        lab.client().enter(|| (0..count).map(|_| get_from_here(target)).collect::<Result<Vec<_>>>())??;
    let mut spread = BTreeMap::new();
    names.into_iter().for_each(|name| *spread.entry(name).or_default() += 1);
    Ok(spread)
}

/// Waits until the gateway has the Ethernet addresses of these hosts.
fn know(lab: &Lab, hosts: &[Host]) -> Result<()> {
    eventually("the routers are known", || {
        let neighbours = lab.show("neighbours")?;
        let known = |address: String| {
            rows(&neighbours).any(|row| row["address"] == address.as_str() && row["mac"].is_string())
        };
        let both = |host: &Host| known(host.address.to_string()) && known(host.address_v6.to_string());
        Ok(hosts.iter().all(both))
    })
}

#[test]
fn flows_spread_over_several_routers_by_weight_and_leave_one_that_falls_silent() -> Result<()> {
    const CONNECTIONS: usize = 200;
    let lab = Lab::with_backends(2)?;
    let _servers = lab.http_servers(8080)?;
    let [first, second] = lab.topology.backends() else { unreachable!("the lab has two backends") };
    let gateway = lab.topology.gateway();
    let hops = |first: String, second: String| {
        format!("nexthop via {first} dev {FABRIC} weight 3 nexthop via {second} dev {FABRIC} weight 1")
    };
    let v4 = hops(first.address.to_string(), second.address.to_string());
    gateway.ip(&format!("route add 10.250.0.0/16 {v4}"))?;
    let v6 = hops(first.address_v6.to_string(), second.address_v6.to_string());
    gateway.ip(&format!("route add 2001:db8:10:250::/64 {v6}"))?;
    with_anycast_backend(&lab)?;
    know(&lab, lab.topology.backends())?;

    for target in targets() {
        let spread = answers(&lab, target, CONNECTIONS)?;
        let at_first = spread.get(&first.name).copied().unwrap_or(0);
        // Three quarters of 200, give or take five standard deviations.
        assert!((120..=180).contains(&at_first), "{target}: {spread:?}");
        assert_eq!(at_first + spread[&second.name], CONNECTIONS, "{target}");
    }

    // The link of the router goes, but not that of the gateway: only its silence tells.
    second.namespace.ip("link set eth0 down")?;
    for address in [second.address.to_string(), second.address_v6.to_string()] {
        gateway.ip(&format!("neigh replace {address} dev {FABRIC} nud failed"))?;
    }
    eventually("the silent router is left out", || {
        let neighbours = lab.show("neighbours")?;
        let addresses = [second.address.to_string(), second.address_v6.to_string()];
        let silent = |row: &serde_json::Value| addresses.iter().any(|a| row["address"] == a.as_str());
        Ok(rows(&neighbours).filter(|row| silent(row)).all(|row| row["mac"].is_null()))
    })?;
    for target in targets() {
        let spread = answers(&lab, target, 50)?;
        assert_eq!(spread, BTreeMap::from([(first.name.clone(), 50)]), "{target}");
    }
    Ok(())
}

#[test]
fn an_ipv4_backend_is_reached_by_an_ipv6_router() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let _servers = lab.http_servers(8080)?;
    let router = &lab.topology.backends()[0];
    lab.topology
        .gateway()
        .ip(&format!("route add 10.250.0.0/16 via inet6 {} dev {FABRIC}", router.address_v6))?;
    with_anycast_backend(&lab)?;
    let spread = answers(&lab, targets()[0], 20)?;
    assert_eq!(spread, BTreeMap::from([(router.name.clone(), 20)]));
    assert_eq!(lab.drops()?, BTreeMap::new());
    Ok(())
}

#[test]
fn what_the_kernel_calls_unreachable_is_not_sent_by_a_shorter_prefix() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let _servers = lab.http_servers(8080)?;
    let router = &lab.topology.backends()[0];
    let gateway = lab.topology.gateway();
    gateway.ip(&format!("route add default via {}", router.address))?;
    gateway.ip(&format!("route add default via {}", router.address_v6))?;
    with_anycast_backend(&lab)?;
    for target in targets() {
        assert_eq!(answers(&lab, target, 5)?, BTreeMap::from([(router.name.clone(), 5)]), "{target}");
    }
    gateway.ip("route add unreachable 10.250.0.0/16")?;
    gateway.ip("route add blackhole 2001:db8:10:250::/64")?;
    let refused = || -> Result<u64> { Ok(lab.drops()?.get("no_route").copied().unwrap_or(0)) };
    for target in targets() {
        let before = refused()?;
        eventually(&format!("{target} cannot be reached"), || {
            let connect =
                || std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_millis(50));
            lab.client().enter(|| drop(connect()))?;
            Ok(refused()? > before)
        })?;
    }
    let tables = lab.show("tables")?;
    assert_eq!(number(&tables["backends"]), 2, "the Service is served all the same: {tables}");
    Ok(())
}
