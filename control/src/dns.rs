//! The DNS server for service discovery: answers for the cluster domain and forwards other names.
//!
//! The records are those of the Kubernetes DNS-based service discovery specification 1.1.0 (see [`zone`]); parsing and
//! upstreams are hickory's. The server has a thread of its own, so that queries and publishing do not wait for one
//! another, and the zone is swapped as a whole: a query takes no lock.
//!
//! It is an open resolver with no list of clients: listen only where all clients are trusted.

mod counters;
mod forward;
mod message;
mod rate_limit;
mod respond;
mod server;
mod tcp;
mod udp;
pub mod zone;

pub use self::counters::Counters;
pub use self::forward::{DNS_PORT, ForwardError, Upstream};
pub use self::rate_limit::RateLimit;
pub use self::server::{Config, DnsError, Server};
