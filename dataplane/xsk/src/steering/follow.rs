//! Following devices that vanish, come back under another number, or change their queues.

use nix::net::if_::if_nametoindex;

use super::{AttachReport, SocketMap, Steering, SteeringError, link, report};
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
    pub fn follow(&mut self) -> Result<(), Vec<SteeringError>> {
        let mut errors = Vec::new();
        for position in 0..self.reports.len() {
            match self.follow_one(position) {
                Ok(report) => self.reports[position] = report,
                Err(error) => {
                    self.reports[position].queues = 0;
                    errors.push(error);
                }
            }
        }
        let bases: Vec<_> = self
            .reports
            .iter()
            .zip(self.sockets.bases())
            .map(|(report, (_, base))| (report.ifindex, *base))
            .collect();
        self.sockets = SocketMap::again(&self.sockets, bases.clone());
        if let Err(error) = self.maps.follow(bases) {
            errors.push(error);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn follow_one(&mut self, position: usize) -> Result<AttachReport, SteeringError> {
        let before = &self.reports[position];
        let Some(device) = Device::named(&before.interface) else {
            return Ok(AttachReport { queues: 0, messages: Vec::new(), ..before.clone() });
        };
        let link = &mut self.links[position];
        if device.ifindex != before.ifindex {
            let program = self.programs[position].xdp.fd()?;
            let (name, mode) = (&before.interface, self.wanted[position]);
            *link = link::attach(&self.pins, name, device.ifindex, mode, std::os::fd::AsFd::as_fd(program))?;
        }
        report(&before.interface, device.ifindex, link)
    }
}
