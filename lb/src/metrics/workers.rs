//! Metrics of workers, their sockets and the XDP program.

use std::cmp::Reverse;

use flowgate_dataplane::{Counters, DropReason, Event, PassReason};
use flowgate_xsk::steering::Reason;
use flowgate_xsk::{BindMode, XdpStatistics};

use super::families::{Families, Kind, Labels, Number};
use crate::appliance::sockets::{QueueSocket, SOCKET_DROPS, SocketCount};
use crate::appliance::workers::{Restarts, WorkerSlot, Workers};

/// Adds the counters of the workers. Refused flows are listed for at most `services_max` Services, 0 for all.
pub(super) fn add_workers(families: &mut Families, workers: &Workers, hangs: u64, services_max: usize) {
    let states = (0..workers.slots.len())
        .map(|index| (worker_label(index), Number::from(workers.state(index) == "running")));
    let help = "Whether the worker runs: 0 when it hangs or is dead, and its traffic passes to the kernel.";
    families.add(Kind::Gauge, "flowgate_worker_running", help, states);
    let Restarts { panic, interface, fallback } = workers.restarts;
    let restarts = [("panic", panic), ("interface", interface), ("fallback", fallback), ("hang", hangs)]
        .map(|(reason, count)| (vec![("reason", reason.to_owned())], count.into()));
    let help = "Times that workers were started in the place of others: one after a panic, all after a change \
                of the interfaces, when one lost packets in its mode or, with the process, after a hang.";
    families.add(Kind::Counter, "flowgate_worker_restarts", help, restarts);
    let help = "Flows that were taken over from an earlier process at the start.";
    families.gauge("flowgate_flows_adopted", help, workers.adoption.flows);
    let mut refused: Vec<_> = workers.exhaustion.totals().collect();
    if services_max > 0 && refused.len() > services_max {
        refused.sort_by_key(|(.., refused)| Reverse(refused.flows));
        refused.truncate(services_max);
    }
    let refused = refused.into_iter().map(|(service, resource, refused)| {
        let labels = vec![("service", service.to_owned()), ("reason", resource.reason().name().to_owned())];
        (labels, refused.flows.into())
    });
    let help = "First packets of flows to a Service that were dropped for want of ports or of room.";
    families.add(Kind::Counter, "flowgate_refused_flows", help, refused);
    let counters: Vec<Counters> = workers.slots.iter().map(WorkerSlot::counters).collect();
    add_counters(families, &counters);
}

fn add_counters(families: &mut Families, counters: &[Counters]) {
    for event in Event::ALL {
        let samples = counters.iter().enumerate().map(|(w, c)| (worker_label(w), c.event(*event).into()));
        families.add(Kind::Counter, format!("flowgate_worker_{}", event.name()), event.meaning(), samples);
    }
    let dropped = counters.iter().enumerate().flat_map(|(worker, counters)| {
        DropReason::ALL.iter().map(move |r| (with_reason(worker, r.name()), counters.dropped(*r).into()))
    });
    let help = "Packets that ended in a worker, by reason.";
    families.add(Kind::Counter, "flowgate_worker_dropped_packets", help, dropped);
    let passed = counters.iter().enumerate().flat_map(|(worker, counters)| {
        PassReason::ALL.iter().map(move |r| (with_reason(worker, r.name()), counters.passed(*r).into()))
    });
    let help = "Packets that reached a worker and were the kernel's business, by reason.";
    families.add(Kind::Counter, "flowgate_worker_passed_packets", help, passed);
}

/// Adds modes, proofs and kernel counters of the sockets.
pub(super) fn add_sockets(families: &mut Families, workers: &Workers) {
    let sockets: Vec<_> = workers
        .slots
        .iter()
        .enumerate()
        .flat_map(|(w, slot)| slot.sockets.iter().map(move |s| (w, s)))
        .collect();
    let zero_copy = sockets
        .iter()
        .map(|(worker, socket)| (socket_labels(*worker, socket), (socket.mode == BindMode::ZeroCopy).into()));
    families.add(
        Kind::Gauge,
        "flowgate_socket_zero_copy",
        "Whether the socket works without copies.",
        zero_copy,
    );
    let mut interfaces: Vec<&str> = sockets.iter().map(|(_, socket)| socket.interface.as_str()).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    let of_interface =
        |interface: &str, value: bool| (vec![("interface", interface.to_owned())], Number::from(value));
    let proven = interfaces.iter().map(|name| of_interface(name, workers.proof(name).state == "proven"));
    let help = "Whether full-size packets are known to arrive by the interface.";
    families.add(Kind::Gauge, "flowgate_interface_proven", help, proven);
    let fell_back = interfaces.iter().map(|name| of_interface(name, workers.proof(name).fell_back.is_some()));
    let help = "Whether the interface works in a slower mode, since it lost packets in a faster one.";
    families.add(Kind::Gauge, "flowgate_interface_fell_back", help, fell_back);
    let statistics: Vec<(Labels, XdpStatistics)> = sockets
        .iter()
        .filter_map(|(worker, socket)| Some((socket_labels(*worker, socket), socket.statistics()?)))
        .collect();
    let dropped = statistics.iter().flat_map(|(labels, statistics)| {
        SOCKET_DROPS.iter().map(|(reason, _, count): &(&str, &str, SocketCount)| {
            let mut labels = labels.clone();
            labels.push(("reason", (*reason).to_owned()));
            (labels, count(statistics).into())
        })
    });
    let help = "What the kernel could not deliver to a socket or take from it, by reason.";
    families.add(Kind::Counter, "flowgate_socket_dropped_packets", help, dropped);
    let idle = statistics.iter().map(|(labels, s)| (labels.clone(), s.tx_ring_empty_descs.into()));
    let help = "Times the kernel looked for frames to send and found none.";
    families.add(Kind::Counter, "flowgate_socket_tx_ring_empty", help, idle);
}

/// Adds the counters of the XDP program.
pub(super) fn add_steering(families: &mut Families, counters: &[(Reason, u64)]) {
    let samples = counters
        .iter()
        .map(|(reason, packets)| (vec![("reason", reason.name().to_owned())], (*packets).into()));
    let help = "Packets that the XDP program sent up to a worker or passed to the kernel, by reason.";
    families.add(Kind::Counter, "flowgate_xdp_packets", help, samples);
}

fn worker_label(worker: usize) -> Labels {
    vec![("worker", worker.to_string())]
}

fn with_reason(worker: usize, reason: &str) -> Labels {
    vec![("worker", worker.to_string()), ("reason", reason.to_owned())]
}

fn socket_labels(worker: usize, socket: &QueueSocket) -> Labels {
    vec![
        ("worker", worker.to_string()),
        ("interface", socket.interface.clone()),
        ("queue", socket.queue.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::families::tests::text;
    use super::*;

    #[test]
    fn every_event_and_every_reason_of_every_worker_is_a_metric() {
        let mut first = Counters::default();
        first.add(Event::RxPackets, 5);
        let mut families = Families::default();
        add_counters(&mut families, &[first, Counters::default()]);
        let text = text(families);
        assert!(text.contains("flowgate_worker_rx_packets_total{worker=\"0\"} 5\n"), "{text}");
        for event in Event::ALL {
            assert!(text.contains(&format!("flowgate_worker_{}_total{{worker=\"1\"}} 0\n", event.name())));
        }
        for reason in DropReason::ALL.iter().map(|reason| reason.name()) {
            let line =
                format!("flowgate_worker_dropped_packets_total{{worker=\"1\",reason=\"{reason}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
        for reason in PassReason::ALL.iter().map(|reason| reason.name()) {
            let line =
                format!("flowgate_worker_passed_packets_total{{worker=\"0\",reason=\"{reason}\"}} 0\n");
            assert!(text.contains(&line), "{line}");
        }
    }
}
