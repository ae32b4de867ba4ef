//! The health check ports that Services want, and their responses. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::StatusCode;
use serde::Serialize;

use super::Identity;
use super::local::ready_here;
use crate::compile::listed;
use crate::http::{self, HttpResponse};
use crate::model::{ClusterAddress, Desired, Key, NetState, Service, Stored};
use crate::report::{Entry, ObjectRef, Place, Severity};

/// One open port on one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// The Service that it belongs to.
    pub service: Key,
    /// Where the Service was read.
    pub place: Option<Place>,
    /// Distinct addresses of ready endpoints here, of the listening address's family.
    pub ready: usize,
}

/// All ports that must be open, and findings about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By listening address.
    pub ports: BTreeMap<SocketAddr, HealthPort>,
    /// Ports that cannot be opened as configured.
    pub findings: Vec<Entry>,
}

/// The wanted ports (P323, P1103, P1104). A Service listens in each family in which it has a cluster IP. Of two
/// Services with one port, the first in the order of names gets it.
pub fn wanted(desired: &Desired, net: &NetState, identity: &Identity) -> Wanted {
    let with_port: Vec<(&Key, &Stored<Service>, u16)> = desired
        .services()
        .iter()
        .filter_map(|(key, stored)| Some((key, stored, stored.object.health_check_port()?)))
        .collect();
    let mut wanted = Wanted::default();
    if with_port.is_empty() {
        return wanted;
    }
    let keys: HashSet<&Key> = with_port.iter().map(|(key, ..)| *key).collect();
    let ready = ready_here(desired, &keys, identity);
    let listen_on = listen_addresses(desired, net, identity);
    let mut owners: HashMap<u16, &Key> = HashMap::new();
    for (key, stored, port) in with_port {
        if let Some(owner) = owners.get(&port) {
            let reason =
                format!("healthCheckNodePort {port} belongs to Service {owner} already: choose another");
            wanted.findings.push(finding(key, stored.place.clone(), Severity::Error, reason));
            continue;
        }
        owners.insert(port, key);
        let ClusterAddress::Assigned(cluster) = &stored.object.cluster else { continue };
        let of_its_families =
            listen_on.iter().filter(|ip| cluster.iter().any(|own| own.is_ipv4() == ip.is_ipv4()));
        let mut listens = false;
        for &ip in of_its_families {
            let ready = ready.get(key).map_or(0, |ready| *ready.of(ip));
            let port_here = HealthPort { service: key.clone(), place: stored.place.clone(), ready };
            wanted.ports.insert(SocketAddr::new(ip, port), port_here);
            listens = true;
        }
        if !listens {
            let reason = format!(
                "healthCheckNodePort {port} is not open: no address of this node lies in nodeport_addresses"
            );
            wanted.findings.push(finding(key, stored.place.clone(), Severity::Warning, reason));
        }
    }
    wanted
}

/// P1104: the unspecified address of each family, or those of the node that `nodeport_addresses` selects (P306).
fn listen_addresses(desired: &Desired, net: &NetState, identity: &Identity) -> Vec<IpAddr> {
    let node = desired.node(&identity.node_name);
    let of_family = |any: IpAddr| {
        listed(&identity.nodeport_addresses, any.is_ipv4(), node, net).unwrap_or_else(|| vec![any])
    };
    let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    families.into_iter().flat_map(of_family).collect()
}

/// The response of a health check port (P1101), to any path and method: 200 if endpoints are ready here and this
/// process is healthy.
pub fn response(service: &Key, ready: usize, healthy: bool) -> HttpResponse {
    let status = if ready > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Body {
        service: Name { namespace: &service.namespace, name: &service.name },
        local_endpoints: ready,
        service_proxy_healthy: healthy,
    };
    let json = serde_json::to_vec(&body).expect("text, numbers and booleans are JSON");
    http::with_number(http::response(status, http::JSON, json), "x-load-balancing-endpoint-weight", ready)
}

/// A finding about a Service.
pub(super) fn finding(key: &Key, place: Option<Place>, severity: Severity, reason: String) -> Entry {
    let object = ObjectRef::new("Service", &key.namespace, &key.name);
    Entry { severity, place, object: Some(object), reason }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use flowgate_tables::spec::InterfaceSpec;
    use http_body_util::BodyExt;

    use super::*;
    use crate::compile::Role;
    use crate::model::{ServiceType, TrafficPolicy};
    use crate::source::manifests;

    /// The objects of a text.
    pub(crate) fn desired(yaml: &str) -> Desired {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), yaml).unwrap();
        let snapshot = manifests::read(dir.path()).unwrap();
        assert!(snapshot.findings.is_empty(), "{:?}", snapshot.findings);
        snapshot.desired
    }

    /// A node called `this`.
    pub(crate) fn node() -> Identity {
        Identity { role: Role::Node, node_name: "this".into(), nodeport_addresses: vec![] }
    }

    /// A Service `default/web` with a health check port, and its slice with these endpoints.
    pub(crate) fn yaml(service_type: &str, policy: &str, endpoints: &str) -> String {
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: {service_type}
  externalTrafficPolicy: {policy}
  healthCheckNodePort: 32000
  clusterIP: 10.96.0.1
  selector: {{app: web}}
  ports: [{{port: 80, nodePort: 30080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints:{endpoints}
"
        )
    }

    const TWO_HERE: &str = "
      - {addresses: [10.1.0.1], nodeName: this}
      - {addresses: [10.1.0.2], nodeName: This}
      - {addresses: [10.1.0.3], nodeName: other}
      - {addresses: [10.1.0.4]}";

    fn any(port: u16) -> SocketAddr {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }

    fn ready(desired: &Desired, identity: &Identity) -> Option<usize> {
        wanted(desired, &NetState::default(), identity).ports.get(&any(32_000)).map(|port| port.ready)
    }

    #[test]
    fn p323_only_a_load_balancer_with_policy_local_has_the_port() {
        let local = desired(&yaml("LoadBalancer", "Local", TWO_HERE));
        assert_eq!(
            wanted(&local, &NetState::default(), &node()).ports.len(),
            1,
            "only in the family of its cluster IP"
        );
        let zero = yaml("LoadBalancer", "Local", TWO_HERE).replace("32000", "0");
        let hidden = yaml("LoadBalancer", "Local", TWO_HERE).replacen(
            "{name: web}",
            "{name: web, labels: {service.kubernetes.io/service-proxy-name: x}}",
            1,
        );
        // The manifests source refuses the field where the API server would, hence without it.
        let cluster = yaml("LoadBalancer", "Cluster", TWO_HERE).replace("  healthCheckNodePort: 32000\n", "");
        for objects in [zero, hidden, cluster] {
            assert_eq!(
                wanted(&desired(&objects), &NetState::default(), &node()),
                Wanted::default(),
                "{objects}"
            );
        }
        let mut service = (*local.services()[&Key::new("default", "web")].object).clone();
        assert_eq!(service.health_check_port(), Some(32_000));
        service.service_type = ServiceType::NodePort;
        assert_eq!(service.health_check_port(), None);
        service.service_type = ServiceType::LoadBalancer;
        service.external_policy = TrafficPolicy::Cluster;
        assert_eq!(service.health_check_port(), None);
    }

    #[test]
    fn p1103_counts_distinct_ready_addresses_of_this_node_over_all_ports() {
        assert_eq!(ready(&desired(&yaml("LoadBalancer", "Local", TWO_HERE)), &node()), Some(2));
        // The same addresses again, behind another port.
        let again = format!(
            "{}---\n{}",
            yaml("LoadBalancer", "Local", TWO_HERE),
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: other, port: 9090}]
endpoints: [{addresses: [10.1.0.1], nodeName: this}, {addresses: [10.1.0.9], nodeName: this}]
"
        );
        assert_eq!(ready(&desired(&again), &node()), Some(3));
    }

    #[test]
    fn p1103_on_a_gateway_every_ready_endpoint_counts() {
        assert_eq!(ready(&desired(&yaml("LoadBalancer", "Local", TWO_HERE)), &Identity::default()), Some(4));
    }

    #[test]
    fn p1102_endpoints_that_end_do_not_count() {
        let ending = "
      - {addresses: [10.1.0.1], nodeName: this, conditions: {ready: false, serving: true, terminating: true}}";
        assert_eq!(ready(&desired(&yaml("LoadBalancer", "Local", ending)), &node()), Some(0));
    }

    #[test]
    fn p1104_listens_on_the_addresses_that_the_ranges_of_their_family_select() {
        let interface = InterfaceSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: flowgate_wire::MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            addresses: ["192.0.2.1", "198.51.100.1", "fe80::1"].map(|ip| ip.parse().unwrap()).to_vec(),
            vlan: None,
        };
        let net = NetState { interfaces: Arc::new(vec![interface]), ..NetState::default() };
        let objects = desired(&yaml("LoadBalancer", "Local", TWO_HERE));
        let listens = |ranges: &[&str]| {
            let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            wanted(&objects, &net, &Identity { nodeport_addresses: ranges, ..node() })
        };
        let addresses = |wanted: &Wanted| wanted.ports.keys().copied().collect::<Vec<_>>();
        assert_eq!(addresses(&listens(&["192.0.2.0/24"])), ["192.0.2.1:32000".parse().unwrap()]);
        assert_eq!(addresses(&listens(&["fe80::/10"])), [any(32_000)], "a range of the other family");
        let v6 = Identity { nodeport_addresses: vec!["fe80::/10".parse().unwrap()], ..node() };
        assert_eq!(
            listen_addresses(&Desired::default(), &net, &v6),
            [any(0).ip()],
            "nobody can listen on fe80::1 alone"
        );
        let nowhere = listens(&["203.0.113.0/24"]);
        assert!(nowhere.ports.is_empty());
        assert!(
            nowhere.findings[0].to_string().contains("no address of this node lies in nodeport_addresses")
        );
    }

    #[test]
    fn of_two_services_with_one_port_the_first_by_name_has_it_and_the_other_is_reported() {
        let first = yaml("LoadBalancer", "Local", TWO_HERE);
        let second =
            first.replace("web", "a-web").replace("30080", "30081").replace("10.96.0.1", "10.96.0.2");
        let wanted = wanted(&desired(&format!("{first}---\n{second}")), &NetState::default(), &node());
        assert_eq!(wanted.ports[&any(32_000)].service, Key::new("default", "a-web"));
        let said = wanted.findings[0].to_string();
        let expected = "Service default/web: healthCheckNodePort 32000 belongs to Service default/a-web already: choose another";
        assert!(said.ends_with(expected), "{said}");
    }

    #[tokio::test]
    async fn p1101_the_answer_has_its_code_body_and_headers() {
        let key = Key::new("default", "web");
        for (ready, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let response = response(&key, ready, healthy);
            assert_eq!(response.status().as_u16(), code);
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("x-load-balancing-endpoint-weight"), ready.to_string());
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let expected = format!(
                "{{\"service\":{{\"namespace\":\"default\",\"name\":\"web\"}},\"localEndpoints\":{ready},\
                 \"serviceProxyHealthy\":{healthy}}}"
            );
            assert_eq!(body, expected);
        }
    }
}
