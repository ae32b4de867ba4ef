//! The objects of the comparison: manifests, Services in a short form, and the IPv6 twin of each.
//!
//! A twin is the same object in the other family: each address is replaced by [`ipv6_of`], names get a suffix, NodePorts move
//! by [`NODE_PORT_STEP`]. So every rule is compared in both families with data that cannot drift apart.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};

use super::probe::{Probe, Target};
use crate::error::{Error, Result};
use crate::lab::topology::ipv6_of;

/// From the NodePort of a Service to that of its twin.
const NODE_PORT_STEP: u16 = 50;
const NODE_PORTS: std::ops::Range<u16> = 30_000..32_768;
/// Health check ports, in the part of the range that the API server gives to nobody who does not name one.
const FIRST_HEALTH_PORT: usize = 30_010;

/// A Service in a short form, with one EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortService {
    name: String,
    spec: Value,
    /// Addresses in the status of the load balancer.
    #[serde(default)]
    ingress: Vec<String>,
    /// `NUMBER[:STATE][@ZONE...]` or `NUMBER[:STATE]%NODE`: see [`endpoint`].
    endpoints: Vec<String>,
}

/// All objects of these manifests and short forms, each followed by its twin.
pub(super) fn load(manifests: &[&str], short: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for manifest in manifests {
        objects.extend(documents(manifest)?);
    }
    let services: Vec<ShortService> = serde_saphyr::from_str(short).map_err(invalid)?;
    for service in &services {
        objects.extend(service.objects()?);
    }
    let mut all = with_twins(objects);
    let needs_port = |object: &&mut Value| {
        object["spec"]["externalTrafficPolicy"] == "Local" && object["spec"]["type"] == "LoadBalancer"
    };
    // Otherwise the API server takes any, perhaps one that a later Service names as its NodePort.
    for (number, service) in all.iter_mut().filter(needs_port).enumerate() {
        service["spec"]["healthCheckNodePort"] = json!(FIRST_HEALTH_PORT + number);
    }
    Ok(all)
}

/// The objects of one manifest, each followed by its twin.
pub(super) fn load_manifest(manifest: &str) -> Result<Vec<Value>> {
    documents(manifest).map(with_twins)
}

/// Objects as `kubectl apply` takes them.
pub(super) fn as_list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// The twin of a probe: the same question about the twins of its Services.
pub(super) fn probe_twin(probe: &Probe) -> Probe {
    let address = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            let port = if NODE_PORTS.contains(&v4.port()) { v4.port() + NODE_PORT_STEP } else { v4.port() };
            SocketAddr::from((ipv6_of(*v4.ip()), port))
        }
        SocketAddr::V6(_) => address,
    };
    let target = |target: &Target| match *target {
        Target::Tcp(at) => Target::Tcp(address(at)),
        Target::Udp(at) => Target::Udp(address(at)),
        Target::Sctp(at) => Target::Sctp(address(at)),
    };
    Probe {
        id: format!("{}{TWIN}", probe.id),
        about: format!("{}, IPv6", probe.about),
        to: probe.to.iter().map(target).collect(),
        ..probe.clone()
    }
}

/// The end of a twin's name.
pub(super) const TWIN: &str = "-v6";

fn documents(manifest: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(manifest).map_err(invalid)
}

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::State(format!("a manifest of the comparison is not valid YAML: {error}"))
}

fn with_twins(objects: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::with_capacity(2 * objects.len());
    for object in objects {
        let twin = twin(object.clone());
        all.extend([object, twin]);
    }
    all
}

fn twin(mut object: Value) -> Value {
    rename(&mut object["metadata"]["name"]);
    match object["kind"].as_str() {
        Some("Service") => {
            let spec = &mut object["spec"];
            if spec["type"] != "ExternalName" {
                spec["ipFamilies"] = json!(["IPv6"]);
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                if let Some(number) = port["nodePort"].as_u64() {
                    port["nodePort"] = json!(number + u64::from(NODE_PORT_STEP));
                }
            }
        }
        Some("EndpointSlice") => {
            object["addressType"] = json!("IPv6");
            rename(&mut object["metadata"]["labels"]["kubernetes.io/service-name"]);
        }
        _ => {}
    }
    translate(&mut object);
    object
}

fn rename(name: &mut Value) {
    if let Some(text) = name.as_str() {
        *name = json!(format!("{text}{TWIN}"));
    }
}

/// Replaces every IPv4 address and network of one address.
fn translate(value: &mut Value) {
    match value {
        Value::String(text) => {
            let (address, len) = text.split_once('/').map_or((&**text, None), |(at, len)| (at, Some(len)));
            if let Ok(v4) = address.parse::<Ipv4Addr>() {
                let network = if len == Some("32") { "/128" } else { "" };
                *text = format!("{}{network}", ipv6_of(v4));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(translate),
        Value::Object(fields) => fields.values_mut().for_each(translate),
        _ => {}
    }
}

impl ShortService {
    fn objects(&self) -> Result<[Value; 2]> {
        let endpoints = self.endpoints.iter().map(|text| endpoint(text));
        let endpoints = endpoints.collect::<Option<Vec<_>>>();
        let endpoints = endpoints.ok_or_else(|| {
            Error::State(format!("an endpoint of {} is not valid: {:?}", self.name, self.endpoints))
        })?;
        let ports = self.spec["ports"].as_array().into_iter().flatten();
        let port = |port: &Value| json!({"name": port["name"], "protocol": port["protocol"], "port": port["targetPort"]});
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name}, "spec": self.spec,
        });
        if !self.ingress.is_empty() {
            let ingress: Vec<_> = self.ingress.iter().map(|ip| json!({"ip": ip})).collect();
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-1", self.name),
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": "IPv4",
            "ports": ports.map(port).collect::<Vec<_>>(),
            "endpoints": endpoints,
        });
        Ok([service, slice])
    }
}

/// The endpoint of a backend by its number, on node `edge` if that is 1 and on `worker` otherwise, with its state and the
/// zones (`@`) or the node (`%`) of its hints.
fn endpoint(text: &str) -> Option<Value> {
    let (text, node) = text.split_once('%').map_or((text, None), |(rest, node)| (rest, Some(node)));
    let mut parts = text.split('@');
    let (number, state) = parts.next().map(|first| first.split_once(':').unwrap_or((first, "ready")))?;
    let number: u8 = number.parse().ok()?;
    let conditions = match state {
        "ready" => json!({"ready": true}),
        "unknown" => json!({}),
        "unready" => json!({"ready": false, "serving": false}),
        "leaving" => json!({"ready": false, "serving": true, "terminating": true}),
        "leaving-ready" => json!({"ready": true, "serving": true, "terminating": true}),
        "leaving-unknown" => json!({"ready": false, "terminating": true}),
        "gone" => json!({"ready": false, "serving": false, "terminating": true}),
        _ => return None,
    };
    let address = IpAddr::from([10, 244, 0, 10 + number]);
    let place = if number == 1 { "edge" } else { "worker" };
    let mut endpoint = json!({"addresses": [address], "nodeName": place, "conditions": conditions});
    let zones: Vec<_> = parts.map(|zone| json!({"name": zone})).collect();
    if !zones.is_empty() {
        endpoint["hints"] = json!({"forZones": zones});
    }
    if let Some(node) = node {
        endpoint["hints"]["forNodes"] = json!([{"name": node}]);
    }
    Some(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_the_same_object_in_the_other_family() {
        let short = "[{name: a, spec: {clusterIP: 10.96.10.1, loadBalancerSourceRanges: [192.0.2.10/32], ports: [{name: t, \
                     protocol: TCP, port: 80, targetPort: 8080, nodePort: 30101}]}, ingress: [203.0.113.1], endpoints: \
                     ['2:leaving@b']}]";
        let objects = load(&[], short).unwrap();
        let [service, twin, slice, slice_twin] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!(service["spec"]["clusterIP"], "10.96.10.1");
        assert_eq!(twin["metadata"]["name"], "a-v6");
        assert_eq!(twin["spec"]["clusterIP"], "2001:db8:10:96::10:1");
        assert_eq!(twin["spec"]["loadBalancerSourceRanges"][0], "2001:db8:192::2:10/128");
        assert_eq!(twin["spec"]["ports"][0]["nodePort"], 30_151);
        assert_eq!(twin["status"]["loadBalancer"]["ingress"][0]["ip"], "2001:db8:203::113:1");
        assert_eq!(slice["endpoints"][0]["conditions"]["serving"], true);
        assert_eq!(slice_twin["metadata"]["labels"]["kubernetes.io/service-name"], "a-v6");
        assert_eq!(slice_twin["addressType"], "IPv6");
        assert_eq!(slice_twin["endpoints"][0]["addresses"][0], "2001:db8:10:244::12");
        assert_eq!(slice_twin["endpoints"][0]["hints"]["forZones"][0]["name"], "b");
    }
}
