//! The faults of a soak.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::cases::flood::Flood;
use crate::lab::faults::random::Random;
use crate::lab::faults::test_bed::TestBed;
use crate::lab::manifests::{L4Protocol, ServiceSpec};
use crate::lab::topology::{FABRIC, HOST_INTERFACE, Topology, ipv6_of};
use crate::netns::Namespace;

/// A router on the fabric through which the backends can also be reached.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 60);
const PAUSE: Duration = Duration::from_millis(700);
/// Minimum time between two panics: the gateway gives up on a worker that panics too often.
const BETWEEN_PANICS: Duration = Duration::from_secs(20);
const FLOOD_SOURCES: u32 = 1 << 18;

const NAMES: [&str; 9] = [
    "backends came and went",
    "a Service came and went",
    "a backend's Ethernet address changed",
    "routes to the backends changed",
    "a flood of SYNs",
    "a worker panicked",
    "a restart",
    "a restart after SIGKILL",
    "the link went down and up",
];

/// Chooses and injects faults.
pub(super) struct Actions {
    backends: Vec<Ipv4Addr>,
    attacker: Namespace,
    random: Random,
    last_panic: Option<Instant>,
    panics: usize,
    counts: [u64; NAMES.len()],
}

/// Prepares the network for the actions.
pub(super) fn prepare(topology: &mut Topology) -> Result<()> {
    for host in topology.backends() {
        host.namespace.sysctl(&format!("net/ipv4/conf/{HOST_INTERFACE}/arp_notify"), "1")?;
        host.namespace.sysctl(&format!("net/ipv6/conf/{HOST_INTERFACE}/ndisc_notify"), "1")?;
    }
    let router = topology.add_host("router", ROUTER)?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/eth0/send_redirects", "0"),
    ] {
        router.namespace.sysctl(key, value)?;
    }
    topology.gateway().sysctl(&format!("net/ipv6/conf/{FABRIC}/keep_addr_on_down"), "1")
}

impl Actions {
    pub(super) fn new(bed: &TestBed, attacker: Namespace, random: Random) -> Self {
        let backends = bed.backends().into_iter().filter(|address| *address != ROUTER).collect();
        Self { backends, attacker, random, last_panic: None, panics: 0, counts: [0; NAMES.len()] }
    }

    /// Injects the next fault and pauses; returns its description.
    pub(super) fn next(&mut self, bed: &mut TestBed) -> Result<&'static str> {
        let action = self.below(NAMES.len());
        match action {
            0 => self.churn_backends(bed)?,
            1 => churn_service(bed, &self.backends)?,
            2 => self.change_ethernet_address(bed)?,
            3 => self.change_routes(bed)?,
            4 => self.flood()?,
            5 if self.may_panic() => self.break_worker(bed)?,
            5 => return self.next(bed),
            6 => bed.gateway.restart()?,
            7 => {
                bed.gateway.kill()?;
                bed.gateway.restart()?;
            }
            _ => flap(bed)?,
        }
        self.counts[action] += 1;
        thread::sleep(PAUSE);
        Ok(NAMES[action])
    }

    /// Restores all backends of the Services.
    pub(super) fn restore_backends(&mut self, bed: &mut TestBed) -> Result<()> {
        bed.set_backends(&self.backends)?;
        thread::sleep(PAUSE);
        Ok(())
    }

    /// The number of injected panics.
    pub(super) fn panics(&self) -> usize {
        self.panics
    }

    pub(super) fn count(&self, result: &mut CaseResult) {
        for (name, count) in NAMES.iter().zip(self.counts) {
            result.record(name, count);
        }
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.random.next()).unwrap_or_default() % count
    }

    /// Removes all backends but one from the Services for a moment. Their servers keep running, so connections must survive.
    fn churn_backends(&mut self, bed: &TestBed) -> Result<()> {
        let stays = self.below(self.backends.len());
        bed.set_backends(&[self.backends[stays]])?;
        thread::sleep(PAUSE / 2);
        bed.set_backends(&self.backends)
    }

    fn change_ethernet_address(&mut self, bed: &TestBed) -> Result<()> {
        let place = self.below(self.backends.len());
        let [_, a, b, c] = self.random.next().to_be_bytes();
        let host = &bed.topology.backends()[place];
        host.namespace
            .ip(&format!("link set {HOST_INTERFACE} address 02:f0:ee:{a:02x}:{b:02x}:{c:02x}"))
            .map(drop)
    }

    fn change_routes(&self, bed: &TestBed) -> Result<()> {
        for verb in ["add", "del"] {
            for &backend in &self.backends {
                bed.topology.gateway().ip(&format!("route {verb} {backend}/32 via {ROUTER}"))?;
                let (backend, router) = (ipv6_of(backend), ipv6_of(ROUTER));
                bed.topology.gateway().ip(&format!("route {verb} {backend}/128 via {router}"))?;
            }
            thread::sleep(PAUSE / 2);
        }
        Ok(())
    }

    fn flood(&self) -> Result<()> {
        let flood = Flood::start(&self.attacker, FLOOD_SOURCES, None)?;
        thread::sleep(PAUSE);
        flood.end().map(drop)
    }

    fn may_panic(&self) -> bool {
        self.last_panic.is_none_or(|last| last.elapsed() >= BETWEEN_PANICS)
    }

    fn break_worker(&mut self, bed: &TestBed) -> Result<()> {
        self.last_panic = Some(clock::now());
        self.panics += 1;
        let answer = bed.gateway.ask(r#"{"show":"fault","worker":0,"fault":"panic"}"#)?;
        if answer.contains("error") {
            return Err(Error::State(format!("the gateway did not inject the fault: {answer}")));
        }
        Ok(())
    }
}

fn churn_service(bed: &TestBed, backends: &[Ipv4Addr]) -> Result<()> {
    let service =
        ServiceSpec::single("passing", Ipv4Addr::new(10, 96, 0, 77), L4Protocol::Tcp, 80, 8080).dual_stack();
    let manifests = bed.gateway.manifests();
    manifests.apply(&service, backends)?;
    thread::sleep(PAUSE / 2);
    manifests.remove("passing-service.yaml")?;
    manifests.remove("passing-endpoints.yaml")
}

fn flap(bed: &TestBed) -> Result<()> {
    let gateway = bed.topology.gateway();
    gateway.ip(&format!("link set {FABRIC} down"))?;
    thread::sleep(Duration::from_millis(200));
    gateway.ip(&format!("link set {FABRIC} up"))?;
    Ok(())
}
