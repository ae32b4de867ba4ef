//! Whether this process is healthy, and why not.
//!
//! An API server that is away does not make it unhealthy: the last good state stays in force and traffic goes on.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::Identity;
use crate::compile::Role;
use crate::model::{Desired, Key};
use crate::reconcile::{Status, SyncMetrics};
use crate::source::SourceHealth;

/// The values that health is computed from.
#[derive(Clone, Debug)]
pub struct HealthSnapshot {
    /// The state of the reconciler.
    pub status: Status,
    /// The age of the oldest change that is not in force yet.
    pub queued_for: Option<Duration>,
    /// For how long the control thread has shown no sign of life.
    pub silent_for: Duration,
    /// When changes were last put in force.
    pub synced_at: Option<SystemTime>,
    /// What is wrong with the data plane, one sentence each.
    pub dataplane: Arc<[String]>,
}

impl HealthSnapshot {
    /// Why this process is not healthy, one sentence per reason; empty if it is healthy (P1106).
    pub fn unhealthy_reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.status.received {
            let why = match &self.status.source {
                SourceHealth::Stale { reason, .. } => format!(": {reason}"),
                SourceHealth::Starting | SourceHealth::Synced => String::new(),
            };
            reasons.push(format!("no objects were received yet{why}"));
        } else if self.status.last_change.is_none() {
            reasons.push("nothing was published yet".to_owned());
        }
        if let Some(why) = &self.status.refused {
            reasons.push(format!("the newest tables were not published: {why}"));
        }
        if let Some(waiting) = self.queued_for.filter(|waiting| *waiting > QUEUED_MAX) {
            reasons.push(format!("a change has not been put in force for {} s", waiting.as_secs()));
        }
        if self.silent_for > SILENT_MAX {
            reasons.push(format!("the control thread has stood still for {} s", self.silent_for.as_secs()));
        }
        reasons.extend(self.dataplane.iter().cloned());
        reasons
    }
}

/// Whether load balancers should send traffic to this node at all (P1106): not if its Node is deleted or tainted. A
/// gateway is always eligible: it needs no Node object, and one of its name would be another machine's.
///
/// # Errors
/// Why not.
pub fn node_eligible(desired: &Desired, identity: &Identity) -> Result<(), String> {
    let name = &identity.node_name;
    match (identity.role, desired.node(name)) {
        (Role::Gateway, _) => Ok(()),
        (Role::Node, None) => Err(format!("there is no Node {name:?}: is node_name right?")),
        (Role::Node, Some(node)) if node.is_leaving => Err(format!("Node {name:?} is about to be removed")),
        (Role::Node, Some(_)) => Ok(()),
    }
}

/// The sources of the values that health is computed from.
#[derive(Clone, Debug)]
pub struct HealthInputs {
    /// The state of the reconciler.
    pub status: watch::Receiver<Status>,
    /// Its counts and times of syncs.
    pub sync_metrics: SyncMetrics,
    /// What is wrong with the data plane, one sentence each; from the binary.
    pub dataplane: watch::Receiver<Arc<[String]>>,
    /// The objects that are in force.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// The name and role of this machine.
    pub identity: Identity,
}

impl HealthInputs {
    /// The present values.
    pub fn snapshot(&self) -> HealthSnapshot {
        HealthSnapshot {
            status: self.status.borrow().clone(),
            queued_for: self.sync_metrics.queued_for(Instant::now()),
            silent_for: self.sync_metrics.silent_for(Instant::now()),
            synced_at: self.sync_metrics.synced_at(),
            dataplane: Arc::clone(&self.dataplane.borrow()),
        }
    }

    /// Whether this process is healthy.
    pub fn is_healthy(&self) -> bool {
        self.snapshot().unhealthy_reasons().is_empty()
    }

    /// Whether a Service is left out because of a budget: load balancers must not send its traffic here.
    pub fn is_left_out(&self, service: &Key) -> bool {
        let report = Arc::clone(&self.status.borrow().report);
        report.leaves_out(service)
    }

    /// As [`node_eligible`].
    ///
    /// # Errors
    /// Why not.
    pub fn node_eligible(&self) -> Result<(), String> {
        let desired = Arc::clone(&self.desired.borrow());
        node_eligible(&desired, &self.identity)
    }
}

/// Twice the time after which kube-proxy syncs without a change (P1106).
const QUEUED_MAX: Duration = Duration::from_secs(60);
/// Far longer than anything that the control thread does in one go.
const SILENT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::health::ports::tests::{desired, node};

    /// Of a healthy process.
    pub(crate) fn healthy() -> HealthSnapshot {
        let status = Status {
            source: SourceHealth::Synced,
            received: true,
            last_change: Some(SystemTime::UNIX_EPOCH),
            ..Status::default()
        };
        let synced_at = Some(SystemTime::UNIX_EPOCH);
        HealthSnapshot {
            status,
            queued_for: None,
            silent_for: Duration::ZERO,
            synced_at,
            dataplane: Arc::from([]),
        }
    }

    fn only_reason(snapshot: &HealthSnapshot) -> String {
        let unhealthy_reasons = snapshot.unhealthy_reasons();
        assert_eq!(unhealthy_reasons.len(), 1, "{unhealthy_reasons:?}");
        unhealthy_reasons[0].clone()
    }

    #[test]
    fn p1106_unhealthy_when_a_change_waits_for_more_than_a_minute() {
        let waiting =
            |seconds| HealthSnapshot { queued_for: Some(Duration::from_secs(seconds)), ..healthy() };
        assert!(healthy().unhealthy_reasons().is_empty() && waiting(60).unhealthy_reasons().is_empty());
        assert_eq!(only_reason(&waiting(61)), "a change has not been put in force for 61 s");
    }

    #[test]
    fn unhealthy_before_the_source_has_spoken_and_before_anything_is_published() {
        let mut snapshot = healthy();
        snapshot.status.last_change = None;
        assert_eq!(only_reason(&snapshot), "nothing was published yet");
        snapshot.status.received = false;
        assert_eq!(only_reason(&snapshot), "no objects were received yet");
        snapshot.status.source = SourceHealth::Stale { since: SystemTime::UNIX_EPOCH, reason: "away".into() };
        assert_eq!(only_reason(&snapshot), "no objects were received yet: away");
    }

    #[test]
    fn unhealthy_when_publishing_is_refused_or_a_worker_is_not_healthy() {
        let mut refused = healthy();
        refused.status.refused = Some("no room".into());
        assert_eq!(only_reason(&refused), "the newest tables were not published: no room");
        let hanging = HealthSnapshot { dataplane: Arc::from(["worker 1 hangs".to_owned()]), ..healthy() };
        assert_eq!(only_reason(&hanging), "worker 1 hangs");
    }

    #[tokio::test(start_paused = true)]
    async fn unhealthy_when_the_control_thread_stands_still() {
        let sync_metrics = SyncMetrics::default();
        let after = |seconds| {
            let silent_for = sync_metrics.silent_for(Instant::now() + Duration::from_secs(seconds));
            HealthSnapshot { silent_for, ..healthy() }
        };
        assert!(after(60).unhealthy_reasons().is_empty(), "it has not begun");
        sync_metrics.alive(Instant::now());
        assert!(after(10).unhealthy_reasons().is_empty());
        assert_eq!(only_reason(&after(11)), "the control thread has stood still for 11 s");
    }

    #[test]
    fn p1002_a_source_that_is_away_does_not_make_unhealthy() {
        let mut snapshot = healthy();
        snapshot.status.source = SourceHealth::Stale { since: SystemTime::UNIX_EPOCH, reason: "away".into() };
        assert!(snapshot.unhealthy_reasons().is_empty());
    }

    #[test]
    fn p1106_a_node_that_is_missing_deleted_or_tainted_is_not_eligible() {
        let with = |meta: &str, spec: &str| {
            let yaml =
                format!("apiVersion: v1\nkind: Node\nmetadata: {{name: this{meta}}}\nspec: {{{spec}}}\n");
            node_eligible(&desired(&yaml), &node())
        };
        assert_eq!(with("", ""), Ok(()));
        assert_eq!(with("", "taints: [{key: other, effect: NoSchedule}]"), Ok(()));
        let tainted = with("", "taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]");
        assert_eq!(tainted, Err("Node \"this\" is about to be removed".into()));
        assert!(with(", deletionTimestamp: \"2026-01-01T00:00:00Z\"", "").is_err());
        let missing = Desired::default();
        assert!(node_eligible(&missing, &node()).is_err());
        assert_eq!(node_eligible(&missing, &Identity::default()), Ok(()), "a gateway needs none");
    }
}
