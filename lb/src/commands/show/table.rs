//! Responses as tables for people. Computes nothing beyond their layout.

use comfy_table::{CellAlignment, Table, presets};

use crate::admin::{Response, view};

pub(super) fn table(response: &Response) -> String {
    match response {
        Response::Services(rows) => services(rows),
        Response::Backends(rows) => backends(rows),
        Response::Flows(view) => flows(view),
        Response::TopTalkers(rows) => top_talkers(rows),
        Response::Neighbours(rows) => neighbours(rows),
        Response::Workers(rows) => workers(rows),
        Response::Drops(rows) => drops(rows),
        Response::Tables(view) => tables(view),
        Response::Error(error) => error.clone(),
    }
}

fn services(rows: &[view::Service]) -> String {
    grid(
        ["SERVICE", "PROTOCOL", "FRONTENDS", "BACKENDS", "FLOWS"],
        &[3, 4],
        rows.iter().map(|s| {
            let frontends: Vec<_> = s
                .frontends
                .iter()
                .map(|f| format!("{} {}{}", f.kind, f.address, client_preserved(f)))
                .collect();
            let [backends, flows] = [s.backends, s.flows].map(|n| n.to_string());
            [s.service.clone(), s.protocol.clone(), frontends.join("\n"), backends, flows]
        }),
    )
}

fn backends(rows: &[view::Backend]) -> String {
    grid(
        ["SERVICE", "BACKEND", "STATE", "FLOWS", "PACKETS", "BYTES"],
        &[3, 4, 5],
        rows.iter().map(|b| {
            let [packets, bytes] = [b.packets, b.bytes].map(|n| n.to_string());
            [b.service.clone(), b.address.clone(), b.state.clone(), b.flows.to_string(), packets, bytes]
        }),
    )
}

fn flows(flows: &view::Flows) -> String {
    let body = grid(
        ["PROTOCOL", "CLIENT", "VIP", "SNAT", "BACKEND", "STATE", "IDLE", "PACKETS", "BYTES"],
        &[6, 7, 8],
        flows.flows.iter().map(|f| {
            let f = f.clone();
            let idle = format!("{:.1} s", f64::from(f.idle_ms) / 1000.0);
            let packets = format!("{} / {}", f.packets, f.reply_packets);
            let bytes = format!("{} / {}", f.bytes, f.reply_bytes);
            [f.protocol, f.client, f.vip, f.snat, f.backend, f.state, idle, packets, bytes]
        }),
    );
    format!("{body}\n{} of {} flows, room for {}", flows.flows.len(), flows.total, flows.capacity)
}

fn top_talkers(rows: &[view::TopTalker]) -> String {
    grid(
        ["USER", "FLOWS", "UNANSWERED", "SOURCE PORTS", "BYTES"],
        &[1, 2, 3, 4],
        rows.iter().map(|u| {
            let [flows, unanswered, ports] = [u.flows, u.unanswered, u.source_ports].map(|n| n.to_string());
            [u.name.clone(), flows, unanswered, ports, u.bytes.to_string()]
        }),
    )
}

fn neighbours(rows: &[view::Neighbour]) -> String {
    grid(
        ["NEIGHBOUR", "INTERFACE", "ETHERNET", "MTU"],
        &[3],
        rows.iter().map(|n| {
            let mac = n.mac.clone().unwrap_or_else(|| "(unresolved)".into());
            [n.address.clone(), n.interface.clone(), mac, n.mtu.to_string()]
        }),
    )
}

fn workers(rows: &[view::Worker]) -> String {
    let body = grid(
        ["WORKER", "CORE", "STATE", "QUEUES", "RECEIVED", "SENT", "DROPPED", "NEW FLOWS"],
        &[4, 5, 6, 7],
        rows.iter().map(|w| {
            let queue = |q: &view::Queue| {
                let fell_back = if q.fell_back.is_some() { ", fallen back" } else { "" };
                format!("{} {} ({} XDP, {}, {}{fell_back})", q.interface, q.queue, q.xdp, q.mode, q.proof)
            };
            let queues: Vec<_> = w.queues.iter().map(queue).collect();
            let core = w.core.map_or_else(|| "any".into(), |core| core.to_string());
            let [rx, tx, drops, opened] =
                [w.rx_packets, w.tx_packets, w.drops, w.flows_opened].map(|n| n.to_string());
            [w.worker.to_string(), core, w.state.clone(), queues.join("\n"), rx, tx, drops, opened]
        }),
    );
    let remarks = remarks(rows);
    if remarks.is_empty() { body } else { format!("{body}\n{}", remarks.join("\n")) }
}

fn drops(rows: &[view::Drop]) -> String {
    grid(
        ["AT", "REASON", "PACKETS", "MEANING"],
        &[2],
        rows.iter()
            .filter(|d| d.packets > 0)
            .map(|d| [d.at.clone(), d.reason.clone(), d.packets.to_string(), d.meaning.clone()]),
    )
}

fn tables(t: &view::Tables) -> String {
    let mut rows = vec![
        ["generation".into(), t.generation.to_string()],
        ["source".into(), t.source.clone()],
        ["services".into(), t.services.to_string()],
        ["frontends".into(), t.frontends.to_string()],
        ["backends".into(), t.backends.to_string()],
        ["next hops".into(), t.next_hops.to_string()],
        ["SNAT".into(), format!("{} x {} ports", t.snat_addresses.join(", "), t.snat_ports)],
        [
            "flow table".into(),
            format!(
                "{} entries of {} flows, {} MiB",
                t.flow_entries_used,
                t.flow_capacity,
                t.flow_table_bytes >> 20
            ),
        ],
        ["retired generations".into(), t.retired_generations.to_string()],
    ];
    rows.extend(t.short.iter().map(|line| ["short".into(), line.clone()]));
    rows.extend(t.report.iter().map(|line| ["report".into(), line.clone()]));
    grid(["", ""], &[], rows.into_iter())
}

/// Why interfaces are not proven or do not work in a better mode, each reason once.
fn remarks(workers: &[view::Worker]) -> Vec<String> {
    let mut remarks: Vec<String> = Vec::new();
    for queue in workers.iter().flat_map(|worker| &worker.queues) {
        let detail = (queue.proof != "proven").then_some(&queue.proof_detail);
        for why in queue.fell_back.iter().chain(detail) {
            let remark = format!("{}: {why}", queue.interface);
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
        }
    }
    remarks
}

fn client_preserved(frontend: &view::Frontend) -> &'static str {
    if frontend.source_nat == "keep-client" { " (client address kept)" } else { "" }
}

fn grid<const N: usize>(
    header: [&str; N],
    numbers: &[usize],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}
