//! The maps that are pinned, each with its shape, and removing pins that do not match.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, MapInfo, MapType};

use super::entries::AddressSet;
use super::port_sets::{PORT_SET_COUNT, PORT_SET_LEN};
use super::replacement::INITIAL_CAPACITY;
use super::sets::{OWN_ADDRESSES, Sets, VIP_ADDRESSES};
use super::shape::{Shape, Size};
use crate::steering::bpffs::PinDir;
use crate::steering::sockets::{MAX_INTERFACES, QUEUES_PER_INTERFACE};
use crate::steering::{SetLimits, SteeringError};

/// The maps that are no sets, and two sets that are handled apart from the others.
const OTHER_SHAPES: &[Shape] = &[
    AddressSet::shape(OWN_ADDRESSES),
    AddressSet::shape(VIP_ADDRESSES),
    Shape::array("port_sets", PORT_SET_LEN, PORT_SET_COUNT),
    Shape { kind: MapType::LruHash, key_len: 40, ..Shape::array("fragments", 16, 16_384) },
    Shape { kind: MapType::XskMap, ..Shape::array("xsks", 4, MAX_INTERFACES * QUEUES_PER_INTERFACE) },
    Shape::array("deliveries", 16, MAX_INTERFACES),
    Shape::array("hold_until", 8, 1),
    Shape::array("stations", 8, MAX_INTERFACES),
    Shape { kind: MapType::PerCpuArray, ..Shape::array("counters", 8, 64) },
];

/// The names of the map pins.
pub(in crate::steering) fn names() -> impl Iterator<Item = &'static str> {
    shapes().map(|shape| shape.name)
}

/// Opens the maps that are no sets once more, as handles to pin them again.
pub(super) fn open_others(pins: &PinDir) -> Result<Vec<(&'static str, OwnedFd)>, SteeringError> {
    let others = shapes().filter(|shape| shape.size != Size::Any);
    let handle = |shape: &'static Shape| {
        let map = MapData::from_pin(pins.file(shape.name))?;
        let path = || pins.file(shape.name);
        let fd = map.fd().as_fd().try_clone_to_owned();
        Ok((shape.name, fd.map_err(|source| SteeringError::PinDir { path: path(), source })?))
    };
    others.map(handle).collect()
}

/// The sizes of the sets of a first start.
pub(in crate::steering) fn initial_sizes(limits: &SetLimits) -> Vec<(&'static str, u32)> {
    let sets = shapes().filter(|shape| shape.size == Size::Any);
    sets.map(|shape| (shape.name, INITIAL_CAPACITY.min(limits.of(shape.name)))).collect()
}

/// Removes every pin of a map's name that is not a map of the right shape, and returns a notice for each.
pub(in crate::steering) fn remove_incompatible(pins: &PinDir) -> Result<Vec<String>, SteeringError> {
    let present = pins.names()?;
    let mut notices = Vec::new();
    for shape in shapes().filter(|shape| present.iter().any(|name| name == shape.name)) {
        let path = pins.file(shape.name);
        // BPF_OBJ_GET_INFO_BY_FD also answers for a program or a link, whose bytes would be taken for a map's.
        let is_map = MapData::from_pin(&path).is_ok();
        if is_map && MapInfo::from_pin(&path).is_ok_and(|info| shape.matches(&info)) {
            continue;
        }
        pins.remove(shape.name)?;
        notices.push(format!("replaced {}: it is not the map this version uses", path.display()));
    }
    Ok(notices)
}

fn shapes() -> impl Iterator<Item = &'static Shape> {
    Sets::SHAPES.iter().chain(OTHER_SHAPES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_the_socket_map_are_what_the_program_has() {
        let program = include_str!("../../../bpf/maps.h");
        assert!(program.contains(&format!("#define QUEUE_SLOTS {}", MAX_INTERFACES * QUEUES_PER_INTERFACE)));
        assert!(program.contains(&format!("#define INTERFACES {MAX_INTERFACES}")));
    }
}
