//! Sleeping until a packet arrives. A busy worker polls its rings and does not come here.
//!
//! The kernel reports no event for a socket whose device is down or gone (`net/xdp/xsk.c:xsk_poll` returns before it looks):
//! see [`XskSocket::link_state`].
#![allow(unsafe_code, reason = "ppoll over sockets and one more descriptor, without allocating")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;
use std::{io, ptr};

use crate::XskSocket;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Number of sockets with received packets.
    pub readable: usize,
    /// The extra descriptor became readable.
    pub woken: bool,
}

/// Waits for sockets. Reuses its list, so that waiting does not allocate.
#[derive(Debug, Default)]
pub struct Poller {
    fds: Vec<libc::pollfd>,
}

impl Poller {
    /// A poller with an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until a socket has received packets, `wake` (an eventfd for example) is readable, or the timeout expires.
    ///
    /// # Errors
    ///
    /// Those of ppoll(2), except EINTR, which is an empty [`Readiness`].
    pub fn wait(
        &mut self,
        sockets: &[XskSocket],
        wake: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> io::Result<Readiness> {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        self.fds.clear();
        self.fds.extend(sockets.iter().map(|socket| entry(socket.as_fd().as_raw_fd())));
        self.fds.extend(wake.map(|fd| entry(fd.as_raw_fd())));

        // ppoll and not poll: the timeout is in nanoseconds, and a worker's may be below a millisecond.
        let timeout = libc::timespec {
            // A longer timeout than the type can express is as good as none.
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
        let (of_sockets, of_wake) = self.fds.split_at(sockets.len());
        Ok(Readiness {
            readable: of_sockets.iter().filter(|fd| fd.revents & libc::POLLIN != 0).count(),
            woken: of_wake.iter().any(|fd| fd.revents & libc::POLLIN != 0),
        })
    }
}
