//! Notices that next hop objects (`ip nexthop`) changed. Never reads what changed.
//!
//! The kernel lists a route by such an object with the ways that the object stands for, but removes IPv4
//! routes without a word when their object is deleted.

use std::io;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// Hears of changes of next hop objects.
pub(super) struct NextHopEvents {
    socket: TokioSocket,
}

impl NextHopEvents {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(RTNLGRP_NEXTHOP)?;
        Ok(Self { socket })
    }

    /// Waits for the next change. A lost one (ENOBUFS) is one, too.
    pub(super) async fn next(&mut self) {
        if let Err(error) = self.socket.recv_from_full().await {
            tracing::debug!(%error, "events of next hops were lost");
        }
    }
}

impl std::fmt::Debug for NextHopEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NextHopEvents").finish_non_exhaustive()
    }
}

/// `enum rtnetlink_groups` in `linux/rtnetlink.h`.
const RTNLGRP_NEXTHOP: u32 = 32;
