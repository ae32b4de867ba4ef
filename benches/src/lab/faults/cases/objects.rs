//! Objects that are broken, and objects that ask for very much, beside a thousand good Services under load, in both roles: none
//! of these may notice, not even while the gateway starts again, and the control thread never waits for the others.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use flowgate_fuzz::objects::{GOOD, Hostile, good, good_address, manifest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{TestBed, TestBedOptions};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::gateway::rows;
use crate::lab::interrupt;
use crate::lab::topology::GATEWAY_UPLINK;
use crate::lab::wait::{eventually, eventually_within};
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 2] = [
    Case { name: "hostile_objects", run: on_a_gateway },
    Case { name: "hostile_objects_on_a_node", run: on_a_node },
];

const METRICS_PORT: u16 = 10_249;
/// So many broken objects stand in the manifests at a time.
const BATCH: usize = 1000;
/// The longest time in which the control thread may do nothing else.
const STALL_MAX_MS: f64 = 200.0;
/// For the largest objects to be read and compiled.
const READ_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// A new connection with its answer. Within it fall three SYNs (RFC 6298 section 2), for a gateway that starts again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

fn on_a_gateway(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    hostile_objects(context, TestBedOptions::default(), result)
}

/// Clients that count as pods keep their addresses, so that the XDP program has to know every endpoint.
fn on_a_node(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let config = "[node]\ncluster_cidrs = [\"10.244.0.0/16\"]\n".into();
    hostile_objects(
        context,
        TestBedOptions { role: Some("node"), config, ..TestBedOptions::default() },
        result,
    )
}

fn hostile_objects(
    context: &CaseContext<'_>,
    mut options: TestBedOptions,
    result: &mut CaseResult,
) -> Result<()> {
    let metrics = SocketAddr::from((GATEWAY_UPLINK, METRICS_PORT));
    let _ = write!(options.config, "[metrics]\nlisten = \"{metrics}\"\n");
    let mut bed = TestBed::build(context, options, |_| Ok(()))?;
    let endpoints = bed.backends();
    let list = (0..GOOD).flat_map(|n| good(n, &endpoints[n % endpoints.len()].to_string()));
    bed.gateway.manifests().write("good.json", &file(list.map(manifest)))?;
    let client = bed.client().clone();
    for n in [0, GOOD - 1] {
        let address = good_address(n);
        eventually("the good Services answer", || client.enter(|| Ok(request(&address).is_ok()))?)?;
    }
    let load = bed.web_load(context.connections.min(100))?;
    let requests = Requests::start(&client)?;

    let mut stalls = Vec::new();
    let mut read_stall = |bed: &TestBed, after: &str| -> Result<()> {
        let text = bed.client().enter(|| get(metrics, "/metrics"))?;
        let name = "flowgate_control_longest_stall_seconds ";
        let text = text.map_err(Error::io("read the metrics"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
        let value: f64 = value.ok_or_else(|| Error::State(format!("no metric {name}")))?;
        stalls.push((format!("stall_ms_{after}"), value * 1000.0));
        Ok(())
    };
    let mut hostile = Hostile::new(context.seed);
    let mut left = context.hostile_objects;
    for batch in 0.. {
        if left == 0 {
            break;
        }
        let objects: Vec<_> = hostile.by_ref().take(left.min(BATCH)).map(manifest).collect();
        left -= objects.len();
        apply(&bed, "hostile.json", objects, &format!("batch-{batch}"))?;
        interrupt::check(context.stop)?;
    }
    read_stall(&bed, "broken")?;
    apply(&bed, "huge.json", huge(), "huge")?;
    read_stall(&bed, "huge")?;
    is_left_out(&bed, "external", "limits.service_frontends = ")?;
    ports_are_served(&bed, [("endpoints", 1), ("product", 300)], result)?;
    bed.gateway.restart()?;
    bed.gateway.wait_for_service("good-0")?;
    read_stall(&bed, "restart")?;
    // Each outage by itself: TCP doubles its patience with each segment that is lost.
    load.await_answers()?;
    bed.gateway.kill()?;
    bed.gateway.restart()?;
    bed.gateway.wait_for_service("good-0")?;
    read_stall(&bed, "kill")?;
    restrict(&bed, "[limits]\nservice_endpoints = 60000\n")?;
    for name in ["endpoints", "product"] {
        is_left_out(&bed, name, "limits.service_endpoints = 60000")?;
    }
    ports_are_served(&bed, [("endpoints", 0), ("product", 0)], result)?;
    read_stall(&bed, "restricted")?;
    load.await_answers()?;

    let answered = requests.end();
    result.record("objects", context.hostile_objects);
    result.record("requests", answered.count);
    result.record("slowest_request_ms", answered.slowest.as_secs_f64() * 1000.0);
    let longest = stalls.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    stalls.into_iter().for_each(|(after, ms)| result.record(&after, ms));
    result.record("gap_ms", load.longest_gap_ms());
    result.record_lost(answered.failed, answered.first_failure.as_deref());
    result.expect(answered.count > 100, || format!("only {} requests were made", answered.count));
    result.expect(longest < STALL_MAX_MS, || format!("the control thread was silent for {longest} ms"));
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// Waits until a finding names the Service and the budget that it exceeds.
fn is_left_out(bed: &TestBed, name: &str, budget: &str) -> Result<()> {
    let what = format!("`show tables` names z-huge/{name} with {budget:?}");
    eventually_within(READ_LIMIT, POLL, &what, || {
        let tables = bed.gateway.show_json("tables")?;
        let named = format!("Service z-huge/{name}:");
        let is_it = |finding: &str| finding.contains(&named) && finding.contains(budget);
        Ok(rows(&tables["report"]).filter_map(Value::as_str).any(is_it))
    })
    .map(drop)
}

fn ports_are_served(bed: &TestBed, wanted: [(&str, usize); 2], result: &mut CaseResult) -> Result<()> {
    let show = bed.gateway.show_json("services")?;
    for (name, ports) in wanted {
        let wanted = format!("z-huge/{name}:");
        let served = rows(&show).filter(|row| row.to_string().contains(&wanted)).count();
        result.expect(served == ports, || format!("{served} ports of z-huge/{name} are served, not {ports}"));
    }
    Ok(())
}

/// Adds lines to the configuration of the running gateway.
fn restrict(bed: &TestBed, lines: &str) -> Result<()> {
    let path = bed.gateway.config_path();
    let append = File::options().append(true).open(&path);
    append
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .map_err(Error::io(format!("append to {}", path.display())))?;
    let process = bed.gateway.process_id().ok_or_else(|| Error::State("the gateway does not run".into()))?;
    let process =
        i32::try_from(process).map_err(|error| Error::State(format!("process {process}: {error}")))?;
    kill(Pid::from_raw(process), Signal::SIGHUP).map_err(Error::errno("send SIGHUP"))
}

/// Writes the objects and one more Service, and waits until that is served.
fn apply(bed: &TestBed, file_name: &str, objects: Vec<Value>, last: &str) -> Result<()> {
    let service = json!({"metadata": {"name": last, "namespace": "z-last"},
        "spec": {"clusterIP": "10.96.250.1", "ports": [{"port": 80}]}});
    bed.gateway.manifests().write(file_name, &file(objects.into_iter()))?;
    bed.gateway.manifests().write("last.json", &file(std::iter::once(manifest(("Service", service)))))?;
    let is_served = || Ok(bed.gateway.show(&["services", "-o", "json"])?.contains(last));
    eventually_within(READ_LIMIT, POLL, &format!("{last} is served"), is_served).map(drop)
}

fn file(objects: impl Iterator<Item = Value>) -> String {
    // One document each: of a list that was broken nothing would be read.
    objects.fold(String::new(), |mut text, object| {
        let _ = writeln!(text, "{object}");
        text
    })
}

/// One Service with 70,000 endpoints, one of 300 ports with 1,001 endpoints, and one of 100 ports at 2,700 external addresses.
fn huge() -> Vec<Value> {
    let service = |name: &str, address: u8, ports: usize| {
        let ports: Vec<_> =
            (1..=ports).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        json!({"metadata": {"name": name, "namespace": "z-huge"},
            "spec": {"clusterIP": format!("10.96.240.{address}"), "ports": ports}})
    };
    let slice = |name: &str, first: usize, count: usize, ports: usize| {
        let ports: Vec<_> =
            (1..=ports).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let address = |n: usize| format!("10.{}.{}.{}", 200 + n / 62_500, n / 250 % 250, n % 250 + 1);
        let endpoints: Vec<_> = (first..first + count).map(|n| json!({"addresses": [address(n)]})).collect();
        let slice = json!({"metadata": {"name": format!("{name}-{first}"), "namespace": "z-huge",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
        manifest(("EndpointSlice", slice))
    };
    let mut external = service("external", 3, 100);
    let addresses: Vec<_> = (0..2700).map(|n| format!("198.18.{}.{}", n / 250, n % 250 + 1)).collect();
    external["spec"]["externalIPs"] = json!(addresses);
    let mut objects = vec![
        manifest(("Service", service("endpoints", 1, 1))),
        manifest(("Service", service("product", 2, 300))),
        manifest(("Service", external)),
        slice("product", 0, 1000, 300),
        slice("product", 1000, 1, 300),
        slice("external", 0, 1, 100),
    ];
    objects.extend((0..70).map(|n| slice("endpoints", n * 1000, 1000, 1)));
    objects
}

/// One HTTP request over a connection of its own.
fn request(address: &str) -> std::io::Result<()> {
    let target = SocketAddr::new(address.parse().map_err(std::io::Error::other)?, 80);
    let answer = get(target, "/bytes/16")?;
    answer.starts_with("HTTP/1.1 200").then_some(()).ok_or_else(|| std::io::Error::other(answer))
}

fn get(target: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, REQUEST_TIMEOUT)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[derive(Debug, Default)]
struct Answered {
    count: u64,
    failed: u64,
    slowest: Duration,
    first_failure: Option<String>,
}

/// A thread that makes requests to all good Services, one after the other.
struct Requests {
    stop: Stop,
    thread: JoinHandle<Answered>,
}

impl Requests {
    fn start(client: &Namespace) -> Result<Self> {
        let stop = Stop::default();
        let until = stop.clone();
        let work = move || {
            let mut answered = Answered::default();
            for n in (0..GOOD).cycle() {
                if until.is_stopped() {
                    break;
                }
                let begin = clock::now();
                answered.count += 1;
                if let Err(error) = request(&good_address(n)) {
                    answered.failed += 1;
                    answered.first_failure.get_or_insert_with(|| format!("good-{n}: {error}"));
                }
                answered.slowest = answered.slowest.max(begin.elapsed());
                std::thread::sleep(Duration::from_millis(2));
            }
            answered
        };
        Ok(Self { stop, thread: client.spawn_thread("requests", work)? })
    }

    fn end(self) -> Answered {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
