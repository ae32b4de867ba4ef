//! Which set of endpoints a frontend chooses from, and whether the client's address is replaced, by the kind of
//! frontend and of source.

use flowgate_tables::{FrontendKind, PerSourceClass, SourceNat};

use crate::model::{Service, TrafficPolicy};

/// Whether this machine is a node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Role {
    /// An appliance in front of the cluster: all endpoints count, and replies must come back here.
    #[default]
    Gateway,
    /// A node of the cluster: the rules are those of kube-proxy.
    Node,
}

/// Which endpoints count (P203).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Endpoints on any node.
    Cluster,
    /// Endpoints on this node.
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) scope: Scope,
    pub(super) source_nat: SourceNat,
}

/// What a policy depends on besides the Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicyInput {
    pub(super) role: Role,
    /// Whether everything to cluster IPs is masqueraded (P603).
    pub(super) masquerade_all: bool,
    /// Whether pods of this node can be told from other sources of the family (P604).
    pub(super) knows_pods: bool,
    /// Whether packets of pods can arrive by a served interface at all.
    pub(super) pods_arrive: bool,
}

/// The policy of a Service for one kind of frontend, per class of source.
pub(super) fn policy(input: PolicyInput, kind: FrontendKind, service: &Service) -> PerSourceClass<Policy> {
    match input.role {
        Role::Gateway => PerSourceClass::same(on_a_gateway(kind, service)),
        Role::Node if input.pods_arrive => on_a_node(input, kind, service),
        // No pod is told apart: else the replies of all endpoints of all Services would be looked for, in vain.
        Role::Node => {
            let policies = on_a_node(input, kind, service);
            PerSourceClass { pod: policies.outside, ..policies }
        }
    }
}

/// A gateway has no endpoints of its own, so all count (P203 does not apply), and no pods (nor do P319 and P320).
/// Without source NAT, replies to ClusterIP traffic would be routed past the gateway.
fn on_a_gateway(kind: FrontendKind, service: &Service) -> Policy {
    let preserves = kind != FrontendKind::ClusterIp && service.external_policy == TrafficPolicy::Local;
    let source_nat = if preserves { SourceNat::PreserveClient } else { SourceNat::Always };
    Policy { scope: Scope::Cluster, source_nat }
}

fn on_a_node(input: PolicyInput, kind: FrontendKind, service: &Service) -> PerSourceClass<Policy> {
    let of = |scope, source_nat| Policy { scope, source_nat };
    match kind {
        FrontendKind::ClusterIp => {
            // P302. P303: externalTrafficPolicy does not apply to cluster IPs.
            let scope = scope_of(service.internal_policy);
            let masquerade = |yes| of(scope, if yes { SourceNat::Always } else { SourceNat::PreserveClient });
            // P603, P604
            let others = masquerade(input.masquerade_all || input.knows_pods);
            PerSourceClass { outside: others, node: others, pod: masquerade(input.masquerade_all) }
        }
        // P322: internalTrafficPolicy applies to cluster IPs only.
        FrontendKind::NodePort | FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
            match service.external_policy {
                // P317
                TrafficPolicy::Cluster => PerSourceClass::same(of(Scope::Cluster, SourceNat::Always)),
                // P318, P319, P320. P606: masquerade_all changes nothing.
                TrafficPolicy::Local => PerSourceClass {
                    outside: of(Scope::Local, SourceNat::PreserveClient),
                    pod: of(Scope::Cluster, SourceNat::PreserveClient),
                    node: of(Scope::Cluster, SourceNat::Always),
                },
            }
        }
    }
}

const fn scope_of(policy: TrafficPolicy) -> Scope {
    match policy {
        TrafficPolicy::Cluster => Scope::Cluster,
        TrafficPolicy::Local => Scope::Local,
    }
}
