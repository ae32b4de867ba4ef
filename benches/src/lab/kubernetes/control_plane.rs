//! etcd, kube-apiserver and kube-controller-manager in their own namespace; a bridge connects it to the namespaces of API
//! clients. They die with this process, and their data is deleted with the folder.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use hyper::Request;
use k8s_openapi::api::core;
use kube::Api;
use tempfile::TempDir;

use super::files::{API_SERVER, ETCD, Files};
use super::programs::kubectl_command;
use super::{ApiClient, Programs};
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::lab::scratch;
use crate::lab::topology::{BRIDGE, Link, join_bridge, switch};
use crate::netns::{Namespace, Process, guarded};

/// The interface of API clients.
pub(super) const MANAGEMENT: &str = "mgmt0";
const READY_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Go's garbage collector would take a good part of the processor while the programs start and fill: let it wait for more
/// garbage, within bounds.
const GO_MEMORY: [(&str, &str); 2] = [("GOGC", "400"), ("GOMEMLIMIT", "1GiB")];

/// A running control plane; removed when dropped.
pub struct ControlPlane {
    // Fields drop in this order: etcd after its clients, then the namespace.
    controllers: Option<Process>,
    api_server: Option<Process>,
    _etcd: Process,
    namespace: Namespace,
    programs: Programs,
    files: Files,
    joined: u8,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts everything and waits until the API server is ready. `progress` gets each step.
    pub fn start(programs: Programs, mut progress: impl FnMut(&str)) -> Result<Self> {
        let folder = scratch::folder("kubernetes")?;
        let files = Files::new(folder.path());
        files.write()?;
        let namespace = switch("control")?;
        // Without an address of its own a bridge takes that of a port, and changes it when ports join.
        namespace.ip(&format!("link set {BRIDGE} address 02:f0:c6:33:64:01"))?;
        namespace.ip(&format!("addr add {}/24 dev {BRIDGE}", API_SERVER.0))?;
        let mut key = Command::new(&programs.kubernetes);
        key.arg("service-account-key").arg(files.service_account_key());
        namespace.check(key)?;
        progress("starting etcd");
        let etcd = spawn(&namespace, &programs.etcd, files.etcd_arguments(), &files.log("etcd"))?;
        let mut plane = Self {
            controllers: None,
            api_server: None,
            _etcd: etcd,
            namespace,
            programs,
            files,
            joined: 0,
            folder,
        };
        progress("starting kube-apiserver");
        plane.start_api_server()?;
        progress("starting kube-controller-manager");
        plane.start_controllers()?;
        Ok(plane)
    }

    /// Gives a namespace the interface `mgmt0` towards the API server. Returns its address.
    pub fn join(&mut self, namespace: &Namespace) -> Result<Ipv4Addr> {
        self.joined += 1;
        let port = format!("m{}", self.joined);
        Link { queues: 1, mtu: None }.connect(&self.namespace, &port, namespace, MANAGEMENT)?;
        join_bridge(&self.namespace, &port)?;
        let address = Ipv4Addr::from(u32::from(API_SERVER.0) + u32::from(self.joined));
        namespace.ip(&format!("addr add {address}/24 dev {MANAGEMENT}"))?;
        Ok(address)
    }

    /// The namespace of its processes.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The folder of its files; callers may add files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.files.kubeconfig()
    }

    /// Writes a kubeconfig for a ServiceAccount, with its RBAC permissions.
    pub fn kubeconfig_of_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", name, "-n", namespace, "--duration", "24h"])?;
        let path = self.files.path(&format!("kubeconfig-{namespace}-{name}"));
        self.files.write_file(&path, &self.files.kubeconfig_for(token.trim()))?;
        Ok(path)
    }

    /// A client with an administrator's permissions.
    pub fn client(&self) -> ApiClient {
        ApiClient::new(&self.namespace, self.kubeconfig())
    }

    /// Runs `kubectl` with these arguments and returns its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = kubectl_command(&self.programs.kubernetes, &self.kubeconfig());
        command.args(arguments);
        self.namespace.check(command)
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let path = self.files.path("apply.yaml");
        self.files.write_file(&path, yaml)?;
        self.kubectl(&["apply", "-f", &path.to_string_lossy()])
    }

    /// Starts the API server, unless it runs, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        if self.api_server.as_mut().is_none_or(|process| process.ended().is_some()) {
            let arguments = self.files.api_server_arguments();
            let log = self.files.log("kube-apiserver");
            self.api_server = Some(spawn(&self.namespace, &self.programs.kubernetes, arguments, &log)?);
        }
        self.await_ready()
    }

    /// Kills the API server (SIGKILL), without orderly ends of watches.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.api_server.take().map_or(Ok(()), |mut process| process.kill().map(drop))
    }

    /// Starts the controllers, unless they run.
    pub fn start_controllers(&mut self) -> Result<()> {
        if self.controllers.as_mut().is_none_or(|process| process.ended().is_some()) {
            let arguments = self.files.controllers_arguments();
            let log = self.files.log("kube-controller-manager");
            self.controllers = Some(spawn(&self.namespace, &self.programs.kubernetes, arguments, &log)?);
        }
        Ok(())
    }

    /// Ends the controllers; slices are no longer updated.
    pub fn stop_controllers(&mut self) -> Result<()> {
        self.controllers.take().map_or(Ok(()), |mut process| process.terminate(END_LIMIT).map(drop))
    }

    /// Expires all watch history: a watch from an earlier resourceVersion gets 410 Gone. Compacts etcd and restarts the API
    /// server, whose watch cache would still hold the old events.
    pub fn expire_history(&mut self) -> Result<()> {
        self.kill_api_server()?;
        let revision = self.etcd_post("/v3/kv/range", r#"{"key":"AA=="}"#)?;
        let revision = revision["header"]["revision"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::State(format!("etcd returned no revision: {revision}")))?;
        self.etcd_post("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#))?;
        self.start_api_server()
    }

    /// A request to the JSON gateway of etcd.
    fn etcd_post(&self, path: &str, body: &str) -> Result<serde_json::Value> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--max-time", "30", "-d", body, &format!("http://{ETCD}{path}")]);
        let answer = self.namespace.check(command)?;
        serde_json::from_str(&answer)
            .map_err(|error| Error::State(format!("etcd answered {answer:?} to {path}: {error}")))
    }

    fn await_ready(&mut self) -> Result<()> {
        let deadline = clock::now() + READY_LIMIT;
        loop {
            let answer = self.client().run("wait for the API server", |client| async move {
                let request = Request::get("/readyz").body(Vec::new());
                client.request_text(request.expect("a path is a URI")).await?;
                // The API server creates this namespace itself, shortly after it reports ready.
                Api::<core::v1::Namespace>::all(client).get_metadata("kube-system").await
            });
            let Err(error) = answer else { return Ok(()) };
            let ended = self.api_server.as_mut().and_then(Process::ended);
            if ended.is_some() || clock::now() > deadline {
                let log = std::fs::read_to_string(self.files.log("kube-apiserver")).unwrap_or_default();
                let hint = format!("{error}; its log ends with:\n{}", last_lines(&log, 20));
                return Err(Error::Timeout {
                    what: "the start of kube-apiserver".into(),
                    after: READY_LIMIT,
                    hint,
                });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

fn spawn(namespace: &Namespace, program: &Path, arguments: Vec<String>, log: &Path) -> Result<Process> {
    let output = File::options().create(true).append(true).open(log);
    let output = output.map_err(Error::io(format!("open {}", log.display())))?;
    let errors = output.try_clone().map_err(Error::io(format!("share {}", log.display())))?;
    let mut command = guarded(program);
    command.args(arguments).envs(GO_MEMORY).stdout(output).stderr(errors);
    namespace.spawn(command)
}
