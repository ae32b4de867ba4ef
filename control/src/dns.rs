//! The service discovery server: answers for the cluster domain, and asks others for the rest.
//!
//! Receives the desired state as values and never imports a source, netlink or the reconciler. The records are
//! those of the Kubernetes DNS-based service discovery specification 1.1.0 ([`zone`] says how); the messages
//! are hickory's. The server has a thread of its own, so that queries and publishing do not wait for one
//! another, and the zone is swapped whole: a query takes no lock.
//!
//! It forwards for whoever reaches it and has no list of clients: listen only where clients are trusted.

mod counters;
mod forward;
mod respond;
mod server;
mod tcp;
pub mod zone;

pub use self::counters::Counters;
pub use self::forward::{DNS_PORT, ForwardError, Upstream};
pub use self::server::{Config, DnsError, Server};
