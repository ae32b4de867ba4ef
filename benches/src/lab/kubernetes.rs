//! A real Kubernetes control plane for the lab: etcd, kube-apiserver and kube-controller-manager in their own namespace,
//! and a replacement for scheduler and kubelets.
//!
//! The API is not imitated: EndpointSlices are written by the real controllers. Clusters that the lab did not start are
//! never contacted.

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
