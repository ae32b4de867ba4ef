//! The maps that are sets: hash maps and one prefix trie of which only the keys matter. A type per kind of entry opens its
//! map, reads it, removes stale entries and adds new ones.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, MapType};

use super::shape::Shape;
use crate::steering::SteeringError;
use crate::steering::bpffs::PinDir;
use crate::steering::set::{
    SteeringSet, VipKey, VlanKey, address_from_key, address_key, prefix_from_key, prefix_key,
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

/// A pinned map whose keys are a set of `E`.
pub(super) struct KeySet<E: Entry> {
    name: &'static str,
    map: E::Map,
}

/// A value that is stored as the key of a map. A VLAN's key contains the first socket slot of its interface, so there is
/// none while that interface is not attached; the other entries do not look at `interfaces` and always have a key.
pub(super) trait Entry: Ord + Copy {
    type Map: KeyMap;

    fn to_key(self, interfaces: &[InterfaceSlots]) -> Option<<Self::Map as KeyMap>::Key>;

    fn from_key(key: <Self::Map as KeyMap>::Key, interfaces: &[InterfaceSlots]) -> Option<Self>;
}

/// What hash maps and tries have in common.
pub(super) trait KeyMap: TryFrom<Map, Error = MapError> {
    type Key;
    const KIND: MapType;

    fn add(&mut self, key: &Self::Key) -> Result<(), MapError>;
    fn take(&mut self, key: &Self::Key) -> Result<(), MapError>;
    fn all(&self) -> Result<Vec<Self::Key>, MapError>;
}

impl<E: Entry> KeySet<E> {
    pub(super) const fn shape(name: &'static str, max_entries: u32) -> Shape {
        Shape::set(name, E::Map::KIND, size_of::<<E::Map as KeyMap>::Key>(), max_entries)
    }

    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, MapError> {
        Ok(Self { name, map: super::open(pins, name)? })
    }

    /// The entries in the kernel, without those of interfaces that are not attached.
    pub(super) fn read(&self, interfaces: &[InterfaceSlots]) -> Result<BTreeSet<E>, MapError> {
        let keys = self.map.all()?.into_iter();
        Ok(keys.filter_map(|key| E::from_key(key, interfaces)).collect())
    }

    /// Removes entries of interfaces that are not attached: an earlier process may have had more interfaces.
    pub(super) fn remove_detached(&mut self, interfaces: &[InterfaceSlots]) -> Result<(), MapError>
    where
        <E::Map as KeyMap>::Key: Copy,
    {
        for key in self.map.all()? {
            if E::from_key(key, interfaces).is_none() {
                self.map.take(&key)?;
            }
        }
        Ok(())
    }

    /// Removes from the map, and from `applied`, what `next` lacks.
    pub(super) fn remove_stale(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
    ) -> Result<(), SteeringError> {
        let stale: Vec<E> = applied.difference(next).copied().collect();
        for entry in stale {
            let key = entry.to_key(interfaces).expect("only entries of attached interfaces are applied");
            self.map.take(&key)?;
            applied.remove(&entry);
        }
        Ok(())
    }

    /// Adds to the map, and to `applied`, what `next` has in addition. Entries of interfaces that are not attached are
    /// left out.
    pub(super) fn add_new(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
    ) -> Result<(), SteeringError> {
        let new: Vec<E> = next.difference(applied).copied().collect();
        for entry in new {
            let Some(key) = entry.to_key(interfaces) else { continue };
            self.map.add(&key).map_err(|error| self.explain(error))?;
            applied.insert(entry);
        }
        Ok(())
    }

    fn explain(&self, error: MapError) -> SteeringError {
        match &error {
            // A full hash map answers E2BIG (kernel/bpf/hashtab.c), a full trie ENOSPC (kernel/bpf/lpm_trie.c).
            MapError::SyscallError(call)
                if matches!(call.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
            {
                SteeringError::MapFull { map: self.name }
            }
            _ => error.into(),
        }
    }
}

impl<K: aya::Pod> KeyMap for HashMap<MapData, K, u32> {
    type Key = K;
    const KIND: MapType = MapType::Hash;

    fn add(&mut self, key: &K) -> Result<(), MapError> {
        self.insert(key, 0, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }

    fn all(&self) -> Result<Vec<K>, MapError> {
        self.keys().collect()
    }
}

impl<K: aya::Pod> KeyMap for LpmTrie<MapData, K, u32> {
    type Key = Key<K>;
    const KIND: MapType = MapType::LpmTrie;

    fn add(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.insert(key, 0, 0)
    }

    fn take(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.remove(key)
    }

    fn all(&self) -> Result<Vec<Key<K>>, MapError> {
        self.keys().collect()
    }
}

impl Entry for IpAddr {
    type Map = HashMap<MapData, [u8; 16], u32>;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<[u8; 16]> {
        Some(address_key(self))
    }

    fn from_key(key: [u8; 16], _: &[InterfaceSlots]) -> Option<Self> {
        Some(address_from_key(key))
    }
}

impl Entry for VipKey {
    type Map = HashMap<MapData, [u8; 20], u32>;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<[u8; 20]> {
        Some(self.to_bytes())
    }

    fn from_key(key: [u8; 20], _: &[InterfaceSlots]) -> Option<Self> {
        Some(Self::from_bytes(key))
    }
}

impl Entry for (IpAddr, u8) {
    type Map = LpmTrie<MapData, [u8; 16], u32>;

    fn to_key(self, _: &[InterfaceSlots]) -> Option<Key<[u8; 16]>> {
        Some(prefix_key(self))
    }

    fn from_key(key: Key<[u8; 16]>, _: &[InterfaceSlots]) -> Option<Self> {
        Some(prefix_from_key(key))
    }
}

impl Entry for VlanKey {
    type Map = HashMap<MapData, [u8; 8], u32>;

    fn to_key(self, interfaces: &[InterfaceSlots]) -> Option<[u8; 8]> {
        let interface = interfaces.iter().find(|interface| interface.ifindex == self.ifindex)?;
        Some(self.to_bytes(interface.first))
    }

    fn from_key(key: [u8; 8], interfaces: &[InterfaceSlots]) -> Option<Self> {
        Self::from_bytes(key, |first| {
            interfaces.iter().find(|interface| interface.first == first).map(|interface| interface.ifindex)
        })
    }
}

/// Declares the sets that mirror a field of [`SteeringSet`]: per line the field, the type, and the map's name and capacity
/// as in `bpf/maps.h`.
macro_rules! sets {
    ($($field:ident: $kind:ident($name:literal, $max_entries:literal),)*) => {
        /// The sets that mirror fields of a [`SteeringSet`], under the names of these fields.
        pub(super) struct Sets {
            $(pub(super) $field: $kind,)*
        }

        impl Sets {
            pub(super) const SHAPES: &[Shape] = &[$($kind::shape($name, $max_entries),)*];

            pub(super) fn open(pins: &PinDir) -> Result<Self, MapError> {
                Ok(Self { $($field: $kind::open(pins, $name)?,)* })
            }

            /// Reads all sets into the fields of the same names; the other fields are empty.
            pub(super) fn read(&self, interfaces: &[InterfaceSlots]) -> Result<SteeringSet, MapError> {
                Ok(SteeringSet { $($field: self.$field.read(interfaces)?,)* ..SteeringSet::default() })
            }

            pub(super) fn remove_stale(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
            ) -> Result<(), SteeringError> {
                $(self.$field.remove_stale(interfaces, &mut applied.$field, &next.$field)?;)*
                Ok(())
            }

            pub(super) fn add_new(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
            ) -> Result<(), SteeringError> {
                $(self.$field.add_new(interfaces, &mut applied.$field, &next.$field)?;)*
                Ok(())
            }
        }
    };
}

// `own_addresses` is not among them: see `Maps::remove_stale`.
sets! {
    node_addresses: AddressSet("node_addrs", 4096),
    cluster_ips: AddressSet("cluster_ips", 65_536),
    service_cidrs: PrefixSet("service_cidrs", 1024),
    snat_addresses: AddressSet("snat_addrs", 4096),
    reply_sources: VipSet("reply_sources", 65_536),
    vips: VipSet("vips", 262_144),
    echo_addresses: AddressSet("echo_addrs", 262_144),
    vlans: VlanSet("vlans", 65_536),
}
