//! Connections go on through restarts, worker failures, and interfaces that come and go.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer};
use flowgate_benches::lab::servers::http::HttpServer;
use flowgate_benches::lab::topology::{GATEWAY_UPLINK, Topology, TopologyOptions, UPLINK};
use flowgate_benches::loadgen::stream::StreamRun;
use flowgate_benches::netns::Namespace;

use crate::support::{FLOWGATE, Lab, admin, eventually, get, number, one_at_a_time, rows, snmp, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const ECHO: u16 = 7;
const CONNECTIONS: usize = 40;
/// After how long a worker that stands still is said to hang: shorter than by default.
const HANG: &str = "hold_ms = 30000\n[workers]\nhang_ms = 400\n";
/// How long traffic is held: a start may be slow where many tests run. The key belongs to the section `xdp`, which is
/// the last that the lab writes.
const HOLD: &str = "hold_ms = 30000\n";

/// A lab with Service `web`, whose port 80 is HTTP and whose port 7 echoes.
struct Served {
    lab: Lab,
    _echo: Vec<TcpEchoServer>,
    _http: Vec<HttpServer>,
}

impl Served {
    fn on(topology: Topology, extra_config: &str) -> Result<Self> {
        let mut options = GatewayOptions::new(FLOWGATE);
        extra_config.clone_into(&mut options.extra_config);
        let gateway = Gateway::start(topology.gateway(), options)?;
        let lab = Lab { gateway, topology };
        let http = lab.http_servers(8080)?.into_values().collect();
        let hosts = lab.topology.backends().iter();
        let echo = hosts.map(|host| {
            TcpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, 8007, EchoAnswer::Name))
        });
        let echo = echo.collect::<Result<_, _>>()?;
        for (name, port, target) in [("web", 80, 8080), ("echo", ECHO, 8007)] {
            let service = ServiceSpec::single(name, CLUSTER_IP.into(), L4Protocol::Tcp, port, target);
            lab.gateway.manifests().apply(&service, &lab.addresses())?;
        }
        let served = Self { lab, _echo: echo, _http: http };
        served.is_ready()?;
        Ok(served)
    }

    fn with_two_backends(extra_config: &str) -> Result<Self> {
        Self::on(
            Topology::build(TopologyOptions { backends: 2, ..TopologyOptions::default() })?,
            extra_config,
        )
    }

    fn is_ready(&self) -> Result<()> {
        let backends = 2 * self.lab.addresses().len();
        eventually("both Services are served", || Ok(self.lab.active_backends()?.len() == backends))
    }

    /// Connections that are kept open and exchange a few bytes all the time.
    fn load(&self) -> Result<StreamRun> {
        self.lab.echo_load((CLUSTER_IP, ECHO).into(), CONNECTIONS)
    }

    /// All connections are still those of the beginning.
    fn none_was_lost(&self, load: StreamRun) -> Result<()> {
        let report = load.finish()?;
        assert_eq!((report.failures(), report.connects), (0, CONNECTIONS as u64), "{report:?}");
        let resets = snmp(self.lab.topology.gateway(), "Tcp", "OutRsts")?;
        assert_eq!(resets, 0, "the gateway's kernel answered for a Service");
        Ok(())
    }

    fn worker_states(&self) -> Result<Vec<String>> {
        Ok(rows(&self.lab.show("workers")?).map(|worker| text(&worker["state"]).to_owned()).collect())
    }

    /// Breaks a worker by the admin socket.
    fn inject(&self, worker: usize, fault: &str) -> Result<()> {
        let question = format!(r#"{{"show":"fault","worker":{worker},"fault":"{fault}"}}"#);
        let answer = admin(&self.lab.gateway.socket_path(), &question)?;
        anyhow::ensure!(answer.contains("workers"), "{answer}");
        Ok(())
    }

    fn wait_for_log(&self, what: &str) -> Result<()> {
        eventually(&format!("the log says {what:?}"), || Ok(self.lab.gateway.log().contains(what)))
    }
}

/// Runs until every connection has exchanged something again, and says how long that took from the start.
fn gap(what: &str, load: &StreamRun, start: Instant) -> Result<Duration> {
    let before = load.snapshot().exchanges;
    // A segment that was lost is sent again after 200 ms at first, then after twice as long each time.
    eventually(what, || Ok(load.snapshot().exchanges > before + 4 * CONNECTIONS as u64))?;
    Ok(start.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "gaps are measured")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn open_connections_survive_restarts_and_kills() -> Result<()> {
    let _turn = one_at_a_time();
    let mut served = Served::with_two_backends(HOLD)?;
    let load = served.load()?;
    for round in 0..2 {
        let start = now();
        served.lab.gateway.restart()?;
        served.is_ready()?;
        eprintln!("restart {round}: {:?}", gap("the connections go on after a restart", &load, start)?);
        let start = now();
        served.lab.gateway.kill()?;
        served.lab.gateway.restart()?;
        served.is_ready()?;
        eprintln!("kill {round}: {:?}", gap("the connections go on after a kill", &load, start)?);
    }
    assert!(served.lab.metric("flowgate_flows_adopted")? >= CONNECTIONS as f64);
    assert_eq!(get(served.lab.client(), (CLUSTER_IP, 80))?.find("backend-"), Some(0));
    served.none_was_lost(load)
}

#[test]
fn without_a_successor_the_traffic_is_held_for_a_while_and_then_passes() -> Result<()> {
    let mut served = Served::with_two_backends("")?;
    served.lab.gateway.kill()?;
    let ask =
        |timeout| served.lab.client().enter(|| TcpStream::connect_timeout(&(CLUSTER_IP, 80).into(), timeout));
    let held = ask(Duration::from_millis(1500))?.map(drop).map_err(|error| error.kind());
    assert_eq!(held, Err(std::io::ErrorKind::TimedOut), "nobody answers while the traffic is held");
    eventually("the traffic passes to the kernel, which knows no such address", || {
        let passed = ask(Duration::from_millis(200))?.map_err(|error| error.kind());
        Ok(!matches!(passed, Err(std::io::ErrorKind::TimedOut)))
    })?;
    served.lab.gateway.restart().context("a start after that")?;
    served.is_ready()?;
    get(served.lab.client(), (CLUSTER_IP, 80)).map(drop)
}

#[test]
fn a_table_of_another_size_begins_anew_and_says_so() -> Result<()> {
    let mut served = Served::with_two_backends("[flows]\ncapacity = 4096\n")?;
    get(served.lab.client(), (CLUSTER_IP, 80))?;
    let config = served.lab.gateway.config_path();
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("capacity = 4096", "capacity = 8192"))?;
    served.lab.gateway.restart()?;
    served.is_ready()?;
    served.wait_for_log(
        "flows of IPv4 begin anew, the last process left some of no use: it is made for 4096 flows",
    )?;
    get(served.lab.client(), (CLUSTER_IP, 80))?;
    assert_eq!(served.lab.metric("flowgate_flows_adopted")?, 0.0);

    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("capacity = 8192", "capacity = 8192\nkeep = false"))?;
    served.lab.gateway.restart()?;
    served.is_ready()?;
    get(served.lab.client(), (CLUSTER_IP, 80))?;
    let folder = served.lab.gateway.socket_path().with_file_name("flows");
    assert!(!served.lab.topology.gateway().run(move || folder.exists()), "what was kept is gone");
    Ok(())
}

#[test]
fn a_worker_that_panics_is_replaced_and_one_that_always_does_is_given_up() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::with_two_backends(HOLD)?;
    let load = served.load()?;
    let pid = served.lab.gateway.process_id();
    let counted = served.lab.event("rx_packets")?;
    let panics = "flowgate_worker_restarts_total{reason=\"panic\"}";
    for round in 1..=5 {
        let start = now();
        served.inject(0, "panic")?;
        eprintln!("panic {round}: {:?}", gap("the connections go on after a panic", &load, start)?);
        eventually("the panic is counted", || Ok(served.lab.metric(panics)? == f64::from(round)))?;
        assert_eq!(served.worker_states()?, ["running"]);
    }
    assert_eq!(served.lab.gateway.process_id(), pid);
    assert!(served.lab.event("rx_packets")? > counted, "the counts go on");
    served.none_was_lost(load)?;

    served.inject(0, "panic")?;
    eventually("the worker is given up", || Ok(served.worker_states()? == ["dead"]))?;
    served.wait_for_log("no other worker takes its place")?;
    assert_eq!(served.lab.metric(panics)?, 5.0);
    assert_eq!(served.lab.metric("flowgate_worker_running{worker=\"0\"}")?, 0.0);
    Ok(())
}

#[test]
fn a_worker_that_hangs_makes_the_process_begin_anew_under_its_old_id() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::with_two_backends(HANG)?;
    let load = served.load()?;
    let pid = served.lab.gateway.process_id().context("it runs")?;
    let files = || fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
    let before = files()?;
    for round in 1..=2 {
        let start = now();
        served.inject(0, "hang")?;
        eprintln!("hang {round}: {:?}", gap("the connections go on after a hang", &load, start)?);
        eventually("the new process answers", || {
            let hangs = served.lab.metric("flowgate_worker_restarts_total{reason=\"hang\"}");
            Ok(hangs.is_ok_and(|hangs| hangs == f64::from(round)))
        })?;
    }
    served.is_ready()?;
    assert_eq!(served.worker_states()?, ["running"]);
    assert!(files()? <= before + 4, "files of the process before are left open");
    served.none_was_lost(load)
}

#[test]
fn a_process_that_hangs_again_and_again_is_left_alone() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::with_two_backends(HANG)?;
    for round in 1..=3 {
        served.inject(0, "hang")?;
        eventually("the new process works", || {
            let hangs = served.lab.metric("flowgate_worker_restarts_total{reason=\"hang\"}");
            Ok(hangs.is_ok_and(|hangs| hangs == f64::from(round)) && served.worker_states()? == ["running"])
        })?;
        served.is_ready()?;
    }
    served.inject(0, "hang")?;
    served.wait_for_log("this happens again and again")?;
    eventually("the worker is said to hang", || Ok(served.worker_states()? == ["hanging"]))
}

#[test]
fn an_interface_that_is_made_anew_is_served_again_and_the_others_meanwhile() -> Result<()> {
    let served = Served::with_two_backends("")?;
    let lab = &served.lab;
    let (client, gateway) = (lab.client(), lab.topology.gateway());
    let old = interface_index(&served, UPLINK)?;
    let address = lab.topology.client().address;
    client.ip("link del eth0")?;
    served.wait_for_log("is gone: the others are served without it")?;
    eventually("the worker works on", || Ok(served.worker_states()? == ["running"]))?;
    eventually("sockets of the lost interface are gone", || Ok(queues_of(&served, UPLINK)? == 0))?;

    client
        .ip(&format!("link add name eth0 type veth peer name {UPLINK} netns {}", gateway.path().display()))?;
    client.ip(&format!("addr add {address}/24 dev eth0"))?;
    client.ip("link set eth0 up")?;
    gateway.ip(&format!("addr add {GATEWAY_UPLINK}/24 dev {UPLINK}"))?;
    gateway.ip(&format!("link set {UPLINK} up"))?;
    client.ip(&format!("route add 10.96.0.0/16 via {GATEWAY_UPLINK}"))?;
    assert_ne!(interface_index(&served, UPLINK)?, old);
    eventually("the interface has its sockets again", || Ok(queues_of(&served, UPLINK)? > 0))?;
    eventually("clients are served again", || Ok(get(client, (CLUSTER_IP, 80)).is_ok()))?;
    assert!(lab.xdp_program(UPLINK)?.is_some());
    Ok(())
}

#[test]
fn an_interface_that_is_away_for_a_moment_costs_no_connection() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::with_two_backends(HOLD)?;
    let gateway = served.lab.topology.gateway();
    let load = served.load()?;
    let start = now();
    gateway.ip(&format!("link set {UPLINK} down"))?;
    gateway.ip(&format!("link set {UPLINK} up"))?;
    eprintln!("down and up: {:?}", gap("the connections go on after the link was down", &load, start)?);
    // Another name is another interface.
    let start = now();
    for (from, to) in [(UPLINK, "elsewhere"), ("elsewhere", UPLINK)] {
        gateway.ip(&format!("link set {from} down"))?;
        gateway.ip(&format!("link set {from} name {to}"))?;
        gateway.ip(&format!("link set {to} up"))?;
        let sockets = usize::from(to == UPLINK);
        eventually("the sockets follow the name", || Ok(queues_of(&served, UPLINK)? == sockets))?;
    }
    eprintln!(
        "away and back: {:?}",
        gap("the connections go on after the interface was away", &load, start)?
    );
    assert_eq!(served.lab.metric("flowgate_worker_restarts_total{reason=\"interface\"}")?, 0.0);
    served.none_was_lost(load)
}

#[test]
fn other_queues_and_longer_packets_are_followed() -> Result<()> {
    let _turn = one_at_a_time();
    let topology = Topology::build(TopologyOptions { backends: 1, queues: 2, ..TopologyOptions::default() })?;
    let channels = |namespace: &Namespace, device: &str, count: u32| {
        let mut command = Command::new("ethtool");
        command.args(["-L", device, "rx", &count.to_string(), "tx", &count.to_string()]);
        namespace.check(command)
    };
    // The kernel lets nobody take a queue away that has a socket, so there are few at first. A device with an XDP
    // program must have a queue for each that its peer sends by.
    channels(&topology.client().namespace, "eth0", 1)?;
    channels(topology.gateway(), UPLINK, 1)?;
    let served = Served::on(topology, HOLD)?;
    let (client, gateway) = (served.lab.client(), served.lab.topology.gateway());
    assert_eq!(served.worker_states()?, ["running"]);
    let load = served.load()?;
    channels(gateway, UPLINK, 2)?;
    channels(client, "eth0", 2)?;
    eventually("the worker has both queues", || Ok(queues_of(&served, UPLINK)? == 2))?;
    assert_eq!(served.worker_states()?, ["running"]);
    gap("the connections go on with two queues", &load, now())?;

    gateway.ip(&format!("link set {UPLINK} mtu 3000"))?;
    client.ip("link set eth0 mtu 3000")?;
    served.wait_for_log("its MTU of 3000 does not fit into frames of 2048 bytes")?;
    gap("the connections go on with longer packets", &load, now())?;
    served.none_was_lost(load)
}

fn interface_index(served: &Served, interface: &str) -> Result<u64> {
    let link = served.lab.topology.gateway().ip(&format!("-j link show dev {interface}"))?;
    let link: serde_json::Value = serde_json::from_str(&link)?;
    Ok(number(&link[0]["ifindex"]))
}

/// How many sockets an interface has.
fn queues_of(served: &Served, interface: &str) -> Result<usize> {
    let workers = served.lab.show("workers")?;
    let queues = rows(&workers).flat_map(|worker| rows(&worker["queues"]));
    Ok(queues.filter(|queue| queue["interface"] == interface).count())
}
