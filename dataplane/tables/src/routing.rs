//! Interfaces, routes and next hops. Never asks the kernel: netlink state is handed in.

use std::net::{IpAddr, Ipv4Addr};

use flowgate_wire::{EtherAddrs, MacAddr};
use hashbrown::HashMap;
use ipnet::IpNet;

use crate::fib::Fib4;
use crate::spec::{InterfaceSpec, NeighbourSpec, RouteSpec};

/// Numbers an interface in the order of the configuration, which is that of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct InterfaceId(pub u8);

impl InterfaceId {
    /// Interfaces at most.
    pub const MAX: usize = u8::MAX as usize;

    /// Position among the interfaces.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Numbers a next hop; keeps its number while interface and address stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct NextHopId(u32);

impl NextHopId {
    /// Next hops at most: a conntrack entry keeps 24 bits.
    pub const MAX: u32 = 1 << 24;

    /// Position in the table.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The form that a conntrack entry stores.
    #[inline]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`NextHopId::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// An interface that workers serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub id: InterfaceId,
    /// The description it was built from.
    pub spec: InterfaceSpec,
}

/// Where to send a frame so that it reaches a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The Ethernet addresses to write; none while the neighbour is not resolved.
    pub ether: Option<EtherAddrs>,
    /// The way out.
    pub egress: InterfaceId,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// The neighbour's address on the link.
    pub addr: Ipv4Addr,
}

/// What the route to a destination says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hop {
    egress: InterfaceId,
    via: Option<Ipv4Addr>,
}

/// The answer to "how does a packet get there".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this next hop, resolved or not.
    Via(NextHopId),
    /// By this neighbour, of which the kernel has not heard yet: ask it to resolve the address.
    Unknown(Unresolved),
    /// No route covers the destination.
    None,
}

/// A neighbour to be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unresolved {
    /// The link it is on.
    pub egress: InterfaceId,
    /// Its address there.
    pub addr: Ipv4Addr,
}

/// Why a description cannot become routing tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// More interfaces than can be numbered.
    #[error("{0} interfaces: at most {max} can be served", max = InterfaceId::MAX)]
    TooManyInterfaces(usize),
    /// More neighbours than can be numbered.
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
}

/// Interfaces, routes and next hops of one generation.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    interfaces: Vec<Interface>,
    fib: Fib4<Hop>,
    next_hops: Vec<Option<NextHop>>,
    by_neighbour: HashMap<Unresolved, NextHopId>,
    epoch: u8,
}

impl Routing {
    /// Builds the tables; next hops keep their numbers.
    ///
    /// The epoch is raised when a conntrack entry's next hop may no longer be right: a route changed, or
    /// the number of a forgotten neighbour was given away.
    ///
    /// # Errors
    /// [`RoutingError`]: the description contradicts itself; nothing is built.
    pub fn build(
        previous: &Self,
        interfaces: Vec<InterfaceSpec>,
        routes: &[RouteSpec],
        neighbours: &[NeighbourSpec],
    ) -> Result<Self, RoutingError> {
        let count = interfaces.len();
        if count > InterfaceId::MAX {
            return Err(RoutingError::TooManyInterfaces(count));
        }
        let id = |what: &dyn Fn() -> String, interface: usize| {
            let number = u8::try_from(interface).ok().filter(|_| interface < count);
            number.map(InterfaceId).ok_or_else(|| RoutingError::NoSuchInterface {
                what: what(),
                interface,
                count,
            })
        };
        let mut fib: Fib4<Hop> = Fib4::default();
        let mut sorted: Vec<&RouteSpec> = routes.iter().collect();
        // The lowest metric is inserted last and stays.
        sorted.sort_by_key(|route| std::cmp::Reverse(route.metric));
        for route in sorted {
            let egress = id(&|| format!("route to {}", route.prefix), route.interface)?;
            let IpNet::V4(prefix) = route.prefix else { continue };
            let via = match route.via {
                Some(IpAddr::V4(via)) => Some(via),
                Some(IpAddr::V6(_)) => continue,
                None => None,
            };
            fib.insert(prefix.addr(), prefix.prefix_len(), Hop { egress, via });
        }
        let interfaces: Vec<Interface> = interfaces
            .into_iter()
            .zip(0..)
            .map(|(spec, id)| Interface { id: InterfaceId(id), spec })
            .collect();
        let mut next = Self { interfaces, fib, epoch: previous.epoch, ..Self::default() };
        let mut resolved = HashMap::with_capacity(neighbours.len());
        for neighbour in neighbours {
            let egress = id(&|| format!("neighbour {}", neighbour.addr), neighbour.interface)?;
            if let IpAddr::V4(addr) = neighbour.addr {
                resolved.insert(Unresolved { egress, addr }, neighbour.mac);
            }
        }
        let reused = next.number_next_hops(previous, &resolved)?;
        if reused || next.fib != previous.fib || next.interfaces.len() != previous.interfaces.len() {
            next.epoch = next.epoch.wrapping_add(1);
        }
        Ok(next)
    }

    /// The way to a destination.
    pub fn route(&self, dst: Ipv4Addr) -> Route {
        let Some(hop) = self.fib.lookup(dst) else { return Route::None };
        let neighbour = Unresolved { egress: hop.egress, addr: hop.via.unwrap_or(dst) };
        self.by_neighbour.get(&neighbour).map_or(Route::Unknown(neighbour), |&id| Route::Via(id))
    }

    /// The next hop with this number, unless its neighbour was forgotten.
    #[inline]
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(id.index())?.as_ref()
    }

    /// All next hops with their numbers.
    pub fn next_hops(&self) -> impl Iterator<Item = (NextHopId, &NextHop)> {
        (0..).map(NextHopId).zip(&self.next_hops).filter_map(|(id, hop)| Some((id, hop.as_ref()?)))
    }

    /// All interfaces in order.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Differs from that of the generation before when stored next hops must be looked up again.
    #[inline]
    pub const fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Returns whether a number went from one neighbour to another.
    fn number_next_hops(
        &mut self,
        previous: &Self,
        resolved: &HashMap<Unresolved, Option<MacAddr>>,
    ) -> Result<bool, RoutingError> {
        self.next_hops = vec![None; previous.next_hops.len()];
        let mut added = Vec::new();
        for (&neighbour, &mac) in resolved {
            match previous.by_neighbour.get(&neighbour) {
                Some(&id) => self.place(id, neighbour, mac),
                None => added.push((neighbour, mac)),
            }
        }
        added.sort_unstable();
        let mut free: Vec<usize> =
            (0..self.next_hops.len()).rev().filter(|&i| self.next_hops[i].is_none()).collect();
        let reused = !free.is_empty() && !added.is_empty();
        for (neighbour, mac) in added {
            let index = free.pop().unwrap_or_else(|| {
                self.next_hops.push(None);
                self.next_hops.len() - 1
            });
            let number = u32::try_from(index).ok().filter(|&n| n < NextHopId::MAX);
            self.place(NextHopId(number.ok_or(RoutingError::TooManyNextHops)?), neighbour, mac);
        }
        Ok(reused)
    }

    fn place(&mut self, id: NextHopId, neighbour: Unresolved, mac: Option<MacAddr>) {
        let Unresolved { egress, addr } = neighbour;
        let interface = &self.interfaces[egress.index()].spec;
        let ether = mac.filter(|_| interface.up).map(|mac| EtherAddrs::new(mac, interface.mac));
        self.next_hops[id.index()] = Some(NextHop { ether, egress, mtu: interface.mtu, addr });
        self.by_neighbour.insert(neighbour, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, host: u8) -> InterfaceSpec {
        InterfaceSpec {
            name: name.into(),
            ifindex: u32::from(host),
            mac: MacAddr([2, 0, 0, 0, 0, host]),
            mtu: 1500,
            up: true,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, host, 0, 1))],
        }
    }

    fn route(prefix: &str, interface: usize, via: Option<&str>) -> RouteSpec {
        let via = via.map(|via| via.parse().unwrap());
        RouteSpec { prefix: prefix.parse().unwrap(), interface, via, metric: 0 }
    }

    fn neighbour(addr: &str, interface: usize, mac: Option<u8>) -> NeighbourSpec {
        NeighbourSpec {
            interface,
            addr: addr.parse().unwrap(),
            mac: mac.map(|m| MacAddr([4, 0, 0, 0, 0, m])),
        }
    }

    fn build(previous: &Routing, routes: &[RouteSpec], neighbours: &[NeighbourSpec]) -> Routing {
        Routing::build(previous, vec![interface("up0", 1), interface("fab0", 2)], routes, neighbours).unwrap()
    }

    fn via(routing: &Routing, dst: [u8; 4]) -> NextHop {
        match routing.route(dst.into()) {
            Route::Via(id) => *routing.next_hop(id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_routed_destination_goes_to_the_router_and_a_link_one_to_itself() {
        let routes = [route("10.1.0.0/16", 0, None), route("0.0.0.0/0", 0, Some("10.1.0.9"))];
        let routing = build(
            &Routing::default(),
            &routes,
            &[neighbour("10.1.0.9", 0, Some(9)), neighbour("10.1.0.5", 0, None)],
        );
        let hop = via(&routing, [8, 8, 8, 8]);
        assert_eq!(hop.ether, Some(EtherAddrs([4, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1])));
        assert_eq!(via(&routing, [10, 1, 0, 5]).ether, None, "known but not resolved");
        let unknown = Unresolved { egress: InterfaceId(0), addr: [10, 1, 0, 6].into() };
        assert_eq!(routing.route([10, 1, 0, 6].into()), Route::Unknown(unknown));
        assert_eq!(build(&routing, &[], &[]).route([10, 1, 0, 6].into()), Route::None);
    }

    #[test]
    fn the_lowest_metric_wins() {
        let mut costly = route("0.0.0.0/0", 0, Some("10.1.0.9"));
        costly.metric = 100;
        let neighbours = [neighbour("10.1.0.9", 0, Some(9)), neighbour("10.2.0.9", 1, Some(8))];
        let cheap = route("0.0.0.0/0", 1, Some("10.2.0.9"));
        for routes in [[costly.clone(), cheap.clone()], [cheap, costly]] {
            assert_eq!(
                via(&build(&Routing::default(), &routes, &neighbours), [1, 1, 1, 1]).egress,
                InterfaceId(1)
            );
        }
    }

    #[test]
    fn a_neighbour_change_keeps_numbers_and_epoch() {
        let routes = [route("10.1.0.0/16", 0, None)];
        let first = build(&Routing::default(), &routes, &[neighbour("10.1.0.5", 0, Some(5))]);
        let both = [neighbour("10.1.0.5", 0, Some(6)), neighbour("10.1.0.7", 0, None)];
        let second = build(&first, &routes, &both);
        assert_eq!(first.epoch(), second.epoch());
        assert_eq!(first.route([10, 1, 0, 5].into()), second.route([10, 1, 0, 5].into()));
        assert_eq!(via(&second, [10, 1, 0, 5]).ether.unwrap().0[5], 6);
    }

    #[test]
    fn a_route_change_and_a_reused_number_raise_the_epoch() {
        let routes = [route("10.1.0.0/16", 0, None)];
        let first = build(&Routing::default(), &routes, &[neighbour("10.1.0.5", 0, Some(5))]);
        let moved = build(&first, &[route("10.1.0.0/16", 1, None)], &[neighbour("10.1.0.5", 0, Some(5))]);
        assert_ne!(first.epoch(), moved.epoch());
        let reused = build(&first, &routes, &[neighbour("10.1.0.6", 0, Some(5))]);
        assert_ne!(first.epoch(), reused.epoch());
    }

    #[test]
    fn an_interface_that_is_down_resolves_nothing() {
        let mut down = interface("up0", 1);
        down.up = false;
        let routes = [route("10.1.0.0/16", 0, None)];
        let routing =
            Routing::build(&Routing::default(), vec![down], &routes, &[neighbour("10.1.0.5", 0, Some(5))])
                .unwrap();
        assert_eq!(via(&routing, [10, 1, 0, 5]).ether, None);
    }

    #[test]
    fn a_reference_to_no_interface_is_refused_by_name() {
        let wrong =
            Routing::build(&Routing::default(), vec![], &[route("10.0.0.0/8", 2, None)], &[]).unwrap_err();
        assert_eq!(wrong.to_string(), "route to 10.0.0.0/8 names interface 2, of 0");
    }
}
