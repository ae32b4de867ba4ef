//! Breaking a worker on purpose, for tests of what happens then. Not in packages.

use std::sync::atomic::{AtomicU8, Ordering};

/// How a worker breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Its thread panics.
    Panic = 1,
    /// It does nothing for ever, and does not give up its core.
    Hang = 2,
}

/// The fault that waits for a worker.
#[derive(Debug, Default)]
pub(crate) struct Injected(AtomicU8);

impl Injected {
    pub(crate) fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Relaxed);
    }

    /// Breaks the worker that calls it, if it is to be broken.
    pub(crate) fn strike(&self) {
        let waits = self.0.load(Ordering::Relaxed);
        assert!(waits != Fault::Panic as u8, "asked to panic");
        while self.0.load(Ordering::Relaxed) == Fault::Hang as u8 {
            std::hint::spin_loop();
        }
    }
}
