//! The program of one interface: reused from an earlier process if it is the same, loaded otherwise.
//!
//! Loading means verification, which is most of the time of a restart. So a loaded program is pinned under a hash of its
//! object and constants, and reused if its pin is found and it refers to the maps that are pinned now. `flowgate detach`
//! removes the pin, for example after the host's JIT settings were changed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use aya::maps::MapInfo;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use aya_obj::programs::XdpAttachType;

use super::SteeringError;
use super::bpffs::PinDir;
use super::maps;
use super::perfmon;
use super::sockets::{InterfaceSlots, QUEUES_PER_INTERFACE};
use super::verifier_log::VerifierLog;
use crate::sys::bpf;

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));
pub(super) const PROGRAM: &str = "flowgate_steer";
const PIN_PREFIX: &str = "program-";

/// A program in the kernel, and its pin.
pub(super) struct Program {
    pub(super) xdp: Xdp,
    pub(super) pin: String,
    /// Whether an earlier process loaded it.
    pub(super) is_reused: bool,
}

/// The maps that a program is loaded over: those that are pinned, and new ones of these sizes.
pub(super) struct MapPins<'a> {
    pub(super) pins: &'a PinDir,
    /// Names and sizes of maps that are made if they are not pinned.
    pub(super) sizes: &'a [(&'static str, u32)],
    /// What precedes the names of the pins of these maps, and of the program: empty if they are the only ones.
    pub(super) new_prefix: &'static str,
}

impl MapPins<'_> {
    fn file(&self, map: &str) -> PathBuf {
        let is_new = self.sizes.iter().any(|(name, _)| *name == map);
        self.pins.file(&format!("{}{map}", if is_new { self.new_prefix } else { "" }))
    }
}

/// The program for an interface, from its pin if that fits and loaded otherwise.
pub(super) fn reuse_or_load(
    map_pins: &MapPins<'_>,
    object: &[u8],
    interface: InterfaceSlots,
    verifier_log: &VerifierLog<'_>,
) -> Result<Program, SteeringError> {
    let pins = map_pins.pins;
    let constants = constants_of(interface);
    let pin = pin_name(object, &constants);
    let path = pins.file(&pin);
    if pins.names()?.contains(&pin) {
        match Xdp::from_pin(&path, XdpAttachType::Interface) {
            Ok(xdp) if uses_pinned_maps(&xdp, pins) => return Ok(Program { xdp, pin, is_reused: true }),
            _ => pins.remove(&pin)?,
        }
    }
    load_and_pin(map_pins, object, &constants, verifier_log)
}

/// The program for an interface over new maps, beside one over the present maps.
pub(super) fn load_beside(
    map_pins: &MapPins<'_>,
    object: &[u8],
    interface: InterfaceSlots,
    verifier_log: &VerifierLog<'_>,
) -> Result<Program, SteeringError> {
    load_and_pin(map_pins, object, &constants_of(interface), verifier_log)
}

fn constants_of(interface: InterfaceSlots) -> Constants {
    [("xsk_base", interface.first), ("xsk_queues", QUEUES_PER_INTERFACE), ("interface", interface.number())]
}

/// Names and values of the constants that are set in the object.
type Constants = [(&'static str, u32); 3];

fn load_and_pin(
    map_pins: &MapPins<'_>,
    object: &[u8],
    constants: &Constants,
    verifier_log: &VerifierLog<'_>,
) -> Result<Program, SteeringError> {
    let pin = format!("{}{}", map_pins.new_prefix, pin_name(object, constants));
    let path = map_pins.pins.file(&pin);
    // Pinned and opened again: aya's `Ebpf` owns the program that it loads, and is dropped here with all its maps.
    let object = load(map_pins, object, constants, verifier_log)?;
    let program: &Xdp = object.program(PROGRAM).ok_or(SteeringError::NoProgram)?.try_into()?;
    bpf::pin(program.fd()?.as_fd(), &path)
        .map_err(|source| SteeringError::PinDir { path: path.clone(), source })?;
    match Xdp::from_pin(&path, XdpAttachType::Interface) {
        Ok(xdp) => Ok(Program { xdp, pin, is_reused: false }),
        Err(error) => {
            map_pins.pins.remove(&pin)?;
            Err(error.into())
        }
    }
}

pub(super) fn is_pin_name(name: &str) -> bool {
    name.starts_with(PIN_PREFIX)
}

/// A hash of object and constants, so that other versions and other interfaces have other names.
fn pin_name(object: &[u8], constants: &Constants) -> String {
    // Not a keyed hash: `DefaultHasher::new` gives the same for the same input in every process.
    let mut hasher = DefaultHasher::new();
    (object, constants).hash(&mut hasher);
    format!("{PIN_PREFIX}{:016x}", hasher.finish())
}

/// Whether the program uses the maps that are pinned now, compared by id. False if it is not our XDP program, or if
/// anything about it cannot be read.
fn uses_pinned_maps(xdp: &Xdp, pins: &PinDir) -> bool {
    let of_program = xdp.fd().ok().map(|fd| bpf::program_info(fd.as_fd()));
    let Some(Ok(Some(info))) = of_program else { return false };
    let is_used = |map| MapInfo::from_pin(pins.file(map)).is_ok_and(|map| info.map_ids.contains(&map.id()));
    maps::names().all(is_used)
}

/// Loads the program with the constants of its interface, over maps that all interfaces share.
fn load(
    map_pins: &MapPins<'_>,
    object: &[u8],
    constants: &Constants,
    verifier_log: &VerifierLog<'_>,
) -> Result<Ebpf, SteeringError> {
    let mut loader = EbpfLoader::new();
    loader.btf(None); // nothing is relocated against the kernel's types
    // Constants and not a map: the verifier and the JIT then treat them as immediate numbers.
    for (name, value) in constants {
        loader.override_global(name, value, true);
    }
    for map in maps::names() {
        loader.map_pin_path(map, map_pins.file(map));
    }
    for (map, size) in map_pins.sizes {
        loader.map_max_entries(map, *size);
    }
    let mut object = perfmon::with(|| loader.load(object))?;
    let program: &mut Xdp = object.program_mut(PROGRAM).ok_or(SteeringError::NoProgram)?.try_into()?;
    perfmon::with(|| program.load()).map_err(|error| verifier_log.explain(PROGRAM, error))?;
    Ok(object)
}
