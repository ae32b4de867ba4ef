//! Health and metrics of the real binary, requested over the network as load balancers and Prometheus do.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Result;
use flowgate_benches::lab::topology::GATEWAY_UPLINK;
use flowgate_benches::netns::Namespace;

use crate::support::{Lab, eventually, get, http_answer, rows, sample, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const HEALTH_PORT: u16 = 32_100;
const PROBES: u16 = 10_256;
const METRICS: u16 = 10_249;

/// A Service with a health check port, and its slice.
fn web(port: u16, ready: bool, backend: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {port}
  clusterIP: 10.96.0.10
  selector: {{app: web}}
  ports: [{{name: main, port: 80, nodePort: 30080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: main, port: 8080}}]
endpoints: [{{addresses: [{backend}], conditions: {{ready: {ready}}}}}]
"
    )
}

/// The whole answer to a GET, as text.
fn ask(from: &Namespace, address: impl Into<SocketAddr>, path: &str) -> Result<String> {
    let address = address.into();
    from.enter(|| http_answer(address, path))?
}

fn answers(from: &Namespace, address: impl Into<SocketAddr>, path: &str, code: u16) -> Result<()> {
    let address = address.into();
    let start = format!("HTTP/1.1 {code} ");
    eventually(&format!("{address}{path} answers {code}"), || {
        Ok(ask(from, address, path).is_ok_and(|text| text.starts_with(&start)))
    })
}

#[test]
fn p323_a_load_balancer_sees_the_health_check_port_of_a_service_come_follow_its_endpoints_and_go()
-> Result<()> {
    let lab = Lab::with_backends(1)?;
    let backend = lab.addresses()[0];
    let manifests = lab.gateway.manifests();
    let probe = SocketAddr::from((GATEWAY_UPLINK, HEALTH_PORT));
    manifests.write("web.yaml", &web(HEALTH_PORT, true, backend))?;
    answers(lab.client(), probe, "/", 200)?;
    let answer = ask(lab.client(), probe, "/")?;
    assert!(answer.contains("x-load-balancing-endpoint-weight: 1\r\n"), "{answer}");
    assert!(answer.contains("\"localEndpoints\":1,\"serviceProxyHealthy\":true"), "{answer}");
    manifests.write("web.yaml", &web(HEALTH_PORT, false, backend))?;
    answers(lab.client(), probe, "/", 503)?;
    manifests.write("web.yaml", &web(HEALTH_PORT + 1, true, backend))?;
    answers(lab.client(), (GATEWAY_UPLINK, HEALTH_PORT + 1), "/", 200)?;
    eventually("the old port is closed", || Ok(ask(lab.client(), probe, "/").is_err()))
}

#[test]
fn p1104_a_taken_health_check_port_is_shown_with_its_service_and_the_service_works() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let _servers = lab.http_servers(8080)?;
    let taken =
        lab.topology.gateway().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, HEALTH_PORT)))??;
    lab.gateway.manifests().write("web.yaml", &web(HEALTH_PORT, true, lab.addresses()[0]))?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    let expected = format!(
        "Service default/web: healthCheckNodePort {HEALTH_PORT}: cannot listen on 0.0.0.0:{HEALTH_PORT}: "
    );
    let findings = || -> Result<Vec<String>> {
        Ok(rows(&lab.show("tables")?["report"]).map(|line| text(line).to_owned()).collect())
    };
    let is_named = || Ok(findings()?.iter().any(|line| line.contains(&expected)));
    eventually("the port is reported", is_named)?;
    assert!(lab.gateway.log().contains(&expected), "the log has it too");
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");
    drop(taken);
    answers(lab.client(), (GATEWAY_UPLINK, HEALTH_PORT), "/", 200)?;
    eventually("the report is gone", || Ok(!is_named()?))
}

#[test]
fn p1106_p1107_probes_and_metrics_tell_what_the_gateway_does() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let _servers = lab.http_servers(8080)?;
    lab.gateway.manifests().write("web.yaml", &web(HEALTH_PORT, true, lab.addresses()[0]))?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    for path in ["/healthz", "/livez"] {
        answers(lab.client(), (GATEWAY_UPLINK, PROBES), path, 200)?;
    }
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");

    let own = lab.topology.gateway();
    let metrics = || ask(own, (Ipv4Addr::LOCALHOST, METRICS), "/metrics");
    let rx = "flowgate_worker_rx_packets_total{worker=\"0\"}";
    // Counts appear a burst later, and the last packets of the connection may be under way.
    eventually("metrics and `show workers` agree", || {
        let exposition = metrics()?;
        #[expect(clippy::cast_precision_loss, reason = "a handful of packets")]
        let shown = lab.event("rx_packets")? as f64;
        let seen = sample(&exposition, rx)?;
        Ok(seen >= 5.0 && (seen - shown).abs() < f64::EPSILON)
    })?;
    let exposition = metrics()?;
    assert!(exposition.ends_with("# EOF\n"), "{exposition}");
    let service = "namespace=\"default\",service=\"web\",port=\"main\",protocol=\"TCP\"";
    for (name, expected) in [
        ("flowgate_worker_running{worker=\"0\"}", 1.0),
        ("flowgate_healthy", 1.0),
        ("flowgate_objects{kind=\"Service\"}", 1.0),
        ("flowgate_backends", 1.0),
        (&format!("flowgate_service_backends{{{service}}}"), 1.0),
        (&format!("flowgate_service_flows{{{service}}}"), 1.0),
        ("kubeproxy_sync_proxy_rules_service_changes_total", 1.0),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 0.0),
        ("kubeproxy_proxy_livez_total{code=\"200\"}", 1.0),
    ] {
        let seen = sample(&exposition, name)?;
        assert!((seen - expected).abs() < f64::EPSILON, "{name} is {seen}, not {expected}");
    }
    assert!(
        sample(&exposition, "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}")? >= 1.0
    );
    assert!(sample(&exposition, "flowgate_xdp_packets_total{reason=\"redirect_vip\"}")? >= 3.0);
    assert!(
        exposition.contains("flowgate_socket_dropped_packets_total{worker=\"0\",interface="),
        "{exposition}"
    );
    let mode = ask(own, (Ipv4Addr::LOCALHOST, METRICS), "/proxyMode")?;
    assert!(mode.ends_with("\r\n\r\nflowgate"), "{mode}");
    let outside = ask(lab.client(), (GATEWAY_UPLINK, METRICS), "/metrics");
    assert!(outside.is_err(), "metrics are for this host only, unless it is said otherwise");
    Ok(())
}
