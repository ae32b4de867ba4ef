//! Which endpoints a frontend may choose from, and whether the client's address is replaced.
//! Never sees an endpoint.

use flowgate_tables::{FrontendKind, PerSourceClass, SourceNat};

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

/// What decides besides the Service.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicyInput {
    pub(super) role: Role,
    /// Everything to cluster IPs is masqueraded.
    pub(super) masquerade_all: bool,
    /// Pods of this node can be told from other sources of the family.
    pub(super) knows_pods: bool,
}

/// The policy for one kind of frontend of a Service, by who sends.
pub(super) fn policy(input: PolicyInput, kind: FrontendKind, service: &Service) -> PerSourceClass<Policy> {
    match input.role {
        Role::Gateway => PerSourceClass::same(on_a_gateway(kind, service)),
        Role::Node => on_a_node(input, kind, service),
    }
}

/// A gateway has no endpoint of its own, so all count (P203 does not apply), and no pods (nor do P319
/// and P320). Replies to its ClusterIP traffic would not come back by themselves.
fn on_a_gateway(kind: FrontendKind, service: &Service) -> Policy {
    let preserves = kind != FrontendKind::ClusterIp && service.external_policy == TrafficPolicy::Local;
    let source_nat = if preserves { SourceNat::PreserveClient } else { SourceNat::Always };
    Policy { scope: Scope::Cluster, source_nat }
}

fn on_a_node(input: PolicyInput, kind: FrontendKind, service: &Service) -> PerSourceClass<Policy> {
    let of = |scope, source_nat| Policy { scope, source_nat };
    match kind {
        FrontendKind::ClusterIp => {
            // P302. P303: externalTrafficPolicy says nothing here.
            let scope = scope_of(service.internal_policy);
            let masquerade = |yes| of(scope, if yes { SourceNat::Always } else { SourceNat::PreserveClient });
            // P603, P604
            let others = masquerade(input.masquerade_all || input.knows_pods);
            PerSourceClass { outside: others, node: others, pod: masquerade(input.masquerade_all) }
        }
        // P322: internalTrafficPolicy says nothing here.
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
