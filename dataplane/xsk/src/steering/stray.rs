//! Flowgate's own program on an interface whose link has no pin here: the bpffs with the pins was unmounted or emptied, or
//! belongs to a mount namespace that is out of sight, such as a container's. If no process serves it any more, link and maps
//! are pinned again and taken over like any others, without a gap; otherwise the process is named.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;
use std::{fs, io, thread};

use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::{ProgramInfo, loaded_programs};

use super::bpffs::PinDir;
use super::program::PROGRAM;
use super::sockets::InterfaceSlots;
use super::{InterfaceConfig, SteeringError, link, maps};
use crate::sys::{bpf, netlink};

/// How often a process that serves extends its grace period, with room for a busy machine.
const GRACE_IS_EXTENDED_WITHIN: Duration = Duration::from_millis(1500);
const POLL_EVERY: Duration = Duration::from_millis(100);
/// A process that looks through all links, as this one does, has each of them open for a moment.
const LOOKS_AT_HOLDERS: u32 = 5;
const LOOKS_AT_LINKS: u32 = 5;

/// Pins the links and maps of earlier processes again that have lost their pins. Returns a notice for each interface.
///
/// # Errors
/// Another process serves an interface, or the kernel refuses.
pub(super) fn take_over(
    pins: &PinDir,
    interfaces: &[InterfaceConfig],
    slots: &[InterfaceSlots],
) -> Result<Vec<String>, SteeringError> {
    let mut notices = Vec::new();
    for (interface, slots) in interfaces.iter().zip(slots).filter(|(_, slots)| slots.ifindex != 0) {
        let name = &interface.name;
        if pins.names()?.contains(&link::pin_name(name)) {
            continue;
        }
        if let Some(program_id) = settle(pins, name, slots.ifindex)? {
            notices.push(format!(
                "took over program {program_id} of {name}, which an earlier flowgate attached and whose pins were lost"
            ));
        }
    }
    Ok(notices)
}

/// Takes over the program of a device if it is one of ours; returns its id. A link that nothing refers to any more ends a
/// moment after its last process or the bpffs: then there is nothing to take over.
fn settle(pins: &PinDir, interface: &str, ifindex: u32) -> Result<Option<u32>, SteeringError> {
    let mut outcome = Ok(None);
    for _ in 0..LOOKS_AT_LINKS {
        let Some(program) = own_program(ifindex) else { return Ok(None) };
        match take_over_one(pins, interface, ifindex, &program) {
            Ok(()) => return Ok(Some(program.id())),
            Err(error @ SteeringError::PinsLost { .. }) => outcome = Err(error),
            Err(error) => return Err(error),
        }
        thread::sleep(POLL_EVERY);
    }
    outcome
}

/// The program of a device, if it is one of ours: by its name and by the names of its maps.
fn own_program(ifindex: u32) -> Option<ProgramInfo> {
    let id = netlink::device_xdp(ifindex).ok()?.any?;
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    let has_its_maps = || ["vips", "xsks"].iter().all(|name| map_of(&program, name).is_some());
    (program.name_as_str() == Some(PROGRAM) && has_its_maps()).then_some(program)
}

fn take_over_one(
    pins: &PinDir,
    interface: &str,
    ifindex: u32,
    program: &ProgramInfo,
) -> Result<(), SteeringError> {
    let failed = |source| SteeringError::PinsLost {
        interface: interface.to_owned(),
        program_id: program.id(),
        source,
    };
    let served = |by| Err(SteeringError::ServedElsewhere { interface: interface.to_owned(), by });
    let (link_id, link) = link_to(ifindex, program.id()).map_err(failed)?;
    drop(link);
    if let Some(holder) = holder_of(link_id) {
        return served(holder);
    }
    if is_extended(program) {
        return served("which is in another PID namespace".to_owned());
    }
    let present = pins.names()?;
    for name in maps::names().filter(|name| !present.iter().any(|pin| pin == name)) {
        if let Some(map) = map_of(program, name) {
            map.pin(pins.file(name)).map_err(|error| failed(io::Error::other(error)))?;
        }
    }
    // Last: with it, everything is found.
    let link = bpf::link_by_id(link_id).map_err(failed)?;
    bpf::pin(link.as_fd(), &pins.file(&link::pin_name(interface))).map_err(failed)
}

/// The link by which the program is attached to the device, and its id.
fn link_to(ifindex: u32, program_id: u32) -> io::Result<(u32, OwnedFd)> {
    let mut id = 0;
    while let Some(next) = bpf::next_link_id(id)? {
        id = next;
        let Ok(link) = bpf::link_by_id(id) else { continue };
        // A device of another network namespace can have the same index, but hardly the same program.
        if let Ok(Some(info)) = bpf::link_info(link.as_fd())
            && (info.ifindex, info.program_id) == (ifindex, program_id)
        {
            return Ok((id, link));
        }
    }
    Err(io::Error::other("it is not attached by a link"))
}

/// The process that has this link open, for the operator.
fn holder_of(link_id: u32) -> Option<String> {
    let mut holder = None;
    for _ in 0..LOOKS_AT_HOLDERS {
        holder = process_with(&format!("link_id:\t{link_id}\n"));
        if holder.is_none() {
            break;
        }
        thread::sleep(POLL_EVERY);
    }
    holder
}

/// A process with a descriptor of which the kernel says `line` (Documentation/filesystems/proc.rst, "fdinfo").
fn process_with(line: &str) -> Option<String> {
    let entries = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let processes = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    for process in processes {
        // A process can end meanwhile.
        let descriptors = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten();
        let mut texts = descriptors.filter_map(|fd| fs::read_to_string(fd.ok()?.path()).ok());
        if texts.any(|text| text.contains(line)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {} ({})", process.file_name().to_string_lossy(), name.trim()));
        }
    }
    None
}

/// Whether a process that cannot be seen keeps the grace period ahead.
fn is_extended(program: &ProgramInfo) -> bool {
    let until = || -> Option<u64> {
        let map: Array<_, u64> = Map::from_map_data(map_of(program, "hold_until")?).ok()?.try_into().ok()?;
        map.get(&0, 0).ok()
    };
    let before = until();
    let polls = GRACE_IS_EXTENDED_WITHIN.as_millis() / POLL_EVERY.as_millis();
    (0..polls).any(|_| {
        thread::sleep(POLL_EVERY);
        until() != before
    })
}

/// The map of this name that a program uses.
fn map_of(program: &ProgramInfo, name: &str) -> Option<MapData> {
    let ids = program.map_ids().ok()??;
    let has_name = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some(name));
    MapData::from_id(ids.into_iter().find(has_name)?).ok()
}
