//! The metrics server (P1107). The metrics come from a function that the binary supplies.

use std::future::Future;
use std::net::SocketAddr;

use hyper::StatusCode;

use super::listen::{self, Server};
use super::{HttpResponse, TEXT, not_found, response};
use crate::report::Entry;

/// Serves until dropped: `/metrics` with the text of `expose` in the OpenMetrics format, `/proxyMode`, and `/healthz`,
/// which shows only that this server responds. `report` as in [`listen::serve`].
pub async fn serve<F>(address: SocketAddr, report: impl Fn(&'static str, Vec<Entry>), expose: impl Fn() -> F)
where
    F: Future<Output = Result<String, String>>,
{
    listen::serve(SERVER, address, report, |request| {
        let metrics = (request.uri().path() == "/metrics").then(&expose);
        async move {
            match metrics {
                Some(metrics) => exposition(metrics.await),
                None => elsewhere(request.uri().path()),
            }
        }
    })
    .await;
}

fn exposition(text: Result<String, String>) -> HttpResponse {
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
    use crate::http::tests::{free_addresses, get, get_until};

    #[tokio::test]
    async fn p1107_metrics_and_proxy_mode_are_answered() {
        let [address] = free_addresses();
        let server = tokio::spawn(async move {
            serve(address, |_, _| {}, || std::future::ready(Ok("# EOF\n".to_owned()))).await;
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
