//! The map `port_sets`: one bitmap of 65536 ports per entry.

use aya::maps::{Array, MapData, MapError};

use crate::steering::SteeringError;
use crate::steering::bpffs::PinDir;
use crate::steering::set::{PortSet, SteeringSet};

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
        Ok(Self { map: super::open(pins, "port_sets")? })
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
    pub(super) fn remove_stale(
        &mut self,
        applied: &mut SteeringSet,
        next: &SteeringSet,
    ) -> Result<(), SteeringError> {
        self.combine(applied, next, PortSet::intersection)
    }

    /// Adds ports that `next` has in addition.
    pub(super) fn add_new(
        &mut self,
        applied: &mut SteeringSet,
        next: &SteeringSet,
    ) -> Result<(), SteeringError> {
        self.combine(applied, next, PortSet::union)
    }

    fn combine(
        &mut self,
        applied: &mut SteeringSet,
        next: &SteeringSet,
        combine: impl Fn(&PortSet, &PortSet) -> PortSet,
    ) -> Result<(), SteeringError> {
        for (index, applied, next) in [
            (NODEPORTS_TCP, &mut applied.nodeports_tcp, &next.nodeports_tcp),
            (NODEPORTS_UDP, &mut applied.nodeports_udp, &next.nodeports_udp),
            (SNAT_PORTS, &mut applied.snat_ports, &next.snat_ports),
            (NODEPORTS_SCTP, &mut applied.nodeports_sctp, &next.nodeports_sctp),
        ] {
            let combined = combine(applied, next);
            if combined != *applied {
                // The kernel copies the whole value without a lock: a packet meanwhile sees each byte old or new.
                self.map.set(index, combined.to_bytes(), 0)?;
                *applied = combined;
            }
        }
        Ok(())
    }
}
