//! An object of any kind, from JSON: the entry point for all sources.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CheckedBy, Findings, endpoint_slice, endpoints, namespace, node, service, service_cidr};
use crate::model::{Kind, Object};
use crate::report::{ObjectRef, Severity};

/// Converts an object of the given name that nobody has checked. `None` if it must be refused; the findings have the
/// reasons.
pub fn object(kind: Kind, name: &ObjectRef, value: Value) -> (Option<Object>, Vec<(Severity, String)>) {
    convert(kind, name, value, Findings { checked_by: CheckedBy::Nobody, ..Findings::default() })
}

/// As [`object`], for one that an API server has accepted: `None` only if nothing of it is left to serve.
pub fn accepted_object(
    kind: Kind,
    name: &ObjectRef,
    value: Value,
) -> (Option<Object>, Vec<(Severity, String)>) {
    convert(kind, name, value, Findings { checked_by: CheckedBy::ApiServer, ..Findings::default() })
}

fn convert(
    kind: Kind,
    name: &ObjectRef,
    mut value: Value,
    mut findings: Findings,
) -> (Option<Object>, Vec<(Severity, String)>) {
    check_name("metadata.name", &name.name, &mut findings);
    if kind.is_namespaced() {
        check_name("metadata.namespace", &name.namespace, &mut findings);
    }
    unset_nulls(&mut value);
    let (parts, found) = (spared_parts(kind), &mut findings);
    let object = match kind {
        Kind::Service => typed::<core::Service>(value, parts, found)
            .map(|raw| Object::Service(Arc::new(service(&raw, found)))),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(value, parts, found)
            .map(|raw| Object::EndpointSlice(Arc::new(endpoint_slice(&raw, found)))),
        Kind::Endpoints => typed::<core::Endpoints>(value, parts, found)
            .map(|raw| Object::Endpoints(Arc::new(endpoints(&raw, found)))),
        Kind::Node => {
            typed::<core::Node>(value, parts, found).map(|raw| Object::Node(Arc::new(node(&raw, found))))
        }
        Kind::Namespace => typed::<core::Namespace>(value, parts, found)
            .map(|raw| Object::Namespace(Arc::new(namespace(&raw)))),
        Kind::ServiceCidr => typed::<networking::ServiceCIDR>(value, parts, found)
            .map(|raw| Object::ServiceCidr(Arc::new(service_cidr(&raw, found)))),
    };
    (object.filter(|_| !findings.refused()), findings.into_list())
}

/// Parts of an object that do not take it along if they cannot be read: others than the owner write a status, and of a
/// Node whatever can be read counts.
const fn spared_parts(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service | Kind::ServiceCidr => &["status", CREATED],
        Kind::Node | Kind::Namespace => &["status", "spec", CREATED],
        Kind::EndpointSlice | Kind::Endpoints => &[CREATED],
    }
}

/// The object as its type in the API. A spared part that is of another form is left out with a warning.
fn typed<Raw: DeserializeOwned>(mut value: Value, spared: &[&str], findings: &mut Findings) -> Option<Raw> {
    loop {
        let error = match serde_path_to_error::deserialize::<_, Raw>(&value) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let part = spared.iter().find(|part| {
            path.strip_prefix(**part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        match part.filter(|part| remove(&mut value, part)) {
            Some(part) => findings.warn(format!("{error}; the {part} is left out")),
            None => {
                findings.error(error.to_string());
                return None;
            }
        }
    }
}

/// Removes a field, or a field of a field; returns whether it was there.
fn remove(value: &mut Value, part: &str) -> bool {
    let (parent, field) = match part.split_once('.') {
        Some((parent, field)) => (value.get_mut(parent), field),
        None => (Some(value), part),
    };
    parent.and_then(Value::as_object_mut).and_then(|fields| fields.remove(field)).is_some()
}

/// As Go decodes JSON: in a map of texts `null` is the empty text. Everywhere else it means that a field is unset, as it
/// does to the types.
fn unset_nulls(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // Nothing here reads it, and it is the largest part of many objects.
        metadata.remove("managedFields");
    }
    for map in ["/metadata/labels", "/metadata/annotations", "/spec/selector"] {
        let texts = value.pointer_mut(map).and_then(Value::as_object_mut).into_iter().flatten();
        texts.map(|(_, text)| text).filter(|text| text.is_null()).for_each(|text| *text = "".into());
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
/// Only decides who of two is the elder.
const CREATED: &str = "metadata.creationTimestamp";
