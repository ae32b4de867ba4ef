//! Sets of another size without a gap. A map in the kernel cannot grow, so larger ones are made and filled beside the old
//! ones, a program that uses them is loaded, and each interface's link is updated to it: every packet meets the old program
//! with the old maps or the new program with the new maps, and both hold the same. All other maps (sockets, counters,
//! fragments, grace period, deliveries) are shared by both programs.
//!
//! Verification of the program takes most of the time, so [`Resize::prepare`] runs on a thread of its own.
//!
//! A process can die at any step. Before the first link is updated only pins of the prefix `next-` were added, which the
//! successor removes. After that, the old and the new maps hold the same and nobody changes them, so whichever of them is
//! pinned is right for the successor: it updates the links to a program that uses the pinned ones.

use std::path::PathBuf;
use std::sync::Arc;

use super::bpffs::PinDir;
use super::kernel::Kernel;
use super::maps::Replacements;
use super::program::{self, MapPins, Program};
use super::set::SteeringSet;
use super::sockets::InterfaceSlots;
use super::verifier_log::VerifierLog;
use super::{Steering, SteeringError, link};

/// Pins of what is to take the place of the pin of the same name without the prefix.
const PREFIX: &str = "next-";

/// New maps for sets that have another size than they should have. Nothing is made yet.
pub struct Resize {
    pins: Arc<PinDir>,
    object: &'static [u8],
    log_dir: PathBuf,
    interfaces: Vec<InterfaceSlots>,
    replacements: Replacements,
}

/// New maps, filled, and programs that use them, not attached yet.
pub struct Resized {
    interfaces: Vec<InterfaceSlots>,
    replacements: Replacements,
    programs: Vec<Program>,
}

impl Resize {
    /// Names and new sizes of the maps.
    #[must_use]
    pub fn sizes(&self) -> Vec<(&'static str, u32)> {
        self.replacements.sizes()
    }

    /// Makes and fills the maps, and loads a program for each interface: takes 0.2 s per interface and more on a busy
    /// machine. May run on any thread.
    ///
    /// # Errors
    ///
    /// Those of the kernel, for example that it has no memory. Nothing stays of what was made.
    pub fn prepare(mut self) -> Result<Resized, SteeringError> {
        let prepared = self.make();
        match prepared {
            Ok(programs) => {
                let Self { interfaces, replacements, .. } = self;
                Ok(Resized { interfaces, replacements, programs })
            }
            Err(error) => {
                // The error that led here is of more use than one about cleaning up.
                let _ = remove_leftovers(&self.pins);
                Err(error)
            }
        }
    }

    fn make(&mut self) -> Result<Vec<Program>, SteeringError> {
        remove_leftovers(&self.pins)?;
        let kernel = Kernel::running();
        let verifier_log = VerifierLog { kernel: &kernel, dir: &self.log_dir };
        let sizes = self.replacements.sizes();
        let map_pins = MapPins { pins: &self.pins, sizes: &sizes, new_prefix: PREFIX };
        let mut programs = Vec::new();
        for interface in &self.interfaces {
            programs.push(program::load_beside(&map_pins, self.object, *interface, &verifier_log)?);
        }
        self.replacements.fill(&self.interfaces, |name| self.pins.file(&next_pin(name)))?;
        Ok(programs)
    }
}

impl Steering {
    /// The maps that should have another size for `next`, which is what was last given to [`add_new`](Self::add_new); `None`
    /// if all sizes are right. A set grows when it is filled to more than three quarters, up to its limit.
    #[must_use]
    pub fn resize(&self, next: &SteeringSet) -> Option<Resize> {
        let replacements = self.maps.replacements(next, &self.limits)?;
        Some(Resize {
            pins: Arc::clone(&self.pins),
            object: self.object,
            log_dir: self.log_dir.clone(),
            interfaces: self.maps.interfaces().to_vec(),
            replacements,
        })
    }

    /// Whether a new map is larger than `next` needs it by now. To empty it again would take long, and nobody needs it.
    #[must_use]
    pub fn is_outdated(&self, resized: &Resized, next: &SteeringSet) -> bool {
        let sizes = self.maps.replacements(next, &self.limits).map_or_else(Vec::new, |now| now.sizes());
        let is_needed = |(name, size)| sizes.iter().any(|&(of, now)| of == name && now >= size);
        !resized.replacements.sizes().into_iter().all(is_needed)
    }

    /// Gives up new maps and programs: everything stays as it is.
    ///
    /// # Errors
    ///
    /// [`SteeringError::PinDir`]: their pins could not be removed; the next resize tries again.
    pub fn abandon(&self, resized: Resized) -> Result<(), SteeringError> {
        drop(resized);
        remove_leftovers(&self.pins)
    }

    /// Puts new maps and programs in the places of the present ones, without a gap. `next` is what was last given to
    /// [`add_new`](Self::add_new); call that again afterwards, to learn what is missing still.
    ///
    /// # Errors
    ///
    /// A link could not be updated, or devices have changed: everything is as it was. [`SteeringError::PinDir`]: the new maps
    /// are in use, but a pin could not be replaced, so the next process may find the old ones.
    pub fn switch_to(&mut self, resized: Resized, next: &SteeringSet) -> Result<(), SteeringError> {
        let Resized { interfaces, mut replacements, mut programs } = resized;
        if interfaces != self.maps.interfaces() {
            remove_leftovers(&self.pins)?;
            return Err(SteeringError::InterfacesChanged);
        }
        self.maps.catch_up(&mut replacements, next);
        if let Err(error) = self.update_links(&programs) {
            let _ = remove_leftovers(&self.pins);
            return Err(error);
        }
        let maps: Vec<_> = replacements.sizes().into_iter().map(|(name, _)| name).collect();
        self.maps.install(replacements);
        for program in &mut programs {
            program.pin = program.pin.trim_start_matches(PREFIX).to_owned();
        }
        let pins = maps.into_iter().chain(programs.iter().map(|program| program.pin.as_str()));
        // Every pin is tried. `fold` does not stop at an error.
        let replaced = pins.map(|name| self.pins.rename(&next_pin(name), name)).fold(Ok(()), Result::and);
        self.programs = programs;
        replaced
    }

    /// Updates the link of every interface, or none.
    fn update_links(&self, programs: &[Program]) -> Result<(), SteeringError> {
        for (position, program) in programs.iter().enumerate() {
            let name = &self.reports[position].interface;
            // An interface that has not existed yet is attached with the new program once it does.
            let Some(link) = &self.links[position] else { continue };
            let Err(error) = link::update(link, name, program) else { continue };
            let earlier = self.links.iter().zip(&self.programs).zip(&self.reports).take(position);
            for ((link, present), report) in earlier {
                // Should this fail as well, the interface goes on with the new maps: they hold what the old ones hold until
                // the next change.
                let _ = link.as_ref().map(|link| link::update(link, &report.interface, present));
            }
            return Err(error);
        }
        Ok(())
    }
}

/// Removes what a resize left that did not come to its end.
pub(super) fn remove_leftovers(pins: &PinDir) -> Result<(), SteeringError> {
    for name in pins.names()? {
        if is_leftover(&name) {
            pins.remove(&name)?;
        }
    }
    Ok(())
}

pub(super) fn is_leftover(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn next_pin(name: &str) -> String {
    format!("{PREFIX}{name}")
}
