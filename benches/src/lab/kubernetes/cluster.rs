//! The sample cluster of `lab up --kubernetes`: the network of the lab, a real control plane, hosts for pods, and a gateway
//! that watches the API server.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{ApiClient, ControlPlane, NodeSpec, PodHosts, PodHostsOptions, Programs};
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, GatewaySource};
use crate::lab::sample::{MYSQL, MYSQL_HOST, SAMPLES};
use crate::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer};
use crate::lab::topology::{GATEWAY_UPLINK, Topology, TopologyOptions};

/// The Node object of the gateway.
pub const GATEWAY_NODE: &str = "edge";
/// The Node object that pods are bound to.
const WORKER_NODE: &str = "worker";
/// The permissions of the gateway, as documented for users.
const RBAC: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/kubernetes/rbac.yaml"));
const SERVICE_ACCOUNT: (&str, &str) = ("kube-system", "flowgate");
const WORKER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);

/// The size of a cluster and the timing of its pods.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Maximum number of running pods.
    pub pods: u8,
    /// Client namespaces.
    pub clients: u8,
    /// The timing of pods.
    pub lifecycle: PodHostsOptions,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { pods: 10, clients: 1, lifecycle: PodHostsOptions::new(WORKER_NODE) }
    }
}

/// A running cluster; removed when dropped.
pub struct KubernetesCluster {
    // Fields drop in this order: gateway, pods, control plane, network.
    gateway: Option<Gateway>,
    pods: PodHosts,
    _mysql: TcpEchoServer,
    control_plane: ControlPlane,
    topology: Topology,
}

impl KubernetesCluster {
    /// Builds the network and starts everything but the gateway. `progress` gets each step.
    pub fn start(options: ClusterOptions, mut progress: impl FnMut(&str)) -> Result<Self> {
        // First, so that a missing program is reported at once.
        let programs = Programs::find()?;
        progress("building the network");
        let mut topology = Topology::build(TopologyOptions {
            clients: options.clients,
            backends: options.pods,
            ..TopologyOptions::default()
        })?;
        let hosts = topology.backends().to_vec();
        let mysql = topology.add_host("mysql", MYSQL_HOST)?;
        let echo = EchoOptions::new("mysql", MYSQL.1, EchoAnswer::Name);
        let mysql = TcpEchoServer::start(&mysql.namespace, echo)?;
        let mut control_plane = ControlPlane::start(programs, &mut progress)?;
        control_plane.join(topology.gateway())?;
        let client = control_plane.client();
        progress("registering nodes");
        for node in [NodeSpec::new(GATEWAY_NODE, GATEWAY_UPLINK), NodeSpec::new(WORKER_NODE, WORKER_ADDRESS)]
        {
            client.register_node(&node)?;
        }
        let pods = PodHosts::start(&client, hosts, options.lifecycle)?;
        Ok(Self { gateway: None, pods, _mysql: mysql, control_plane, topology })
    }

    /// Starts the gateway with the API server as its source and `extra_config`, and waits until it answers. It has only the
    /// permissions of the RBAC objects in `config/kubernetes`.
    pub fn start_gateway(&mut self, binary: impl Into<PathBuf>, extra_config: &str) -> Result<()> {
        self.control_plane.apply(RBAC)?;
        let (namespace, name) = SERVICE_ACCOUNT;
        let kubeconfig = self.control_plane.kubeconfig_of_service_account(namespace, name)?;
        let mut options = GatewayOptions::new(binary);
        options.source = GatewaySource::Kubeconfig(kubeconfig);
        options.node_name = Some(GATEWAY_NODE.into());
        extra_config.clone_into(&mut options.extra_config);
        self.gateway = Some(Gateway::start(self.topology.gateway(), options)?);
        Ok(())
    }

    /// Applies the sample manifests as a user would.
    pub fn apply_samples(&self) -> Result<()> {
        for (_, text) in SAMPLES {
            self.control_plane.apply(text)?;
        }
        Ok(())
    }

    /// The network.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The control plane, to stop and start parts of it.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The pods.
    pub fn pods(&self) -> &PodHosts {
        &self.pods
    }

    /// The gateway.
    ///
    /// # Errors
    /// If it was not started.
    pub fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_ref().ok_or_else(|| Error::State("the cluster's gateway is not started".into()))
    }

    /// The gateway, to restart it.
    ///
    /// # Errors
    /// If it was not started.
    pub fn gateway_mut(&mut self) -> Result<&mut Gateway> {
        self.gateway.as_mut().ok_or_else(|| Error::State("the cluster's gateway is not started".into()))
    }
}

impl ApiClient {
    /// Creates or updates a Node object.
    pub fn register_node(&self, node: &NodeSpec) -> Result<()> {
        self.run(&format!("register node {}", node.name), |client| node.register(client))
    }
}
