//! The maps of the XDP program, and keeping them equal to a [`SteeringSet`].
//!
//! What is in the maps is read once, when they are opened; from then on this process is their only writer (the pin
//! directory is locked), so `applied` is the truth and updates touch only what differs. Names, keys and values of the maps
//! are what a program of an earlier version still reads: they may be added to and must not change.
//!
//! A new map that mirrors a field of the [`SteeringSet`] is one line in `maps/sets.rs` and one in `bpf/maps.h`.

mod pinned;
mod port_sets;
mod sets;
mod shape;

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, XskMap};

use super::bpffs::PinDir;
use super::set::SteeringSet;
use super::sockets::InterfaceSlots;
use super::{Delivery, Reason, SteeringError};
use port_sets::PortSets;
use sets::{AddressSet, Sets};

pub(super) use pinned::{names, remove_incompatible};

/// All maps, opened from their pins.
pub(super) struct Maps {
    own_addresses: AddressSet,
    sets: Sets,
    vip_addresses: AddressSet,
    port_sets: PortSets,
    deliveries: Array<MapData, [u8; 16]>,
    grace_deadline: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    interfaces: Vec<InterfaceSlots>,
    applied: SteeringSet,
    /// What `vip_addresses` holds. It follows from `vips`, but differs when a process died between the two updates.
    applied_vip_addresses: BTreeSet<IpAddr>,
}

impl Maps {
    /// Opens the pinned maps and reads what they hold.
    pub(super) fn open(
        pins: &PinDir,
        interfaces: Vec<InterfaceSlots>,
    ) -> Result<(Self, XskMap<MapData>), SteeringError> {
        let mut maps = Self {
            own_addresses: AddressSet::open(pins, "own_addrs")?,
            sets: Sets::open(pins)?,
            vip_addresses: AddressSet::open(pins, "vip_addrs")?,
            port_sets: PortSets::open(pins)?,
            deliveries: open(pins, "deliveries")?,
            // The name of the pin is older than the word, and an older program may still read it.
            grace_deadline: open(pins, "hold_until")?,
            counters: open(pins, "counters")?,
            interfaces,
            applied: SteeringSet::default(),
            applied_vip_addresses: BTreeSet::new(),
        };
        maps.sets.vlans.remove_detached(&maps.interfaces)?;
        maps.applied = maps.read()?;
        maps.applied_vip_addresses = maps.vip_addresses.read(&maps.interfaces)?;
        Ok((maps, open(pins, "xsks")?))
    }

    /// Other devices have taken the slots of some: entries of a slot are now those of its new device.
    pub(super) fn reattach(&mut self, interfaces: Vec<InterfaceSlots>) -> Result<(), SteeringError> {
        self.interfaces = interfaces;
        self.applied = self.read()?;
        Ok(())
    }

    fn read(&self) -> Result<SteeringSet, MapError> {
        let mut set = self.sets.read(&self.interfaces)?;
        set.own_addresses = self.own_addresses.read(&self.interfaces)?;
        self.port_sets.read_into(&mut set)?;
        Ok(set)
    }

    pub(super) fn applied(&self) -> &SteeringSet {
        &self.applied
    }

    /// Removes what `next` lacks.
    pub(super) fn remove_stale(&mut self, next: &SteeringSet) -> Result<(), SteeringError> {
        let (interfaces, applied) = (&self.interfaces[..], &mut self.applied);
        let vip_addresses = next.vip_addresses();
        self.sets.remove_stale(interfaces, applied, next)?;
        self.vip_addresses.remove_stale(interfaces, &mut self.applied_vip_addresses, &vip_addresses)?;
        // Own addresses are exceptions to the other sets (`steer` in steer.bpf.c), so they go last and come first:
        // otherwise the node's own traffic would be redirected for a moment.
        self.own_addresses.remove_stale(interfaces, &mut applied.own_addresses, &next.own_addresses)?;
        self.port_sets.remove_stale(applied, next)
    }

    /// Adds what `next` has in addition.
    pub(super) fn add_new(&mut self, next: &SteeringSet) -> Result<(), SteeringError> {
        let (interfaces, applied) = (&self.interfaces[..], &mut self.applied);
        let vip_addresses = next.vip_addresses();
        self.port_sets.add_new(applied, next)?;
        self.own_addresses.add_new(interfaces, &mut applied.own_addresses, &next.own_addresses)?;
        self.sets.add_new(interfaces, applied, next)?;
        self.vip_addresses.add_new(interfaces, &mut self.applied_vip_addresses, &vip_addresses)
    }

    /// What an interface has delivered since the last [`reset_delivery`](Self::reset_delivery).
    pub(super) fn delivery(&self, interface: InterfaceSlots) -> Result<Delivery, SteeringError> {
        Ok(Delivery::from_bytes(self.deliveries.get(&interface.number(), 0)?))
    }

    /// Starts anew to record what an interface delivers.
    pub(super) fn reset_delivery(&mut self, interface: InterfaceSlots) -> Result<(), SteeringError> {
        Ok(self.deliveries.set(interface.number(), [0; 16], 0)?)
    }

    /// Sets the end of the grace period, in ns of `CLOCK_MONOTONIC`.
    pub(super) fn set_grace_deadline(&mut self, ns: u64) -> Result<(), SteeringError> {
        Ok(self.grace_deadline.set(0, ns, 0)?)
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

fn open<T: TryFrom<Map, Error = MapError>>(pins: &PinDir, name: &str) -> Result<T, MapError> {
    Map::from_map_data(MapData::from_pin(pins.file(name))?)?.try_into()
}
