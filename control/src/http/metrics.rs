//! The metrics server (P1107). The metrics come from the binary, over a channel: they are gathered on another thread.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::listen::{self, Server};
use super::{HttpResponse, TEXT, not_found, response};
use crate::descriptors::DescriptorBudget;
use crate::report::Entry;

/// A request for the metrics in the OpenMetrics text format, or for the reason why there are none. Requests that wait at the
/// same time may get one text.
pub type ExpositionRequest = oneshot::Sender<Result<Bytes, String>>;

/// Where the metrics server listens and what it asks.
#[derive(Debug)]
pub struct Config {
    /// `None`: no server.
    pub listen: Option<SocketAddr>,
    /// Gets a request for each scrape.
    pub requests: mpsc::Sender<ExpositionRequest>,
}

/// Serves until dropped: `/metrics`, `/proxyMode`, and `/healthz`, which shows only that this server responds. `report` as in
/// [`listen::serve`].
pub async fn serve(
    config: &Config,
    budget: &Arc<DescriptorBudget>,
    report: impl Fn(&'static str, Vec<Entry>),
) {
    let Some(address) = config.listen else { return std::future::pending().await };
    listen::serve(SERVER, address, budget, report, |request| {
        let requests = (request.uri().path() == "/metrics").then(|| config.requests.clone());
        async move {
            match requests {
                Some(requests) => exposition(expose(&requests).await),
                None => elsewhere(request.uri().path()),
            }
        }
    })
    .await;
}

async fn expose(requests: &mpsc::Sender<ExpositionRequest>) -> Result<Bytes, String> {
    let ending = || "flowgate is ending".to_owned();
    let (request, text) = oneshot::channel();
    requests.send(request).await.map_err(|_closed| ending())?;
    text.await.unwrap_or_else(|_closed| Err(ending()))
}

fn exposition(text: Result<Bytes, String>) -> HttpResponse {
    match text {
        Ok(text) => response(StatusCode::OK, OPENMETRICS, text),
        Err(reason) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, reason + "\n"),
    }
}

fn elsewhere(path: &str) -> HttpResponse {
    match path {
        "/proxyMode" => response(StatusCode::OK, TEXT, "flowgate"),
        "/healthz" => response(StatusCode::OK, TEXT, "ok"),
        _ => not_found("/metrics, /proxyMode and /healthz"),
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const SERVER: Server = Server { purpose: "metrics", key: "metrics.listen" };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::{budget, free_addresses, get, get_until};

    #[tokio::test]
    async fn p1107_metrics_and_proxy_mode_are_answered() {
        let [address] = free_addresses();
        let (requests, mut received) = mpsc::channel::<ExpositionRequest>(1);
        let server = tokio::spawn(async move {
            let config = Config { listen: Some(address), requests };
            serve(&config, &budget(8), |_, _| {}).await;
        });
        tokio::spawn(async move {
            while let Some(request) = received.recv().await {
                request.send(Ok("# EOF\n".into())).unwrap();
            }
        });
        let metrics = get_until(address, "/metrics", "open", Result::is_ok).await.unwrap();
        assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        let mode = get(address, "/proxyMode").await.unwrap();
        assert!(mode.contains("content-type: text/plain") && mode.ends_with("\r\n\r\nflowgate"), "{mode}");
        assert!(get(address, "/healthz").await.unwrap().ends_with("ok"));
        assert!(get(address, "/other").await.unwrap().starts_with("HTTP/1.1 404"));
        server.abort();
        let failed = exposition(Err("no counters".into()));
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
