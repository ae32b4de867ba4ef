//! The program's maps: their shape, their pins, and keeping them equal to a [`SteeringSet`].
//!
//! What is in the maps is read once, when they are opened; from then on this process is their only writer (the pin
//! directory is locked), so `applied` is the truth and updates touch only what differs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, XskMap};

use super::bpffs::PinDir;
use super::set::{
    PortSet, SteeringSet, VipKey, VlanKey, address_from_key, address_key, prefix_from_key, prefix_key,
};
use super::{Delivery, Reason, SteeringError};

const BPF_F_NO_PREALLOC: u32 = 1;
const PORT_SETS: u32 = 4;
const PORT_SET_LEN: usize = 8192; // 65536 bits

/// Interfaces that one set of maps serves.
pub(super) const MAX_INTERFACES: u32 = 16;
/// Queues of an interface that can have a socket.
pub(super) const QUEUES_PER_INTERFACE: u32 = 256;

struct Shape {
    name: &'static str,
    kind: MapType,
    key_len: u32,
    value_len: u32,
    max_entries: u32,
    flags: u32,
}

/// The maps of `bpf/maps.h`. A test holds this list against the object.
const SHAPES: [Shape; 16] = [
    Shape::new("vips", MapType::Hash, 20, 4, 262_144, BPF_F_NO_PREALLOC),
    Shape::new("vip_addrs", MapType::Hash, 16, 4, 262_144, BPF_F_NO_PREALLOC),
    Shape::new("echo_addrs", MapType::Hash, 16, 4, 262_144, BPF_F_NO_PREALLOC),
    Shape::new("node_addrs", MapType::Hash, 16, 4, 4096, BPF_F_NO_PREALLOC),
    Shape::new("snat_addrs", MapType::Hash, 16, 4, 4096, BPF_F_NO_PREALLOC),
    Shape::new("reply_sources", MapType::Hash, 20, 4, 65_536, BPF_F_NO_PREALLOC),
    Shape::new("own_addrs", MapType::Hash, 16, 4, 4096, BPF_F_NO_PREALLOC),
    Shape::new("cluster_ips", MapType::Hash, 16, 4, 65_536, BPF_F_NO_PREALLOC),
    Shape::new("service_cidrs", MapType::LpmTrie, 20, 4, 1024, BPF_F_NO_PREALLOC),
    Shape::new("vlans", MapType::Hash, 8, 4, 65_536, BPF_F_NO_PREALLOC),
    Shape::new("port_sets", MapType::Array, 4, 8192, PORT_SETS, 0),
    Shape::new("fragments", MapType::LruHash, 40, 16, 16_384, 0),
    Shape::new("xsks", MapType::XskMap, 4, 4, MAX_INTERFACES * QUEUES_PER_INTERFACE, 0),
    Shape::new("deliveries", MapType::Array, 4, 16, MAX_INTERFACES, 0),
    Shape::new("hold_until", MapType::Array, 4, 8, 1, 0),
    Shape::new("counters", MapType::PerCpuArray, 4, 8, 64, 0),
];

impl Shape {
    const fn new(
        name: &'static str,
        kind: MapType,
        key_len: u32,
        value_len: u32,
        max_entries: u32,
        flags: u32,
    ) -> Self {
        Self { name, kind, key_len, value_len, max_entries, flags }
    }

    fn fits(&self, info: &MapInfo) -> bool {
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() == self.key_len
            && info.value_size() == self.value_len
            && info.max_entries() == self.max_entries
            && info.map_flags() == self.flags
    }
}

/// The names of the map pins.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// Removes every map pin that is not a map of the right shape, and says so.
pub(super) fn remove_incompatible(pins: &PinDir) -> Result<Vec<String>, SteeringError> {
    let present = pins.names()?;
    let mut notices = Vec::new();
    for shape in SHAPES.iter().filter(|shape| present.iter().any(|name| name == shape.name)) {
        let path = pins.file(shape.name);
        let is_map = MapData::from_pin(&path).is_ok();
        if is_map && MapInfo::from_pin(&path).is_ok_and(|info| shape.fits(&info)) {
            continue;
        }
        pins.remove(shape.name)?;
        notices.push(format!("replaced {}: it is not the map this version uses", path.display()));
    }
    Ok(notices)
}

/// All maps, opened from their pins.
pub(super) struct Maps {
    vips: HashMap<MapData, [u8; 20], u32>,
    vip_addrs: HashMap<MapData, [u8; 16], u32>,
    echo_addrs: HashMap<MapData, [u8; 16], u32>,
    node_addrs: HashMap<MapData, [u8; 16], u32>,
    snat_addrs: HashMap<MapData, [u8; 16], u32>,
    reply_sources: HashMap<MapData, [u8; 20], u32>,
    own_addrs: HashMap<MapData, [u8; 16], u32>,
    cluster_ips: HashMap<MapData, [u8; 16], u32>,
    service_cidrs: LpmTrie<MapData, [u8; 16], u32>,
    vlans: HashMap<MapData, [u8; 8], u32>,
    port_sets: Array<MapData, [u8; PORT_SET_LEN]>,
    deliveries: Array<MapData, [u8; 16]>,
    hold_until: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    /// Interface index and first socket slot.
    bases: Vec<(u32, u32)>,
    applied: SteeringSet,
    /// What `vip_addrs` holds: it follows from `vips`, but need not when a process died between the two.
    applied_vip_addresses: BTreeSet<IpAddr>,
}

impl Maps {
    /// Opens the pinned maps and reads what they hold. `bases`: index and first socket slot of each interface.
    pub(super) fn open(
        pins: &PinDir,
        bases: Vec<(u32, u32)>,
    ) -> Result<(Self, XskMap<MapData>), SteeringError> {
        let mut maps = Self {
            vips: open(&pins.file("vips"))?,
            vip_addrs: open(&pins.file("vip_addrs"))?,
            echo_addrs: open(&pins.file("echo_addrs"))?,
            node_addrs: open(&pins.file("node_addrs"))?,
            snat_addrs: open(&pins.file("snat_addrs"))?,
            reply_sources: open(&pins.file("reply_sources"))?,
            own_addrs: open(&pins.file("own_addrs"))?,
            cluster_ips: open(&pins.file("cluster_ips"))?,
            service_cidrs: open(&pins.file("service_cidrs"))?,
            vlans: open(&pins.file("vlans"))?,
            port_sets: open(&pins.file("port_sets"))?,
            deliveries: open(&pins.file("deliveries"))?,
            hold_until: open(&pins.file("hold_until"))?,
            counters: open(&pins.file("counters"))?,
            bases,
            applied: SteeringSet::default(),
            applied_vip_addresses: BTreeSet::new(),
        };
        maps.remove_vlans_of_detached()?;
        maps.applied = maps.read()?;
        maps.applied_vip_addresses = read(&maps.vip_addrs, address_from_key)?;
        Ok((maps, open(&pins.file("xsks"))?))
    }

    /// Other devices have taken the places of some: what is applied to a place is applied to its new device.
    pub(super) fn reattach(&mut self, bases: Vec<(u32, u32)>) -> Result<(), SteeringError> {
        self.bases = bases;
        self.applied = self.read()?;
        Ok(())
    }

    /// An earlier process may have had more interfaces: the VLANs on them mean nothing any more.
    fn remove_vlans_of_detached(&mut self) -> Result<(), MapError> {
        let keys: Vec<[u8; 8]> = self.vlans.keys().collect::<Result<_, _>>()?;
        for key in keys {
            if VlanKey::from_key(key, |base| ifindex_of(&self.bases, base)).is_none() {
                self.vlans.remove(&key)?;
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<SteeringSet, MapError> {
        let ports = |index| self.port_sets.get(&index, 0).map(|bytes| PortSet::from_bytes(&bytes));
        Ok(SteeringSet {
            vips: read(&self.vips, VipKey::from_key)?,
            node_addresses: read(&self.node_addrs, address_from_key)?,
            snat_addresses: read(&self.snat_addrs, address_from_key)?,
            reply_sources: read(&self.reply_sources, VipKey::from_key)?,
            own_addresses: read(&self.own_addrs, address_from_key)?,
            cluster_ips: read(&self.cluster_ips, address_from_key)?,
            service_cidrs: self
                .service_cidrs
                .keys()
                .map(|key| key.map(prefix_from_key))
                .collect::<Result<_, _>>()?,
            nodeports_tcp: ports(0)?,
            nodeports_udp: ports(1)?,
            snat_ports: ports(2)?,
            nodeports_sctp: ports(3)?,
            echo_addresses: read(&self.echo_addrs, address_from_key)?,
            vlans: read(&self.vlans, |key| VlanKey::from_key(key, |base| ifindex_of(&self.bases, base)))?
                .into_iter()
                .flatten()
                .collect(),
        })
    }

    pub(super) fn applied(&self) -> &SteeringSet {
        &self.applied
    }

    /// Removes what `next` lacks.
    pub(super) fn remove_stale(&mut self, next: &SteeringSet) -> Result<(), SteeringError> {
        let Self { applied, bases, .. } = self;
        retain(&mut self.vips, &mut applied.vips, &next.vips, VipKey::to_key)?;
        let (of_vips, wanted) = (&mut self.applied_vip_addresses, next.vip_addresses());
        retain(&mut self.vip_addrs, of_vips, &wanted, address_key)?;
        retain(&mut self.echo_addrs, &mut applied.echo_addresses, &next.echo_addresses, address_key)?;
        retain(&mut self.vlans, &mut applied.vlans, &next.vlans, |vlan| {
            vlan.to_key(base_of(bases, vlan).expect("applied are only those of attached interfaces"))
        })?;
        retain(&mut self.node_addrs, &mut applied.node_addresses, &next.node_addresses, address_key)?;
        retain(&mut self.snat_addrs, &mut applied.snat_addresses, &next.snat_addresses, address_key)?;
        retain(&mut self.reply_sources, &mut applied.reply_sources, &next.reply_sources, VipKey::to_key)?;
        retain(&mut self.cluster_ips, &mut applied.cluster_ips, &next.cluster_ips, address_key)?;
        retain(&mut self.service_cidrs, &mut applied.service_cidrs, &next.service_cidrs, prefix_key)?;
        retain(&mut self.own_addrs, &mut applied.own_addresses, &next.own_addresses, address_key)?;
        self.set_ports(next, PortSet::intersection)
    }

    /// Adds what is missing of `next`.
    pub(super) fn add_new(&mut self, next: &SteeringSet) -> Result<(), SteeringError> {
        self.set_ports(next, PortSet::union)?;
        let Self { applied, bases, .. } = self;
        let (own, node) = (&mut self.own_addrs, &mut self.node_addrs);
        extend(own, "own_addrs", &mut applied.own_addresses, &next.own_addresses, address_key)?;
        extend(node, "node_addrs", &mut applied.node_addresses, &next.node_addresses, address_key)?;
        let (ips, cidrs) = (&mut self.cluster_ips, &mut self.service_cidrs);
        extend(ips, "cluster_ips", &mut applied.cluster_ips, &next.cluster_ips, address_key)?;
        extend(cidrs, "service_cidrs", &mut applied.service_cidrs, &next.service_cidrs, prefix_key)?;
        let snat = &mut self.snat_addrs;
        extend(snat, "snat_addrs", &mut applied.snat_addresses, &next.snat_addresses, address_key)?;
        let replies = &mut self.reply_sources;
        extend(replies, "reply_sources", &mut applied.reply_sources, &next.reply_sources, VipKey::to_key)?;
        extend(&mut self.vips, "vips", &mut applied.vips, &next.vips, VipKey::to_key)?;
        let (of_vips, wanted) = (&mut self.applied_vip_addresses, next.vip_addresses());
        extend(&mut self.vip_addrs, "vip_addrs", of_vips, &wanted, address_key)?;
        let (echo, vlans) = (&mut self.echo_addrs, &mut self.vlans);
        extend(echo, "echo_addrs", &mut applied.echo_addresses, &next.echo_addresses, address_key)?;
        let known = next.vlans.iter().copied().filter(|vlan| base_of(bases, *vlan).is_some()).collect();
        extend(vlans, "vlans", &mut applied.vlans, &known, |vlan| {
            vlan.to_key(base_of(bases, vlan).expect("the others were left out"))
        })
    }

    /// What an interface has delivered since [`reset_delivery`](Self::reset_delivery), by its place.
    pub(super) fn delivery(&self, place: u32) -> Result<Delivery, SteeringError> {
        let bytes = self.deliveries.get(&place, 0)?;
        let [truncated, lengths] = *bytes.as_chunks::<8>().0 else {
            unreachable!("16 bytes are two times 8")
        };
        let [l0, l1, l2, l3, w0, w1, w2, w3] = lengths;
        Ok(Delivery {
            truncated: u64::from_ne_bytes(truncated),
            truncated_len: u32::from_ne_bytes([l0, l1, l2, l3]),
            longest_whole: u32::from_ne_bytes([w0, w1, w2, w3]),
        })
    }

    /// Begins anew to note what an interface delivers.
    pub(super) fn reset_delivery(&mut self, place: u32) -> Result<(), SteeringError> {
        Ok(self.deliveries.set(place, [0; 16], 0)?)
    }

    /// Until when the program holds: ns of `CLOCK_MONOTONIC`.
    pub(super) fn set_grace_deadline(&mut self, ns: u64) -> Result<(), SteeringError> {
        Ok(self.hold_until.set(0, ns, 0)?)
    }

    fn set_ports(
        &mut self,
        next: &SteeringSet,
        combine: impl Fn(&PortSet, &PortSet) -> PortSet,
    ) -> Result<(), SteeringError> {
        let applied = &mut self.applied;
        for (index, now, next) in [
            (0, &mut applied.nodeports_tcp, &next.nodeports_tcp),
            (1, &mut applied.nodeports_udp, &next.nodeports_udp),
            (2, &mut applied.snat_ports, &next.snat_ports),
            (3, &mut applied.nodeports_sctp, &next.nodeports_sctp),
        ] {
            let wanted = combine(now, next);
            if wanted != *now {
                // The kernel copies the whole value; a packet in between sees each byte old or new.
                self.port_sets.set(index, wanted.to_bytes(), 0)?;
                *now = wanted;
            }
        }
        Ok(())
    }

    /// Every counter, summed over the CPUs.
    pub(super) fn counters(&self) -> Result<Vec<(Reason, u64)>, SteeringError> {
        let mut counters = Vec::with_capacity(Reason::ALL.len());
        for (index, reason) in (0_u32..).zip(Reason::ALL) {
            counters.push((reason, self.counters.get(&index, 0)?.iter().sum()));
        }
        Ok(counters)
    }
}

fn ifindex_of(bases: &[(u32, u32)], wanted: u32) -> Option<u32> {
    bases.iter().find(|(_, base)| *base == wanted).map(|(ifindex, _)| *ifindex)
}

fn base_of(bases: &[(u32, u32)], vlan: VlanKey) -> Option<u32> {
    bases.iter().find(|(ifindex, _)| *ifindex == vlan.ifindex).map(|(_, base)| *base)
}

fn open<T: TryFrom<Map, Error = MapError>>(path: &Path) -> Result<T, MapError> {
    Map::from_map_data(MapData::from_pin(path)?)?.try_into()
}

fn read<K: aya::Pod, T: Ord>(
    map: &HashMap<MapData, K, u32>,
    from_key: impl Fn(K) -> T,
) -> Result<BTreeSet<T>, MapError> {
    map.keys().map(|key| key.map(&from_key)).collect()
}

/// A map of which only the keys matter.
trait KeySet<K> {
    fn add(&mut self, key: &K) -> Result<(), MapError>;
    fn take(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: aya::Pod> KeySet<K> for HashMap<MapData, K, u32> {
    fn add(&mut self, key: &K) -> Result<(), MapError> {
        self.insert(key, 0, 0)
    }

    fn take(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

impl<K: aya::Pod> KeySet<Key<K>> for LpmTrie<MapData, K, u32> {
    fn add(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.insert(key, 0, 0)
    }

    fn take(&mut self, key: &Key<K>) -> Result<(), MapError> {
        self.remove(key)
    }
}

/// Removes from the map, and from what is known of it, whatever `next` lacks.
fn retain<K, T: Ord + Copy>(
    map: &mut impl KeySet<K>,
    applied: &mut BTreeSet<T>,
    next: &BTreeSet<T>,
    to_key: impl Fn(T) -> K,
) -> Result<(), SteeringError> {
    let stale: Vec<T> = applied.difference(next).copied().collect();
    for item in stale {
        map.take(&to_key(item))?;
        applied.remove(&item);
    }
    Ok(())
}

/// Adds to the map, and to what is known of it, whatever `next` has besides.
fn extend<K, T: Ord + Copy>(
    map: &mut impl KeySet<K>,
    name: &'static str,
    applied: &mut BTreeSet<T>,
    next: &BTreeSet<T>,
    to_key: impl Fn(T) -> K,
) -> Result<(), SteeringError> {
    let missing: Vec<T> = next.difference(applied).copied().collect();
    for item in missing {
        map.add(&to_key(item)).map_err(|error| match &error {
            MapError::SyscallError(call)
                if matches!(call.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
            {
                SteeringError::MapFull { map: name }
            }
            _ => error.into(),
        })?;
        applied.insert(item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_the_socket_map_are_what_the_program_has() {
        let program = include_str!("../../bpf/maps.h");
        assert!(program.contains(&format!("#define QUEUE_SLOTS {}", MAX_INTERFACES * QUEUES_PER_INTERFACE)));
        assert!(program.contains(&format!("#define INTERFACES {MAX_INTERFACES}")));
    }
}
