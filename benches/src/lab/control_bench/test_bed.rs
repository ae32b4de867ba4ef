//! The test bed: an API server with many Services, some of which are moved between two backends that answer with their
//! names.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use super::ControlBenchOptions;
use super::prober::AnswerWatch;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, GatewaySource};
use crate::lab::kubernetes::bulk::{self, BulkOptions};
use crate::lab::kubernetes::{ApiClient, ControlPlane, KubeProxy, KubeProxyOptions, NodeSpec, Programs};
use crate::lab::output::print_line;
use crate::lab::servers::echo::{EchoAnswer, EchoOptions, UdpEchoServer};
use crate::lab::topology::{GATEWAY_UPLINK, Host, Topology, TopologyOptions};
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

/// The label of the slices of measured Services.
pub(super) const MEASURED_LABEL: &str = "flowgate.lab/measured";
/// Number of Services that are moved.
const MEASURED: u32 = 20;
const NODE: &str = "edge";
const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// The range of the endpoints of all other Services; nothing answers there.
const BULK_RANGE: &str = "10.200.0.0/14";
const BULK: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 97, 0, 1), Ipv4Addr::new(10, 200, 0, 1));
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const PORT: u16 = 53;
const COLD_START_LIMIT: Duration = Duration::from_secs(300);

/// One of the two hosts of the measured endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backend(u8);

/// Which forwarder to start.
#[derive(Debug, Clone, Copy)]
pub(super) enum Forwarder<'a> {
    /// The gateway, by its binary.
    Flowgate(&'a Path),
    KubeProxy,
}

/// A running forwarder.
pub(super) enum Instance {
    Flowgate(Box<Gateway>),
    KubeProxy(KubeProxy, Namespace),
}

/// A forwarder and the duration of its cold start.
pub(super) struct ColdStart {
    pub(super) instance: Instance,
    pub(super) cold_start: Duration,
}

pub(super) struct TestBed {
    _servers: Vec<UdpEchoServer>,
    topology: Topology,
    plane: ControlPlane,
    endpoints: u32,
}

impl TestBed {
    /// Network, servers and control plane, without Services.
    pub(super) fn build(options: &ControlBenchOptions) -> Result<Self> {
        let mut plane = ControlPlane::start(Programs::find()?, |doing| print_line(doing))?;
        // The test bed writes all slices itself.
        plane.stop_controllers()?;
        plane.client().register_node(&NodeSpec::new(NODE, GATEWAY_UPLINK))?;
        let topology = Topology::build(TopologyOptions { backends: 2, ..TopologyOptions::default() })?;
        let mut servers = Vec::new();
        for (backend, host) in BACKENDS.iter().zip(topology.backends()) {
            topology.gateway().ip(&format!("route add {} via {}", backend.range(), host.address))?;
            servers.extend(start_servers(host, *backend, options.endpoints)?);
        }
        let next_hop = topology.backends()[0].address;
        topology.gateway().ip(&format!("route add {BULK_RANGE} via {next_hop}"))?;
        plane.join(topology.gateway())?;
        Ok(Self { _servers: servers, topology, plane, endpoints: options.endpoints })
    }

    pub(super) fn client(&self) -> ApiClient {
        self.plane.client()
    }

    /// Creates all Services, the measured ones on the first backend.
    pub(super) fn create_services(&self, options: &ControlBenchOptions) -> Result<()> {
        let others = options.services.saturating_sub(MEASURED);
        print_line(format!(
            "creating {} Services with {} endpoints each",
            options.services, options.endpoints
        ));
        bulk::create(
            &self.client(),
            &BulkOptions {
                services: others,
                endpoints: options.endpoints,
                first_address: BULK.0,
                first_endpoint: BULK.1,
            },
        )?;
        self.client().run("create the measured Services", |client| async move {
            for number in 0..MEASURED {
                let services: Api<Service> = Api::default_namespaced(client.clone());
                services.create(&PostParams::default(), &service(number)).await?;
                let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
                let slice = slice(number, BACKENDS[0], self.endpoints);
                slices.create(&PostParams::default(), &slice).await?;
            }
            Ok(())
        })
    }

    /// The Service that the n-th change moves, and its new backend.
    pub(super) fn next_move(&self, number: u32) -> (u32, Backend) {
        (number % MEASURED, BACKENDS[usize::from((number / MEASURED).is_multiple_of(2))])
    }

    /// Starts probing the Service for answers of `backend`.
    pub(super) fn watch(&self, service: u32, backend: Backend) -> Result<AnswerWatch> {
        AnswerWatch::start(&self.topology.client().namespace, vec![address(service)], &backend.name())
    }

    /// Replaces the endpoints of a Service; returns the new resourceVersion.
    pub(super) fn write(&self, service: u32, backend: Backend) -> Result<String> {
        let mut slice = slice(service, backend, self.endpoints);
        self.client().run("replace the endpoints of a Service", |client| async move {
            let slices: Api<EndpointSlice> = Api::default_namespaced(client);
            slice.metadata.resource_version =
                slices.get_metadata(&slice.name_any()).await?.resource_version();
            let written = slices.replace(&slice.name_any(), &PostParams::default(), &slice).await?;
            Ok(written.resource_version().unwrap_or_default())
        })
    }

    /// Starts a forwarder.
    pub(super) fn start(&self, forwarder: Forwarder<'_>) -> Result<Instance> {
        let namespace = self.topology.gateway();
        Ok(match forwarder {
            Forwarder::Flowgate(binary) => {
                let mut options = GatewayOptions::new(binary);
                options.source = GatewaySource::Kubeconfig(self.plane.kubeconfig());
                options.node_name = Some(NODE.into());
                // The prober opens a thousand flows per second: let them expire soon.
                options.extra_config = "[flows]\nudp_answered_s = 5\nudp_unanswered_s = 5\n".into();
                Instance::Flowgate(Box::new(Gateway::start(namespace, options)?))
            }
            Forwarder::KubeProxy => {
                let options = KubeProxyOptions { node: NODE.into(), cluster_cidr: CLUSTER_CIDR.into() };
                let proxy = KubeProxy::start(&self.plane, namespace, &options)?;
                Instance::KubeProxy(proxy, namespace.clone())
            }
        })
    }

    /// Moves all Services back to the first backend, starts a forwarder and measures the time until every measured Service
    /// answers.
    pub(super) fn start_and_await_all(&mut self, forwarder: Forwarder<'_>, stop: &Stop) -> Result<ColdStart> {
        for service in 0..MEASURED {
            self.write(service, BACKENDS[0])?;
        }
        let targets = (0..MEASURED).map(address).collect();
        let watch = AnswerWatch::start(&self.topology.client().namespace, targets, &BACKENDS[0].name())?;
        let begin = clock::now();
        let instance = self.start(forwarder)?;
        let seen = watch.await_all(COLD_START_LIMIT, stop)?;
        Ok(ColdStart { instance, cold_start: seen.saturating_duration_since(begin) })
    }
}

impl Forwarder<'_> {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flowgate(_) => "flowgate",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

impl Instance {
    /// Ends it and removes its state from the kernel.
    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Flowgate(gateway) => gateway.detach(),
            Self::KubeProxy(proxy, namespace) => proxy.stop(&namespace),
        }
    }

    /// Resident memory of the process in megabytes.
    pub(super) fn rss_mb(&self) -> Result<f64> {
        let id = match self {
            Self::Flowgate(gateway) => gateway.process_id(),
            Self::KubeProxy(proxy, _) => Some(proxy.process_id()),
        };
        let id = id.ok_or_else(|| Error::State("the gateway does not run".into()))?;
        let path = format!("/proc/{id}/status");
        let status = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let kilobytes: Option<u32> = kilobytes.and_then(|number| number.trim().parse().ok());
        let kilobytes = kilobytes.ok_or_else(|| Error::State(format!("{path} has no VmRSS")))?;
        Ok(f64::from(kilobytes) * 1024.0 / 1e6)
    }
}

const BACKENDS: [Backend; 2] = [Backend(1), Backend(2)];

impl Backend {
    fn name(self) -> String {
        format!("backend-{}", self.0)
    }

    /// The addresses of its endpoints.
    fn range(self) -> String {
        format!("10.244.{}.0/24", 100 + self.0)
    }

    fn endpoint(self, number: u32) -> Ipv4Addr {
        let first = Ipv4Addr::new(10, 244, 100 + self.0, 1);
        Ipv4Addr::from(u32::from(first) + number)
    }
}

/// One server per address, so that answers come from the address that was asked.
fn start_servers(host: &Host, backend: Backend, endpoints: u32) -> Result<Vec<UdpEchoServer>> {
    let start = |number| {
        let address = backend.endpoint(number);
        host.namespace.ip(&format!("addr add {address}/32 dev lo"))?;
        let options = EchoOptions {
            listen: SocketAddrV4::new(address, PORT).into(),
            ..EchoOptions::new(&backend.name(), PORT, EchoAnswer::Name)
        };
        UdpEchoServer::start(&host.namespace, options)
    };
    (0..endpoints).map(start).collect()
}

fn address(service: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from(FIRST_ADDRESS) + service), PORT)
}

fn name(service: u32) -> String {
    format!("measured-{service}")
}

fn service(number: u32) -> Service {
    let mut service = Service::default();
    service.metadata.name = Some(name(number));
    let port = ServicePort {
        name: Some("main".into()),
        port: PORT.into(),
        protocol: Some("UDP".into()),
        ..ServicePort::default()
    };
    service.spec = Some(ServiceSpec {
        cluster_ip: Some(address(number).ip().to_string()),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    });
    service
}

fn slice(service: u32, backend: Backend, endpoints: u32) -> EndpointSlice {
    let addresses: Vec<IpAddr> = (0..endpoints).map(|number| backend.endpoint(number).into()).collect();
    let mut slice = bulk::slice(&name(service), 0, &addresses);
    slice.metadata.labels.get_or_insert_default().insert(MEASURED_LABEL.into(), String::new());
    slice.ports = Some(vec![EndpointPort {
        name: Some("main".into()),
        port: Some(PORT.into()),
        protocol: Some("UDP".into()),
        ..EndpointPort::default()
    }]);
    slice
}
