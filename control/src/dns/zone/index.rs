//! All Services by name and by address.
//!
//! An index is made from the one before and the changed objects. Parts that did not change are shared, so that a change
//! of one Service costs little in a cluster of any size.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;

use super::entry::Entry;
use crate::model::{Desired, EndpointSlice, Key, Service, Stored};

/// Services by name and by address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    namespaces: HashMap<String, Arc<Names>>,
    /// The Services that have an address, in parts by its last octet: a change copies only the parts it touches.
    owners: Vec<Arc<Owners>>,
}

/// Services by address. By key, since the entries are replaced while addresses stay.
type Owners = HashMap<IpAddr, Vec<Arc<Key>>>;

/// The names in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    /// Whether there is a Namespace object. Without one, the namespace exists while it has a Service.
    declared: bool,
    services: HashMap<Arc<str>, Arc<Entry>>,
}

impl Default for Index {
    fn default() -> Self {
        Self { namespaces: HashMap::new(), owners: vec![Arc::default(); OWNER_PARTS] }
    }
}

impl Index {
    /// Applies what changed from `before` to `after`. `services` is `svc.<zone>`.
    pub(super) fn update(&mut self, before: &Desired, after: &Desired, services: &Name) {
        for (key, object) in changes(before.namespaces(), after.namespaces()) {
            self.names_mut(&key.name).declared = object.is_some();
            self.forget_if_empty(&key.name);
        }
        let changed = changed_services(before, after);
        let mut slices = slices_of(&changed, after);
        for key in changed {
            let entry = after.services().get(key).and_then(|service| {
                let own = slices.remove(key).unwrap_or_default();
                entry(key, &service.object, own, after, services)
            });
            self.replace(key, entry);
        }
    }

    /// Whether a namespace exists.
    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// A Service by name.
    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Entry>> {
        self.namespaces.get(namespace)?.services.get(name)
    }

    /// The Services that have an address, or an endpoint that has it.
    pub(super) fn owners(&self, addr: IpAddr) -> impl Iterator<Item = &Entry> {
        let keys = self.owners[part_of(addr)].get(&addr);
        keys.into_iter().flatten().filter_map(|key| self.service(&key.namespace, &key.name).map(Arc::as_ref))
    }

    fn replace(&mut self, key: &Key, entry: Option<Entry>) {
        let old = self.service(&key.namespace, &key.name).cloned();
        let known = |entry: Option<&Entry>| -> HashSet<IpAddr> {
            entry.map(|entry| entry.known_addresses().collect()).unwrap_or_default()
        };
        let (had, has) = (known(old.as_deref()), known(entry.as_ref()));
        for &addr in had.difference(&has) {
            let part = Arc::make_mut(&mut self.owners[part_of(addr)]);
            if let Some(keys) = part.get_mut(&addr) {
                keys.retain(|owner| **owner != *key);
                if keys.is_empty() {
                    part.remove(&addr);
                }
            }
        }
        // One key for all addresses of the Service.
        let shared = Arc::new(key.clone());
        for &addr in has.difference(&had) {
            let keys = Arc::make_mut(&mut self.owners[part_of(addr)]).entry(addr).or_default();
            // Sorted, so that an index that followed changes equals one made at once.
            let at = keys.partition_point(|owner| **owner < *key);
            keys.insert(at, Arc::clone(&shared));
        }
        let names = self.names_mut(&key.namespace);
        match entry {
            Some(entry) => drop(names.services.insert(key.name.as_str().into(), Arc::new(entry))),
            None => drop(names.services.remove(key.name.as_str())),
        }
        self.forget_if_empty(&key.namespace);
    }

    fn names_mut(&mut self, namespace: &str) -> &mut Names {
        Arc::make_mut(self.namespaces.entry(namespace.to_owned()).or_default())
    }

    fn forget_if_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(|names| !names.declared && names.services.is_empty()) {
            self.namespaces.remove(namespace);
        }
    }
}

/// The Services that changed themselves or whose endpoints did.
fn changed_services<'a>(before: &'a Desired, after: &'a Desired) -> HashSet<&'a Key> {
    let mut changed: HashSet<&Key> =
        changes(before.services(), after.services()).into_iter().map(|(key, _)| key).collect();
    changed.extend(changes(before.endpoints(), after.endpoints()).into_iter().map(|(key, _)| key));
    for (key, _) in changes(before.slices(), after.slices()) {
        // Both: a slice may have moved from one Service to another.
        for slices in [before.slices(), after.slices()] {
            let service = slices.get(key).and_then(|slice| slice.object.service.as_deref());
            let named = |name: &str| Key::new(key.namespace.as_str(), name);
            let known = service.map(named).and_then(|key| {
                let (before, after) = (before.services(), after.services());
                before.get_key_value(&key).or_else(|| after.get_key_value(&key)).map(|(key, _)| key)
            });
            changed.extend(known);
        }
    }
    changed
}

/// The keys whose object is not the same `Arc` in both, with the object in `after`.
fn changes<'a, T>(
    before: &'a BTreeMap<Key, Stored<T>>,
    after: &'a BTreeMap<Key, Stored<T>>,
) -> Vec<(&'a Key, Option<&'a Arc<T>>)> {
    let mut changes = Vec::new();
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let previous = if order.is_le() { old.next() } else { None };
        let next = if order.is_ge() { new.next() } else { None };
        match (previous, next) {
            (None, None) => return changes,
            (Some((key, _)), None) => changes.push((key, None)),
            (Some((_, old)), Some((_, new))) if Arc::ptr_eq(&old.object, &new.object) => {}
            (_, Some((key, new))) => changes.push((key, Some(&new.object))),
        }
    }
}

fn slices_of<'a>(wanted: &HashSet<&'a Key>, desired: &Desired) -> HashMap<&'a Key, Vec<Arc<EndpointSlice>>> {
    let mut found: HashMap<&Key, Vec<Arc<EndpointSlice>>> = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    let wanted: HashMap<(&str, &str), &Key> =
        wanted.iter().map(|&key| ((key.namespace.as_str(), key.name.as_str()), key)).collect();
    for (key, slice) in desired.slices() {
        // P111: a slice belongs to the Service that its label names.
        let Some(service) = &slice.object.service else { continue };
        if let Some(&service) = wanted.get(&(key.namespace.as_str(), service.as_str())) {
            found.entry(service).or_default().push(Arc::clone(&slice.object));
        }
    }
    found
}

/// The entry of a Service; `None` if its name is too long for DNS.
fn entry(
    key: &Key,
    service: &Arc<Service>,
    mut slices: Vec<Arc<EndpointSlice>>,
    desired: &Desired,
    services: &Name,
) -> Option<Entry> {
    let name = Name::from_labels([key.name.as_bytes(), key.namespace.as_bytes()]).ok()?;
    let name = name.append_domain(services).ok()?;
    // P118: Endpoints count as their mirror, and only where the mirroring controller would write one.
    let mirrored = slices.iter().any(|slice| slice.is_mirror);
    if let Some(manual) = desired.endpoints().get(key)
        && !service.has_selector
        && !mirrored
        && !manual.object.skip_mirror
    {
        slices.extend(manual.object.mirrored(&key.name).into_iter().map(Arc::new));
    }
    Some(Entry { name, service: Arc::clone(service), slices })
}

fn part_of(addr: IpAddr) -> usize {
    usize::from(match addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    })
}

/// As many as an octet has values.
const OWNER_PARTS: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::super::testing;
    use super::*;
    use crate::model::{ClusterAddress, Endpoint, Endpoints, Namespace, Object, Subset};
    use crate::report::ObjectRef;

    #[derive(Clone, Debug)]
    enum Op {
        Service { namespace: usize, name: usize, kind: usize },
        Slice { namespace: usize, name: usize, service: usize, addresses: Vec<u8>, ready: bool },
        Manual { namespace: usize, name: usize, addresses: Vec<u8> },
        Namespace(usize),
        Delete { kind: usize, namespace: usize, name: usize },
    }

    const NAMES: [&str; 3] = ["a", "b", "c"];
    const KINDS: [&str; 4] = ["Service", "EndpointSlice", "Endpoints", "Namespace"];

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let addresses = || prop::collection::vec(0..6_u8, 0..4);
        prop::collection::vec(
            prop_oneof![
                (0..2_usize, 0..3_usize, 0..5_usize).prop_map(|(namespace, name, kind)| Op::Service {
                    namespace,
                    name,
                    kind
                }),
                (0..2_usize, 0..3_usize, 0..4_usize, addresses(), any::<bool>()).prop_map(
                    |(namespace, name, service, addresses, ready)| {
                        Op::Slice { namespace, name, service, addresses, ready }
                    }
                ),
                (0..2_usize, 0..3_usize, addresses()).prop_map(|(namespace, name, addresses)| Op::Manual {
                    namespace,
                    name,
                    addresses
                }),
                (0..3_usize).prop_map(Op::Namespace),
                (0..4_usize, 0..3_usize, 0..3_usize).prop_map(|(kind, namespace, name)| Op::Delete {
                    kind,
                    namespace,
                    name
                }),
            ],
            1..40,
        )
    }

    fn apply(desired: &mut Desired, op: &Op) {
        let ip = |&n: &u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
        let put = |desired: &mut Desired, namespace: usize, name: usize, object: Object| {
            desired.apply(Key::new(NAMES[namespace], NAMES[name]), object, None);
        };
        match op {
            Op::Service { namespace, name, kind } => {
                let cluster = match kind {
                    0 => ClusterAddress::Headless,
                    1 => ClusterAddress::Unassigned,
                    n => ClusterAddress::Assigned(vec![ip(&u8::try_from(*n).unwrap())]),
                };
                let service = testing::service(cluster, kind % 2 == 0);
                put(desired, *namespace, *name, Object::Service(Arc::new(service)));
            }
            Op::Slice { namespace, name, service, addresses, ready } => {
                let mut slice = testing::slice(NAMES.get(*service).copied(), addresses.iter().map(ip));
                slice.endpoints.iter_mut().for_each(|endpoint: &mut Endpoint| endpoint.ready = *ready);
                put(desired, *namespace, *name, Object::EndpointSlice(Arc::new(slice)));
            }
            Op::Manual { namespace, name, addresses } => {
                let addresses = addresses.iter().map(|n| testing::address(ip(n))).collect();
                let subsets = vec![Subset { addresses, ports: Vec::new() }];
                let endpoints = Endpoints { subsets, skip_mirror: false, excluded_by: None };
                put(desired, *namespace, *name, Object::Endpoints(Arc::new(endpoints)));
            }
            Op::Namespace(name) => {
                let key = Key::new("", NAMES[*name]);
                desired.apply(key, Object::Namespace(Arc::new(Namespace::default())), None);
            }
            Op::Delete { kind, namespace, name } => {
                let namespace = if *kind == 3 { "" } else { NAMES[*namespace] };
                desired.delete(&ObjectRef {
                    kind: KINDS[*kind].into(),
                    namespace: namespace.into(),
                    name: NAMES[*name].into(),
                });
            }
        }
    }

    proptest! {
        #[test]
        fn an_index_that_followed_changes_equals_one_made_at_once(ops in ops(), together in 1..4_usize) {
            let services = Name::from_ascii("svc.cluster.local.").unwrap();
            let (mut desired, mut index) = (Desired::default(), Index::default());
            for ops in ops.chunks(together) {
                let before = desired.clone();
                ops.iter().for_each(|op| apply(&mut desired, op));
                index.update(&before, &desired, &services);
                let mut fresh = Index::default();
                fresh.update(&Desired::default(), &desired, &services);
                prop_assert_eq!(&index, &fresh);
            }
        }
    }

    #[test]
    fn a_change_leaves_all_else_shared() {
        let services = Name::from_ascii("svc.cluster.local.").unwrap();
        let mut desired = Desired::default();
        for (namespace, name, kind) in [(0, 0, 2), (0, 1, 3), (1, 0, 4)] {
            apply(&mut desired, &Op::Service { namespace, name, kind });
        }
        let mut first = Index::default();
        first.update(&Desired::default(), &desired, &services);
        let before = desired.clone();
        apply(&mut desired, &Op::Service { namespace: 0, name: 1, kind: 0 });
        let mut second = first.clone();
        second.update(&before, &desired, &services);
        assert!(Arc::ptr_eq(first.service("a", "a").unwrap(), second.service("a", "a").unwrap()));
        assert!(Arc::ptr_eq(&first.namespaces["b"], &second.namespaces["b"]));
        let shared = first.owners.iter().zip(&second.owners).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, OWNER_PARTS - 1, "only the part with the address that went is new");
    }
}
