//! The endpoints of a Service port, and the sets that policies choose from (P2xx). Port numbers come from slices;
//! `targetPort` is not read (P114).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::service::ServiceKey;
use flowgate_tables::spec::EndpointSpec;
use flowgate_wire::L4Port;

use super::ourselves::{EndpointOf, LeftOut, SelfChecker};
use super::policy::Scope;
use crate::model::{Desired, Endpoint, EndpointSlice, Hints, Key, Service, ServicePort, SliceFamily, Stored};

/// All slices by the Service that they belong to (P111).
pub(super) struct SliceIndex<'a> {
    by_service: HashMap<(&'a str, &'a str), Vec<&'a Arc<EndpointSlice>>>,
}

impl<'a> SliceIndex<'a> {
    pub(super) fn new(desired: &'a Desired) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&Arc<EndpointSlice>>> = HashMap::new();
        for (key, slice) in desired.slices() {
            // P102, P103: a slice can be excluded by a label of its own. P112: names are not served.
            if slice.object.excluded_by.is_some() || slice.object.family == SliceFamily::Fqdn {
                continue;
            }
            if let Some(service) = &slice.object.service {
                by_service.entry((&key.namespace, service)).or_default().push(&slice.object);
            }
        }
        Self { by_service }
    }

    /// The slices that name a Service.
    pub(super) fn of<'b>(&'b self, key: &'b Key) -> &'b [&'a Arc<EndpointSlice>] {
        self.by_service.get(&(key.namespace.as_str(), key.name.as_str())).map_or(&[], Vec::as_slice)
    }
}

/// The slices of a Service, including those that the mirroring controller would write (P118).
pub(super) fn slices_of(
    key: &Key,
    service: &Service,
    own: &[&Arc<EndpointSlice>],
    desired: &Desired,
) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<Arc<EndpointSlice>> = own.iter().map(|&slice| Arc::clone(slice)).collect();
    let mirrored = slices.iter().any(|slice| slice.is_mirror);
    if let Some(Stored { object, .. }) = desired.endpoints().get(key)
        && !service.has_selector
        && !mirrored
        && !object.skip_mirror
        && object.excluded_by.is_none()
    {
        slices.extend(object.mirrored(&key.name).into_iter().map(Arc::new));
    }
    slices
}

/// This machine's name and zone, which endpoints are compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Locality<'a> {
    /// The name of its Node.
    pub(super) node: &'a str,
    /// Its zone, if it has the label.
    pub(super) zone: Option<&'a str>,
    /// Whether hints count: they divide traffic among nodes, and a gateway is no node.
    pub(super) follows_hints: bool,
}

/// P202: without a node name an endpoint is never local.
pub(super) fn is_local(endpoint: &Endpoint, node: &str) -> bool {
    endpoint.node_name.as_deref().is_some_and(|name| !name.is_empty() && name.eq_ignore_ascii_case(node))
}

#[derive(Clone, Copy, Debug)]
struct Known<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    is_local: bool,
    is_pod: bool,
    hints: Option<&'a Hints>,
}

/// What an endpoint is judged by besides its slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndpointContext<'a> {
    pub(super) locality: Locality<'a>,
    pub(super) selves: SelfChecker<'a>,
    pub(super) service: &'a Key,
}

/// The endpoints of one Service port.
pub(super) struct PortEndpoints<'a> {
    by_address: BTreeMap<(IpAddr, L4Port), Known<'a>>,
    locality: Locality<'a>,
}

impl<'a> PortEndpoints<'a> {
    /// Merges the slices: each address and port counts once, and as the one that is not terminating, then as the one that
    /// is ready (P115, P116). Those that lead back to this machine are left out.
    pub(super) fn new(
        slices: &'a [Arc<EndpointSlice>],
        port: &ServicePort,
        EndpointContext { locality, selves, service }: EndpointContext<'a>,
        left_out: &mut LeftOut,
    ) -> Self {
        let mut by_address: BTreeMap<(IpAddr, L4Port), Known<'_>> = BTreeMap::new();
        for slice in slices {
            let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in matching.map(|p| L4Port::new(p.port)) {
                for endpoint in &slice.endpoints {
                    let known = Known {
                        ready: endpoint.ready,
                        serving: endpoint.serving,
                        terminating: endpoint.terminating,
                        is_local: is_local(endpoint, locality.node),
                        is_pod: endpoint.node_name.as_ref().is_some_and(|name| !name.is_empty()),
                        hints: endpoint.hints.as_deref(),
                    };
                    let merged = by_address.entry((endpoint.addr, number)).or_insert(known);
                    let is_pod = merged.is_pod || known.is_pod;
                    if known.standing() > merged.standing() {
                        *merged = known;
                    }
                    merged.is_pod = is_pod;
                }
            }
        }
        by_address.retain(|&(addr, number), known| {
            let endpoint = ServiceKey { protocol: port.protocol, addr, port: number };
            match selves.find(&endpoint, EndpointOf { service, is_pod: known.is_pod }) {
                None => true,
                Some(reason) => {
                    left_out.add(reason, endpoint);
                    false
                }
            }
        });
        Self { by_address, locality }
    }

    /// Whether an endpoint of this family is usable on any node (P206).
    pub(super) fn any_usable(&self, ipv4: bool) -> bool {
        self.of_family(ipv4).any(|(_, known)| known.ready || known.is_ending())
    }

    /// All endpoints that still answer (P803).
    pub(super) fn serving(&self) -> Vec<(IpAddr, L4Port)> {
        let serving = self.by_address.iter().filter(|(_, known)| known.serving || known.ready);
        serving.map(|(&key, _)| key).collect()
    }

    /// The set of a scope: the ready endpoints or, if there is none, those that serve while they terminate (P204,
    /// P205). Each scope falls back on its own.
    pub(super) fn set(&self, scope: Scope, ipv4: bool) -> Vec<EndpointSpec> {
        let of = |usable: &dyn Fn(&Known<'_>) -> bool| -> Vec<EndpointSpec> {
            self.of_family(ipv4)
                .filter(|(_, known)| (scope == Scope::Cluster || known.is_local) && usable(known))
                .map(|(&(addr, port), _)| EndpointSpec { addr, port, weight: 1 })
                .collect()
        };
        let ready = match scope {
            // P211: hints never apply to the Local set.
            Scope::Local => of(&|known| known.ready),
            Scope::Cluster => {
                let preferred = self.preference(ipv4);
                of(&|known| known.ready && preferred.admits(known))
            }
        };
        if ready.is_empty() { of(&|known| known.is_ending()) } else { ready }
    }

    /// Which of the ready endpoints the hints prefer for this node (P208 to P210).
    fn preference(&self, ipv4: bool) -> Preference<'a> {
        if !self.locality.follows_hints {
            return Preference::All;
        }
        let ready = || self.of_family(ipv4).map(|(_, known)| known).filter(|known| known.ready);
        // Hints of a kind count if every ready endpoint has some, and one is for this node or zone. Else they are
        // being written or removed, and following them would leave out endpoints.
        let active = |list: fn(&'a Hints) -> &'a [String], name: &str| {
            ready().all(|known| known.hints.is_some_and(|hints| !list(hints).is_empty()))
                && ready().any(|known| known.hints.is_some_and(|hints| list(hints).iter().any(|n| n == name)))
        };
        if active(nodes, self.locality.node) {
            return Preference::Node(self.locality.node);
        }
        match self.locality.zone {
            Some(zone) if active(zones, zone) => Preference::Zone(zone),
            _ => Preference::All,
        }
    }

    fn of_family(&self, ipv4: bool) -> impl Iterator<Item = (&(IpAddr, L4Port), &Known<'a>)> {
        self.by_address.iter().filter(move |((ip, _), _)| ip.is_ipv4() == ipv4)
    }
}

impl Known<'_> {
    const fn is_ending(&self) -> bool {
        self.serving && self.terminating
    }

    /// P116: of two endpoints at one address and port the one with the higher standing counts. kube-proxy takes the last of
    /// those that are not terminating, in no order.
    const fn standing(&self) -> (bool, bool, bool) {
        (!self.terminating, self.ready, self.serving)
    }
}

/// Which of the ready endpoints are used.
#[derive(Clone, Copy, Debug)]
enum Preference<'a> {
    All,
    Node(&'a str),
    Zone(&'a str),
}

impl Preference<'_> {
    fn admits(&self, known: &Known<'_>) -> bool {
        let names = |list: fn(&Hints) -> &[String], name: &str| {
            known.hints.is_some_and(|hints| list(hints).iter().any(|n| n == name))
        };
        match self {
            Self::All => true,
            Self::Node(node) => names(nodes, node),
            Self::Zone(zone) => names(zones, zone),
        }
    }
}

fn nodes(hints: &Hints) -> &[String] {
    &hints.nodes
}

fn zones(hints: &Hints) -> &[String] {
    &hints.zones
}
