//! Tests that need kernel modules which are not everywhere: SCTP sockets, VLAN interfaces, bonds, netem, dummy interfaces.
//! Ignored by default; `make vm-tests` runs them in a virtual machine whose kernel has them all.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

mod bond;
mod dummy;
mod netem;
mod sctp;
mod talk;
mod vlan;

use std::process::Command;

use anyhow::Result;
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use flowgate_benches::lab::topology::Topology;
use flowgate_benches::netns::Namespace;

/// The ClusterIP of the one Service that a test has.
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const NODE_PORT: u16 = 30_080;
/// Where the servers of backends listen, by either transport.
const SERVER_PORT: u16 = 7001;

/// What echoes in each backend.
struct EchoServers {
    _tcp: Vec<TcpEchoServer>,
    _udp: Vec<UdpEchoServer>,
}

impl EchoServers {
    fn start(topology: &Topology) -> Result<Self> {
        let hosts = topology.backends().iter();
        let options = |name: &str| EchoOptions::new(name, SERVER_PORT, EchoAnswer::Echo);
        let tcp = hosts.clone().map(|host| TcpEchoServer::start(&host.namespace, options(&host.name)));
        let udp = hosts.map(|host| UdpEchoServer::start(&host.namespace, options(&host.name)));
        Ok(Self { _tcp: tcp.collect::<Result<_, _>>()?, _udp: udp.collect::<Result<_, _>>()? })
    }
}

/// Runs a program with blank-separated arguments in a namespace; it has to succeed.
fn run(namespace: &Namespace, line: &str) -> Result<String> {
    let mut words = line.split_ascii_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    Ok(namespace.check(command)?)
}
