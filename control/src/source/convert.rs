//! Kubernetes objects to the model, one at a time. What the API server would refuse is refused, with all reasons.
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
pub use object::object;
pub use service::service;

use crate::model::ExcludedBy;
use crate::report::Severity;

/// Errors and warnings about one object.
#[derive(Clone, Debug, Default)]
pub struct Findings {
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

    /// Whether the object must be refused.
    pub fn refused(&self) -> bool {
        self.list.iter().any(|(severity, _)| *severity == Severity::Error)
    }

    /// All findings, in the order they were added.
    pub fn into_list(self) -> Vec<(Severity, String)> {
        self.list
    }

    /// The value; an error becomes a finding about `place` and `None`.
    fn ok<T>(&mut self, place: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|reason| self.error(format!("{place}: {reason}"))).ok()
    }
}

fn excluded_by(metadata: &ObjectMeta) -> Option<ExcludedBy> {
    let has = |label: &str| metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    if has("service.kubernetes.io/service-proxy-name") {
        Some(ExcludedBy::ServiceProxyName)
    } else if has("service.kubernetes.io/headless") {
        Some(ExcludedBy::Headless)
    } else {
        None
    }
}
