//! `lab demo`: the product against real servers, step by step, with every claim checked.

mod steps;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::gateway::last_lines;
use super::interrupt;
use super::output::print_line;
use super::sample::{
    self, DUAL_STACK, DUAL_STACK_NODE_PORT, FILE_LEN, LOAD_BALANCER_IP, MYSQL, NGINX, PACKETS, PACKETS_SINK,
    SampleCluster, UDP_ECHO,
};
use super::topology::{GATEWAY_UPLINK, Host, ipv6_of};
use crate::clock;
use crate::error::{Error, Result};
use crate::loadgen::packets::{self, PacketOptions};
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::report::{Report as _, grouped, human_rate};
use crate::loadgen::stop::Stop;
use crate::loadgen::stream::{self, Exchange, Greeting, Reuse, StreamOptions, StreamReport, StreamRun};
use crate::loadgen::udp::{self, UdpOptions, UdpReport};
use crate::netns::{Namespace, find_program};
use steps::{Findings, Steps};

pub use steps::DemoOutcome;

const CONVERGENCE_LIMIT: Duration = Duration::from_secs(5);
/// Lines of the gateway's log to show after a failure.
const LOG_LINES: usize = 20;

/// The size of the demonstration.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Connections that transfer while backends are added and removed.
    pub connections: usize,
    /// Duration of each measurement of packets.
    pub measure: Duration,
    /// Flows of the packet load.
    pub flows: u32,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { connections: 200, measure: Duration::from_secs(4), flows: 1000 }
    }
}

/// Runs the demonstration and removes everything it created. Failed claims are in the outcome; an error means that it
/// could not continue.
pub fn demo(options: &DemoOptions, flowgate: &Path, stop: &Stop) -> Result<DemoOutcome> {
    let mut steps = Steps::new(stop);
    let mut cluster = set_up(&mut steps, flowgate)?;
    requests(&mut steps, &cluster)?;
    requests_of_both_families(&mut steps, &cluster, stop)?;
    churn(&mut steps, &mut cluster, options, stop)?;
    views(&mut steps, &cluster, &["services", "backends", "workers", "drops"])?;
    packets_per_second(&mut steps, &cluster, options, stop)?;
    views(&mut steps, &cluster, &["drops"])?;
    if steps.has_failures() {
        views(&mut steps, &cluster, &["workers"])?;
        steps.step("last lines of flowgate's log", |findings| {
            findings.detail(last_lines(&cluster.gateway()?.log(), LOG_LINES));
            Ok(())
        })?;
    }
    steps.step("remove everything", |_| {
        drop(cluster);
        Ok(())
    })?;
    let outcome = steps.summary();
    match outcome.failures.as_slice() {
        [] => print_line(format!("\n{} steps passed in {:.1} s", outcome.passed, outcome.seconds)),
        failures => print_line(format!(
            "\n{} FAILED in {:.1} s:\n  {}",
            failures.len(),
            outcome.seconds,
            failures.join("\n  ")
        )),
    }
    Ok(outcome)
}

fn set_up(steps: &mut Steps<'_>, flowgate: &Path) -> Result<SampleCluster> {
    let mut cluster = steps.step("build the network: client, gateway, fabric, 3 backends", |findings| {
        findings
            .detail("client 192.0.2.10 - up0 192.0.2.1 [gateway] 10.244.0.1 fab0 - backends 10.244.0.11...");
        findings.detail("each host also has an IPv6 address: 10.244.0.11 has 2001:db8:10:244::11");
        SampleCluster::build_network()
    })?;
    steps.step("start nginx in every backend, and the stand-in for mysql", |_| cluster.start_servers())?;
    steps.step("start flowgate in the gateway", |findings| {
        cluster.start_gateway(flowgate)?;
        findings.detail(format!("flowgate run --config {}", cluster.gateway()?.config_path().display()));
        Ok(())
    })?;
    steps.step("apply config/manifests: my-nginx, my-nginx-nodeport, my-nginx-dual-stack, mysql", |_| {
        cluster.apply_manifests()
    })?;
    Ok(cluster)
}

fn requests(steps: &mut Steps<'_>, cluster: &SampleCluster) -> Result<()> {
    let client = &cluster.topology().client().namespace;
    let (cluster_ip, node_port) = (SocketAddr::from(NGINX), sample::node_port_address());
    for (how, target) in [("NodePort", node_port), ("ClusterIP", cluster_ip)] {
        steps.step(&format!("curl http://{target}/ ({how})"), |findings| {
            let answer = await_answer(client, target)?;
            findings.expect(answer.starts_with("backend-"), format!("answer: {}", answer.trim()));
            Ok(())
        })?;
    }
    for (how, target) in [("NodePort", node_port), ("ClusterIP", cluster_ip)] {
        steps.step(&format!("spread of new connections over the backends ({how})"), |findings| {
            let report = new_connections(client, target, Duration::from_millis(500))?;
            show_spread(findings, &report);
            let names: Vec<_> = cluster.web_hosts().into_iter().map(|host| host.name).collect();
            let all = names.iter().all(|name| report.by_backend.contains_key(name));
            findings.expect(all && report.is_clean(), "every backend got connections, none failed");
            Ok(())
        })?;
    }
    steps.step("mysql, a Service without selector: TCP 3306", |findings| {
        let exchange = Exchange::Echo { len: 4096, greeting: Greeting::Name };
        let options = StreamOptions::new(SocketAddr::from(MYSQL), 5, Duration::from_millis(300), exchange);
        let report = run_streams(client, options)?;
        let clients: Vec<_> =
            cluster.mysql()?.clients().snapshot().into_keys().map(|ip| ip.to_string()).collect();
        findings.detail(format!("the server saw the source address {}", clients.join(", ")));
        let text = format!("{} bytes echoed and verified at mysql", grouped(report.bytes_verified));
        findings.expect(report.is_clean() && report.by_backend.contains_key("mysql"), text);
        findings.details_of_failure(&report);
        Ok(())
    })
}

/// Requests to all addresses of a dual-stack Service, then UDP over IPv6.
fn requests_of_both_families(steps: &mut Steps<'_>, cluster: &SampleCluster, stop: &Stop) -> Result<()> {
    let client = &cluster.topology().client().namespace;
    let names: Vec<_> = cluster.web_hosts().into_iter().map(|host| host.name).collect();
    for (how, address, port) in [
        ("LoadBalancer", LOAD_BALANCER_IP, 80),
        ("ClusterIP", DUAL_STACK, 80),
        ("NodePort", GATEWAY_UPLINK, DUAL_STACK_NODE_PORT),
    ] {
        for target in [SocketAddr::from((address, port)), SocketAddr::from((ipv6_of(address), port))] {
            steps.step(&format!("my-nginx-dual-stack at http://{target}/ ({how})"), |findings| {
                let answer = await_answer(client, target)?;
                findings.detail(format!("answer: {}", answer.trim()));
                let report = new_connections(client, target, Duration::from_millis(300))?;
                show_spread(findings, &report);
                let all = names.iter().all(|name| report.by_backend.contains_key(name));
                findings.expect(all && report.is_clean(), "every backend got connections, none failed");
                Ok(())
            })?;
        }
    }
    let (address, port) = UDP_ECHO;
    let target = SocketAddr::from((ipv6_of(address.into()), port));
    steps.step(&format!("udp-echo at {target}: UDP over IPv6, 1,000 per second"), |findings| {
        let probe = UdpOptions::new(target, 1000, Duration::from_secs(1));
        let report = client.enter(|| udp::run(&probe, ProgressOutput::Nothing, stop))??;
        show_datagrams(findings, &report);
        Ok(())
    })
}

/// Adds and removes a backend while connections transfer.
fn churn(
    steps: &mut Steps<'_>,
    cluster: &mut SampleCluster,
    options: &DemoOptions,
    stop: &Stop,
) -> Result<()> {
    let client = cluster.topology().client().namespace.clone();
    let target = SocketAddr::from(NGINX);
    let load = steps.step(
        &format!("open {} connections that keep transferring", options.connections),
        |findings| {
            let load = long_lived(&client, target, options.connections)?;
            let all_open = || open_connections(&load.snapshot()) >= options.connections as u64;
            let _ = poll(stop, all_open)?;
            show_open(findings, &load.snapshot());
            findings.expect(all_open(), "all are open");
            Ok(load)
        },
    )?;

    let added = steps.step("add a backend under load", |findings| {
        let added = cluster.add_web_backend()?;
        let begin = clock::now();
        cluster.set_web_endpoints(&cluster.web_hosts())?;
        let used = await_spread(&client, target, stop, |spread| spread.contains_key(&added.name))?;
        show_convergence(findings, used, begin, &format!("{} gets new connections", added.name));
        show_spread(findings, &new_connections(&client, target, Duration::from_millis(500))?);
        Ok(added)
    })?;

    let removed = steps.step("remove a backend under load", |findings| {
        let (removed, rest): (Vec<Host>, Vec<Host>) =
            cluster.web_hosts().into_iter().partition(|host| host.name == "backend-2");
        let removed = removed.into_iter().next().expect("the lab starts with backend-2").name;
        let begin = clock::now();
        cluster.set_web_endpoints(&rest)?;
        let avoided = await_spread(&client, target, stop, |spread| !spread.contains_key(&removed))?;
        show_convergence(findings, avoided, begin, &format!("{removed} gets no new connections"));
        let report = new_connections(&client, target, Duration::from_millis(500))?;
        show_spread(findings, &report);
        findings.expect(!report.by_backend.contains_key(&removed), format!("none of them at {removed}"));
        findings.expect(
            report.by_backend.contains_key(&added.name),
            format!("{} still has its share", added.name),
        );
        Ok(removed)
    })?;

    check_survivors(steps, load, &removed, stop)
}

/// Ends the load: only connections to the removed backend may have failed.
fn check_survivors(steps: &mut Steps<'_>, load: StreamRun, removed: &str, stop: &Stop) -> Result<()> {
    steps.step("no connection to a living backend broke", |findings| {
        interrupt::sleep(stop, Duration::from_millis(500))?;
        let report = load.finish()?;
        let (mut broken, mut gone) = (0, 0);
        for (name, tally) in &report.by_backend {
            *(if name == removed { &mut gone } else { &mut broken }) += tally.broken;
        }
        findings.detail(format!(
            "{} bytes in {} answers",
            grouped(report.bytes_verified),
            grouped(report.exchanges)
        ));
        findings.detail(format!("latency of an answer: {}", report.latency.line()));
        findings.detail(format!("broken at {removed}, which left its Services: {gone}"));
        let wrong = report.broken_by("mismatch");
        findings.expect(
            broken == 0 && wrong == 0,
            format!("broken at living backends: {broken}, wrong bytes: {wrong}"),
        );
        let failed: u64 = report.connect_failures.values().sum();
        findings.expect(failed == 0, format!("connection attempts that failed: {failed}"));
        if broken + failed + wrong > 0 {
            findings.details_of_failure(&report);
        }
        Ok(())
    })
}

fn views(steps: &mut Steps<'_>, cluster: &SampleCluster, what: &[&str]) -> Result<()> {
    for view in what {
        steps.step(&format!("flowgate show {view}"), |findings| {
            findings.detail(cluster.gateway()?.show(&[view])?);
            Ok(())
        })?;
    }
    Ok(())
}

/// Latency at a fixed rate, then packets per second.
fn packets_per_second(
    steps: &mut Steps<'_>,
    cluster: &SampleCluster,
    options: &DemoOptions,
    stop: &Stop,
) -> Result<()> {
    let client = &cluster.topology().client().namespace;
    steps.step("latency of UDP there and back, 5,000 per second", |findings| {
        let probe = UdpOptions::new(SocketAddr::from(UDP_ECHO), 5000, Duration::from_secs(3));
        let report = client.enter(|| udp::run(&probe, ProgressOutput::Bar, stop))??;
        show_datagrams(findings, &report);
        Ok(())
    })?;
    let title = format!("packets per second, 60-byte UDP, {} flows", grouped(options.flows.into()));
    steps.step(&title, |findings| {
        let sink = cluster.topology().sink_at_gateway(PACKETS_SINK)?;
        let (before, (address, port)) = (sink.counters()?.packets, PACKETS);
        let (report, arrived) = client.enter(|| {
            let hop = packets::resolve(address.into())?;
            let destination = std::net::SocketAddrV4::new(address.into(), port);
            let load =
                PacketOptions::new(&hop.interface, hop.mac, destination, options.flows, options.measure);
            let report = packets::run(load, ProgressOutput::Bar, stop)?;
            Ok::<_, Error>((report, sink.counters()?.packets - before))
        })??;
        let seconds = report.seconds;
        let rate = crate::loadgen::report::per_second(arrived, seconds);
        findings.detail(format!("offered   {}", human_rate(report.offered_per_second)));
        findings.expect(arrived > 0, format!("delivered {}, {} packets", human_rate(rate), grouped(arrived)));
        findings.detail("(one core sends at full rate; packets are counted where they leave the gateway)");
        Ok(())
    })
}

impl Findings {
    fn details_of_failure(&mut self, report: &StreamReport) {
        if let Some(failure) = &report.first_failure {
            self.detail(format!("first failure: {failure}"));
        }
    }
}

fn run_streams(client: &Namespace, options: StreamOptions) -> Result<StreamReport> {
    client.enter(|| stream::run(options, ProgressOutput::Nothing, &Stop::default()))?
}

fn long_lived(client: &Namespace, target: SocketAddr, connections: usize) -> Result<StreamRun> {
    let exchange = Exchange::Http { path: format!("/bytes/{FILE_LEN}") };
    let mut options = StreamOptions::new(target, connections, Duration::from_secs(3600), exchange);
    options.pause = Duration::from_millis(50);
    stream::start(client, options)
}

fn open_connections(report: &StreamReport) -> u64 {
    report.by_backend.values().map(|tally| tally.open).sum()
}

/// Opens a connection for each request, ten at a time.
fn new_connections(client: &Namespace, target: SocketAddr, duration: Duration) -> Result<StreamReport> {
    let mut options = StreamOptions::new(target, 10, duration, Exchange::Http { path: "/".into() });
    (options.reuse, options.pause) = (Reuse::PerExchange, Duration::from_millis(2));
    run_streams(client, options)
}

/// Waits until the spread of new connections is as wanted; `false` after [`CONVERGENCE_LIMIT`].
fn await_spread(
    client: &Namespace,
    target: SocketAddr,
    stop: &Stop,
    wanted: impl Fn(&BTreeMap<String, stream::BackendTally>) -> bool,
) -> Result<bool> {
    let deadline = clock::now() + CONVERGENCE_LIMIT;
    while clock::now() < deadline {
        interrupt::check(stop)?;
        if wanted(&new_connections(client, target, Duration::from_millis(60))?.by_backend) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn poll(stop: &Stop, condition: impl Fn() -> bool) -> Result<bool> {
    let deadline = clock::now() + CONVERGENCE_LIMIT;
    while !condition() {
        if clock::now() > deadline {
            return Ok(false);
        }
        interrupt::sleep(stop, Duration::from_millis(10))?;
    }
    Ok(true)
}

fn show_spread(findings: &mut Findings, report: &StreamReport) {
    let total = report.exchanges.max(1);
    let mut line = format!("{} new connections:", report.exchanges);
    for (name, tally) in &report.by_backend {
        write!(line, "  {name} {} %", (tally.exchanges * 100 + total / 2) / total)
            .expect("writing to a String cannot fail");
    }
    findings.detail(line);
}

fn show_datagrams(findings: &mut Findings, report: &UdpReport) {
    findings.detail(report.latency.line());
    let (lost, wrong) = (report.lost, report.mismatches);
    let text = format!("{} sent, {lost} lost, {} reordered, {wrong} wrong", report.sent, report.reordered);
    // The first datagrams of a flow may be lost while the gateway resolves its neighbour.
    findings.expect(report.received > 0 && lost <= u64::from(report.flows) && wrong == 0, text);
}

fn show_open(findings: &mut Findings, report: &StreamReport) {
    let open: Vec<_> =
        report.by_backend.iter().map(|(name, tally)| format!("{name} {}", tally.open)).collect();
    findings.detail(format!("open: {}", open.join("  ")));
}

fn show_convergence(findings: &mut Findings, happened: bool, begin: Instant, what: &str) {
    let text = if happened {
        format!("{what}, seen {:.0} ms after the manifest changed", begin.elapsed().as_secs_f64() * 1e3)
    } else {
        format!("{what}: did not happen within {} s", CONVERGENCE_LIMIT.as_secs())
    };
    findings.expect(happened, text);
}

/// The first answer of a Service; the gateway may still have to resolve its neighbours.
fn await_answer(client: &Namespace, target: SocketAddr) -> Result<String> {
    let deadline = clock::now() + CONVERGENCE_LIMIT;
    loop {
        match request(client, target) {
            Err(error) if clock::now() > deadline => return Err(error),
            Err(Error::Command { .. } | Error::State(_)) => {}
            answer => return answer,
        }
    }
}

/// One request by `curl`, or by our own client if curl is not installed.
fn request(client: &Namespace, target: SocketAddr) -> Result<String> {
    if let Some(curl) = find_program("curl") {
        let mut command = Command::new(curl);
        command.args(["-sS", "--max-time", "2", &format!("http://{target}/")]);
        return client.check(command);
    }
    let report = new_connections(client, target, Duration::from_millis(20))?;
    let name = report.by_backend.keys().next().cloned();
    name.ok_or_else(|| Error::State(format!("nothing answers at {target}: {:?}", report.first_failure)))
}
