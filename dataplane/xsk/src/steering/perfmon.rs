//! CAP_PERFMON, without which the verifier takes no pointer to a packet plus a variable number ("prohibited for !root"). A process
//! that has given up its privileges may keep it permitted and not in force: it is in force here only while a program is loaded.

use caps::{CapSet, Capability};

/// Runs `load` with the capability in force, if this thread is permitted to have it. Otherwise the kernel judges without.
pub(super) fn with<T>(load: impl FnOnce() -> T) -> T {
    let has = |set| caps::has_cap(None, set, Capability::CAP_PERFMON).unwrap_or(false);
    let is_raised = has(CapSet::Permitted)
        && !has(CapSet::Effective)
        && caps::raise(None, CapSet::Effective, Capability::CAP_PERFMON).is_ok();
    let loaded = load();
    if is_raised {
        // It was raised, so that it can be dropped.
        let _ = caps::drop(None, CapSet::Effective, Capability::CAP_PERFMON);
    }
    loaded
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn is_in_force() -> bool {
        caps::has_cap(None, CapSet::Effective, Capability::CAP_PERFMON).unwrap()
    }

    #[test]
    fn the_capability_is_in_force_only_while_a_program_is_loaded() {
        if !is_in_force() {
            return; // Not root: nothing to raise.
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                caps::drop(None, CapSet::Effective, Capability::CAP_PERFMON).unwrap();
                assert!(with(is_in_force));
                assert!(!is_in_force());
            });
        });
        assert!(with(is_in_force) && is_in_force(), "one that was in force stays so");
    }
}
