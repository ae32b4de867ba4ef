//! Compiling only what may have changed. Never differs from compiling everything.

use std::sync::Arc;

use flowgate_tables::Tables;

use super::addresses::NodeContext;
use super::services::ServiceMemo;
use super::{CompileConfig, compile_sources, net, next_generation, services};
use crate::model::{Desired, NetState};
use crate::report::{Entry, Report};

/// Remembers the last input and output, so that a neighbour change does not look at any Service.
#[derive(Debug)]
pub struct Compiler {
    config: CompileConfig,
    tables: Tables,
    last: Option<Last>,
    memo: ServiceMemo,
    /// What `snat_overlaps` said of the last tables.
    overlaps: Vec<Entry>,
}

/// What the service table was last compiled from, and what was said of it.
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

    /// The last tables.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The config it compiles with.
    pub const fn config(&self) -> &CompileConfig {
        &self.config
    }

    /// As [`super::compile`]. A `desired` that is the same `Arc` as before is taken to be unchanged.
    pub fn compile(&mut self, desired: &Arc<Desired>, net: &NetState) -> (Tables, Report) {
        let node_context = NodeContext::new(desired, net, &self.config);
        let known = self
            .last
            .take()
            .filter(|last| Arc::ptr_eq(&last.desired, desired) && last.node_context == node_context);
        let known_services = known.is_some();
        let (services, last) = match known {
            Some(last) => (Arc::clone(&self.tables.services), last),
            None => {
                let (services, entries) = services::compile(
                    desired,
                    &node_context,
                    &self.config,
                    &mut self.memo,
                    &self.tables.services,
                );
                (services, Last { desired: Arc::clone(desired), node_context, entries })
            }
        };
        let mut entries = last.entries.clone();
        let sources = compile_sources(&last.node_context, &self.tables.sources);
        self.last = Some(last);
        let (routing, more) = net::compile_routing(net, &self.tables.routing);
        entries.extend(more);
        let (snat, more) = net::compile_snat(net, &self.config, &self.tables.snat);
        entries.extend(more);
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
