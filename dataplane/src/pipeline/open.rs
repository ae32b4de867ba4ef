//! Beginning a flow: the slow path of the pipeline. Never touches packet bytes.

use std::net::{IpAddr, Ipv4Addr};

use flowgate_flow::{Direction, Found, Inserted, NewFlow, NextHopRef, Probe};
use flowgate_tables::routing::{Route, Unresolved};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{Backend, Frontend, NextHop, NextHopId, SourceNat};
use flowgate_wire::{FiveTuple, FiveTuple4, L4Port, Packet4, Protocol, Translation4};

use super::{Context, Router};
use crate::counters::{Counters, Event};
use crate::verdict::{DropReason, PassReason, Verdict};

/// Source ports tried before a flow is refused. With 95 % of a range in use, 128 random tries fail once
/// in 700.
const SNAT_ATTEMPTS: u32 = 128;

impl Router {
    /// Opens a flow for a packet that has none, or says why not.
    #[cold]
    pub(super) fn open<'a>(
        &mut self,
        packet: &Packet4,
        probe: &Probe,
        context: &Context<'a>,
        counters: &mut Counters,
    ) -> Result<Found<'a>, Verdict> {
        let tables = context.tables;
        let tuple = &packet.tuple;
        let key = ServiceKey { protocol: tuple.protocol, addr: IpAddr::V4(tuple.dst), port: tuple.dst_port };
        let Some(frontend) = tables.services.frontend(&key) else {
            let is_reply = tables.snat.ports().binary_search(&tuple.dst_port.number()).is_ok()
                && tables
                    .routing
                    .interfaces()
                    .iter()
                    .any(|i| tables.snat.addresses(i.id).contains(&tuple.dst));
            return Err(if is_reply {
                Verdict::Drop(DropReason::NoFlow)
            } else {
                Verdict::Pass(PassReason::NotOurs)
            });
        };
        if tuple.protocol == Protocol::Tcp && !packet.tcp_flags.opens() {
            return Err(Verdict::Drop(DropReason::NoFlow));
        }
        let backend = frontend
            .backends
            .pick(maglev_hash(tuple))
            .and_then(|id| tables.services.backends().get(id))
            .ok_or(Verdict::Drop(DropReason::NoBackend))?;
        let IpAddr::V4(backend_addr) = backend.addr else {
            return Err(Verdict::Drop(DropReason::NoRoute));
        };
        let (id, next_hop) = self.next_hop(backend_addr, context, counters)?;
        if next_hop.ether.is_none() {
            // No entry for a packet that cannot leave: a flood must not fill the table.
            let neighbour = Unresolved { egress: next_hop.egress, addr: next_hop.addr };
            self.requests.push(neighbour, counters);
            return Err(Verdict::Hold(neighbour));
        }
        let towards = Towards {
            backend,
            addr: backend_addr,
            next_hop: NextHopRef::new(id.to_bits(), tables.routing.epoch()),
        };
        self.insert(tuple, probe, frontend, &towards, &next_hop, context, counters)
    }

    /// The next hop towards `dst`.
    pub(super) fn next_hop(
        &mut self,
        dst: Ipv4Addr,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Result<(NextHopId, NextHop), Verdict> {
        let routing = &context.tables.routing;
        match routing.route(dst) {
            Route::Via(id) => {
                let next_hop = routing.next_hop(id).ok_or(Verdict::Drop(DropReason::NoRoute))?;
                Ok((id, *next_hop))
            }
            Route::Unknown(neighbour) => {
                self.requests.push(neighbour, counters);
                Err(Verdict::Hold(neighbour))
            }
            Route::None => Err(Verdict::Drop(DropReason::NoRoute)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what the flow is, and what it is decided by")]
    fn insert<'a>(
        &self,
        tuple: &FiveTuple4,
        probe: &Probe,
        frontend: &Frontend,
        towards: &Towards<'_>,
        egress: &NextHop,
        context: &Context<'a>,
        counters: &mut Counters,
    ) -> Result<Found<'a>, Verdict> {
        if frontend.source_nat == SourceNat::KeepClient {
            let flow = towards.flow(tuple, tuple.src, tuple.src_port);
            return match context.flows.insert(&flow, context.now) {
                Inserted::New(found) => Ok(opened(found, counters)),
                Inserted::Existing(found) => Ok(found),
                Inserted::ReplyTaken => Err(Verdict::Drop(DropReason::ReplyTupleTaken)),
                Inserted::Full => Err(Verdict::Drop(DropReason::FlowTableFull)),
            };
        }
        let snat = &context.tables.snat;
        let addresses = snat.addresses(egress.egress);
        let ports = snat.worker_ports(self.worker.index, self.worker.count);
        if addresses.is_empty() || ports.is_empty() {
            return Err(Verdict::Drop(DropReason::NoSnatAddress));
        }
        // RFC 6056 section 3.3.3: the first port follows from a keyed hash, so nobody outside can guess it.
        let start = probe.hash().0;
        for attempt in 0..SNAT_ATTEMPTS {
            let choice = spread(start, attempt);
            let addr = addresses[choice as usize % addresses.len()];
            let port = ports[(choice as usize / addresses.len()) % ports.len()];
            let flow = towards.flow(tuple, addr, L4Port::new(port));
            match context.flows.insert(&flow, context.now) {
                Inserted::New(found) => return Ok(opened(found, counters)),
                Inserted::Existing(found) => return Ok(found),
                Inserted::ReplyTaken => counters.add(Event::SnatCollisions, 1),
                Inserted::Full => return Err(Verdict::Drop(DropReason::FlowTableFull)),
            }
        }
        Err(Verdict::Drop(DropReason::SnatPortsExhausted))
    }
}

/// Whether the packet comes from a backend whose clients keep their address.
#[cold]
pub(super) fn may_be_kept_reply(packet: &Packet4, context: &Context<'_>) -> bool {
    let FiveTuple { protocol, src, src_port, .. } = packet.tuple;
    let source = ServiceKey { protocol, addr: IpAddr::V4(src), port: src_port };
    context.tables.services.is_reply_source(&source)
}

/// Where a new flow is going.
struct Towards<'a> {
    backend: &'a Backend,
    addr: Ipv4Addr,
    next_hop: NextHopRef,
}

impl Towards<'_> {
    /// The flow that reaches the backend from `source`.
    fn flow(&self, original: &FiveTuple4, source: Ipv4Addr, source_port: L4Port) -> NewFlow {
        let sent = FiveTuple {
            protocol: original.protocol,
            src: source,
            dst: self.addr,
            src_port: source_port,
            dst_port: self.backend.port,
        };
        NewFlow {
            original: Direction {
                tuple: *original,
                translation: Translation4::between(original, &sent),
                next_hop: self.next_hop,
            },
            reply: Direction {
                tuple: sent.reversed(),
                translation: Translation4::between(&sent.reversed(), &original.reversed()),
                // Looked up by the first reply: the client may not have been resolved yet.
                next_hop: NextHopRef::NONE,
            },
            backend: self.backend.id.to_bits(),
        }
    }
}

fn opened<'a>(found: Found<'a>, counters: &mut Counters) -> Found<'a> {
    counters.add(Event::FlowsOpened, 1);
    found
}

/// The hash that picks a backend: not keyed, so that gateways that share a VIP pick alike.
fn maglev_hash(tuple: &FiveTuple4) -> u32 {
    let word = |bytes: [u8; 4]| u64::from(u32::from_be_bytes(bytes));
    let ports = u64::from(tuple.src_port.number()) << 16 | u64::from(tuple.dst_port.number());
    let mut x = word(tuple.src.octets()) << 32 | word(tuple.dst.octets());
    x = splitmix(x ^ ports << 8 ^ u64::from(tuple.protocol.number()));
    (x >> 32) as u32
}

/// The number of the `attempt`-th try: even steps over the whole range from a start that differs by flow.
fn spread(start: u32, attempt: u32) -> u32 {
    // The golden ratio of 2^32: consecutive multiples lie far apart (Knuth, TAOCP 3, section 6.4).
    start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)) >> 1
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014).
const fn splitmix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
