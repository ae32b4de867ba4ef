//! The sets by name: which map mirrors which field of the [`SteeringSet`], and how large it may become.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use aya::maps::MapError;

use super::entries::{AddressSet, PrefixSet, StationSet, VipSet, VlanSet};
use super::key_set::KeySet;
use super::replacement::Replacement;
use super::shape::Shape;
use crate::steering::bpffs::PinDir;
use crate::steering::set::SteeringSet;
use crate::steering::sockets::InterfaceSlots;
use crate::steering::{SetLimits, Shortfall, SteeringError};

/// Declares the sets that mirror a field of [`SteeringSet`]: per line the field, the type, and the map's name as in
/// `bpf/maps.h`.
macro_rules! sets {
    ($($field:ident: $kind:ident($name:literal),)*) => {
        /// The sets that mirror fields of a [`SteeringSet`], under the names of these fields.
        pub(super) struct Sets {
            $(pub(super) $field: $kind,)*
        }

        impl Sets {
            pub(super) const SHAPES: &[Shape] = &[$($kind::shape($name),)*];

            pub(super) fn open(pins: &PinDir) -> Result<Self, MapError> {
                Ok(Self { $($field: KeySet::open(&pins.file($name), $name)?,)* })
            }

            /// The maps and the names of their pins.
            pub(super) fn handles(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
                vec![$(self.$field.handle(),)*]
            }

            /// Reads all sets into the fields of the same names; the other fields are empty.
            pub(super) fn read(&self, interfaces: &[InterfaceSlots]) -> Result<SteeringSet, SteeringError> {
                Ok(SteeringSet { $($field: self.$field.read(interfaces)?,)* ..SteeringSet::default() })
            }

            /// Returns the errors, one per set.
            pub(super) fn remove_stale(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
            ) -> Vec<SteeringError> {
                let outcomes =
                    [$(self.$field.remove_stale(interfaces, &mut applied.$field, &next.$field),)*];
                outcomes.into_iter().filter_map(Result::err).collect()
            }

            /// Returns what is missing, by set.
            pub(super) fn add_new(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
            ) -> Vec<Shortfall> {
                let outcomes = [$(self.$field.add_new(interfaces, &mut applied.$field, &next.$field),)*];
                outcomes.into_iter().filter_map(Result::err).collect()
            }

            /// Removes at most `max` of the entries that `next` lacks. Returns how many.
            pub(super) fn remove_some(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
                max: usize,
            ) -> usize {
                let mut left = max;
                $(left -= self.$field.remove_some(interfaces, &mut applied.$field, &next.$field, left);)*
                max - left
            }

            /// Adds at most `max` of the entries that `next` has in addition. Returns how many.
            pub(super) fn add_some(
                &mut self,
                interfaces: &[InterfaceSlots],
                applied: &mut SteeringSet,
                next: &SteeringSet,
                max: usize,
            ) -> usize {
                let mut left = max;
                $(left -= self.$field.add_some(interfaces, &mut applied.$field, &next.$field, left);)*
                max - left
            }

            /// The replacements of those sets that have another size than they should have for `next`.
            pub(super) fn replacements(
                &self,
                interfaces: &[InterfaceSlots],
                applied: &SteeringSet,
                next: &SteeringSet,
                limits: &SetLimits,
            ) -> Replacements {
                Replacements {
                    $($field: Replacement::plan(
                        &self.$field,
                        interfaces,
                        (&applied.$field, &next.$field),
                        limits.of($name),
                    ),)*
                    own_addresses: None,
                    vip_addresses: None,
                }
            }

            /// Puts the replacements in the places of the sets, and what they hold into `applied`.
            pub(super) fn install(&mut self, replacements: Replacements, applied: &mut SteeringSet) {
                $(if let Some((set, holds)) = replacements.$field.and_then(Replacement::finish) {
                    self.$field = set;
                    applied.$field = holds;
                })*
            }
        }

        /// Maps that are to take the places of sets.
        pub(in crate::steering) struct Replacements {
            $(pub(super) $field: Option<Replacement<<$kind as super::key_set::SetOf>::Entry>>,)*
            pub(super) own_addresses: Option<Replacement<std::net::IpAddr>>,
            pub(super) vip_addresses: Option<Replacement<std::net::IpAddr>>,
        }

        impl Replacements {
            /// Names and sizes of the new maps.
            pub(in crate::steering) fn sizes(&self) -> Vec<(&'static str, u32)> {
                let sizes = [
                    $(self.$field.as_ref().map(|new| ($name, new.capacity())),)*
                    self.own_addresses.as_ref().map(|new| (OWN_ADDRESSES, new.capacity())),
                    self.vip_addresses.as_ref().map(|new| (VIP_ADDRESSES, new.capacity())),
                ];
                sizes.into_iter().flatten().collect()
            }

            /// Opens the new maps, which must exist and be empty, and fills them.
            ///
            /// # Errors
            /// Those of the kernel, for example that there is no memory.
            pub(in crate::steering) fn fill(
                &mut self,
                interfaces: &[InterfaceSlots],
                pin: impl Fn(&'static str) -> PathBuf,
            ) -> Result<(), SteeringError> {
                $(if let Some(new) = &mut self.$field {
                    new.fill(interfaces, &pin($name), $name)?;
                })*
                if let Some(new) = &mut self.own_addresses {
                    new.fill(interfaces, &pin(OWN_ADDRESSES), OWN_ADDRESSES)?;
                }
                if let Some(new) = &mut self.vip_addresses {
                    new.fill(interfaces, &pin(VIP_ADDRESSES), VIP_ADDRESSES)?;
                }
                Ok(())
            }

            /// Brings the new maps to what is wanted by now, except for own addresses, which go first.
            pub(super) fn follow(&mut self, interfaces: &[InterfaceSlots], next: &SteeringSet) {
                $(if let Some(new) = &mut self.$field {
                    new.follow(interfaces, &next.$field);
                })*
            }
        }
    };
}

/// The map of the node's own addresses. It is not among [`Sets`]: see `Maps::remove_stale`.
pub(super) const OWN_ADDRESSES: &str = "own_addrs";
/// The map of the addresses of all VIPs, which follows from `vips`.
pub(super) const VIP_ADDRESSES: &str = "vip_addrs";

sets! {
    node_addresses: AddressSet("node_addrs"),
    cluster_ips: AddressSet("cluster_ips"),
    service_cidrs: PrefixSet("service_cidrs"),
    snat_addresses: AddressSet("snat_addrs"),
    reply_sources: VipSet("reply_sources"),
    vips: VipSet("vips"),
    echo_addresses: AddressSet("echo_addrs"),
    vlans: VlanSet("vlans"),
    stations: StationSet("other_stations"),
}
