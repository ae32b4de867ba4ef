//! Which endpoints a frontend may choose from, and whether the client's address is replaced.
//! Never sees an endpoint.

use flowgate_tables::{FrontendKind, SourceNat};

use crate::model::{Service, TrafficPolicy};

/// What this machine is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// An appliance before the cluster: all endpoints count, and replies must come back here.
    #[default]
    Gateway,
    /// A node of the cluster: the rules of kube-proxy.
    Node,
}

/// Which endpoints count (P203).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Those on any node.
    Cluster,
    /// Those on this node.
    Local,
}

/// How traffic to a frontend is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) scope: Scope,
    pub(super) source_nat: SourceNat,
}

/// The policy for one kind of frontend of a Service.
pub(super) fn policy(role: Role, kind: FrontendKind, service: &Service) -> Policy {
    let governing = match kind {
        FrontendKind::ClusterIp => service.internal_policy,
        // P322: internalTrafficPolicy says nothing about these, and P303 the reverse.
        FrontendKind::NodePort | FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
            service.external_policy
        }
    };
    let scope = match (role, governing) {
        // A gateway has no endpoint of its own.
        (Role::Gateway, _) | (_, TrafficPolicy::Cluster) => Scope::Cluster,
        (Role::Node, TrafficPolicy::Local) => Scope::Local,
    };
    let source_nat = match (role, kind, governing) {
        // Replies to a gateway's ClusterIP traffic would not come back here by themselves.
        (Role::Gateway, FrontendKind::ClusterIp, _) => SourceNat::Always,
        // P603: without a detector of local pods and masqueradeAll, kube-proxy keeps the client.
        (Role::Node, FrontendKind::ClusterIp, _) => SourceNat::KeepClient,
        // P318 and P317.
        (_, _, TrafficPolicy::Local) => SourceNat::KeepClient,
        (_, _, TrafficPolicy::Cluster) => SourceNat::Always,
    };
    Policy { scope, source_nat }
}
