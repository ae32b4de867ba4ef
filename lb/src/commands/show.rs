//! `flowgate show`: an answer as a table or as JSON. Never computes what it shows.

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};

use crate::admin::{self, Request, Response};
use crate::cli::{Output, ShowArgs, What};

/// Asks and prints.
#[expect(clippy::print_stdout, reason = "printing is what it is for")]
pub(crate) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let request = match args.what {
        What::Services => Request::Services,
        What::Backends => Request::Backends,
        What::Flows if args.top.is_some() => {
            Request::TopTalkers { by: args.by, limit: args.top.unwrap_or_default() }
        }
        What::Flows => Request::Flows { limit: args.limit },
        What::Neighbours => Request::Neighbours,
        What::Workers => Request::Workers,
        What::Drops => Request::Drops,
        What::Tables => Request::Tables,
    };
    let response = admin::request(&args.socket, request)?;
    match args.output {
        Output::Json => println!("{}", json(&response)?),
        Output::Table => println!("{}", table(&response)),
    }
    Ok(ExitCode::SUCCESS)
}

fn json(response: &Response) -> serde_json::Result<String> {
    match response {
        Response::Services(rows) => serde_json::to_string_pretty(rows),
        Response::Backends(rows) => serde_json::to_string_pretty(rows),
        Response::Flows(flows) => serde_json::to_string_pretty(flows),
        Response::TopTalkers(rows) => serde_json::to_string_pretty(rows),
        Response::Neighbours(rows) => serde_json::to_string_pretty(rows),
        Response::Workers(rows) => serde_json::to_string_pretty(rows),
        Response::Drops(rows) => serde_json::to_string_pretty(rows),
        Response::Tables(tables) => serde_json::to_string_pretty(tables),
        Response::Error(error) => serde_json::to_string_pretty(error),
    }
}

fn table(response: &Response) -> String {
    match response {
        Response::Services(rows) => grid(
            ["SERVICE", "PROTOCOL", "FRONTENDS", "BACKENDS", "FLOWS"],
            &[3, 4],
            rows.iter().map(|s| {
                let frontends: Vec<_> =
                    s.frontends.iter().map(|f| format!("{} {}{}", f.kind, f.address, kept(f))).collect();
                let [backends, flows] = [s.backends, s.flows].map(|n| n.to_string());
                [s.service.clone(), s.protocol.clone(), frontends.join("\n"), backends, flows]
            }),
        ),
        Response::Backends(rows) => grid(
            ["SERVICE", "BACKEND", "STATE", "FLOWS", "PACKETS", "BYTES"],
            &[3, 4, 5],
            rows.iter().map(|b| {
                let [packets, bytes] = [b.packets, b.bytes].map(|n| n.to_string());
                [b.service.clone(), b.address.clone(), b.state.clone(), b.flows.to_string(), packets, bytes]
            }),
        ),
        Response::Flows(flows) => {
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
        Response::TopTalkers(rows) => grid(
            ["USER", "FLOWS", "UNANSWERED", "SOURCE PORTS", "BYTES"],
            &[1, 2, 3, 4],
            rows.iter().map(|u| {
                let [flows, unanswered, ports] =
                    [u.flows, u.unanswered, u.source_ports].map(|n| n.to_string());
                [u.name.clone(), flows, unanswered, ports, u.bytes.to_string()]
            }),
        ),
        Response::Neighbours(rows) => grid(
            ["NEIGHBOUR", "INTERFACE", "ETHERNET", "MTU"],
            &[3],
            rows.iter().map(|n| {
                let mac = n.mac.clone().unwrap_or_else(|| "(unresolved)".into());
                [n.address.clone(), n.interface.clone(), mac, n.mtu.to_string()]
            }),
        ),
        Response::Workers(rows) => {
            let body = grid(
                ["WORKER", "CORE", "STATE", "QUEUES", "RECEIVED", "SENT", "DROPPED", "NEW FLOWS"],
                &[4, 5, 6, 7],
                rows.iter().map(|w| {
                    let queue = |q: &admin::view::Queue| {
                        let fell_back = if q.fell_back.is_some() { ", fallen back" } else { "" };
                        format!(
                            "{} {} ({} XDP, {}, {}{fell_back})",
                            q.interface, q.queue, q.xdp, q.mode, q.proof
                        )
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
        Response::Drops(rows) => grid(
            ["AT", "REASON", "PACKETS", "MEANING"],
            &[2],
            rows.iter()
                .filter(|d| d.packets > 0)
                .map(|d| [d.at.clone(), d.reason.clone(), d.packets.to_string(), d.meaning.clone()]),
        ),
        Response::Tables(t) => {
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
        Response::Error(error) => error.clone(),
    }
}

/// What there is to say of interfaces besides a word, once each.
fn remarks(workers: &[admin::view::Worker]) -> Vec<String> {
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

fn kept(frontend: &admin::view::Frontend) -> &'static str {
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
