//! Source addresses and ports for translated flows. Never hands out a port: workers do.

use std::fmt;
use std::net::Ipv4Addr;

use crate::routing::InterfaceId;

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
    by_interface: Vec<Vec<Ipv4Addr>>,
    ports: Vec<u16>,
}

impl SnatPool {
    /// A pool with the addresses that flows leaving by each interface may use.
    pub fn new(by_interface: Vec<Vec<Ipv4Addr>>, ports: &PortSet) -> Self {
        Self { by_interface, ports: ports.iter().filter(|&port| port != 0).collect() }
    }

    /// The addresses for flows that leave by this interface.
    #[inline]
    pub fn addresses(&self, egress: InterfaceId) -> &[Ipv4Addr] {
        self.by_interface.get(egress.index()).map_or(&[], Vec::as_slice)
    }

    /// Every address of the pool, without repetition.
    pub fn all_addresses(&self) -> Vec<Ipv4Addr> {
        let mut all: Vec<_> = self.by_interface.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_all_ports_and_no_port_twice() {
        let pool = SnatPool::new(vec![], &(40_000..=59_999).filter(|p| p % 7 != 0).collect());
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
    fn port_zero_is_never_a_source() {
        assert_eq!(SnatPool::new(vec![], &(0..=2).collect()).ports(), [1, 2]);
    }
}
