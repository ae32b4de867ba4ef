//! `/healthz` and `/livez` (P1106).

use std::collections::BTreeMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::watch;

use super::HealthInputs;
use super::inputs::HealthSnapshot;
use crate::clock;
use crate::descriptors::DescriptorBudget;
use crate::http::listen::{self, Server};
use crate::http::{self, HttpResponse};
use crate::reconcile::Status;
use crate::source::SourceHealth;

/// Responses of each probe by code (P1213).
#[derive(Clone, Debug, Default)]
pub struct ProbeCounts {
    healthz: Family<[(&'static str, String); 1], Counter>,
    livez: Family<[(&'static str, String); 1], Counter>,
}

impl ProbeCounts {
    /// Registers the counters under kube-proxy's names.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        registry.register("proxy_healthz", "Answers of /healthz by code", self.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez by code", self.livez.clone());
    }
}

/// Serves the probes until dropped.
pub(super) async fn serve(
    address: SocketAddr,
    budget: &Arc<DescriptorBudget>,
    inputs: &HealthInputs,
    counts: &ProbeCounts,
    status: &watch::Sender<Status>,
) {
    let report = |purpose, findings| Status::show_listener_findings(status, purpose, findings);
    let handler = |request: Request<Incoming>| ready(respond(request.uri().path(), inputs, counts));
    listen::serve(SERVER, address, budget, report, handler).await;
}

fn respond(path: &str, inputs: &HealthInputs, counts: &ProbeCounts) -> HttpResponse {
    let now = SystemTime::now();
    let (response, counter) = match path {
        "/healthz" => (response(&inputs.snapshot(), Some(inputs.node_eligible()), now), &counts.healthz),
        "/livez" => (response(&inputs.snapshot(), None, now), &counts.livez),
        _ => return http::not_found("/healthz and /livez"),
    };
    counter.get_or_create(&[("code", response.status().as_u16().to_string())]).inc();
    response
}

/// The response of a probe: 503 if this process is not healthy or, for `/healthz`, the node is not eligible. `node` is
/// `None` for `/livez`.
pub fn response(
    snapshot: &HealthSnapshot,
    node: Option<Result<(), String>>,
    now: SystemTime,
) -> HttpResponse {
    let mut reasons = snapshot.unhealthy_reasons();
    let healthy = reasons.is_empty();
    let node_eligible = node.as_ref().map(Result::is_ok);
    let code = match node_eligible.unwrap_or(true) && healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    reasons.extend(node.and_then(Result::err));
    // While healthy, the last update is now, however long ago the last change was.
    let last_updated =
        if healthy { time(now) } else { snapshot.synced_at.map(clock::shown).map_or_else(never, time) };
    let (source, stale_since, source_reason) = match &snapshot.status.source {
        SourceHealth::Starting => ("starting", None, None),
        SourceHealth::Synced => ("synced", None, None),
        SourceHealth::Stale { since, reason } => {
            ("stale", Some(time(clock::shown(*since))), Some(reason.as_str()))
        }
    };
    let family = || FamilyStatus { last_updated: last_updated.clone(), healthy };
    let body = Body {
        current_time: time(now),
        node_eligible,
        healthy,
        // One generation of the tables holds both families, so neither can be behind the other.
        status: BTreeMap::from([("IPv4", family()), ("IPv6", family())]),
        last_updated: last_updated.clone(),
        reasons,
        source,
        source_reason,
        stale_since,
    };
    http::response(code, http::JSON, serde_json::to_vec(&body).expect("text and booleans are JSON"))
}

fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| never(), |at| format!("{at:.3}"))
}

/// Go's zero time, which kube-proxy shows before the first sync.
fn never() -> String {
    "0001-01-01T00:00:00Z".into()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, FamilyStatus>,
    /// Not in kube-proxy: why not healthy, or not eligible.
    reasons: Vec<String>,
    /// Not in kube-proxy: whether the objects are up to date.
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_since: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

const SERVER: Server = Server { purpose: "health probes", key: "health.listen" };

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::health::Identity;
    use crate::health::inputs::tests::healthy;
    use crate::http::tests::{budget, free_addresses, get, get_until};
    use crate::model::Desired;
    use crate::reconcile::SyncMetrics;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    async fn read(response: HttpResponse) -> (u16, Value) {
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn p1106_last_updated_is_now_while_healthy_and_the_last_sync_otherwise() {
        let (code, body) = read(response(&healthy(), Some(Ok(())), at(100))).await;
        assert_eq!(code, 200);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:01:40.000Z");
        assert_eq!(body["currentTime"], "1970-01-01T00:01:40.000Z");
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        let late = HealthSnapshot {
            queued_for: Some(Duration::from_secs(90)),
            synced_at: Some(at(10)),
            ..healthy()
        };
        let (code, body) = read(response(&late, Some(Ok(())), at(100))).await;
        assert_eq!((code, &body["lastUpdated"]), (503, &"1970-01-01T00:00:10.000Z".into()));
        assert_eq!(body["healthy"], false);
        assert_eq!(body["reasons"][0], "a change has not been put in force for 90 s");
    }

    #[tokio::test]
    async fn p1106_the_node_matters_to_healthz_only() {
        let (code, body) = read(response(&healthy(), Some(Err("leaving".into())), at(100))).await;
        assert_eq!((code, &body["nodeEligible"]), (503, &Value::Bool(false)));
        assert_eq!((&body["healthy"], &body["reasons"][0]), (&Value::Bool(true), &"leaving".into()));
        let (code, body) = read(response(&healthy(), None, at(100))).await;
        assert_eq!((code, body.get("nodeEligible")), (200, None));
    }

    #[tokio::test]
    async fn a_source_that_is_away_is_told_and_stays_healthy() {
        let mut snapshot = healthy();
        snapshot.status.source = SourceHealth::Stale { since: at(50), reason: "connection refused".into() };
        let (code, body) = read(response(&snapshot, Some(Ok(())), at(100))).await;
        assert_eq!((code, &body["source"]), (200, &"stale".into()));
        assert_eq!(body["staleSince"], "1970-01-01T00:00:50.000Z");
        assert_eq!(body["sourceReason"], "connection refused");
    }

    #[tokio::test]
    async fn p1213_probes_are_answered_over_http_and_counted_by_code() {
        let [address] = free_addresses();
        let (status, status_receiver) = watch::channel(healthy().status);
        let (_dataplane, dataplane) = watch::channel(Arc::from([]));
        let (_desired, desired) = watch::channel(Arc::<Desired>::default());
        let identity =
            Identity { role: crate::compile::Role::Node, node_name: "this".into(), ..Identity::default() };
        let inputs = HealthInputs {
            status: status_receiver,
            sync_metrics: SyncMetrics::default(),
            dataplane,
            desired,
            identity,
        };
        let counts = ProbeCounts::default();
        let server = {
            let counts = counts.clone();
            tokio::spawn(async move { serve(address, &budget(8), &inputs, &counts, &status).await })
        };
        let livez = get_until(address, "/livez", "open", Result::is_ok).await.unwrap();
        assert!(livez.starts_with("HTTP/1.1 200"), "{livez}");
        let healthz = get(address, "/healthz").await.unwrap();
        assert!(healthz.starts_with("HTTP/1.1 503"), "there is no Node: {healthz}");
        assert!(get(address, "/other").await.unwrap().starts_with("HTTP/1.1 404"));
        server.abort();
        let mut registry = Registry::default();
        counts.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1\n"), "{text}");
        assert!(text.contains("kubeproxy_proxy_livez_total{code=\"200\"} 1\n"), "{text}");
    }
}
