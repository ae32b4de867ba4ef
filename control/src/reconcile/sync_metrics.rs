//! Counts and times of syncs, for metrics and health.
//!
//! Names and buckets are kube-proxy's where the meaning is the same (P1201 to P1206). One sync puts both address
//! families in force, so values that kube-proxy has per family are the same for both here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::changes::Changes;
use crate::clock;
use crate::model::SliceFamily;

/// Whether a sync built all tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// All tables: the first sync.
    Full,
    /// Only what had changed.
    Partial,
}

/// Counts and times of syncs; clones share them.
#[derive(Clone, Debug)]
pub struct SyncMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    state: Mutex<State>,
    sync: PerFamily<Histogram>,
    full_sync: PerFamily<Histogram>,
    partial_sync: PerFamily<Histogram>,
    programming: PerFamily<Histogram>,
    last_sync: PerFamily<Gauge>,
    last_queued: PerFamily<Gauge>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    refusals: Counter,
}

/// What is not in force yet, and when something last was put in force.
#[derive(Debug, Default)]
struct State {
    alive_at: Option<Instant>,
    /// Queued for the next sync.
    queued: Pending,
    /// What the sync under way puts in force.
    syncing: Pending,
    synced_at: Option<SystemTime>,
}

/// Changes that are not in force yet.
#[derive(Debug, Default)]
struct Pending {
    since: Option<Instant>,
    services: u64,
    endpoints: u64,
    triggers: Vec<(SliceFamily, Instant)>,
}

impl Pending {
    /// Adds later changes.
    fn append(&mut self, later: Self) {
        self.since = self.since.or(later.since);
        self.services += later.services;
        self.endpoints += later.endpoints;
        let room = TRIGGERS_MAX.saturating_sub(self.triggers.len());
        self.triggers.extend(later.triggers.into_iter().take(room));
    }
}

type PerFamily<M> = Family<[(&'static str, &'static str); 1], M, fn() -> M>;

impl Default for SyncMetrics {
    fn default() -> Self {
        let sync = || Family::new_with_constructor(sync_histogram as fn() -> Histogram);
        let gauge = || Family::new_with_constructor(Gauge::default as fn() -> Gauge);
        Self(Arc::new(Inner {
            started: Instant::now(),
            state: Mutex::default(),
            sync: sync(),
            full_sync: sync(),
            partial_sync: sync(),
            programming: Family::new_with_constructor(programming_histogram),
            last_sync: gauge(),
            last_queued: gauge(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            refusals: Counter::default(),
        }))
    }
}

impl SyncMetrics {
    /// Objects have changed and are not in force yet.
    pub fn changed(&self, changes: &Changes, now: Instant) {
        self.0.service_changes.inc_by(changes.services);
        self.0.endpoint_changes.inc_by(changes.endpoints);
        let wall = SystemTime::now();
        let uptime = now.saturating_duration_since(self.0.started);
        let after_start = changes.triggers.iter().filter_map(|&(family, at)| {
            // By the wall clock only once: a step until the change is in force does not count. The trigger is by another
            // machine's clock, which may be ahead of ours: then its age is zero.
            let age = wall.duration_since(at).unwrap_or_default();
            // Changes from before this process started would count the time that it was not running.
            (age <= uptime).then(|| (family, now - age))
        });
        let triggers = after_start.collect();
        self.state().queued.append(Pending {
            since: Some(now),
            services: changes.services,
            endpoints: changes.endpoints,
            triggers,
        });
        self.show_pending();
        set_both(&self.0.last_queued, SystemTime::now());
    }

    /// Something has changed and is not in force yet.
    pub fn queued(&self, now: Instant) {
        self.state().queued.since.get_or_insert(now);
        set_both(&self.0.last_queued, SystemTime::now());
    }

    /// A sync begins with all that is queued now.
    pub fn begun(&self) {
        let state = &mut *self.state();
        state.syncing.append(std::mem::take(&mut state.queued));
    }

    /// All that the sync began with is in force; `took` is the time to compile and publish.
    pub fn synced(&self, took: Duration, kind: SyncKind) {
        let now = Instant::now();
        let synced = {
            let mut state = self.state();
            state.synced_at = Some(clock::now());
            std::mem::take(&mut state.syncing)
        };
        let by_kind = match kind {
            SyncKind::Full => &self.0.full_sync,
            SyncKind::Partial => &self.0.partial_sync,
        };
        for family in [self.0.sync.clone(), by_kind.clone()] {
            observe_both(&family, took);
        }
        for (family, at) in synced.triggers {
            let took = now.saturating_duration_since(at);
            let label = match family {
                SliceFamily::V4 => V4,
                SliceFamily::V6 => V6,
                SliceFamily::Fqdn => continue,
            };
            self.0.programming.get_or_create(&label).observe(took.as_secs_f64());
        }
        self.show_pending();
        set_both(&self.0.last_sync, SystemTime::now());
    }

    /// The control thread goes on. Called periodically: probes have threads of their own and would not notice its end.
    pub fn alive(&self, now: Instant) {
        self.state().alive_at = Some(now);
    }

    /// For how long the control thread has not called [`Self::alive`]; zero if it never did.
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.state().alive_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// The sink refused the tables. What the sync began with belongs to the next one.
    pub fn refused(&self) {
        self.0.refusals.inc();
    }

    /// The age of the oldest change that is not in force yet.
    pub fn queued_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let since = state.syncing.since.or(state.queued.since);
        since.map(|since| now.saturating_duration_since(since))
    }

    /// When changes were last put in force.
    pub fn synced_at(&self) -> Option<SystemTime> {
        self.state().synced_at
    }

    fn show_pending(&self) {
        let (services, endpoints) = {
            let State { queued, syncing, .. } = &*self.state();
            (queued.services + syncing.services, queued.endpoints + syncing.endpoints)
        };
        self.0.service_changes_pending.set(services.cast_signed());
        self.0.endpoint_changes_pending.set(endpoints.cast_signed());
    }

    /// Registers all metrics.
    pub fn register(&self, registry: &mut Registry) {
        let inner = &*self.0;
        registry.register(
            "flowgate_publish_refusals",
            "Tables that were refused when published",
            inner.refusals.clone(),
        );
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let mut histogram = |name: &str, help: &str, metric: &PerFamily<Histogram>| {
            registry.register(name, help, metric.clone());
        };
        histogram("sync_proxy_rules_duration_seconds", "Time to compile and publish tables", &inner.sync);
        histogram("sync_full_proxy_rules_duration_seconds", "The same, of all tables anew", &inner.full_sync);
        histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "The same, of what had changed",
            &inner.partial_sync,
        );
        histogram(
            "network_programming_duration_seconds",
            "Time from the change that an EndpointSlice tells of until it is in force",
            &inner.programming,
        );
        let mut gauge = |name: &str, help: &str, metric: &PerFamily<Gauge>| {
            registry.register(name, help, metric.clone());
        };
        gauge(
            "sync_proxy_rules_last_timestamp_seconds",
            "When tables were last put in force",
            &inner.last_sync,
        );
        gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change was last queued",
            &inner.last_queued,
        );
        for (name, help, counter) in [
            ("sync_proxy_rules_endpoint_changes", "Changes of endpoints", &inner.endpoint_changes),
            ("sync_proxy_rules_service_changes", "Changes of Services", &inner.service_changes),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            (
                "sync_proxy_rules_endpoint_changes_pending",
                "Changes of endpoints that are not in force yet",
                &inner.endpoint_changes_pending,
            ),
            (
                "sync_proxy_rules_service_changes_pending",
                "Changes of Services that are not in force yet",
                &inner.service_changes_pending,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn observe_both(family: &PerFamily<Histogram>, took: Duration) {
    for label in [V4, V6] {
        family.get_or_create(&label).observe(took.as_secs_f64());
    }
}

fn set_both(family: &PerFamily<Gauge>, at: SystemTime) {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for label in [V4, V6] {
        family.get_or_create(&label).set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

/// The buckets of P1201.
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// The buckets of P1203.
fn programming_histogram() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

const V4: [(&str, &str); 1] = [("ip_family", "IPv4")];
const V6: [(&str, &str); 1] = [("ip_family", "IPv6")];
/// The most waiting changes that are timed. Only while the sink refuses for long do they pile up.
const TRIGGERS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn exposition(sync_metrics: &SyncMetrics) -> String {
        let mut registry = Registry::default();
        sync_metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn has(sync_metrics: &SyncMetrics, line: &str) {
        let text = exposition(sync_metrics);
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn p1205_p1206_changes_are_pending_until_they_are_in_force() {
        let sync_metrics = SyncMetrics::default();
        let changes = Changes { services: 2, endpoints: 3, ..Changes::default() };
        sync_metrics.changed(&changes, Instant::now());
        tokio::time::advance(Duration::from_secs(7)).await;
        sync_metrics.changed(&changes, Instant::now());
        assert_eq!(
            sync_metrics.queued_for(Instant::now()),
            Some(Duration::from_secs(7)),
            "the oldest counts"
        );
        has(&sync_metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 4");
        sync_metrics.begun();
        has(&sync_metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 4");
        sync_metrics.synced(Duration::from_millis(3), SyncKind::Full);
        assert_eq!(sync_metrics.queued_for(Instant::now()), None);
        for line in [
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 4",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 6",
        ] {
            has(&sync_metrics, line);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p1205_p1206_a_change_during_a_sync_waits_for_the_next_one() {
        let sync_metrics = SyncMetrics::default();
        let change = Changes { services: 1, ..Changes::default() };
        sync_metrics.changed(&change, Instant::now());
        sync_metrics.begun();
        tokio::time::advance(Duration::from_secs(5)).await;
        sync_metrics.changed(&change, Instant::now());
        sync_metrics.refused();
        has(&sync_metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 2");
        assert_eq!(sync_metrics.queued_for(Instant::now()), Some(Duration::from_secs(5)));
        sync_metrics.begun();
        tokio::time::advance(Duration::from_secs(1)).await;
        sync_metrics.changed(&change, Instant::now());
        sync_metrics.synced(Duration::from_secs(1), SyncKind::Partial);
        has(&sync_metrics, "kubeproxy_sync_proxy_rules_service_changes_pending 1");
        assert_eq!(sync_metrics.queued_for(Instant::now()), Some(Duration::ZERO));
    }

    #[test]
    fn p1201_p1202_syncs_are_timed_by_kind() {
        let sync_metrics = SyncMetrics::default();
        sync_metrics.synced(Duration::from_millis(3), SyncKind::Full);
        sync_metrics.synced(Duration::from_secs(60), SyncKind::Partial);
        for line in [
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="16.384",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
        ] {
            has(&sync_metrics, line);
        }
    }

    #[test]
    fn p1203_endpoint_changes_are_timed_from_what_triggered_them_unless_before_the_start() {
        let sync_metrics = SyncMetrics::default();
        let at = |seconds| (SliceFamily::V4, SystemTime::now() + Duration::from_secs(seconds));
        let before = (SliceFamily::V4, SystemTime::now() - Duration::from_secs(3600));
        let changes = Changes { triggers: vec![before, at(1)], ..Changes::default() };
        sync_metrics.changed(&changes, Instant::now());
        sync_metrics.begun();
        sync_metrics.synced(Duration::ZERO, SyncKind::Full);
        sync_metrics.synced(Duration::ZERO, SyncKind::Partial);
        has(&sync_metrics, r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1"#);
        has(
            &sync_metrics,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="0.25",ip_family="IPv4"} 1"#,
        );
        let text = exposition(&sync_metrics);
        let buckets = text.matches("network_programming_duration_seconds_bucket").count();
        assert_eq!(buckets, 2 + 59 + 12 + 7 + 1, "two, 1 to 59, 60 to 115, 120 to 300, and above");
    }

    #[test]
    fn p1204_times_of_the_last_sync_and_the_last_change_are_shown() {
        let sync_metrics = SyncMetrics::default();
        assert!(!exposition(&sync_metrics).contains("last_timestamp_seconds{"));
        sync_metrics.queued(Instant::now());
        sync_metrics.synced(Duration::ZERO, SyncKind::Full);
        let text = exposition(&sync_metrics);
        for name in ["last_timestamp_seconds", "last_queued_timestamp_seconds"] {
            let line = format!("kubeproxy_sync_proxy_rules_{name}{{ip_family=\"IPv4\"}} ");
            let value = text.lines().find_map(|found| found.strip_prefix(&line)).unwrap();
            assert!(value.parse::<u64>().unwrap() > 1_700_000_000, "{value}");
        }
        assert!(sync_metrics.synced_at().is_some());
    }
}
