//! Services, endpoints and nodes as values, without any Kubernetes client, file or kernel.
//!
//! Values are valid as far as one object can show: sources leave out what cannot be used. Conflicts between
//! objects are found in `compile`. Values can be saved and read back by the same build; the saved form is no API.

mod desired;
mod endpoints;
mod kind;
mod net;
mod node;
mod protocol;
mod service;

pub use desired::{Desired, Key, Object, ObjectCounts, Stored};
pub use endpoints::{
    Endpoint, EndpointAddress, EndpointPort, EndpointSlice, Endpoints, Hints, SliceFamily, Subset,
};
pub use kind::Kind;
pub use net::NetState;
pub use node::{Namespace, Node, ServiceCidr};
pub use service::{
    Affinity, ClusterAddress, ExcludedBy, Ingress, IngressMode, Service, ServicePort, ServiceType,
    TargetPort, TrafficPolicy,
};

pub(crate) use service::unreachable_kind;
