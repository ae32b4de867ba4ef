//! The gateway of the lab: the `flowgate` binary, started and queried by its command line in the gateway's namespace, as
//! a user would.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::manifests::ManifestDir;
use super::{scratch, topology};
use crate::clock;
use crate::error::{Error, Result};
use crate::netns::{Namespace, Process, guarded};

/// Time limit of a start, long enough for a virtual machine without KVM.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The source of Services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewaySource {
    /// The manifest directory that the lab writes.
    Manifests,
    /// The API server of this kubeconfig.
    Kubeconfig(PathBuf),
}

/// How to start the gateway.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The `flowgate` binary.
    pub binary: PathBuf,
    /// The interfaces to serve.
    pub interfaces: Vec<String>,
    /// The cores that the process may use, as `taskset -c` reads them; all if not given.
    pub cpus: Option<String>,
    /// The source of Services.
    pub source: GatewaySource,
    /// The name of its Node object; the host's name if not given.
    pub node_name: Option<String>,
    /// `gateway` or `node`; the product's default if not given.
    pub role: Option<String>,
    /// More lines for the section `gateway`.
    pub gateway_config: String,
    /// More lines for the section `xdp`.
    pub xdp_config: String,
    /// More configuration, appended to the generated file.
    pub extra_config: String,
}

impl GatewayOptions {
    /// The gateway of a [`topology::Topology`].
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            interfaces: vec![topology::UPLINK.into(), topology::FABRIC.into()],
            cpus: None,
            source: GatewaySource::Manifests,
            node_name: None,
            role: None,
            gateway_config: String::new(),
            xdp_config: String::new(),
            extra_config: String::new(),
        }
    }
}

/// A running gateway; killed when dropped.
pub struct Gateway {
    namespace: Namespace,
    options: GatewayOptions,
    folder: TempDir,
    manifests: ManifestDir,
    process: Option<Process>,
}

impl Gateway {
    /// Starts the gateway and waits until its admin socket answers.
    pub fn start(namespace: &Namespace, options: GatewayOptions) -> Result<Self> {
        let folder = scratch::folder("gateway")?;
        let manifests = ManifestDir::create(folder.path().join("manifests"))?;
        let mut gateway = Self { namespace: namespace.clone(), options, folder, manifests, process: None };
        let config = gateway.config();
        fs::write(gateway.config_path(), config)
            .map_err(Error::io(format!("write {}", gateway.config_path().display())))?;
        gateway.launch()?;
        Ok(gateway)
    }

    /// Its manifest directory.
    pub fn manifests(&self) -> &ManifestDir {
        &self.manifests
    }

    /// Its admin socket.
    pub fn socket_path(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("flowgate.toml")
    }

    /// The file of its output.
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("flowgate.log")
    }

    /// Its output so far, over all starts.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The process id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Runs `flowgate show WHAT`, for example `["workers", "-o", "json"]`.
    pub fn show(&self, what: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.options.binary);
        command.arg("show").args(what).arg("--socket").arg(self.socket_path());
        self.namespace.check(command)
    }

    /// Runs `flowgate show VIEW -o json` and parses what it prints.
    pub fn show_json(&self, view: &str) -> Result<Value> {
        let text = self.show(&[view, "-o", "json", "--limit", "100000"])?;
        serde_json::from_str(&text)
            .map_err(|error| Error::State(format!("`show {view} -o json` printed {text:?}: {error}")))
    }

    /// Waits until the gateway lists a Service.
    pub fn wait_for_service(&self, name: &str) -> Result<()> {
        let deadline = clock::now() + READY_LIMIT;
        let quoted = format!("\"{name}\"");
        let qualified = format!("/{name}");
        loop {
            let services = self.show(&["services", "-o", "json"])?;
            if services.contains(&quoted) || services.contains(&qualified) {
                return Ok(());
            }
            if clock::now() >= deadline {
                return Err(Error::Timeout {
                    what: format!("Service {name} in `flowgate show services`"),
                    after: READY_LIMIT,
                    hint: format!("the gateway's log ends with:\n{}", last_lines(&self.log(), 20)),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends one request, a line of JSON, to the admin socket and returns the response line.
    pub fn ask(&self, request: &str) -> Result<String> {
        let path = self.socket_path();
        let exchange = || -> io::Result<String> {
            let mut socket = UnixStream::connect(&path)?;
            socket.set_read_timeout(Some(READY_LIMIT))?;
            socket.write_all(format!("{request}\n").as_bytes())?;
            let mut answer = String::new();
            BufReader::new(socket).read_line(&mut answer)?;
            Ok(answer)
        };
        exchange().map_err(Error::io(format!("send {request} to {}", path.display())))
    }

    /// Sets the binary of the next start.
    pub fn set_binary(&mut self, binary: impl Into<PathBuf>) {
        self.options.binary = binary.into();
    }

    /// Whether the process has exited.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_some())
    }

    /// Kills the process (SIGKILL), without any clean-up of its own.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill().map(drop))
    }

    /// Ends the process with SIGTERM, and with SIGKILL after `grace`. `None` if it did not run.
    pub fn terminate(&mut self, grace: Duration) -> Result<Option<ExitStatus>> {
        self.process.take().map(|mut process| process.terminate(grace)).transpose()
    }

    /// Restarts it with the same configuration and manifests.
    pub fn restart(&mut self) -> Result<()> {
        self.terminate(Duration::from_secs(5))?;
        self.launch()
    }

    /// Ends it and runs `flowgate detach`: without that its XDP programs stay attached for the next start.
    pub fn detach(mut self) -> Result<()> {
        self.terminate(Duration::from_secs(5))?;
        let mut command = Command::new(&self.options.binary);
        command.arg("detach").arg("--config").arg(self.config_path());
        self.namespace.check(command).map(drop)
    }

    fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(Error::io(format!("open {}", self.log_path().display())))?;
        let errors = log.try_clone().map_err(Error::io("share the gateway's log"))?;
        let mut command = on_cpus(self.options.cpus.as_deref(), &self.options.binary);
        command.arg("run").arg("--config").arg(self.config_path()).stdout(log).stderr(errors);
        // Fault cases make workers panic. A backtrace would load 50 MB of symbols, which stay in memory and would look
        // like a leak.
        command.env("RUST_BACKTRACE", "0");
        self.process = Some(self.namespace.spawn(command)?);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = clock::now() + READY_LIMIT;
        loop {
            let Err(answer) = self.show(&["workers", "-o", "json"]) else { return Ok(()) };
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                let log = last_lines(&self.log(), 20);
                return Err(Error::State(format!(
                    "the gateway ended while it started ({status}); its log ends with:\n{log}"
                )));
            }
            if clock::now() >= deadline {
                return Err(Error::Timeout {
                    what: "the gateway's answer on its admin socket".into(),
                    after: READY_LIMIT,
                    hint: format!("{answer}; its log ends with:\n{}", last_lines(&self.log(), 20)),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The configuration file.
    fn config(&self) -> String {
        let text = |path: &Path| toml_string(&path.to_string_lossy());
        let interfaces: Vec<_> = self.options.interfaces.iter().map(|name| toml_string(name)).collect();
        let source = match &self.options.source {
            GatewaySource::Manifests => format!("manifests = {}", text(self.manifests.path())),
            // In the lab's folder: the default path belongs to a gateway of this machine.
            GatewaySource::Kubeconfig(path) => format!(
                "kubeconfig = {}\nsnapshot = {}",
                text(path),
                text(&self.folder.path().join("snapshot.json"))
            ),
        };
        let identity: String = [("role", &self.options.role), ("node_name", &self.options.node_name)]
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key} = {}\n", toml_string(value.as_deref()?))))
            .collect();
        format!(
            "{identity}\n[source]\n{source}\n\n[gateway]\ninterfaces = [{}]\n{}\n[admin]\nsocket = {}\n\n[xdp]\npin_dir = \
             \"/sys/fs/bpf/flowgate\"\n{}\n\n{}\n",
            interfaces.join(", "),
            self.options.gateway_config,
            text(&self.socket_path()),
            self.options.xdp_config,
            self.options.extra_config,
        )
    }
}

/// The elements of a JSON array, as `show` prints one; empty if the value is not an array.
pub fn rows(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// A [`guarded`] command, confined to `cpus` if given.
pub(crate) fn on_cpus(cpus: Option<&str>, program: &Path) -> Command {
    match cpus {
        None => guarded(program),
        Some(cpus) => {
            let mut command = guarded("taskset");
            command.args(["-c", cpus]).arg(program);
            command
        }
    }
}

/// The last `count` lines of a log.
pub(crate) fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
