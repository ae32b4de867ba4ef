//! Devices that vanish, come back with another index, or change their queues.

use std::os::fd::AsFd as _;

use nix::net::if_::if_nametoindex;

use super::kernel::Kernel;
use super::program::{self, MapPins};
use super::sockets::InterfaceSlots;
use super::verifier_log::VerifierLog;
use super::{AttachReport, Steering, SteeringError, XdpMode, XdpModePolicy, link, report};
use crate::Driver;
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
        let before = self.reports[position].clone();
        let Some(device) = Device::named(&before.interface) else {
            return Ok(AttachReport { queues: 0, messages: Vec::new(), ..before });
        };
        let is_known = self.links[position].is_some() && device.ifindex == before.ifindex;
        let mut renewed = Ok(());
        if !is_known {
            let program = self.programs[position].xdp.fd()?;
            let mode = self.policies[position];
            let link = link::attach(&self.pins, &before.interface, device.ifindex, mode, program.as_fd())?;
            self.links[position] = Some(link);
        // veth gives queues that are added the program only together with another one (`veth_set_channels`, `veth_xdp_set`).
        } else if device.queues > before.queues && Driver::of(&before.interface).is_veth() {
            renewed = self.renew_program(position);
        }
        let link = self.links[position].as_mut().ok_or(SteeringError::NoProgram)?;
        let mut report = report(&before.interface, device.ifindex, link)?;
        if let Err(error) = renewed {
            report.messages.push(format!("queues that are new pass everything to the kernel: {error}"));
        }
        Ok(report)
    }

    /// Attaches another instance of the program: an update to the one that is attached would not reach the driver
    /// (`bpf_xdp_link_update` in net/core/dev.c).
    fn renew_program(&mut self, position: usize) -> Result<(), SteeringError> {
        let kernel = Kernel::running();
        let verifier_log = VerifierLog { kernel: &kernel, dir: &self.log_dir };
        let map_pins = MapPins { pins: &self.pins, sizes: &[], new_prefix: "" };
        // Its pin is in the way. A successor that finds none loads the program anew.
        self.pins.remove(&self.programs[position].pin)?;
        let slots = self.maps.interfaces()[position];
        let program = program::load_beside(&map_pins, self.object, slots, &verifier_log)?;
        if let Some(link) = &self.links[position] {
            link::update(link, &self.reports[position].interface, &program)?;
        }
        self.programs[position] = program;
        Ok(())
    }
}
