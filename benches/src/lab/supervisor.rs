//! `lab up` and `lab down`: a sample cluster in a background process, the supervisor, until SIGTERM.
//!
//! The supervisor holds a file lock while it lives, so that a stale state file is not taken for a running lab. It writes
//! the names of its namespaces to the state file before it creates them: after a SIGKILL the next command removes them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::gateway::{Gateway, last_lines};
use super::kubernetes::{ClusterOptions, KubernetesCluster, Programs, kubectl_command};
use super::sample::SampleCluster;
use super::topology::Topology;
use super::{interrupt, scratch};
use crate::error::{Error, Result};
use crate::loadgen::stop::Stop;
use crate::{clock, netns};

mod guide;

/// Time limit for the state file of a supervisor that has just started or is about to end.
const STATE_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(10);

/// A lab, identified by its state directory and the prefix of its namespace names.
#[derive(Debug, Clone)]
pub struct LabInstance {
    /// The directory of lock, state file and log.
    pub folder: PathBuf,
    /// The prefix of the names of its namespaces.
    pub prefix: String,
}

impl Default for LabInstance {
    fn default() -> Self {
        Self { folder: PathBuf::from("/run/flowgate-lab"), prefix: "flowgate-".into() }
    }
}

/// Where the lab's Services come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabKind {
    /// Files of manifests.
    Manifests,
    /// A real Kubernetes control plane.
    Kubernetes,
}

/// The state file of a supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabState {
    /// The process id of the supervisor.
    pub pid: i32,
    /// Whether everything runs.
    pub ready: bool,
    /// The names of the namespaces.
    pub names: Vec<String>,
    /// The gateway's admin socket.
    pub socket: Option<PathBuf>,
    /// The gateway's manifests.
    pub manifests: Option<PathBuf>,
    /// The gateway's log.
    pub log: Option<PathBuf>,
    /// The current step of the start, until everything runs.
    #[serde(default)]
    pub doing: Option<String>,
    /// The API server of a lab with Kubernetes.
    #[serde(default)]
    pub kubernetes: Option<KubernetesState>,
}

/// How to talk to the lab's API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesState {
    /// The namespace from which it is reached.
    pub namespace: String,
    /// The program that holds `kubectl`.
    pub program: PathBuf,
    /// Its credentials.
    pub kubeconfig: PathBuf,
}

/// The outcome of [`up`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpOutcome {
    /// The lab was started.
    Started(LabState),
    /// The lab runs already.
    AlreadyRunning(LabState),
}

/// The outcome of [`down`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownOutcome {
    /// A running lab was ended.
    Ended,
    /// There was no lab, or only leftovers of a killed one, which are removed.
    WasNotRunning,
}

impl LabKind {
    /// Time limit of the start.
    fn start_limit(self) -> Duration {
        match self {
            Self::Manifests => Duration::from_secs(30),
            Self::Kubernetes => Duration::from_secs(180),
        }
    }
}

/// Starts the lab in the background, by `BINARY lab supervise`, and waits until it is ready. `progress` gets each step
/// of the start.
pub fn up(
    instance: &LabInstance,
    binary: &Path,
    kind: LabKind,
    mut progress: impl FnMut(&str),
) -> Result<UpOutcome> {
    if kind == LabKind::Kubernetes {
        // Checked here, so that the error appears at once and not in the supervisor's log.
        Programs::find()?;
    }
    fs::create_dir_all(&instance.folder)
        .map_err(Error::io(format!("make folder {}", instance.folder.display())))?;
    if instance.running()?.is_some() {
        let state = instance.await_ready(kind, &mut progress, || Ok(()))?;
        if state.kind() != kind {
            return Err(Error::State(format!(
                "a lab runs that gets its Services from {}: `flowgate lab down` ends it",
                match state.kind() {
                    LabKind::Manifests => "manifests",
                    LabKind::Kubernetes => "Kubernetes",
                }
            )));
        }
        return Ok(UpOutcome::AlreadyRunning(state));
    }
    instance.remove_leftovers()?;
    let log =
        File::create(instance.log()).map_err(Error::io(format!("write {}", instance.log().display())))?;
    let errors = log.try_clone().map_err(Error::io("share the supervisor's log"))?;
    // Its own session, so that it outlives the terminal.
    let mut command = Command::new("setsid");
    command
        .arg(binary)
        .args(["lab", "supervise", "--state-dir"])
        .arg(&instance.folder)
        .args(["--prefix", &instance.prefix])
        .args((kind == LabKind::Kubernetes).then_some("--kubernetes"));
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut supervisor = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::MissingProgram { program: "setsid".into(), package: "util-linux" },
        _ => Error::io(format!("start {}", binary.display()))(error),
    })?;
    let outcome = instance.await_ready(kind, &mut progress, || match supervisor.try_wait() {
        Ok(Some(status)) => {
            Err(Error::State(format!("the lab did not start ({status}):\n{}", instance.log_end())))
        }
        _ => Ok(()),
    });
    if outcome.is_err() {
        down(instance)?;
    }
    outcome.map(UpOutcome::Started)
}

/// Ends the lab and removes its leftovers and those of killed labs before it.
pub fn down(instance: &LabInstance) -> Result<DownOutcome> {
    if !instance.folder.exists() {
        return Ok(DownOutcome::WasNotRunning);
    }
    let outcome = match instance.running()? {
        None => DownOutcome::WasNotRunning,
        Some(state) => {
            let pid = Pid::from_raw(state.pid);
            instance.end(pid, Signal::SIGTERM).or_else(|_| instance.end(pid, Signal::SIGKILL))?;
            DownOutcome::Ended
        }
    };
    // Held until the end, so that no lab starts among the leftovers of this one.
    let _lock = instance.lock()?;
    instance.remove_leftovers()?;
    instance.remove_lock_and_log();
    // Fails if there are files of others in it; they stay.
    let _ = fs::remove_dir(&instance.folder);
    Ok(outcome)
}

/// Builds the lab and runs it until `stop`: the hidden command `lab supervise`.
pub fn supervise(instance: &LabInstance, binary: &Path, kind: LabKind, stop: &Stop) -> Result<()> {
    fs::create_dir_all(&instance.folder)
        .map_err(Error::io(format!("make folder {}", instance.folder.display())))?;
    let lock = instance.lock()?;
    let Some(_lock) = lock else {
        return Err(Error::State(format!(
            "a lab runs already in {}: `flowgate lab down` ends it",
            instance.folder.display()
        )));
    };
    instance.remove_leftovers()?;
    let pid = i32::try_from(std::process::id()).expect("process ids fit in pid_t");
    let mut state = LabState { pid, ..LabState::default() };
    instance.write(&state)?;
    let outcome = match kind {
        LabKind::Manifests => run_with_manifests(instance, binary, stop, &mut state),
        LabKind::Kubernetes => run_with_kubernetes(instance, binary, stop, &mut state),
    };
    instance.remove_leftovers()?;
    outcome
}

fn run_with_manifests(
    instance: &LabInstance,
    binary: &Path,
    stop: &Stop,
    state: &mut LabState,
) -> Result<()> {
    let mut cluster = SampleCluster::build_network()?;
    cluster.start_servers()?;
    interrupt::check(stop)?;
    cluster.start_gateway(binary)?;
    cluster.apply_manifests()?;
    publish(instance, cluster.topology(), state)?;
    state.manifests = Some(cluster.gateway()?.manifests().path().to_owned());
    instance.write_ready(cluster.gateway()?, state)?;
    restart_until_stopped(cluster.gateway_mut()?, stop)
}

fn run_with_kubernetes(
    instance: &LabInstance,
    binary: &Path,
    stop: &Stop,
    state: &mut LabState,
) -> Result<()> {
    let mut cluster = KubernetesCluster::start(ClusterOptions::default(), |doing| {
        state.doing = Some(doing.to_owned());
        // Only the progress display of `up` reads this.
        let _ = instance.write(state);
    })?;
    interrupt::check(stop)?;
    state.doing = Some("applying the sample manifests".into());
    instance.write(state)?;
    cluster.apply_samples()?;
    state.doing = Some("starting the gateway".into());
    instance.write(state)?;
    cluster.start_gateway(binary, "")?;
    for service in ["my-nginx", "my-nginx-nodeport", "mysql"] {
        cluster.gateway()?.wait_for_service(service)?;
    }
    publish(instance, cluster.topology(), state)?;
    let (plane, namespace) = (cluster.control_plane(), format!("{}control", instance.prefix));
    state.names.push(namespace.clone());
    instance.write(state)?;
    plane.namespace().publish(&namespace)?;
    state.kubernetes = Some(KubernetesState {
        namespace,
        program: plane.programs().kubernetes.clone(),
        kubeconfig: plane.kubeconfig(),
    });
    instance.write_ready(cluster.gateway()?, state)?;
    restart_until_stopped(cluster.gateway_mut()?, stop)
}

/// Names the namespaces, after writing the names to the state file.
fn publish(instance: &LabInstance, topology: &Topology, state: &mut LabState) -> Result<()> {
    state.names = topology.names(&instance.prefix);
    instance.write(state)?;
    topology.publish(&instance.prefix)
}

/// Restarts the gateway whenever it ends, as a service manager would.
fn restart_until_stopped(gateway: &mut Gateway, stop: &Stop) -> Result<()> {
    while interrupt::sleep(stop, Duration::from_millis(500)).is_ok() {
        if gateway.has_ended() {
            gateway.restart()?;
        }
    }
    Ok(())
}

impl LabInstance {
    /// Takes the lock of the supervisor; `None` if a supervisor holds it.
    fn lock(&self) -> Result<Option<Flock<File>>> {
        let path = self.folder.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io(format!("open {}", path.display())))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::errno(format!("lock {}", path.display()))(errno)),
        }
    }

    /// The state of the running supervisor, if any. A supervisor that starts or ends right now holds the lock without a
    /// valid state file; this waits until either changes.
    fn running(&self) -> Result<Option<LabState>> {
        let deadline = clock::now() + STATE_LIMIT;
        loop {
            if self.lock()?.is_some() {
                return Ok(None);
            }
            if let Some(state) = self.state().ok().filter(|state| netns::is_alive(state.pid)) {
                return Ok(Some(state));
            }
            if clock::now() > deadline {
                let hint = format!("find who holds {}", self.folder.join("lock").display());
                return Err(Error::Timeout {
                    what: "the state of the lab's supervisor".into(),
                    after: STATE_LIMIT,
                    hint,
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until everything runs; an error of `check` ends the wait.
    fn await_ready(
        &self,
        kind: LabKind,
        progress: &mut impl FnMut(&str),
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<LabState> {
        let limit = kind.start_limit();
        let deadline = clock::now() + limit;
        let mut shown = None;
        loop {
            let state = self.state().ok();
            if let Some(state) = state.as_ref().filter(|state| state.ready) {
                return Ok(state.clone());
            }
            let doing = state.and_then(|state| state.doing);
            if doing.is_some() && doing != shown {
                progress(doing.as_deref().unwrap_or_default());
                shown = doing;
            }
            check()?;
            if clock::now() > deadline {
                let hint = format!("its log ends with:\n{}", self.log_end());
                return Err(Error::Timeout { what: "the start of the lab".into(), after: limit, hint });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_end(&self) -> String {
        last_lines(&fs::read_to_string(self.log()).unwrap_or_default(), 20)
    }

    /// Reads the state file.
    pub fn state(&self) -> Result<LabState> {
        let path = self.folder.join("state.json");
        let text = fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
        serde_json::from_str(&text).map_err(|error| {
            Error::State(format!("{} does not hold the state of a lab ({error}): remove it", path.display()))
        })
    }

    fn write(&self, state: &LabState) -> Result<()> {
        let (path, draft) = (self.folder.join("state.json"), self.folder.join("state.draft"));
        let text = serde_json::to_vec_pretty(state).expect("the state has string keys");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// Writes the state of a lab whose gateway runs.
    fn write_ready(&self, gateway: &Gateway, state: &mut LabState) -> Result<()> {
        state.socket = Some(gateway.socket_path());
        state.log = Some(gateway.log_path());
        state.doing = None;
        state.ready = true;
        self.write(state)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("supervisor.log")
    }

    /// Signals the supervisor and waits until it has released the lock.
    fn end(&self, pid: Pid, signal: Signal) -> Result<()> {
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(Error::errno(format!("send {signal} to the lab's supervisor, {pid}"))(errno));
            }
        }
        let deadline = clock::now() + END_LIMIT;
        while self.lock()?.is_none() {
            if clock::now() > deadline {
                let hint = format!("see what process {pid} is doing");
                return Err(Error::Timeout {
                    what: "the end of the lab's supervisor".into(),
                    after: END_LIMIT,
                    hint,
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Removes names, state and temporary folders of a supervisor that is gone.
    fn remove_leftovers(&self) -> Result<()> {
        scratch::sweep();
        let path = self.folder.join("state.json");
        if path.exists() {
            // An unreadable state file names no namespaces to remove.
            let names = self.state().map(|state| state.names).unwrap_or_default();
            names.iter().try_for_each(|name| netns::unpublish(name))?;
        }
        for name in ["state.json", "state.draft"] {
            match fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", path.display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes lock and log, which outlive a supervisor.
    fn remove_lock_and_log(&self) {
        for name in ["lock", "supervisor.log"] {
            // They may be missing already.
            let _ = fs::remove_file(self.folder.join(name));
        }
    }
}

impl LabState {
    /// Where its Services come from.
    pub fn kind(&self) -> LabKind {
        if self.kubernetes.is_some() { LabKind::Kubernetes } else { LabKind::Manifests }
    }
}

/// `kubectl` for the API server of the running lab.
pub fn kubectl(instance: &LabInstance) -> Result<Command> {
    let state = instance.running()?.and_then(|state| state.kubernetes);
    let Some(state) = state else {
        return Err(Error::State(
            "no lab with Kubernetes runs: `flowgate lab up --kubernetes` starts one".into(),
        ));
    };
    let kubectl = kubectl_command(&state.program, &state.kubeconfig);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &state.namespace]).arg(kubectl.get_program()).args(kubectl.get_args());
    Ok(command)
}
