//! Shares of the flow table and of source ports: what half-open connections may take together, and what one client may.

use flowgate_flow::{PORT_BLOCK, Probe};
use flowgate_wire::{FiveTuple, Protocol};

use super::context::SlowPath;
use super::{Context, Family};
use crate::counters::Event;
use crate::verdict::{DropReason, Verdict};

/// Keeps half-open connections within their share of the table: of those in the buckets of the new flow the oldest makes
/// room.
pub(super) fn make_room_for_connection<A: Family>(
    tuple: &FiveTuple<A>,
    probe: &Probe,
    slow: &mut SlowPath<'_>,
) -> Result<(), Verdict> {
    if tuple.protocol == Protocol::Udp || !has_too_many_half_open::<A>(slow.context) {
        return Ok(());
    }
    let flows = A::table(slow.context.flows);
    // Only within the two buckets of the new flow: the oldest of the whole table would have to be searched for. When neither
    // has one, the connection waits for the next retransmission of its SYN.
    if flows.evict_half_open(probe, slow.context.now) {
        slow.counters.add(Event::HalfOpenReplaced, 1);
        return Ok(());
    }
    Err(Verdict::Drop(DropReason::HalfOpenLimit))
}

/// Whether half-open connections have reached their share of the table.
pub(super) fn has_too_many_half_open<A: Family>(context: &Context<'_>) -> bool {
    let flows = A::table(context.flows);
    let percent = u64::from(context.config.half_open_percent);
    u64::from(flows.half_open()) >= u64::from(flows.capacity_flows()) * percent / 100
}

/// Keeps the client of `tuple` within its share of the table: of its own flows in the buckets of the new one the oldest makes
/// room that is over, half open or unanswered. So forged packets with the address of a client do not lock it out.
pub(super) fn make_room_for_client<A: Family>(
    tuple: &FiveTuple<A>,
    probe: &Probe,
    slow: &mut SlowPath<'_>,
) -> Result<(), Verdict> {
    let percent = slow.context.config.per_client_percent;
    let flows = A::table(slow.context.flows);
    if percent >= 100 || flows.flows_of(tuple.src) < share(flows.capacity_flows(), percent) {
        return Ok(());
    }
    if flows.evict_of_client(probe, tuple.src, slow.context.now) {
        slow.counters.add(Event::ClientFlowsReplaced, 1);
        return Ok(());
    }
    Err(Verdict::Drop(DropReason::ClientLimit))
}

/// The share of source ports that one client may have towards one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortShare<'a> {
    /// The ports of this worker, ascending.
    ports: &'a [u16],
    /// Source addresses, each of which has all the ports.
    addresses: usize,
    percent: u8,
}

impl<'a> PortShare<'a> {
    /// The share of `percent` of these ports of each of `addresses` source addresses; `None` if there is no limit, or too few
    /// ports to be shared out.
    pub(super) fn new(ports: &'a [u16], addresses: usize, percent: u8) -> Option<Self> {
        let is_shared = percent < 100 && ports.len() * addresses >= SHARED_PORTS_MIN;
        is_shared.then_some(Self { ports, addresses, percent })
    }

    /// How many flows to a backend a client may have from the block of this port.
    pub(super) fn in_block_of(&self, port: u16) -> u32 {
        let first = port & !(PORT_BLOCK - 1);
        let last = first | (PORT_BLOCK - 1);
        let below = |limit: u16| self.ports.partition_point(|port| *port < limit);
        let ports = self.ports.partition_point(|port| *port <= last) - below(first);
        share(u32::try_from(ports * self.addresses).unwrap_or(u32::MAX), self.percent)
    }
}

/// Of fewer source ports than these a client may have all: a share of a handful keeps a client from its second connection.
const SHARED_PORTS_MIN: usize = 16;

/// So many percent of `all`, rounded up: at least one.
fn share(all: u32, percent: u8) -> u32 {
    let share = (u64::from(all) * u64::from(percent)).div_ceil(100);
    u32::try_from(share.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_ports_of_the_worker_in_each_block() {
        let ports: Vec<u16> = (40_000..=40_099).chain(49_152..=65_535).collect();
        let limit = |percent, addresses, port| {
            PortShare::new(&ports, addresses, percent).map(|share| share.in_block_of(port))
        };
        assert_eq!(limit(50, 1, 50_000), Some(128));
        assert_eq!(limit(50, 3, 65_535), Some(384));
        // 39,936 to 40,191 has a hundred of them.
        assert_eq!(limit(25, 1, 40_050), Some(25));
        assert_eq!(limit(1, 1, 40_000), Some(1));
        assert_eq!(limit(100, 1, 40_000), None);
        assert!(
            PortShare::new(&ports[..15], 1, 50).is_none() && PortShare::new(&ports[..8], 2, 50).is_some()
        );
    }
}
