//! Objects for tests, as plain as they can be.

use std::net::IpAddr;

use crate::model::{
    Affinity, ClusterAddress, Endpoint, EndpointAddress, EndpointSlice, Service, ServiceType, SliceFamily,
    TrafficPolicy,
};

pub(super) fn service(cluster: ClusterAddress, has_selector: bool) -> Service {
    Service {
        service_type: ServiceType::ClusterIp,
        cluster,
        external_name: None,
        external_ips: Vec::new(),
        ingress: Vec::new(),
        ports: Vec::new(),
        has_selector,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: Affinity::None,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        excluded_by: None,
        created_s: None,
    }
}

pub(super) fn slice(service: Option<&str>, addresses: impl Iterator<Item = IpAddr>) -> EndpointSlice {
    let endpoint = |addr| Endpoint {
        addr,
        ready: true,
        serving: true,
        terminating: false,
        node_name: None,
        hostname: None,
        hints: None,
    };
    EndpointSlice {
        service: service.map(str::to_owned),
        is_mirror: false,
        family: SliceFamily::V4,
        endpoints: addresses.map(endpoint).collect(),
        ports: Vec::new(),
        excluded_by: None,
        triggered_at: None,
    }
}

pub(super) fn address(addr: IpAddr) -> EndpointAddress {
    EndpointAddress { addr, node_name: None, ready: true, hostname: None }
}
