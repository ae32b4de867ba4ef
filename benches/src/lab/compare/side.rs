//! The two sides: the same clients, addresses and backends, with the gateway or kube-proxy in the middle.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use super::NODE;
use super::observation::Observation;
use super::probe::Probe;
use super::sctp::SctpServer;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, GatewaySource, last_lines};
use crate::lab::interrupt;
use crate::lab::kubernetes::{ControlPlane, KubeProxy, KubeProxyOptions};
use crate::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use crate::lab::topology::{
    FABRIC, GATEWAY_FABRIC, GATEWAY_UPLINK, HOST_INTERFACE, Host, Topology, TopologyOptions, ipv6_of,
};
use crate::loadgen::stop::Stop;

const BACKENDS: u8 = 3;
const PORTS: [u16; 2] = [8080, 8081];
/// Addresses of load balancers and externalIPs; clients route them to the node.
const PUBLIC_RANGE: &str = "203.0.113.0/24";
/// The ranges of pods, where the backends are.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "2001:db8:10:244::/64"];
const DEFAULT_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 99);
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(60);

/// Clients and backends, with a server at each of [`PORTS`] that answers with its name and the client address.
pub(super) struct Network {
    _tcp: Vec<TcpEchoServer>,
    _udp: Vec<UdpEchoServer>,
    _sctp: Vec<SctpServer>,
    topology: Topology,
}

/// The gateway and its network.
pub(super) struct FlowgateSide {
    gateway: Gateway,
    network: Network,
}

/// kube-proxy and its network.
pub(super) struct KubeProxySide {
    proxy: KubeProxy,
    network: Network,
}

impl Network {
    fn build(plane: &mut ControlPlane) -> Result<Self> {
        let mut topology = Topology::build(TopologyOptions {
            clients: 2,
            backends: BACKENDS,
            ..TopologyOptions::default()
        })?;
        for client in topology.clients() {
            client.route(PUBLIC_RANGE, GATEWAY_UPLINK)?;
        }
        let (mut tcp, mut udp, mut sctp) = (Vec::new(), Vec::new(), Vec::new());
        for backend in topology.backends() {
            only_through_the_node(backend)?;
            sctp.push(SctpServer::start(&backend.namespace, &backend.name, PORTS[0])?);
            for port in PORTS {
                let options = EchoOptions::new(&backend.name, port, EchoAnswer::NameAndClient);
                tcp.push(TcpEchoServer::start(&backend.namespace, options.clone())?);
                udp.push(UdpEchoServer::start(&backend.namespace, options)?);
            }
        }
        // Like a real node it needs a default route: without one the kernel rejects most of these destinations in the
        // route lookup, before the rules of kube-proxy. The default router drops everything.
        topology.add_host("elsewhere", DEFAULT_ROUTER)?;
        topology.gateway().ip(&format!("route add default via {DEFAULT_ROUTER}"))?;
        topology.gateway().ip(&format!("route add default via {}", ipv6_of(DEFAULT_ROUTER)))?;
        // The kernel limits ICMP errors to a few per second and client; beyond that, refused probes would look like
        // drops.
        topology.gateway().sysctl("net/ipv4/icmp_ratemask", "0")?;
        topology.gateway().sysctl("net/ipv6/icmp/ratelimit", "0")?;
        // Pods reach one another by the interface that they came by: the node would tell them of the direct way.
        for key in ["all", FABRIC] {
            topology.gateway().sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
        }
        plane.join(topology.gateway())?;
        Ok(Self { _tcp: tcp, _udp: udp, _sctp: sctp, topology })
    }

    /// Sends all probes, each from its client.
    pub(super) fn send(&self, probes: &[Probe], stop: &Stop) -> Result<BTreeMap<String, Observation>> {
        let mut observations = BTreeMap::new();
        for (number, client) in (1..).zip(self.topology.clients()) {
            let is_its = |probe: &&Probe| probe.pod.is_none() && probe.client == number;
            let of_client: Vec<_> = probes.iter().filter(is_its).collect();
            interrupt::check(stop)?;
            observations.extend(super::probe::send_all(client, &of_client, stop)?);
        }
        for (number, pod) in (1..).zip(self.topology.backends()) {
            let of_pod: Vec<_> = probes.iter().filter(|probe| probe.pod == Some(number)).collect();
            interrupt::check(stop)?;
            observations.extend(super::probe::send_all(pod, &of_pod, stop)?);
        }
        Ok(observations)
    }

    /// Waits until the probe is answered; an error of `check` ends the wait.
    pub(super) fn await_answer(
        &self,
        probe: &Probe,
        stop: &Stop,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let deadline = clock::now() + CONVERGENCE_LIMIT;
        loop {
            let seen = super::probe::send_all(self.topology.client(), &[probe], stop)?;
            if matches!(seen.get(&probe.id), Some(Observation::Answered { .. })) {
                return Ok(());
            }
            check()?;
            if clock::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("an answer of a new Service through {}", self.topology.gateway().label()),
                    after: CONVERGENCE_LIMIT,
                    hint: format!("the last probe saw {seen:?}"),
                });
            }
            interrupt::sleep(stop, Duration::from_millis(100))?;
        }
    }
}

/// Takes the direct ways to the other backends away: on a real node the way from pod to pod leads through the node too, and
/// answers would otherwise pass its rules by.
fn only_through_the_node(backend: &Host) -> Result<()> {
    for (own, gateway) in [
        ("10.244.0.0/24".to_owned(), GATEWAY_FABRIC.to_string()),
        ("2001:db8:10:244::/64".to_owned(), ipv6_of(GATEWAY_FABRIC).to_string()),
    ] {
        let at = &backend.namespace;
        at.ip(&format!("route add {gateway} dev {HOST_INTERFACE}"))?;
        at.ip(&format!("route del {own} dev {HOST_INTERFACE}"))?;
        at.ip(&format!("route replace default via {gateway} dev {HOST_INTERFACE} onlink"))?;
    }
    Ok(())
}

impl FlowgateSide {
    pub(super) fn start(plane: &mut ControlPlane, flowgate: &Path, role: &str) -> Result<Self> {
        let network = Network::build(plane)?;
        let mut options = GatewayOptions::new(flowgate);
        options.source = GatewaySource::Kubeconfig(plane.kubeconfig());
        options.node_name = Some(NODE.into());
        options.role = Some(role.to_owned());
        // kube-proxy's `primary`.
        let own = ipv6_of(GATEWAY_UPLINK);
        options.gateway_config = format!("nodeport_addresses = [\"{GATEWAY_UPLINK}/32\", \"{own}/128\"]\n");
        // The same clients count as pods on both sides; only the role `node` uses it.
        let cidrs: Vec<_> = CLUSTER_CIDRS.map(|cidr| format!("\"{cidr}\"")).into();
        options.extra_config = format!("[node]\ncluster_cidrs = [{}]\n", cidrs.join(", "));
        let gateway = Gateway::start(network.topology.gateway(), options)?;
        Ok(Self { gateway, network })
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn log_end(&self) -> String {
        last_lines(&self.gateway.log(), 20)
    }

    /// Dropped packets by reason, as text.
    pub(super) fn drops(&self) -> Result<String> {
        self.gateway.show(&["drops"])
    }
}

impl KubeProxySide {
    pub(super) fn start(plane: &mut ControlPlane) -> Result<Self> {
        let network = Network::build(plane)?;
        let options = KubeProxyOptions { node: NODE.into(), cluster_cidr: CLUSTER_CIDRS.join(",") };
        let proxy = KubeProxy::start(plane, network.topology.gateway(), &options)?;
        Ok(Self { proxy, network })
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn await_answer(&mut self, probe: &Probe, stop: &Stop) -> Result<()> {
        let proxy = &mut self.proxy;
        self.network.await_answer(probe, stop, || proxy.check())
    }

    pub(super) fn log_end(&self) -> String {
        self.proxy.log_end()
    }
}
