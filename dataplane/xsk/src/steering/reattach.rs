//! Following devices that vanish, come back under another number, or change their queues.

use std::os::fd::AsFd as _;

use nix::net::if_::if_nametoindex;

use super::sockets::InterfaceSlots;
use super::{AttachReport, Steering, SteeringError, XdpMode, XdpModePolicy, link, report};
use crate::sys::{ethtool, netlink};

/// What of a device decides how its sockets are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its index: another one when a device was made anew under the old name.
    pub ifindex: u32,
    /// Its receive queues.
    pub queues: u32,
    /// Its largest IP packet, in bytes.
    pub mtu: u32,
}

impl Device {
    /// The device of this name as it is now; `None` when there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let ifindex = if_nametoindex(name).ok()?;
        let link = netlink::device_xdp(ifindex).ok()?;
        // Drivers without channels have one queue or as many as were allocated.
        let queues = ethtool::rx_queue_count(name).unwrap_or(link.rx_queues_allocated);
        Some(Self { ifindex, queues, mtu: link.mtu })
    }
}

impl Steering {
    /// Attaches the program to devices that were made anew under the names of the old ones, and reports every
    /// interface as it is now: one that does not exist has no queues. A handle on the socket slots that was taken
    /// before knows the old devices only.
    ///
    /// # Errors
    ///
    /// All interfaces to which the program could not be attached; they are reported without queues.
    pub fn reattach(&mut self) -> Result<(), Vec<SteeringError>> {
        let mut errors = Vec::new();
        for position in 0..self.reports.len() {
            match self.reattach_one(position) {
                Ok(report) => self.reports[position] = report,
                Err(error) => {
                    self.reports[position].queues = 0;
                    errors.push(error);
                }
            }
        }
        let interfaces: Vec<_> = self
            .reports
            .iter()
            .zip(self.sockets.interfaces())
            .map(|(report, slots)| InterfaceSlots { ifindex: report.ifindex, ..*slots })
            .collect();
        self.sockets = self.sockets.for_devices(interfaces.clone());
        if let Err(error) = self.maps.reattach(interfaces) {
            errors.push(error);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Attaches the program of one interface in another mode than it is in; for a moment the device has none. The
    /// socket slots stay, but sockets that are bound to the device do not survive in zero copy: close them before. A
    /// device that is made anew begins in the configured mode again.
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or what the kernel says; then the program is attached as before, if that can
    /// be done.
    pub fn change_mode(&mut self, interface: &str, mode: XdpMode) -> Result<(), SteeringError> {
        let position = self
            .reports
            .iter()
            .position(|report| report.interface == interface)
            .ok_or_else(|| SteeringError::NoInterface { interface: interface.to_owned() })?;
        let (ifindex, before) = (self.reports[position].ifindex, self.links[position].mode);
        if before == mode {
            return Ok(());
        }
        let program = self.programs[position].xdp.fd()?;
        let attach = |mode| {
            let policy = match mode {
                XdpMode::Native => XdpModePolicy::Native,
                XdpMode::Generic => XdpModePolicy::Generic,
            };
            link::attach(&self.pins, interface, ifindex, policy, program.as_fd())
        };
        let (mut link, changed) = match attach(mode) {
            Ok(link) => (link, Ok(())),
            Err(error) => (attach(before)?, Err(error)),
        };
        // Whether an earlier process had left the attachment is what the end of a failed start goes by.
        link.origin = self.links[position].origin;
        link.messages.clear();
        self.links[position] = link;
        self.reports[position] = report(interface, ifindex, &mut self.links[position])?;
        changed
    }

    fn reattach_one(&mut self, position: usize) -> Result<AttachReport, SteeringError> {
        let before = &self.reports[position];
        let Some(device) = Device::named(&before.interface) else {
            return Ok(AttachReport { queues: 0, messages: Vec::new(), ..before.clone() });
        };
        let link = &mut self.links[position];
        if device.ifindex != before.ifindex {
            let program = self.programs[position].xdp.fd()?;
            let (name, mode) = (&before.interface, self.policies[position]);
            *link = link::attach(&self.pins, name, device.ifindex, mode, program.as_fd())?;
        }
        report(&before.interface, device.ifindex, link)
    }
}
