//! Stream and datagram generators against the servers of the lab, with kernel forwarding in place of the gateway.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands, its helpers too")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowgate_benches::lab::servers::echo::{
    EchoAnswer, EchoFault, EchoOptions, TcpEchoServer, UdpEchoServer,
};
use flowgate_benches::lab::servers::http::{HttpServer, HttpServerOptions};
use flowgate_benches::lab::servers::nginx::Nginx;
use flowgate_benches::lab::topology::{Host, Topology, TopologyOptions};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::report::Report as _;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, Reuse, StreamOptions, StreamReport};
use flowgate_benches::loadgen::udp::{self, UdpOptions};

use crate::common::{eventually, require_root};

const RUN: Duration = Duration::from_millis(500);

fn lab() -> Topology {
    require_root();
    Topology::build(TopologyOptions { backends: 1, ..TopologyOptions::default() }).unwrap()
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::from((host.address, port))
}

fn run(lab: &Topology, options: StreamOptions) -> StreamReport {
    lab.client()
        .namespace
        .enter(|| stream::run(options, ProgressOutput::Nothing, &Stop::default()))
        .unwrap()
        .unwrap()
}

fn echo(len: usize, greeting: Greeting) -> Exchange {
    Exchange::Echo { len, greeting }
}

fn get(path: &str) -> Exchange {
    Exchange::Http { path: path.into() }
}

#[test]
fn kept_echo_connections_verify_every_byte_and_name_their_backend() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let server =
        TcpEchoServer::start(&backend.namespace, EchoOptions::new("one", 7000, EchoAnswer::Name)).unwrap();
    let report = run(&lab, StreamOptions::new(at(backend, 7000), 50, RUN, echo(10_000, Greeting::Name)));
    assert!(report.is_clean(), "{}", report.table());
    assert_eq!((report.connects, report.by_backend["one"].connections), (50, 50));
    assert_eq!(report.bytes_verified, report.exchanges * 10_000);
    assert_eq!(report.latency.count, report.exchanges);
    assert_eq!(server.clients().snapshot(), [(IpAddr::from([192, 0, 2, 10]), 50)].into());
}

#[test]
fn an_exchange_larger_than_all_buffers_does_not_hang() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let _server =
        TcpEchoServer::start(&backend.namespace, EchoOptions::new("one", 7000, EchoAnswer::Echo)).unwrap();
    let report = run(&lab, StreamOptions::new(at(backend, 7000), 1, RUN, echo(32 << 20, Greeting::None)));
    assert!(report.is_clean(), "{}", report.table());
}

#[test]
fn http_kept_alive_and_per_request() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let server = HttpServer::start(&backend.namespace, HttpServerOptions::new("web", 80)).unwrap();
    let mut options = StreamOptions::new(at(backend, 80), 8, RUN, get("/bytes/100000"));
    let kept = run(&lab, options.clone());
    assert!(kept.is_clean(), "{}", kept.table());
    assert_eq!((kept.connects, kept.by_backend["web"].exchanges), (8, kept.exchanges));
    assert_eq!(kept.bytes_verified, kept.exchanges * 100_000);

    (options.reuse, options.exchange) = (Reuse::PerExchange, get("/"));
    let fresh = run(&lab, options);
    assert!(fresh.is_clean(), "{}", fresh.table());
    assert_eq!(fresh.connects, fresh.exchanges);
    assert_eq!(server.requests(), kept.exchanges + fresh.exchanges);
    assert_eq!(server.clients().total(), 8 + fresh.connects);
}

#[test]
fn nginx_serves_the_same_pattern() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let _nginx = Nginx::start(&backend.namespace, "backend-1", 80, &[5000]).unwrap();
    let report = run(&lab, StreamOptions::new(at(backend, 80), 4, RUN, get("/bytes/5000")));
    assert!(report.is_clean(), "{}", report.table());
    assert_eq!(report.by_backend["backend-1"].exchanges, report.exchanges);
}

#[test]
fn corrupting_servers_are_detected() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let mut echo_options = EchoOptions::new("liar", 7000, EchoAnswer::Echo);
    echo_options.fault = Some(EchoFault::CorruptByte(5_432));
    let _echo = TcpEchoServer::start(&backend.namespace, echo_options).unwrap();
    let report = run(&lab, StreamOptions::new(at(backend, 7000), 1, RUN, echo(1000, Greeting::None)));
    assert!(!report.is_clean() && report.broken_by("mismatch") > 0, "{}", report.table());
    assert!(report.first_failure.unwrap().contains("byte 5432"));

    let mut http_options = HttpServerOptions::new("liar", 80);
    http_options.corrupt_byte = Some(70_000);
    let _http = HttpServer::start(&backend.namespace, http_options).unwrap();
    let report = run(&lab, StreamOptions::new(at(backend, 80), 1, RUN, get("/bytes/70001")));
    assert!(!report.is_clean() && report.broken_by("mismatch") > 0, "{}", report.table());
    assert!(report.first_failure.unwrap().contains("byte 70000"));
    // Streams that end before the corrupted byte are correct.
    assert!(run(&lab, StreamOptions::new(at(backend, 80), 1, RUN, get("/bytes/70000"))).is_clean());
}

#[test]
fn a_server_that_goes_away_breaks_its_connections_and_refuses_new_ones() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let server =
        TcpEchoServer::start(&backend.namespace, EchoOptions::new("gone", 7000, EchoAnswer::Name)).unwrap();
    let options =
        StreamOptions::new(at(backend, 7000), 10, Duration::from_secs(60), echo(100, Greeting::Name));
    let load = stream::start(&lab.client().namespace, options).unwrap();
    eventually("every connection", || load.snapshot().by_backend.get("gone").is_some_and(|at| at.open == 10));
    drop(server);
    eventually("the refusals", || load.snapshot().connect_failures.contains_key("refused"));
    let report = load.finish().unwrap();
    assert_eq!(report.by_backend["gone"].broken, 10, "{}", report.table());
    assert_eq!(report.by_backend["gone"].open, 0);
}

#[test]
fn a_draining_server_says_goodbye_and_breaks_nothing() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let server = HttpServer::start(&backend.namespace, HttpServerOptions::new("web", 80)).unwrap();
    server.set_delay(Duration::from_millis(20));
    let options = StreamOptions::new(at(backend, 80), 10, Duration::from_secs(60), get("/bytes/1000"));
    let load = stream::start(&lab.client().namespace, options).unwrap();
    eventually("every connection", || load.snapshot().exchanges > 50);
    assert_eq!(server.open_connections(), 10);
    assert_eq!(server.drain(Duration::from_secs(5)), 0, "all requests under way were answered");
    let report = load.finish().unwrap();
    // New connections may be refused once draining starts; established ones must not break.
    assert_eq!(report.by_backend["web"].broken, 0, "{}", report.table());
}

#[test]
fn nobody_there_is_a_failure_and_not_an_empty_success() {
    let lab = lab();
    let report = run(&lab, StreamOptions::new(at(&lab.backends()[0], 9), 2, RUN, echo(10, Greeting::None)));
    assert!(!report.is_clean());
    assert!(report.connect_failures["refused"] > 0);
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["exchanges"], 0);
}

#[test]
fn udp_probes_come_back_in_order_and_whole() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let server =
        UdpEchoServer::start(&backend.namespace, EchoOptions::new("udp", 7000, EchoAnswer::Echo)).unwrap();
    let options = UdpOptions::new(at(backend, 7000), 2000, RUN);
    let report = lab
        .client()
        .namespace
        .enter(|| udp::run(&options, ProgressOutput::Nothing, &Stop::default()))
        .unwrap()
        .unwrap();
    assert!(report.is_clean(), "{}", report.table());
    assert_eq!((report.sent, report.received, report.reordered), (1000, 1000, 0));
    assert_eq!(report.latency.count, 1000);
    assert_eq!(server.clients().total(), 1000);
}

#[test]
fn lost_wrong_and_foreign_answers_are_counted() {
    let lab = lab();
    let backend = &lab.backends()[0];
    let faults = [
        (7001, EchoAnswer::Echo, Some(EchoFault::LoseEvery(10))),
        (7002, EchoAnswer::Echo, Some(EchoFault::CorruptByte(30))),
        (7003, EchoAnswer::Name, None),
    ];
    let reports = faults.map(|(port, answer, fault)| {
        let mut options = EchoOptions::new("udp", port, answer);
        options.fault = fault;
        let _server = UdpEchoServer::start(&backend.namespace, options).unwrap();
        let options = UdpOptions::new(at(backend, port), 1000, RUN);
        let run = || udp::run(&options, ProgressOutput::Nothing, &Stop::default());
        lab.client().namespace.enter(run).unwrap().unwrap()
    });
    assert_eq!((reports[0].sent, reports[0].lost, reports[0].mismatches), (500, 50, 0));
    assert_eq!((reports[1].lost, reports[1].mismatches), (0, 500));
    assert_eq!((reports[2].received, reports[2].foreign), (0, 500));
    assert!(reports.iter().all(|report| !report.is_clean()));
}
