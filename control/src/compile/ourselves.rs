//! Endpoints that lead back to this machine. Kubernetes rules out cluster IPs as endpoints, but nobody checks it: two Services
//! that point at each other would hand a packet on until its TTL is used up, once more for each pass.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use flowgate_tables::FrontendKind;
use flowgate_tables::service::ServiceKey;

use super::addresses::NodeContext;
use super::claims::Claims;
use super::{CompileConfig, Role};
use crate::model::Key;
use crate::report::and_more;

/// What on this machine an endpoint would be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ourselves {
    /// The cluster IP of this Service, with any port: only Services have such addresses.
    ClusterIp(Key),
    /// An address and port at which this Service is reached.
    Frontend(Key),
    /// A source address of translated flows.
    SnatAddress,
    /// An address of the machine.
    OwnAddress,
}

impl Ourselves {
    /// What follows for `endpoint`, with the remedy.
    pub(super) fn sentence(&self, endpoint: ServiceKey, more: usize) -> String {
        let ServiceKey { protocol, addr, port } = endpoint;
        let what = match self {
            Self::ClusterIp(service) => format!("has the cluster IP of Service {service}"),
            Self::Frontend(service) => format!("is where Service {service} is reached"),
            Self::SnatAddress => "is a source address of translated flows (snat)".to_owned(),
            Self::OwnAddress => "is an address of this machine".to_owned(),
        };
        let more = and_more(more);
        format!(
            "endpoint {addr}:{port} {protocol}{more} {what} and is left out, since its packets would come back here: point \
             the Service at the endpoints themselves"
        )
    }
}

/// Knows the addresses of this machine and of all Services.
#[derive(Debug, Default)]
pub(super) struct SelfCheck {
    /// Every address that may be ours, so that most endpoints take one look-up.
    suspects: HashSet<IpAddr>,
    cluster_ips: HashMap<IpAddr, Key>,
}

/// [`SelfCheck`] with what it refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct SelfChecker<'a> {
    pub(super) check: &'a SelfCheck,
    pub(super) claims: &'a Claims,
    pub(super) node_context: &'a NodeContext,
    pub(super) config: &'a CompileConfig,
}

impl SelfCheck {
    pub(super) fn new(claims: &Claims, node_context: &NodeContext, config: &CompileConfig) -> Self {
        let mut check = Self::default();
        for (key, service, kind) in claims.owners() {
            check.suspects.insert(key.addr);
            if kind == FrontendKind::ClusterIp {
                let holder = check.cluster_ips.entry(key.addr).or_insert_with(|| service.clone());
                // The first by name, whatever the order of the map, if manifests give several the same one.
                if service < holder {
                    holder.clone_from(service);
                }
            }
        }
        check.suspects.extend(&node_context.own);
        check.suspects.extend(&config.snat.addresses);
        check
    }

    /// Whether an endpoint with this address may be ourselves.
    pub(super) fn suspects(&self, addr: IpAddr) -> bool {
        self.suspects.contains(&addr)
    }
}

/// Whose an endpoint is.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndpointOf<'a> {
    pub(super) service: &'a Key,
    /// Whether it runs on a Node: a pod, whose address is certainly its own.
    pub(super) is_pod: bool,
}

impl EndpointOf<'_> {
    /// Whether no external IP of another Service can make it a way back here: whoever may write a Service may list any address
    /// there, and must not take away the endpoints of others by that. The API servers are no pods.
    fn outranks_external_ips(&self) -> bool {
        self.is_pod || (self.service.namespace == "default" && self.service.name == "kubernetes")
    }
}

impl SelfChecker<'_> {
    /// What on this machine the endpoint is, if it leads back here.
    pub(super) fn find(&self, endpoint: &ServiceKey, of: EndpointOf<'_>) -> Option<Ourselves> {
        let ServiceKey { addr, port, .. } = *endpoint;
        if !self.check.suspects(addr) {
            return None;
        }
        if let Some(service) = self.check.cluster_ips.get(&addr) {
            return Some(Ourselves::ClusterIp(service.clone()));
        }
        if let Some((service, kind)) = self.claims.owner(endpoint)
            && (kind != FrontendKind::ExternalIp || service == of.service || !of.outranks_external_ips())
        {
            return Some(Ourselves::Frontend(service.clone()));
        }
        let snat = &self.config.snat;
        let is_own = self.node_context.own.contains(&addr);
        let is_snat = snat.addresses.contains(&addr)
            || is_own && !snat.addresses.iter().any(|other| other.is_ipv4() == addr.is_ipv4());
        match self.config.role {
            Role::Gateway if is_own => Some(Ourselves::OwnAddress),
            // Pods in the network of the host have the node's addresses.
            Role::Node if is_own && !(is_snat && snat.ports.contains(port.number())) => None,
            _ if is_snat => Some(Ourselves::SnatAddress),
            // A VIP with a port that no Service has: whoever really has the address.
            _ => None,
        }
    }
}

/// The endpoints of a Service that are left out: the first for each reason, and how many more.
#[derive(Debug, Default)]
pub(super) struct LeftOut(BTreeMap<Ourselves, (ServiceKey, usize)>);

impl LeftOut {
    pub(super) fn add(&mut self, reason: Ourselves, endpoint: ServiceKey) {
        self.0.entry(reason).and_modify(|(_, more)| *more += 1).or_insert((endpoint, 0));
    }

    pub(super) fn sentences(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(reason, (endpoint, more))| reason.sentence(*endpoint, *more))
    }
}
