//! The metrics, gathered per request. The packet path is not involved: counters are read as workers publish them, and the
//! flow table is walked on a thread of its own.
//!
//! Names are API. `kubeproxy_*` mean what they mean in kube-proxy; all others are `flowgate_*`. Reasons have the names that
//! `flowgate show drops` prints.

mod dns;
mod families;
mod flows;
mod process;
mod state;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;

use flowgate_control::dns::Counters as DnsCounters;
use flowgate_control::health::{HealthInputs, ProbeCounts};
use flowgate_control::{Status, SyncMetrics, http};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use self::families::Families;
use crate::appliance::Appliance;
use crate::appliance::supervisor::SupervisorHandle;
use crate::config::MetricsDetail;

/// Gathers all metrics.
pub(crate) struct Metrics {
    supervisor: SupervisorHandle,
    health_inputs: HealthInputs,
    inputs: MetricsInputs,
    /// Metrics that other parts update themselves.
    counted: Registry,
}

/// What metrics need besides the appliance and health.
#[derive(Clone)]
pub(crate) struct MetricsInputs {
    /// `None`: there is no DNS server.
    pub(crate) dns: Option<Arc<DnsCounters>>,
    pub(crate) detail: MetricsDetail,
    /// How often the program was executed again since a worker hung.
    pub(crate) hangs: u64,
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
        Self { supervisor, health_inputs, inputs, counted }
    }

    /// Serves on this address until dropped; `None`: waits.
    pub(crate) async fn serve(&self, address: Option<SocketAddr>, status: &watch::Sender<Status>) {
        match address {
            Some(address) => {
                let report = |purpose, findings| Status::show_listener_findings(status, purpose, findings);
                http::metrics::serve(address, report, || self.expose()).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Everything in the OpenMetrics text format.
    async fn expose(&self) -> Result<String, String> {
        let (health_inputs, inputs) = (self.health_inputs.clone(), self.inputs.clone());
        let look = move |appliance: &mut Appliance| {
            let families = gather(appliance, &health_inputs, &inputs);
            let flows = Arc::clone(&appliance.workers.shared.flows);
            (families, appliance.publishing.publisher.current(), flows)
        };
        let (mut families, tables, flows) =
            self.supervisor.view(look).await.map_err(|error| error.to_string())?;
        let (desired, identity) =
            (Arc::clone(&self.health_inputs.desired.borrow()), self.health_inputs.identity.clone());
        let detail = self.inputs.detail;
        let walk = move || {
            state::add_no_local_endpoints(&mut families, &desired, &identity);
            flows::add(&mut families, &flows, &tables, detail);
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
    workers::add_workers(&mut families, workers, inputs.hangs);
    workers::add_sockets(&mut families, workers);
    match publishing.steering.counters() {
        Ok(steered) => workers::add_steering(&mut families, &steered),
        // All other metrics are still useful.
        Err(error) => tracing::warn!(%error, "the XDP program's counters are missing in the metrics"),
    }
    let retired = publishing.publisher.collect();
    state::add_tables(&mut families, &publishing.publisher.current(), retired);
    state::add_control(&mut families, health_inputs);
    if let Some(counters) = &inputs.dns {
        dns::add(&mut families, counters);
    }
    process::add(&mut families);
    families
}

fn unwritable(_: std::fmt::Error) -> String {
    "a metric cannot be written as text".into()
}
