//! The network of the comparison: the shortest possible, so that the forwarder is the bottleneck.
//!
//! ```text
//! client 192.0.2.10 --- up0 [gateway] fab0 --- receiver 10.244.0.11, .12 ...
//! ```
//! The generator and the receive side of the gateway's veth share one core, the worker and the sink the other.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::BenchOptions;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, last_lines, on_cpus};
use crate::lab::manifests::{L4Protocol, ServiceSpec};
use crate::lab::topology::{
    FABRIC, GATEWAY_FABRIC, GATEWAY_UPLINK, HOST_INTERFACE, Link, UPLINK, configure_host,
};
use crate::lab::{interrupt, scratch};
use crate::loadgen::packets::{Generator, PacketOptions, Sink, SinkAction, SinkOptions, resolve};
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::stop::Stop;
use crate::netns::{Namespace, Process};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const FIRST_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 99), 9000);
const START_LIMIT: Duration = Duration::from_secs(10);
/// Warm-up calls are short: they calibrate how many packets fill the measured call.
const WARM_UP_CALL: Duration = Duration::from_millis(500);
/// Traffic before and after the measured interval, so that start and end of the generator's call are outside of it.
const MARGIN: Duration = Duration::from_millis(300);

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Packets per microsecond at the sink.
    pub(super) mpps: f64,
    /// Packets per microsecond from the generator.
    pub(super) offered_mpps: f64,
}

pub(super) struct TestBed {
    client: Namespace,
    gateway: Namespace,
    sink: Sink,
    backends: Vec<Ipv4Addr>,
    _receiver: Namespace,
}

/// A running bare forwarder; killed when dropped.
pub(super) struct BareForwarder {
    process: Process,
    folder: TempDir,
}

impl TestBed {
    pub(super) fn build(options: &BenchOptions) -> Result<Self> {
        let (client, gateway) = (Namespace::new("client")?, Namespace::new("gateway")?);
        let receiver = Namespace::new("receiver")?;
        let link = Link { queues: 1, mtu: None };
        link.connect(&client, HOST_INTERFACE, &gateway, UPLINK)?;
        link.connect(&receiver, HOST_INTERFACE, &gateway, FABRIC)?;
        configure_host(&client, CLIENT)?;
        client.ip(&format!("route add {}/32 via {GATEWAY_UPLINK}", SERVICE.ip()))?;
        configure_host(&receiver, FIRST_BACKEND)?;
        let backends: Vec<_> =
            (0..options.backends).map(|n| Ipv4Addr::from(u32::from(FIRST_BACKEND) + u32::from(n))).collect();
        for backend in &backends[1..] {
            receiver.ip(&format!("addr add {backend}/24 dev {HOST_INTERFACE}"))?;
        }
        receiver.ip(&format!("route add default via {GATEWAY_FABRIC}"))?;
        for (interface, address) in [(UPLINK, GATEWAY_UPLINK), (FABRIC, GATEWAY_FABRIC)] {
            gateway.ip(&format!("addr add {address}/24 dev {interface}"))?;
        }
        // One next hop for all flow sources, so that there is one neighbour instead of hundreds.
        gateway.ip(&format!("route add 198.18.0.0/15 via {CLIENT}"))?;
        // The bare forwarder swallows ARP, so all neighbours are permanent.
        add_permanent_neighbours(&client, HOST_INTERFACE, &[GATEWAY_UPLINK], &gateway, UPLINK)?;
        add_permanent_neighbours(&gateway, UPLINK, &[CLIENT], &client, HOST_INTERFACE)?;
        add_permanent_neighbours(&gateway, FABRIC, &backends, &receiver, HOST_INTERFACE)?;
        let count = SinkOptions { port: Some(SERVICE.port()), ip_proto: Some(17), action: SinkAction::Drop };
        let sink = receiver.enter(|| Sink::attach(HOST_INTERFACE, count))??;
        Ok(Self { client, gateway, sink, backends, _receiver: receiver })
    }

    pub(super) fn start_gateway(&self, flowgate: &Path, cpu: usize) -> Result<Gateway> {
        let mut options = GatewayOptions::new(flowgate);
        options.cpus = Some(cpu.to_string());
        let gateway = Gateway::start(&self.gateway, options)?;
        let service =
            ServiceSpec::single("bench", *SERVICE.ip(), L4Protocol::Udp, SERVICE.port(), SERVICE.port());
        gateway.manifests().apply(&service, &self.backends)?;
        gateway.wait_for_service("bench")?;
        Ok(gateway)
    }

    /// Starts `flowgate lab bare-forward` and waits until it prints `ready`.
    pub(super) fn start_bare_forwarder(&self, flowgate: &Path, cpu: usize) -> Result<BareForwarder> {
        let folder = scratch::folder("bare-forward")?;
        let log_path = folder.path().join("log");
        let log = File::create(&log_path).map_err(Error::io(format!("write {}", log_path.display())))?;
        let errors = log.try_clone().map_err(Error::io("share the bare forwarder's log"))?;
        let mut command = on_cpus(Some(&cpu.to_string()), flowgate);
        command
            .args(["lab", "bare-forward", "--interface", UPLINK, "--interface", FABRIC])
            .args(["--vip", &SERVICE.to_string(), "--core", &cpu.to_string()])
            .stdout(log)
            .stderr(errors);
        let mut process = self.gateway.spawn(command)?;
        let deadline = clock::now() + START_LIMIT;
        while !read_log(&log_path).lines().any(|line| line == "ready") {
            if process.ended().is_some() || clock::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("the start of `{}`", process.line()),
                    after: START_LIMIT,
                    hint: format!("its log ends with:\n{}", last_lines(&read_log(&log_path), 20)),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(BareForwarder { process, folder })
    }

    /// After a warm-up, sends `flows` flows at the full rate of one core and counts what arrives.
    pub(super) fn measure(&self, flows: u32, options: &BenchOptions, stop: &Stop) -> Result<Sample> {
        self.client.enter(|| {
            let hop = resolve(*SERVICE.ip())?;
            let mut load = PacketOptions::new(&hop.interface, hop.mac, SERVICE, flows, options.warm_up);
            load.cpus = vec![options.generator_cpu];
            let generator = Generator::load(load)?;
            let before = self.sink.counters()?.packets;
            generator.run_for(options.warm_up, WARM_UP_CALL, ProgressOutput::Nothing, stop)?;
            interrupt::check(stop)?;
            if self.sink.counters()?.packets == before {
                return Err(Error::State(
                    "nothing arrived at the receiver: the forwarder runs, but forwards none of the packets"
                        .into(),
                ));
            }
            let duration = options.measure + 2 * MARGIN;
            thread::scope(|scope| {
                let sender =
                    scope.spawn(|| generator.run_for(duration, duration, ProgressOutput::Nothing, stop));
                thread::sleep(MARGIN);
                let rate = self.sink.measure(options.measure)?;
                let report = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                interrupt::check(stop)?;
                Ok(Sample { mpps: rate.per_second / 1e6, offered_mpps: report.offered_per_second / 1e6 })
            })
        })?
    }
}

impl BareForwarder {
    /// Ends it and waits until it has detached from the interfaces.
    pub(super) fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(START_LIMIT)?;
        if status.success() {
            return Ok(());
        }
        let log = read_log(&self.folder.path().join("log"));
        Err(Error::State(format!("`{}` failed ({status}):\n{}", self.process.line(), last_lines(&log, 20))))
    }
}

fn read_log(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Adds permanent neighbour entries to `host`: `neighbours` have the MAC address of `their_interface` in `at`.
fn add_permanent_neighbours(
    host: &Namespace,
    interface: &str,
    neighbours: &[Ipv4Addr],
    at: &Namespace,
    their_interface: &str,
) -> Result<()> {
    let path = format!("/sys/class/net/{their_interface}/address");
    let mac = at.enter(|| std::fs::read_to_string(&path))?;
    let mac =
        mac.map_err(Error::io(format!("read the MAC address of {their_interface} in {}", at.label())))?;
    for neighbour in neighbours {
        host.ip(&format!("neigh replace {neighbour} lladdr {} dev {interface} nud permanent", mac.trim()))?;
    }
    Ok(())
}
