//! The contract between control and workers: immutable tables, published whole.
//!
//! Control builds a [`Tables`] from plain descriptions ([`spec`]); building checks every cross reference
//! once, so that a worker follows indices without doubt. Parts that did not change are shared by `Arc`
//! with the previous generation. Nothing here is edited in place, reads a clock or touches packet bytes.
#![forbid(unsafe_code)]

pub mod backend;
pub mod fib;
pub mod id;
pub mod maglev;
pub mod publish;
pub mod routing;
pub mod service;
pub mod snat;
pub mod source;
pub mod spec;

use std::sync::Arc;

pub use backend::Backend;
pub use id::{BackendId, InterfaceId, NextHopId, ServiceId};
pub use maglev::Maglev;
pub use publish::{Publisher, TablesReader};
pub use routing::{Interface, NextHop, Routing};
pub use service::{BackendSet, Frontend, Service, ServiceTable, TrafficPolicy, UnmatchedDestination};
pub use snat::{PortSet, SnatPool};
pub use source::{PerSourceClass, SourceClass, SourceClassifier};
pub use spec::{EmptyAction, FrontendKind, SourceNat};

/// One generation of everything that a worker needs to decide the fate of a packet.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Counts up by one with each published generation.
    pub generation: u64,
    /// Which Services exist and which backends they have.
    pub services: Arc<ServiceTable>,
    /// Interfaces, routes and next hops.
    pub routing: Arc<Routing>,
    /// Source addresses and ports for translated flows.
    pub snat: Arc<SnatPool>,
    /// Who is a pod of this node, and who is the node.
    pub sources: Arc<SourceClassifier>,
}

impl Tables {
    /// The generation before the first: no service, no route.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            services: Arc::new(ServiceTable::default()),
            routing: Arc::new(Routing::default()),
            snat: Arc::new(SnatPool::default()),
            sources: Arc::new(SourceClassifier::default()),
        }
    }
}
