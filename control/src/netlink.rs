//! What the kernel knows of the network, followed by rtnetlink in the namespace of the calling thread.
//!
//! Only the served interfaces and their VLANs matter. The kernel is asked to resolve neighbours with its own
//! ARP and neighbour discovery; nothing here invents an Ethernet address, changes a route or touches an interface.

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

/// One end of the connection to the kernel; the other is the [`Tracker`], which must run.
#[derive(Debug)]
pub struct Netlink {
    /// The network as of now.
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

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// A question was not answered.
    #[error("the kernel did not list its {what}: {error}")]
    Dump {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        error: rtnetlink::Error,
    },
}

/// Connects to the kernel and reads the state of the named interfaces, which need not exist yet.
///
/// # Errors
/// [`NetlinkError`]: there is no netlink here.
pub async fn open(interfaces: Vec<String>) -> Result<(Netlink, Tracker), NetlinkError> {
    let (resolve, requests) = mpsc::channel(REQUESTS_WAITING);
    let (tracker, state) = Tracker::open(interfaces, requests).await?;
    Ok((Netlink { state, resolve }, tracker))
}

/// How many receive queues an interface has, as sysfs of the calling process says.
///
/// # Errors
/// There is no such interface, or sysfs belongs to another network namespace.
pub fn interface_queues(name: &str) -> io::Result<usize> {
    let mut queues = 0;
    for entry in fs::read_dir(format!("/sys/class/net/{name}/queues"))? {
        queues += usize::from(entry?.file_name().as_encoded_bytes().starts_with(b"rx-"));
    }
    Ok(queues)
}

const REQUESTS_WAITING: usize = 64;
