//! Services, their frontends and the sets of backends behind them.

mod build;
mod lookup;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flowgate_wire::{L4Port, Protocol};
use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use self::lookup::LookupTable;
use crate::backend::BackendTable;
use crate::id::{BackendId, ServiceId};
use crate::source::{PerSourceClass, SourceClass};
use crate::spec::{EmptyAction, FrontendKind, ServiceName, ServiceSpec, SourceNat};

/// Destination of clients: a VIP, or an address of the node for a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: L4Port,
}

/// The backends that new flows to a frontend are spread over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    /// In the order of the lookup table, which has their positions: it is shared with other sets, whose backends have the
    /// same addresses.
    members: Box<[BackendId]>,
    /// The same, ascending; `None` if they are so in `members`, as those of a new Service.
    ascending: Option<Box<[BackendId]>>,
    lookup_table: Arc<LookupTable>,
}

impl BackendSet {
    /// The backend for a flow with this hash; `None` when the set is empty.
    #[inline]
    pub fn pick(&self, maglev_hash: u32) -> Option<BackendId> {
        self.members.get(self.lookup_table.pick(maglev_hash)?).copied()
    }

    /// All backends of the set, ascending by address and port.
    pub fn members(&self) -> &[BackendId] {
        &self.members
    }

    /// Whether the backend is in the set.
    #[inline]
    pub fn contains(&self, backend: BackendId) -> bool {
        // Sets of a thousand members take ten comparisons, once per flow with affinity.
        self.ascending.as_ref().unwrap_or(&self.members).binary_search(&backend).is_ok()
    }
}

/// One address and port that clients send to, with everything that a new flow needs.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Protocol, address and port.
    pub key: ServiceKey,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// The Service port it leads to.
    pub service: ServiceId,
    /// The traffic policy for each class of sources.
    pub policies: PerSourceClass<TrafficPolicy>,
    /// Client ranges that may reach it; `None`: all.
    pub allowed: Option<Arc<[IpNet]>>,
    /// Timeout of session affinity, for a Service that has it (P701).
    pub affinity: Option<Duration>,
}

impl Frontend {
    /// The policy for new flows from sources of this class.
    #[inline]
    pub const fn policy(&self, class: SourceClass) -> &TrafficPolicy {
        self.policies.of(class)
    }

    /// Whether the client may reach it (P401).
    #[inline]
    pub fn admits(&self, client: IpAddr) -> bool {
        self.allowed.as_ref().is_none_or(|ranges| ranges.iter().any(|net| net.contains(&client)))
    }
}

/// What happens to new flows to a frontend.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// The backends to choose from.
    pub backends: Arc<BackendSet>,
    /// Whether the source of a flow is replaced.
    pub source_nat: SourceNat,
    /// What happens to a new flow when the set is empty.
    pub when_empty: EmptyAction,
}

/// Why a destination without a frontend is not left to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmatchedDestination {
    /// Another port of a cluster IP that is in use (P505).
    ClusterIp,
    /// An unallocated address in a range of cluster IPs (P506).
    Unallocated,
}

/// One port of one Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its number.
    pub id: ServiceId,
    /// The description it was built from.
    pub spec: Arc<ServiceSpec>,
    /// Its backend sets, in the order of the description.
    pub backend_sets: Vec<Arc<BackendSet>>,
}

/// Why (a part of) a description is left out of the tables. Names the Service that has to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Two Service ports claim the same address, port and protocol; the first keeps it.
    #[error("{loser}: {} {}:{} belongs to {winner} already", key.protocol, key.addr, key.port)]
    FrontendTaken {
        /// The Service that has it, by the order of names.
        winner: ServiceName,
        /// The Service that does not get it.
        loser: ServiceName,
        /// The contested key.
        key: ServiceKey,
    },
    /// Two descriptions with one name and protocol; the second is refused.
    #[error("{name} ({protocol}) is described twice")]
    Duplicate {
        /// The name.
        name: ServiceName,
        /// The protocol.
        protocol: Protocol,
    },
    /// A frontend's policy names an endpoint set that its Service does not have.
    #[error("{name}: frontend {addr}:{port} names endpoint set {set}, which does not exist")]
    NoSuchSet {
        /// The Service.
        name: ServiceName,
        /// The frontend's address.
        addr: IpAddr,
        /// The frontend's port.
        port: L4Port,
        /// The position it names.
        set: usize,
    },
    /// There are more backends than may be: these endpoints get no new flow.
    #[error("{name}: {left_out} endpoints beyond the most backends are left out")]
    TooManyBackends {
        /// The Service.
        name: ServiceName,
        /// How many of its endpoints have no slot.
        left_out: usize,
    },
}

/// All Services, their frontends by key, and their backends by slot.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    frontends: HashMap<ServiceKey, Frontend>,
    services: Vec<Arc<Service>>,
    positions: HashMap<ServiceId, usize>,
    ids: HashMap<(ServiceName, Protocol), ServiceId>,
    next_id: u32,
    backends: BackendTable,
    /// Backends whose replies go to clients with preserved addresses.
    reply_sources: HashSet<ServiceKey>,
    cluster_ips: HashSet<IpAddr>,
    /// The addresses of all frontends except NodePorts.
    vips: HashSet<IpAddr>,
    service_cidrs: Vec<IpNet>,
    lookup_table_bytes: usize,
}

impl ServiceTable {
    /// The frontend for a packet with this destination.
    #[inline]
    pub fn frontend(&self, key: &ServiceKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.frontends.values()
    }

    /// Whether a packet with this source may be a reply to a client whose address is preserved.
    pub fn is_reply_source(&self, source: &ServiceKey) -> bool {
        self.reply_sources.contains(source)
    }

    /// Backends whose replies go to clients with preserved addresses, in no order.
    pub fn reply_sources(&self) -> impl Iterator<Item = &ServiceKey> {
        self.reply_sources.iter()
    }

    /// All Services by name.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The Service with this number.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(*self.positions.get(&id)?).map(AsRef::as_ref)
    }

    /// Why a destination without a frontend is not left to the kernel, if so.
    pub fn unmatched(&self, addr: IpAddr) -> Option<UnmatchedDestination> {
        // P505 before P506: the address of a Service lies within a range of cluster IPs as well.
        if self.cluster_ips.contains(&addr) {
            Some(UnmatchedDestination::ClusterIp)
        } else if self.service_cidrs.iter().any(|net| net.contains(&addr)) {
            Some(UnmatchedDestination::Unallocated)
        } else {
            None
        }
    }

    /// Whether the address is that of a frontend, with any port, that is no NodePort.
    pub fn is_vip(&self, addr: IpAddr) -> bool {
        self.vips.contains(&addr)
    }

    /// All cluster IPs in use, in no order.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.iter().copied()
    }

    /// The ranges that cluster IPs are taken from.
    pub fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    /// Memory of the Maglev tables, in bytes.
    pub const fn lookup_table_bytes(&self) -> usize {
        self.lookup_table_bytes
    }

    /// All backends.
    pub fn backends(&self) -> &BackendTable {
        &self.backends
    }
}

#[cfg(test)]
mod tests;
