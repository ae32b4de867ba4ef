//! EndpointSlices and Endpoints, one object at a time.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointSubset as RawSubset, Endpoints as RawEndpoints};
use k8s_openapi::api::discovery::v1::{Endpoint as RawEndpoint, EndpointSlice as RawSlice};

use super::{Findings, slice_excluded_by, values};
use crate::model::{
    Endpoint, EndpointAddress, EndpointPort, EndpointSlice, Endpoints, Hints, SliceFamily, Subset,
};

/// Reads an EndpointSlice. One endpoint or port that cannot be used is left out, and the others count.
pub fn endpoint_slice(raw: &RawSlice, findings: &mut Findings) -> EndpointSlice {
    let label = |name: &str| raw.metadata.labels.as_ref()?.get(name).filter(|value| !value.is_empty());
    let family = match raw.address_type.as_str() {
        "IPv4" => SliceFamily::V4,
        "IPv6" => SliceFamily::V6,
        "FQDN" => SliceFamily::Fqdn,
        other => {
            findings.invalid(format!("addressType: unknown type {other:?}: use IPv4, IPv6 or FQDN"));
            SliceFamily::Fqdn
        }
    };
    let mut list = Vec::new();
    for (endpoint, i) in raw.endpoints.iter().zip(0..).filter(|_| family != SliceFamily::Fqdn) {
        let place = format!("endpoints[{i}]");
        list.extend(one_endpoint(&place, endpoint, family, findings));
    }
    let mut ports: Vec<EndpointPort> = Vec::new();
    for (port, i) in raw.ports.iter().flatten().zip(0..) {
        let place = format!("ports[{i}]");
        let raw = RawPort {
            name: port.name.as_deref(),
            app_protocol: port.app_protocol.as_deref(),
            protocol: port.protocol.as_deref(),
            number: port.port.filter(|&number| number != 0),
        };
        push_port(&mut ports, &place, raw, findings);
    }
    let trigger = raw.metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER_TIME));
    EndpointSlice {
        service: label("kubernetes.io/service-name").cloned(),
        is_mirror: label("endpointslice.kubernetes.io/managed-by").is_some_and(|by| by == MIRROR_CONTROLLER),
        family,
        endpoints: list,
        ports,
        excluded_by: slice_excluded_by(&raw.metadata),
        triggered_at: trigger.and_then(|text| values::time(text)),
    }
}

/// Reads an Endpoints object.
pub fn endpoints(raw: &RawEndpoints, findings: &mut Findings) -> Endpoints {
    let subsets =
        raw.subsets.iter().flatten().zip(0..).map(|(subset, i)| one_subset(i, subset, findings)).collect();
    let skipped = raw
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("endpointslice.kubernetes.io/skip-mirror"))
        .is_some_and(|value| value == "true");
    let leader = raw
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("control-plane.alpha.kubernetes.io/leader"));
    Endpoints { subsets, skip_mirror: skipped || leader, excluded_by: slice_excluded_by(&raw.metadata) }
}

fn one_endpoint(
    place: &str,
    raw: &RawEndpoint,
    family: SliceFamily,
    findings: &mut Findings,
) -> Option<Endpoint> {
    // P113: the first address is the endpoint's; without an address there is no endpoint.
    let of_family = |addr: IpAddr| {
        let is_wrong = addr.is_ipv4() != (family == SliceFamily::V4);
        if is_wrong { Err(format!("{addr} is not of the slice's addressType")) } else { Ok(addr) }
    };
    let addr = values::endpoint_ip(raw.addresses.first()?).and_then(of_family);
    let addr = findings.usable(&format!("{place}.addresses[0]"), addr)?;
    let conditions = raw.conditions.clone().unwrap_or_default();
    Some(Endpoint {
        addr,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node_name: raw.node_name.clone().filter(|name| !name.is_empty()),
        hostname: raw.hostname.clone().filter(|name| !name.is_empty()),
        hints: hints(raw),
    })
}

/// Hints that name no node and no zone count as `None`.
fn hints(raw: &RawEndpoint) -> Option<Box<Hints>> {
    let raw = raw.hints.as_ref()?;
    let hints = Hints {
        nodes: raw.for_nodes.iter().flatten().map(|node| node.name.clone()).collect(),
        zones: raw.for_zones.iter().flatten().map(|zone| zone.name.clone()).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

fn one_subset(i: usize, raw: &RawSubset, findings: &mut Findings) -> Subset {
    let mut addresses = Vec::new();
    let lists = [("addresses", &raw.addresses, true), ("notReadyAddresses", &raw.not_ready_addresses, false)];
    for (name, list, ready) in lists {
        for (address, at) in list.iter().flatten().zip(0..) {
            let place = format!("subsets[{i}].{name}[{at}].ip");
            let addr = findings.usable(&place, values::endpoint_ip(&address.ip));
            let node_name = address.node_name.clone();
            let hostname = address.hostname.clone().filter(|name| !name.is_empty());
            addresses.extend(addr.map(|addr| EndpointAddress { addr, node_name, ready, hostname }));
        }
    }
    let mut ports = Vec::new();
    for (port, at) in raw.ports.iter().flatten().zip(0..) {
        let place = format!("subsets[{i}].ports[{at}]");
        let raw = RawPort {
            name: port.name.as_deref(),
            app_protocol: port.app_protocol.as_deref(),
            protocol: port.protocol.as_deref(),
            number: Some(port.port),
        };
        push_port(&mut ports, &place, raw, findings);
    }
    if ports.is_empty() && !addresses.is_empty() {
        findings.warn(format!("subsets[{i}] has addresses but no port"));
    }
    Subset { addresses, ports }
}

/// A port of a slice or of a subset, which are two types of the API with the same fields.
struct RawPort<'a> {
    name: Option<&'a str>,
    app_protocol: Option<&'a str>,
    protocol: Option<&'a str>,
    number: Option<i32>,
}

fn push_port(ports: &mut Vec<EndpointPort>, place: &str, raw: RawPort<'_>, findings: &mut Findings) {
    let RawPort { name, app_protocol, protocol, number } = raw;
    let protocol = findings.usable(&format!("{place}.protocol"), values::protocol(protocol));
    let Some(number) = number else {
        // P114: no number means all ports of the address, which no proxy implements.
        findings.warn(format!("{place} has no port number and is left out"));
        return;
    };
    // The API server checks no number of a slice's port.
    let number = findings.usable(&format!("{place}.port"), values::port(number));
    // The API server stores an unset name as the empty one.
    let name = findings.usable(&format!("{place}.name"), values::port_name(name.unwrap_or("")));
    let (Some(protocol), Some(port), Some(name)) = (protocol, number, name) else { return };
    if ports.iter().any(|other| other.name == name && other.protocol == protocol) {
        // As in kube-proxy: both numbers of each address are endpoints.
        findings.warn(format!("{place}: the name {name:?} is used twice"));
    }
    ports.push(EndpointPort { name, protocol, port, app_protocol: app_protocol.map(str::to_owned) });
}

/// Where the EndpointSlice controller writes when the change happened.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const MIRROR_CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
