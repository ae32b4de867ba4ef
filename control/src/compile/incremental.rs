//! Compiles only what may have changed. The result is the same as of compiling everything (P1003).

use std::sync::Arc;

use flowgate_tables::Tables;

use super::addresses::NodeContext;
use super::services::{ServiceInput, ServiceMemo};
use super::{CompileConfig, compile_sources, net, net_budget, next_generation, services};
use crate::model::{Desired, NetState};
use crate::report::{Entry, Report};

/// Remembers the last input and output, so that a neighbour change does not look at any Service.
#[derive(Debug)]
pub struct Compiler {
    config: CompileConfig,
    tables: Tables,
    last: Option<Last>,
    memo: ServiceMemo,
    /// The findings of `snat_overlaps` for the last tables.
    overlaps: Vec<Entry>,
}

/// What the service table was last compiled from, and its findings.
#[derive(Debug)]
struct Last {
    desired: Arc<Desired>,
    node_context: NodeContext,
    entries: Vec<Entry>,
}

impl Compiler {
    /// Starts from nothing.
    pub fn new(config: CompileConfig) -> Self {
        Self {
            config,
            tables: Tables::empty(),
            last: None,
            memo: ServiceMemo::default(),
            overlaps: Vec::new(),
        }
    }

    /// Compiles by another configuration from now on. Ids of Services and backends stay, so that flows go on.
    pub fn reconfigure(&mut self, config: CompileConfig) {
        self.config = config;
        // What is remembered follows from the old one.
        self.last = None;
        self.memo = ServiceMemo::default();
    }

    /// The last tables.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The configuration.
    pub const fn config(&self) -> &CompileConfig {
        &self.config
    }

    /// As [`super::compile`]. A `desired` that is the same `Arc` as before is taken for unchanged.
    pub fn compile(&mut self, desired: &Arc<Desired>, net: &NetState) -> (Tables, Report) {
        let (net, unfit) = net_budget::fitting(net, &self.config.budgets);
        let node_context = NodeContext::new(desired, &net, &self.config);
        let known = self
            .last
            .take()
            .filter(|last| Arc::ptr_eq(&last.desired, desired) && last.node_context == node_context);
        // A neighbour or route that changed leaves both the same: no Service is looked at.
        let known_services = known.is_some();
        let (services, last) = match known {
            Some(last) => (Arc::clone(&self.tables.services), last),
            None => {
                let input = ServiceInput { desired, node_context: &node_context, config: &self.config };
                let (services, entries) = services::compile(input, &mut self.memo, &self.tables.services);
                (services, Last { desired: Arc::clone(desired), node_context, entries })
            }
        };
        let mut entries = last.entries.clone();
        let sources = compile_sources(&last.node_context, &self.tables.sources);
        entries.extend(unfit);
        let (routing, more) = net::compile_routing(&net, &self.tables.routing);
        entries.extend(more);
        let (snat, more) = net::compile_snat(&net, &last.node_context, &self.config, &self.tables.snat);
        entries.extend(more);
        self.last = Some(last);
        let same = Arc::ptr_eq(&services, &self.tables.services) && Arc::ptr_eq(&snat, &self.tables.snat);
        if !same || !known_services {
            self.overlaps = services::snat_overlaps(desired, &services, &snat);
        }
        entries.extend(self.overlaps.iter().cloned());
        self.tables =
            next_generation(&self.tables, Tables { generation: 0, services, routing, snat, sources });
        (self.tables.clone(), Report { entries })
    }
}
