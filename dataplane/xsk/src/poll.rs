//! Waiting for packets when there are none. Must never be on the path of a busy worker.
//!
//! The kernel reports no event for a port whose device went down or away (`net/xdp/xsk.c:xsk_poll` ends before it
//! asks for errors): see [`XskSocket::link_state`].
#![allow(unsafe_code, reason = "ppoll over ports and one more descriptor, without allocating")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;
use std::{io, ptr};

use crate::XskSocket;

/// What a wait ended with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Ports that have received something.
    pub readable: usize,
    /// The extra descriptor became readable.
    pub woken: bool,
}

/// Waits for ports. Keeps its list between waits so that waiting does not allocate.
#[derive(Debug, Default)]
pub struct Poller {
    fds: Vec<libc::pollfd>,
}

impl Poller {
    /// A poller for any number of ports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until a port has received, `wake` (an eventfd, say) is readable, or the time is over.
    ///
    /// # Errors
    ///
    /// Only what poll(2) itself refuses; being interrupted is an empty [`Readiness`].
    pub fn wait(
        &mut self,
        ports: &[XskSocket],
        wake: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> io::Result<Readiness> {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        self.fds.clear();
        self.fds.extend(ports.iter().map(|port| entry(port.as_fd().as_raw_fd())));
        self.fds.extend(wake.map(|fd| entry(fd.as_raw_fd())));

        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
        };
        let count = self.fds.len() as libc::nfds_t;
        // SAFETY: the list is `count` entries long and ours alone; timeout and mask are read only.
        let ready = unsafe { libc::ppoll(self.fds.as_mut_ptr(), count, &raw const timeout, ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(Readiness::default()),
                _ => Err(error),
            };
        }
        let (of_ports, of_wake) = self.fds.split_at(ports.len());
        Ok(Readiness {
            readable: of_ports.iter().filter(|fd| fd.revents & libc::POLLIN != 0).count(),
            woken: of_wake.iter().any(|fd| fd.revents & libc::POLLIN != 0),
        })
    }
}
