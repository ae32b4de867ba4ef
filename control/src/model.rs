//! What Services and endpoints mean. Knows no Kubernetes client, no file and no kernel.
//!
//! Values here are valid by construction as far as one object can tell: whoever builds them has refused
//! what the API server would refuse. They can be saved and read back by the same build: the saved form is
//! nobody's API. What several objects say together is judged in `compile`.

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
