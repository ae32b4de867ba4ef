//! The kinds of entries: which bytes of a key stand for which value.

use std::net::IpAddr;

use aya::maps::MapType;

use super::key_set::{Entry, KeySet};
use crate::steering::set::{
    StationKey, VipKey, VlanKey, address_from_key, address_key, prefix_from_key, prefix_key, protocol_name,
};
use crate::steering::sockets::InterfaceSlots;

/// IP addresses.
pub(super) type AddressSet = KeySet<IpAddr>;
/// Addresses with protocol and port.
pub(super) type VipSet = KeySet<VipKey>;
/// Prefixes, in a longest-prefix-match trie.
pub(super) type PrefixSet = KeySet<(IpAddr, u8)>;
/// VLANs of attached interfaces.
pub(super) type VlanSet = KeySet<VlanKey>;
/// Ethernet addresses of attached interfaces.
pub(super) type StationSet = KeySet<StationKey>;

impl Entry for IpAddr {
    type Key = [u8; 16];
    const KIND: MapType = MapType::Hash;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<[u8; 16]> {
        Some(address_key(self))
    }

    fn from_key(key: [u8; 16], _: &[InterfaceSlots]) -> Option<Self> {
        Some(address_from_key(key))
    }

    fn name(self) -> String {
        self.to_string()
    }
}

impl Entry for VipKey {
    type Key = [u8; 20];
    const KIND: MapType = MapType::Hash;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<[u8; 20]> {
        Some(self.to_bytes())
    }

    fn from_key(key: [u8; 20], _: &[InterfaceSlots]) -> Option<Self> {
        Some(Self::from_bytes(key))
    }

    fn name(self) -> String {
        format!("{} port {}/{}", self.addr, self.port, protocol_name(self.protocol))
    }
}

impl Entry for (IpAddr, u8) {
    type Key = [u8; 20];
    const KIND: MapType = MapType::LpmTrie;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<[u8; 20]> {
        Some(prefix_key(self))
    }

    fn from_key(key: [u8; 20], _: &[InterfaceSlots]) -> Option<Self> {
        Some(prefix_from_key(key))
    }

    fn name(self) -> String {
        format!("{}/{}", self.0, self.1)
    }
}

impl Entry for VlanKey {
    type Key = [u8; 8];
    const KIND: MapType = MapType::Hash;

    fn to_key(self, interfaces: &[InterfaceSlots]) -> Option<[u8; 8]> {
        let interface = interfaces.iter().find(|interface| interface.ifindex == self.ifindex)?;
        Some(self.to_bytes(interface.first))
    }

    fn from_key(key: [u8; 8], interfaces: &[InterfaceSlots]) -> Option<Self> {
        Self::from_bytes(key, |first| {
            interfaces.iter().find(|interface| interface.first == first).map(|interface| interface.ifindex)
        })
    }

    fn name(self) -> String {
        format!("VLAN {} of device {}", self.id, self.ifindex)
    }
}

impl Entry for StationKey {
    type Key = [u8; 12];
    const KIND: MapType = MapType::Hash;

    fn to_key(self, interfaces: &[InterfaceSlots]) -> Option<[u8; 12]> {
        let interface = interfaces.iter().find(|interface| interface.ifindex == self.ifindex)?;
        Some(self.to_bytes(interface.first))
    }

    fn from_key(key: [u8; 12], interfaces: &[InterfaceSlots]) -> Option<Self> {
        Self::from_bytes(key, |first| {
            interfaces.iter().find(|interface| interface.first == first).map(|interface| interface.ifindex)
        })
    }

    fn name(self) -> String {
        let address = self.address.map(|byte| format!("{byte:02x}")).join(":");
        format!("Ethernet address {address} of device {}", self.ifindex)
    }
}
