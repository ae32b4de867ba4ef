//! An active-backup bond as uplink: Flowgate serves its ports, and follows the kernel to the one that sends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{
    GATEWAY_UPLINK, HOST_INTERFACE, SERVICE_RANGE, Topology, TopologyOptions, UPLINK, ipv6_of,
};
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions, StreamRun};

use super::talk::PATIENCE;
use super::{CLUSTER_IP, EchoServers, SERVER_PORT};
use crate::support::{FLOWGATE, Lab, eventually};

const PORTS: [&str; 2] = ["port0", "port1"];

/// The lab, its uplink a bond of two ports that lead to a bridge, which has the client's addresses.
fn lab_with_bond() -> Result<Lab> {
    let topology = Topology::build(TopologyOptions { backends: 2, ..TopologyOptions::default() })?;
    let (gateway, client) = (topology.gateway(), topology.client());
    gateway.ip(&format!("link del {UPLINK}"))?;
    gateway.ip(&format!("link add {UPLINK} type bond mode active-backup miimon 50"))?;
    // Without an address of its own a bridge has that of a port, and changes it with them.
    client.namespace.ip(&format!("link add {HOST_INTERFACE} address 02:f0:c0:00:02:0a type bridge"))?;
    for port in PORTS {
        let far_end = client.namespace.path();
        gateway.ip(&format!("link add {port} type veth peer name {port} netns {}", far_end.display()))?;
        gateway.ip(&format!("link set {port} master {UPLINK}"))?;
        client.namespace.ip(&format!("link set {port} master {HOST_INTERFACE} up"))?;
    }
    let ends = [(gateway, UPLINK, GATEWAY_UPLINK), (&client.namespace, HOST_INTERFACE, client.address)];
    for (namespace, interface, address) in ends {
        namespace.ip(&format!("link set {interface} up"))?;
        namespace.ip(&format!("addr add {address}/24 dev {interface}"))?;
        namespace.ip(&format!("addr add {}/64 dev {interface} nodad", ipv6_of(address)))?;
    }
    client.route(SERVICE_RANGE, GATEWAY_UPLINK)?;
    let gateway = Gateway::start(gateway, GatewayOptions::new(FLOWGATE))?;
    Ok(Lab { gateway, topology })
}

/// Connections that say and hear without a pause.
fn load(lab: &Lab, target: SocketAddr) -> Result<StreamRun> {
    let exchange = Exchange::Echo { len: 20_000, greeting: Greeting::None };
    let options = StreamOptions {
        pause: Duration::from_millis(20),
        connect_timeout: PATIENCE,
        exchange_timeout: PATIENCE,
        ..StreamOptions::new(target, 3, Duration::from_secs(600), exchange)
    };
    Ok(stream::start(lab.client(), options)?)
}

/// Waits until more exchanges are done on each of these.
fn all_go_on(what: &str, loads: &[StreamRun]) -> Result<()> {
    let before: Vec<_> = loads.iter().map(|load| load.snapshot().exchanges).collect();
    eventually(what, || {
        Ok(loads.iter().zip(&before).all(|(load, before)| load.snapshot().exchanges > before + 6))
    })
}

/// The port that the kernel sends by.
fn active_port(lab: &Lab) -> Result<String> {
    let bond = lab.topology.gateway().ip(&format!("-d link show dev {UPLINK}"))?;
    let mut words = bond.split_ascii_whitespace().skip_while(|word| *word != "active_slave");
    Ok(words.nth(1).unwrap_or_default().to_owned())
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn connections_through_a_bond_go_on_when_its_active_port_fails_leaves_and_comes_back() -> Result<()> {
    let lab = lab_with_bond()?;
    let _servers = EchoServers::start(&lab.topology)?;
    let service = ServiceSpec::single("tcp", CLUSTER_IP.into(), L4Protocol::Tcp, 80, SERVER_PORT);
    lab.gateway.manifests().apply(&service.dual_stack(), &lab.addresses())?;
    eventually("the backends are known", || Ok(lab.active_backends()?.len() == 4))?;
    let loads = [load(&lab, (CLUSTER_IP, 80).into())?, load(&lab, (ipv6_of(CLUSTER_IP.into()), 80).into())?];
    all_go_on("the connections run", &loads)?;

    // The far end of the active port fails, twice: to the other port, and back.
    for _ in PORTS {
        let failing = active_port(&lab)?;
        assert!(PORTS.contains(&failing.as_str()), "{failing:?}");
        lab.client().ip(&format!("link set {failing} down"))?;
        eventually("the other port takes over", || Ok(active_port(&lab)? != failing))?;
        all_go_on("the connections run by the other port", &loads)?;
        lab.client().ip(&format!("link set {failing} up"))?;
        all_go_on("the connections run while the failed port comes back", &loads)?;
    }
    // It is taken out of the bond, and put in again.
    for _ in PORTS {
        let leaving = active_port(&lab)?;
        lab.topology.gateway().ip(&format!("link set {leaving} nomaster"))?;
        eventually("the other port takes over", || Ok(active_port(&lab)? != leaving))?;
        all_go_on("the connections run without the port", &loads)?;
        lab.topology.gateway().ip(&format!("link set {leaving} master {UPLINK}"))?;
        all_go_on("the connections run while the port comes back", &loads)?;
    }
    for load in loads {
        let report = load.finish()?;
        assert_eq!((report.failures(), report.connects), (0, 3), "none was lost or made anew: {report:?}");
    }
    Ok(())
}
