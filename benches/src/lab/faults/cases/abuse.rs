//! Abuse of every port on which the gateway listens: connections that say nothing, half of something, nonsense, or read
//! nothing, floods of DNS queries, and the admin socket. Probes must be answered throughout, and descriptors, memory and log
//! stay bounded.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::cases::flood::lower_priority;
use crate::lab::faults::test_bed::{TestBed, TestBedOptions};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::interrupt;
use crate::lab::topology::GATEWAY_UPLINK;
use crate::lab::wait::eventually;
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 1] = [Case { name: "listener_abuse", run: listener_abuse }];

const PROBES: SocketAddr = at(10_256);
const METRICS: SocketAddr = at(10_249);
const HEALTH_CHECK: SocketAddr = at(32_100);
const DNS: SocketAddr = at(53);
/// A Service with a health check port, which the abuse includes.
const LOCAL_SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32100
  clusterIP: 10.96.0.20
  selector: {app: local}
  ports: [{name: main, port: 80, nodePort: 30082}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-1, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{name: main, port: 8080}]
endpoints: [{addresses: [10.244.0.11]}]
";
/// The name of a Service in a DNS query.
const OWN_NAME: &str = "local.default.svc.cluster.local";
/// Connections that each attacking thread holds open; further ones replace the oldest.
const HELD_MAX: usize = 400;
/// The time after which the kubelet gives a probe up.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// So many failures of one probe in a row make the kubelet act.
const FAILURES_MAX: u64 = 3;
const PROBE_EVERY: Duration = Duration::from_millis(100);
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Descriptors that the gateway may use for connections and forwarded queries, whatever the limit of open files.
const DESCRIPTORS_MAX: u64 = 1024 + 2 * 512;
const GROWTH_MAX_KIB: u64 = 64 * 1024;
const LOG_LINES_MAX: usize = 20;

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(GATEWAY_UPLINK), port)
}

fn listener_abuse(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    raise_open_files()?;
    let config = format!(
        "[dns]\nlisten = [\"{GATEWAY_UPLINK}\"]\nforward = [\"{}:5353\"]\n\n[metrics]\nlisten = \"{METRICS}\"\n",
        Ipv4Addr::new(192, 0, 2, 99),
    );
    let options = TestBedOptions { clients: 2, config, ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |_| Ok(()))?;
    bed.gateway.manifests().write("local.yaml", LOCAL_SERVICE)?;
    let prober = bed.client().clone();
    eventually("all servers answer", || prober.enter(|| KINDS.iter().all(|kind| kind.probe().is_ok())))?;
    let load = bed.web_load(context.connections.min(100))?;
    let before = Usage::of(&bed)?;

    let attacker = &bed.topology.clients()[1].namespace;
    let abuse = Abuse::start(attacker, bed.gateway.socket_path())?;
    let probing = Probing::start(&prober)?;
    let (begin, mut highest) = (clock::now(), before);
    while begin.elapsed() < context.abuse {
        interrupt::sleep(context.stop, SAMPLE_EVERY)?;
        highest = highest.max(Usage::of(&bed)?);
    }
    let probed = probing.end();
    let done = abuse.end();
    load.await_answers()?;

    result.record("probes", probed.answered + probed.failed);
    result.record("probes_failed", probed.failed);
    result.record("slowest_probe_ms", probed.slowest.as_secs_f64() * 1000.0);
    result.record("connections", done.connections);
    result.record("datagrams", done.datagrams);
    result.record("descriptors", before.descriptors);
    result.record("descriptors_highest", highest.descriptors);
    result.record("memory_kib", before.memory_kib);
    result.record("memory_highest_kib", highest.memory_kib);
    result.record("log_lines", highest.log_lines - before.log_lines);
    result.record("gap_ms", load.longest_gap_ms());
    result.record("probes_failed_in_a_row", probed.failed_in_a_row);
    result.expect(probed.answered > 0 && probed.failed_in_a_row < FAILURES_MAX, || {
        format!("{} probes failed, the first: {}", probed.failed, probed.first_failure.unwrap_or_default())
    });
    result.expect(done.connections > 1000 && done.datagrams > 1000, || "that was no abuse".into());
    result.expect(highest.descriptors <= before.descriptors + DESCRIPTORS_MAX, || {
        format!("descriptors grew from {} to {}", before.descriptors, highest.descriptors)
    });
    result.expect(highest.memory_kib <= before.memory_kib + GROWTH_MAX_KIB, || {
        format!("memory grew from {} to {} KiB", before.memory_kib, highest.memory_kib)
    });
    let lines = highest.log_lines - before.log_lines;
    result.expect(lines <= LOG_LINES_MAX, || format!("the log grew by {lines} lines"));
    eventually("the descriptors are closed again", || {
        Ok(Usage::of(&bed)?.descriptors <= before.descriptors + before.descriptors / 4 + 16)
    })?;
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// This process holds the connections of the attackers.
fn raise_open_files() -> Result<()> {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    raised.map_err(Error::errno("raise the limit of open files"))
}

/// What the gateway uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    descriptors: u64,
    memory_kib: u64,
    log_lines: usize,
}

impl Usage {
    fn of(bed: &TestBed) -> Result<Self> {
        let process =
            bed.gateway.process_id().ok_or_else(|| Error::State("the gateway does not run".into()))?;
        let path = format!("/proc/{process}");
        let descriptors = fs::read_dir(format!("{path}/fd")).map(Iterator::count);
        let descriptors = descriptors.map_err(Error::io(format!("list {path}/fd")))?;
        let status = fs::read_to_string(format!("{path}/status"));
        let status = status.map_err(Error::io(format!("read {path}/status")))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory_kib = memory.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse().ok());
        Ok(Self {
            descriptors: u64::try_from(descriptors).unwrap_or(u64::MAX),
            memory_kib: memory_kib.unwrap_or_default(),
            log_lines: bed.gateway.log().lines().count(),
        })
    }

    fn max(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            memory_kib: self.memory_kib.max(other.memory_kib),
            log_lines: self.log_lines.max(other.log_lines),
        }
    }
}

/// What was done to the gateway.
#[derive(Debug, Default)]
struct Done {
    connections: u64,
    datagrams: u64,
}

/// The attacking threads.
struct Abuse {
    stop: Stop,
    connections: Arc<AtomicU64>,
    datagrams: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Abuse {
    fn start(attacker: &Namespace, admin: PathBuf) -> Result<Self> {
        let mut abuse = Self {
            stop: Stop::default(),
            connections: Arc::default(),
            datagrams: Arc::default(),
            threads: Vec::new(),
        };
        for target in [PROBES, METRICS, HEALTH_CHECK, DNS] {
            let (stop, count) = (abuse.stop.clone(), Arc::clone(&abuse.connections));
            let connect = move || {
                let stream = TcpStream::connect_timeout(&target, Duration::from_millis(100))?;
                // A reset at the end: no port waits in TIME_WAIT, so there can be any number of connections.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            };
            let work = move || hold_connections(&stop, &count, connect);
            abuse.threads.push(attacker.spawn_thread("abuse-tcp", at_low_priority(work))?);
        }
        let (stop, count) = (abuse.stop.clone(), Arc::clone(&abuse.connections));
        let work = move || hold_connections(&stop, &count, || connect_unix(&admin));
        abuse.threads.push(attacker.spawn_thread("abuse-admin", at_low_priority(work))?);
        let (stop, count) = (abuse.stop.clone(), Arc::clone(&abuse.datagrams));
        let work = move || flood_dns(&stop, &count);
        abuse.threads.push(attacker.spawn_thread("abuse-udp", at_low_priority(work))?);
        Ok(abuse)
    }

    fn end(self) -> Done {
        self.stop.stop();
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        Done {
            connections: self.connections.load(Ordering::Relaxed),
            datagrams: self.datagrams.load(Ordering::Relaxed),
        }
    }
}

/// The work of a thread that leaves the cores to the gateway: a real attacker has his own.
fn at_low_priority(work: impl FnOnce()) -> impl FnOnce() {
    move || {
        // Without it the abuse is only harder.
        let _ = lower_priority();
        work();
    }
}

fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Opens connections, says something different on each, reads nothing, and holds as many as it may.
fn hold_connections<S: std::io::Write>(
    stop: &Stop,
    count: &AtomicU64,
    connect: impl Fn() -> std::io::Result<S>,
) {
    let openings: [&[u8]; 8] = [
        b"",
        b"GET /metr",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        &[0xff; 600],
        // A DNS query of which only the length comes, and one that is whole, for a name of others.
        b"\x00\x20",
        b"\x00\x1e\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04slow\x07example\x00\x00\x01\x00\x01",
        b"{\"show\":\"flows\",\"limit\":10",
    ];
    let mut held = VecDeque::new();
    for opening in openings.iter().cycle() {
        if stop.is_stopped() {
            return;
        }
        if let Ok(mut stream) = connect() {
            count.fetch_add(1, Ordering::Relaxed);
            // The gateway may have closed it already.
            let _ = stream.write(opening);
            held.push_back(stream);
        }
        // A thousand each second and server, more than any monitoring does.
        thread::sleep(Duration::from_millis(1));
        if held.len() > HELD_MAX {
            held.pop_front();
        }
    }
}

/// Sends queries for names of our own, for names that nobody answers, and nonsense.
fn flood_dns(stop: &Stop, count: &AtomicU64) {
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return };
    let own = query(OWN_NAME, 1);
    let nonsense = [0xa5; 300];
    for n in 0_u64.. {
        if stop.is_stopped() {
            return;
        }
        let slow = query(&format!("slow-{n}.example"), 2);
        for datagram in [&own[..], &slow, &nonsense, &own[..11]] {
            // A full queue of the interface is no reason to stop.
            if socket.send_to(datagram, DNS).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        // 16,000 datagrams each second at most: beyond, the flood only shows how many fit into the queue of a socket.
        if n.is_multiple_of(8) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A query for the A records of a name (RFC 1035 section 4.1).
fn query(name: &str, id: u8) -> Vec<u8> {
    let mut bytes = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label is short"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// What is probed.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Http(SocketAddr, &'static str),
    DnsOverUdp,
    DnsOverTcp,
}

const KINDS: [Kind; 5] = [
    Kind::Http(PROBES, "/livez"),
    Kind::Http(HEALTH_CHECK, "/"),
    Kind::Http(METRICS, "/healthz"),
    Kind::DnsOverUdp,
    Kind::DnsOverTcp,
];

impl Kind {
    fn probe(self) -> std::io::Result<()> {
        let wrong = || std::io::Error::other("not what was asked for");
        match self {
            Self::Http(target, path) => {
                let mut stream = connect(target)?;
                stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: probe\r\n\r\n").as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                answer.starts_with("HTTP/1.1 200").then_some(()).ok_or_else(wrong)
            }
            Self::DnsOverUdp => {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(PROBE_TIMEOUT))?;
                let mut answer = [0; 512];
                // Datagrams of a flood fill the queue of the server's socket, and resolvers ask several times.
                for id in 1..=RESOLVER_ATTEMPTS {
                    socket.send_to(&query(OWN_NAME, id), DNS)?;
                    if socket.recv_from(&mut answer).is_ok_and(|(len, _)| is_found(&answer[..len])) {
                        return Ok(());
                    }
                }
                Err(std::io::ErrorKind::TimedOut.into())
            }
            Self::DnsOverTcp => {
                let mut stream = connect(DNS)?;
                let query = query(OWN_NAME, 1);
                let len = u16::try_from(query.len()).expect("a query is short").to_be_bytes();
                stream.write_all(&[&len[..], &query].concat())?;
                let mut answer = [0; 14];
                stream.read_exact(&mut answer)?;
                is_found(&answer[2..]).then_some(()).ok_or_else(wrong)
            }
        }
    }
}

/// As in resolv.conf(5), once more.
const RESOLVER_ATTEMPTS: u8 = 3;

/// Whether the header of a DNS message has no error and one answer.
fn is_found(message: &[u8]) -> bool {
    message.len() >= 12 && message[3] & 0xf == 0 && message[7] == 1
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    Ok(stream)
}

/// What became of the probes.
#[derive(Debug, Default)]
struct Probed {
    answered: u64,
    failed: u64,
    /// The longest series of failures of one kind.
    failed_in_a_row: u64,
    slowest: Duration,
    first_failure: Option<String>,
}

/// A thread that probes all servers as kubelet, load balancers and resolvers do.
struct Probing {
    stop: Stop,
    thread: JoinHandle<Probed>,
}

impl Probing {
    fn start(from: &Namespace) -> Result<Self> {
        let stop = Stop::default();
        let until = stop.clone();
        let thread = from.spawn_thread("probes", move || {
            let mut probed = Probed::default();
            let mut in_a_row = [0; KINDS.len()];
            while !until.is_stopped() {
                for (kind, in_a_row) in KINDS.into_iter().zip(&mut in_a_row) {
                    let begin = clock::now();
                    match kind.probe() {
                        Ok(()) => {
                            probed.answered += 1;
                            *in_a_row = 0;
                        }
                        Err(error) => {
                            probed.failed += 1;
                            *in_a_row += 1;
                            probed.failed_in_a_row = probed.failed_in_a_row.max(*in_a_row);
                            probed.first_failure.get_or_insert_with(|| format!("{kind:?}: {error}"));
                        }
                    }
                    probed.slowest = probed.slowest.max(begin.elapsed());
                }
                thread::sleep(PROBE_EVERY);
            }
            probed
        })?;
        Ok(Self { stop, thread })
    }

    fn end(self) -> Probed {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
