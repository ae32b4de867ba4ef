//! The process itself: what its threads may do, what SIGHUP changes, what a start waits for, and in which time it lives.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer};
use flowgate_benches::loadgen::stream::StreamRun;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{
    self, FLOWGATE, LIMIT, Lab, PIN_DIR, admin, eventually, http_answer, one_at_a_time, rows, text,
};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const ECHO: u16 = 7;
const CONNECTIONS: usize = 10;
/// The key belongs to the section `xdp`, which is the last that the lab writes.
const HOLD: &str = "hold_ms = 30000\n";

/// A lab whose Service `web` echoes on port 7.
struct Served {
    lab: Lab,
    _echo: Vec<TcpEchoServer>,
}

impl Served {
    fn start(extra_config: &str) -> Result<Self> {
        let lab = Lab::start(1, extra_config)?;
        let hosts = lab.topology.backends().iter();
        let echo = hosts.map(|host| {
            TcpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, 8007, EchoAnswer::Name))
        });
        let echo = echo.collect::<Result<_, _>>()?;
        let service = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, ECHO, 8007);
        lab.gateway.manifests().apply(&service, &lab.addresses())?;
        let served = Self { lab, _echo: echo };
        served.is_ready()?;
        Ok(served)
    }

    fn is_ready(&self) -> Result<()> {
        self.lab.wait_for_backends(&self.lab.addresses(), 8007)
    }

    /// Connections that are kept open and exchange a few bytes all the time.
    fn load(&self) -> Result<StreamRun> {
        self.lab.echo_load((CLUSTER_IP, ECHO).into(), CONNECTIONS)
    }

    fn none_was_lost(load: StreamRun) -> Result<()> {
        goes_on("the connections go on", &load)?;
        let report = load.finish()?;
        assert_eq!((report.failures(), report.connects), (0, CONNECTIONS as u64), "{report:?}");
        Ok(())
    }

    fn wait_for_log(&self, what: &str) -> Result<()> {
        eventually(&format!("the log says {what:?}"), || Ok(self.lab.gateway.log().contains(what)))
    }

    fn process_id(&self) -> Result<i32> {
        Ok(i32::try_from(self.lab.gateway.process_id().context("it runs")?)?)
    }

    /// Writes this configuration in place of the lab's, which `change` is given, and sends SIGHUP.
    fn reload(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.lab.gateway.config_path();
        let changed = change(fs::read_to_string(&path)?);
        fs::write(path, changed)?;
        kill(Pid::from_raw(self.process_id()?), Signal::SIGHUP)?;
        Ok(())
    }

    /// Breaks worker 0 by the admin socket.
    fn inject(&self, fault: &str) -> Result<()> {
        let question = format!(r#"{{"show":"fault","worker":0,"fault":"{fault}"}}"#);
        let answer = admin(&self.lab.gateway.socket_path(), &question)?;
        anyhow::ensure!(answer.contains("workers"), "{answer}");
        Ok(())
    }

    fn threads(&self) -> Result<Vec<Thread>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process_id()?))?;
        // A thread may end meanwhile.
        Ok(tasks.filter_map(|task| Thread::read(&task.ok()?.path())).collect())
    }

    /// All threads have what they may have, and those with these names exist.
    fn is_confined(&self) -> Result<()> {
        let threads = self.threads()?;
        for thread in &threads {
            let Thread { name, effective, permitted, bounding, seccomp, no_new_privs } = thread;
            // `flowgate-free` only gives memory back, and is started before privileges are dropped.
            let serves =
                name.starts_with("worker-") || name.starts_with("flowgate-") && name != "flowgate-free";
            let needed = if serves { 0 } else { NEEDED };
            let allowed = if needed == 0 { 0 } else { needed | LATER };
            assert_eq!(
                (effective & !needed, permitted & !allowed, bounding & !(NEEDED | LATER)),
                (0, 0, 0),
                "{thread:?}"
            );
            let filtered = u8::from(name.starts_with("worker-")) * SECCOMP_MODE_FILTER;
            assert_eq!((*seccomp, *no_new_privs), (filtered, 1), "{thread:?}");
        }
        let names: BTreeSet<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
        for name in ["flowgate", "worker-0", "flowgate-dns", "flowgate-http"] {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
        Ok(())
    }
}

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_BPF (include/uapi/linux/capability.h).
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39;
/// CAP_PERFMON, in force only while the XDP program is loaded, and CAP_NET_BIND_SERVICE, for a program that executes itself again:
/// permitted.
const LATER: u64 = 1 << 38 | 1 << 10;
/// In `/proc/PID/status`.
const SECCOMP_MODE_FILTER: u8 = 2;

/// What the kernel says of a thread.
#[derive(Debug)]
struct Thread {
    name: String,
    effective: u64,
    permitted: u64,
    bounding: u64,
    seccomp: u8,
    no_new_privs: u8,
}

impl Thread {
    fn read(task: &Path) -> Option<Self> {
        let status = fs::read_to_string(task.join("status")).ok()?;
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let set = |key| u64::from_str_radix(value(key)?, 16).ok();
        Some(Self {
            name: value("Name:")?.to_owned(),
            effective: set("CapEff:")?,
            permitted: set("CapPrm:")?,
            bounding: set("CapBnd:")?,
            seccomp: value("Seccomp:")?.parse().ok()?,
            no_new_privs: value("NoNewPrivs:")?.parse().ok()?,
        })
    }
}

/// Every connection exchanges something again.
fn goes_on(what: &str, load: &StreamRun) -> Result<()> {
    let before = load.snapshot().exchanges;
    eventually(what, || Ok(load.snapshot().exchanges > before + 4 * CONNECTIONS as u64))
}

#[test]
fn every_thread_has_only_the_privileges_that_it_needs_and_all_repairs_work_with_them() -> Result<()> {
    let _turn = one_at_a_time();
    let config = format!("{HOLD}[workers]\nhang_ms = 400\n[dns]\nlisten = [\"127.0.0.1\"]\nforward = []\n");
    let served = Served::start(&config)?;
    served.wait_for_log("CAP_BPF CAP_IPC_LOCK CAP_NET_ADMIN CAP_NET_RAW")?;
    let load = served.load()?;
    served.is_confined()?;

    served.inject("panic")?;
    served.wait_for_log("the worker has been replaced")?;
    goes_on("the connections go on after a panic", &load)?;
    served.is_confined()?;

    // Sockets are opened again, at another length of frames.
    let gateway = served.lab.topology.gateway();
    gateway.ip(&format!("link set {} mtu 3000", flowgate_benches::lab::topology::UPLINK))?;
    served.wait_for_log("mtu=3000")?;
    goes_on("the connections go on after the sockets were opened again", &load)?;
    served.is_confined()?;

    served.inject("hang")?;
    eventually("the process has executed itself again", || {
        let hangs = served.lab.metric("flowgate_worker_restarts_total{reason=\"hang\"}");
        Ok(hangs.is_ok_and(|hangs| hangs == 1.0))
    })?;
    served.is_ready()?;
    goes_on("the connections go on after a hang", &load)?;
    served.is_confined()?;
    Served::none_was_lost(load)
}

#[test]
fn sighup_takes_over_what_can_change_and_names_what_needs_a_restart() -> Result<()> {
    let served = Served::start("[metrics]\ndetail = \"totals\"\n")?;
    let (load, pid) = (served.load()?, served.process_id()?);
    let breaks_down = || -> Result<bool> {
        let target = SocketAddr::from(([127, 0, 0, 1], 10_249));
        let exposition = served.lab.topology.gateway().enter(|| http_answer(target, "/metrics"))??;
        Ok(exposition.contains("flowgate_service_backends{"))
    };
    assert!(!breaks_down()?, "there are totals only");

    served.reload(|text| text.replace("\"totals\"", "\"services\"\n[workers]\ncount = 1"))?;
    served.wait_for_log("metrics.detail = \"services\" (was \"totals\")")?;
    served.wait_for_log("workers.count = 1 (was its default) needs a restart")?;
    served.wait_for_log("was read again: 1 changes are in force, 1 need a restart")?;
    assert!(breaks_down()?);

    served.reload(|text| format!("{text}\n[flows]\nudp_answered_s = 0\n"))?;
    served.wait_for_log("the configuration stays as it was")?;
    served.wait_for_log("flows.udp_answered_s: 0 is not from 1")?;
    served.reload(|text| text.replace("udp_answered_s = 0", "udp_answered_s = 9"))?;
    served.wait_for_log("flows.udp_answered_s = 9 (was its default)")?;
    assert_eq!(served.process_id()?, pid);
    Served::none_was_lost(load)
}

#[test]
fn sighup_changes_how_workers_treat_packets_and_how_objects_are_compiled() -> Result<()> {
    let served = Served::start("")?;
    let lab = &served.lab;
    let tables = || lab.show("tables");
    let sources = |tables: &serde_json::Value| -> Vec<String> {
        let addresses = rows(&tables["snat_addresses"]).map(|address| text(address).to_owned());
        addresses.filter(|address| !address.contains(':')).collect()
    };
    let load = served.load()?;
    served
        .reload(|text| format!("{text}\n[snat]\naddresses = [\"10.244.0.1\"]\n[icmp]\necho_vips = true\n"))?;
    eventually("the tables have the one address", || Ok(sources(&tables()?) == ["10.244.0.1"]))?;
    eventually("the VIP answers echo requests", || lab.client().enter(answers_echo)?)?;
    Served::none_was_lost(load)
}

/// Whether the VIP answers one echo request (RFC 792) within a second.
fn answers_echo() -> Result<bool> {
    const ECHO_REPLY: u8 = 0;
    // Type 8, code 0, checksum, identifier 0x1234, sequence number 1.
    let mut request = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let checksum = !(0x0800_u16 + 0x1234 + 1);
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(&SocketAddr::from((CLUSTER_IP, 0)).into())?;
    socket.send(&request)?;
    // With its IP header of 20 bytes; only what comes from the VIP, since the socket is connected.
    let mut reply = [0; 64];
    let len = (&socket).read(&mut reply).unwrap_or(0);
    Ok(len >= 28 && reply[20] == ECHO_REPLY)
}

#[test]
fn a_start_waits_for_what_a_predecessor_that_is_being_killed_still_holds() -> Result<()> {
    let mut served = Served::start("[dns]\nlisten = [\"127.0.0.1:5300\"]\nforward = []\n")?;
    let socket = served.lab.gateway.socket_path();
    let flows = socket.with_file_name("flows").join("flows-ipv4");
    served.lab.gateway.kill()?;
    fs::remove_file(&socket)?;
    // As a dying process: it listens and does not answer, and its files are locked.
    let namespace = served.lab.topology.gateway().clone();
    let held = namespace.run({
        let socket = socket.clone();
        move || -> Result<(UnixListener, UdpSocket, File, File)> {
            let lock = |path: &Path| -> Result<File> {
                let file = File::open(path)?;
                file.lock()?;
                Ok(file)
            };
            let listener = UnixListener::bind(&socket)?;
            Ok((listener, UdpSocket::bind("127.0.0.1:5300")?, lock(Path::new(PIN_DIR))?, lock(&flows)?))
        }
    })?;
    let releasing = thread::spawn(move || {
        let (listener, dns, pins, flows) = held;
        thread::sleep(Duration::from_millis(600));
        drop(listener);
        thread::sleep(Duration::from_millis(600));
        drop(dns);
        thread::sleep(Duration::from_millis(600));
        drop(pins);
        thread::sleep(Duration::from_millis(600));
        drop(flows);
    });
    served.lab.gateway.restart()?;
    served.is_ready()?;
    releasing.join().expect("it only sleeps");
    let log = served.lab.gateway.log();
    let waits = log.matches("waiting at most 10 s for an earlier flowgate to end").count();
    assert_eq!(waits, 1, "one line for all: {log}");
    Ok(())
}

/// The program, started in a time namespace whose monotonic clock is ahead by so many seconds.
fn in_time_namespace(folder: &Path, ahead_s: u32) -> Result<PathBuf> {
    let script = folder.join("flowgate");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = run ] || exec {FLOWGATE} \"$@\"\nexec unshare --time --monotonic {ahead_s} {FLOWGATE} \"$@\"\n"
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

#[test]
fn a_time_namespace_shifts_neither_the_hold_nor_the_times_of_flows() -> Result<()> {
    let _turn = one_at_a_time();
    let mut served = Served::start("hold_ms = 3000\n[flows]\ntcp_established_s = 300\n")?;
    let folder = tempfile::tempdir()?;
    let load = served.load()?;
    // A day ahead and back: flows would seem idle for that long, or be from the future.
    for binary in [in_time_namespace(folder.path(), 86_400)?, FLOWGATE.into()] {
        served.lab.gateway.set_binary(binary);
        served.lab.gateway.restart()?;
        served.is_ready()?;
        goes_on("the connections go on in another time", &load)?;
        assert!(served.lab.metric("flowgate_flows_adopted")? >= CONNECTIONS as f64);
    }
    Served::none_was_lost(load)?;

    served.lab.gateway.set_binary(in_time_namespace(folder.path(), 86_400)?);
    served.lab.gateway.restart()?;
    served.is_ready()?;
    served.lab.gateway.kill()?;
    let ask = |timeout| {
        let target = SocketAddr::from((CLUSTER_IP, ECHO));
        served.lab.client().enter(|| TcpStream::connect_timeout(&target, timeout).map_err(|e| e.kind()))
    };
    let held = ask(Duration::from_millis(1000))?.map(drop);
    assert_eq!(held, Err(std::io::ErrorKind::TimedOut), "nobody answers while the traffic is held");
    eventually("the hold ends after its three seconds", || {
        Ok(!matches!(ask(Duration::from_millis(200))?, Err(std::io::ErrorKind::TimedOut)))
    })
}

#[test]
fn flows_on_ports_that_the_configuration_no_longer_has_go_on_and_the_ports_are_given_back() -> Result<()> {
    let _turn = one_at_a_time();
    let mut served = Served::start(&format!("{HOLD}[snat]\nports = \"40000-40999\"\n"))?;
    let gateway = served.lab.topology.gateway().clone();
    let reserved = move || -> Result<String> {
        // In one read, which is as much as the kernel gives.
        let mut list = vec![0; 1 << 16];
        let (list, len) = gateway.run(move || {
            let len =
                File::open("/proc/sys/net/ipv4/ip_local_reserved_ports").and_then(|mut f| f.read(&mut list));
            (list, len)
        });
        Ok(String::from_utf8_lossy(&list[..len?]).trim().to_owned())
    };
    let load = served.load()?;
    assert_eq!(reserved()?, "40000-40999");
    let config = served.lab.gateway.config_path();
    fs::write(&config, fs::read_to_string(&config)?.replace("40000-40999", "50000-50999"))?;
    served.lab.gateway.restart()?;
    served.is_ready()?;
    goes_on("the connections go on by their old ports", &load)?;
    let kept = reserved()?;
    assert!(kept.ends_with("50000-50999") && kept.starts_with("40"), "{kept}");
    assert_ne!(kept, "40000-40999,50000-50999", "only those that flows have");
    Served::none_was_lost(load)?;
    Ok(())
}

#[test]
fn a_configuration_that_needs_more_memory_than_there_is_ends_in_one_sentence() -> Result<()> {
    let mut served = Served::start("[flows]\ncapacity = 4096\n")?;
    served.lab.gateway.terminate(LIMIT)?;
    let config = served.lab.gateway.config_path();
    fs::write(&config, fs::read_to_string(&config)?.replace("capacity = 4096", "capacity = 500000000"))?;
    let arguments = ["run", "--config", &config.display().to_string()];
    let ended = support::flowgate(served.lab.topology.gateway(), &arguments)?;
    assert!(ended.is_refusal("the configuration needs"), "{ended:?}");
    assert!(
        ended.stderr.contains("available (") && ended.stderr.contains("lower flows.capacity"),
        "{ended:?}"
    );
    let checked = support::flowgate_here(&["check", "--config", &config.display().to_string()])?;
    assert!(checked.stdout.contains("warning: the configuration needs"), "{checked:?}");
    Ok(())
}
