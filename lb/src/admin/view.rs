//! What `flowgate show` shows, as plain values. The field names are those of `-o json`: they are API.

use serde::{Deserialize, Serialize};

/// One port of one Service.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Service {
    pub(crate) service: String,
    pub(crate) protocol: String,
    pub(crate) frontends: Vec<Frontend>,
    /// Seconds that a client stays with its backend after its last connection, with session affinity.
    pub(crate) affinity_s: Option<u64>,
    pub(crate) backends: usize,
    pub(crate) flows: usize,
}

/// One address and port that clients aim at.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Frontend {
    pub(crate) kind: String,
    pub(crate) address: String,
    /// For clients outside: `always`, or `keep-client`.
    pub(crate) source_nat: String,
    /// The client ranges that may reach it; `None`: all.
    pub(crate) allowed: Option<Vec<String>>,
}

/// One endpoint of one Service port.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Backend {
    pub(crate) service: String,
    pub(crate) address: String,
    /// `active` if it takes new flows; `draining` if it only keeps those that it has, as one that terminates; `removed` if it
    /// is no endpoint any more and old flows still use it.
    pub(crate) state: String,
    pub(crate) flows: usize,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Some flows, and how many there are.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Flows {
    pub(crate) total: usize,
    pub(crate) capacity: u64,
    pub(crate) flows: Vec<Flow>,
}

/// One flow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Flow {
    pub(crate) protocol: String,
    pub(crate) client: String,
    pub(crate) vip: String,
    pub(crate) snat: String,
    pub(crate) backend: String,
    pub(crate) state: String,
    pub(crate) idle_ms: u32,
    pub(crate) packets: u64,
    pub(crate) reply_packets: u64,
    pub(crate) bytes: u64,
    pub(crate) reply_bytes: u64,
}

/// A client, Service, backend or source address with its flows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TopTalker {
    /// An address, a backend or a Service port.
    pub(crate) name: String,
    pub(crate) flows: usize,
    /// Datagram flows without a reply, and connections whose handshake is not complete.
    pub(crate) unanswered: usize,
    /// Distinct source addresses and ports that backends see.
    pub(crate) source_ports: usize,
    pub(crate) bytes: u64,
}

/// One next hop.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Neighbour {
    pub(crate) address: String,
    pub(crate) interface: String,
    /// `None` while it is unresolved.
    pub(crate) mac: Option<String>,
    pub(crate) mtu: u16,
}

/// One worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Worker {
    pub(crate) worker: usize,
    pub(crate) core: Option<u64>,
    /// `starting`, `running`, or `hanging` or `dead`, when its traffic passes to the kernel.
    pub(crate) state: String,
    pub(crate) queues: Vec<Queue>,
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) drops: u64,
    pub(crate) flow_hits: u64,
    pub(crate) flows_opened: u64,
    pub(crate) flows_expired: u64,
    pub(crate) events: Vec<(String, u64)>,
}

/// One AF_XDP socket of a worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Queue {
    pub(crate) interface: String,
    pub(crate) queue: u32,
    /// `native` or `generic`, as the kernel reports.
    pub(crate) xdp: String,
    /// `zero-copy` or `copy`, as the kernel reports.
    pub(crate) mode: String,
    /// Whether full-size packets are proven to arrive: `proven`, `unproven`, `path` (they arrive in no mode) or `off` (not
    /// tried).
    #[serde(default)]
    pub(crate) proof: String,
    /// Which neighbour replied, or why nothing is known.
    #[serde(default)]
    pub(crate) proof_detail: String,
    /// Why the interface works in a slower mode than its fastest; `None` if it does not.
    #[serde(default)]
    pub(crate) fell_back: Option<String>,
}

/// Packets that were not forwarded, for one reason.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Drop {
    /// `xdp`, `socket` or `worker`.
    pub(crate) at: String,
    pub(crate) reason: String,
    pub(crate) packets: u64,
    pub(crate) meaning: String,
}

/// The published generation.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Tables {
    pub(crate) generation: u64,
    pub(crate) source: String,
    pub(crate) services: usize,
    pub(crate) frontends: usize,
    pub(crate) backends: usize,
    pub(crate) next_hops: usize,
    pub(crate) snat_addresses: Vec<String>,
    pub(crate) snat_ports: usize,
    pub(crate) flow_entries_used: usize,
    pub(crate) flow_capacity: u64,
    pub(crate) flow_table_bytes: usize,
    pub(crate) retired_generations: usize,
    /// Services whose new flows were refused in the last ten minutes.
    #[serde(default)]
    pub(crate) short: Vec<String>,
    pub(crate) report: Vec<String>,
}
