//! Interfaces, routes and next hops, built from the netlink state that control hands in.

mod multipath;

use std::net::{IpAddr, Ipv4Addr};

use flowgate_wire::EtherAddrs;
use hashbrown::{HashMap, HashSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::multipath::{Hop, Paths};
use crate::fib::Fib;
use crate::id::{InterfaceId, NextHopId};
use crate::spec::{ForwardingOff, InterfaceSpec, NeighbourSpec, RouteSpec, StationSpec, VlanSpec};

/// An interface that workers serve: a device, or a VLAN of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub id: InterfaceId,
    /// The description it was built from.
    pub spec: InterfaceSpec,
}

/// How a frame reaches a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The Ethernet addresses to write; `None` while the neighbour is not resolved.
    pub ether: Option<EtherAddrs>,
    /// The interface by which the frame leaves.
    pub egress: InterfaceId,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// The neighbour's address on the link. Its family need not be that of the packets (RFC 5549).
    pub addr: IpAddr,
    /// The kernel asked for the neighbour and nobody answered.
    pub has_failed: bool,
}

/// The result of a route lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this next hop, resolved or not.
    Via(NextHopId),
    /// To this neighbour, which the kernel's table does not have: request its resolution.
    Unknown(NeighbourKey),
    /// No route covers the destination, or the best one has no usable path.
    None,
}

/// Key of the neighbour table, for resolved and unresolved neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The link it is on.
    pub egress: InterfaceId,
    /// Its address there.
    pub addr: IpAddr,
}

/// Why routing tables cannot be built from a description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// More than [`InterfaceId::MAX`] interfaces.
    #[error("{0} interfaces: at most {max} can be served", max = InterfaceId::MAX)]
    TooManyInterfaces(usize),
    /// More than [`NextHopId::MAX`] neighbours.
    #[error("more than {max} neighbours", max = NextHopId::MAX)]
    TooManyNextHops,
    /// A route or neighbour names an interface that is not served.
    #[error("{what} names interface {interface}, of {count}")]
    NoSuchInterface {
        /// The route or neighbour.
        what: String,
        /// The position it names.
        interface: usize,
        /// How many there are.
        count: usize,
    },
    /// A VLAN interface names a parent that is none.
    #[error("VLAN {id} of interface {parent}: its parent must be a device that comes before it")]
    NoSuchDevice {
        /// The position it names.
        parent: usize,
        /// The VLAN identifier.
        id: u16,
    },
}

/// Interfaces, routes and next hops of one generation.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    interfaces: Vec<Interface>,
    /// The device and the VLAN identifier of each interface.
    devices: Vec<(InterfaceId, Option<u16>)>,
    /// VLAN interfaces by device and identifier.
    vlans: HashMap<(InterfaceId, u16), InterfaceId>,
    fib4: Fib<Ipv4Net, Ways>,
    fib6: Fib<Ipv6Net, Ways>,
    /// The broadcast addresses of the links.
    broadcasts: HashSet<Ipv4Addr>,
    /// What the kernel does not forward, ascending.
    forwarding_off: Vec<ForwardingOff>,
    other_stations: Vec<StationSpec>,
    next_hops: Vec<Option<NextHop>>,
    by_neighbour: HashMap<NeighbourKey, NextHopId>,
    epoch: u8,
}

/// What a route comes to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ways {
    paths: Paths,
    /// The interfaces of all its paths, usable or not: what its destinations send comes in by one of them.
    interfaces: Box<[InterfaceId]>,
}

impl Routing {
    /// Builds the tables; next hops that `previous` has keep their numbers.
    ///
    /// The epoch is raised when next hops that conntrack entries have stored may be wrong: a route or its usable paths
    /// changed, an interface got another number, or the number of a removed neighbour was reused.
    ///
    /// # Errors
    /// [`RoutingError`]: the description contradicts itself; nothing is built.
    pub fn build(
        previous: &Self,
        interfaces: Vec<InterfaceSpec>,
        routes: &[RouteSpec],
        neighbours: &[NeighbourSpec],
    ) -> Result<Self, RoutingError> {
        if interfaces.len() > InterfaceId::MAX {
            return Err(RoutingError::TooManyInterfaces(interfaces.len()));
        }
        let interfaces =
            interfaces.into_iter().zip(0..).map(|(spec, id)| Interface { id: InterfaceId(id), spec });
        let mut next = Self { interfaces: interfaces.collect(), epoch: previous.epoch, ..Self::default() };
        next.index_vlans()?;
        let mut resolved = HashMap::with_capacity(neighbours.len());
        for neighbour in neighbours {
            let egress =
                next.interface_id(neighbour.interface, || format!("neighbour {}", neighbour.addr))?;
            resolved.insert(NeighbourKey { egress, addr: neighbour.addr }, neighbour);
        }
        let reused = next.assign_next_hops(previous, &resolved)?;
        next.add_routes(routes)?;
        // Paths compare by value: a neighbour that only moved to another Ethernet address changes no epoch, since its next
        // hop is updated in place.
        let routes_changed = next.fib4 != previous.fib4 || next.fib6 != previous.fib6;
        if reused || routes_changed || !next.has_interface_ids_of(previous) {
            next.epoch = next.epoch.wrapping_add(1);
        }
        Ok(next)
    }

    /// The same tables, where the kernel does not forward what comes in so.
    #[must_use]
    pub fn with_forwarding_off(mut self, off: &[ForwardingOff]) -> Self {
        self.forwarding_off = off.to_vec();
        self.forwarding_off.sort_unstable();
        self
    }

    /// The same tables, with these Ethernet addresses beside those of the interfaces.
    #[must_use]
    pub fn with_other_stations(mut self, stations: &[StationSpec]) -> Self {
        self.other_stations = stations.to_vec();
        self
    }

    /// Ethernet addresses of this machine beside those of the interfaces.
    pub fn other_stations(&self) -> &[StationSpec] {
        &self.other_stations
    }

    /// Whether the kernel forwards packets that come in by this interface; they are IPv4 or else IPv6.
    pub fn forwards(&self, ingress: InterfaceId, v4: bool) -> bool {
        let off = ForwardingOff { interface: ingress.index(), v4 };
        self.forwarding_off.binary_search(&off).is_err()
    }

    /// What the kernel does not forward.
    pub fn forwarding_off(&self) -> &[ForwardingOff] {
        &self.forwarding_off
    }

    /// The route to a destination. Of several paths `flow_hash` selects one, the same for as long as it is usable.
    pub fn route(&self, dst: IpAddr, flow_hash: u32) -> Route {
        let Some(hop) = self.ways(dst).and_then(|ways| ways.paths.pick(flow_hash)) else {
            return Route::None;
        };
        // On-link: the destination is its own next hop.
        let neighbour = NeighbourKey { egress: hop.egress, addr: hop.via.unwrap_or(dst) };
        self.by_neighbour.get(&neighbour).map_or(Route::Unknown(neighbour), |&id| Route::Via(id))
    }

    /// Whether what `src` sends may come in by this interface: whether its route leads there, by whichever of its paths
    /// (RFC 3704 section 2.2, strict reverse path forwarding).
    pub fn is_reverse_path(&self, src: IpAddr, ingress: InterfaceId) -> bool {
        self.ways(src).is_some_and(|ways| ways.interfaces.contains(&ingress))
    }

    /// The interface by which all comes in that `src` sends; `None` if there are several, or none.
    pub(crate) fn only_reverse_path(&self, src: IpAddr) -> Option<InterfaceId> {
        let interfaces = &self.ways(src)?.interfaces;
        let &first = interfaces.first()?;
        interfaces.iter().all(|&other| other == first).then_some(first)
    }

    /// Whether the address is the broadcast address of a link that an interface has an address on.
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        matches!(addr, IpAddr::V4(v4) if self.broadcasts.contains(&v4))
    }

    fn ways(&self, addr: IpAddr) -> Option<&Ways> {
        match addr {
            IpAddr::V4(v4) => self.fib4.lookup(v4),
            IpAddr::V6(v6) => self.fib6.lookup(v6),
        }
    }

    /// The device that carries the frames of an interface, and the VLAN identifier of their tag. A device is its own.
    #[inline]
    pub fn device(&self, interface: InterfaceId) -> (InterfaceId, Option<u16>) {
        self.devices.get(interface.index()).copied().unwrap_or((interface, None))
    }

    /// The interface on which a frame with this VLAN identifier arrives, by the device that received it.
    #[inline]
    pub fn ingress(&self, device: InterfaceId, vlan: u16) -> Option<InterfaceId> {
        self.vlans.get(&(device, vlan)).copied()
    }

    /// Whether any interface is a VLAN on a device.
    #[inline]
    pub fn has_vlans(&self) -> bool {
        !self.vlans.is_empty()
    }

    /// The next hop with this number, unless its neighbour was removed.
    #[inline]
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(id.index())?.as_ref()
    }

    /// Whether the kernel asked for a neighbour in vain.
    pub fn has_failed(&self, neighbour: &NeighbourKey) -> bool {
        let id = self.by_neighbour.get(neighbour);
        id.and_then(|&id| self.next_hop(id)).is_some_and(|hop| hop.has_failed)
    }

    /// All next hops with their numbers.
    pub fn next_hops(&self) -> impl Iterator<Item = (NextHopId, &NextHop)> {
        (0..).map(NextHopId).zip(&self.next_hops).filter_map(|(id, hop)| Some((id, hop.as_ref()?)))
    }

    /// All interfaces in order.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Conntrack entries look their next hop up again when the epoch differs from the one that they stored.
    #[inline]
    pub const fn epoch(&self) -> u8 {
        self.epoch
    }

    /// The interface at a position of the description; `what` names the reference in an error.
    fn interface_id(
        &self,
        interface: usize,
        what: impl FnOnce() -> String,
    ) -> Result<InterfaceId, RoutingError> {
        let count = self.interfaces.len();
        match self.interfaces.get(interface) {
            Some(found) => Ok(found.id),
            None => Err(RoutingError::NoSuchInterface { what: what(), interface, count }),
        }
    }

    fn index_vlans(&mut self) -> Result<(), RoutingError> {
        for Interface { id, spec } in &self.interfaces {
            let Some(VlanSpec { parent, id: vlan }) = spec.vlan else {
                self.devices.push((*id, None));
                continue;
            };
            // No VLAN on a VLAN: one tag is all that workers take off and put on.
            let is_device = |parent: &&Interface| parent.id < *id && parent.spec.vlan.is_none();
            let device = self.interfaces.get(parent).filter(is_device);
            let device = device.ok_or(RoutingError::NoSuchDevice { parent, id: vlan })?.id;
            self.devices.push((device, Some(vlan)));
            self.vlans.insert((device, vlan), *id);
        }
        Ok(())
    }

    fn has_interface_ids_of(&self, previous: &Self) -> bool {
        let same_name = |(a, b): (&Interface, &Interface)| a.spec.name == b.spec.name;
        self.devices == previous.devices && self.interfaces.iter().zip(&previous.interfaces).all(same_name)
    }

    /// Of the routes with one prefix, the usable one with the lowest metric counts.
    fn add_routes(&mut self, routes: &[RouteSpec]) -> Result<(), RoutingError> {
        let mut sorted: Vec<&RouteSpec> = routes.iter().collect();
        // Descending: the lowest metric is inserted last and stays.
        sorted.sort_by_key(|route| std::cmp::Reverse(route.metric));
        for route in sorted {
            let mut hops = Vec::with_capacity(route.hops.len());
            for hop in &route.hops {
                let egress = self.interface_id(hop.interface, || format!("route to {}", route.prefix))?;
                hops.push(Hop::new(egress, hop.via, hop.weight));
            }
            let usable = self.usable(&hops);
            // A route whose paths are all down replaces no usable one. Alone it is inserted all the same, without paths:
            // as in the kernel, its destinations are unreachable and do not fall through to a shorter prefix.
            let is_down = usable.is_empty() && !hops.is_empty();
            let interfaces = hops.iter().map(|hop| hop.egress).collect();
            let ways = Ways { paths: Paths::new(usable), interfaces };
            match route.prefix {
                IpNet::V4(prefix) => {
                    self.add_broadcast(&prefix, &hops);
                    if !(is_down && self.fib4.contains(&prefix)) {
                        self.fib4.insert(prefix, ways);
                    }
                }
                IpNet::V6(prefix) if !(is_down && self.fib6.contains(&prefix)) => {
                    self.fib6.insert(prefix, ways);
                }
                IpNet::V6(_) => {}
            }
        }
        Ok(())
    }

    /// A link has a broadcast address if one of its interfaces has an address there (`fib_add_ifaddr` in
    /// net/ipv4/fib_frontend.c), and if there is room for one (RFC 3021).
    fn add_broadcast(&mut self, prefix: &Ipv4Net, hops: &[Hop]) {
        let is_on = |hop: &&Hop| {
            let own = &self.interfaces[hop.egress.index()].spec.addresses;
            hop.via.is_none() && own.iter().any(|addr| IpNet::V4(*prefix).contains(addr))
        };
        if prefix.prefix_len() <= 30 && hops.iter().any(|hop| is_on(&hop)) {
            self.broadcasts.insert(prefix.broadcast());
        }
    }

    /// The usable paths: by interfaces that are up, and of those, by routers that are resolved if any is.
    fn usable(&self, hops: &[Hop]) -> Vec<Hop> {
        let is_up = |hop: &&Hop| self.interfaces[hop.egress.index()].spec.up;
        let up: Vec<Hop> = hops.iter().filter(is_up).copied().collect();
        let answers = |hop: &&Hop| hop.via.is_none_or(|addr| self.is_resolved(hop.egress, addr));
        let answering: Vec<Hop> = up.iter().filter(answers).copied().collect();
        // With no resolved router all are left, so that packets request the resolution of one.
        if answering.is_empty() { up } else { answering }
    }

    fn is_resolved(&self, egress: InterfaceId, addr: IpAddr) -> bool {
        let id = self.by_neighbour.get(&NeighbourKey { egress, addr });
        id.and_then(|&id| self.next_hop(id)).is_some_and(|hop| hop.ether.is_some())
    }

    /// Gives every neighbour a number; returns whether one was reused for another neighbour.
    fn assign_next_hops(
        &mut self,
        previous: &Self,
        specs: &HashMap<NeighbourKey, &NeighbourSpec>,
    ) -> Result<bool, RoutingError> {
        self.next_hops = vec![None; previous.next_hops.len()];
        let mut added = Vec::new();
        for (&neighbour, &spec) in specs {
            match previous.by_neighbour.get(&neighbour) {
                Some(&id) => self.insert(id, neighbour, spec),
                None => added.push((neighbour, spec)),
            }
        }
        // Sorted, since a hash map has no order: the same changes give the same numbers in every run.
        added.sort_unstable_by_key(|(neighbour, _)| *neighbour);
        let mut free: Vec<usize> =
            (0..self.next_hops.len()).rev().filter(|&i| self.next_hops[i].is_none()).collect();
        // Entries may have stored the number of the neighbour that went, so the epoch has to change with its reuse.
        let reused = !free.is_empty() && !added.is_empty();
        for (neighbour, spec) in added {
            let index = free.pop().unwrap_or_else(|| {
                self.next_hops.push(None);
                self.next_hops.len() - 1
            });
            let number = u32::try_from(index).ok().filter(|&n| n < NextHopId::MAX);
            self.insert(NextHopId(number.ok_or(RoutingError::TooManyNextHops)?), neighbour, spec);
        }
        Ok(reused)
    }

    fn insert(&mut self, id: NextHopId, neighbour: NeighbourKey, spec: &NeighbourSpec) {
        let NeighbourKey { egress, addr } = neighbour;
        let interface = &self.interfaces[egress.index()].spec;
        // Frames for an interface that is down would wait in its ring; unresolved, their packets are held instead.
        let ether = spec.mac.filter(|_| interface.up).map(|mac| EtherAddrs::new(mac, interface.mac));
        self.next_hops[id.index()] =
            Some(NextHop { ether, egress, mtu: interface.mtu, addr, has_failed: spec.has_failed });
        self.by_neighbour.insert(neighbour, id);
    }
}

#[cfg(test)]
mod tests;
