//! The data of the comparison: Services, changes, probes, and expected differences.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::CompareOptions;
use super::probe::Probe;
use crate::error::{Error, Result};
use crate::lab::kubernetes::ApiClient;

/// The manifests to apply first.
pub(super) const SERVICES: [&str; 3] = [
    include_str!("cases/addresses.yaml"),
    include_str!("cases/policies.yaml"),
    include_str!("cases/endpoints.yaml"),
];
/// The manifests of the changes.
pub(super) const CHANGES: &str = include_str!("cases/changes.yaml");
const PROBES: &str = include_str!("cases/probes.yaml");
const EXPLAINED: &str = include_str!("cases/explained.yaml");

/// The probes and the expected differences.
pub(super) struct Cases {
    pub(super) probes: Vec<Probe>,
    explained: Vec<Explanation>,
}

/// An expected difference.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explanation {
    /// The ids of probes.
    probes: BTreeSet<String>,
    /// The roles of the gateway that it applies to.
    roles: BTreeSet<String>,
    /// The observation through Flowgate, as printed in the table.
    pub(super) flowgate: String,
    /// The observation through kube-proxy.
    pub(super) kube_proxy: String,
    /// The explanation.
    pub(super) reason: String,
}

impl Cases {
    /// Reads the data and checks it for consistency.
    pub(super) fn load(options: &CompareOptions) -> Result<Self> {
        let mut probes: Vec<Probe> = parse("probes.yaml", PROBES)?;
        let explained: Vec<Explanation> = parse("explained.yaml", EXPLAINED)?;
        let ids: BTreeSet<_> = probes.iter().map(|probe| probe.id.clone()).collect();
        if ids.len() < probes.len() {
            return Err(Error::State("two probes in probes.yaml have the same id".into()));
        }
        if let Some(unknown) = explained.iter().flat_map(|entry| &entry.probes).find(|id| !ids.contains(*id))
        {
            return Err(Error::State(format!("explained.yaml names {unknown}, which is not a probe")));
        }
        if let Some(only) = &options.only {
            probes.retain(|probe| probe.id.contains(only.as_str()));
        }
        let explained = explained.into_iter().filter(|entry| entry.roles.contains(&options.role)).collect();
        Ok(Self { probes, explained })
    }

    /// The explanation of a probe's difference, if any.
    pub(super) fn explanation(&self, probe: &str) -> Option<&Explanation> {
        self.explained.iter().find(|entry| entry.probes.contains(probe))
    }
}

/// Writes the status of load balancers, as a cloud controller would.
pub(super) fn write_statuses(client: &ApiClient) -> Result<()> {
    let mut statuses = Vec::new();
    for manifest in SERVICES {
        let objects: Vec<Value> = serde_saphyr::from_multiple(manifest).map_err(|error| {
            Error::State(format!("a manifest of the comparison is not valid YAML: {error}"))
        })?;
        statuses.extend(objects.into_iter().filter(|object| !object["status"].is_null()));
    }
    client.run("write the addresses of load balancers", |client| async move {
        let services: Api<Service> = Api::default_namespaced(client);
        for object in &statuses {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let status = Patch::Merge(json!({"status": object["status"]}));
            services.patch_status(name, &PatchParams::default(), &status).await?;
        }
        Ok(())
    })
}

/// A Service with backend-1 as its only endpoint.
pub(super) fn sentinel(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: sentinel-{name}}}\nspec:\n  ports: [{{name: tcp, port: 80}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: sentinel-{name}\n  labels: \
         {{kubernetes.io/service-name: sentinel-{name}}}\naddressType: IPv4\nports: [{{name: tcp, protocol: TCP, port: \
         8080}}]\nendpoints: [{{addresses: [10.244.0.11], conditions: {{ready: true}}}}]\n"
    )
}

fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T> {
    serde_saphyr::from_str(text).map_err(|error| Error::State(format!("{file} of the comparison: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_the_comparison_hangs_together() {
        for role in ["gateway", "node"] {
            let cases = Cases::load(&CompareOptions { role: role.into(), only: None }).unwrap();
            assert!(cases.probes.len() > 60);
            assert!(cases.explained.iter().all(|entry| entry.flowgate != entry.kube_proxy));
            assert!(cases.explained.iter().all(|entry| entry.reason.len() > 20));
        }
    }
}
