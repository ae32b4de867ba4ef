//! The loop between a source, a network and a sink of the test.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, SystemTime};

use flowgate_tables::spec::InterfaceSpec;
use flowgate_wire::MacAddr;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::model::{Key, Object, ServiceCidr};
use crate::source::Snapshot;

/// Stops background work before it begins, while it is closed.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    position: Position,
    waiting: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Open,
    Closed,
    /// Whatever passes panics.
    Broken,
}

impl Gate {
    pub(super) fn pass(&self) {
        let (state, moved) = &*self.0;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        moved.notify_all();
        state = moved.wait_while(state, |state| state.position == Position::Closed).unwrap();
        state.waiting -= 1;
        let position = state.position;
        drop(state);
        assert!(position != Position::Broken, "as the test wants");
    }

    fn set(&self, position: Position) {
        let (state, moved) = &*self.0;
        state.lock().unwrap().position = position;
        moved.notify_all();
    }

    /// Returns when something waits at the gate.
    async fn reached(&self) {
        while self.0.0.lock().unwrap().waiting == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A running loop and what it is given.
struct TestBed {
    gate: Gate,
    events: mpsc::Sender<SourceEvent>,
    net: watch::Sender<NetState>,
    status: watch::Receiver<Status>,
    desired: watch::Receiver<Arc<Desired>>,
    published: mpsc::UnboundedReceiver<Tables>,
    task: JoinHandle<()>,
    _config: watch::Sender<CompileConfig>,
    _held: (mpsc::Sender<NeighbourKey>, mpsc::Receiver<Resolve>, watch::Sender<bool>),
}

impl TestBed {
    fn start() -> Self {
        let gate = Gate::default();
        let (events, source) = mpsc::channel(1);
        let (net, net_receiver) = watch::channel(NetState::default());
        let (requester, requests) = mpsc::channel(1);
        let (resolve, resolutions) = mpsc::channel(1);
        let (status, status_receiver) = watch::channel(Status::default());
        let (desired, desired_receiver) = watch::channel(Arc::default());
        let (shutdown_sender, shutdown) = watch::channel(false);
        let (config, config_receiver) = watch::channel(CompileConfig::default());
        let (publish, published) = mpsc::unbounded_channel();
        let channels = Channels {
            source,
            net: net_receiver,
            requests,
            config: config_receiver,
            resolve,
            status,
            desired,
            sync_metrics: SyncMetrics::default(),
            shutdown,
        };
        let background = Background { gate: gate.clone(), ..Background::default() };
        let sink = async move |update: Update| publish.send(update.tables);
        let task = tokio::spawn(run(background, channels, sink));
        Self {
            gate,
            events,
            net,
            status: status_receiver,
            desired: desired_receiver,
            published,
            task,
            _config: config,
            _held: (requester, resolutions, shutdown_sender),
        }
    }

    /// Nothing is published, and 10.96.0.0/16 is being compiled, which ends when the gate opens.
    async fn compiling() -> Self {
        let mut bed = Self::start();
        bed.send_cidrs(&[]).await;
        bed.published().await;
        bed.gate.set(Position::Closed);
        bed.send_cidrs(&["10.96.0.0/16"]).await;
        timeout(LIMIT, bed.gate.reached()).await.expect("Services are compiled");
        bed
    }

    async fn send(&self, event: SourceEvent) {
        self.events.send(event).await.expect("the loop runs");
    }

    /// Sends these ServiceCIDRs as all that there is.
    async fn send_cidrs(&self, cidrs: &[&str]) {
        let mut desired = Desired::default();
        for cidr in cidrs {
            let object = ServiceCidr { cidrs: vec![cidr.parse().unwrap()] };
            desired.apply(Key::new("", *cidr), Object::ServiceCidr(Arc::new(object)), None);
        }
        self.send(SourceEvent::Replace(Snapshot { desired, ..Snapshot::default() })).await;
    }

    fn send_interface(&self, name: &str) {
        let interface = InterfaceSpec {
            name: name.into(),
            ifindex: 1,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            addresses: vec![],
            vlan: None,
        };
        self.net.send_replace(NetState { interfaces: Arc::new(vec![interface]), ..NetState::default() });
    }

    /// The next tables: their ServiceCIDRs and interfaces.
    async fn published(&mut self) -> (Vec<String>, Vec<String>) {
        let tables = timeout(LIMIT, self.published.recv()).await.expect("published in time").unwrap();
        let cidrs = tables.services.service_cidrs().iter().map(ToString::to_string);
        let interfaces = tables.routing.interfaces().iter().map(|interface| interface.spec.name.clone());
        (cidrs.collect(), interfaces.collect())
    }

    async fn shown(&mut self, what: &str, is_shown: impl FnMut(&Status) -> bool) -> Status {
        let shown = timeout(LIMIT, self.status.wait_for(is_shown)).await;
        shown.unwrap_or_else(|_| panic!("{what} in time")).expect("the loop runs").clone()
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        // A thread that waits would keep the runtime from ending.
        self.gate.set(Position::Open);
        self.task.abort();
    }
}

const LIMIT: Duration = Duration::from_secs(60);

fn stale(reason: &str) -> SourceEvent {
    SourceEvent::Health(SourceHealth::Stale { since: SystemTime::UNIX_EPOCH, reason: reason.into() })
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn p1001_nothing_is_published_before_the_first_whole_set_but_it_is_said_why() {
    let mut bed = TestBed::start();
    bed.send(stale("no answer")).await;
    let said = bed.shown("why", |status| !status.report.entries.is_empty()).await;
    assert_eq!(said.report.to_string(), "error: no answer; nothing is served before it was read once\n");
    bed.send_interface("up0");
    assert!(bed.published.try_recv().is_err());
    bed.send_cidrs(&[]).await;
    assert_eq!(bed.published().await, (vec![], texts(&["up0"])));
}

#[tokio::test]
async fn routes_are_published_and_the_source_is_heard_while_services_are_compiled() {
    let mut bed = TestBed::compiling().await;
    bed.send_interface("up0");
    assert_eq!(bed.published().await, (vec![], texts(&["up0"])), "routes, with the last Services");
    bed.send(stale("away")).await;
    bed.shown("the source", |status| matches!(status.source, SourceHealth::Stale { .. })).await;
    bed.send_interface("up1");
    assert_eq!(bed.published().await, (vec![], texts(&["up1"])));
    bed.gate.set(Position::Open);
    assert_eq!(bed.published().await, (texts(&["10.96.0.0/16"]), texts(&["up1"])));
}

#[tokio::test]
async fn what_changes_while_services_are_compiled_is_put_in_force_after_them() {
    let mut bed = TestBed::compiling().await;
    for second in 1..=20 {
        bed.send_cidrs(&["10.96.0.0/16", &format!("10.{second}.0.0/16")]).await;
    }
    bed.gate.set(Position::Open);
    assert_eq!(bed.published().await.0, ["10.96.0.0/16"], "what was compiled comes first");
    // The reconciler compiles when changes pause, so it may skip some of them, but not the last one.
    let last = texts(&["10.20.0.0/16", "10.96.0.0/16"]);
    while bed.published().await.0 != last {}
    let has_both = |desired: &Arc<Desired>| desired.service_cidrs().len() == 2;
    assert!(timeout(LIMIT, bed.desired.wait_for(has_both)).await.is_ok(), "DNS and health follow");
}

#[tokio::test]
async fn a_panic_while_services_are_compiled_leaves_the_last_tables_until_something_changes() {
    let mut bed = TestBed::start();
    bed.send_cidrs(&["10.96.0.0/16"]).await;
    bed.published().await;
    bed.gate.set(Position::Broken);
    bed.send_cidrs(&["10.97.0.0/16"]).await;
    let refused = bed.shown("the defect", |status| status.refused.is_some()).await.refused.unwrap();
    assert!(refused.contains("a defect of flowgate"), "{refused}");
    assert_eq!(bed.status.borrow().generation, 1);
    bed.gate.set(Position::Open);
    bed.send_cidrs(&["10.98.0.0/16"]).await;
    assert_eq!(bed.published().await.0, ["10.98.0.0/16"]);
    bed.shown("no defect", |status| status.refused.is_none() && status.generation == 2).await;
}
