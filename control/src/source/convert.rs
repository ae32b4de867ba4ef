//! Kubernetes objects to the model, one at a time.
//!
//! What an API server accepts, now or when it stored the object, is taken: a single value that cannot be used (an address
//! that reaches nobody, an unknown mode) is left out with a warning, as kube-proxy leaves it out. An object is refused
//! only if nothing of it is left to serve, or if it cannot be read at all; never for its status, and a Node never for a
//! value. What an API server would refuse is an error in a manifest, with all reasons at once, since nobody has checked
//! it before; from the API it is a value that this version does not know, and as kube-proxy takes it.
//!
//! Manifests are read as the API server would store them: unset fields get its defaults. A value that is refused leaves
//! a placeholder, so that the rest of the object is still checked; an object with any error is not used.

mod endpoints;
mod node;
mod object;
mod service;
mod values;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use endpoints::{endpoint_slice, endpoints};
pub use node::{namespace, node, service_cidr};
pub use object::{accepted_object, object};
pub use service::service;

use crate::model::ExcludedBy;
use crate::report::Severity;

/// Who has checked an object before it is converted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CheckedBy {
    /// Nobody: it is of a manifest.
    #[default]
    Nobody,
    /// An API server, which may be newer or older than the rules here.
    ApiServer,
}

/// Errors and warnings about one object.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    checked_by: CheckedBy,
    list: Vec<(Severity, String)>,
}

impl Findings {
    /// The object must be refused.
    pub fn error(&mut self, reason: impl Into<String>) {
        self.list.push((Severity::Error, reason.into()));
    }

    /// The object is used, but probably not as it was meant.
    pub fn warn(&mut self, reason: impl Into<String>) {
        self.list.push((Severity::Warning, reason.into()));
    }

    /// An API server would refuse the object: an error if none has accepted it.
    fn invalid(&mut self, reason: impl Into<String>) {
        match self.checked_by {
            CheckedBy::Nobody => self.error(reason),
            CheckedBy::ApiServer => self.warn(reason),
        }
    }

    /// Whether the object must be refused.
    pub fn refused(&self) -> bool {
        self.list.iter().any(|(severity, _)| *severity == Severity::Error)
    }

    /// All findings, in the order they were added.
    pub fn into_list(self) -> Vec<(Severity, String)> {
        self.list
    }

    /// The value; one for which an API server would refuse the object becomes a finding about `place` and `None`.
    fn valid<T>(&mut self, place: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|reason| self.invalid(format!("{place}: {reason}"))).ok()
    }

    /// The value; one that an API server may have accepted but that cannot be used is left out with a warning.
    fn usable<T>(&mut self, place: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|reason| self.warn(format!("{place}: {reason}; it is left out"))).ok()
    }
}

/// P102: the label counts on Services only, as since Kubernetes 1.37, and whatever its value.
fn service_excluded_by(metadata: &ObjectMeta) -> Option<ExcludedBy> {
    has_label(metadata, "service.kubernetes.io/service-proxy-name").then_some(ExcludedBy::ServiceProxyName)
}

/// P103: the label counts on slices only, as since Kubernetes 1.37, and on Endpoints, whose labels are copied to the slices
/// that mirror them.
fn slice_excluded_by(metadata: &ObjectMeta) -> Option<ExcludedBy> {
    has_label(metadata, "service.kubernetes.io/headless").then_some(ExcludedBy::Headless)
}

fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{ClusterAddress, IngressMode, Kind, Object, Service, TrafficPolicy};
    use crate::report::ObjectRef;

    fn read(kind: Kind, name: &str, value: Value, by: CheckedBy) -> (Option<Object>, Vec<String>) {
        let namespace = if kind.is_namespaced() { "default" } else { "" };
        let name = ObjectRef::new(kind.name(), namespace, name);
        let (object, findings) = match by {
            CheckedBy::Nobody => object(kind, &name, value),
            CheckedBy::ApiServer => accepted_object(kind, &name, value),
        };
        (
            object,
            findings.into_iter().map(|(severity, reason)| format!("{}: {reason}", severity.name())).collect(),
        )
    }

    fn service(value: Value, by: CheckedBy) -> (Option<Service>, Vec<String>) {
        let (object, findings) = read(Kind::Service, "web", value, by);
        let service = object.map(|object| match object {
            Object::Service(service) => Service::clone(&service),
            other => panic!("{other:?}"),
        });
        (service, findings)
    }

    #[test]
    fn a_status_takes_no_service_along_and_link_local_addresses_are_served() {
        let value = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "127.0.0.1"}, {"ip": "0.0.0.0"}, {"ip": "::1"}, {"ip": "239.1.1.1"}, {"ip": "255.255.255.255"},
                {"ip": "nowhere"}, {"ip": ""}, {"hostname": "lb.example.org"}, {"ip": "203.0.113.1", "ipMode": "Later"},
                {"ip": "169.254.7.7"}, {"ip": "fe80::7"}, {"ip": "203.0.113.2", "ipMode": ""},
                {"ip": "::ffff:203.0.113.03", "ipMode": "Proxy"}]}}});
        for by in [CheckedBy::Nobody, CheckedBy::ApiServer] {
            let (read, findings) = service(value.clone(), by);
            let ingress = read.expect("it is served").ingress;
            let kept: Vec<String> = ingress.iter().map(|ingress| ingress.ip.to_string()).collect();
            assert_eq!(kept, ["169.254.7.7", "fe80::7", "203.0.113.2", "203.0.113.3"]);
            assert_eq!((ingress[2].mode, ingress[3].mode), (IngressMode::Vip, IngressMode::Proxy));
            assert_eq!(findings.len(), 7, "{findings:?}");
            assert_eq!(
                findings[0],
                "warning: status.loadBalancer.ingress[0].ip: 127.0.0.1 is a loopback address; it is left out"
            );
            assert!(
                findings
                    .iter()
                    .all(|finding| finding.starts_with("warning: ") && finding.contains("left out"))
            );
        }
        let undated = json!({"metadata": {"creationTimestamp": "2026-11-30"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
        let (undated, findings) = service(undated, CheckedBy::Nobody);
        assert_eq!(undated.expect("it is served").created_s, None);
        assert!(findings[0].ends_with("the metadata.creationTimestamp is left out"), "{findings:?}");
        let mixed = json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"conditions": [{"type": 5}], "loadBalancer": {"ingress": [
                null, {"ip": "203.0.113.1"}, 5, {"ip": 6}, {"ip": "203.0.113.2", "ports": [{"port": "x"}]}, "text"]}}});
        let (read, findings) = service(mixed, CheckedBy::Nobody);
        let read = read.expect("it is served");
        assert_eq!(read.ingress.len(), 2, "{findings:?}");
        assert_eq!(findings.len(), 6, "{findings:?}");
        let many = json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": vec![5; 100_000]}}});
        let (read, findings) = service(many, CheckedBy::Nobody);
        assert!(read.is_some() && findings.len() < 20, "{}", findings.len());
        let unreadable = json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": "none"}}});
        let (read, findings) = service(unreadable, CheckedBy::Nobody);
        assert!(read.is_some());
        assert!(
            findings[0].starts_with("warning: status.loadBalancer.ingress: invalid type"),
            "{findings:?}"
        );
    }

    #[test]
    fn addresses_and_ranges_that_cannot_be_used_are_left_out_one_by_one() {
        let value = json!({"spec": {"clusterIPs": ["10.96.0.1", "127.0.0.1"], "clusterIP": "10.96.0.1",
            "externalIPs": ["239.1.1.1", "192.0.2.9", "", "localhost", "169.254.0.9"],
            "loadBalancerSourceRanges": ["10.0.0.0/33", " 192.0.2.0/24 ", ""],
            "healthCheckNodePort": 70_000, "ports": [{"port": 80}]}});
        let (read, findings) = service(value, CheckedBy::ApiServer);
        let read = read.expect("it is served");
        assert_eq!(read.cluster, ClusterAddress::Assigned(vec!["10.96.0.1".parse().unwrap()]));
        let shown: Vec<String> = read.external_ips.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.9", "169.254.0.9"]);
        assert_eq!((read.source_ranges.len(), read.health_check_node_port), (1, None));
        assert_eq!(findings.len(), 5, "{findings:?}");
    }

    #[test]
    fn ranges_that_cannot_be_read_open_a_load_balancer_address_to_nobody() {
        let value = |ranges: Value| {
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
                "loadBalancerSourceRanges": ranges},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}})
        };
        let (closed, findings) = service(value(json!(["10.0.0.0/99"])), CheckedBy::ApiServer);
        assert_eq!(closed.expect("its cluster IP is served").ingress, []);
        assert!(
            findings[1].ends_with("no IPv4 range is left: its IPv4 load balancer addresses are not served")
        );
        let (closed, _) = service(value(json!(["10.0.0.0/99", "fd00::/8"])), CheckedBy::ApiServer);
        assert_eq!(closed.expect("its cluster IP is served").ingress, [], "of each family alone");
        for open in [
            json!(["fd00::/8", "fd00::/x"]),
            json!([""]),
            json!([]),
            json!(null),
            json!(["::ffff:0.0.0.0/96"]),
        ] {
            let (service, findings) = service(value(open), CheckedBy::ApiServer);
            assert_eq!(service.expect("it is served").ingress.len(), 1, "{findings:?}");
        }
    }

    #[test]
    fn what_only_a_newer_api_server_knows_is_taken_as_kube_proxy_takes_it() {
        let value = json!({"spec": {"type": "Anycast", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Nearest",
            "internalTrafficPolicy": "Nearest", "sessionAffinity": "Cookie",
            "ports": [{"name": "a", "port": 80, "nodePort": 30_080}, {"name": "b", "port": 81, "protocol": "QUIC"},
                {"name": "c", "port": 80}]}});
        let (accepted, findings) = service(value.clone(), CheckedBy::ApiServer);
        let accepted = accepted.expect("an API server has accepted it");
        assert_eq!(
            (accepted.external_policy, accepted.internal_policy),
            (TrafficPolicy::Cluster, TrafficPolicy::Cluster)
        );
        assert_eq!(accepted.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80]);
        assert_eq!((findings.len(), accepted.ports[0].node_port), (7, Some(30_080)), "{findings:?}");
        let (refused, findings) = service(value, CheckedBy::Nobody);
        assert!(refused.is_none(), "a manifest is refused as an API server would refuse it");
        assert_eq!(
            findings.iter().filter(|finding| finding.starts_with("error: ")).count(),
            7,
            "{findings:?}"
        );
    }

    #[test]
    fn a_service_of_which_nothing_is_left_is_refused_and_one_with_node_ports_is_not() {
        let with = |cluster_ip: &str, ports: Value| json!({"spec": {"type": "NodePort", "clusterIP": cluster_ip, "ports": ports}});
        let read = |value| service(value, CheckedBy::ApiServer);
        let (left, findings) = read(with("10.96.0.1", json!([{"port": 0}])));
        assert!(
            left.is_none() && findings.contains(&"error: spec.ports: no port is left".to_owned()),
            "{findings:?}"
        );
        let (left, findings) = read(with("127.0.0.1", json!([{"port": 80}])));
        assert!(left.is_none(), "{findings:?}");
        let (left, findings) = read(with("127.0.0.1", json!([{"port": 80, "nodePort": 30_080}])));
        assert!(left.is_some(), "{findings:?}");
        let (left, findings) = read(with("nowhere", json!([{"port": 80, "nodePort": 30_080}])));
        assert!(left.is_none(), "P105: {findings:?}");
    }

    #[test]
    fn an_endpoint_or_a_port_takes_no_slice_along() {
        let value = json!({"addressType": "IPv4",
            "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 70_000}, {"name": "c", "port": -1},
                {"name": "d", "port": 81, "protocol": "QUIC"}, {"name": "e"}, {"name": "f", "port": 82, "protocol": ""},
                {"name": "a", "port": 8081}, {"name": "\u{1b}", "port": 83}],
            "endpoints": [{"addresses": ["224.0.1.1"]}, {"addresses": ["10.244.0.1"]}, {"addresses": []},
                {"addresses": ["fd00::1"]}, {"addresses": ["169.254.1.1"]}, {"addresses": ["10.244.000.002"]},
                {"addresses": ["pod"]}, {"addresses": ["::ffff:10.244.0.3"]}]});
        for by in [CheckedBy::Nobody, CheckedBy::ApiServer] {
            let (object, findings) = read(Kind::EndpointSlice, "web-1", value.clone(), by);
            let Some(Object::EndpointSlice(slice)) = object else { panic!("{findings:?}") };
            let addresses: Vec<String> =
                slice.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect();
            assert_eq!(addresses, ["10.244.0.1", "10.244.0.2", "10.244.0.3"]);
            let ports: Vec<u16> = slice.ports.iter().map(|port| port.port).collect();
            assert_eq!(ports, [8080, 82, 8081]);
            assert_eq!(findings.len(), 10, "{findings:?}");
        }
        let subsets = json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}, {"ip": "10.244.0.1"}],
            "ports": [{"name": "a", "port": 0}, {"name": "b", "port": 80}]}]});
        let (object, findings) = read(Kind::Endpoints, "db", subsets, CheckedBy::Nobody);
        let Some(Object::Endpoints(endpoints)) = object else { panic!("{findings:?}") };
        assert_eq!((endpoints.subsets[0].addresses.len(), endpoints.subsets[0].ports.len()), (1, 1));
    }

    #[test]
    fn empty_texts_are_as_unset_and_metadata_that_nothing_reads_may_have_any_form() {
        let value = json!({
            "metadata": {"generation": "5", "uid": 6, "resourceVersion": 7, "ownerReferences": "", "finalizers": {},
                "selfLink": [], "deletionTimestamp": "", "namespace": ""},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": [""], "ipFamilies": [""], "type": "", "externalName": "",
                "loadBalancerIP": "", "sessionAffinity": "", "ipFamilyPolicy": "", "ports": [
                    {"name": "", "port": 80, "protocol": "", "targetPort": "", "appProtocol": ""}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "", "hostname": "", "ipMode": ""}]}}});
        let (read, findings) = service(value, CheckedBy::Nobody);
        let read = read.unwrap_or_else(|| panic!("{findings:?}"));
        assert_eq!(read.cluster, ClusterAddress::Assigned(vec!["10.96.0.1".parse().unwrap()]));
        assert_eq!((read.ports[0].port, findings.len()), (80, 1), "{findings:?}");
        assert!(findings[0].starts_with("warning: metadata.deletionTimestamp: "), "{findings:?}");
    }

    #[test]
    fn a_node_is_never_refused_for_a_value() {
        let value = json!({"metadata": {"labels": {"zone": "z", "empty": null}},
            "spec": {"podCIDRs": ["10.244.0.0/16", "10.244.0.0/33"]},
            "status": {"addresses": [{"type": "InternalIP", "address": ""}, {"type": "InternalIP", "address": "edge.example.org"},
                {"type": "InternalIP", "address": "127.0.0.1"}, {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "192.0.2.010"}, {"type": "Hostname", "address": "edge"}]}});
        let (object, findings) = read(Kind::Node, "edge", value, CheckedBy::Nobody);
        let Some(Object::Node(node)) = object else { panic!("{findings:?}") };
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.10", "203.0.113.1"]);
        assert_eq!((node.pod_cidrs.len(), node.labels["empty"].as_str()), (1, ""));
        assert_eq!(findings.len(), 4, "{findings:?}");
        for broken in [
            json!({"status": 5, "spec": {"podCIDR": "10.244.0.0/24"}}),
            json!({"spec": [], "status": {"addresses": {}}}),
        ] {
            let (object, findings) = read(Kind::Node, "edge", broken, CheckedBy::Nobody);
            assert!(object.is_some() && findings.iter().all(|f| f.starts_with("warning: ")), "{findings:?}");
        }
        let (cidr, findings) = read(
            Kind::ServiceCidr,
            "c",
            json!({"spec": {"cidrs": ["10.96.0.0/16", "x", "0.0.0.0/0", "::/0"]}}),
            CheckedBy::ApiServer,
        );
        assert!(matches!(cidr, Some(Object::ServiceCidr(cidr)) if cidr.cidrs.len() == 1), "{findings:?}");
    }
}
