//! The data of the comparison: Services, changes, probes, and expected differences.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::CompareOptions;
use super::objects;
use super::probe::Probe;
use crate::error::{Error, Result};
use crate::lab::kubernetes::ApiClient;

/// The manifests to apply first.
const SERVICES: [&str; 3] = [
    include_str!("cases/addresses.yaml"),
    include_str!("cases/policies.yaml"),
    include_str!("cases/endpoints.yaml"),
];
/// More Services, in a short form.
const SHORT: &str = include_str!("cases/short.yaml");
/// The manifests of the changes.
const CHANGES: &str = include_str!("cases/changes.yaml");
/// A Service that is deleted, and its twin.
pub(super) const DELETED: [&str; 2] = ["deleted", "deleted-v6"];
const PROBES: [(&str, &str); 2] = [
    ("probes.yaml", include_str!("cases/probes.yaml")),
    ("short-probes.yaml", include_str!("cases/short-probes.yaml")),
];
const EXPLAINED: &str = include_str!("cases/explained.yaml");

/// The objects, the probes and the expected differences.
pub(super) struct Cases {
    pub(super) objects: Vec<Value>,
    pub(super) changes: Vec<Value>,
    pub(super) probes: Vec<Probe>,
    explained: Vec<Explanation>,
}

/// An expected difference.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explanation {
    /// The ids of probes; each stands for its twin as well.
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
        let mut probes: Vec<Probe> = Vec::new();
        for (file, text) in PROBES {
            probes.extend(parse::<Vec<Probe>>(file, text)?);
        }
        let explained: Vec<Explanation> = parse("explained.yaml", EXPLAINED)?;
        let ids: BTreeSet<_> = probes.iter().map(|probe| probe.id.clone()).collect();
        if ids.len() < probes.len() {
            return Err(Error::State("two probes in probes.yaml have the same id".into()));
        }
        if let Some(unknown) = explained.iter().flat_map(|entry| &entry.probes).find(|id| !ids.contains(*id))
        {
            return Err(Error::State(format!("explained.yaml names {unknown}, which is not a probe")));
        }
        let twins: Vec<_> = probes.iter().map(objects::probe_twin).collect();
        probes.extend(twins);
        if let Some(only) = &options.only {
            probes.retain(|probe| probe.id.contains(only.as_str()));
        }
        let explained = explained.into_iter().filter(|entry| entry.roles.contains(&options.role)).collect();
        let objects = objects::load(&SERVICES, SHORT)?;
        Ok(Self { objects, changes: objects::load_manifest(CHANGES)?, probes, explained })
    }

    /// The explanation of a probe's difference, if any.
    pub(super) fn explanation(&self, probe: &str) -> Option<&Explanation> {
        let probe = probe.strip_suffix(objects::TWIN).unwrap_or(probe);
        self.explained.iter().find(|entry| entry.probes.contains(probe))
    }
}

/// Writes the status of load balancers, as a cloud controller would.
pub(super) fn write_statuses(client: &ApiClient, objects: &[Value]) -> Result<()> {
    let statuses: Vec<_> = objects.iter().filter(|object| !object["status"].is_null()).cloned().collect();
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
            assert!(cases.probes.len() >= 200, "{}", cases.probes.len());
            assert!(cases.explained.iter().all(|entry| entry.flowgate != entry.kube_proxy));
            assert!(cases.explained.iter().all(|entry| entry.reason.len() > 20));
        }
    }
}
