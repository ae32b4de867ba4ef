//! Source addresses and ports for translated flows. Never hands out a port: workers do.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::id::InterfaceId;

/// A set of transport ports.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; 1024]>,
}

impl Default for PortSet {
    fn default() -> Self {
        Self { words: Box::new([0; 1024]) }
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.words[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// Takes a port out.
    pub fn remove(&mut self, port: u16) {
        self.words[usize::from(port / 64)] &= !(1 << (port % 64));
    }

    /// Whether the port is in.
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port / 64)] & 1 << (port % 64) != 0
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|&port| self.contains(port))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
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

/// Where translated flows get their source from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatPool {
    by_interface: Vec<Addresses>,
    /// Every address once, ascending.
    all: Vec<IpAddr>,
    /// The same and those that only flows of earlier may have.
    answered: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// What flows that leave by one interface may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl SnatPool {
    /// A pool with the addresses that flows leaving by each interface may use.
    pub fn new(by_interface: &[Vec<IpAddr>], ports: &PortSet) -> Self {
        let mut all: Vec<IpAddr> = by_interface.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        let by_interface = by_interface.iter().map(|addresses| Addresses::new(addresses)).collect();
        let answered = all.clone();
        Self { by_interface, all, answered, ports: ports.iter().filter(|&port| port != 0).collect() }
    }

    /// The same pool, which also takes answers to these addresses: flows that began with one of them go on when new
    /// flows get another.
    #[must_use]
    pub fn answering_at(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.answered.extend(addresses);
        self.answered.sort_unstable();
        self.answered.dedup();
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

    /// Whether answers to flows may come to the address.
    #[inline]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.answered.binary_search(&addr).is_ok()
    }

    /// Every address that answers to flows may come to, ascending.
    pub fn answered_addresses(&self) -> &[IpAddr] {
        &self.answered
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
        assert!(pool.contains(shared) && pool.contains(ip("10.0.0.1")) && !pool.contains(ip("10.0.0.2")));
        assert_eq!(pool.all_addresses(), [ip("10.0.0.1"), ip("192.0.2.1"), shared]);
    }

    #[test]
    fn flows_keep_an_address_that_new_ones_do_not_get() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = SnatPool::new(&[vec![ip("192.0.2.2")]], &PortSet::default());
        let pool = pool.answering_at([ip("192.0.2.1"), ip("192.0.2.2")]);
        assert_eq!(pool.addresses_v4(InterfaceId(0)), [Ipv4Addr::new(192, 0, 2, 2)]);
        assert_eq!(pool.all_addresses(), [ip("192.0.2.2")]);
        assert_eq!(pool.answered_addresses(), [ip("192.0.2.1"), ip("192.0.2.2")]);
        assert!(pool.contains(ip("192.0.2.1")) && !pool.contains(ip("192.0.2.3")));
    }

    #[test]
    fn port_zero_is_never_a_source() {
        assert_eq!(SnatPool::new(&[], &(0..=2).collect()).ports(), [1, 2]);
    }
}
