//! Metrics of flows: totals and, with that detail, by Service and by backend, for the Service ports with the most flows. Walks
//! the whole flow table, which takes long, so it must not run on the control thread.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;

use flowgate_flow::Flows;
use flowgate_tables::{Backend, BackendId, Service, ServiceId, Tables};

use super::families::{Families, Kind, Labels, Number};
use crate::config::MetricsDetail;

/// What is broken down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Breakdown {
    pub(crate) detail: MetricsDetail,
    /// How many Service ports are listed; 0: all.
    pub(crate) services_max: usize,
}

/// Adds the families of the flow table.
pub(super) fn add(families: &mut Families, table: &Flows, tables: &Tables, breakdown: Breakdown) {
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
    let Breakdown { detail, services_max } = breakdown;
    if detail < MetricsDetail::Services {
        return;
    }
    let services = by_service(tables, &by_backend);
    let omitted = match services_max {
        0 => 0,
        max => services.len().saturating_sub(max),
    };
    let help = "Service ports that are served and not listed, since they have the fewest flows: metrics.services_max.";
    families.gauge("flowgate_services_omitted", help, omitted);
    let listed = most_flows(services, omitted);
    add_services(families, &listed);
    if detail >= MetricsDetail::Backends {
        add_backends(families, tables, &listed, &by_backend);
    }
}

/// A Service port, its backends and what they carry.
struct ServiceLoad<'a> {
    service: &'a Service,
    backends: u64,
    load: Load,
}

fn by_service<'a>(tables: &'a Tables, by_backend: &HashMap<BackendId, Load>) -> Vec<ServiceLoad<'a>> {
    let mut members: HashMap<ServiceId, (u64, Load)> = HashMap::new();
    for backend in tables.services.backends().iter() {
        let (count, load) = members.entry(backend.service).or_default();
        *count += 1;
        load.add(by_backend.get(&backend.id).copied().unwrap_or_default());
    }
    let services = tables.services.services().iter().map(|service| {
        let (backends, load) = members.get(&service.id).copied().unwrap_or_default();
        ServiceLoad { service, backends, load }
    });
    services.collect()
}

/// All but `omitted` Service ports: those with the most flows, by name where they have as many.
fn most_flows(mut services: Vec<ServiceLoad<'_>>, omitted: usize) -> Vec<ServiceLoad<'_>> {
    if omitted > 0 {
        let first = services.len() - omitted;
        services.sort_by(|a, b| {
            let rank = |row: &ServiceLoad<'_>| Reverse(row.load.flows);
            rank(a).cmp(&rank(b)).then_with(|| a.service.spec.name.cmp(&b.service.spec.name))
        });
        services.truncate(first);
    }
    services
}

fn add_services(families: &mut Families, listed: &[ServiceLoad<'_>]) {
    let backends = listed.iter().map(|row| (service_labels(row.service), row.backends.into()));
    families.add(Kind::Gauge, "flowgate_service_backends", "Backends of the Service port.", backends);
    let loads: Vec<_> = listed.iter().map(|row| (service_labels(row.service), row.load)).collect();
    add_loads(families, "service", "the Service port", &loads);
}

fn add_backends(
    families: &mut Families,
    tables: &Tables,
    listed: &[ServiceLoad<'_>],
    by_backend: &HashMap<BackendId, Load>,
) {
    let services: HashMap<ServiceId, Labels> =
        listed.iter().map(|row| (row.service.id, service_labels(row.service))).collect();
    let row = |backend: &Backend| {
        let mut labels = services.get(&backend.service)?.clone();
        labels.push(("backend", SocketAddr::new(backend.addr, backend.port.number()).to_string()));
        Some((labels, by_backend.get(&backend.id).copied().unwrap_or_default()))
    };
    let loads: Vec<_> = tables.services.backends().iter().filter_map(row).collect();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flowgate_tables::ServiceTable;
    use flowgate_tables::spec::{ServiceName, ServiceSpec};
    use flowgate_wire::Protocol;

    use super::super::families::tests::text;
    use super::*;

    fn tables(services: u32) -> Tables {
        let spec = |n: u32| ServiceSpec {
            name: ServiceName { namespace: "shop".into(), name: format!("web-{n:05}"), port: "http".into() },
            protocol: Protocol::Tcp,
            frontends: Vec::new(),
            endpoint_sets: Vec::new(),
            serving: Vec::new(),
            affinity: None,
        };
        let specs = (0..services).map(|n| Arc::new(spec(n))).collect();
        let (services, errors) = ServiceTable::build(&ServiceTable::default(), specs, Vec::new());
        assert!(errors.is_empty(), "{errors:?}");
        Tables { services: Arc::new(services), ..Tables::empty() }
    }

    #[test]
    fn ten_thousand_services_make_a_thousand_lines() {
        let tables = tables(10_000);
        let mut services = by_service(&tables, &HashMap::new());
        for (n, row) in services.iter_mut().enumerate() {
            row.load.flows = u64::from(n == 7777);
        }
        let listed = most_flows(services, 10_000 - 256);
        assert_eq!(listed.len(), 256);
        assert_eq!(listed[0].service.spec.name.name, "web-07777", "the one with a flow");
        assert_eq!(listed[1].service.spec.name.name, "web-00000", "then by name");
        let mut families = Families::default();
        add_services(&mut families, &listed);
        let text = text(families);
        assert!(text.lines().count() < 1050 && text.len() < 128 * 1024, "{} bytes", text.len());
    }

    #[test]
    fn all_services_of_a_small_cluster_are_listed_in_their_order() {
        let tables = tables(3);
        let listed = most_flows(by_service(&tables, &HashMap::new()), 0);
        let names: Vec<_> = listed.iter().map(|row| row.service.spec.name.name.as_str()).collect();
        assert_eq!(names, ["web-00000", "web-00001", "web-00002"]);
    }
}
