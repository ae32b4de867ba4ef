//! The objects of a cluster, as plain values and as manifests.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<Slice>,
    pub(crate) endpoints: Vec<Endpoints>,
    pub(crate) service_cidrs: Vec<IpNet>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    /// `(type, address)` in the order of the object.
    pub(crate) addresses: Vec<(&'static str, IpAddr)>,
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) label: Option<&'static str>,
    /// None for headless.
    pub(crate) cluster_ips: Option<Vec<IpAddr>>,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) external_ips: Vec<IpAddr>,
    /// `(address, ipMode)`; without an address a host name.
    pub(crate) ingress: Vec<(Option<IpAddr>, Option<&'static str>)>,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) ports: Vec<Port>,
    pub(crate) affinity: bool,
    pub(crate) selector: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: &'static str,
    pub(crate) number: u16,
    pub(crate) node_port: Option<u16>,
}

#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service: Option<String>,
    pub(crate) label: Option<&'static str>,
    pub(crate) family: &'static str,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
pub(crate) struct SlicePort {
    pub(crate) name: String,
    /// None means TCP.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) number: Option<u16>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoint {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
    pub(crate) node: Option<String>,
    pub(crate) zones: Vec<String>,
    pub(crate) nodes: Vec<String>,
}

/// An object of the old API, of one subset.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) skip: bool,
    pub(crate) ready: Vec<(IpAddr, Option<String>)>,
    pub(crate) unready: Vec<(IpAddr, Option<String>)>,
    pub(crate) ports: Vec<SlicePort>,
}

impl Cluster {
    /// All objects, one JSON document each.
    pub(crate) fn manifests(&self) -> String {
        let cidr = (!self.service_cidrs.is_empty()).then(|| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": self.service_cidrs}})
        });
        let objects = self.nodes.iter().map(Node::json);
        let objects = objects.chain(self.services.iter().map(Service::json));
        let objects = objects.chain(self.slices.iter().map(Slice::json));
        let objects = objects.chain(self.endpoints.iter().map(Endpoints::json)).chain(cidr);
        objects.map(|object| object.to_string()).collect::<Vec<_>>().join("\n")
    }
}

impl Node {
    fn json(&self) -> Value {
        let labels: Map<_, _> =
            self.zone.iter().map(|zone| ("topology.kubernetes.io/zone".to_owned(), json!(zone))).collect();
        let mut addresses = vec![json!({"type": "Hostname", "address": self.name})];
        addresses.extend(self.addresses.iter().map(|(kind, ip)| json!({"type": kind, "address": ip})));
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels},
            "status": {"addresses": addresses}})
    }
}

impl Service {
    fn json(&self) -> Value {
        let labels: Map<_, _> = self.label.iter().map(|label| ((*label).to_owned(), json!(""))).collect();
        let ports: Vec<Value> = self.ports.iter().map(Port::json).collect();
        let ingress: Vec<Value> = self
            .ingress
            .iter()
            .map(|(ip, mode)| {
                let mut entry = match ip {
                    Some(ip) => json!({"ip": ip}),
                    None => json!({"hostname": "lb.example.org"}),
                };
                mode.iter().for_each(|mode| entry["ipMode"] = json!(mode));
                entry
            })
            .collect();
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let mut spec = json!({
            "type": self.kind, "ports": ports, "externalIPs": self.external_ips,
            "loadBalancerSourceRanges": self.ranges,
            "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
            "internalTrafficPolicy": policy(self.internal_local),
            "externalTrafficPolicy": policy(self.external_local),
        });
        match &self.cluster_ips {
            Some(ips) => {
                let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                spec["clusterIP"] = json!(ips[0]);
                spec["clusterIPs"] = json!(ips);
                spec["ipFamilies"] = ips.iter().map(family).collect();
            }
            None => spec["clusterIP"] = json!("None"),
        }
        if self.kind == "ExternalName" {
            spec["externalName"] = json!("db.example.org");
        }
        if self.selector {
            spec["selector"] = json!({"app": self.name});
        }
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}}})
    }
}

impl Port {
    fn json(&self) -> Value {
        let mut port = json!({"protocol": self.protocol, "port": self.number, "targetPort": 4711});
        if !self.name.is_empty() {
            port["name"] = json!(self.name);
        }
        self.node_port.iter().for_each(|number| port["nodePort"] = json!(number));
        port
    }
}

impl Slice {
    fn json(&self) -> Value {
        let mut labels = Map::new();
        labels.extend(self.label.iter().map(|label| ((*label).to_owned(), json!("x"))));
        labels.extend(self.service.iter().map(|name| ("kubernetes.io/service-name".to_owned(), json!(name))));
        let names = self.family == "FQDN";
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|endpoint| if names { json!({"addresses": ["db.example.org"]}) } else { endpoint.json() })
            .collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "addressType": self.family, "ports": self.ports.iter().map(SlicePort::json).collect::<Vec<_>>(),
            "endpoints": endpoints})
    }
}

impl SlicePort {
    fn json(&self) -> Value {
        json!({"name": self.name, "protocol": self.protocol, "port": self.number})
    }
}

impl Endpoint {
    fn json(&self) -> Value {
        let named =
            |list: &[String]| -> Vec<Value> { list.iter().map(|name| json!({"name": name})).collect() };
        json!({"addresses": self.addresses, "nodeName": self.node,
            "conditions": {"ready": self.ready, "serving": self.serving, "terminating": self.terminating},
            "hints": {"forZones": named(&self.zones), "forNodes": named(&self.nodes)}})
    }
}

impl Endpoints {
    fn json(&self) -> Value {
        let of = |list: &[(IpAddr, Option<String>)]| -> Vec<Value> {
            list.iter().map(|(ip, node)| json!({"ip": ip, "nodeName": node})).collect()
        };
        let labels =
            if self.skip { json!({"endpointslice.kubernetes.io/skip-mirror": "true"}) } else { json!({}) };
        let ports: Vec<Value> = self.ports.iter().map(SlicePort::json).collect();
        json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "subsets": [{"addresses": of(&self.ready), "notReadyAddresses": of(&self.unready), "ports": ports}]})
    }
}
