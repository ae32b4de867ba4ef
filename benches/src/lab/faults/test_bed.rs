//! The network, servers and gateway of a case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::CaseContext;
use super::case_result::CaseResult;
use super::gateway_state::stopped;
use super::load::{Load, Workload};
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, last_lines, rows};
use crate::lab::manifests::{L4Protocol, ServiceSpec};
use crate::lab::output::print_progress;
use crate::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use crate::lab::servers::http::{HttpServer, HttpServerOptions};
use crate::lab::topology::{GATEWAY_UPLINK, Host, Topology, TopologyOptions, ipv6_of};
use crate::lab::wait::eventually;
use crate::netns::Namespace;

/// The HTTP Service, and its NodePort.
pub(in crate::lab) const WEB: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 80);
pub(in crate::lab) const WEB_NODE_PORT: u16 = 30_080;
/// The Service of TCP echo servers, which first send their name.
pub(in crate::lab) const STREAM: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 11), 90);
/// The Service of UDP echo servers.
pub(in crate::lab) const DATAGRAMS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 12), 7000);
/// A server of the node itself, outside of any Service, such as ssh.
const NODE_SERVER_PORT: u16 = 2222;
const WEB_PORT: u16 = 8080;
pub(in crate::lab) const STREAM_PORT: u16 = 9090;
const DATAGRAM_PORT: u16 = 7001;

/// How the test bed of a case differs from the default.
#[derive(Debug, Clone)]
pub(in crate::lab) struct TestBedOptions {
    pub(in crate::lab) clients: u8,
    pub(in crate::lab) backends: u8,
    pub(in crate::lab) queues: u32,
    /// Interfaces to serve besides uplink and fabric; the case creates them before the gateway starts.
    pub(in crate::lab) interfaces: Vec<String>,
    /// `node`, or the default role. A node serves NodePorts on all of its addresses here, as a gateway does.
    pub(in crate::lab) role: Option<&'static str>,
    /// More lines of configuration.
    pub(in crate::lab) config: String,
}

impl Default for TestBedOptions {
    fn default() -> Self {
        let config = String::new();
        Self { clients: 1, backends: 3, queues: 1, interfaces: Vec::new(), role: None, config }
    }
}

/// Network, servers and gateway; fields drop in this order, the gateway first.
pub(in crate::lab) struct TestBed {
    pub(in crate::lab) gateway: Gateway,
    pub(in crate::lab) servers: Servers,
    _node_server: TcpEchoServer,
    pub(in crate::lab) topology: Topology,
}

/// The servers of the backends.
#[derive(Default)]
pub(in crate::lab) struct Servers {
    http: Vec<HttpServer>,
    pub(in crate::lab) tcp: Vec<TcpEchoServer>,
    pub(in crate::lab) udp: Vec<(Ipv4Addr, UdpEchoServer)>,
}

impl TestBed {
    /// A test bed with default options.
    pub(in crate::lab) fn with_defaults(context: &CaseContext<'_>) -> Result<Self> {
        Self::build(context, TestBedOptions::default(), |_| Ok(()))
    }

    /// Builds the network, lets `prepare` change it, then starts servers and gateway.
    pub(in crate::lab) fn build(
        context: &CaseContext<'_>,
        options: TestBedOptions,
        prepare: impl FnOnce(&mut Topology) -> Result<()>,
    ) -> Result<Self> {
        let TestBedOptions { clients, backends, queues, interfaces, role, config } = options;
        let mut topology = Topology::build(TopologyOptions { clients, backends, queues, mtu: None })?;
        let hosts = topology.backends().to_vec();
        prepare(&mut topology)?;
        let mut servers = Servers::default();
        hosts.iter().try_for_each(|host| servers.start(host))?;
        let options = EchoOptions::new("gateway", NODE_SERVER_PORT, EchoAnswer::Name);
        let node_server = TcpEchoServer::start(topology.gateway(), options)?;
        let mut gateway = GatewayOptions::new(context.flowgate);
        gateway.interfaces.extend(interfaces);
        gateway.extra_config = config;
        gateway.role = role.map(str::to_owned);
        if role.is_some() {
            gateway.gateway_config = "nodeport_addresses = [\"all\"]".into();
        }
        // On a busy machine a restarted gateway may need longer than the default to take over.
        gateway.xdp_config = "hold_ms = 20000".into();
        let gateway = Gateway::start(topology.gateway(), gateway)?;
        let bed = Self { gateway, servers, _node_server: node_server, topology };
        let addresses: Vec<_> = hosts.iter().map(|host| host.address).collect();
        bed.set_backends(&addresses)?;
        Ok(bed)
    }

    /// Sets the backends of all Services and waits until the gateway serves them.
    pub(in crate::lab) fn set_backends(&self, backends: &[Ipv4Addr]) -> Result<()> {
        for service in services() {
            self.gateway.manifests().apply(&service, backends)?;
        }
        self.await_backends(backends).map(drop)
    }

    /// Waits until every Service of [`services`] has exactly these backends, in both families; returns how long that
    /// took.
    pub(in crate::lab) fn await_backends(&self, backends: &[Ipv4Addr]) -> Result<Duration> {
        let both = backends.iter().flat_map(|&address| [IpAddr::V4(address), IpAddr::V6(ipv6_of(address))]);
        let mut wanted: Vec<_> = both.flat_map(|address| vec![address; services().len()]).collect();
        wanted.sort_unstable();
        eventually(&format!("all Services have the backends {backends:?}"), || {
            let backends = self.gateway.show_json("backends")?;
            let active = rows(&backends).filter(|row| row["state"] == "active");
            let addresses = active.filter_map(|row| row["address"].as_str()?.parse::<SocketAddr>().ok());
            let mut addresses: Vec<_> = addresses.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            Ok(addresses == wanted)
        })
    }

    /// The addresses of all backend hosts.
    pub(in crate::lab) fn backends(&self) -> Vec<Ipv4Addr> {
        self.topology.backends().iter().map(|host| host.address).collect()
    }

    /// The client's namespace.
    pub(in crate::lab) fn client(&self) -> &Namespace {
        &self.topology.client().namespace
    }

    /// Persistent HTTP connections to cluster IP and NodePort in both families.
    pub(in crate::lab) fn web_load(&self, connections: usize) -> Result<Load> {
        Load::start(self.client(), &web_targets(), connections, &Workload::http())
    }

    /// Connections to the server of the node itself over the same interface, with an answer every few milliseconds: the
    /// gateway must not affect them.
    pub(in crate::lab) fn node_load(&self) -> Result<Load> {
        let targets = [
            ("the node, IPv4", SocketAddr::from((GATEWAY_UPLINK, NODE_SERVER_PORT))),
            ("the node, IPv6", SocketAddr::from((ipv6_of(GATEWAY_UPLINK), NODE_SERVER_PORT))),
        ];
        Load::start(self.client(), &targets, 4, &Workload::echo(64, Duration::from_millis(5)))
    }

    /// What must hold at the end of every case: the gateway runs, and no thread panicked that was not made to. Records
    /// dropped packets.
    pub(in crate::lab) fn check_end(&mut self, result: &mut CaseResult, panics_allowed: usize) {
        let log = self.gateway.log();
        let panics = log.lines().filter(|line| line.contains("panicked at")).count();
        result
            .expect(panics <= panics_allowed, || format!("the gateway panicked:\n{}", last_lines(&log, 20)));
        if let Ok(stopped) = stopped(&self.gateway) {
            result.record("stopped", stopped);
        }
        let ended = self.gateway.has_ended();
        result.expect(!ended, || "the gateway has ended".into());
        if result.failed() {
            print_progress(&format!("the gateway's log ends with:\n{}", last_lines(&log, 40)));
        }
    }
}

impl Servers {
    /// Starts one server of each kind.
    pub(in crate::lab) fn start(&mut self, host: &Host) -> Result<()> {
        let (at, name) = (&host.namespace, &host.name);
        self.http.push(HttpServer::start(at, HttpServerOptions::new(name, WEB_PORT))?);
        self.tcp.push(TcpEchoServer::start(at, EchoOptions::new(name, STREAM_PORT, EchoAnswer::Name))?);
        let udp = UdpEchoServer::start(at, EchoOptions::new(name, DATAGRAM_PORT, EchoAnswer::Echo))?;
        self.udp.push((host.address, udp));
        Ok(())
    }

    /// The datagrams that the backend with this address received.
    pub(in crate::lab) fn datagrams_at(&self, address: Ipv4Addr) -> Result<u64> {
        let server = self.udp.iter().find(|(at, _)| *at == address);
        let server = server.ok_or_else(|| Error::State(format!("no server runs at {address}")))?;
        Ok(server.1.clients().total())
    }
}

/// HTTP at cluster IP and NodePort in both families.
pub(in crate::lab) fn web_targets() -> [(&'static str, SocketAddr); 4] {
    [
        ("cluster IP, IPv4", SocketAddr::from(WEB)),
        ("cluster IP, IPv6", SocketAddr::from((ipv6_of(WEB.0), WEB.1))),
        ("NodePort, IPv4", SocketAddr::from((GATEWAY_UPLINK, WEB_NODE_PORT))),
        ("NodePort, IPv6", SocketAddr::from((ipv6_of(GATEWAY_UPLINK), WEB_NODE_PORT))),
    ]
}

/// The TCP echo Service in both families.
pub(in crate::lab) fn stream_targets() -> [(&'static str, SocketAddr); 2] {
    both(STREAM)
}

/// The UDP echo Service in both families.
pub(in crate::lab) fn datagram_targets() -> [(&'static str, SocketAddr); 2] {
    both(DATAGRAMS)
}

fn both((address, port): (Ipv4Addr, u16)) -> [(&'static str, SocketAddr); 2] {
    [("IPv4", SocketAddr::from((address, port))), ("IPv6", SocketAddr::from((ipv6_of(address), port)))]
}

/// The Services of the gateway.
pub(in crate::lab) fn services() -> [ServiceSpec; 3] {
    [
        ServiceSpec::single("web", WEB.0, L4Protocol::Tcp, WEB.1, WEB_PORT).with_node_port(WEB_NODE_PORT),
        ServiceSpec::single("stream", STREAM.0, L4Protocol::Tcp, STREAM.1, STREAM_PORT),
        ServiceSpec::single("datagrams", DATAGRAMS.0, L4Protocol::Udp, DATAGRAMS.1, DATAGRAM_PORT),
    ]
    .map(ServiceSpec::dual_stack)
}
