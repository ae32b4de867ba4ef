//! The machine with two NICs, client and backend, and the gateway in it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::DeviceOptions;
use super::http::Connection;
use super::report::DeviceReport;
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::lab::interrupt;
use crate::lab::manifests::{L4Protocol, ServiceSpec};
use crate::lab::servers::http::{HttpServer, HttpServerOptions};
use crate::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK, Host, SERVICE_RANGE, ipv6_of};
use crate::lab::wait::eventually_within;
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;
use crate::vm::{Image, Kernel, Machine, MachineOptions, Nic, Store};

/// Time limit for a link that comes up or a device that is reset.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// A step ends after this many failed transfers.
const MAX_DIFFERENCES: usize = 3;
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const CONFIG: &str = "/etc/flowgate.toml";
const LOG: &str = "/run/flowgate.log";
const NODE_PORT: u16 = 30_080;
const CLUSTER_IP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);
const CLIENT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 10);
const BACKEND: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 244, 0, 11);

/// What the steps work on.
pub(super) struct TestBed {
    pub(super) machine: Machine,
    pub(super) client: Host,
    pub(super) backend: Host,
    kernel: Kernel,
    _server: HttpServer,
    /// Number of starts of the gateway.
    starts: u32,
    stop: Stop,
}

/// One side of the machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    mac: &'static str,
    pub(super) tap: &'static str,
    address: std::net::Ipv4Addr,
}

pub(super) const SIDES: [Side; 2] = [
    Side { mac: "52:54:00:00:00:01", tap: "uplink", address: GATEWAY_UPLINK },
    Side { mac: "52:54:00:00:00:02", tap: "fabric", address: GATEWAY_FABRIC },
];

impl TestBed {
    pub(super) fn boot(options: &DeviceOptions, flowgate: &Path, stop: &Stop) -> Result<Self> {
        let store = Store::new(&options.store);
        let kernel = Kernel::open(&store, &options.kernel)?;
        let device = options.device;
        let image = Image::new(flowgate)?;
        image.programs(&["ethtool", "readlink", "ss"])?;
        image.modules(&kernel, &[device.modules(), &["xsk_diag"]].concat())?;

        let client = host("client", CLIENT)?;
        let backend = host("backend", BACKEND)?;
        let nic = |side: Side, host: &Host| Nic {
            device: device.qemu(options.queues),
            mac: side.mac.into(),
            tap: side.tap.into(),
            namespace: host.namespace.clone(),
            tap_queues: device.tap_queues(options.queues),
        };
        let nics = SIDES.into_iter().zip([&client, &backend]).map(|(side, host)| nic(side, host)).collect();
        let machine_options = MachineOptions { cpus: options.queues, nics, ..MachineOptions::default() };
        let machine = Machine::boot(&store, &kernel, image.pack()?, &machine_options, stop)?;
        machine.load_modules(device.modules())?;

        let server = HttpServer::start(&backend.namespace, HttpServerOptions::new("backend", 8080))?;
        let bed = Self { machine, client, backend, kernel, _server: server, starts: 0, stop: stop.clone() };
        for (host, side) in [(&bed.client, SIDES[0]), (&bed.backend, SIDES[1])] {
            bed.address_outside(host, side)?;
        }
        bed.client.route(SERVICE_RANGE, GATEWAY_UPLINK)?;
        bed.backend.route("192.0.2.0/24", GATEWAY_FABRIC)?;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/keep_addr_on_down"] {
            bed.machine.write(&format!("/proc/sys/net/{key}"), "1")?;
        }
        for key in ["default", "all"] {
            bed.machine.write(&format!("/proc/sys/net/ipv6/conf/{key}/accept_dad"), "0")?;
        }
        bed.address_inside()?;
        bed.machine.write(CONFIG, &bed.config(options)?)?;
        let service = ServiceSpec::single("web", CLUSTER_IP, L4Protocol::Tcp, 80, 8080);
        let service = service.dual_stack().with_node_port(NODE_PORT);
        bed.machine.write("/etc/flowgate/manifests/web.yaml", &service.manifests(&[BACKEND]))?;
        Ok(bed)
    }

    pub(super) fn kernel_release(&self) -> String {
        self.kernel.release().to_owned()
    }

    /// The interface name of a side inside.
    pub(super) fn interface(&self, side: Side) -> Result<String> {
        self.machine.interface(side.mac)
    }

    /// Sets the addresses of the NICs.
    pub(super) fn address_inside(&self) -> Result<()> {
        for side in SIDES {
            let name = self.interface(side)?;
            self.machine.ip(&format!("link set {name} up"))?;
            self.machine.ip(&format!("addr replace {}/24 dev {name}", side.address))?;
            self.machine.ip(&format!("addr replace {}/64 dev {name} nodad", ipv6_of(side.address)))?;
        }
        Ok(())
    }

    fn address_outside(&self, host: &Host, Side { tap, .. }: Side) -> Result<()> {
        let sysctl =
            |key: &str, value: &str| host.namespace.sysctl(&format!("net/ipv6/conf/{tap}/{key}"), value);
        sysctl("accept_dad", "0")?;
        sysctl("router_solicitations", "0")?;
        sysctl("disable_ipv6", "0")?;
        host.namespace.ip(&format!("addr add {}/24 dev {tap}", host.address))?;
        host.namespace.ip(&format!("addr add {}/64 dev {tap} nodad", host.address_v6)).map(drop)
    }

    fn config(&self, options: &DeviceOptions) -> Result<String> {
        let [uplink, fabric] = [self.interface(SIDES[0])?, self.interface(SIDES[1])?];
        // Without KVM a restarted gateway takes seconds to start.
        Ok(format!(
            "[source]\nmanifests = \"/etc/flowgate/manifests\"\n[gateway]\ninterfaces = [\"{uplink}\", \"{fabric}\"]\n\
             [workers]\nhang_ms = 5000\n[flows]\ncapacity = 16384\ncapacity_v6 = 16384\n[xdp]\nhold_ms = 30000\n{}\n[rings]\n{}\n",
            options.xdp, options.rings
        ))
    }

    /// Starts the gateway and waits until its workers run.
    pub(super) fn start_gateway(&mut self) -> Result<()> {
        self.starts += 1;
        self.machine.start(&self.gateway_name(), &["flowgate", "run", "--config", CONFIG], LOG)?;
        self.eventually("the workers run", |bed| {
            let workers = bed.workers()?;
            Ok(!workers.is_empty() && workers.iter().all(|worker| worker["state"] == "running"))
        })
    }

    /// Ends the gateway with SIGTERM.
    pub(super) fn stop_gateway(&self) -> Result<()> {
        self.machine.signal(&self.gateway_name(), Signal::SIGTERM)?;
        self.machine.wait(&self.gateway_name())
    }

    pub(super) fn detach(&self) -> Result<()> {
        self.machine.check(&["flowgate", "detach", "--config", CONFIG]).map(drop)
    }

    fn gateway_name(&self) -> String {
        format!("gateway-{}", self.starts)
    }

    /// The workers, from `show workers`.
    pub(super) fn workers(&self) -> Result<Vec<Value>> {
        let text = self.machine.check(&["flowgate", "show", "workers", "-o", "json"])?;
        serde_json::from_str(&text)
            .map_err(|error| Error::State(format!("`show workers` printed {text}: {error}")))
    }

    /// The gateway's log so far.
    pub(super) fn log(&self) -> String {
        self.machine.read(LOG).unwrap_or_default()
    }

    /// State to print after a failure.
    pub(super) fn state(&self) -> String {
        let limit = Duration::from_secs(10);
        let ask = |command: &[&str]| {
            self.machine.run(command, limit).map_or_else(|error| error.to_string(), |said| said.output)
        };
        let drops = ask(&["flowgate", "show", "drops"]);
        // Skip reasons with a count of zero.
        let drops: Vec<_> =
            drops.lines().filter(|line| !line.split_ascii_whitespace().any(|word| word == "0")).collect();
        let workers = ask(&["flowgate", "show", "workers"]);
        let log = last_lines(&self.log(), 25);
        format!("{}\n{workers}\nthe gateway's log ends with:\n{log}", drops.join("\n"))
    }

    /// [`eventually_within`] the time that an emulated machine may need; ends early on a stop.
    pub(super) fn eventually(
        &self,
        what: &str,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let condition = || {
            interrupt::check(&self.stop)?;
            condition(self)
        };
        eventually_within(DEVICE_LIMIT, POLL_INTERVAL, what, condition).map(drop)
    }

    /// The targets of the client: ClusterIP and NodePort in both families.
    pub(super) fn targets() -> [SocketAddr; 4] {
        [
            (CLUSTER_IP, 80).into(),
            (GATEWAY_UPLINK, NODE_PORT).into(),
            (ipv6_of(CLUSTER_IP), 80).into(),
            (ipv6_of(GATEWAY_UPLINK), NODE_PORT).into(),
        ]
    }

    /// Waits until every target answers.
    pub(super) fn wait_until_reachable(&self) -> Result<()> {
        for target in Self::targets() {
            self.eventually(&format!("{target} answers"), |bed| {
                let answer = bed.client.namespace.enter(|| {
                    Connection::open(target, Duration::from_secs(2))
                        .and_then(|mut connection| connection.echo(1))
                })?;
                answer.map_err(Error::io(format!("reach {target}")))
            })?;
        }
        Ok(())
    }

    /// Sends bodies of these lengths to every target, each over its own connection, and counts failed transfers.
    pub(super) fn transfer(&self, lens: &[usize], report: &mut DeviceReport) -> Result<String> {
        let (mut done, mut differences) = (0, Vec::new());
        for (target, &len) in
            Self::targets().iter().flat_map(|target| lens.iter().map(move |len| (target, len)))
        {
            // Each failure costs its time limit: a few are enough.
            if differences.len() == MAX_DIFFERENCES {
                break;
            }
            let same = self.client.namespace.enter(|| {
                Connection::open(*target, DEVICE_LIMIT).and_then(|mut connection| connection.echo(len))
            })?;
            done += 1;
            if !matches!(same, Ok(true)) {
                let reason = same.map_or_else(|error| error.to_string(), |_| "other bytes".into());
                differences.push(format!("{len} bytes to {target}: {reason}"));
            }
        }
        let different = u64::try_from(differences.len()).expect("a few");
        report.add(done, different);
        if differences.is_empty() {
            return Ok(format!("{done} transfers, none different"));
        }
        Err(Error::State(format!("{different} of {done} transfers differ: {}", differences.join("; "))))
    }

    /// Ends gateway and machine, in this order: powering an igb off under open zero-copy sockets is a kernel oops
    /// (`igb_txrx_ring_disable` from `xp_release_deferred`, seen with 7.2).
    pub(super) fn end(self) -> Result<()> {
        self.stop_gateway()?;
        self.detach()?;
        self.machine.power_off()
    }
}

/// A host whose only interface is the tap device of a NIC, which gets the address later.
fn host(name: &str, address: std::net::Ipv4Addr) -> Result<Host> {
    let namespace = Namespace::new(name)?;
    Ok(Host { name: name.into(), address, address_v6: ipv6_of(address), namespace })
}
