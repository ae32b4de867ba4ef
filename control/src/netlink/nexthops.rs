//! Events of next hop objects (`ip nexthop`); only that something changed, not what.
//!
//! The kernel lists a route that uses such an object with the object's next hops, so the objects need not be read. But
//! when an object is deleted it removes the IPv4 routes that use it without an event of their own.

use std::io;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// A socket that is subscribed to events of next hop objects. rtnetlink has no type for this group.
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

    /// Returns at the next change. Lost events (ENOBUFS) count as one, too.
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
