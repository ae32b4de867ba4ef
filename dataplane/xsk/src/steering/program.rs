//! The program of one interface: taken over from an earlier process when it is the same, loaded otherwise.
//!
//! Loading has the kernel verify the program, which is most of what a restart takes. So a loaded program is pinned,
//! under a name that says from which object it was made; whoever finds its pin over the same maps uses it as it is.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::fd::AsFd as _,
};

use aya::{
    EbpfLoader,
    maps::MapInfo,
    programs::{ProgramInfo, Xdp},
};
use aya_obj::programs::XdpAttachType;

use super::{
    SteeringError,
    bpffs::PinDir,
    maps::{self, QUEUES_PER_INTERFACE},
};
use crate::sys::bpf;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));
const PROGRAM: &str = "flowgate_steer";
const PIN_PREFIX: &str = "program-";

/// A program in the kernel, and its pin.
pub(super) struct Program {
    pub(super) xdp: Xdp,
    pub(super) pin: String,
    /// Whether an earlier process had loaded it.
    pub(super) is_kept: bool,
}

/// The program for the interface whose socket slots begin at `base`.
pub(super) fn obtain(pins: &PinDir, base: u32) -> Result<Program, SteeringError> {
    let pin = pin_name(base);
    let is_kept = pins.names()?.contains(&pin) && is_over_pinned_maps(pins, &pin);
    if !is_kept {
        if pins.names()?.contains(&pin) {
            pins.remove(&pin)?;
        }
        load(pins, base, &pin)?;
    }
    let xdp = Xdp::from_pin(pins.file(&pin), XdpAttachType::Interface)?;
    Ok(Program { xdp, pin, is_kept })
}

pub(super) fn is_pin_name(name: &str) -> bool {
    name.starts_with(PIN_PREFIX)
}

/// Another object, or other constants in it, have another name.
fn pin_name(base: u32) -> String {
    let mut hasher = DefaultHasher::new();
    (OBJECT, QUEUES_PER_INTERFACE).hash(&mut hasher);
    format!("{PIN_PREFIX}{base}-{:016x}", hasher.finish())
}

/// Whether the pinned program reads the maps that are pinned now: all are in it, by their ids. No when anything
/// about it cannot be read.
fn is_over_pinned_maps(pins: &PinDir, pin: &str) -> bool {
    let of_program = ProgramInfo::from_pin(pins.file(pin)).and_then(|info| info.map_ids());
    let Ok(Some(used)) = of_program else { return false };
    maps::names().all(|map| MapInfo::from_pin(pins.file(map)).is_ok_and(|info| used.contains(&info.id())))
}

/// Loads the program with its own constants and everybody's maps, and pins it.
fn load(pins: &PinDir, base: u32, pin: &str) -> Result<(), SteeringError> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(None) // nothing is relocated against the kernel's types
        .override_global("xsk_base", &base, true)
        .override_global("xsk_queues", &QUEUES_PER_INTERFACE, true);
    for map in maps::names() {
        loader.map_pin_path(map, pins.file(map));
    }
    let mut object = loader.load(OBJECT)?;
    let program: &mut Xdp = object.program_mut(PROGRAM).ok_or(SteeringError::NoProgram)?.try_into()?;
    program.load()?;
    let path = pins.file(pin);
    let pinned = bpf::pin(program.fd()?.as_fd(), &path);
    pinned.map_err(|source: io::Error| SteeringError::PinDir { path, source })
}
