//! An object of any kind, from JSON: the entry point for all sources.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Findings, endpoint_slice, endpoints, namespace, node, service, service_cidr};
use crate::model::{Kind, Object};
use crate::report::{ObjectRef, Severity};

/// Converts an object of the given name. `None` if it must be refused; the findings have the reasons.
pub fn object(kind: Kind, name: &ObjectRef, value: Value) -> (Option<Object>, Vec<(Severity, String)>) {
    let mut findings = Findings::default();
    check_name("metadata.name", &name.name, &mut findings);
    if kind.is_namespaced() {
        check_name("metadata.namespace", &name.namespace, &mut findings);
    }
    let found = &mut findings;
    let object = match kind {
        Kind::Service => typed::<core::Service, _>(value, service, Object::Service, found),
        Kind::EndpointSlice => {
            typed::<discovery::EndpointSlice, _>(value, endpoint_slice, Object::EndpointSlice, found)
        }
        Kind::Endpoints => typed::<core::Endpoints, _>(value, endpoints, Object::Endpoints, found),
        Kind::Node => typed::<core::Node, _>(value, node, Object::Node, found),
        Kind::Namespace => typed::<core::Namespace, _>(value, namespace, Object::Namespace, found),
        Kind::ServiceCidr => {
            typed::<networking::ServiceCIDR, _>(value, service_cidr, Object::ServiceCidr, found)
        }
    };
    (object.filter(|_| !findings.refused()), findings.into_list())
}

fn typed<Raw: DeserializeOwned, T>(
    value: Value,
    read: fn(&Raw, &mut Findings) -> T,
    wrap: fn(Arc<T>) -> Object,
    findings: &mut Findings,
) -> Option<Object> {
    let raw: Result<Raw, _> = serde_path_to_error::deserialize(value);
    match raw {
        Ok(raw) => Some(wrap(Arc::new(read(&raw, findings)))),
        Err(error) => {
            findings.error(error.to_string());
            None
        }
    }
}

/// Checks a name for the characters that any kind of Kubernetes object allows.
fn check_name(what: &str, name: &str, findings: &mut Findings) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':');
    if name.is_empty() {
        findings.error(format!("{what} is missing"));
    } else if name.len() > NAME_LEN_MAX || !name.chars().all(allowed) {
        findings.error(format!("{what} {name:?} is not a valid name: use a-z, 0-9, '-' and '.'"));
    }
}

const NAME_LEN_MAX: usize = 253;
