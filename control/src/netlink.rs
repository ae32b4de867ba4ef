//! The kernel's links, addresses, routes and neighbours, followed by rtnetlink in the network namespace of the calling
//! thread.
//!
//! Only the served interfaces and their VLANs matter. Neighbours are resolved by the kernel's own ARP and neighbour
//! discovery, on request; beyond such requests nothing here changes the kernel's state.

mod forwarding;
#[cfg(test)]
mod fuzz;
mod kernel_state;
mod message;
mod nexthops;
mod resolve_limiter;
mod routes;
mod tracker;

use std::fs;
use std::io;

use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};

pub use self::tracker::Tracker;
use crate::model::NetState;

/// The handles to a [`Tracker`], which must run for them to work.
#[derive(Debug)]
pub struct Netlink {
    /// The newest state.
    pub state: watch::Receiver<NetState>,
    /// Where to send requests for resolution; they are limited to one per second and address.
    pub resolve: mpsc::Sender<Resolve>,
}

/// A request to resolve neighbours: to have the kernel find out their Ethernet addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// A packet waits for each of them.
    Now(Vec<NeighbourKey>),
    /// The whole list of neighbours that backends need: requested again every few seconds until resolved. Replaces the
    /// list before it.
    Periodic(Vec<NeighbourKey>),
}

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// A dump failed.
    #[error("the kernel did not list its {what}: {error}")]
    Dump {
        /// What was to be listed.
        what: &'static str,
        /// The reason.
        error: rtnetlink::Error,
    },
}

/// Connects to the kernel and reads the state of the named interfaces, which need not exist yet.
///
/// # Errors
/// [`NetlinkError`]: a socket or the first dump failed.
pub async fn open(interfaces: Vec<String>) -> Result<(Netlink, Tracker), NetlinkError> {
    let (resolve, requests) = mpsc::channel(REQUESTS_WAITING);
    let (tracker, state) = Tracker::open(interfaces, requests).await?;
    Ok((Netlink { state, resolve }, tracker))
}

/// How many receive queues an interface has, from sysfs.
///
/// # Errors
/// There is no such interface in the network namespace that sysfs was mounted in.
pub fn interface_queues(name: &str) -> io::Result<usize> {
    let mut queues = 0;
    for entry in fs::read_dir(format!("/sys/class/net/{name}/queues"))? {
        queues += usize::from(entry?.file_name().as_encoded_bytes().starts_with(b"rx-"));
    }
    Ok(queues)
}

const REQUESTS_WAITING: usize = 64;
