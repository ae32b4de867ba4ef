//! Devices that vanish, come back with another index, or change their queues.

use std::os::fd::AsFd as _;

use nix::net::if_::if_nametoindex;

use super::sockets::InterfaceSlots;
use super::{AttachReport, Steering, SteeringError, XdpMode, XdpModePolicy, link, report};
use crate::sys::{ethtool, netlink};

/// The properties of a device on which its sockets depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its index; a device that was created again under the old name has another one.
    pub ifindex: u32,
    /// Number of its receive queues.
    pub queues: u32,
    /// Its largest IP packet, in bytes.
    pub mtu: u32,
}

impl Device {
    /// The device of this name as it is now; `None` if there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let ifindex = if_nametoindex(name).ok()?;
        let link = netlink::device_xdp(ifindex).ok()?;
        // A driver that reports no channels has as many queues as the kernel allocated for it, mostly one.
        let queues = ethtool::rx_queue_count(name).unwrap_or(link.rx_queues_allocated);
        Some(Self { ifindex, queues, mtu: link.mtu })
    }
}

impl Steering {
    /// Attaches the program to devices that are new, or were created again under the names of the old ones, and updates the
    /// report of every interface: one that does not exist has no queues. Handles from [`sockets`](Self::sockets) that are
    /// older know only the old devices.
    ///
    /// # Errors
    ///
    /// All interfaces to which the program could not be attached; their reports have no queues.
    pub fn reattach(&mut self) -> Result<(), Vec<SteeringError>> {
        let mut errors = Vec::new();
        let before: Vec<u32> = self.reports.iter().map(|report| report.ifindex).collect();
        for position in 0..self.reports.len() {
            match self.reattach_one(position) {
                Ok(report) => self.reports[position] = report,
                Err(error) => {
                    self.reports[position].queues = 0;
                    errors.push(error);
                }
            }
        }
        if self.reports.iter().map(|report| report.ifindex).eq(before) {
            return if errors.is_empty() { Ok(()) } else { Err(errors) };
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

    /// Attaches the program of one interface in another mode; for a moment the device has no program. The socket slots stay,
    /// but close zero-copy sockets of the device first: they do not survive. A device that is created again starts in the
    /// configured mode.
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or those of the kernel; then the program is attached in the old mode again, if
    /// that is possible.
    pub fn change_mode(&mut self, interface: &str, mode: XdpMode) -> Result<(), SteeringError> {
        let position = self
            .reports
            .iter()
            .position(|report| report.interface == interface)
            .ok_or_else(|| SteeringError::NoInterface { interface: interface.to_owned() })?;
        let ifindex = self.reports[position].ifindex;
        let Some((before, origin)) = self.links[position].as_ref().map(|link| (link.mode, link.origin))
        else {
            return Err(SteeringError::NoInterface { interface: interface.to_owned() });
        };
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
        // Kept although the link is new: a failed start removes only what no earlier process had attached.
        link.origin = origin;
        link.messages.clear();
        let link = self.links[position].insert(link);
        self.reports[position] = report(interface, ifindex, link)?;
        changed
    }

    fn reattach_one(&mut self, position: usize) -> Result<AttachReport, SteeringError> {
        let before = &self.reports[position];
        let Some(device) = Device::named(&before.interface) else {
            return Ok(AttachReport { queues: 0, messages: Vec::new(), ..before.clone() });
        };
        let link = match &mut self.links[position] {
            Some(link) if device.ifindex == before.ifindex => link,
            slot => {
                let program = self.programs[position].xdp.fd()?;
                let (name, mode) = (&before.interface, self.policies[position]);
                slot.insert(link::attach(&self.pins, name, device.ifindex, mode, program.as_fd())?)
            }
        };
        report(&before.interface, device.ifindex, link)
    }
}
