//! A running machine: QEMU without KVM, and the line to the agent inside.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::agent::{Reply, Request};
use super::image::{FLOWGATE, PackedImage};
use super::{Kernel, Store};
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::lab::{interrupt, scratch};
use crate::loadgen::stop::Stop;
use crate::netns::{Namespace, Process, guarded};

/// A boot takes six seconds on an idle core.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Time limit of a command inside, which is about twenty times slower than on the host.
const COMMAND_SECONDS: u64 = 60;
/// How much longer than the agent the host waits for the reply.
const GRACE: Duration = Duration::from_secs(30);
/// Interval of checks for a stop.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How to boot a machine.
#[derive(Clone)]
pub struct MachineOptions {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Its NICs, each connected to a tap device.
    pub nics: Vec<Nic>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self { cpus: 1, memory_mib: 1024, nics: Vec::new() }
    }
}

/// An emulated NIC.
#[derive(Clone)]
pub struct Nic {
    /// QEMU's device with properties: `igb`, or `virtio-net-pci,iommu_platform=on`.
    pub device: String,
    /// Its MAC address, which identifies it inside.
    pub mac: String,
    /// The tap device on the host.
    pub tap: String,
    /// The namespace that the tap device moves to once the machine runs.
    pub namespace: Namespace,
    /// Queues of the tap device. Only virtio-net needs several.
    pub tap_queues: u32,
}

/// A running machine; killed when dropped.
pub struct Machine {
    process: Process,
    line: Mutex<AgentConnection>,
    monitor: Mutex<UnixStream>,
    folder: TempDir,
    stop: Stop,
    /// The namespace of QEMU, where the tap devices were created.
    _namespace: Namespace,
    _image: PackedImage,
}

impl Machine {
    /// Boots a kernel with an image and waits until the agent inside answers. A later `stop` ends every wait for it.
    pub fn boot(
        store: &Store,
        kernel: &Kernel,
        image: PackedImage,
        options: &MachineOptions,
        stop: &Stop,
    ) -> Result<Self> {
        let qemu = store.qemu();
        if !qemu.exists() {
            return Err(Error::State(format!("QEMU is not in {}: run  .ci/vm", qemu.display())));
        }
        let namespace = Namespace::new("machine")?;
        for Nic { tap, tap_queues, .. } in &options.nics {
            let several = if *tap_queues > 1 { " multi_queue" } else { "" };
            namespace.ip(&format!("tuntap add dev {tap} mode tap{several}"))?;
            namespace.ip(&format!("link set {tap} up"))?;
        }
        let folder = scratch::folder("machine")?;
        let mut command = guarded(qemu);
        command.args(arguments(kernel, &image, options, folder.path()));
        let log = File::create(folder.path().join("qemu.log")).map_err(Error::io("make QEMU's log"))?;
        command.stdout(log.try_clone().map_err(Error::io("share QEMU's log"))?).stderr(log);
        let mut process = namespace.spawn(command)?;

        let line = connect(&folder.path().join("agent"), &mut process, folder.path())?;
        let monitor = connect(&folder.path().join("monitor"), &mut process, folder.path())?;
        // QEMU has opened them: now they can move.
        for Nic { tap, namespace: place, .. } in &options.nics {
            namespace.ip(&format!("link set {tap} netns {}", place.path().display()))?;
            place.sysctl(&format!("net/ipv6/conf/{tap}/disable_ipv6"), "1")?;
            place.ip(&format!("link set {tap} up"))?;
        }
        let mut machine = Self {
            process,
            line: Mutex::new(AgentConnection::new(line)),
            monitor: Mutex::new(monitor),
            folder,
            stop: stop.clone(),
            _namespace: namespace,
            _image: image,
        };
        let line = machine.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ready = line.reply_within(BOOT_LIMIT, stop);
        ready.map_err(|error| machine.explain("boot", &error))?;
        Ok(machine)
    }

    /// Runs a program inside and returns its exit code and output.
    pub fn run(&self, command: &[&str], limit: Duration) -> Result<Output> {
        let request = Request::Run { command: words(command), seconds: limit.as_secs() };
        let Reply { code, output, errors } = self.request(&request, limit)?;
        Ok(Output { code, output, errors })
    }

    /// Runs a program inside that has to succeed; returns its output.
    pub fn check(&self, command: &[&str]) -> Result<String> {
        let output = self.run(command, Duration::from_secs(COMMAND_SECONDS))?;
        if output.code == Some(0) {
            return Ok(output.output);
        }
        Err(Error::Command {
            command: command.join(" "),
            namespace: "(the machine)".into(),
            output: format!("exit code {:?} {}{}", output.code, output.output, output.errors),
        })
    }

    /// Runs `ip` inside with blank-separated arguments.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let line: Vec<_> = std::iter::once("ip").chain(arguments.split_ascii_whitespace()).collect();
        self.check(&line)
    }

    /// Loads modules inside; built-in ones count as loaded.
    pub fn load_modules(&self, names: &[&str]) -> Result<()> {
        let line: Vec<_> = ["modprobe", "-a"].iter().chain(names).copied().collect();
        self.check(&line).map(drop)
    }

    /// Starts a program in the background with its output in `log`; `name` identifies it later.
    pub fn start(&self, name: &str, command: &[&str], log: &str) -> Result<()> {
        let request = Request::Start { command: words(command), name: name.into(), log: log.into() };
        self.done(&format!("start {name}"), &request)
    }

    /// Sends a started program a signal.
    pub fn signal(&self, name: &str, signal: nix::sys::signal::Signal) -> Result<()> {
        let request = Request::Signal { name: name.into(), signal: signal as i32 };
        self.done(&format!("signal {name}"), &request)
    }

    /// Waits until a started program has ended.
    pub fn wait(&self, name: &str) -> Result<()> {
        let request = Request::Wait { name: name.into(), seconds: COMMAND_SECONDS };
        self.done(&format!("wait for {name}"), &request)
    }

    /// Writes a file inside.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.done(&format!("write {path}"), &Request::Write { path: path.into(), text: text.into() })
    }

    /// Reads a file inside.
    pub fn read(&self, path: &str) -> Result<String> {
        let reply = self.request(&Request::Read { path: path.into() }, Duration::ZERO)?;
        if reply.code.is_none() {
            return Err(Error::State(format!("cannot read {path} in the machine: {}", reply.errors)));
        }
        Ok(reply.output)
    }

    /// The name of the interface with this MAC address inside.
    pub fn interface(&self, mac: &str) -> Result<String> {
        let links = self.check(&["ip", "-j", "link"])?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&links).map_err(|error| {
            Error::State(format!("`ip -j link` in the machine printed {links:?}: {error}"))
        })?;
        let link = links.iter().find(|link| link["address"] == mac);
        let name = link.and_then(|link| link["ifname"].as_str()).map(str::to_owned);
        name.ok_or_else(|| {
            Error::State(format!("the machine has no interface with the address {mac}: {links:?}"))
        })
    }

    /// Sends a command to QEMU's human monitor, such as `set_link nic0 off`.
    pub fn monitor(&self, command: &str) -> Result<()> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        monitor
            .write_all(format!("{command}\n").as_bytes())
            .map_err(Error::io(format!("send QEMU `{command}`")))
    }

    /// The console output of the kernel.
    pub fn console(&self) -> String {
        console(self.folder.path())
    }

    /// Powers the machine off and waits for its end.
    pub fn power_off(mut self) -> Result<()> {
        let request = serde_json::to_string(&Request::PowerOff).expect("a request has string keys");
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        line.send(&request).map_err(Error::io("power the machine off"))?;
        self.process.wait(GRACE).map(drop).map_err(|error| self.explain("end", &error))
    }

    fn done(&self, what: &str, request: &Request) -> Result<()> {
        let reply = self.request(request, Duration::from_secs(COMMAND_SECONDS))?;
        if reply.code == Some(0) {
            return Ok(());
        }
        Err(Error::State(format!(
            "cannot {what} in the machine: exit code {:?} {}",
            reply.code, reply.errors
        )))
    }

    fn request(&self, request: &Request, limit: Duration) -> Result<Reply> {
        let text = serde_json::to_string(request).expect("a request has string keys");
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let replied = line.send(&text).and_then(|()| line.reply_within(limit + GRACE, &self.stop));
        drop(line);
        replied.map_err(|error| self.explain(&text, &error))
    }

    /// An error with the last lines of console and QEMU.
    fn explain(&self, what: &str, error: &dyn std::fmt::Display) -> Error {
        if let Err(interrupted) = interrupt::check(&self.stop) {
            return interrupted;
        }
        let console = last_lines(&self.console(), 30);
        let qemu = fs::read_to_string(self.folder.path().join("qemu.log")).unwrap_or_default();
        Error::State(format!(
            "the machine did not answer to `{what}`: {error}; the last lines of its console and QEMU:\n{console}\n{qemu}"
        ))
    }
}

/// Exit code and output of a program inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it or it did not end in time.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

/// The serial line to the agent, which answers requests in order.
struct AgentConnection {
    stream: BufReader<UnixStream>,
    /// Whether a reply is missing, so that later replies would be matched with the wrong requests.
    is_broken: bool,
}

impl AgentConnection {
    fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), is_broken: false }
    }

    fn send(&mut self, request: &str) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("an earlier request was not answered"));
        }
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())
    }

    fn reply_within(&mut self, limit: Duration, stop: &Stop) -> io::Result<Reply> {
        let reply = self.read_within(limit, stop);
        self.is_broken = reply.is_err();
        reply
    }

    fn read_within(&mut self, limit: Duration, stop: &Stop) -> io::Result<Reply> {
        self.stream.get_ref().set_read_timeout(Some(POLL_INTERVAL))?;
        let deadline = clock::now() + limit;
        let mut text = Vec::new();
        // A partial line stays in `text` when the read times out.
        while let Err(error) = self.stream.read_until(b'\n', &mut text) {
            if error.kind() != io::ErrorKind::WouldBlock || stop.is_stopped() || clock::now() >= deadline {
                return Err(error);
            }
        }
        if text.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
        }
        serde_json::from_slice(&text).map_err(|error| {
            io::Error::other(format!("{:?} is not a reply: {error}", String::from_utf8_lossy(&text)))
        })
    }
}

/// Connects to a socket that QEMU creates when it starts.
fn connect(path: &Path, process: &mut Process, folder: &Path) -> Result<UnixStream> {
    let deadline = clock::now() + GRACE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if process.ended().is_some() || clock::now() >= deadline => {
                let said = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
                return Err(Error::State(format!("QEMU does not run ({error}): {}", said.trim())));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn console(folder: &Path) -> String {
    fs::read(folder.join("console"))
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .unwrap_or_default()
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

/// QEMU's command line.
fn arguments(kernel: &Kernel, image: &PackedImage, options: &MachineOptions, folder: &Path) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let socket = |name: &str| format!("unix:{},server=on,wait=off", folder.join(name).display());
    let append = format!("console=ttyS0 panic=-1 quiet rdinit={FLOWGATE} -- lab guest");
    let mut line =
        words(&["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-display", "none", "-no-reboot"]);
    line.extend(words(&["-nodefaults", "-no-user-config"]));
    line.extend(["-smp".into(), options.cpus.to_string(), "-m".into(), options.memory_mib.to_string()]);
    line.extend(["-kernel".into(), path(kernel.image()), "-initrd".into(), path(image.path.clone())]);
    line.extend(["-append".into(), append]);
    line.extend(["-serial".into(), format!("file:{}", folder.join("console").display())]);
    line.extend(["-serial".into(), socket("agent"), "-monitor".into(), socket("monitor")]);
    for (index, Nic { device, mac, tap, tap_queues, .. }) in options.nics.iter().enumerate() {
        // igb must be behind a root port; the others may be.
        line.extend([
            "-device".into(),
            format!("pcie-root-port,id=port{index},slot={},chassis={}", index + 1, index + 1),
        ]);
        let queues = if *tap_queues > 1 { format!(",queues={tap_queues}") } else { String::new() };
        line.extend([
            "-netdev".into(),
            format!("tap,id=nic{index},ifname={tap},script=no,downscript=no{queues}"),
            "-device".into(),
            // No option ROM: nothing boots from the network.
            format!("{device},id=device{index},bus=port{index},netdev=nic{index},mac={mac},romfile="),
        ]);
    }
    line
}
