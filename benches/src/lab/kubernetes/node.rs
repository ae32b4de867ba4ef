//! Node objects, which a kubelet would register.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

/// The properties of a Node that the lab varies.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Its addresses of type InternalIP, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NodeSpec {
    /// A node with one address and no labels.
    pub fn new(name: &str, address: impl Into<IpAddr>) -> Self {
        Self { name: name.to_owned(), addresses: vec![address.into()], labels: BTreeMap::new() }
    }

    /// Creates or updates the object with its status.
    pub(super) async fn register(&self, client: Client) -> kube::Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let by = PatchParams::apply("flowgate-lab").force();
        let identity = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": self.labels},
        });
        nodes.patch(&self.name, &by, &Patch::Apply(identity)).await?;
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .chain([json!({"type": "Hostname", "address": self.name})])
            .collect();
        let capacity = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let status = json!({"status": {
            "addresses": addresses,
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Lab", "message": "no kubelet needed"}],
        }});
        // Not a strategic merge, which keeps one address of each type.
        nodes.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }
}
