//! Proofs that full-size packets arrive: which neighbours are probed, which mode follows a loss, and what a restart remembers.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{FABRIC, Topology, TopologyOptions, UPLINK};
use flowgate_benches::netns::Namespace;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{FLOWGATE, Lab, eventually, flowgate, get, pins, rows, snmp, text, xdp_program};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];

/// A lab whose gateway is not started yet.
fn topology() -> Result<Topology> {
    Ok(Topology::build(TopologyOptions { backends: 1, ..TopologyOptions::default() })?)
}

/// The gateway's kernel learns the Ethernet addresses of its neighbours, as it does when it talks to them.
fn meet(topology: &Topology) -> Result<()> {
    for neighbour in [topology.client().address, topology.backends()[0].address] {
        topology.gateway().enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", (neighbour, 9)))??;
        eventually("the neighbour is known", || {
            let known = topology.gateway().ip(&format!("neigh show to {neighbour}"))?;
            Ok(known.contains("lladdr"))
        })?;
    }
    Ok(())
}

fn start(topology: Topology, xdp_config: &str) -> Result<Lab> {
    let mut options = GatewayOptions::new(FLOWGATE);
    xdp_config.clone_into(&mut options.xdp_config);
    let gateway = Gateway::start(topology.gateway(), options)?;
    let lab = Lab { gateway, topology };
    lab.gateway
        .manifests()
        .apply(&ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080), &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    Ok(lab)
}

/// The one socket of an interface, as `show workers` has it.
fn socket(lab: &Lab, interface: &str) -> Result<Value> {
    let workers = lab.show("workers")?;
    let mut sockets = rows(&workers).flat_map(|worker| rows(&worker["queues"]));
    let socket = sockets.find(|socket| socket["interface"] == interface);
    socket.cloned().with_context(|| format!("{interface} is not in {workers}"))
}

fn proof(lab: &Lab, interface: &str) -> Result<(String, String)> {
    let socket = socket(lab, interface)?;
    Ok((text(&socket["proof"]).to_owned(), text(&socket["proof_detail"]).to_owned()))
}

fn echoes_received(namespace: &Namespace) -> Result<u64> {
    snmp(namespace, "Icmp", "InEchos")
}

fn proven(detail: &str) -> (String, String) {
    ("proven".to_owned(), detail.to_owned())
}

#[test]
fn interfaces_are_proven_before_there_is_traffic_and_a_restart_asks_nobody_again() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    let mut lab = start(topology, "")?;
    assert_eq!(proof(&lab, UPLINK)?, proven("1500 bytes to 192.0.2.10 and back"));
    assert_eq!(proof(&lab, FABRIC)?, proven("1500 bytes to 10.244.0.11 and back"));
    let table = lab.gateway.show(&["workers"])?;
    assert!(table.contains("up0 0 (native XDP, copy, proven)"), "{table}");
    let asked = echoes_received(lab.client())?;
    assert!(asked >= 2, "a small one and a large one");
    let file = lab.gateway.socket_path().with_file_name("proofs.json");
    eventually("it is remembered", || Ok(file.exists()))?;

    lab.gateway.restart()?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    assert_eq!(proof(&lab, UPLINK)?, proven("1500 bytes to 192.0.2.10 and back"));
    // Long enough for what is tried later.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(echoes_received(lab.client())?, asked);

    let Lab { gateway, topology } = lab;
    gateway.detach()?;
    drop(topology);
    assert!(!file.exists(), "nothing is left behind");
    Ok(())
}

#[test]
fn an_interface_whose_neighbours_were_not_known_is_proven_once_they_are() -> Result<()> {
    let lab = start(topology()?, "")?;
    let _servers = lab.http_servers(8080)?;
    get(lab.client(), (CLUSTER_IP, 80))?;
    for (interface, neighbour) in [(UPLINK, "192.0.2.10"), (FABRIC, "10.244.0.11")] {
        let by_kernel = proven(&format!("1500 bytes to {neighbour} and back, sent by the kernel"));
        let by_either = [by_kernel, proven(&format!("1500 bytes to {neighbour} and back"))];
        eventually(&format!("{interface} is proven"), || Ok(by_either.contains(&proof(&lab, interface)?)))?;
    }
    Ok(())
}

#[test]
fn a_link_that_carries_less_is_to_blame_and_the_mode_stays() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    topology.client().namespace.ip("link set eth0 mtu 1400")?;
    let lab = start(topology, "")?;
    let _servers = lab.http_servers(8080)?;
    let shown = socket(&lab, UPLINK)?;
    assert_eq!(
        (text(&shown["proof"]), text(&shown["proof_detail"])),
        (
            "path",
            "packets of 1500 bytes get no answer from 192.0.2.10 in copy mode, nor in any other mode: is the MTU of the \
             link smaller?"
        )
    );
    assert_eq!((text(&shown["xdp"]), &shown["fell_back"]), ("native", &Value::Null));
    assert_eq!(proof(&lab, FABRIC)?.0, "proven");
    assert!(lab.gateway.log().contains("nor in any other mode"), "{}", lab.gateway.log());
    assert!(lab.gateway.show(&["workers"])?.contains("up0: packets of 1500 bytes get no answer"));
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");
    Ok(())
}

#[test]
fn another_mtu_is_proven_anew() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    let lab = start(topology, "")?;
    lab.client().ip("link set eth0 mtu 3000")?;
    lab.topology.gateway().ip(&format!("link set {UPLINK} mtu 3000"))?;
    // The largest that the frames hold.
    let larger = proven("1774 bytes to 192.0.2.10 and back, sent by the kernel");
    eventually("the larger packets are proven", || Ok(proof(&lab, UPLINK)? == larger))
}

#[test]
fn who_does_not_want_it_sends_nobody_anything() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    let lab = start(topology, "prove = false")?;
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(proof(&lab, UPLINK)?, ("off".to_owned(), "xdp.prove is false".to_owned()));
    assert_eq!(echoes_received(lab.client())?, 0);
    assert!(!lab.gateway.socket_path().with_file_name("proofs.json").exists());
    Ok(())
}

/// A neighbour to whom only packets of generic XDP come back whole, as if a driver lost them in native mode: answers
/// instead of the client's kernel.
struct Choosy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Choosy {
    fn on(topology: &Topology) -> Result<Self> {
        let client = topology.client().namespace.clone();
        client.sysctl("net/ipv4/icmp_echo_ignore_all", "1")?;
        let (gateway, stop) = (topology.gateway().clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = client.spawn_thread("choosy", move || answer(&gateway, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Choosy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))) || std::thread::panicking(), "{ended:?}");
    }
}

fn answer(gateway: &Namespace, stopped: &AtomicBool) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut packet = [0; 4096];
    while !stopped.load(Ordering::Relaxed) {
        let Ok(len) = (&socket).read(&mut packet) else { continue };
        let (header, bytes) = packet[..len].split_at_mut(20);
        let from = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        let is_request = bytes.first() == Some(&8);
        let is_generic = || -> Result<bool> {
            let link = gateway.ip(&format!("-d link show dev {UPLINK}"))?;
            Ok(link.contains("xdpgeneric"))
        };
        if is_request && (len < 200 || is_generic()?) {
            // Type 8 becomes 0, and the checksum grows by what the sum loses (RFC 1624).
            bytes[0] = 0;
            let sum = u32::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 0x0800;
            let sum = u16::try_from((sum & 0xffff) + (sum >> 16))?;
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            socket.send_to(bytes, &SocketAddr::from((from, 0)).into())?;
        }
    }
    Ok(())
}

#[test]
fn an_interface_that_loses_packets_in_native_mode_falls_back_and_says_why() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    let choosy = Choosy::on(&topology)?;
    let mut lab = start(topology, "")?;
    let _servers = lab.http_servers(8080)?;
    for round in ["the first start", "a restart"] {
        let shown = socket(&lab, UPLINK)?;
        assert_eq!(
            (text(&shown["xdp"]), text(&shown["proof"]), text(&shown["fell_back"])),
            ("generic", "proven", "packets of 1500 bytes get no answer from 192.0.2.10 in copy mode"),
            "{round}"
        );
        assert_eq!(text(&socket(&lab, FABRIC)?["xdp"]), "native", "{round}: the other is as it was");
        assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1", "{round}");
        assert_eq!(lab.metric("flowgate_interface_fell_back{interface=\"up0\"}")?, 1.0);
        let file = lab.gateway.socket_path().with_file_name("proofs.json");
        eventually("it is remembered", || Ok(file.exists()))?;
        lab.gateway.restart()?;
        lab.wait_for_backends(&lab.addresses(), 8080)?;
    }
    assert!(lab.gateway.log().contains("works in generic XDP only: packets of 1500 bytes"));

    // Another MTU is another question, and native mode is tried again.
    drop(choosy);
    lab.client().sysctl("net/ipv4/icmp_echo_ignore_all", "0")?;
    lab.topology.gateway().ip(&format!("link set {UPLINK} mtu 1400"))?;
    eventually("the uplink is in native mode again, and proven", || {
        let shown = socket(&lab, UPLINK)?;
        let is_native = text(&shown["xdp"]) == "native" && shown["fell_back"] == Value::Null;
        Ok(is_native && text(&shown["proof"]) == "proven")
    })?;
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");
    Ok(())
}

#[test]
fn where_native_mode_is_demanded_lost_packets_end_the_start_and_nothing_is_left() -> Result<()> {
    let topology = topology()?;
    meet(&topology)?;
    let _choosy = Choosy::on(&topology)?;
    let gateway = topology.gateway();
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("flowgate.toml");
    fs::create_dir(folder.path().join("manifests"))?;
    let place = folder.path().display();
    fs::write(
        &config,
        format!(
            "[source]\nmanifests = \"{place}/manifests\"\n[gateway]\ninterfaces = [\"{UPLINK}\"]\n[admin]\nsocket = \
             \"{place}/admin.sock\"\n[xdp]\nmode = \"native\"\n"
        ),
    )?;
    let ended = flowgate(gateway, &["run", "--config", &config.display().to_string()])?;
    ensure!(
        ended.is_refusal(
            "up0 loses packets: packets of 1500 bytes get no answer from 192.0.2.10 in copy mode, and xdp.mode is native"
        ),
        "{ended:?}"
    );
    assert_eq!(xdp_program(gateway, UPLINK)?, None);
    assert!(pins(gateway)?.is_empty(), "{:?}", pins(gateway)?);
    assert!(!folder.path().join("proofs.json").exists());
    Ok(())
}
