//! Least privilege: which capabilities are left once everything is attached, and what each kind of thread keeps of them.
//!
//! Capabilities belong to threads (capabilities(7)). The control thread gives up what it does not need when the start has
//! succeeded; threads that it starts, also those for blocking work, give up theirs first of all.

use std::collections::HashSet;

use anyhow::Context;
use caps::{CapSet, Capability};

use super::syscall_filter;
use crate::config::Privileges;

/// What the control thread needs while Flowgate serves, beside the operator's [`Privileges::keep`]. A start needs CAP_SYS_ADMIN
/// too, for what it mounts, and CAP_NET_BIND_SERVICE for a DNS port below 1024.
pub(crate) const NEEDED: [Capability; 4] = [
    // Links, maps and pins of the XDP program; the host's reserved ports; neighbours; rxvlan.
    Capability::CAP_NET_ADMIN,
    // AF_XDP sockets, when interfaces change, and the packet socket that proves an interface.
    Capability::CAP_NET_RAW,
    // Maps and pins, where the host forbids bpf(2) to others (kernel.unprivileged_bpf_disabled).
    Capability::CAP_BPF,
    // Packet memory beyond the limit of locked memory, when sockets are opened again.
    Capability::CAP_IPC_LOCK,
];

/// Permitted besides, and not in force.
const FOR_LATER: [Capability; 2] = [
    // Put in force only while the XDP program is loaded anew, for larger maps or for an interface that comes later.
    Capability::CAP_PERFMON,
    // For a program that executes itself again and listens for DNS on port 53: exec(2) puts in force what is permitted.
    Capability::CAP_NET_BIND_SERVICE,
];

/// Gives up, for the calling thread, all capabilities but those needed, and the right to gain others by exec(2). Returns those
/// that are left, for the log.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn restrict_control_thread(privileges: &Privileges) -> anyhow::Result<String> {
    if privileges.drop {
        let in_force: HashSet<_> = NEEDED.into_iter().chain(privileges.keep.iter().copied()).collect();
        let permitted = in_force.iter().copied().chain(FOR_LATER).collect();
        keep_only(&in_force, &permitted).context("giving up capabilities (privileges.drop)")?;
    }
    let left = caps::read(None, CapSet::Effective).context("reading the capabilities of this thread")?;
    let mut names: Vec<String> = left.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(" ") })
}

/// What a thread for blocking work of the control plane calls first.
pub(crate) fn restrict_helper_thread(privileges: &Privileges) {
    if let Err(error) = restrict_control_thread(privileges) {
        tracing::warn!("a thread keeps its capabilities: {error:#}");
    }
}

/// What the threads of DNS, probes and metrics call first.
pub(crate) fn server_thread(privileges: &Privileges) -> fn() {
    if privileges.drop { drop_all } else { || {} }
}

/// What a worker's thread calls first.
pub(crate) fn worker_thread(privileges: &Privileges) -> fn() {
    match (privileges.drop, privileges.seccomp) {
        (true, true) => || {
            drop_all();
            syscall_filter::install();
        },
        (true, false) => drop_all,
        (false, true) => syscall_filter::install,
        (false, false) => || {},
    }
}

fn drop_all() {
    if let Err(error) = keep_only(&HashSet::new(), &HashSet::new()) {
        tracing::warn!("a thread keeps its capabilities: {error:#}");
    }
}

fn keep_only(in_force: &HashSet<Capability>, permitted: &HashSet<Capability>) -> anyhow::Result<()> {
    // Without it exec(2) of a root process would give back what is in the bounding set (capabilities(7)).
    nix::sys::prctl::set_no_new_privs()?;
    let had = caps::read(None, CapSet::Permitted)?;
    if had.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all().difference(permitted) {
            // EINVAL for one that this kernel does not know.
            let _ = caps::drop(None, CapSet::Bounding, *capability);
        }
    }
    let kept = |wanted: &HashSet<Capability>| had.intersection(wanted).copied().collect();
    // In this order: what is effective must be permitted.
    caps::set(None, CapSet::Effective, &kept(in_force))?;
    caps::set(None, CapSet::Permitted, &kept(permitted))?;
    // After exec(2) a process that is not root has what is ambient, which must be inheritable.
    let inheritable = caps::read(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Inheritable, &inheritable.intersection(permitted).copied().collect())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn effective() -> HashSet<Capability> {
        caps::read(None, CapSet::Effective).unwrap()
    }

    #[test]
    fn a_thread_keeps_what_is_needed_and_what_the_operator_names_and_can_regain_nothing() {
        let before = effective();
        let privileges = Privileges { keep: vec![Capability::CAP_DAC_READ_SEARCH], ..Privileges::default() };
        thread::scope(|scope| {
            let checked = scope.spawn(|| {
                restrict_control_thread(&privileges).unwrap();
                let allowed: HashSet<_> =
                    NEEDED.into_iter().chain([Capability::CAP_DAC_READ_SEARCH]).collect();
                assert_eq!(effective(), before.intersection(&allowed).copied().collect());
                let mut permitted = effective();
                permitted.extend(FOR_LATER.iter().filter(|later| before.contains(later)));
                assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), permitted);
                let mut others = before.difference(&permitted).copied();
                if let Some(other) = others.next() {
                    assert!(caps::raise(None, CapSet::Effective, other).is_err(), "{other}");
                }
                server_thread(&privileges)();
                assert_eq!(effective(), HashSet::new());
            });
            checked.join().unwrap();
        });
        assert_eq!(effective(), before, "other threads keep theirs");
    }

    #[test]
    fn without_the_key_everything_stays() {
        let before = effective();
        let privileges = Privileges { drop: false, ..Privileges::default() };
        thread::scope(|scope| {
            let checked = scope.spawn(|| {
                restrict_control_thread(&privileges).unwrap();
                server_thread(&privileges)();
                assert_eq!(effective(), before);
            });
            checked.join().unwrap();
        });
    }
}
