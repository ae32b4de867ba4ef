//! The reconciler as health, metrics and receivers of the objects see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowgate_control::health::{HealthInputs, Identity};
use flowgate_control::model::{Desired, Key, NetState, Node, Object};
use flowgate_control::reconcile::{self, Background, Channels};
use flowgate_control::source::{Snapshot, SourceEvent};
use flowgate_control::{CompileConfig, Status, SyncMetrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

/// A running reconciler; its sink refuses while `refuse` says so.
struct TestBed {
    source: mpsc::Sender<SourceEvent>,
    refuse: Arc<AtomicBool>,
    inputs: HealthInputs,
    /// What ends the loop, or closes its inputs, when dropped.
    _held: (watch::Sender<bool>, watch::Sender<NetState>, watch::Sender<Arc<[String]>>),
}

impl TestBed {
    fn start() -> Self {
        let (source, source_events) = mpsc::channel(16);
        let (net, net_receiver) = watch::channel(NetState::default());
        let (_, requests) = mpsc::channel(1);
        let (resolve, _) = mpsc::channel(1);
        let (status, status_receiver) = watch::channel(Status::default());
        let (desired, desired_receiver) = watch::channel(Arc::<Desired>::default());
        let (shutdown, shutdown_receiver) = watch::channel(false);
        let (dataplane, dataplane_receiver) = watch::channel(Arc::from([]));
        let inputs = HealthInputs {
            status: status_receiver,
            sync_metrics: SyncMetrics::default(),
            dataplane: dataplane_receiver,
            desired: desired_receiver,
            identity: Identity::default(),
        };
        let channels = Channels {
            source: source_events,
            net: net_receiver,
            requests,
            config: watch::channel(CompileConfig::default()).1,
            resolve,
            status,
            desired,
            sync_metrics: inputs.sync_metrics.clone(),
            shutdown: shutdown_receiver,
        };
        let refuse = Arc::new(AtomicBool::new(false));
        let refuses = Arc::clone(&refuse);
        let sink = async move |_| if refuses.load(Ordering::Relaxed) { Err("no room") } else { Ok(()) };
        tokio::spawn(reconcile::run(Background::default(), channels, sink));
        Self { source, refuse, inputs, _held: (shutdown, net, dataplane) }
    }

    /// Sends one Node of this name as all there is.
    async fn send(&self, node: &str) {
        let mut desired = Desired::default();
        desired.apply(Key::new("", node), Object::Node(Arc::new(Node::default())), None);
        let event = SourceEvent::Replace(Snapshot { desired, ..Snapshot::default() });
        self.source.send(event).await.expect("the loop runs");
    }
}

fn count(sync_metrics: &SyncMetrics, name: &str) -> Option<u64> {
    let mut registry = Registry::default();
    sync_metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).expect("metrics are text");
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

const SYNCS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";

#[tokio::test(start_paused = true)]
async fn objects_are_shown_and_the_process_is_well_once_they_are_in_force() {
    let mut bed = TestBed::start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.inputs.snapshot().unhealthy_reasons(), ["no objects were received yet"]);
    assert_eq!(count(&bed.inputs.sync_metrics, SYNCS), None);
    bed.send("one").await;
    bed.inputs.desired.changed().await.unwrap();
    assert!(bed.inputs.desired.borrow_and_update().node("one").is_some());
    assert!(bed.inputs.is_healthy(), "{:?}", bed.inputs.snapshot().unhealthy_reasons());
    assert_eq!(count(&bed.inputs.sync_metrics, SYNCS), Some(1));
    assert!(bed.inputs.sync_metrics.synced_at().is_some());
}

#[tokio::test(start_paused = true)]
async fn p1106_a_refused_change_keeps_waiting_and_is_forgotten_once_it_is_taken() {
    let bed = TestBed::start();
    bed.refuse.store(true, Ordering::Relaxed);
    bed.send("one").await;
    tokio::time::sleep(Duration::from_secs(70)).await;
    let unhealthy_reasons = bed.inputs.snapshot().unhealthy_reasons();
    assert!(
        unhealthy_reasons.contains(&"the newest tables were not published: no room".to_owned()),
        "{unhealthy_reasons:?}"
    );
    let waiting = |reason: &String| reason.starts_with("a change has not been put in force for ");
    assert!(unhealthy_reasons.iter().any(waiting), "{unhealthy_reasons:?}");
    assert!(
        count(&bed.inputs.sync_metrics, "flowgate_publish_refusals_total") > Some(10),
        "it is tried every second"
    );
    assert_eq!(count(&bed.inputs.sync_metrics, SYNCS), None);
    bed.refuse.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(bed.inputs.is_healthy(), "{:?}", bed.inputs.snapshot().unhealthy_reasons());
    assert_eq!(count(&bed.inputs.sync_metrics, SYNCS), Some(1));
}
