//! The map `stations`: the Ethernet address of each interface, by its position in the configuration.

use aya::maps::{Array, MapData, MapError};

use crate::steering::SteeringError;
use crate::steering::set::{StationKey, SteeringSet};
use crate::steering::sockets::{InterfaceSlots, MAX_INTERFACES};

/// The map, and what it holds.
pub(super) struct Stations {
    map: Array<MapData, u64>,
    /// By position; 0: not known.
    applied: [u64; MAX_INTERFACES as usize],
}

impl Stations {
    /// With no address known: those of an earlier process may be of other interfaces.
    pub(super) fn cleared(mut map: Array<MapData, u64>) -> Result<Self, MapError> {
        (0..MAX_INTERFACES).try_for_each(|position| map.set(position, 0, 0))?;
        Ok(Self { map, applied: [0; MAX_INTERFACES as usize] })
    }

    /// Sets the address of every interface that has one in `next`.
    ///
    /// # Errors
    /// The first of the kernel; the others are set nevertheless.
    pub(super) fn follow(
        &mut self,
        interfaces: &[InterfaceSlots],
        next: &SteeringSet,
    ) -> Result<(), SteeringError> {
        let mut outcome = Ok(());
        for interface in interfaces {
            let own = |station: &&StationKey| is_of(station, interface.ifindex);
            if let Some(station) = next.stations.iter().find(own) {
                let set = self.set(*interface, station.to_word());
                outcome = outcome.and(set);
            }
        }
        outcome
    }

    /// Sets one address; 0: not known.
    pub(super) fn set(&mut self, interface: InterfaceSlots, word: u64) -> Result<(), SteeringError> {
        let position = interface.number();
        let Some(applied) = self.applied.get_mut(position as usize) else { return Ok(()) };
        if *applied != word {
            self.map.set(position, word, 0)?;
            *applied = word;
        }
        Ok(())
    }
}

/// Whether it is the address of the device itself, and not of one of its VLANs.
fn is_of(station: &StationKey, ifindex: u32) -> bool {
    station.ifindex == ifindex && station.vlan == 0
}
