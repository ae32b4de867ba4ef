//! What Services and endpoints mean. Knows no Kubernetes client, no file and no kernel.
//!
//! Values here are valid by construction as far as one object can tell: whoever builds them has refused
//! what the API server would refuse. What several objects say together is judged in `compile`.

mod desired;
mod endpoints;
mod net;
mod node;
mod service;

pub use desired::{Desired, Kept, Key, Object, ObjectCounts};
pub use endpoints::{
    Endpoint, EndpointAddress, EndpointPort, EndpointSlice, Endpoints, Hints, SliceFamily, Subset,
};
pub use net::NetState;
pub use node::{Namespace, Node, ServiceCidr};
pub use service::{
    Affinity, ClusterAddress, HiddenBy, Ingress, IngressMode, Service, ServicePort, ServiceType, TargetPort,
    TrafficPolicy,
};
