//! Helpers of the tests of the binary: the lab with a running gateway, its JSON output, clients, and kernel counters of
//! namespaces.
#![allow(dead_code, reason = "each file of tests uses its part")]

#[cfg(not(feature = "lab"))]
compile_error!("these tests need the lab: `make test`, or `cargo test --features flowgate/lab`");

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::ServiceSpec;
use flowgate_benches::lab::servers::http::{HttpServer, HttpServerOptions};
use flowgate_benches::lab::topology::{Topology, TopologyOptions};
use flowgate_benches::lab::wait;
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions, StreamRun};
use flowgate_benches::netns::{Namespace, guarded};
use serde_json::Value;

pub(crate) use flowgate_benches::lab::gateway::rows;
pub(crate) use flowgate_benches::lab::wait::LIMIT;

/// The binary under test.
pub(crate) const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate");
/// The pin directory of every lab gateway, on the bpffs of its namespace.
pub(crate) const PIN_DIR: &str = "/sys/fs/bpf/flowgate";
const STEP: Duration = Duration::from_millis(10);

/// Network and gateway; fields drop in this order, the gateway first.
pub(crate) struct Lab {
    pub(crate) gateway: Gateway,
    pub(crate) topology: Topology,
}

impl Lab {
    /// A client, a gateway and some backends.
    pub(crate) fn with_backends(backends: u8) -> Result<Self> {
        Self::start(backends, "")
    }

    /// [`Self::with_backends`] with more lines of configuration.
    pub(crate) fn start(backends: u8, extra_config: &str) -> Result<Self> {
        let topology = Topology::build(TopologyOptions { backends, ..TopologyOptions::default() })?;
        let mut options = GatewayOptions::new(FLOWGATE);
        extra_config.clone_into(&mut options.extra_config);
        let gateway = Gateway::start(topology.gateway(), options)?;
        Ok(Self { gateway, topology })
    }

    /// The client's namespace.
    pub(crate) fn client(&self) -> &Namespace {
        &self.topology.client().namespace
    }

    /// The addresses of all backends.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        self.topology.backends().iter().map(|host| host.address).collect()
    }

    /// An HTTP server in each backend.
    pub(crate) fn http_servers(&self, port: u16) -> Result<BTreeMap<String, HttpServer>> {
        let start = |host: &flowgate_benches::lab::topology::Host| {
            let server = HttpServer::start(&host.namespace, HttpServerOptions::new(&host.name, port))?;
            Ok((host.name.clone(), server))
        };
        self.topology.backends().iter().map(start).collect()
    }

    /// So many connections to an echo server, all of them open, that exchange a few bytes all the time.
    pub(crate) fn echo_load(&self, target: SocketAddr, connections: usize) -> Result<StreamRun> {
        let exchange = Exchange::Echo { len: 300, greeting: Greeting::Name };
        let mut options = StreamOptions::new(target, connections, Duration::from_secs(600), exchange);
        options.pause = Duration::from_millis(10);
        // After some outages in a row a lost segment is sent again half a minute later.
        options.exchange_timeout = Duration::from_secs(120);
        let run = stream::start(self.client(), options)?;
        eventually("all connections are open", || Ok(run.snapshot().connects == connections as u64))?;
        Ok(run)
    }

    /// `flowgate show WHAT -o json`.
    pub(crate) fn show(&self, what: &str) -> Result<Value> {
        Ok(self.gateway.show_json(what)?)
    }

    /// A sample of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let target = SocketAddr::from(([127, 0, 0, 1], 10_249));
        let exposition = self.topology.gateway().enter(|| http_answer(target, "/metrics"))??;
        sample(&exposition, name)
    }

    /// An event count of `show workers`, summed over the workers.
    pub(crate) fn event(&self, name: &str) -> Result<u64> {
        let workers = self.show("workers")?;
        let events = rows(&workers).flat_map(|worker| rows(&worker["events"]));
        let counts: Vec<_> = events.filter(|event| event[0] == name).map(|event| number(&event[1])).collect();
        anyhow::ensure!(!counts.is_empty(), "no event {name} in {workers}");
        Ok(counts.iter().sum())
    }

    /// Packets that workers dropped, by reason.
    pub(crate) fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let drops = self.show("drops")?;
        let reasons = Self::drop_reasons();
        let dropped =
            rows(&drops).filter(|row| row["at"] == "worker" && reasons.contains(&text(&row["reason"])));
        let dropped = dropped.map(|row| (text(&row["reason"]).to_owned(), number(&row["packets"])));
        Ok(dropped.filter(|(_, packets)| *packets > 0).collect())
    }

    fn drop_reasons() -> Vec<&'static str> {
        let dropped = flowgate_dataplane::DropReason::ALL.iter().map(|reason| reason.name());
        let refused = flowgate_dataplane::RejectReason::ALL.iter().map(|reason| reason.name());
        dropped.chain(refused).collect()
    }

    /// The addresses that `show backends` lists as active.
    pub(crate) fn active_backends(&self) -> Result<Vec<String>> {
        let backends = self.show("backends")?;
        let active = rows(&backends).filter(|row| row["state"] == "active");
        Ok(active.map(|row| text(&row["address"]).to_owned()).collect())
    }

    /// Waits until exactly these backends are active.
    pub(crate) fn wait_for_backends(&self, addresses: &[Ipv4Addr], port: u16) -> Result<()> {
        let mut wanted: Vec<_> = addresses.iter().map(|address| format!("{address}:{port}")).collect();
        wanted.sort();
        eventually(&format!("the backends are {wanted:?}"), || {
            let mut active = self.active_backends()?;
            active.sort();
            Ok(active == wanted)
        })
    }

    /// The id of the XDP program on an interface of the gateway, from the kernel.
    pub(crate) fn xdp_program(&self, interface: &str) -> Result<Option<u64>> {
        xdp_program(self.topology.gateway(), interface)
    }

    /// The pins with their inodes: a new pin gets another inode.
    pub(crate) fn pins(&self) -> Result<BTreeMap<String, u64>> {
        pins(self.topology.gateway())
    }
}

/// The id of the XDP program on an interface, from the kernel.
pub(crate) fn xdp_program(namespace: &Namespace, interface: &str) -> Result<Option<u64>> {
    let links: Value = serde_json::from_str(&namespace.ip(&format!("-j -d link show dev {interface}"))?)?;
    Ok(links[0]["xdp"]["prog"]["id"].as_u64())
}

/// All pins in a namespace: path and inode.
pub(crate) fn pins(namespace: &Namespace) -> Result<BTreeMap<String, u64>> {
    fn walk(folder: &Path, found: &mut BTreeMap<String, u64>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            // Every bpffs holds maps.debug and progs.debug.
            if path.extension().is_some_and(|extension| extension == "debug") {
                continue;
            }
            found.insert(path.display().to_string(), std::os::unix::fs::MetadataExt::ino(&meta));
            if meta.is_dir() {
                walk(&path, found)?;
            }
        }
        Ok(())
    }
    namespace.run(|| {
        let mut found = BTreeMap::new();
        walk(Path::new("/sys/fs/bpf"), &mut found).context("listing the bpffs")?;
        Ok(found)
    })
}

/// [`wait::eventually`], but the first error ends the wait and the test.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    eventually_within(LIMIT, STEP, what, condition)
}

/// [`wait::eventually_within`], but the first error ends the wait and the test.
pub(crate) fn eventually_within(
    limit: Duration,
    interval: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut failure = None;
    wait::eventually_within(limit, interval, what, || {
        Ok(condition().unwrap_or_else(|error| {
            failure = Some(error);
            true
        }))
    })?;
    failure.map_or(Ok(()), Err)
}

/// A lock for tests that keep a core busy, so that they run one at a time.
pub(crate) fn one_at_a_time() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A JSON string; empty if it is something else.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A JSON number.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// One HTTP request on a new connection; returns the name of the backend that answered.
pub(crate) fn get(client: &Namespace, target: impl Into<SocketAddr>) -> Result<String> {
    let target = target.into();
    client.enter(|| get_from_here(target))?
}

/// [`get`] in the calling thread's namespace.
pub(crate) fn get_from_here(target: SocketAddr) -> Result<String> {
    let answer = http_answer(target, "/")?;
    let name = answer.lines().find_map(|line| line.strip_prefix("x-backend: "));
    name.map(str::to_owned).with_context(|| format!("{target} answered {answer:?}"))
}

/// The value of a sample of an exposition.
pub(crate) fn sample(exposition: &str, name: &str) -> Result<f64> {
    let line = exposition.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name} in\n{exposition}"))?.parse().context("a number")
}

/// The complete response to a GET, as text.
pub(crate) fn http_answer(target: SocketAddr, path: &str) -> Result<String> {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().with_context(|| format!("asking {target}{path}"))
}

/// The name of the backend that answers a datagram from this source port.
pub(crate) fn ask_by_udp(source_port: u16, target: SocketAddr) -> Result<String> {
    let exchange = || {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, source_port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect(target)?;
        socket.send(b"who?")?;
        let mut answer = [0; 256];
        let len = socket.recv(&mut answer)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer[..len]).into_owned())
    };
    exchange().with_context(|| format!("UDP from port {source_port} to {target}"))
}

/// Applies `service`, which serves port 7000 of `cluster_ip` by UDP, without endpoints: a datagram to it and a segment
/// to another port are refused at once, and both are counted.
pub(crate) fn check_refusals(lab: &Lab, service: &ServiceSpec, cluster_ip: IpAddr) -> Result<()> {
    lab.gateway.manifests().apply(service, &[])?;
    lab.gateway.wait_for_service("empty-udp:main")?;
    let refused = |answer: &io::Result<()>| {
        answer.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    let any: IpAddr = if cluster_ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let datagram = lab.client().enter(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect((cluster_ip, 7000))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 16]).map(drop)
    })?;
    ensure!(refused(&datagram), "a datagram: {datagram:?}");
    // P505: another port of an address that is a cluster IP.
    let target = SocketAddr::from((cluster_ip, 7001));
    let segment =
        lab.client().enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(3)).map(drop))?;
    ensure!(refused(&segment), "a segment: {segment:?}");
    eventually("both are counted", || {
        let drops = lab.drops()?;
        Ok(drops == BTreeMap::from([("no_endpoint".to_owned(), 1), ("unknown_port".to_owned(), 1)]))
    })
}

/// The response to one request on an admin socket.
pub(crate) fn admin(socket: &Path, question: &str) -> Result<String> {
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(stream, "{question}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    exchange().with_context(|| format!("asking {question} on {}", socket.display()))
}

/// A counter of `/proc/net/snmp` in a namespace.
pub(crate) fn snmp(namespace: &Namespace, protocol: &str, counter: &str) -> Result<u64> {
    // `/proc/net` is `/proc/self/net`, the namespace of the main thread.
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let prefix = format!("{protocol}:");
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::split_whitespace);
    let (names, values) = (lines.next(), lines.next());
    let mut columns = names.into_iter().flatten().zip(values.into_iter().flatten());
    let value = columns.find(|(name, _)| *name == counter).and_then(|(_, value)| value.parse().ok());
    value.with_context(|| format!("no {protocol} {counter} in {table}"))
}

/// A counter of `/proc/net/snmp6` in a namespace.
pub(crate) fn snmp6(namespace: &Namespace, counter: &str) -> Result<u64> {
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp6"))?;
    let mut rows = table.lines().map(str::split_whitespace);
    let value = rows.find_map(|mut row| (row.next() == Some(counter)).then(|| row.next()?.parse().ok())?);
    value.with_context(|| format!("no {counter} in {table}"))
}

/// Exit status and output of a command.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Whether it exited with code 1 and printed one line that contains `reason`, without repetition.
    pub(crate) fn is_refusal(&self, reason: &str) -> bool {
        let mut sentences = self.stderr.lines().filter_map(|line| line.strip_prefix("flowgate: "));
        let (Some(sentence), None) = (sentences.next(), sentences.next()) else { return false };
        let parts: Vec<_> = sentence.split(": ").collect();
        let repeats = parts.windows(2).any(|pair| pair[0] == pair[1]);
        self.status.code() == Some(1) && sentence.contains(reason) && !repeats
    }
}

/// Runs flowgate in a namespace, at most for [`LIMIT`].
pub(crate) fn flowgate(namespace: &Namespace, arguments: &[&str]) -> Result<Ended> {
    let folder = tempfile::tempdir()?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut command = guarded(FLOWGATE);
    command.args(arguments).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let status = namespace.spawn(command)?.wait(LIMIT)?;
    Ok(Ended { status, stdout: fs::read_to_string(out)?, stderr: fs::read_to_string(err)? })
}

/// Runs flowgate in the namespace of the test; for commands without network access.
pub(crate) fn flowgate_here(arguments: &[&str]) -> Result<Ended> {
    let output = Command::new(FLOWGATE).args(arguments).output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) })
}
