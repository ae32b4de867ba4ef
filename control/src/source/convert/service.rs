//! Services. Addresses and ports that are not set stay unset: nothing is allocated here.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_wire::Protocol;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as Raw, ServicePort as RawPort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Findings, service_excluded_by, values};
use crate::model::{
    Affinity, ClusterAddress, Ingress, IngressMode, Service, ServicePort, ServiceType, TargetPort,
    TrafficPolicy, unreachable_kind,
};

/// Reads a Service. Of its addresses and ranges, those that cannot be used are left out.
pub fn service(raw: &Raw, findings: &mut Findings) -> Service {
    let none = ServiceSpec::default();
    let spec = raw.spec.as_ref().unwrap_or_else(|| {
        findings.error("spec is missing");
        &none
    });
    let service_type = service_type(spec, findings);
    let cluster = cluster_address(spec, findings);
    let mut ingress = ingress(raw, findings);
    let source_ranges = source_ranges(spec, &mut ingress, findings);
    let health = spec.health_check_node_port.filter(|&port| port != 0);
    let service = Service {
        service_type,
        external_name: external_name(spec, service_type, findings),
        external_ips: external_ips(spec, findings),
        ingress,
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
        source_ranges,
        health_check_node_port: health
            .and_then(|port| findings.usable("spec.healthCheckNodePort", values::port(port))),
        excluded_by: service_excluded_by(&raw.metadata),
        created_s: raw.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
    };
    check_reachable(&service, findings);
    service
}

/// A Service whose cluster IPs all reach nobody is still served by what else leads to it.
fn check_reachable(service: &Service, findings: &mut Findings) {
    let ClusterAddress::Assigned(ips) = &service.cluster else { return };
    let has_other = !service.external_ips.is_empty()
        || !service.ingress.is_empty()
        || service.ports.iter().any(|port| port.node_port.is_some());
    for ip in ips {
        let Some(kind) = unreachable_kind(*ip) else { continue };
        let reason = format!("spec.clusterIPs: {ip} is {kind}");
        if has_other || ips.iter().any(|ip| unreachable_kind(*ip).is_none()) {
            findings.warn(format!("{reason}; it is left out"));
        } else {
            findings.error(reason);
        }
    }
}

fn service_type(spec: &ServiceSpec, findings: &mut Findings) -> ServiceType {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            // kube-proxy tells only ExternalName from the others.
            findings.invalid(format!(
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
    let texts = spec.cluster_ips.as_deref().unwrap_or(&[]);
    let mut list: Vec<&str> = texts.iter().map(String::as_str).filter(|ip| !ip.is_empty()).collect();
    if list.is_empty() {
        list.extend(single);
    }
    if let (Some(single), Some(first)) = (single, list.first())
        && single != *first
    {
        findings.invalid(format!("spec.clusterIP {single} differs from spec.clusterIPs[0] {first}"));
    }
    match list.as_slice() {
        [] => return ClusterAddress::Unassigned,
        ["None"] => return ClusterAddress::Headless,
        _ => {}
    }
    let families = spec.ip_families.as_deref().filter(|list| list.iter().any(|family| !family.is_empty()));
    let families = families.unwrap_or(&[]);
    let mut assigned: Vec<IpAddr> = Vec::new();
    let mut is_other_family = false;
    for (text, place) in list.iter().zip(0..) {
        let Some(ip) = findings.usable("spec.clusterIPs", values::ip(text)) else { continue };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if assigned.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            findings.invalid(format!("spec.clusterIPs: {ip} is a second {family} address"));
        } else if !families.is_empty() && families.get(place).is_none_or(|listed| listed != family) {
            // P902. Without a list the API server derives it from the addresses.
            is_other_family = true;
            findings.warn(format!(
                "spec.clusterIPs: {ip} is not served: spec.ipFamilies has no {family} at its place"
            ));
        } else {
            assigned.push(ip);
        }
    }
    if assigned.is_empty() && !is_other_family && !findings.refused() {
        findings.error("spec.clusterIPs: no address is left");
    }
    if assigned.is_empty() { ClusterAddress::Unassigned } else { ClusterAddress::Assigned(assigned) }
}

fn external_ips(spec: &ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let mut all = Vec::new();
    let texts = spec.external_ips.iter().flatten().zip(0..).filter(|(text, _)| !text.is_empty());
    for (text, i) in texts {
        all.extend(findings.usable(&format!("spec.externalIPs[{i}]"), values::frontend_ip(text)));
    }
    all
}

/// The ranges. If none of those of a family that are there can be read, it is unknown who may come, and not that all may:
/// the load balancer addresses of the family are left out.
fn source_ranges(spec: &ServiceSpec, ingress: &mut Vec<Ingress>, findings: &mut Findings) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = Vec::new();
    let mut unusable = [false; 2];
    let texts = spec.load_balancer_source_ranges.iter().flatten().zip(0..);
    for (text, i) in texts.filter(|(text, _)| !text.trim().is_empty()) {
        let net = findings.usable(&format!("spec.loadBalancerSourceRanges[{i}]"), values::cidr(text));
        unusable[usize::from(text.contains(':'))] |= net.is_none();
        all.extend(net);
    }
    for (is_unusable, is_ipv6) in unusable.into_iter().zip([false, true]) {
        if is_unusable && !all.iter().any(|net| net.addr().is_ipv6() == is_ipv6) {
            let family = if is_ipv6 { "IPv6" } else { "IPv4" };
            findings.warn(format!(
                "spec.loadBalancerSourceRanges: no {family} range is left: its {family} load balancer addresses are not served"
            ));
            ingress.retain(|ingress| ingress.ip.is_ipv6() != is_ipv6);
        }
    }
    all
}

fn ingress(raw: &Raw, findings: &mut Findings) -> Vec<Ingress> {
    let list = raw.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    let mut all = Vec::new();
    for (entry, i) in list.unwrap_or(&[]).iter().zip(0..) {
        let place = format!("status.loadBalancer.ingress[{i}]");
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let mode = match entry.ip_mode.as_deref() {
            None | Some("" | "VIP") => IngressMode::Vip,
            Some("Proxy") => IngressMode::Proxy,
            Some(other) => {
                // kube-proxy captures the address only in mode VIP.
                findings.warn(format!("{place}: {text:?} is left out: its ipMode {other:?} is unknown"));
                continue;
            }
        };
        let ip = findings.usable(&format!("{place}.ip"), values::frontend_ip(text));
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
            findings.invalid(format!("{place}.name is missing: a Service with several ports names each"));
        }
        let Some(port) = service_port(&place, raw_port, findings) else { continue };
        if port.node_port.is_some() && service_type == ServiceType::ClusterIp {
            findings.invalid(format!("{place}.nodePort: only for type NodePort or LoadBalancer"));
        }
        match all.iter().find_map(|other| conflict(other, &port)) {
            Some(conflict) => findings.invalid(format!("{place}: {conflict}")),
            None => all.push(port),
        }
    }
    if all.is_empty() && !raw.is_empty() && !may_be_empty && !findings.refused() {
        findings.error("spec.ports: no port is left");
    }
    all
}

fn service_port(place: &str, raw: &RawPort, findings: &mut Findings) -> Option<ServicePort> {
    let protocol: Option<Protocol> =
        findings.valid(&format!("{place}.protocol"), values::protocol(raw.protocol.as_deref()));
    let port = findings.valid(&format!("{place}.port"), values::port(raw.port));
    let name = raw.name.as_deref().unwrap_or("");
    let name = findings.valid(&format!("{place}.name"), values::port_name(name));
    // For display only, so that a number that is none does not take the port along.
    let target = match &raw.target_port {
        // The API server treats 0 and the empty name as unset.
        None | Some(IntOrString::Int(0)) => None,
        Some(IntOrString::Int(number)) => {
            findings.valid(&format!("{place}.targetPort"), values::port(*number)).map(TargetPort::Number)
        }
        Some(IntOrString::String(name)) if name.is_empty() => None,
        Some(IntOrString::String(name)) => Some(TargetPort::Name(name.clone())),
    };
    let node_port = raw.node_port.filter(|&number| number != 0);
    let node_port =
        node_port.and_then(|number| findings.valid(&format!("{place}.nodePort"), values::port(number)));
    let port = port?;
    Some(ServicePort {
        name: name?,
        protocol: protocol?,
        port,
        target_port: target.unwrap_or(TargetPort::Number(port)),
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
            // kube-proxy tells only Local from the others.
            findings.invalid(format!("{place}: unknown policy {other:?}: use Cluster or Local"));
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
                    findings.invalid(format!(
                        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not 1 to {AFFINITY_SECONDS_MAX}"
                    ));
                    let seconds = u64::try_from(seconds).unwrap_or(0).clamp(1, AFFINITY_SECONDS_MAX);
                    Affinity::ClientIp(Duration::from_secs(seconds))
                }
            }
        }
        Some(other) => {
            findings.invalid(format!("spec.sessionAffinity: unknown value {other:?}: use None or ClientIP"));
            Affinity::None
        }
    }
}

/// The API server's default: three hours.
const AFFINITY_SECONDS: i32 = 10_800;
/// The API server's limit: one day.
const AFFINITY_SECONDS_MAX: u64 = 86_400;
