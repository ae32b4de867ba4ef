//! Responds to admin requests with what the parts of the appliance show.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use flowgate_control::source::SourceHealth;
use flowgate_control::{Status, clock};
use flowgate_dataplane::worker::tick;
use flowgate_dataplane::{Counters, DropReason, Event, PassReason, RejectReason};
use flowgate_flow::{FlowView, Flows};
use flowgate_tables::{BackendId, ServiceId, SourceNat, Tables};
use flowgate_wire::L4Port;
use flowgate_xsk::steering::Reason;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::top_talkers;
use super::{Handler, Request, Response, view};
use crate::appliance::Appliance;
use crate::appliance::sockets::{QueueSocket, SOCKET_DROPS};
use crate::appliance::supervisor::{SupervisorHandle, ViewError};
use crate::appliance::workers::WorkerSlot;

/// Responds to admin requests. The supervisor, which owns the appliance, only hands out what it has: the responses that walk
/// flows or tables are made on another thread.
#[derive(Clone)]
pub(crate) struct AdminHandler {
    pub(crate) supervisor: SupervisorHandle,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) started: Instant,
}

impl Handler for AdminHandler {
    async fn handle(&self, request: Request) -> Response {
        let Self { supervisor, status, started } = self.clone();
        let look = move |appliance: &mut Appliance| Inspection { appliance, status, started }.look(request);
        let looked = match supervisor.view(look).await {
            Ok(Looked::Response(response)) => return response,
            Ok(Looked::Snapshot(snapshot)) => spawn_blocking(move || snapshot.respond(request)).await,
            Err(error) => return Response::Error(error.to_string()),
        };
        looked.unwrap_or_else(|_panic| Response::Error(ViewError::Panicked.to_string()))
    }
}

/// What the supervisor returns.
enum Looked {
    Response(Response),
    /// The response is still to be made.
    Snapshot(Box<Snapshot>),
}

/// The appliance at the time of one request.
struct Inspection<'a> {
    appliance: &'a mut Appliance,
    status: watch::Receiver<Status>,
    started: Instant,
}

/// What responses that take long are made from.
struct Snapshot {
    tables: Arc<Tables>,
    flows: Arc<Flows>,
    status: Status,
    started: Instant,
    retired_generations: usize,
    short: Vec<String>,
}

impl Inspection<'_> {
    fn look(self, request: Request) -> Looked {
        Looked::Response(match request {
            Request::Workers => Response::Workers(self.show_workers()),
            Request::Drops => self.drops().map_or_else(Response::Error, Response::Drops),
            #[cfg(feature = "lab")]
            Request::Fault { worker, fault } => self.break_worker(worker, fault),
            _ => return Looked::Snapshot(Box::new(self.snapshot())),
        })
    }

    fn snapshot(self) -> Snapshot {
        let Appliance { workers, publishing } = self.appliance;
        #[expect(clippy::disallowed_methods, reason = "ages are shown to people")]
        let now = Instant::now();
        Snapshot {
            tables: publishing.publisher.current(),
            flows: Arc::clone(&workers.shared.flows),
            status: self.status.borrow().clone(),
            started: self.started,
            retired_generations: publishing.publisher.collect(),
            short: workers.exhaustion.recent(now),
        }
    }

    #[cfg(feature = "lab")]
    fn break_worker(&self, worker: usize, fault: crate::admin::Fault) -> Response {
        use flowgate_dataplane::fault::Fault;
        let fault = match fault {
            crate::admin::Fault::Panic => Fault::Panic,
            crate::admin::Fault::Hang => Fault::Hang,
        };
        match self.appliance.workers.slots.get(worker).map(|slot| slot.inject(fault)) {
            Some(true) => Response::Workers(Vec::new()),
            _ => Response::Error(format!("there is no worker {worker}")),
        }
    }
}

impl Snapshot {
    fn respond(&self, request: Request) -> Response {
        let tables = &*self.tables;
        match request {
            Request::Services => Response::Services(self.services(tables)),
            Request::Backends => Response::Backends(self.backends(tables)),
            Request::Flows { limit } => Response::Flows(self.flows(limit)),
            Request::TopTalkers { by, limit } => {
                Response::TopTalkers(top_talkers::top(self.flows.views(), tables, by, limit))
            }
            Request::Neighbours => Response::Neighbours(neighbours(tables)),
            Request::Tables => Response::Tables(Box::new(self.show_tables(tables))),
            _ => Response::Error("the supervisor responds to this request".into()),
        }
    }

    fn services(&self, tables: &Tables) -> Vec<view::Service> {
        let mut flows: HashMap<ServiceId, usize> = HashMap::new();
        for flow in self.flows.views() {
            if let Some(backend) = tables.services.backends().get(BackendId::from_bits(flow.backend)) {
                *flows.entry(backend.service).or_default() += 1;
            }
        }
        let mut backends: HashMap<ServiceId, usize> = HashMap::new();
        for backend in tables.services.backends().iter() {
            *backends.entry(backend.service).or_default() += 1;
        }
        let frontend = |spec: &flowgate_tables::spec::FrontendSpec| view::Frontend {
            kind: spec.kind.name().into(),
            address: SocketAddr::new(spec.addr, spec.port.number()).to_string(),
            source_nat: match spec.policies.outside.source_nat {
                SourceNat::Always => "always".into(),
                SourceNat::PreserveClient => "keep-client".into(),
            },
            allowed: spec.allowed.as_ref().map(|nets| nets.iter().map(ToString::to_string).collect()),
        };
        let service = |service: &flowgate_tables::Service| view::Service {
            service: service.spec.name.to_string(),
            protocol: service.spec.protocol.to_string(),
            frontends: service.spec.frontends.iter().map(frontend).collect(),
            affinity_s: service.spec.affinity.map(|timeout| timeout.as_secs()),
            backends: backends.get(&service.id).copied().unwrap_or(0),
            flows: flows.get(&service.id).copied().unwrap_or(0),
        };
        tables.services.services().iter().map(|s| service(s)).collect()
    }

    fn backends(&self, tables: &Tables) -> Vec<view::Backend> {
        // By backend, and by address for those that were removed and only have old flows left.
        let mut current: HashMap<BackendId, Load> = HashMap::new();
        let mut removed: HashMap<String, Load> = HashMap::new();
        for flow in self.flows.views() {
            let id = BackendId::from_bits(flow.backend);
            let load = match tables.services.backends().get(id) {
                Some(_) => current.entry(id).or_default(),
                None => removed.entry(backend_address(&flow)).or_default(),
            };
            load.add(&flow);
        }
        let active = active_backends(tables);
        let names: HashMap<ServiceId, String> =
            tables.services.services().iter().map(|s| (s.id, s.spec.name.to_string())).collect();
        let row = |service: String, address: String, state: &str, load: Load| view::Backend {
            service,
            address,
            state: state.into(),
            flows: load.flows,
            packets: load.packets,
            bytes: load.bytes,
        };
        let mut rows: Vec<_> = tables
            .services
            .backends()
            .iter()
            .map(|backend| {
                let name = names.get(&backend.service).cloned().unwrap_or_default();
                let address = SocketAddr::new(backend.addr, backend.port.number()).to_string();
                let state = if active.contains(&backend.id) { "active" } else { "draining" };
                row(name, address, state, current.get(&backend.id).copied().unwrap_or_default())
            })
            .collect();
        rows.extend(removed.into_iter().map(|(address, load)| row(String::new(), address, "removed", load)));
        rows.sort_by(|a, b| (&a.service, &a.address).cmp(&(&b.service, &b.address)));
        rows
    }

    fn flows(&self, limit: usize) -> view::Flows {
        let flows = &self.flows;
        #[expect(clippy::disallowed_methods, reason = "ages are shown to people")]
        let now = tick(Instant::now(), self.started);
        let mut all: Vec<FlowView> = flows.views().collect();
        let total = all.len();
        let busiest = |flow: &FlowView| std::cmp::Reverse(flow.bytes[0] + flow.bytes[1]);
        if total > limit {
            all.select_nth_unstable_by_key(limit, busiest);
            all.truncate(limit);
        }
        all.sort_by_key(busiest);
        let row = |flow: FlowView| view::Flow {
            protocol: flow.original.protocol.to_string(),
            client: socket(flow.original.src, flow.original.src_port),
            vip: socket(flow.original.dst, flow.original.dst_port),
            snat: socket(flow.reply.dst, flow.reply.dst_port),
            backend: backend_address(&flow),
            state: match (flow.tcp_phase, flow.answered) {
                (Some(phase), _) => phase.name().into(),
                (None, true) => "answered".into(),
                (None, false) => "unanswered".into(),
            },
            idle_ms: now.since(flow.last_seen),
            packets: flow.packets[0].into(),
            reply_packets: flow.packets[1].into(),
            bytes: flow.bytes[0],
            reply_bytes: flow.bytes[1],
        };
        view::Flows { total, capacity: flows.capacity(), flows: all.into_iter().map(row).collect() }
    }
}

impl Inspection<'_> {
    fn show_workers(&self) -> Vec<view::Worker> {
        let workers = &self.appliance.workers;
        let queue = |socket: &QueueSocket| {
            let proof = workers.proof(&socket.interface);
            view::Queue {
                interface: socket.interface.clone(),
                queue: socket.queue,
                xdp: socket.xdp.name().into(),
                mode: socket.mode.name().into(),
                proof: proof.state.into(),
                proof_detail: proof.detail,
                fell_back: proof.fell_back,
            }
        };
        let row = |(index, slot): (usize, &WorkerSlot)| {
            let counters = slot.counters();
            view::Worker {
                worker: index,
                core: slot.core(),
                state: workers.state(index).into(),
                queues: slot.sockets.iter().map(queue).collect(),
                rx_packets: counters.event(Event::RxPackets),
                tx_packets: counters.event(Event::TxPackets),
                drops: counters.dropped_total(),
                flow_hits: counters.event(Event::FlowHits),
                flows_opened: counters.event(Event::FlowsOpened),
                flows_expired: counters.event(Event::FlowsExpired),
                events: Event::ALL.iter().map(|e| (e.name().into(), counters.event(*e))).collect(),
            }
        };
        workers.slots.iter().enumerate().map(row).collect()
    }

    fn drops(&self) -> Result<Vec<view::Drop>, String> {
        let row = |at: &str, reason: &str, packets: u64, meaning: &str| view::Drop {
            at: at.into(),
            reason: reason.into(),
            packets,
            meaning: meaning.into(),
        };
        let steered = self.appliance.publishing.steering.counters().map_err(|error| error.to_string())?;
        let is_pass = |reason: &Reason| reason.name().starts_with("pass_");
        let mut rows: Vec<_> = steered
            .iter()
            .filter(|(reason, _)| is_pass(reason))
            .map(|(reason, packets)| row("xdp", reason.name(), *packets, reason.meaning()))
            .collect();
        let workers = &self.appliance.workers;
        let sockets: Vec<_> =
            workers.slots.iter().flat_map(|slot| &slot.sockets).filter_map(QueueSocket::statistics).collect();
        rows.extend(
            SOCKET_DROPS.iter().map(|(reason, meaning, count)| {
                row("socket", reason, sockets.iter().map(count).sum(), meaning)
            }),
        );
        let total = workers.slots.iter().fold(Counters::default(), |sum, slot| sum.plus(&slot.counters()));
        rows.extend(DropReason::ALL.iter().map(|r| row("worker", r.name(), total.dropped(*r), r.meaning())));
        rows.extend(
            RejectReason::ALL.iter().map(|r| row("worker", r.name(), total.rejected(*r), r.meaning())),
        );
        rows.extend(PassReason::ALL.iter().map(|r| row("worker", r.name(), total.passed(*r), r.meaning())));
        Ok(rows)
    }
}

impl Snapshot {
    fn show_tables(&self, tables: &Tables) -> view::Tables {
        let Self { flows, status, .. } = self;
        let snat_addresses = tables.snat.all_addresses();
        view::Tables {
            generation: tables.generation,
            source: match &status.source {
                SourceHealth::Starting => "starting".into(),
                SourceHealth::Synced => "synced".into(),
                SourceHealth::Stale { since, reason } => {
                    format!("stale since {}: {reason}", utc(clock::shown(*since)))
                }
            },
            services: tables.services.services().len(),
            frontends: tables.services.frontends().count(),
            backends: tables.services.backends().len(),
            next_hops: tables.routing.next_hops().count(),
            snat_addresses: snat_addresses.iter().map(ToString::to_string).collect(),
            snat_ports: tables.snat.ports().len(),
            flow_entries_used: flows.used_entries(),
            flow_capacity: flows.capacity(),
            flow_table_bytes: flows.len_bytes(),
            retired_generations: self.retired_generations,
            short: self.short.clone(),
            report: status.findings().map(|e| format!("{}: {e}", e.severity.name())).collect(),
        }
    }
}

/// The backends that new flows may go to: those in a set that a frontend chooses from. A Service keeps others for the flows that
/// they have: what terminates, what hints or a Local policy rule out here, and the last endpoints of one that has none left.
fn active_backends(tables: &Tables) -> HashSet<BackendId> {
    let policies = tables.services.frontends().flat_map(|frontend| frontend.policies.all());
    // Most frontends share their sets, and a set may have thousands of members.
    let mut seen = HashSet::new();
    let sets = policies.map(|policy| &policy.backends).filter(|set| seen.insert(Arc::as_ptr(set)));
    sets.flat_map(|set| set.members()).copied().collect()
}

/// A time in RFC 3339 format, in whole seconds.
fn utc(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.0}"))
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    flows: usize,
    packets: u64,
    bytes: u64,
}

impl Load {
    fn add(&mut self, flow: &FlowView) {
        self.flows += 1;
        self.packets += u64::from(flow.packets[0]) + u64::from(flow.packets[1]);
        self.bytes += flow.bytes[0] + flow.bytes[1];
    }
}

fn neighbours(tables: &Tables) -> Vec<view::Neighbour> {
    let interfaces = tables.routing.interfaces();
    let mut rows: Vec<_> = tables
        .routing
        .next_hops()
        .map(|(_, hop)| view::Neighbour {
            address: hop.addr.to_string(),
            interface: interfaces.get(hop.egress.index()).map(|i| i.spec.name.clone()).unwrap_or_default(),
            mac: hop.ether.map(|ether| {
                let mut mac = [0; 6];
                mac.copy_from_slice(&ether.0[..6]);
                flowgate_wire::MacAddr(mac).to_string()
            }),
            mtu: hop.mtu,
        })
        .collect();
    rows.sort_by(|a, b| (&a.interface, &a.address).cmp(&(&b.interface, &b.address)));
    rows
}

fn backend_address(flow: &FlowView) -> String {
    socket(flow.reply.src, flow.reply.src_port)
}

fn socket(addr: IpAddr, port: L4Port) -> String {
    SocketAddr::new(addr, port.number()).to_string()
}
