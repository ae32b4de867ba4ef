//! Services. Addresses and ports that are not set stay unset: nothing is allocated here.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_wire::Protocol;
use k8s_openapi::api::core::v1::{Service as Raw, ServicePort as RawPort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Findings, excluded_by, values};
use crate::model::{
    Affinity, ClusterAddress, Ingress, IngressMode, Service, ServicePort, ServiceType, TargetPort,
    TrafficPolicy,
};

/// Reads a Service.
pub fn service(raw: &Raw, findings: &mut Findings) -> Service {
    let none = ServiceSpec::default();
    let spec = raw.spec.as_ref().unwrap_or_else(|| {
        findings.error("spec is missing");
        &none
    });
    let service_type = service_type(spec, findings);
    let cluster = cluster_address(spec, findings);
    let external_ips = addresses("spec.externalIPs", spec.external_ips.as_deref(), findings);
    let mut ranges = Vec::new();
    for (text, i) in spec.load_balancer_source_ranges.iter().flatten().zip(0..) {
        ranges.extend(findings.ok(&format!("spec.loadBalancerSourceRanges[{i}]"), values::cidr(text)));
    }
    let external_name = external_name(spec, service_type, findings);
    let health = spec.health_check_node_port.filter(|&port| port != 0);
    Service {
        service_type,
        external_name,
        external_ips,
        ingress: ingress(raw, findings),
        ports: ports(spec, service_type, &cluster, findings),
        cluster,
        has_selector: spec.selector.as_ref().is_some_and(|selector| !selector.is_empty()),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            findings,
        ),
        external_policy: policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
            findings,
        ),
        affinity: affinity(spec, findings),
        source_ranges: ranges,
        health_check_node_port: health
            .and_then(|port| findings.ok("spec.healthCheckNodePort", values::port(port))),
        excluded_by: excluded_by(&raw.metadata),
        created_s: raw.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
    }
}

fn service_type(spec: &ServiceSpec, findings: &mut Findings) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            findings.error(format!(
                "spec.type: unknown type {other:?}: use ClusterIP, NodePort, LoadBalancer or ExternalName"
            ));
            ServiceType::ClusterIp
        }
    }
}

/// The API server requires a name for type ExternalName and ignores it for the others.
fn external_name(spec: &ServiceSpec, service_type: ServiceType, findings: &mut Findings) -> Option<String> {
    if service_type != ServiceType::ExternalName {
        return None;
    }
    let name = spec.external_name.as_deref().unwrap_or("").trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if name.is_empty() {
        findings.error("spec.externalName is missing");
        None
    } else if name.len() > 253 || !name.split('.').all(is_label) {
        findings.error(format!("spec.externalName: {name:?} is not a domain name"));
        None
    } else {
        Some(name)
    }
}

/// `clusterIPs`, else `clusterIP`; the two must agree, as in the API.
fn cluster_address(spec: &ServiceSpec, findings: &mut Findings) -> ClusterAddress {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let list: Vec<&str> = match spec.cluster_ips.as_deref() {
        None | Some([]) => single.into_iter().collect(),
        Some(list) => list.iter().map(String::as_str).collect(),
    };
    if let (Some(single), Some(first)) = (single, list.first())
        && single != *first
    {
        findings.error(format!("spec.clusterIP {single} differs from spec.clusterIPs[0] {first}"));
    }
    match list.as_slice() {
        [] => return ClusterAddress::Unassigned,
        ["None"] => return ClusterAddress::Headless,
        _ => {}
    }
    let families = spec.ip_families.as_deref().unwrap_or(&[]);
    let mut assigned: Vec<IpAddr> = Vec::new();
    for (text, place) in list.into_iter().zip(0..) {
        let Some(ip) = findings.ok("spec.clusterIPs", values::unicast_ip(text)) else { continue };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if assigned.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            findings.error(format!("spec.clusterIPs: {ip} is a second {family} address"));
        } else if !families.is_empty() && families.get(place).is_none_or(|listed| listed != family) {
            // P902. Without a list the API server derives it from the addresses.
            findings.warn(format!(
                "spec.clusterIPs: {ip} is not served: spec.ipFamilies has no {family} at its place"
            ));
        } else {
            assigned.push(ip);
        }
    }
    if assigned.is_empty() { ClusterAddress::Unassigned } else { ClusterAddress::Assigned(assigned) }
}

fn addresses(place: &str, list: Option<&[String]>, findings: &mut Findings) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for (text, i) in list.unwrap_or(&[]).iter().zip(0..) {
        all.extend(findings.ok(&format!("{place}[{i}]"), values::unicast_ip(text)));
    }
    all
}

fn ingress(raw: &Raw, findings: &mut Findings) -> Vec<Ingress> {
    let list = raw.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let mut all = Vec::new();
    for (entry, i) in list.unwrap_or(&[]).iter().zip(0..) {
        let place = format!("status.loadBalancer.ingress[{i}]");
        let mode = match entry.ip_mode.as_deref() {
            None | Some("VIP") => IngressMode::Vip,
            Some("Proxy") => IngressMode::Proxy,
            Some(other) => {
                findings.error(format!("{place}.ipMode: unknown mode {other:?}: use VIP or Proxy"));
                continue;
            }
        };
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let ip = findings.ok(&format!("{place}.ip"), values::unicast_ip(text));
        all.extend(ip.map(|ip| Ingress { ip, mode }));
    }
    all
}

fn ports(
    spec: &ServiceSpec,
    service_type: ServiceType,
    cluster: &ClusterAddress,
    findings: &mut Findings,
) -> Vec<ServicePort> {
    let raw = spec.ports.as_deref().unwrap_or(&[]);
    let may_be_empty = service_type == ServiceType::ExternalName || *cluster == ClusterAddress::Headless;
    if raw.is_empty() && !may_be_empty {
        findings.error("spec.ports is empty");
    }
    let mut all: Vec<ServicePort> = Vec::new();
    for (raw_port, i) in raw.iter().zip(0..) {
        let place = format!("spec.ports[{i}]");
        if raw.len() > 1 && raw_port.name.as_deref().unwrap_or("").is_empty() {
            findings.error(format!("{place}.name is missing: a Service with several ports names each"));
        }
        let Some(port) = service_port(&place, raw_port, findings) else { continue };
        if port.node_port.is_some() && service_type == ServiceType::ClusterIp {
            findings.error(format!("{place}.nodePort: only for type NodePort or LoadBalancer"));
        }
        if let Some(conflict) = all.iter().find_map(|other| conflict(other, &port)) {
            findings.error(format!("{place}: {conflict}"));
        }
        all.push(port);
    }
    all
}

fn service_port(place: &str, raw: &RawPort, findings: &mut Findings) -> Option<ServicePort> {
    let protocol: Option<Protocol> =
        findings.ok(&format!("{place}.protocol"), values::protocol(raw.protocol.as_deref()));
    let port = findings.ok(&format!("{place}.port"), values::port(raw.port));
    let target = match &raw.target_port {
        None => port.map(TargetPort::Number),
        // The API server treats 0 as unset.
        Some(IntOrString::Int(0)) => port.map(TargetPort::Number),
        Some(IntOrString::Int(number)) => {
            findings.ok(&format!("{place}.targetPort"), values::port(*number)).map(TargetPort::Number)
        }
        Some(IntOrString::String(name)) if name.is_empty() => {
            findings.error(format!("{place}.targetPort is an empty name"));
            None
        }
        Some(IntOrString::String(name)) => Some(TargetPort::Name(name.clone())),
    };
    let node_port = match raw.node_port.filter(|&number| number != 0) {
        Some(number) => Some(findings.ok(&format!("{place}.nodePort"), values::port(number))?),
        None => None,
    };
    Some(ServicePort {
        name: raw.name.clone().unwrap_or_default(),
        protocol: protocol?,
        port: port?,
        target_port: target?,
        node_port,
        app_protocol: raw.app_protocol.clone(),
    })
}

fn conflict(a: &ServicePort, b: &ServicePort) -> Option<String> {
    if a.name == b.name && !a.name.is_empty() {
        return Some(format!("the name {:?} is used twice", b.name));
    }
    if a.protocol != b.protocol {
        return None;
    }
    if a.port == b.port {
        return Some(format!("port {} {} is used twice", b.port, b.protocol));
    }
    let node_port = b.node_port.filter(|_| a.node_port == b.node_port)?;
    Some(format!("nodePort {node_port} {} is used twice", b.protocol))
}

fn policy(place: &str, value: Option<&str>, findings: &mut Findings) -> TrafficPolicy {
    match value {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            findings.error(format!("{place}: unknown policy {other:?}: use Cluster or Local"));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &ServiceSpec, findings: &mut Findings) -> Affinity {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
            match u64::try_from(seconds) {
                Ok(seconds @ 1..=AFFINITY_SECONDS_MAX) => Affinity::ClientIp(Duration::from_secs(seconds)),
                _ => {
                    findings.error(format!(
                        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not 1 to {AFFINITY_SECONDS_MAX}"
                    ));
                    Affinity::None
                }
            }
        }
        Some(other) => {
            findings.error(format!("spec.sessionAffinity: unknown value {other:?}: use None or ClientIP"));
            Affinity::None
        }
    }
}

/// The API server's default: three hours.
const AFFINITY_SECONDS: i32 = 10_800;
/// The API server's limit: one day.
const AFFINITY_SECONDS_MAX: u64 = 86_400;
