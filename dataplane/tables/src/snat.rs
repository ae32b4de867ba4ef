//! Source addresses and ports for SNAT: which there are, and which worker may use which port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fixedbitset::FixedBitSet;
use flowgate_wire::L4Port;

use crate::id::InterfaceId;

/// A set of transport ports: one bit for each of the 65,536.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    ports: FixedBitSet,
}

impl Default for PortSet {
    fn default() -> Self {
        // Full size from the start: sets are equal only if their capacities are.
        Self { ports: FixedBitSet::with_capacity(PORTS) }
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.ports.insert(port.into());
    }

    /// Removes a port.
    pub fn remove(&mut self, port: u16) {
        self.ports.remove(port.into());
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains(port.into())
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.ports.ones().filter_map(|port| u16::try_from(port).ok())
    }

    /// The number of ports.
    pub fn len(&self) -> usize {
        self.ports.count_ones(..)
    }

    /// Whether there is no port.
    pub fn is_empty(&self) -> bool {
        self.ports.is_clear()
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({} ports)", self.len())
    }
}

/// Source addresses and ports of translated flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatPool {
    by_interface: Vec<Addresses>,
    /// Addresses of new flows, without repetition, ascending.
    all: Vec<IpAddr>,
    /// The same and the addresses of older flows, ascending.
    reply_addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// The addresses for flows that leave by one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl SnatPool {
    /// A pool with the addresses of each interface, by its number, and ports for all of them; port 0 is left out.
    pub fn new(by_interface: &[Vec<IpAddr>], ports: &PortSet) -> Self {
        let mut all: Vec<IpAddr> = by_interface.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        let by_interface = by_interface.iter().map(|addresses| Addresses::new(addresses)).collect();
        let reply_addresses = all.clone();
        Self { by_interface, all, reply_addresses, ports: ports.iter().filter(|&port| port != 0).collect() }
    }

    /// The same pool, with further addresses to which replies are translated back: their flows go on although new flows
    /// get another address.
    #[must_use]
    pub fn with_reply_addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.reply_addresses.extend(addresses);
        // `is_reply_address` searches, and is called for packets of no flow: a flood must be cheap to tell apart.
        self.reply_addresses.sort_unstable();
        self.reply_addresses.dedup();
        self
    }

    /// The IPv4 addresses for flows that leave by this interface.
    #[inline]
    pub fn addresses_v4(&self, egress: InterfaceId) -> &[Ipv4Addr] {
        self.by_interface.get(egress.index()).map_or(&[], |addresses| &addresses.v4)
    }

    /// The IPv6 addresses for flows that leave by this interface.
    #[inline]
    pub fn addresses_v6(&self, egress: InterfaceId) -> &[Ipv6Addr] {
        self.by_interface.get(egress.index()).map_or(&[], |addresses| &addresses.v6)
    }

    /// Whether replies to translated flows may arrive at the address.
    #[inline]
    pub fn is_reply_address(&self, addr: IpAddr) -> bool {
        self.reply_addresses.binary_search(&addr).is_ok()
    }

    /// Whether translated flows may have this source, now or from before.
    #[inline]
    pub fn is_source(&self, addr: IpAddr, port: L4Port) -> bool {
        // The address first: there are few, and clients use the same ports.
        self.is_reply_address(addr) && self.ports.binary_search(&port.number()).is_ok()
    }

    /// Every address at which replies to translated flows may arrive, ascending.
    pub fn reply_addresses(&self) -> &[IpAddr] {
        &self.reply_addresses
    }

    /// Every address that new flows may get, without repetition, ascending.
    pub fn all_addresses(&self) -> Vec<IpAddr> {
        self.all.clone()
    }

    /// All ports, ascending.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The ports of one worker: no two workers share one.
    #[inline]
    pub fn worker_ports(&self, worker: usize, worker_count: usize) -> &[u16] {
        // Disjoint slices: workers choose ports without synchronising, and two flows that differ in nothing but the client
        // never compete for one.
        let len = self.ports.len();
        let at = |n: usize| len * n / worker_count.max(1);
        self.ports.get(at(worker)..at(worker + 1)).unwrap_or(&[])
    }
}

impl Addresses {
    fn new(addresses: &[IpAddr]) -> Self {
        let mut families = Self::default();
        for addr in addresses {
            match addr {
                IpAddr::V4(v4) => families.v4.push(*v4),
                IpAddr::V6(v6) => families.v6.push(*v6),
            }
        }
        families
    }
}

/// Ports that there are.
const PORTS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_all_ports_and_no_port_twice() {
        let pool = SnatPool::new(&[], &(40_000..=59_999).filter(|p| p % 7 != 0).collect());
        for workers in 1..9 {
            let all: Vec<u16> = (0..workers).flat_map(|w| pool.worker_ports(w, workers).to_vec()).collect();
            assert_eq!(all, pool.ports());
        }
        assert!(pool.worker_ports(3, 3).is_empty());
    }

    #[test]
    fn a_port_set_is_a_set() {
        let mut set: PortSet = [0, 63, 64, 65_535].into_iter().collect();
        set.insert(64);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 65_535]);
        set.remove(63);
        assert!(!set.contains(63) && set.contains(64) && !set.contains(1));
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn each_interface_has_addresses_of_both_families() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let shared = ip("2001:db8::1");
        let pool = SnatPool::new(
            &[vec![shared, ip("192.0.2.1")], vec![ip("10.0.0.1"), shared]],
            &PortSet::default(),
        );
        assert_eq!(pool.addresses_v4(InterfaceId(1)), [Ipv4Addr::new(10, 0, 0, 1)]);
        for interface in [0, 1] {
            assert_eq!(
                pool.addresses_v6(InterfaceId(interface))
                    .iter()
                    .map(|&v6| IpAddr::V6(v6))
                    .collect::<Vec<_>>(),
                [shared]
            );
        }
        assert!(pool.addresses_v4(InterfaceId(2)).is_empty());
        assert!(
            pool.is_reply_address(shared)
                && pool.is_reply_address(ip("10.0.0.1"))
                && !pool.is_reply_address(ip("10.0.0.2"))
        );
        assert_eq!(pool.all_addresses(), [ip("10.0.0.1"), ip("192.0.2.1"), shared]);
    }

    #[test]
    fn flows_keep_an_address_that_new_ones_do_not_get() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = SnatPool::new(&[vec![ip("192.0.2.2")]], &PortSet::default());
        let pool = pool.with_reply_addresses([ip("192.0.2.1"), ip("192.0.2.2")]);
        assert_eq!(pool.addresses_v4(InterfaceId(0)), [Ipv4Addr::new(192, 0, 2, 2)]);
        assert_eq!(pool.all_addresses(), [ip("192.0.2.2")]);
        assert_eq!(pool.reply_addresses(), [ip("192.0.2.1"), ip("192.0.2.2")]);
        assert!(pool.is_reply_address(ip("192.0.2.1")) && !pool.is_reply_address(ip("192.0.2.3")));
    }

    #[test]
    fn a_source_is_an_address_of_any_time_with_a_port_of_the_range() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = SnatPool::new(&[vec![ip("192.0.2.2")]], &(40_000..=40_009).collect());
        let pool = pool.with_reply_addresses([ip("192.0.2.1")]);
        for (addr, port, is_source) in [
            ("192.0.2.2", 40_000, true),
            ("192.0.2.1", 40_009, true),
            ("192.0.2.2", 40_010, false),
            ("192.0.2.3", 40_000, false),
        ] {
            assert_eq!(pool.is_source(ip(addr), L4Port::new(port)), is_source, "{addr}:{port}");
        }
    }

    #[test]
    fn port_zero_is_never_a_source() {
        assert_eq!(SnatPool::new(&[], &(0..=2).collect()).ports(), [1, 2]);
    }
}
