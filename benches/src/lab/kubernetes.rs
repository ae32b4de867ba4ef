//! A real Kubernetes control plane for the lab: etcd, kube-apiserver and kube-controller-manager in a namespace of their
//! own, and what stands in for scheduler and kubelets.
//!
//! Nothing here imitates the API: objects become EndpointSlices by the controllers of Kubernetes. Never reaches a cluster
//! that the lab did not start.

mod api_client;
pub mod bulk;
mod cluster;
mod control_plane;
mod files;
mod kube_proxy;
mod node;
mod pods;
mod programs;

pub use api_client::ApiClient;
pub(super) use api_client::ApiThread;
pub use cluster::{ClusterOptions, GATEWAY_NODE, KubernetesCluster};
pub use control_plane::ControlPlane;
pub use kube_proxy::{KubeProxy, KubeProxyOptions};
pub use node::NodeSpec;
pub use pods::{PodHosts, PodHostsOptions, PodView};
pub use programs::{Programs, kubectl_command};
