//! The sample cluster of `lab up` and `lab demo`: nginx behind `my-nginx`, `my-nginx-nodeport` and, for both address
//! families, `my-nginx-dual-stack`, a stand-in for a database behind `mysql`, and UDP Services for the load generator, all
//! through one gateway.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::gateway::{Gateway, GatewayOptions};
use super::manifests::{L4Protocol, ServiceSpec};
use super::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use super::servers::nginx::Nginx;
use super::topology::{GATEWAY_UPLINK, HOST_INTERFACE, Host, Topology, TopologyOptions, ipv6_of};
use crate::error::{Error, Result};
use crate::loadgen::packets::{Sink, SinkAction, SinkOptions};

/// The address of Service `my-nginx`.
pub const NGINX: ([u8; 4], u16) = ([10, 96, 0, 80], 80);
/// The NodePort of Service `my-nginx-nodeport`.
pub const NGINX_NODE_PORT: u16 = 30380;
/// The IPv4 ClusterIP of Service `my-nginx-dual-stack`; its IPv6 one is [`ipv6_of`] it.
pub const DUAL_STACK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 82);
/// Its IPv4 address at the load balancer; its IPv6 one is [`ipv6_of`] it.
pub const LOAD_BALANCER_IP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// Its NodePort.
pub const DUAL_STACK_NODE_PORT: u16 = 30382;
/// The address of Service `mysql`.
pub const MYSQL: ([u8; 4], u16) = ([10, 96, 0, 33], 3306);
/// The address of Service `udp-echo`.
pub const UDP_ECHO: ([u8; 4], u16) = ([10, 96, 0, 90], 7000);
/// The address of Service `packets`, whose backend counts and drops.
pub const PACKETS: ([u8; 4], u16) = ([10, 96, 0, 91], 9000);
/// Size in bytes of the files that long transfers fetch.
pub const FILE_LEN: usize = 16 * 1024;

/// A sink that counts and drops the packets to Service `packets` before its backend.
pub const PACKETS_SINK: SinkOptions =
    SinkOptions { port: Some(PACKETS.1), ip_proto: None, action: SinkAction::Drop };

/// The host of the database behind Service `mysql`.
pub(super) const MYSQL_HOST: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 50);
const UDP_ECHO_HOST: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 51);
const SINK_HOST: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 52);

const ENDPOINTS_FILE: &str = "my-nginx-endpoints.yaml";
macro_rules! sample {
    ($name:literal) => {
        ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/manifests/", $name)))
    };
}
/// The sample manifests, without EndpointSlices.
pub(super) const SAMPLES: [(&str, &str); 4] = [
    sample!("nginx-deployment.yaml"),
    sample!("my-nginx-service.yaml"),
    sample!("my-nginx-nodeport.yaml"),
    sample!("mysql.yaml"),
];

/// The dual-stack sample, which only a dual-stack cluster accepts.
const DUAL_STACK_SAMPLE: (&str, &str) = sample!("my-nginx-dual-stack.yaml");

/// An nginx backend.
struct WebBackend {
    host: Host,
    _nginx: Nginx,
}

/// The running sample cluster; removed when dropped.
pub struct SampleCluster {
    // Fields drop in this order: the gateway before the backends, the network last.
    gateway: Option<Gateway>,
    web: Vec<WebBackend>,
    mysql: Option<TcpEchoServer>,
    udp_echo: Option<UdpEchoServer>,
    /// Counts and drops the packets of `loadgen packets`; the kernel of its host only answers ARP.
    sink_host: Option<Sink>,
    topology: Topology,
}

impl SampleCluster {
    /// Builds the network: a client, the gateway, the fabric, and three backends without servers.
    pub fn build_network() -> Result<Self> {
        let topology = Topology::build(TopologyOptions::default())?;
        topology.client().route("203.0.113.0/24", GATEWAY_UPLINK)?;
        Ok(Self { gateway: None, web: Vec::new(), mysql: None, udp_echo: None, sink_host: None, topology })
    }

    /// Starts nginx in every backend, and the servers of the other Services.
    pub fn start_servers(&mut self) -> Result<()> {
        for host in self.topology.backends().to_vec() {
            self.start_nginx(host)?;
        }
        let mysql = self.topology.add_host("mysql", MYSQL_HOST)?;
        let options = EchoOptions::new("mysql", MYSQL.1, EchoAnswer::Name);
        self.mysql = Some(TcpEchoServer::start(&mysql.namespace, options)?);
        let echo = self.topology.add_host("udp-echo", UDP_ECHO_HOST)?;
        let options = EchoOptions::new("udp-echo", UDP_ECHO.1, EchoAnswer::Echo);
        self.udp_echo = Some(UdpEchoServer::start(&echo.namespace, options)?);
        let sink = self.topology.add_host("sink", SINK_HOST)?;
        self.sink_host = Some(sink.namespace.enter(|| Sink::attach(HOST_INTERFACE, PACKETS_SINK))??);
        Ok(())
    }

    /// Starts the gateway and waits until it answers.
    pub fn start_gateway(&mut self, binary: &Path) -> Result<()> {
        self.gateway = Some(Gateway::start(self.topology.gateway(), GatewayOptions::new(binary))?);
        Ok(())
    }

    /// Writes the sample manifests and waits until the gateway lists the Services.
    pub fn apply_manifests(&self) -> Result<()> {
        let gateway = self.gateway()?;
        for (name, text) in SAMPLES.into_iter().chain([DUAL_STACK_SAMPLE]) {
            gateway.manifests().write(name, text)?;
        }
        for (name, (address, port), host) in
            [("udp-echo", UDP_ECHO, UDP_ECHO_HOST), ("packets", PACKETS, SINK_HOST)]
        {
            let service = ServiceSpec::single(name, address.into(), L4Protocol::Udp, port, port);
            gateway.manifests().apply(&service.dual_stack(), &[host])?;
        }
        self.set_web_endpoints(&self.web_hosts())?;
        for name in ["my-nginx", "my-nginx-nodeport", "my-nginx-dual-stack", "mysql", "udp-echo", "packets"] {
            gateway.wait_for_service(name)?;
        }
        Ok(())
    }

    /// Starts one more nginx backend, which is in no Service yet.
    pub fn add_web_backend(&mut self) -> Result<Host> {
        let host = self.topology.add_backend()?;
        self.start_nginx(host.clone())?;
        Ok(host)
    }

    /// Replaces the endpoints of all nginx Services.
    pub fn set_web_endpoints(&self, hosts: &[Host]) -> Result<()> {
        let addresses: Vec<_> = hosts.iter().map(|host| host.address).collect();
        self.gateway()?.manifests().write(ENDPOINTS_FILE, &web_endpoints(&addresses))
    }

    /// The backends that run nginx.
    pub fn web_hosts(&self) -> Vec<Host> {
        self.web.iter().map(|web| web.host.clone()).collect()
    }

    /// The network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The gateway.
    ///
    /// # Errors
    /// If it was not started.
    pub fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_ref().ok_or_else(|| Error::State("the lab's gateway is not started".into()))
    }

    /// The gateway, to restart it.
    ///
    /// # Errors
    /// If it was not started.
    pub fn gateway_mut(&mut self) -> Result<&mut Gateway> {
        self.gateway.as_mut().ok_or_else(|| Error::State("the lab's gateway is not started".into()))
    }

    /// The server behind Service `mysql`.
    ///
    /// # Errors
    /// If it was not started.
    pub fn mysql(&self) -> Result<&TcpEchoServer> {
        self.mysql.as_ref().ok_or_else(|| Error::State("the lab's servers are not started".into()))
    }

    fn start_nginx(&mut self, host: Host) -> Result<()> {
        let nginx = Nginx::start(&host.namespace, &host.name, NGINX.1, &[FILE_LEN])?;
        self.web.push(WebBackend { host, _nginx: nginx });
        Ok(())
    }
}

/// The address of Service `my-nginx-nodeport` for clients.
pub fn node_port_address() -> SocketAddr {
    SocketAddr::from((GATEWAY_UPLINK, NGINX_NODE_PORT))
}

/// The EndpointSlices of all nginx Services, as in `config/manifests`.
fn web_endpoints(addresses: &[Ipv4Addr]) -> String {
    let v4: Vec<_> = addresses.iter().map(|&address| IpAddr::V4(address)).collect();
    let v6: Vec<_> = addresses.iter().map(|&address| IpAddr::V6(ipv6_of(address))).collect();
    let slices = [
        ("my-nginx", "my-nginx-1", &v4),
        ("my-nginx-nodeport", "my-nginx-nodeport-1", &v4),
        ("my-nginx-dual-stack", "my-nginx-dual-stack-1", &v4),
        ("my-nginx-dual-stack", "my-nginx-dual-stack-2", &v6),
    ]
    .map(|(service, name, addresses)| {
        let family = if name.ends_with('2') { "IPv6" } else { "IPv4" };
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: \
             default\n  labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\nports:\n- name: http\n  \
             protocol: TCP\n  port: 80\n"
        );
        yaml.push_str(if addresses.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
        for address in addresses {
            writeln!(yaml, "- addresses: [\"{address}\"]\n  conditions:\n    ready: true")
                .expect("writing to a String cannot fail");
        }
        yaml
    });
    slices.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_file_of_endpoints_is_what_the_lab_starts_with() {
        let (_, sample) = sample!("my-nginx-endpoints.yaml");
        let without_comments: Vec<_> = sample.lines().filter(|line| !line.starts_with('#')).collect();
        let addresses: Vec<_> = (11..=13).map(|last| Ipv4Addr::new(10, 244, 0, last)).collect();
        assert_eq!(without_comments.join("\n"), web_endpoints(&addresses).trim_end());
    }

    #[test]
    fn the_samples_hold_the_addresses_that_the_lab_talks_to() {
        let all: String = SAMPLES.iter().chain([&DUAL_STACK_SAMPLE]).map(|(_, text)| *text).collect();
        let [nginx, mysql] = [NGINX, MYSQL].map(|(address, _)| Ipv4Addr::from(address));
        for needle in [
            format!("clusterIP: {nginx}\n"),
            format!("clusterIP: {mysql}\n"),
            format!("clusterIPs: [{DUAL_STACK}, \"{}\"]\n", ipv6_of(DUAL_STACK)),
            format!("nodePort: {DUAL_STACK_NODE_PORT}"),
            format!("ip: {LOAD_BALANCER_IP}\n"),
            format!("ip: \"{}\"\n", ipv6_of(LOAD_BALANCER_IP)),
            format!("nodePort: {NGINX_NODE_PORT}"),
            format!("port: {}\n", MYSQL.1),
            format!("ip: {MYSQL_HOST}\n"),
        ] {
            assert!(all.contains(&needle), "{needle}");
        }
    }
}
