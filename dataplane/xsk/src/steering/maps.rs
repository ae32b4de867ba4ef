//! The maps of the XDP program, and keeping them equal to a [`SteeringSet`].
//!
//! What is in the maps is read once, when they are opened; from then on this process is their only writer (the pin
//! directory is locked), so `applied` is the truth and updates touch only what differs. Names, keys and values of the maps
//! are what a program of an earlier version still reads: they may be added to and must not change.
//!
//! A failure never stops the rest: what one map cannot hold is returned, and everything else is applied.
//!
//! A new map that mirrors a field of the [`SteeringSet`] is one line in `maps/sets.rs` and one in `bpf/maps.h`.

mod entries;
mod key_set;
mod pinned;
mod port_sets;
mod replacement;
mod sets;
mod shape;
mod stations;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, XskMap};

use super::bpffs::PinDir;
use super::set::SteeringSet;
use super::sockets::InterfaceSlots;
use super::{Delivery, Reason, SetLimits, Shortfall, ShortfallCause, SteeringError};
use entries::AddressSet;
use key_set::{Entry, KeySet};
use port_sets::PortSets;
use replacement::Replacement;
use sets::{OWN_ADDRESSES, Sets, VIP_ADDRESSES};
use stations::Stations;

pub(super) use pinned::{initial_sizes, names, remove_incompatible};
pub(super) use sets::Replacements;

/// All maps, opened from their pins.
pub(super) struct Maps {
    own_addresses: AddressSet,
    sets: Sets,
    vip_addresses: AddressSet,
    port_sets: PortSets,
    deliveries: Array<MapData, [u8; 16]>,
    grace_deadline: Array<MapData, u64>,
    stations: Stations,
    counters: PerCpuArray<MapData, u64>,
    /// The maps that are no sets, to pin them again.
    others: Vec<(&'static str, OwnedFd)>,
    interfaces: Vec<InterfaceSlots>,
    applied: SteeringSet,
    /// What `vip_addresses` holds. It follows from `vips`, but differs when a process died between the two updates.
    applied_vip_addresses: BTreeSet<IpAddr>,
    /// Whether it follows from what `vips` holds now, so that nothing needs to be done before that changes.
    is_in_step: bool,
}

impl Maps {
    /// Opens the pinned maps and reads what they hold.
    pub(super) fn open(
        pins: &PinDir,
        interfaces: Vec<InterfaceSlots>,
    ) -> Result<(Self, XskMap<MapData>), SteeringError> {
        let address_set = |name| KeySet::open(&pins.file(name), name);
        let mut maps = Self {
            own_addresses: address_set(OWN_ADDRESSES)?,
            sets: Sets::open(pins)?,
            vip_addresses: address_set(VIP_ADDRESSES)?,
            port_sets: PortSets::open(pins)?,
            deliveries: open(pins, "deliveries")?,
            // The name of the pin is older than the word, and an older program may still read it.
            grace_deadline: open(pins, "hold_until")?,
            stations: Stations::cleared(open(pins, "stations")?)?,
            counters: open(pins, "counters")?,
            others: pinned::open_others(pins)?,
            interfaces,
            applied: SteeringSet::default(),
            applied_vip_addresses: BTreeSet::new(),
            is_in_step: false,
        };
        maps.sets.vlans.remove_detached(&maps.interfaces)?;
        maps.sets.stations.remove_detached(&maps.interfaces)?;
        maps.applied = maps.read()?;
        maps.applied_vip_addresses = maps.vip_addresses.read(&maps.interfaces)?;
        Ok((maps, open(pins, "xsks")?))
    }

    /// Other devices have taken the slots of some: entries of a slot are now those of its new device.
    pub(super) fn reattach(&mut self, interfaces: Vec<InterfaceSlots>) -> Result<(), SteeringError> {
        // The address of a device that took the place of another is known with the next set.
        for (before, now) in self.interfaces.iter().zip(&interfaces) {
            if before.ifindex != now.ifindex {
                self.stations.set(*now, 0)?;
            }
        }
        self.interfaces = interfaces;
        self.is_in_step = false;
        self.applied = self.read()?;
        Ok(())
    }

    fn read(&self) -> Result<SteeringSet, SteeringError> {
        let mut set = self.sets.read(&self.interfaces)?;
        set.own_addresses = self.own_addresses.read(&self.interfaces)?;
        self.port_sets.read_into(&mut set)?;
        Ok(set)
    }

    pub(super) fn applied(&self) -> &SteeringSet {
        &self.applied
    }

    /// Removes what `next` lacks. Returns the errors, one per map.
    pub(super) fn remove_stale(&mut self, next: &SteeringSet) -> Vec<SteeringError> {
        let (interfaces, applied) = (&self.interfaces[..], &mut self.applied);
        let vips = applied.vips.len();
        let mut errors = self.sets.remove_stale(interfaces, applied, next);
        self.is_in_step &= applied.vips.len() == vips;
        let outcomes = [
            if self.is_in_step {
                Ok(())
            } else {
                let vip_addresses = applied.vip_addresses();
                self.vip_addresses.remove_stale(interfaces, &mut self.applied_vip_addresses, &vip_addresses)
            },
            // Own addresses are exceptions to the other sets (`steer` in steer.bpf.c), so they go last and come first:
            // otherwise the node's own traffic would be redirected for a moment.
            self.own_addresses.remove_stale(interfaces, &mut applied.own_addresses, &next.own_addresses),
            self.port_sets.remove_stale(applied, next),
            // Replaced and not removed: a device always has an address.
            self.stations.follow(interfaces, next),
        ];
        errors.extend(outcomes.into_iter().filter_map(Result::err));
        errors
    }

    /// Removes at most `max` entries that `next` lacks; returns how many. None of those that go last.
    pub(super) fn remove_some(&mut self, next: &SteeringSet, max: usize) -> usize {
        let vips = self.applied.vips.len();
        let removed = self.sets.remove_some(&self.interfaces, &mut self.applied, next, max);
        self.is_in_step &= self.applied.vips.len() == vips;
        removed
    }

    /// Adds at most `max` entries that `next` has in addition; returns how many. Own addresses come first, and all at once.
    pub(super) fn add_some(&mut self, next: &SteeringSet, max: usize) -> usize {
        let (interfaces, applied) = (&self.interfaces[..], &mut self.applied);
        // Whatever is refused here is refused again when the rest is added, and reported then.
        let _ = self.own_addresses.add_new(interfaces, &mut applied.own_addresses, &next.own_addresses);
        let (next, _) = hold_back(&applied.own_addresses, applied, next);
        let vips = applied.vips.len();
        let added = self.sets.add_some(interfaces, applied, &next, max);
        self.is_in_step &= self.applied.vips.len() == vips;
        added
    }

    /// Adds what `next` has in addition. Returns what is missing, by map.
    pub(super) fn add_new(&mut self, next: &SteeringSet) -> Vec<Shortfall> {
        let (interfaces, applied) = (&self.interfaces[..], &mut self.applied);
        let mut missing: Vec<Shortfall> = self.port_sets.add_new(applied, next);
        let own = self.own_addresses.add_new(interfaces, &mut applied.own_addresses, &next.own_addresses);
        missing.extend(own.err());
        let (next, held_back) = hold_back(&applied.own_addresses, applied, next);
        missing.extend(held_back);
        let vips = applied.vips.len();
        missing.extend(self.sets.add_new(interfaces, applied, &next));
        if !self.is_in_step || applied.vips.len() != vips {
            missing.extend(self.follow_vips(&next).err());
        }
        missing
    }

    /// Adds the addresses of the VIPs that are in the map: a later fragment goes where the first one went.
    fn follow_vips(&mut self, next: &SteeringSet) -> Result<(), Shortfall> {
        let applied = &self.applied;
        let mut vip_addresses = applied.vip_addresses();
        // An own address that is missing would be an exception here as well.
        let is_exception =
            |vip: &IpAddr| next.own_addresses.contains(vip) && !applied.own_addresses.contains(vip);
        vip_addresses.retain(|vip| !is_exception(vip));
        let followed =
            self.vip_addresses.add_new(&self.interfaces, &mut self.applied_vip_addresses, &vip_addresses);
        self.is_in_step = self.applied_vip_addresses == vip_addresses
            && next.own_addresses.is_subset(&self.applied.own_addresses);
        followed
    }

    /// The replacements of those sets that have another size than they should have for `next`; `None` if all are right.
    pub(super) fn replacements(&self, next: &SteeringSet, limits: &SetLimits) -> Option<Replacements> {
        let (interfaces, applied) = (&self.interfaces[..], &self.applied);
        let own_addresses = Replacement::plan(
            &self.own_addresses,
            interfaces,
            (&applied.own_addresses, &next.own_addresses),
            limits.of(OWN_ADDRESSES),
        );
        let own = own_addresses.as_ref().map_or(&applied.own_addresses, Replacement::holds);
        let (next, _) = hold_back(own, applied, next);
        let mut replacements = self.sets.replacements(interfaces, applied, &next, limits);
        replacements.own_addresses = own_addresses;
        let vip_addresses = if self.is_in_step && replacements.vips.is_none() {
            Cow::Borrowed(&self.applied_vip_addresses)
        } else {
            Cow::Owned(self.vip_addresses_with(&replacements))
        };
        replacements.vip_addresses = Replacement::plan(
            &self.vip_addresses,
            interfaces,
            (&self.applied_vip_addresses, &vip_addresses),
            limits.of(VIP_ADDRESSES),
        );
        (!replacements.sizes().is_empty()).then_some(replacements)
    }

    /// Brings replacements to what is wanted by now, just before the program uses them.
    pub(super) fn catch_up(&self, replacements: &mut Replacements, next: &SteeringSet) {
        if let Some(new) = &mut replacements.own_addresses {
            new.follow(&self.interfaces, &next.own_addresses);
        }
        let own = replacements.own_addresses.as_ref();
        let own = own.map_or(&self.applied.own_addresses, Replacement::holds);
        let (next, _) = hold_back(own, &self.applied, next);
        replacements.follow(&self.interfaces, &next);
        let vip_addresses = self.vip_addresses_with(replacements);
        if let Some(new) = &mut replacements.vip_addresses {
            new.follow(&self.interfaces, &vip_addresses);
        }
    }

    /// Puts the replacements, which the program uses now, in the places of the sets.
    pub(super) fn install(&mut self, mut replacements: Replacements) {
        if let Some((set, holds)) = replacements.own_addresses.take().and_then(Replacement::finish) {
            (self.own_addresses, self.applied.own_addresses) = (set, holds);
        }
        if let Some((set, holds)) = replacements.vip_addresses.take().and_then(Replacement::finish) {
            (self.vip_addresses, self.applied_vip_addresses) = (set, holds);
        }
        self.sets.install(replacements, &mut self.applied);
        self.is_in_step = false;
    }

    /// The addresses of the VIPs as they will be with these replacements.
    fn vip_addresses_with(&self, replacements: &Replacements) -> BTreeSet<IpAddr> {
        let vips = replacements.vips.as_ref().map_or(&self.applied.vips, Replacement::holds);
        vips.iter().map(|vip| vip.addr).collect()
    }

    /// All maps and the names of their pins.
    pub(super) fn handles(&self) -> Vec<(&str, BorrowedFd<'_>)> {
        let sets = self.sets.handles().into_iter();
        let sets = sets.chain([self.own_addresses.handle(), self.vip_addresses.handle()]);
        sets.chain(self.others.iter().map(|(name, fd)| (*name, fd.as_fd()))).collect()
    }

    pub(super) fn interfaces(&self) -> &[InterfaceSlots] {
        &self.interfaces
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

/// `next` without what must not be added, and what that is. Own addresses of the node are exceptions to three sets (`steer`
/// in steer.bpf.c): while one of them is missing in `own`, nothing is added to these, or the node's own traffic could be
/// redirected.
fn hold_back<'a>(
    own: &BTreeSet<IpAddr>,
    applied: &SteeringSet,
    next: &'a SteeringSet,
) -> (Cow<'a, SteeringSet>, Vec<Shortfall>) {
    if next.own_addresses.is_subset(own) {
        return (Cow::Borrowed(next), Vec::new());
    }
    let mut allowed = next.clone();
    let held_back = [
        keep_known("reply_sources", &applied.reply_sources, &mut allowed.reply_sources),
        keep_known("cluster_ips", &applied.cluster_ips, &mut allowed.cluster_ips),
        keep_known("service_cidrs", &applied.service_cidrs, &mut allowed.service_cidrs),
    ];
    (Cow::Owned(allowed), held_back.into_iter().flatten().collect())
}

/// Removes from `next` what is not applied.
fn keep_known<E: Entry>(
    map: &'static str,
    applied: &BTreeSet<E>,
    next: &mut BTreeSet<E>,
) -> Option<Shortfall> {
    let before = next.len();
    let first = next.difference(applied).next().copied()?;
    next.retain(|entry| applied.contains(entry));
    let (missing, cause) = (before - next.len(), ShortfallCause::OwnAddressMissing);
    Some(Shortfall { map, capacity: 0, missing, first: first.name(), cause })
}

fn open<T: TryFrom<Map, Error = MapError>>(pins: &PinDir, name: &str) -> Result<T, MapError> {
    Map::from_map_data(MapData::from_pin(pins.file(name))?)?.try_into()
}
