//! All objects by kind and name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{EndpointSlice, Endpoints, Kind, Namespace, Node, Service, ServiceCidr};
use crate::report::{ObjectRef, Place};

/// The name of an object among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key from namespace and name.
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

/// An object and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
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

/// The desired state: all objects by kind and name. A clone copies names and shares objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    services: BTreeMap<Key, Stored<Service>>,
    slices: BTreeMap<Key, Stored<EndpointSlice>>,
    endpoints: BTreeMap<Key, Stored<Endpoints>>,
    nodes: BTreeMap<Key, Stored<Node>>,
    namespaces: BTreeMap<Key, Stored<Namespace>>,
    service_cidrs: BTreeMap<Key, Stored<ServiceCidr>>,
}

impl Desired {
    /// Adds an object or replaces the one of its kind and name.
    pub fn apply(&mut self, key: Key, object: Object, place: Option<Place>) {
        match object {
            Object::Service(object) => drop(self.services.insert(key, Stored { object, place })),
            Object::EndpointSlice(object) => drop(self.slices.insert(key, Stored { object, place })),
            Object::Endpoints(object) => drop(self.endpoints.insert(key, Stored { object, place })),
            Object::Node(object) => drop(self.nodes.insert(key, Stored { object, place })),
            Object::Namespace(object) => drop(self.namespaces.insert(key, Stored { object, place })),
            Object::ServiceCidr(object) => drop(self.service_cidrs.insert(key, Stored { object, place })),
        }
    }

    /// Removes an object; returns whether it was there. An unknown kind is never there.
    pub fn delete(&mut self, object: &ObjectRef) -> bool {
        let Some(kind) = Kind::from_name(&object.kind) else { return false };
        let key = Key::new(&object.namespace, &object.name);
        match kind {
            Kind::Service => self.services.remove(&key).is_some(),
            Kind::EndpointSlice => self.slices.remove(&key).is_some(),
            Kind::Endpoints => self.endpoints.remove(&key).is_some(),
            Kind::Node => self.nodes.remove(&key).is_some(),
            Kind::Namespace => self.namespaces.remove(&key).is_some(),
            Kind::ServiceCidr => self.service_cidrs.remove(&key).is_some(),
        }
    }

    /// The object of this kind and name.
    pub fn get(&self, kind: Kind, key: &Key) -> Option<Object> {
        match kind {
            Kind::Service => self.services.get(key).map(|stored| Object::Service(Arc::clone(&stored.object))),
            Kind::EndpointSlice => {
                self.slices.get(key).map(|stored| Object::EndpointSlice(Arc::clone(&stored.object)))
            }
            Kind::Endpoints => {
                self.endpoints.get(key).map(|stored| Object::Endpoints(Arc::clone(&stored.object)))
            }
            Kind::Node => self.nodes.get(key).map(|stored| Object::Node(Arc::clone(&stored.object))),
            Kind::Namespace => {
                self.namespaces.get(key).map(|stored| Object::Namespace(Arc::clone(&stored.object)))
            }
            Kind::ServiceCidr => {
                self.service_cidrs.get(key).map(|stored| Object::ServiceCidr(Arc::clone(&stored.object)))
            }
        }
    }

    /// The names of all objects of a kind.
    pub fn keys(&self, kind: Kind) -> Vec<Key> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Endpoints => self.endpoints.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::Namespace => self.namespaces.keys().cloned().collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
        }
    }

    /// All Services by name.
    pub const fn services(&self) -> &BTreeMap<Key, Stored<Service>> {
        &self.services
    }

    /// All EndpointSlices by name.
    pub const fn slices(&self) -> &BTreeMap<Key, Stored<EndpointSlice>> {
        &self.slices
    }

    /// All Endpoints by name, which is that of their Service.
    pub const fn endpoints(&self) -> &BTreeMap<Key, Stored<Endpoints>> {
        &self.endpoints
    }

    /// The Node of this name. Node names are lower case (P202).
    pub fn node(&self, name: &str) -> Option<&Node> {
        let stored = self.nodes.get(&Key::new("", name.to_lowercase()))?;
        Some(&stored.object)
    }

    /// All Namespaces by name.
    pub const fn namespaces(&self) -> &BTreeMap<Key, Stored<Namespace>> {
        &self.namespaces
    }

    /// All Nodes by name.
    pub const fn nodes(&self) -> &BTreeMap<Key, Stored<Node>> {
        &self.nodes
    }

    /// All ServiceCIDRs by name.
    pub const fn service_cidrs(&self) -> &BTreeMap<Key, Stored<ServiceCidr>> {
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
