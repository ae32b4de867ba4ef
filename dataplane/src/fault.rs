//! Faults that tests inject into a worker. Only with the feature `lab`, which the release binary does not have.

use std::sync::atomic::{AtomicU8, Ordering};

/// How a worker is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Its thread panics.
    Panic = 1,
    /// It spins for ever and keeps its core.
    Hang = 2,
}

/// The fault that a worker is to suffer.
#[derive(Debug, Default)]
pub(crate) struct Injected(AtomicU8);

impl Injected {
    pub(crate) fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Relaxed);
    }

    /// Called by the worker in its loop: suffers the injected fault, if any.
    pub(crate) fn strike(&self) {
        let waits = self.0.load(Ordering::Relaxed);
        assert!(waits != Fault::Panic as u8, "asked to panic");
        while self.0.load(Ordering::Relaxed) == Fault::Hang as u8 {
            std::hint::spin_loop();
        }
    }
}
