//! The addresses and ports that a Service claims, by its own fields alone.

use std::net::{IpAddr, Ipv4Addr};

use flowgate_tables::FrontendKind;
use flowgate_tables::service::ServiceKey;
use flowgate_wire::{L4Port, Protocol};

use super::addresses::NodeContext;
use crate::model::{ClusterAddress, IngressMode, Service, ServicePort, ServiceType, unreachable_kind};

/// One address and port that clients aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: FrontendKind,
    pub(super) addr: IpAddr,
    pub(super) port: u16,
}

impl Wanted {
    pub(super) const fn key(&self, protocol: Protocol) -> ServiceKey {
        ServiceKey { protocol, addr: self.addr, port: L4Port::new(self.port) }
    }
}

/// The cluster IPs of a Service that is served; else the warning, if its owner should get one.
pub(super) fn served(service: &Service) -> Result<&[IpAddr], Option<&'static str>> {
    // P102, P106
    if service.excluded_by.is_some() || service.service_type == ServiceType::ExternalName {
        return Err(None);
    }
    match &service.cluster {
        ClusterAddress::Assigned(ips) => Ok(ips),
        // P105
        ClusterAddress::Headless => Err(None),
        ClusterAddress::Unassigned => {
            Err(Some("has no spec.clusterIP and is not served: nobody assigns one here, so write one"))
        }
    }
}

/// All addresses and ports that lead to a Service port. Of an address that is listed twice the first counts: load balancer
/// addresses before external ones, since source ranges may guard them (P401).
pub(super) fn wanted(
    service: &Service,
    cluster_ips: &[IpAddr],
    port: &ServicePort,
    node_context: &NodeContext,
) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut want = |kind, addresses: &mut dyn Iterator<Item = IpAddr>, port| {
        // P902: a Service has only the families of its cluster IPs.
        let of_family = |addr: &IpAddr| cluster_ips.iter().any(|ip| ip.is_ipv4() == addr.is_ipv4());
        all.extend(addresses.filter(of_family).map(|addr| Wanted { kind, addr, port }));
    };
    // One that reaches nobody only says that the Service has its family.
    let mut reachable = cluster_ips.iter().copied().filter(|ip| unreachable_kind(*ip).is_none());
    want(FrontendKind::ClusterIp, &mut reachable, port.port);
    want(FrontendKind::LoadBalancer, &mut load_balancer_ips(service), port.port);
    want(FrontendKind::ExternalIp, &mut service.external_ips.iter().copied(), port.port);
    if let Some(number) = port.node_port {
        want(FrontendKind::NodePort, &mut node_context.nodeport_addresses.iter().copied(), number);
        if node_context.localhost_nodeports {
            want(FrontendKind::NodePort, &mut std::iter::once(LOCALHOST), number);
        }
    }
    all
}

/// The load balancer addresses that are captured (P313, P314).
pub(super) fn load_balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.ingress.iter().filter(|ingress| ingress.mode == IngressMode::Vip).map(|ingress| ingress.ip)
}

/// Where a node serves its own NodePorts, if it was asked to (P308).
pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
