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
        Kind::Service | Kind::ServiceCidr => &["status", CREATED, DELETED],
        Kind::Node | Kind::Namespace => &["status", "spec", CREATED, DELETED],
        Kind::EndpointSlice | Kind::Endpoints => &[CREATED, DELETED],
    }
}

/// The object as its type in the API. Of a spared part, the item of a list that is of another form is left out with a warning,
/// else all of it.
fn typed<Raw: DeserializeOwned>(mut value: Value, spared: &[&str], findings: &mut Findings) -> Option<Raw> {
    let mut items_left_out = 0;
    loop {
        let error = match serde_path_to_error::deserialize::<_, Raw>(&value) {
            Ok(raw) => return Some(raw),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let part = spared.iter().find(|part| {
            path.strip_prefix(**part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        if part.is_some() && items_left_out < SPARED_ITEMS_MAX && remove_item(&mut value, &path) {
            items_left_out += 1;
            findings.warn(format!("{error}; it is left out"));
            continue;
        }
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

/// Removes the item of the innermost list that a path such as `status.addresses[2].type` leads through; returns whether there
/// is one.
fn remove_item(value: &mut Value, path: &str) -> bool {
    let Some((list, rest)) = path.rsplit_once('[') else { return false };
    let Some(position) = rest.split(']').next().and_then(|number| number.parse::<usize>().ok()) else {
        return false;
    };
    let pointer = format!("/{}", list.replace(['.', '['], "/").replace(']', ""));
    let Some(items) = value.pointer_mut(&pointer).and_then(Value::as_array_mut) else { return false };
    let is_there = position < items.len();
    if is_there {
        items.remove(position);
    }
    is_there
}

/// As Go decodes JSON: in a map of texts `null` is the empty text. Everywhere else it means that a field is unset, as it
/// does to the types.
fn unset_nulls(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        // Nothing here reads the others, some of which are the largest part of many objects.
        metadata.retain(|field, _| METADATA.contains(&field.as_str()));
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
/// The fields of an object's metadata that are read.
const METADATA: [&str; 6] =
    ["name", "namespace", "labels", "annotations", "creationTimestamp", "deletionTimestamp"];
/// Items that are left out of one object one by one; beyond them the part is: each takes a reading of the whole object.
const SPARED_ITEMS_MAX: usize = 16;
/// Only tells that a Node leaves.
const DELETED: &str = "metadata.deletionTimestamp";
/// Only decides who of two is the elder.
const CREATED: &str = "metadata.creationTimestamp";
