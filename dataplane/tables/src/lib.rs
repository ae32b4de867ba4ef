//! The contract between control and workers: immutable tables, published as a whole.
//!
//! Read [`spec`] first, the desired state that control describes, then [`service`] and [`routing`], which are built from
//! it. Building checks every cross reference once, so that workers follow indices without further checks; parts that did
//! not change are shared by `Arc` with the previous generation. [`publish`] makes a generation current. Nothing is
//! edited in place, reads a clock or touches packet bytes. Ids such as P206 and D1 are defined in
//! `control/KUBERNETES.md`.
#![forbid(unsafe_code)]

pub mod backend;
pub mod budgets;
pub mod fib;
pub mod id;
pub mod maglev;
pub mod publish;
mod reverse_path;
pub mod routing;
pub mod service;
pub mod snat;
pub mod source;
pub mod spec;

use std::sync::Arc;

pub use backend::Backend;
pub use budgets::Budgets;
pub use id::{BackendId, InterfaceId, NextHopId, ServiceId};
pub use maglev::Maglev;
pub use publish::{Publisher, TablesReader};
pub use reverse_path::ReversePaths;
pub use routing::{Interface, NextHop, Routing};
pub use service::{BackendSet, Frontend, Service, ServiceTable, TrafficPolicy, UnmatchedDestination};
pub use snat::{PortSet, SnatPool};
pub use source::{PerSourceClass, SourceClass, SourceClassifier};
pub use spec::{EmptyAction, FrontendKind, SourceNat};

/// One generation of everything that workers look up.
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
    /// Which source addresses are pods of this node, and which the node itself.
    pub sources: Arc<SourceClassifier>,
    /// By which interface backends send that see their clients' addresses; follows from services and routing.
    pub reverse_paths: Arc<ReversePaths>,
}

impl Tables {
    /// The generation before the first: no Service, no route.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            services: Arc::new(ServiceTable::default()),
            routing: Arc::new(Routing::default()),
            snat: Arc::new(SnatPool::default()),
            sources: Arc::new(SourceClassifier::default()),
            reverse_paths: Arc::default(),
        }
    }

    /// The same tables, with the reverse paths that follow from the others; those of `previous` where that is the same.
    #[must_use]
    pub fn with_reverse_paths(mut self, previous: &Self) -> Self {
        let is_same = Arc::ptr_eq(&self.services, &previous.services)
            && self.routing.epoch() == previous.routing.epoch();
        self.reverse_paths = if is_same {
            Arc::clone(&previous.reverse_paths)
        } else {
            Arc::new(ReversePaths::build(&self.services, &self.routing))
        };
        self
    }
}
