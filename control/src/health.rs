//! Whether this machine can serve, told to those who ask over HTTP. Never changes what is served.
//!
//! Three kinds of servers, each of which may fail to listen without stopping anything else:
//! - the health check port of a Service (P323, P1101-P1105), for load balancers that choose between nodes;
//! - `/healthz` and `/livez` (P1106), for whoever looks after this process;
//! - the metrics server (P1107), whose contents the binary supplies.
//!
//! What is decided ([`ports`], [`local`], [`inputs`]) is pure and knows no socket.
//!
//! A gateway has no endpoint of its own: whoever asks a Service's health check port of a gateway wants to know
//! whether it can reach the Service at all, so there every ready endpoint counts.

pub mod inputs;
pub mod local;
pub mod ports;
pub mod probes;
mod servers;

use std::net::SocketAddr;

use tokio::sync::watch;

pub use self::inputs::HealthInputs;
pub use self::probes::ProbeCounts;
use crate::compile::{CompileConfig, NodePortAddress, Role};
use crate::model::NetState;
use crate::reconcile::Status;

/// What the operator decided, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// What this machine is to the cluster.
    pub role: Role,
    /// The name of its Node object.
    pub node_name: String,
    /// Where health check ports of Services listen (P1104); a family that it says nothing about means all
    /// addresses of that family.
    pub nodeport_addresses: Vec<NodePortAddress>,
}

impl From<&CompileConfig> for Identity {
    fn from(config: &CompileConfig) -> Self {
        Self {
            role: config.role,
            node_name: config.node_name.clone(),
            nodeport_addresses: config.nodeport_addresses.clone(),
        }
    }
}

/// What the binary says about the servers of this module.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where `/healthz` and `/livez` answer; none to have no such server.
    pub listen: Option<SocketAddr>,
    /// What can be said of the health of this process, and who it is.
    pub inputs: HealthInputs,
    /// How often probes were answered.
    pub counts: ProbeCounts,
}

/// Serves probes and the health check ports of Services until dropped. Says in `status` which servers cannot
/// listen; `net` has the addresses of the served interfaces.
pub async fn run(config: Config, net: watch::Receiver<NetState>, status: watch::Sender<Status>) {
    let Config { listen, inputs, counts } = config;
    let probes = async {
        match listen {
            Some(address) => probes::serve(address, &inputs, &counts, &status).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(probes, servers::serve(&inputs, net, &status));
}
