//! A client behind a VLAN interface (IEEE 802.1Q) of the gateway's uplink, which is served without being named.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{HOST_INTERFACE, SERVICE_RANGE, UPLINK, ipv6_of};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::udp::{self, UdpOptions};

use super::talk::{TCP, Talk};
use super::{CLUSTER_IP, EchoServers, NODE_PORT, SERVER_PORT, run};
use crate::support::{LIMIT, Lab, eventually, rows, text};

const VLAN_ID: u16 = 100;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const UDP_CLUSTER_IP: [u8; 4] = [10, 96, 0, 11];

struct Served {
    lab: Lab,
    _servers: EchoServers,
}

impl Served {
    /// The gateway runs before there is a VLAN.
    fn start() -> Result<Self> {
        let lab = Lab::with_backends(2)?;
        assert!(offloads(&lab)?.contains("rx-vlan-offload: on"), "without VLANs the device is left alone");
        let servers = EchoServers::start(&lab.topology)?;
        let tcp = ServiceSpec::single("tcp", CLUSTER_IP.into(), L4Protocol::Tcp, 80, SERVER_PORT);
        let udp = ServiceSpec::single("udp", UDP_CLUSTER_IP.into(), L4Protocol::Udp, 80, SERVER_PORT);
        for service in [tcp.with_node_port(NODE_PORT).dual_stack(), udp.dual_stack()] {
            lab.gateway.manifests().apply(&service, &lab.addresses())?;
        }
        let ends = [(lab.topology.gateway(), UPLINK, GATEWAY), (lab.client(), HOST_INTERFACE, CLIENT)];
        for (namespace, device, address) in ends {
            namespace.ip(&format!("link add link {device} name vlan100 type vlan id {VLAN_ID}"))?;
            namespace.ip(&format!("addr add {address}/24 dev vlan100"))?;
            namespace.ip("link set vlan100 up")?;
            namespace.ip(&format!("addr add {}/64 dev vlan100 nodad", ipv6_of(address)))?;
        }
        // What comes back without its tag is not for the VLAN's address.
        lab.client().sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        let network = ipv6_of(CLUSTER_IP.into()).segments();
        let network = format!("2001:db8:{:x}:{:x}::/64", network[2], network[3]);
        lab.client().ip(&format!("route replace {SERVICE_RANGE} via {GATEWAY}"))?;
        lab.client().ip(&format!("route replace {network} via {}", ipv6_of(GATEWAY)))?;
        eventually("the VLAN is served", || {
            let services = lab.show("services")?.to_string();
            let known = lab.active_backends()?.len() == 8;
            Ok(known
                && [GATEWAY.into(), IpAddr::from(ipv6_of(GATEWAY))]
                    .iter()
                    .all(|&address| services.contains(&SocketAddr::new(address, NODE_PORT).to_string())))
        })?;
        Ok(Self { lab, _servers: servers })
    }

    /// Bytes both ways by TCP, and datagrams up to the MTU, in both families.
    fn exchange(&self) -> Result<()> {
        let own = [IpAddr::from(CLIENT), ipv6_of(CLIENT).into()];
        let targets = |address: [u8; 4], port| {
            [SocketAddr::from((address, port)), SocketAddr::from((ipv6_of(address.into()), port))]
        };
        for (at, own) in own.into_iter().enumerate() {
            for target in [targets(CLUSTER_IP, 80)[at], targets(GATEWAY.octets(), NODE_PORT)[at]] {
                let talk = self.lab.client().enter(|| Talk::open(TCP, own, target))?;
                let mut talk = talk.with_context(|| format!("a connection to {target}"))?;
                for len in [1, 1500, 150_000] {
                    talk.exchange(len).with_context(|| format!("{len} bytes with {target}"))?;
                }
                talk.close()?;
            }
            // IP and UDP headers beside them fill a packet of 1500 bytes.
            let fullest = if at == 0 { 1472 } else { 1452 };
            for payload_len in [24, fullest - 1, fullest] {
                let target = targets(UDP_CLUSTER_IP, 80)[at];
                let options = UdpOptions {
                    payload_len,
                    flows: 2,
                    grace: LIMIT,
                    ..UdpOptions::new(target, 20, Duration::from_secs(1))
                };
                let report = self
                    .lab
                    .client()
                    .enter(|| udp::run(&options, ProgressOutput::Nothing, &Stop::default()))??;
                let bad = (report.lost, report.mismatches, report.duplicates, report.send_failures);
                assert_eq!(
                    (report.sent, bad),
                    (20, (0, 0, 0, 0)),
                    "{payload_len} bytes to {target}: {report:?}"
                );
            }
        }
        let flows = self.lab.show("flows")?;
        let clients: Vec<_> = rows(&flows["flows"]).map(|flow| text(&flow["client"])).collect();
        let is_tagged =
            |client: &&str| client.starts_with("198.51.100.10:") || client.starts_with("[2001:db8:198");
        assert!(!clients.is_empty() && clients.iter().all(is_tagged), "{clients:?}");
        assert_eq!(self.lab.drops()?, [].into());
        Ok(())
    }

    /// What nobody serves is refused, by an answer that goes back the way it came.
    fn is_refused(&self, address: impl Into<IpAddr>) -> Result<bool> {
        let target = SocketAddr::new(address.into(), 81);
        let outcome =
            self.lab.client().enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))?;
        Ok(outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    }
}

/// What ethtool says of the uplink.
fn offloads(lab: &Lab) -> Result<String> {
    run(lab.topology.gateway(), &format!("ethtool -k {UPLINK}"))
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn a_vlan_is_served_up_to_the_mtu_and_its_device_leaves_tags_in_frames_from_then_on() -> Result<()> {
    let served = Served::start()?;
    run(served.lab.client(), &format!("ethtool -K {HOST_INTERFACE} txvlan off"))?;
    served.exchange()?;
    assert!(served.is_refused(CLUSTER_IP)? && served.is_refused(ipv6_of(CLUSTER_IP.into()))?);

    let offloads = offloads(&served.lab)?;
    assert!(offloads.contains("rx-vlan-offload: off"), "{offloads}");
    let log = served.lab.gateway.log();
    assert_eq!(log.matches("ethtool -K NAME txvlan off").count(), 1, "{log}");
    Ok(())
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn tags_that_the_far_end_of_a_veth_carries_beside_frames_are_seen_as_none() -> Result<()> {
    let served = Served::start()?;
    run(served.lab.client(), &format!("ethtool -K {HOST_INTERFACE} txvlan on"))?;
    served.exchange()?;
    assert!(!served.is_refused(CLUSTER_IP)?, "the answer goes back the way it came, without a tag");
    Ok(())
}
