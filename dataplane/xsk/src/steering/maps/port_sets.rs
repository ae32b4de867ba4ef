//! The map `port_sets`: one bitmap of 65536 ports per entry.

use std::io;

use aya::maps::{Array, MapData, MapError};

use crate::steering::bpffs::PinDir;
use crate::steering::set::{PortSet, SteeringSet};
use crate::steering::{Shortfall, ShortfallCause, SteeringError};

/// Bytes of one bitmap.
pub(super) const PORT_SET_LEN: usize = 65_536 / 8;
/// Entries of the map.
pub(super) const PORT_SET_COUNT: u32 = 4;

// The indexes are `enum port_set` of bpf/maps.h.
const NODEPORTS_TCP: u32 = 0;
const NODEPORTS_UDP: u32 = 1;
const SNAT_PORTS: u32 = 2;
const NODEPORTS_SCTP: u32 = 3;

pub(super) struct PortSets {
    map: Array<MapData, [u8; PORT_SET_LEN]>,
}

impl PortSets {
    pub(super) fn open(pins: &PinDir) -> Result<Self, MapError> {
        Ok(Self { map: super::open(pins, NAME)? })
    }

    /// Reads all bitmaps into `set`.
    pub(super) fn read_into(&self, set: &mut SteeringSet) -> Result<(), MapError> {
        let ports = |index| self.map.get(&index, 0).map(|bytes| PortSet::from_bytes(&bytes));
        set.nodeports_tcp = ports(NODEPORTS_TCP)?;
        set.nodeports_udp = ports(NODEPORTS_UDP)?;
        set.snat_ports = ports(SNAT_PORTS)?;
        set.nodeports_sctp = ports(NODEPORTS_SCTP)?;
        Ok(())
    }

    /// Removes ports that `next` lacks.
    ///
    /// # Errors
    /// The first one of the kernel; the other bitmaps are changed nevertheless.
    pub(super) fn remove_stale(
        &mut self,
        applied: &mut SteeringSet,
        next: &SteeringSet,
    ) -> Result<(), SteeringError> {
        let refused = self.combine(applied, next, PortSet::intersection);
        refused.into_iter().next().map_or(Ok(()), |(_, error)| Err(error.into()))
    }

    /// Adds ports that `next` has in addition. Returns what is missing, by bitmap.
    pub(super) fn add_new(&mut self, applied: &mut SteeringSet, next: &SteeringSet) -> Vec<Shortfall> {
        let refused = self.combine(applied, next, PortSet::union).into_iter();
        let shortfall = |(missing, error): (PortSet, MapError)| Shortfall {
            map: NAME,
            capacity: PORT_SET_COUNT,
            missing: missing.len(),
            first: missing.iter().next().map_or_else(String::new, |port| format!("port {port}")),
            cause: ShortfallCause::Kernel(into_io_error(error)),
        };
        refused.map(shortfall).collect()
    }

    /// Returns the ports by which a bitmap differs from what it should be, for each that the kernel refuses.
    fn combine(
        &mut self,
        applied: &mut SteeringSet,
        next: &SteeringSet,
        combine: impl Fn(&PortSet, &PortSet) -> PortSet,
    ) -> Vec<(PortSet, MapError)> {
        let mut refused = Vec::new();
        for (index, applied, next) in [
            (NODEPORTS_TCP, &mut applied.nodeports_tcp, &next.nodeports_tcp),
            (NODEPORTS_UDP, &mut applied.nodeports_udp, &next.nodeports_udp),
            (SNAT_PORTS, &mut applied.snat_ports, &next.snat_ports),
            (NODEPORTS_SCTP, &mut applied.nodeports_sctp, &next.nodeports_sctp),
        ] {
            let combined = combine(applied, next);
            if combined == *applied {
                continue;
            }
            // The kernel copies the whole value without a lock: a packet meanwhile sees each byte old or new.
            match self.map.set(index, combined.to_bytes(), 0) {
                Ok(()) => *applied = combined,
                Err(error) => refused.push((combined.difference(applied), error)),
            }
        }
        refused
    }
}

fn into_io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}

const NAME: &str = "port_sets";
