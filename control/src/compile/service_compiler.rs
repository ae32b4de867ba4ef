//! One Service to specs: its frontends, their allowed sources, policies and endpoint sets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use flowgate_tables::spec::{EndpointSpec, FrontendSpec, ServiceName, ServiceSpec, TrafficPolicySpec};
use flowgate_tables::{EmptyAction, FrontendKind, PerSourceClass, SourceNat};
use flowgate_wire::L4Port;
use ipnet::IpNet;

use super::CompileConfig;
use super::addresses::NodeContext;
use super::endpoints::{EndpointContext, Locality, PortEndpoints};
use super::ourselves::{LeftOut, SelfChecker};
use super::policy::{Policy, PolicyInput, Role, Scope, policy};
use super::wanted::{LOCALHOST, Wanted, load_balancer_ips, wanted};
use crate::model::{Affinity, EndpointSlice, Key, Service, ServicePort};

/// A Service that is served, and what it is compiled with.
pub(super) struct ServiceCompiler<'a> {
    pub(super) key: &'a Key,
    pub(super) service: &'a Service,
    pub(super) cluster_ips: &'a [IpAddr],
    pub(super) slices: &'a [Arc<EndpointSlice>],
    pub(super) node_context: &'a NodeContext,
    pub(super) config: &'a CompileConfig,
}

/// A Service's place among all, and what it depends on besides itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbourhood<'a> {
    /// Its position among all Services.
    pub(super) position: usize,
    pub(super) selves: SelfChecker<'a>,
}

impl ServiceCompiler<'_> {
    /// One spec per port, and the endpoints that are in none of them.
    pub(super) fn specs(&self, others: Neighbourhood<'_>) -> (Vec<ServiceSpec>, LeftOut) {
        let mut left_out = LeftOut::default();
        let ports = 0..self.service.ports.len();
        let specs = ports.map(|position| self.spec(position, others, &mut left_out)).collect();
        (specs, left_out)
    }

    fn spec(&self, position: usize, others: Neighbourhood<'_>, left_out: &mut LeftOut) -> ServiceSpec {
        let port = &self.service.ports[position];
        let locality = Locality {
            node: &self.config.node_name,
            zone: self.node_context.zone.as_deref(),
            follows_hints: self.config.role == Role::Node,
        };
        let context = EndpointContext { locality, selves: others.selves, service: self.key };
        let endpoints = PortEndpoints::new(self.slices, port, context, left_out);
        let mut sets = Sets { endpoints: &endpoints, known: Vec::new(), built: Vec::new() };
        let mut frontends = Vec::new();
        let claims = others.selves.claims;
        let has = |wanted: &Wanted| claims.has(others.position, position, &wanted.key(port.protocol));
        for wanted in self.wanted(port).into_iter().filter(has) {
            let ipv4 = wanted.addr.is_ipv4();
            // P206, P501
            let when_empty = if endpoints.any_usable(ipv4) { EmptyAction::Drop } else { EmptyAction::Reject };
            let policy = |policy: &Policy, sets: &mut Sets<'_>| TrafficPolicySpec {
                endpoint_set: sets.position(policy.scope, ipv4),
                source_nat: policy.source_nat,
                when_empty,
            };
            let policies = self.policies(&wanted);
            let policies = PerSourceClass {
                outside: policy(&policies.outside, &mut sets),
                pod: policy(&policies.pod, &mut sets),
                node: policy(&policies.node, &mut sets),
            };
            frontends.push(FrontendSpec {
                addr: wanted.addr,
                port: L4Port::new(wanted.port),
                kind: wanted.kind,
                policies,
                allowed: self.allowed(&wanted),
            });
        }
        ServiceSpec {
            name: ServiceName {
                namespace: self.key.namespace.clone(),
                name: self.key.name.clone(),
                port: port.name.clone(),
            },
            protocol: port.protocol,
            frontends,
            endpoint_sets: sets.built,
            serving: endpoints.serving(),
            affinity: match self.service.affinity {
                Affinity::None => None,
                Affinity::ClientIp(timeout) => Some(timeout),
            },
        }
    }

    /// All addresses and ports that lead to a Service port, also those that another Service has.
    pub(super) fn wanted(&self, port: &ServicePort) -> Vec<Wanted> {
        wanted(self.service, self.cluster_ips, port, self.node_context)
    }

    pub(super) fn policies(&self, wanted: &Wanted) -> PerSourceClass<Policy> {
        if wanted.addr == LOCALHOST {
            // P308: whatever the traffic policies are. The client is 127.0.0.1 too: an endpoint would reply to itself.
            return PerSourceClass::same(Policy { scope: Scope::Cluster, source_nat: SourceNat::Always });
        }
        let input = PolicyInput {
            role: self.config.role,
            masquerade_all: self.config.masquerade_all,
            knows_pods: self.node_context.knows_pods(wanted.addr.is_ipv4()),
            pods_arrive: self.node_context.pods_arrive(wanted.addr.is_ipv4()),
        };
        policy(input, wanted.kind, self.service)
    }

    /// The sources that may reach a frontend; `None` means all.
    fn allowed(&self, wanted: &Wanted) -> Option<Arc<[IpNet]>> {
        let ipv4 = wanted.addr.is_ipv4();
        if wanted.addr == LOCALHOST {
            // P308: packets from other hosts to 127.0.0.0/8 are martians (RFC 1122 section 3.2.1.3) and dropped.
            let own = self.node_context.own.iter().filter(|ip| ip.is_ipv4()).map(|&ip| IpNet::from(ip));
            return Some(std::iter::once(LOOPBACK).chain(own).collect());
        }
        if wanted.kind != FrontendKind::LoadBalancer {
            return None;
        }
        // P401
        let of_family = self.service.source_ranges.iter().filter(|net| net.addr().is_ipv4() == ipv4);
        let mut ranges: Vec<IpNet> = of_family.copied().collect();
        if ranges.is_empty() || ranges.iter().any(|net| net.prefix_len() == 0) {
            return None;
        }
        let primary = self.node_context.primary.iter().find(|ip| ip.is_ipv4() == ipv4);
        if primary.is_some_and(|ip| ranges.iter().any(|net| net.contains(ip))) {
            let own = load_balancer_ips(self.service).filter(|ip| ip.is_ipv4() == ipv4);
            ranges.extend(own.map(IpNet::from));
        }
        Some(ranges.into())
    }
}

/// The endpoint sets of one Service port, each built once.
struct Sets<'a> {
    endpoints: &'a PortEndpoints<'a>,
    known: Vec<(Scope, bool)>,
    built: Vec<Vec<EndpointSpec>>,
}

impl Sets<'_> {
    fn position(&mut self, scope: Scope, ipv4: bool) -> usize {
        let known = self.known.iter().position(|set| *set == (scope, ipv4));
        known.unwrap_or_else(|| {
            self.known.push((scope, ipv4));
            self.built.push(self.endpoints.set(scope, ipv4));
            self.built.len() - 1
        })
    }
}

const LOOPBACK: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
