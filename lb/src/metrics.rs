//! The metrics, gathered per request. The packet path is not involved: counters are read as workers publish them. Only what
//! belongs to the appliance is read on the control thread; tables and flow table are walked, and the text is written, on a
//! thread of their own. One gathering answers all requests that wait for it, and the next begins a while later, so that
//! scrapes cost the same however many there are.
//!
//! Names are API. `kubeproxy_*` mean what they mean in kube-proxy; all others are `flowgate_*`. Reasons have the names that
//! `flowgate show drops` prints.

mod dns;
mod families;
mod flows;
mod process;
mod stall;
mod state;
mod workers;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use flowgate_control::SyncMetrics;
use flowgate_control::descriptors::DescriptorBudget;
use flowgate_control::dns::Counters as DnsCounters;
use flowgate_control::health::{HealthInputs, ProbeCounts};
use flowgate_control::http::metrics::ExpositionRequest;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use self::families::Families;
pub(crate) use self::flows::Breakdown;
pub(crate) use self::stall::StallMeter;
use crate::appliance::Appliance;
use crate::appliance::supervisor::SupervisorHandle;

/// Gathers all metrics.
pub(crate) struct Metrics {
    supervisor: SupervisorHandle,
    health_inputs: HealthInputs,
    inputs: MetricsInputs,
    breakdown: Cell<Breakdown>,
    /// Metrics that other parts update themselves.
    counted: Registry,
}

/// What metrics need besides the appliance and health.
#[derive(Clone)]
pub(crate) struct MetricsInputs {
    /// `None`: there is no DNS server.
    pub(crate) dns: Option<Arc<DnsCounters>>,
    pub(crate) breakdown: Breakdown,
    /// The file descriptors that all servers share.
    pub(crate) budget: Arc<DescriptorBudget>,
    /// How often the program was executed again since a worker hung.
    pub(crate) hangs: u64,
    /// For how long the control thread was busy with one thing.
    pub(crate) stalls: StallMeter,
}

impl Metrics {
    pub(crate) fn new(
        supervisor: SupervisorHandle,
        health_inputs: HealthInputs,
        probes: &ProbeCounts,
        inputs: MetricsInputs,
    ) -> Self {
        let mut counted = Registry::default();
        let sync_metrics: &SyncMetrics = &health_inputs.sync_metrics;
        sync_metrics.register(&mut counted);
        probes.register(&mut counted);
        inputs.stalls.register(&mut counted);
        let breakdown = Cell::new(inputs.breakdown);
        Self { supervisor, health_inputs, inputs, breakdown, counted }
    }

    /// Breaks the metrics of flows down like this from now on.
    pub(crate) fn set_breakdown(&self, breakdown: Breakdown) {
        self.breakdown.set(breakdown);
    }

    /// Answers requests until dropped: all that wait with one text. A request that comes meanwhile gets the next text, so
    /// that none is older than the request for it.
    pub(crate) async fn answer(&self, mut requests: mpsc::Receiver<ExpositionRequest>) {
        while let Some(first) = requests.recv().await {
            let mut waiting = vec![first];
            while let Ok(another) = requests.try_recv() {
                waiting.push(another);
            }
            let begin = Instant::now();
            let text = self.expose().await.map(Into::into);
            for request in waiting {
                // The client may have given up.
                let _ = request.send(text.clone());
            }
            // However fast requests come, they cost a fifth of a core at most.
            sleep(BETWEEN_EXPOSITIONS.max(4 * begin.elapsed())).await;
        }
        // No server asks: metrics are off.
        std::future::pending().await
    }

    /// Everything in the OpenMetrics text format.
    async fn expose(&self) -> Result<String, String> {
        let (health_inputs, inputs) = (self.health_inputs.clone(), self.inputs.clone());
        let look = move |appliance: &mut Appliance| {
            let families = gather(appliance, &health_inputs, &inputs);
            let flows = Arc::clone(&appliance.workers.shared.flows);
            let publisher = &mut appliance.publishing.publisher;
            let retired = publisher.collect();
            (families, publisher.current(), retired, flows)
        };
        let (mut families, tables, retired, flows) =
            self.supervisor.view(look).await.map_err(|error| error.to_string())?;
        let (desired, identity) =
            (Arc::clone(&self.health_inputs.desired.borrow()), self.health_inputs.identity.clone());
        let breakdown = self.breakdown.get();
        let walk = move || {
            state::add_tables(&mut families, &tables, retired);
            state::add_no_local_endpoints(&mut families, &desired, &identity);
            flows::add(&mut families, &flows, &tables, breakdown);
            let mut registry = Registry::default();
            registry.register_collector(Box::new(families));
            let mut text = String::new();
            text::encode_registry(&mut text, &registry).map(|()| text)
        };
        let mut exposition = tokio::task::spawn_blocking(walk)
            .await
            .map_err(|error| error.to_string())?
            .map_err(unwritable)?;
        text::encode_registry(&mut exposition, &self.counted).map_err(unwritable)?;
        text::encode_eof(&mut exposition).map_err(unwritable)?;
        Ok(exposition)
    }
}

/// The families that need the appliance. Runs in the supervisor, so it must be quick.
fn gather(
    Appliance { workers, publishing }: &mut Appliance,
    health_inputs: &HealthInputs,
    inputs: &MetricsInputs,
) -> Families {
    let mut families = Families::default();
    workers::add_workers(&mut families, workers, inputs.hangs, inputs.breakdown.services_max);
    workers::add_sockets(&mut families, workers);
    match publishing.steering.counters() {
        Ok(steered) => workers::add_steering(&mut families, &steered),
        // All other metrics are still useful.
        Err(error) => tracing::warn!(%error, "the XDP program's counters are missing in the metrics"),
    }
    state::add_control(&mut families, health_inputs);
    if let Some(counters) = &inputs.dns {
        dns::add(&mut families, counters);
    }
    process::add_servers(&mut families, &inputs.budget);
    process::add(&mut families);
    families
}

fn unwritable(_: std::fmt::Error) -> String {
    "a metric cannot be written as text".into()
}

/// The shortest pause between two expositions.
const BETWEEN_EXPOSITIONS: Duration = Duration::from_millis(100);
