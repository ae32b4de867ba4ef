//! Flows and source ports in use, summed by client, Service, backend or source address.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use flowgate_flow::{FlowView, TcpPhase};
use flowgate_tables::{BackendId, ServiceId, Tables};

use super::{GroupBy, view};

/// The `limit` groups with the most flows, in descending order, then by name.
pub(super) fn top(
    flows: impl Iterator<Item = FlowView>,
    tables: &Tables,
    by: GroupBy,
    limit: usize,
) -> Vec<view::TopTalker> {
    let names: HashMap<ServiceId, String> =
        tables.services.services().iter().map(|s| (s.id, s.spec.name.to_string())).collect();
    let service = |flow: &FlowView| {
        let backend = tables.services.backends().get(BackendId::from_bits(flow.backend));
        let name = backend.and_then(|backend| names.get(&backend.service)).cloned();
        name.unwrap_or_else(|| "(removed)".into())
    };
    let mut groups: HashMap<String, Usage> = HashMap::new();
    for flow in flows {
        let name = match by {
            GroupBy::Client => flow.original.src.to_string(),
            GroupBy::Service => service(&flow),
            GroupBy::Backend => SocketAddr::new(flow.reply.src, flow.reply.src_port.number()).to_string(),
            GroupBy::Snat => flow.reply.dst.to_string(),
        };
        groups.entry(name).or_default().add(&flow);
    }
    let mut rows: Vec<view::TopTalker> = groups.into_iter().map(|(name, usage)| usage.row(name)).collect();
    rows.sort_by(|a, b| (Reverse(a.flows), &a.name).cmp(&(Reverse(b.flows), &b.name)));
    rows.truncate(limit);
    rows
}

#[derive(Default)]
struct Usage {
    flows: usize,
    unanswered: usize,
    sources: HashSet<SocketAddr>,
    bytes: u64,
}

impl Usage {
    fn add(&mut self, flow: &FlowView) {
        self.flows += 1;
        let is_unanswered = flow.tcp_phase.map_or(!flow.answered, TcpPhase::is_half_open);
        self.unanswered += usize::from(is_unanswered);
        self.sources.insert(SocketAddr::new(flow.reply.dst, flow.reply.dst_port.number()));
        self.bytes += flow.bytes[0] + flow.bytes[1];
    }

    fn row(self, name: String) -> view::TopTalker {
        let Self { flows, unanswered, sources, bytes } = self;
        view::TopTalker { name, flows, unanswered, source_ports: sources.len(), bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_flow::Tick;
    use flowgate_wire::{FiveTuple, L4Port, Protocol};

    fn flow(client: &str, snat: &str, backend: &str, phase: TcpPhase) -> FlowView {
        let [client, snat, backend] = [client, snat, backend].map(|text| text.parse::<SocketAddr>().unwrap());
        let tuple = |src: SocketAddr, dst: SocketAddr| FiveTuple {
            protocol: Protocol::Tcp,
            src: src.ip(),
            dst: dst.ip(),
            src_port: L4Port::new(src.port()),
            dst_port: L4Port::new(dst.port()),
        };
        FlowView {
            original: tuple(client, "10.96.0.1:80".parse().unwrap()),
            reply: tuple(backend, snat),
            backend: 0,
            tcp_phase: Some(phase),
            answered: phase != TcpPhase::SynSent,
            is_stream: false,
            last_seen: Tick(0),
            packets: [1, 1],
            bytes: [40, 60],
        }
    }

    #[test]
    fn users_are_those_with_the_most_flows() {
        let flows = [
            flow("192.0.2.1:1000", "10.0.0.1:40000", "10.1.0.1:80", TcpPhase::Established),
            flow("192.0.2.1:1001", "10.0.0.1:40000", "10.1.0.2:80", TcpPhase::SynSent),
            flow("192.0.2.2:1000", "10.0.0.1:40001", "10.1.0.1:80", TcpPhase::SynSent),
            flow("192.0.2.3:1000", "10.0.0.2:40000", "10.1.0.1:80", TcpPhase::Established),
        ];
        let by = |by, limit| {
            let rows = top(flows.iter().cloned(), &Tables::empty(), by, limit);
            let row = |u: view::TopTalker| (u.name, u.flows, u.unanswered, u.source_ports, u.bytes);
            rows.into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(
            by(GroupBy::Client, 2),
            [("192.0.2.1".into(), 2, 1, 1, 200), ("192.0.2.2".into(), 1, 1, 1, 100)]
        );
        assert_eq!(by(GroupBy::Backend, 1), [("10.1.0.1:80".into(), 3, 1, 3, 300)]);
        assert_eq!(
            by(GroupBy::Snat, 9),
            [("10.0.0.1".into(), 3, 2, 2, 300), ("10.0.0.2".into(), 1, 0, 1, 100)]
        );
        assert_eq!(by(GroupBy::Service, 9), [("(removed)".into(), 4, 2, 3, 400)]);
    }
}
