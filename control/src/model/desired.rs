//! The index of all objects. Never judges them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{EndpointSlice, Endpoints, Namespace, Node, Service, ServiceCidr};
use crate::report::{ObjectRef, Place};

/// Names an object among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key with these parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object of any kind that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// An Endpoints object.
    Endpoints(Arc<Endpoints>),
    /// A Node.
    Node(Arc<Node>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

/// An object with where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<T> {
    /// The object.
    pub object: Arc<T>,
    /// Where it was read, if from a file.
    pub place: Option<Place>,
}

/// How many objects of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the kinds")]
pub struct ObjectCounts {
    pub services: usize,
    pub endpoint_slices: usize,
    pub endpoints: usize,
    pub nodes: usize,
    pub namespaces: usize,
    pub service_cidrs: usize,
}

/// What the user wants: all objects by kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    services: BTreeMap<Key, Kept<Service>>,
    slices: BTreeMap<Key, Kept<EndpointSlice>>,
    endpoints: BTreeMap<Key, Kept<Endpoints>>,
    nodes: BTreeMap<Key, Kept<Node>>,
    namespaces: BTreeMap<Key, Kept<Namespace>>,
    service_cidrs: BTreeMap<Key, Kept<ServiceCidr>>,
}

impl Desired {
    /// Adds an object or replaces the one of its kind and name.
    pub fn apply(&mut self, key: Key, object: Object, place: Option<Place>) {
        match object {
            Object::Service(object) => drop(self.services.insert(key, Kept { object, place })),
            Object::EndpointSlice(object) => drop(self.slices.insert(key, Kept { object, place })),
            Object::Endpoints(object) => drop(self.endpoints.insert(key, Kept { object, place })),
            Object::Node(object) => drop(self.nodes.insert(key, Kept { object, place })),
            Object::Namespace(object) => drop(self.namespaces.insert(key, Kept { object, place })),
            Object::ServiceCidr(object) => drop(self.service_cidrs.insert(key, Kept { object, place })),
        }
    }

    /// Removes an object; returns whether it was there. An unknown kind is never there.
    pub fn delete(&mut self, object: &ObjectRef) -> bool {
        let key = Key::new(&object.namespace, &object.name);
        match object.kind.as_str() {
            "Service" => self.services.remove(&key).is_some(),
            "EndpointSlice" => self.slices.remove(&key).is_some(),
            "Endpoints" => self.endpoints.remove(&key).is_some(),
            "Node" => self.nodes.remove(&key).is_some(),
            "Namespace" => self.namespaces.remove(&key).is_some(),
            "ServiceCIDR" => self.service_cidrs.remove(&key).is_some(),
            _ => false,
        }
    }

    /// All Services by name.
    pub const fn services(&self) -> &BTreeMap<Key, Kept<Service>> {
        &self.services
    }

    /// All EndpointSlices by name.
    pub const fn slices(&self) -> &BTreeMap<Key, Kept<EndpointSlice>> {
        &self.slices
    }

    /// All Endpoints by name, which is that of their Service.
    pub const fn endpoints(&self) -> &BTreeMap<Key, Kept<Endpoints>> {
        &self.endpoints
    }

    /// The Node of this name. Node names are lower case (P202).
    pub fn node(&self, name: &str) -> Option<&Node> {
        let kept = self.nodes.get(&Key::new("", name.to_lowercase()))?;
        Some(&kept.object)
    }

    /// All Namespaces by name.
    pub const fn namespaces(&self) -> &BTreeMap<Key, Kept<Namespace>> {
        &self.namespaces
    }

    /// All ServiceCIDRs by name.
    pub const fn service_cidrs(&self) -> &BTreeMap<Key, Kept<ServiceCidr>> {
        &self.service_cidrs
    }

    /// How many objects there are.
    pub fn counts(&self) -> ObjectCounts {
        ObjectCounts {
            services: self.services.len(),
            endpoint_slices: self.slices.len(),
            endpoints: self.endpoints.len(),
            nodes: self.nodes.len(),
            namespaces: self.namespaces.len(),
            service_cidrs: self.service_cidrs.len(),
        }
    }
}
