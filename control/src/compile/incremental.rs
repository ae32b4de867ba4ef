//! Compiling only what may have changed. Never differs from compiling everything.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::Tables;

use super::{Settings, addresses, net, next_generation, services};
use crate::model::{Desired, NetState};
use crate::report::{Entry, Report};

/// Remembers the last input and output, so that a neighbour change does not look at any Service.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    tables: Tables,
    services: Option<ServiceMemo>,
    /// What `snat_overlaps` said of the last tables.
    overlaps: Vec<Entry>,
}

#[derive(Debug)]
struct ServiceMemo {
    desired: Arc<Desired>,
    node_addresses: Vec<IpAddr>,
    entries: Vec<Entry>,
}

impl Compiler {
    /// Starts from nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings, tables: Tables::empty(), services: None, overlaps: Vec::new() }
    }

    /// The last tables.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The settings it compiles with.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// As [`super::compile`]. A `desired` that is the same `Arc` as before is taken to be unchanged.
    pub fn compile(&mut self, desired: &Arc<Desired>, net: &NetState) -> (Tables, Report) {
        let node_addresses = addresses::node_addresses(desired, net, &self.settings);
        let known = self
            .services
            .take()
            .filter(|memo| Arc::ptr_eq(&memo.desired, desired) && memo.node_addresses == node_addresses);
        let known_services = known.is_some();
        let (services, memo) = match known {
            Some(memo) => (Arc::clone(&self.tables.services), memo),
            None => {
                let (services, entries) =
                    services::compile(desired, &node_addresses, &self.settings, &self.tables.services);
                (services, ServiceMemo { desired: Arc::clone(desired), node_addresses, entries })
            }
        };
        let mut entries = memo.entries.clone();
        self.services = Some(memo);
        let (routing, more) = net::compile_routing(net, &self.tables.routing);
        entries.extend(more);
        let (snat, more) = net::compile_snat(net, &self.settings, &self.tables.snat);
        entries.extend(more);
        let same = Arc::ptr_eq(&services, &self.tables.services) && Arc::ptr_eq(&snat, &self.tables.snat);
        if !same || !known_services {
            self.overlaps = services::snat_overlaps(desired, &services, &snat);
        }
        entries.extend(self.overlaps.iter().cloned());
        self.tables = next_generation(&self.tables, Tables { generation: 0, services, routing, snat });
        (self.tables.clone(), Report { entries })
    }
}
