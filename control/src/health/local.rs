//! Counts of the endpoints that a Service has on this machine. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::Identity;
use crate::compile::Role;
use crate::model::{
    ClusterAddress, Desired, Endpoint, EndpointSlice, Key, Service, ServicePort, ServiceType, SliceFamily,
    Stored, TrafficPolicy,
};

/// One value for each address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the families")]
pub struct PerFamily<T> {
    pub v4: T,
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// The value of the address's family.
    pub const fn of(&self, addr: IpAddr) -> &T {
        if addr.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    const fn of_mut(&mut self, is_ipv4: bool) -> &mut T {
        if is_ipv4 { &mut self.v4 } else { &mut self.v6 }
    }
}

/// For each of these Services, how many distinct addresses its ready endpoints have here, over all ports (P1103).
/// Terminating endpoints do not count, though they may still be served (P1102).
pub fn ready_here<'a>(
    desired: &'a Desired,
    services: &HashSet<&'a Key>,
    identity: &Identity,
) -> HashMap<&'a Key, PerFamily<usize>> {
    let slices = slices_of(desired, |key| services.contains(key));
    let count = |(key, slices): (&'a Key, Vec<Slice<'a>>)| {
        let mut ready = PerFamily::<BTreeSet<IpAddr>>::default();
        // A slice without a port serves nothing.
        for slice in slices.iter().map(Slice::get).filter(|slice| !slice.ports.is_empty()) {
            for endpoint in slice.endpoints.iter().filter(|e| e.ready && is_here(e, identity)) {
                ready.of_mut(endpoint.addr.is_ipv4()).insert(endpoint.addr);
            }
        }
        (key, PerFamily { v4: ready.v4.len(), v6: ready.v6.len() })
    };
    slices.into_iter().map(count).collect()
}

/// How many Service ports have a Local policy and endpoints, but none here (P1207).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// With `internalTrafficPolicy: Local`.
    pub internal: PerFamily<u64>,
    /// With `externalTrafficPolicy: Local`, where there is a way from outside.
    pub external: PerFamily<u64>,
}

/// Counts them. Zero on a gateway: there a Local policy does not choose endpoints.
pub fn no_local_endpoints(desired: &Desired, identity: &Identity) -> NoLocalEndpoints {
    let mut found = NoLocalEndpoints::default();
    if identity.role == Role::Gateway {
        return found;
    }
    let is_local = |service: &Service| {
        service.excluded_by.is_none()
            && (service.internal_policy == TrafficPolicy::Local || external_local(service))
    };
    let concerned = |key: &Key| desired.services().get(key).is_some_and(|stored| is_local(&stored.object));
    for (key, slices) in slices_of(desired, concerned) {
        let Some(Stored { object: service, .. }) = desired.services().get(key) else { continue };
        let ClusterAddress::Assigned(addresses) = &service.cluster else { continue };
        for (port, is_ipv4) in
            service.ports.iter().flat_map(|port| addresses.iter().map(move |a| (port, a.is_ipv4())))
        {
            if !only_elsewhere(&slices, port, is_ipv4, identity) {
                continue;
            }
            if service.internal_policy == TrafficPolicy::Local {
                *found.internal.of_mut(is_ipv4) += 1;
            }
            if external_local(service) {
                *found.external.of_mut(is_ipv4) += 1;
            }
        }
    }
    found
}

/// Whether a Service port has usable endpoints, but none of them here (P204, P206).
fn only_elsewhere(slices: &[Slice<'_>], port: &ServicePort, is_ipv4: bool, identity: &Identity) -> bool {
    let serves = |slice: &&EndpointSlice| {
        slice.ports.iter().any(|p| p.name == port.name && p.protocol == port.protocol)
    };
    let usable = |e: &&Endpoint| e.addr.is_ipv4() == is_ipv4 && (e.ready || e.serving && e.terminating);
    let mut usable =
        slices.iter().map(Slice::get).filter(serves).flat_map(|s| &s.endpoints).filter(usable).peekable();
    usable.peek().is_some() && usable.all(|endpoint| !is_here(endpoint, identity))
}

fn external_local(service: &Service) -> bool {
    service.external_policy == TrafficPolicy::Local
        && (matches!(service.service_type, ServiceType::NodePort | ServiceType::LoadBalancer)
            || !service.external_ips.is_empty())
}

/// P202: local is what runs on this node; without a node name it is never local.
fn is_here(endpoint: &Endpoint, identity: &Identity) -> bool {
    match identity.role {
        Role::Gateway => true,
        Role::Node => {
            let node = endpoint.node_name.as_deref().unwrap_or_default();
            !node.is_empty() && node.eq_ignore_ascii_case(&identity.node_name)
        }
    }
}

/// A slice as it is, or as the mirroring controller would write it.
enum Slice<'a> {
    Own(&'a EndpointSlice),
    Mirrored(EndpointSlice),
}

impl Slice<'_> {
    const fn get(&self) -> &EndpointSlice {
        match self {
            Self::Own(slice) => slice,
            Self::Mirrored(slice) => slice,
        }
    }
}

/// The slices of each Service that `matters`, without those that are not served (P102, P103, P111, P112, P118).
fn slices_of<'a>(desired: &'a Desired, matters: impl Fn(&Key) -> bool) -> BTreeMap<&'a Key, Vec<Slice<'a>>> {
    let mut by_service: BTreeMap<&Key, Vec<Slice<'_>>> = BTreeMap::new();
    for key in desired.services().keys().filter(|key| matters(key)) {
        by_service.insert(key, Vec::new());
    }
    if by_service.is_empty() {
        return by_service;
    }
    for (key, Stored { object: slice, .. }) in desired.slices() {
        if slice.excluded_by.is_none()
            && slice.family != SliceFamily::Fqdn
            && let Some(service) = &slice.service
            && let Some(list) = by_service.get_mut(&Key::new(&key.namespace, service))
        {
            list.push(Slice::Own(slice));
        }
    }
    for (key, list) in &mut by_service {
        let has_selector = desired.services().get(key).is_some_and(|stored| stored.object.has_selector);
        let mirrored = list.iter().any(|slice| slice.get().is_mirror);
        if let Some(Stored { object, .. }) = desired.endpoints().get(key)
            && !(has_selector || mirrored || object.skip_mirror)
            && object.excluded_by.is_none()
        {
            list.extend(object.mirrored(&key.name).into_iter().map(Slice::Mirrored));
        }
    }
    by_service
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::ports::tests::{desired, node, yaml};

    const ELSEWHERE: &str = "
      - {addresses: [10.1.0.1], nodeName: other}
      - {addresses: [10.1.0.2], nodeName: other, conditions: {ready: false}}";

    #[test]
    fn p1207_counts_local_policies_whose_endpoints_are_all_elsewhere() {
        let objects = yaml("LoadBalancer", "Local", ELSEWHERE);
        let external = no_local_endpoints(&desired(&objects), &node());
        assert_eq!(external.external, PerFamily { v4: 1, v6: 0 });
        assert_eq!(external.internal, PerFamily::default());
        let internal = objects.replace("externalTrafficPolicy", "internalTrafficPolicy");
        let internal = no_local_endpoints(&desired(&internal), &node());
        assert_eq!((internal.internal.v4, internal.external.v4), (1, 0));
    }

    #[test]
    fn p1207_is_zero_without_any_endpoint_with_a_local_one_and_on_a_gateway() {
        let none = yaml("LoadBalancer", "Local", " []");
        let gone =
            yaml("LoadBalancer", "Local", "\n      - {addresses: [10.1.0.1], conditions: {ready: false}}");
        let here = format!("{ELSEWHERE}\n      - {{addresses: [10.1.0.3], nodeName: THIS}}");
        let here = yaml("LoadBalancer", "Local", &here);
        let cluster = yaml("LoadBalancer", "Cluster", ELSEWHERE);
        for objects in [none, gone, here, cluster] {
            assert_eq!(
                no_local_endpoints(&desired(&objects), &node()),
                NoLocalEndpoints::default(),
                "{objects}"
            );
        }
        let elsewhere = desired(&yaml("LoadBalancer", "Local", ELSEWHERE));
        assert_eq!(no_local_endpoints(&elsewhere, &Identity::default()), NoLocalEndpoints::default());
    }
}
