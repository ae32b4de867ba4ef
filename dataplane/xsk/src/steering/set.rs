//! What is to be redirected to workers, as values. Contains no system calls.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

const WORDS: usize = 65536 / 64;

/// Everything that Flowgate serves and that its workers must receive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SteeringSet {
    /// ClusterIPs, external and LoadBalancer addresses with their ports.
    pub vips: BTreeSet<VipKey>,
    /// The node's own addresses on which NodePorts are served.
    pub node_addresses: BTreeSet<IpAddr>,
    /// TCP NodePorts.
    pub nodeports_tcp: PortSet,
    /// UDP NodePorts.
    pub nodeports_udp: PortSet,
    /// SCTP NodePorts.
    pub nodeports_sctp: PortSet,
    /// Addresses that Flowgate masquerades with.
    pub snat_addresses: BTreeSet<IpAddr>,
    /// Ports that Flowgate masquerades with, on any of these addresses.
    pub snat_ports: PortSet,
    /// Backends that see the client's address: what they send is a reply, unless it is sent to the node.
    pub reply_sources: BTreeSet<VipKey>,
    /// The node's own addresses.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Addresses of which every protocol and port is Flowgate's.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Prefixes of which every address is Flowgate's: base address and length in bits.
    pub service_cidrs: BTreeSet<(IpAddr, u8)>,
    /// Addresses for which workers reply to echo requests (RFC 1122, 3.2.2.6; RFC 4443, 4.1).
    pub echo_addresses: BTreeSet<IpAddr>,
    /// The VLANs whose frames are parsed. Frames with another tag, or with two, pass to the kernel; a priority tag is none.
    pub vlans: BTreeSet<VlanKey>,
    /// The Ethernet addresses of the interfaces: frames to others pass to the kernel, as do those to groups in any case. Of an
    /// interface without one here, frames to every address are taken that is no group's.
    pub stations: BTreeSet<StationKey>,
}

impl SteeringSet {
    /// The addresses of the VIPs.
    #[must_use]
    pub fn vip_addresses(&self) -> BTreeSet<IpAddr> {
        self.vips.iter().map(|vip| vip.addr).collect()
    }

    /// Redirects echo requests to every VIP, except to the node's own addresses, for which the kernel replies.
    pub fn answer_echo(&mut self) {
        self.echo_addresses = self.vip_addresses();
        self.echo_addresses.retain(|address| !self.own_addresses.contains(address));
    }

    /// Adds VLANs with an 802.1Q tag: the index of the device that receives the tag, and the VLAN's id.
    pub fn serve_vlans(&mut self, vlans: impl IntoIterator<Item = (u32, u16)>) {
        let vlans = vlans.into_iter();
        self.vlans.extend(vlans.map(|(ifindex, id)| VlanKey { ifindex, ethertype: ETHERTYPE_8021Q, id }));
    }
}

/// The EtherType of an 802.1Q tag.
pub const ETHERTYPE_8021Q: u16 = 0x8100;

/// One VLAN of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanKey {
    /// Index of the device that receives the tagged frames. VLANs of devices that are not attached are ignored.
    pub ifindex: u32,
    /// The tag's EtherType: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub ethertype: u16,
    /// The VLAN's id, 1 to 4094.
    pub id: u16,
}

impl VlanKey {
    /// The key in the map `vlans`, which has the interface's first socket slot in place of its index.
    pub(super) fn to_bytes(self, first_slot: u32) -> [u8; 8] {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&first_slot.to_ne_bytes());
        key[4..6].copy_from_slice(&self.ethertype.to_be_bytes());
        // Host byte order, as the program has shifted and masked the id; the EtherType is compared as it is in the frame.
        key[6..].copy_from_slice(&self.id.to_ne_bytes());
        key
    }

    /// `ifindex_of` returns the index of the interface with this first slot; `None` if it is not attached.
    pub(super) fn from_bytes(key: [u8; 8], ifindex_of: impl Fn(u32) -> Option<u32>) -> Option<Self> {
        let [b0, b1, b2, b3, e0, e1, i0, i1] = key;
        Some(Self {
            ifindex: ifindex_of(u32::from_ne_bytes([b0, b1, b2, b3]))?,
            ethertype: u16::from_be_bytes([e0, e1]),
            id: u16::from_ne_bytes([i0, i1]),
        })
    }
}

/// One Ethernet address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StationKey {
    /// Index of the device that receives the frames. Addresses of devices that are not attached are ignored.
    pub ifindex: u32,
    /// The VLAN that has the address; 0: the device itself, whose address counts for its VLANs too.
    pub vlan: u16,
    /// The address.
    pub address: [u8; 6],
}

impl StationKey {
    /// The key in the map `other_stations`, which has the interface's first socket slot in place of its index.
    pub(super) fn to_bytes(self, first_slot: u32) -> [u8; 12] {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&first_slot.to_ne_bytes());
        key[4..6].copy_from_slice(&self.vlan.to_ne_bytes());
        key[6..].copy_from_slice(&self.address);
        key
    }

    /// `ifindex_of` returns the index of the interface with this first slot; `None` if it is not attached.
    pub(super) fn from_bytes(key: [u8; 12], ifindex_of: impl Fn(u32) -> Option<u32>) -> Option<Self> {
        let [b0, b1, b2, b3, v0, v1, address @ ..] = key;
        Some(Self {
            ifindex: ifindex_of(u32::from_ne_bytes([b0, b1, b2, b3]))?,
            vlan: u16::from_ne_bytes([v0, v1]),
            address,
        })
    }

    /// The value in the map `stations`: the address as the first bytes of a frame, and two zeros.
    pub(super) fn to_word(self) -> u64 {
        let [a, b, c, d, e, f] = self.address;
        u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// One address, port and protocol that clients aim at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    /// The address.
    pub addr: IpAddr,
    /// The L4 port.
    pub port: u16,
    /// The IP protocol number: 6, 17 or 132.
    pub protocol: u8,
}

impl VipKey {
    pub(super) fn to_bytes(self) -> [u8; 20] {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&address_key(self.addr));
        key[16..18].copy_from_slice(&self.port.to_be_bytes());
        key[18] = self.protocol;
        key
    }

    pub(super) fn from_bytes(key: [u8; 20]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&key[..16]);
        Self {
            addr: address_from_key(address),
            port: u16::from_be_bytes([key[16], key[17]]),
            protocol: key[18],
        }
    }
}

/// The 16 bytes of an address in the program's maps: IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2).
pub(super) fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The trie's key of a prefix (`struct prefix` in bpf/maps.h): how many bits are significant, and an address of 16 bytes.
pub(super) fn prefix_key((address, bits): (IpAddr, u8)) -> [u8; 20] {
    let mapped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&(mapped + u32::from(bits)).to_ne_bytes());
    key[4..].copy_from_slice(&address_key(address));
    key
}

pub(super) fn prefix_from_key(key: [u8; 20]) -> (IpAddr, u8) {
    let [b0, b1, b2, b3, address @ ..] = key;
    let (bits, address) = (u32::from_ne_bytes([b0, b1, b2, b3]), address_from_key(address));
    let mapped = if address.is_ipv4() { MAPPED_BITS } else { 0 };
    (address, u8::try_from(bits.saturating_sub(mapped)).unwrap_or(u8::MAX))
}

/// The name of an IP protocol that Services can have.
pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

/// Bits of a v4-mapped address in front of the IPv4 part.
const MAPPED_BITS: u32 = 96;

pub(super) fn address_from_key(key: [u8; 16]) -> IpAddr {
    std::net::Ipv6Addr::from(key).to_canonical()
}

/// A set of L4 ports: one bit for each of the 65536.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; WORDS]>,
}

impl PortSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }

    /// Adds a port; false if the set contained it.
    pub fn insert(&mut self, port: u16) -> bool {
        let was = self.contains(port);
        self.words[usize::from(port / 64)] |= 1 << (port % 64);
        !was
    }

    /// Adds every port of a range.
    pub fn insert_range(&mut self, ports: RangeInclusive<u16>) {
        for port in ports {
            self.insert(port);
        }
    }

    /// Removes a port; false if the set did not contain it.
    pub fn remove(&mut self, port: u16) -> bool {
        let was = self.contains(port);
        self.words[usize::from(port / 64)] &= !(1 << (port % 64));
        was
    }

    /// True if the set contains the port.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port / 64)] & (1 << (port % 64)) != 0
    }

    /// Number of ports in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True if the set contains no port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The ports, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }

    /// The ports in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// The ports in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// The ports of this set that the other one lacks.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    fn zip(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self { words: Box::new(std::array::from_fn(|i| combine(self.words[i], other.words[i]))) }
    }

    /// Bit `port % 8` of byte `port / 8`, as `port_in` in steer.bpf.c reads it.
    pub(super) fn to_bytes(&self) -> [u8; WORDS * 8] {
        let mut bytes = [0; WORDS * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.words.iter()) {
            // Little endian on every host: bit n of a word is then bit n % 8 of its byte n / 8.
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; WORDS * 8]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        Self { words: Box::new(std::array::from_fn(|i| u64::from_le_bytes(words[i]))) }
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

impl Extend<u16> for PortSet {
    fn extend<I: IntoIterator<Item = u16>>(&mut self, ports: I) {
        for port in ports {
            self.insert(port);
        }
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::new();
        set.extend(ports);
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As ranges: a SNAT pool has tens of thousands of ports.
        let mut list = f.debug_list();
        let mut ports = self.iter().peekable();
        while let Some(first) = ports.next() {
            let mut last = first;
            while ports.next_if(|next| u32::from(*next) == u32::from(last) + 1).is_some() {
                last += 1;
            }
            list.entry(&format_args!("{first}-{last}"));
        }
        list.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_port_set_agrees_with_a_btree_set(
            operations in prop::collection::vec((any::<bool>(), any::<u16>()), 0..200),
            other in prop::collection::btree_set(any::<u16>(), 0..200),
        ) {
            let (mut set, mut oracle) = (PortSet::new(), BTreeSet::new());
            for (insert, port) in operations {
                if insert {
                    prop_assert_eq!(set.insert(port), oracle.insert(port));
                } else {
                    prop_assert_eq!(set.remove(port), oracle.remove(&port));
                }
            }
            prop_assert_eq!(set.len(), oracle.len());
            prop_assert_eq!(set.is_empty(), oracle.is_empty());
            prop_assert!(set.iter().eq(oracle.iter().copied()));
            prop_assert_eq!(PortSet::from_bytes(&set.to_bytes()), set.clone());
            let others: PortSet = other.iter().copied().collect();
            prop_assert!(set.intersection(&others).iter().eq(oracle.intersection(&other).copied()));
            prop_assert!(set.difference(&others).iter().eq(oracle.difference(&other).copied()));
            prop_assert!(set.union(&others).iter().eq(oracle.union(&other).copied()));
        }

        #[test]
        fn a_vip_survives_its_map_key(v4 in any::<Option<u32>>(), bits in any::<u128>(), port in any::<u16>(), protocol in any::<u8>()) {
            let addr = v4.map_or_else(|| IpAddr::V6(bits.into()), |v4| IpAddr::V4(v4.into()));
            let key = VipKey { addr: addr.to_canonical(), port, protocol };
            prop_assert_eq!(VipKey::from_bytes(key.to_bytes()), key);
        }
    }

    #[test]
    fn a_vlan_survives_its_map_key_while_its_device_is_attached() {
        let vlan = VlanKey { ifindex: 7, ethertype: 0x88a8, id: 4094 };
        let ifindex_of = |base| (base == 256).then_some(7);
        assert_eq!(VlanKey::from_bytes(vlan.to_bytes(256), ifindex_of), Some(vlan));
        assert_eq!(VlanKey::from_bytes(vlan.to_bytes(512), ifindex_of), None);
    }

    #[test]
    fn a_station_survives_its_map_key_while_its_device_is_attached() {
        let station = StationKey { ifindex: 7, vlan: 4094, address: [2, 3, 4, 5, 6, 7] };
        let ifindex_of = |base| (base == 256).then_some(7);
        assert_eq!(StationKey::from_bytes(station.to_bytes(256), ifindex_of), Some(station));
        assert_eq!(StationKey::from_bytes(station.to_bytes(512), ifindex_of), None);
        assert_eq!(station.to_word().to_ne_bytes(), [2, 3, 4, 5, 6, 7, 0, 0]);
    }

    #[test]
    fn echo_is_answered_for_vips_that_are_not_the_nodes() {
        let vip = |addr: &str, port| VipKey { addr: addr.parse().unwrap(), port, protocol: 6 };
        let mut set = SteeringSet {
            vips: [vip("192.0.2.1", 80), vip("10.96.0.10", 80), vip("10.96.0.10", 81), vip("fd00::1", 80)]
                .into(),
            own_addresses: ["192.0.2.1".parse().unwrap()].into(),
            ..SteeringSet::default()
        };
        set.answer_echo();
        let expected: BTreeSet<IpAddr> = ["10.96.0.10".parse().unwrap(), "fd00::1".parse().unwrap()].into();
        assert_eq!(set.echo_addresses, expected);
    }

    #[test]
    fn a_prefix_survives_its_map_key() {
        for (address, bits) in [("10.96.0.0", 12), ("0.0.0.0", 0), ("fd00:10::", 108), ("10.0.0.1", 32)] {
            let prefix = (address.parse().unwrap(), bits);
            assert_eq!(prefix_from_key(prefix_key(prefix)), prefix);
        }
    }

    #[test]
    fn ranges_reach_both_ends() {
        let mut set = PortSet::new();
        set.insert_range(0..=0);
        set.insert_range(65535..=65535);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 65535]);
        assert_eq!(format!("{set:?}"), "[0-0, 65535-65535]");
    }
}
