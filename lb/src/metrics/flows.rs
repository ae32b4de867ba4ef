//! Metrics of flows: totals and, with that detail, by Service and by backend. Walks the whole flow table, which takes long, so
//! it must not run on the control thread.

use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_flow::Flows;
use flowgate_tables::{Backend, BackendId, Service, ServiceId, Tables};

use super::families::{Families, Kind, Labels, Number};
use crate::config::MetricsDetail;

/// Adds the families of the flow table.
pub(super) fn add(families: &mut Families, table: &Flows, tables: &Tables, detail: MetricsDetail) {
    families.gauge("flowgate_flow_entries_used", "Entries of the flow table in use.", table.used_entries());
    families.gauge("flowgate_flow_capacity", "Flows that the table is made for.", table.capacity());
    families.gauge("flowgate_flow_table_bytes", "Memory of the flow table.", table.len_bytes());
    let mut by_backend: HashMap<BackendId, Load> = HashMap::new();
    let mut all = 0_u64;
    for flow in table.views() {
        all += 1;
        by_backend.entry(BackendId::from_bits(flow.backend)).or_default().add(Load {
            flows: 1,
            packets: flow.packets.iter().map(|&packets| u64::from(packets)).sum(),
            bytes: flow.bytes.iter().sum(),
        });
    }
    families.gauge("flowgate_flows", "Flows in the table.", all);
    if detail >= MetricsDetail::Services {
        add_services(families, tables, &by_backend);
    }
    if detail >= MetricsDetail::Backends {
        add_backends(families, tables, &by_backend);
    }
}

fn add_services(families: &mut Families, tables: &Tables, by_backend: &HashMap<BackendId, Load>) {
    let mut members: HashMap<ServiceId, (u64, Load)> = HashMap::new();
    for backend in tables.services.backends().iter() {
        let (count, load) = members.entry(backend.service).or_default();
        *count += 1;
        load.add(by_backend.get(&backend.id).copied().unwrap_or_default());
    }
    let row = |service: &Service| {
        let (count, load) = members.get(&service.id).copied().unwrap_or_default();
        (service_labels(service), count, load)
    };
    let rows: Vec<(Labels, u64, Load)> = tables.services.services().iter().map(|s| row(s)).collect();
    let backends = rows.iter().map(|(labels, count, _)| (labels.clone(), (*count).into()));
    families.add(Kind::Gauge, "flowgate_service_backends", "Backends of the Service port.", backends);
    let loads: Vec<_> = rows.into_iter().map(|(labels, _, load)| (labels, load)).collect();
    add_loads(families, "service", "the Service port", &loads);
}

fn add_backends(families: &mut Families, tables: &Tables, by_backend: &HashMap<BackendId, Load>) {
    let services: HashMap<ServiceId, Labels> =
        tables.services.services().iter().map(|s| (s.id, service_labels(s))).collect();
    let row = |backend: &Backend| {
        let mut labels = services.get(&backend.service).cloned().unwrap_or_default();
        labels.push(("backend", SocketAddr::new(backend.addr, backend.port.number()).to_string()));
        (labels, by_backend.get(&backend.id).copied().unwrap_or_default())
    };
    let loads: Vec<_> = tables.services.backends().iter().map(row).collect();
    add_loads(families, "backend", "the backend", &loads);
}

/// Adds gauges, not counters: flows that have ended are no longer in the sums.
fn add_loads(families: &mut Families, prefix: &str, whose: &str, loads: &[(Labels, Load)]) {
    let mut add = |what: &str, help: String, value: fn(&Load) -> u64| {
        let samples = loads.iter().map(|(labels, load)| (labels.clone(), Number::from(value(load))));
        families.add(Kind::Gauge, format!("flowgate_{prefix}_{what}"), help, samples);
    };
    add("flows", format!("Flows of {whose} now."), |load| load.flows);
    add("flow_packets", format!("Packets of the flows that {whose} has now."), |load| load.packets);
    add("flow_bytes", format!("Bytes of the flows that {whose} has now."), |load| load.bytes);
}

fn service_labels(service: &Service) -> Labels {
    let name = &service.spec.name;
    vec![
        ("namespace", name.namespace.clone()),
        ("service", name.name.clone()),
        ("port", name.port.clone()),
        ("protocol", service.spec.protocol.to_string()),
    ]
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    flows: u64,
    packets: u64,
    bytes: u64,
}

impl Load {
    const fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}
