//! The endpoints of a Service port and the sets that policies choose from (P2xx). Never a port number
//! that no slice has: `targetPort` is not read (P114).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::EndpointSpec;
use flowgate_wire::L4Port;

use super::policy::Scope;
use crate::model::{Desired, EndpointSlice, Kept, Key, Service, ServicePort, SliceFamily};

/// All slices by the Service they belong to (P111).
pub(super) struct SliceIndex<'a> {
    by_service: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
}

impl<'a> SliceIndex<'a> {
    pub(super) fn new(desired: &'a Desired) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for (key, slice) in desired.slices() {
            // P102, P103: a slice can be hidden by itself. P112: names are not served.
            if slice.object.hidden_by.is_some() || slice.object.family == SliceFamily::Fqdn {
                continue;
            }
            if let Some(service) = &slice.object.service {
                by_service.entry((&key.namespace, service)).or_default().push(&slice.object);
            }
        }
        Self { by_service }
    }

    /// The slices of a Service, those that the mirroring controller would write included (P118).
    pub(super) fn of(&self, key: &Key, service: &Service, desired: &Desired) -> Vec<Arc<EndpointSlice>> {
        let own = self.by_service.get(&(key.namespace.as_str(), key.name.as_str()));
        let mut slices: Vec<Arc<EndpointSlice>> =
            own.into_iter().flatten().map(|&slice| Arc::new(slice.clone())).collect();
        let mirrored = slices.iter().any(|slice| slice.is_mirror);
        if let Some(Kept { object, .. }) = desired.endpoints().get(key)
            && !service.has_selector
            && !mirrored
            && !object.skip_mirror
            && object.hidden_by.is_none()
        {
            slices.extend(object.mirrored(&key.name).into_iter().map(Arc::new));
        }
        slices
    }
}

/// What is known of one endpoint of a Service port.
#[derive(Clone, Copy, Debug)]
struct Known {
    ready: bool,
    serving: bool,
    terminating: bool,
    is_local: bool,
}

/// The endpoints of one Service port.
pub(super) struct PortEndpoints {
    by_address: BTreeMap<(IpAddr, L4Port), Known>,
}

impl PortEndpoints {
    /// Merges the slices: each address and port counts once, and one that stays wins over one that
    /// ends (P115, P116).
    pub(super) fn new(slices: &[Arc<EndpointSlice>], port: &ServicePort, node_name: &str) -> Self {
        let mut by_address: BTreeMap<(IpAddr, L4Port), Known> = BTreeMap::new();
        for slice in slices {
            let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in matching.map(|p| L4Port::new(p.port)) {
                for endpoint in &slice.endpoints {
                    let node = endpoint.node_name.as_deref();
                    let known = Known {
                        ready: endpoint.ready,
                        serving: endpoint.serving,
                        terminating: endpoint.terminating,
                        // P202: without a node name it is never local.
                        is_local: node.is_some_and(|n| !n.is_empty() && n.eq_ignore_ascii_case(node_name)),
                    };
                    let kept = by_address.entry((endpoint.addr, number)).or_insert(known);
                    if kept.terminating && !known.terminating {
                        *kept = known;
                    }
                }
            }
        }
        Self { by_address }
    }

    /// Whether an endpoint of this family is usable on any node (P206).
    pub(super) fn any_usable(&self, ipv4: bool) -> bool {
        self.by_address
            .iter()
            .any(|((ip, _), known)| ip.is_ipv4() == ipv4 && (known.ready || known.is_ending()))
    }

    /// The set of a scope: the ready ones or, if there is none, those that still serve while they
    /// end (P204, P205). Each scope falls back for itself.
    pub(super) fn set(&self, scope: Scope, ipv4: bool) -> Vec<EndpointSpec> {
        let of = |usable: fn(&Known) -> bool| -> Vec<EndpointSpec> {
            self.by_address
                .iter()
                .filter(|((ip, _), known)| {
                    ip.is_ipv4() == ipv4 && (scope == Scope::Cluster || known.is_local) && usable(known)
                })
                .map(|(&(addr, port), _)| EndpointSpec { addr, port, weight: 1 })
                .collect()
        };
        let ready = of(|known| known.ready);
        if ready.is_empty() { of(Known::is_ending) } else { ready }
    }
}

impl Known {
    const fn is_ending(&self) -> bool {
        self.serving && self.terminating
    }
}
