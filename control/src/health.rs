//! Whether this machine can serve, as HTTP endpoints. Two kinds of servers, each of which may fail to listen without
//! stopping anything else:
//! - the health check port of a Service (P323, P1101-P1105), for load balancers that choose between nodes;
//! - `/healthz` and `/livez` (P1106), for supervisors of this process.
//!
//! The decisions ([`ports`], [`local`], [`inputs`]) are pure and know no socket.
//!
//! A gateway has no endpoints of its own: a health check port there shows whether the Service can be reached at all, so
//! every ready endpoint counts.

pub mod inputs;
pub mod local;
pub mod ports;
pub mod probes;
mod servers;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::inputs::HealthInputs;
pub use self::probes::ProbeCounts;
use crate::compile::{CompileConfig, NodePortAddress, Role};
use crate::descriptors::DescriptorBudget;
use crate::model::NetState;
use crate::reconcile::Status;

/// The part of the configuration that health depends on.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Whether this machine is a node of the cluster.
    pub role: Role,
    /// The name of its Node object.
    pub node_name: String,
    /// Where health check ports of Services listen (P1104). For a family without an entry: on all its addresses.
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

/// Configuration and inputs of the servers of this module.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address of `/healthz` and `/livez`; `None` for no such server.
    pub listen: Option<SocketAddr>,
    /// What health is computed from.
    pub inputs: HealthInputs,
    /// Counts the responses to probes.
    pub counts: ProbeCounts,
}

/// Serves probes and the health check ports of Services until dropped. `status` gets the servers that cannot listen;
/// `net` has the addresses of the served interfaces.
pub async fn run(
    config: &Config,
    budget: &Arc<DescriptorBudget>,
    net: watch::Receiver<NetState>,
    status: &watch::Sender<Status>,
) {
    let Config { listen, inputs, counts } = config;
    let probes = async {
        match listen {
            Some(address) => probes::serve(*address, budget, inputs, counts, status).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(probes, servers::serve(inputs, budget, net, status));
}
