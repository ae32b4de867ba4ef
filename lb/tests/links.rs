//! Interfaces that change under load: only the flows that a change concerns wait. Datagrams are numbered, and none of the
//! others may be lost.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, UdpEchoServer};
use flowgate_benches::lab::topology::{FABRIC, Topology, TopologyOptions, UPLINK};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::udp::{self, UdpOptions};
use flowgate_benches::netns::Namespace;

use crate::support::{
    FLOWGATE, Lab, ask_by_udp, eventually, flowgate, http_answer, number, one_at_a_time, rows,
};

const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 20), 7000);
/// A third interface of the gateway, towards a client of its own.
const SIDE: &str = "side0";
const SIDE_GATEWAY: &str = "198.51.100.1";
const SIDE_CLIENT: &str = "198.51.100.10";
/// How long datagrams flow, and how long they do before the first change.
const LOAD: Duration = Duration::from_secs(5);
const BEFORE: Duration = Duration::from_millis(700);
/// Longer than two checks of the interfaces.
const FOLLOWED: Duration = Duration::from_millis(800);

/// A lab whose Service echoes datagrams, and a client behind [`SIDE`].
struct Served {
    lab: Lab,
    side: Namespace,
    _servers: Vec<UdpEchoServer>,
}

impl Served {
    /// With [`SIDE`] from the beginning, as the first of the interfaces.
    fn start() -> Result<Self> {
        Self::on(Topology::build(TopologyOptions { backends: 2, ..TopologyOptions::default() })?, true)
    }

    fn on(topology: Topology, has_side: bool) -> Result<Self> {
        let side = Namespace::new("side")?;
        if has_side {
            plug_side(&side, topology.gateway())?;
        }
        let mut options = GatewayOptions::new(FLOWGATE);
        // First, since sockets of the first interface are opened first.
        options.interfaces.insert(0, SIDE.to_owned());
        let gateway = Gateway::start(topology.gateway(), options)?;
        let lab = Lab { gateway, topology };
        let hosts = lab.topology.backends().iter();
        let servers = hosts
            .map(|host| {
                UdpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, 7001, EchoAnswer::Echo))
            })
            .collect::<Result<_, _>>()?;
        let service = ServiceSpec::single("echo", VIP.0, L4Protocol::Udp, VIP.1, 7001);
        lab.gateway.manifests().apply(&service, &lab.addresses())?;
        let served = Self { lab, side, _servers: servers };
        served.is_ready()?;
        Ok(served)
    }

    fn is_ready(&self) -> Result<()> {
        let backends = self.lab.addresses().len();
        eventually("the Service is served", || Ok(self.lab.active_backends()?.len() == backends))?;
        eventually("its neighbours are resolved", || Ok(ask_from(self.lab.client()).is_ok()))
    }

    fn gateway(&self) -> &Namespace {
        self.lab.topology.gateway()
    }

    /// Changes something while the first client exchanges numbered datagrams; none of them may be lost.
    fn loses_nothing_during(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut options = UdpOptions::new(VIP.into(), 2000, LOAD);
        options.payload_len = 200;
        let load = self.lab.client().spawn_thread("datagrams", move || {
            udp::run(&options, ProgressOutput::Nothing, &Stop::default())
        })?;
        thread::sleep(BEFORE);
        change()?;
        let report = load.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))??;
        eprintln!("{} sent, {} lost, longest {:?}", report.sent, report.lost, report.latency);
        assert_eq!((report.lost, report.mismatches), (0, 0), "{report:?}\n{}", self.lab.gateway.log());
        assert!(report.sent > 5000, "{report:?}");
        let restarts = self.lab.metric("flowgate_worker_restarts_total{reason=\"interface\"}")?;
        assert_eq!(restarts, 0.0, "workers were stopped");
        Ok(())
    }

    fn wait_for_log(&self, what: &str) -> Result<()> {
        eventually(&format!("the log says {what:?}"), || Ok(self.lab.gateway.log().contains(what)))
    }

    /// How many sockets an interface has.
    fn sockets_of(&self, interface: &str) -> Result<usize> {
        let workers = self.lab.show("workers")?;
        let queues = rows(&workers).flat_map(|worker| rows(&worker["queues"]));
        Ok(queues.filter(|queue| queue["interface"] == interface).count())
    }

    /// Packets that the kernel dropped since they are longer than a frame.
    fn too_long(&self) -> Result<u64> {
        let drops = self.lab.show("drops")?;
        Ok(rows(&drops).filter(|row| row["reason"] == "rx_dropped").map(|row| number(&row["packets"])).sum())
    }
}

/// Connects the side client to the gateway.
fn plug_side(side: &Namespace, gateway: &Namespace) -> Result<()> {
    let queues = "numrxqueues 4 numtxqueues 4";
    gateway.ip(&format!(
        "link add name {SIDE} {queues} type veth peer name eth0 {queues} netns {}",
        side.path().display()
    ))?;
    side.ip(&format!("addr add {SIDE_CLIENT}/24 dev eth0"))?;
    side.ip("link set eth0 up")?;
    gateway.ip(&format!("addr add {SIDE_GATEWAY}/24 dev {SIDE}"))?;
    channels(side, "eth0", 1)?;
    channels(gateway, SIDE, 1)?;
    gateway.ip(&format!("link set {SIDE} up"))?;
    side.ip(&format!("route add 10.96.0.0/12 via {SIDE_GATEWAY}"))?;
    Ok(())
}

fn channels(namespace: &Namespace, device: &str, count: u32) -> Result<()> {
    let mut command = Command::new("ethtool");
    command.args(["-L", device, "rx", &count.to_string(), "tx", &count.to_string()]);
    namespace.check(command).map(drop).context("ethtool -L")
}

fn ask_from(client: &Namespace) -> Result<String> {
    client.enter(|| ask_by_udp(0, VIP.into()))?
}

#[test]
fn a_smaller_mtu_and_back_loses_no_datagram_of_any_flow() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::start()?;
    served.loses_nothing_during(|| {
        for interface in [UPLINK, FABRIC, SIDE] {
            for mtu in [1499, 1500] {
                served.gateway().ip(&format!("link set {interface} mtu {mtu}"))?;
                thread::sleep(FOLLOWED / 2);
            }
        }
        Ok(())
    })
}

#[test]
fn an_mtu_that_no_frame_holds_is_warned_of_once_and_interrupts_nobody() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::start()?;
    let warning = "side0: its MTU of 9000 does not fit into frames of 2048 bytes";
    served.loses_nothing_during(|| {
        served.gateway().ip(&format!("link set {SIDE} mtu 9000"))?;
        served.wait_for_log(warning)?;
        // The kernel lets nobody raise the other end further while the program is attached.
        served.side.ip("link set eth0 mtu 3000")?;
        thread::sleep(FOLLOWED);
        Ok(())
    })?;
    ask_from(&served.side).context("a short datagram arrives")?;
    served.side.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[7; 2500], SocketAddr::from(VIP)))??;
    eventually("a packet that is longer than a frame is counted", || Ok(served.too_long()? > 0))?;
    served.loses_nothing_during(|| {
        served.gateway().ip(&format!("link set {SIDE} mtu 1500"))?;
        served.wait_for_log("the MTU fits into a frame again")
    })?;
    assert_eq!(served.lab.gateway.log().matches(warning).count(), 1);
    Ok(())
}

#[test]
fn a_start_with_an_mtu_that_no_frame_holds_serves_with_a_warning() -> Result<()> {
    let topology = Topology::build(TopologyOptions { backends: 1, ..TopologyOptions::default() })?;
    topology.gateway().ip(&format!("link set {UPLINK} mtu 9000"))?;
    let served = Served::on(topology, true)?;
    served.wait_for_log("up0: its MTU of 9000 does not fit into frames of 4096 bytes")?;
    ask_from(served.lab.client()).map(drop)
}

#[test]
fn an_interface_that_goes_and_comes_back_interrupts_only_its_own_flows() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::start()?;
    ask_from(&served.side)?;
    served.loses_nothing_during(|| {
        served.gateway().ip(&format!("link del {SIDE}"))?;
        served.wait_for_log("is gone: the others are served without it")?;
        eventually("its sockets are closed", || Ok(served.sockets_of(SIDE)? == 0))?;
        plug_side(&served.side, served.gateway())?;
        eventually("its sockets are open again", || Ok(served.sockets_of(SIDE)? == 1))
    })?;
    eventually("its clients are served again", || Ok(ask_from(&served.side).is_ok()))
}

#[test]
fn more_queues_of_an_interface_interrupt_only_its_own_flows() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::start()?;
    served.loses_nothing_during(|| {
        channels(served.gateway(), SIDE, 4)?;
        channels(&served.side, "eth0", 4)?;
        eventually("each queue has a socket", || Ok(served.sockets_of(SIDE)? == 4))
    })?;
    // From several ports, which the sender spreads over the queues: a queue without the program would pass them to the kernel.
    for _ in 0..16 {
        ask_from(&served.side)?;
    }
    Ok(())
}

#[test]
fn addresses_and_routes_change_without_a_loss_for_flows_that_do_not_use_them() -> Result<()> {
    let _turn = one_at_a_time();
    let served = Served::start()?;
    served.loses_nothing_during(|| {
        for round in 0..5 {
            served.gateway().ip(&format!("addr add 198.51.100.{}/24 dev {SIDE}", 100 + round))?;
            served.gateway().ip(&format!("route add 203.0.113.0/24 via {SIDE_CLIENT}"))?;
            thread::sleep(FOLLOWED / 8);
            served.gateway().ip("route del 203.0.113.0/24")?;
            served.gateway().ip(&format!("addr del 198.51.100.{}/24 dev {SIDE}", 100 + round))?;
            thread::sleep(FOLLOWED / 8);
        }
        Ok(())
    })
}

#[test]
fn an_interface_that_is_missing_at_the_start_is_served_once_it_appears() -> Result<()> {
    let _turn = one_at_a_time();
    let topology = Topology::build(TopologyOptions { backends: 2, ..TopologyOptions::default() })?;
    let config = Namespace::new("nowhere")?;
    let served = Served::on(topology, false)?;
    served.wait_for_log("does not exist: it is served once it does")?;
    assert_eq!(served.sockets_of(SIDE)?, 0);
    let path = served.lab.gateway.config_path();
    let checked = flowgate(&config, &["check", "--config", &path.display().to_string()])?;
    assert!(checked.stdout.contains("gateway.interfaces: side0 does not exist here"), "{}", checked.stdout);
    assert!(checked.status.success(), "{}", checked.stdout);
    served.loses_nothing_during(|| {
        plug_side(&served.side, served.gateway())?;
        eventually("it has its sockets", || Ok(served.sockets_of(SIDE)? == 1))
    })?;
    eventually("its clients are served", || Ok(ask_from(&served.side).is_ok()))?;
    assert!(served.lab.xdp_program(SIDE)?.is_some());
    Ok(())
}

#[test]
fn a_start_without_any_interface_waits_and_says_so() -> Result<()> {
    let namespace = Namespace::new("gateway")?;
    let mut options = GatewayOptions::new(FLOWGATE);
    options.interfaces = vec!["late0".into()];
    let gateway = Gateway::start(&namespace, options)?;
    let healthz = || namespace.enter(|| http_answer(([127, 0, 0, 1], 10_256).into(), "/livez"));
    eventually("it is not healthy", || {
        Ok(healthz()?.is_ok_and(|answer| answer.contains("no interface to serve exists, waiting for late0")))
    })?;
    namespace.ip("link add name late0 type veth peer name far0")?;
    namespace.ip("link set far0 up")?;
    namespace.ip("link set late0 up")?;
    eventually("it is healthy", || Ok(healthz()?.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))))?;
    assert!(gateway.log().contains("late0"));
    Ok(())
}
