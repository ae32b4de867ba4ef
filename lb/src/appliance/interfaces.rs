//! Follows the devices of the served interfaces while traffic flows: devices that appear, vanish, are created anew, or change
//! their queues or their MTU. Each change touches only the sockets of its interface; an MTU touches none.
//!
//! All sockets are opened anew only where one interface cannot be changed alone: it has fewer queues than there are workers,
//! none is open yet, zero copy has to be given up, or too many frames were lost with sockets that were closed.

use flowgate_tables::InterfaceId;
use flowgate_xsk::steering::{AttachReport, Device};

use super::Appliance;
use super::prove;
use super::publish::Publishing;
use super::workers::Workers;

/// The devices of all interfaces, in the order of the configuration.
pub(super) struct Interfaces {
    /// Those for which sockets are open, as they were then.
    opened: Vec<Option<Device>>,
    /// As they were at the last check.
    seen: Vec<Option<Device>>,
}

/// What has become of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Its device has gone.
    Gone,
    /// It has a device, or another one, or other queues.
    Device(Device),
    /// Only its MTU has changed.
    Mtu(Device),
}

impl Interfaces {
    /// Those that the program was attached to, with their sockets open.
    pub(super) fn attached(reports: &[AttachReport]) -> Self {
        let device = |report: &AttachReport| {
            let AttachReport { ifindex, queues, mtu, .. } = *report;
            (queues > 0).then_some(Device { ifindex, queues, mtu })
        };
        let opened: Vec<_> = reports.iter().map(device).collect();
        for report in reports.iter().filter(|report| report.queues == 0) {
            tracing::warn!(interface = report.interface, "does not exist: it is served once it does");
        }
        Self { seen: opened.clone(), opened }
    }

    /// Looks at the devices and follows what has changed. Two successive checks must see the same devices, since a change
    /// takes several steps.
    pub(super) fn check(&mut self, Appliance { workers, publishing }: &mut Appliance) {
        let devices = publishing.devices();
        let settled = devices == self.seen;
        self.seen.clone_from(&devices);
        if !settled || (devices == self.opened && !workers.needs_reopen) {
            return;
        }
        let changes = changes(&self.opened, &devices);
        for (interface, change) in &changes {
            tell(&publishing.steering.report()[interface.index()].interface, *change);
        }
        for error in publishing.steering.reattach().err().into_iter().flatten() {
            tracing::error!("an interface is no longer served: {error}");
        }
        let must_reopen = workers.needs_reopen || needs_all(&changes, workers, publishing);
        self.opened = devices;
        if must_reopen {
            return reopen_all(workers, publishing);
        }
        for (interface, change) in changes {
            if let Err(error) = follow(workers, publishing, interface, change) {
                let name = &publishing.steering.report()[interface.index()].interface;
                tracing::error!(interface = name, "its sockets cannot be opened yet: {error:#}");
                // Tried again at the next check, from the beginning.
                self.opened[interface.index()] = None;
            }
        }
        if workers.has_lost_frames() {
            tracing::info!("too many frames were lost with closed sockets: all are opened again");
            reopen_all(workers, publishing);
        }
    }
}

fn changes(opened: &[Option<Device>], now: &[Option<Device>]) -> Vec<(InterfaceId, Change)> {
    let change = |(opened, now): (&Option<Device>, &Option<Device>)| match (opened, now) {
        (Some(_), None) => Some(Change::Gone),
        (Some(before), Some(now)) if before == now => None,
        (Some(before), Some(now)) if (before.ifindex, before.queues) == (now.ifindex, now.queues) => {
            Some(Change::Mtu(*now))
        }
        (_, Some(now)) => Some(Change::Device(*now)),
        (None, None) => None,
    };
    let all = (0..).map(InterfaceId).zip(opened.iter().zip(now));
    all.filter_map(|(interface, pair)| Some((interface, change(pair)?))).collect()
}

fn tell(interface: &str, change: Change) {
    match change {
        Change::Gone => tracing::warn!(interface, "is gone: the others are served without it"),
        Change::Device(Device { ifindex, queues, mtu }) => {
            tracing::info!(interface, ifindex, queues, mtu, "its sockets are opened");
        }
        Change::Mtu(Device { mtu, .. }) => tracing::info!(interface, mtu, "has another MTU"),
    }
}

/// Whether these changes concern the sockets of all interfaces.
fn needs_all(changes: &[(InterfaceId, Change)], workers: &Workers, publishing: &Publishing) -> bool {
    let reports = publishing.steering.report();
    changes.iter().any(|(interface, change)| {
        let report = &reports[interface.index()];
        match change {
            Change::Gone => false,
            // A worker without a queue of it could not send by it.
            Change::Device(device) => {
                !workers.has_any_socket() || (device.queues as usize) < workers.slots.len()
            }
            Change::Mtu(_) => {
                workers.cuts_packets(report) || workers.proofs.has_fallen_back(&report.interface)
            }
        }
    })
}

fn reopen_all(workers: &mut Workers, publishing: &mut Publishing) {
    if let Err(error) = prove::forget_deliveries(&mut publishing.steering) {
        tracing::error!("truncated frames of the interfaces cannot be detected: {error:#}");
    }
    if let Err(error) = workers.reopen(&publishing.start_context()) {
        tracing::error!("the sockets cannot be reopened yet: {error:#}");
    }
}

fn follow(
    workers: &mut Workers,
    publishing: &mut Publishing,
    interface: InterfaceId,
    change: Change,
) -> anyhow::Result<()> {
    let report = &publishing.steering.report()[interface.index()];
    if let Change::Mtu(_) = change {
        workers.proofs.follow_mtu(report);
        workers.warn_of_shortages(publishing.steering.report());
        return Ok(());
    }
    workers.close_interface(interface, &publishing.steering.sockets())?;
    // None either where the program cannot be attached.
    if report.queues == 0 {
        return Ok(());
    }
    report.messages.iter().for_each(|message| tracing::warn!(interface = report.interface, "{message}"));
    let ifindex = report.ifindex;
    publishing.steering.reset_delivery(ifindex)?;
    workers.open_interface(interface, &publishing.start_context())?;
    prove::note_modes(workers, publishing.steering.report());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(ifindex: u32, queues: u32, mtu: u32) -> Option<Device> {
        Some(Device { ifindex, queues, mtu })
    }

    #[test]
    fn a_change_is_named_by_what_it_touches() {
        let opened = [device(2, 1, 1500), device(3, 2, 1500), device(4, 1, 1500), None, None];
        let now = [device(2, 1, 1499), device(3, 4, 1500), None, device(9, 1, 1500), None];
        let found: Vec<_> =
            changes(&opened, &now).into_iter().map(|(at, change)| (at.index(), change)).collect();
        assert_eq!(
            found,
            [
                (0, Change::Mtu(now[0].unwrap())),
                (1, Change::Device(now[1].unwrap())),
                (2, Change::Gone),
                (3, Change::Device(now[3].unwrap())),
            ]
        );
        assert_eq!(changes(&opened, &opened), []);
    }

    #[test]
    fn a_device_that_was_created_anew_is_another_whatever_its_mtu() {
        let (opened, now) = ([device(2, 1, 1500)], [device(7, 1, 1499)]);
        assert_eq!(changes(&opened, &now), [(InterfaceId(0), Change::Device(now[0].unwrap()))]);
    }
}
