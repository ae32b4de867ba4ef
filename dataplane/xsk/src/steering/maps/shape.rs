//! Type, key, value and capacity that each pinned map must have, and removing pins that do not match.

use aya::maps::{MapData, MapInfo, MapType};

use super::port_sets::{PORT_SET_COUNT, PORT_SET_LEN};
use super::sets::{AddressSet, Sets};
use crate::steering::SteeringError;
use crate::steering::bpffs::PinDir;

/// Allocates entries when they are added: the sets are large, and mostly empty.
const BPF_F_NO_PREALLOC: u32 = 1;

/// Interfaces that one set of maps serves.
pub(in crate::steering) const MAX_INTERFACES: u32 = 16;
/// Queues of an interface that can have a socket.
pub(in crate::steering) const QUEUES_PER_INTERFACE: u32 = 256;

/// What the kernel must report of a pinned map.
pub(super) struct Shape {
    name: &'static str,
    kind: MapType,
    key_len: usize,
    value_len: usize,
    max_entries: u32,
    flags: u32,
}

/// The maps that are no sets, and two sets that are handled apart from the others.
const OTHER_SHAPES: &[Shape] = &[
    AddressSet::shape("own_addrs", 4096),
    AddressSet::shape("vip_addrs", 262_144),
    Shape::array("port_sets", PORT_SET_LEN, PORT_SET_COUNT),
    Shape { kind: MapType::LruHash, key_len: 40, ..Shape::array("fragments", 16, 16_384) },
    Shape { kind: MapType::XskMap, ..Shape::array("xsks", 4, MAX_INTERFACES * QUEUES_PER_INTERFACE) },
    Shape::array("deliveries", 16, MAX_INTERFACES),
    Shape::array("hold_until", 8, 1),
    Shape { kind: MapType::PerCpuArray, ..Shape::array("counters", 8, 64) },
];

impl Shape {
    /// A map of which only the keys matter; its values are a `u32` that nobody reads.
    pub(super) const fn set(name: &'static str, kind: MapType, key_len: usize, max_entries: u32) -> Self {
        Self { name, kind, key_len, value_len: 4, max_entries, flags: BPF_F_NO_PREALLOC }
    }

    const fn array(name: &'static str, value_len: usize, max_entries: u32) -> Self {
        Self { name, kind: MapType::Array, key_len: 4, value_len, max_entries, flags: 0 }
    }

    fn matches(&self, info: &MapInfo) -> bool {
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key_len
            && info.value_size() as usize == self.value_len
            && info.max_entries() == self.max_entries
            && info.map_flags() == self.flags
    }
}

/// The names of the map pins.
pub(in crate::steering) fn names() -> impl Iterator<Item = &'static str> {
    shapes().map(|shape| shape.name)
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
