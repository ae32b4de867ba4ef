//! Compiles only what may have changed. The result is the same as of compiling everything (P1003).
//!
//! There are two parts. The [`ServicePart`] follows from the objects and takes long in a large cluster; the [`NetworkPart`]
//! follows from the kernel's state and is quick. Each can be compiled while the other is.

use std::sync::Arc;

use flowgate_tables::{Routing, ServiceTable, SnatPool, SourceClassifier, Tables};

use super::addresses::NodeContext;
use super::services::{ServiceInput, ServiceMemo};
use super::{CompileConfig, compile_sources, net, net_budget, next_generation, services};
use crate::model::{Desired, NetState};
use crate::report::{Entry, Report};

/// Compiles both parts one after the other.
#[derive(Debug)]
pub struct Compiler {
    tables: Tables,
    service_part: ServicePart,
}

impl Compiler {
    /// Starts from nothing.
    pub fn new(config: CompileConfig) -> Self {
        let tables = Tables::empty();
        let service_part = ServicePart::new(Arc::new(config), &tables);
        Self { tables, service_part }
    }

    /// The last tables.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The configuration.
    pub fn config(&self) -> &CompileConfig {
        &self.service_part.config
    }

    /// Compiles by another configuration from now on. Ids of Services and backends stay, so that flows go on.
    pub fn reconfigure(&mut self, config: CompileConfig) {
        // What is remembered follows from the old one.
        self.service_part = ServicePart::new(Arc::new(config), &self.tables);
    }

    /// As [`super::compile`]. A `desired` that is the same `Arc` as before is taken for unchanged.
    pub fn compile(&mut self, desired: &Arc<Desired>, net: &NetState) -> (Tables, Report) {
        let network = NetworkPart::compile(desired, net, self.config(), &self.tables);
        let services = self.service_part.compile(desired, net, &network.snat);
        self.tables = assemble(&self.tables, &network, &services);
        let mut entries = Vec::new();
        self.service_part.report_into(&mut entries, &network.entries);
        (self.tables.clone(), Report { entries })
    }
}

/// Numbers the tables of both parts; the number is that of `previous` if both are unchanged.
pub(crate) fn assemble(
    previous: &Tables,
    network: &NetworkPart,
    CompiledServices { services, sources }: &CompiledServices,
) -> Tables {
    let next = Tables {
        generation: 0,
        services: Arc::clone(services),
        routing: Arc::clone(&network.routing),
        snat: Arc::clone(&network.snat),
        sources: Arc::clone(sources),
        reverse_paths: Arc::default(),
    };
    next_generation(previous, next)
}

/// What follows from the kernel's network state, and from the Node object of this machine.
#[derive(Clone, Debug)]
pub(crate) struct NetworkPart {
    routing: Arc<Routing>,
    pub(crate) snat: Arc<SnatPool>,
    /// What is wrong with interfaces and routes.
    pub(crate) entries: Vec<Entry>,
}

impl NetworkPart {
    /// What equals its part of `previous` is shared with it.
    pub(crate) fn compile(
        desired: &Desired,
        net: &NetState,
        config: &CompileConfig,
        previous: &Tables,
    ) -> Self {
        let (net, mut entries) = net_budget::fitting(net, &config.budgets);
        let (routing, more) = net::compile_routing(&net, &previous.routing);
        entries.extend(more);
        let node_context = NodeContext::new(desired, &net, config);
        let (snat, more) = net::compile_snat(&net, &node_context, config, &previous.snat);
        entries.extend(more);
        Self { routing, snat, entries }
    }
}

/// What follows from the objects, and from the node's own addresses.
#[derive(Clone, Debug)]
pub(crate) struct CompiledServices {
    pub(crate) services: Arc<ServiceTable>,
    sources: Arc<SourceClassifier>,
}

impl CompiledServices {
    /// Those of a generation.
    pub(crate) fn of(tables: &Tables) -> Self {
        Self { services: Arc::clone(&tables.services), sources: Arc::clone(&tables.sources) }
    }
}

/// Compiles the Services. Remembers the last input and output, so that a neighbour change does not look at any Service.
#[derive(Debug)]
pub(crate) struct ServicePart {
    config: Arc<CompileConfig>,
    compiled: CompiledServices,
    last: Option<Last>,
    memo: ServiceMemo,
    /// The findings of `snat_overlaps` for the last Services and this pool.
    overlaps: Vec<Entry>,
    snat: Arc<SnatPool>,
}

/// What the service table was last compiled from, and its findings.
#[derive(Debug)]
struct Last {
    desired: Arc<Desired>,
    node_context: NodeContext,
    entries: Vec<Entry>,
}

impl ServicePart {
    /// Remembers nothing but the numbers in `previous`: backends and Services keep theirs.
    pub(crate) fn new(config: Arc<CompileConfig>, previous: &Tables) -> Self {
        Self {
            config,
            compiled: CompiledServices::of(previous),
            last: None,
            memo: ServiceMemo::default(),
            overlaps: Vec::new(),
            snat: Arc::clone(&previous.snat),
        }
    }

    /// A `desired` that is the same `Arc` as before is taken for unchanged.
    pub(crate) fn compile(
        &mut self,
        desired: &Arc<Desired>,
        net: &NetState,
        snat: &Arc<SnatPool>,
    ) -> CompiledServices {
        // What does not fit is a finding of the network's part.
        let (net, _) = net_budget::fitting(net, &self.config.budgets);
        let node_context = NodeContext::new(desired, &net, &self.config);
        let is_known = |last: &Last| Arc::ptr_eq(&last.desired, desired) && last.node_context == node_context;
        // A neighbour or route that changed leaves both the same: no Service is looked at.
        let known = self.last.as_ref().is_some_and(is_known);
        if !known {
            let input = ServiceInput { desired, node_context: &node_context, config: &self.config };
            let (services, entries) = services::compile(input, &mut self.memo, &self.compiled.services);
            let sources = compile_sources(&node_context, &self.compiled.sources);
            self.compiled = CompiledServices { services, sources };
            self.last = Some(Last { desired: Arc::clone(desired), node_context, entries });
        }
        if !known || !Arc::ptr_eq(&self.snat, snat) {
            self.overlaps = services::snat_overlaps(desired, &self.compiled.services, snat);
            self.snat = Arc::clone(snat);
        }
        self.compiled.clone()
    }

    /// Adds the findings of the last compilation, and those of the network in their place among them.
    pub(crate) fn report_into(&self, entries: &mut Vec<Entry>, network: &[Entry]) {
        entries.extend(self.last.iter().flat_map(|last| &last.entries).cloned());
        entries.extend_from_slice(network);
        entries.extend_from_slice(&self.overlaps);
    }
}
