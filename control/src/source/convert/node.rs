//! Nodes, Namespaces and ServiceCIDRs.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace as RawNamespace, Node as RawNode};
use k8s_openapi::api::networking::v1::ServiceCIDR as RawServiceCidr;

use super::{Findings, values};
use crate::model::{Namespace, Node, ServiceCidr};

/// Reads a Node; addresses of other types (host names) are left out. No value makes it unusable: without an address it
/// still has labels, which decide on zones.
pub fn node(raw: &RawNode, findings: &mut Findings) -> Node {
    let list = raw.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or(&[]);
    let mut addresses = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (address, i) in list.iter().zip(0..).filter(|(address, _)| address.type_ == wanted) {
            let place = format!("status.addresses[{i}].address");
            addresses.extend(findings.usable(&place, values::frontend_ip(&address.address)));
        }
    }
    let mut pod_cidrs = Vec::new();
    let spec = raw.spec.as_ref();
    let texts = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or(&[]);
    // The API server keeps the older field of one range equal to the first of these.
    let older =
        spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|text| texts.is_empty() && !text.is_empty());
    for (text, i) in texts.iter().chain(older).zip(0..) {
        pod_cidrs.extend(findings.usable(&format!("spec.podCIDRs[{i}]"), values::cidr(text)));
    }
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or(&[]);
    Node {
        addresses,
        labels: raw.metadata.labels.clone().unwrap_or_default(),
        pod_cidrs,
        is_leaving: raw.metadata.deletion_timestamp.is_some()
            || taints.iter().any(|taint| taint.key == "ToBeDeletedByClusterAutoscaler"),
    }
}

/// Reads a Namespace.
pub fn namespace(raw: &RawNamespace) -> Namespace {
    Namespace { labels: raw.metadata.labels.clone().unwrap_or_default() }
}

/// Reads a ServiceCIDR.
pub fn service_cidr(raw: &RawServiceCidr, findings: &mut Findings) -> ServiceCidr {
    let list = raw.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or(&[]);
    let mut cidrs = Vec::new();
    for (text, i) in list.iter().zip(0..) {
        // Packets to free addresses of a range are dropped: that must not be all there are.
        let is_some = |cidr: IpNet| match cidr.prefix_len() {
            0 => Err(format!("{cidr} is every address")),
            _ => Ok(cidr),
        };
        let cidr = values::cidr(text).and_then(is_some);
        cidrs.extend(findings.usable(&format!("spec.cidrs[{i}]"), cidr));
    }
    ServiceCidr { cidrs }
}
