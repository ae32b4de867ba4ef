//! Anonymous network namespaces, each held by a thread.
//!
//! A namespace has no name and no mount: it lives as long as its thread and the children started in it, so that nothing
//! survives the process, even after SIGKILL. Its thread also has its own mount namespace with a fresh `/sys` and a private
//! bpffs. The calling thread stays in its namespace.

mod process;

use std::fs::File;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use crate::error::{Error, Result};

pub(crate) use process::is_alive;
pub use process::{Process, find_program, guarded};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, shared by clones and removed with the last of them.
#[derive(Clone)]
pub struct Namespace {
    holder: Arc<Holder>,
}

struct Holder {
    label: String,
    thread_id: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    published: Mutex<Option<String>>,
}

impl Namespace {
    /// Creates a namespace with `lo` up. `label` is for messages only.
    pub fn new(label: &str) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, outcome) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("netns-{label}"))
            .spawn({
                let label = label.to_owned();
                move || {
                    let entered = enter_new(&label).map(|()| gettid().as_raw());
                    let failed = entered.is_err();
                    // `new` waits for this message.
                    let _ = ready.send(entered);
                    if !failed {
                        inbox.into_iter().for_each(|job| job());
                    }
                }
            })
            .map_err(Error::io(format!("start the thread of namespace {label}")))?;
        let thread_id = outcome.recv().expect("the holder thread reports before it ends")?;
        let holder = Holder {
            label: label.to_owned(),
            thread_id,
            jobs: Some(jobs),
            thread: Some(thread),
            published: Mutex::new(None),
        };
        let namespace = Self { holder: Arc::new(holder) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The label given at creation.
    pub fn label(&self) -> &str {
        &self.holder.label
    }

    /// A path of this network namespace for `ip link ... netns` and `setns`, valid while this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), self.holder.thread_id))
    }

    /// Runs `work` on the holder thread, one call at a time. Children that `work` starts inherit the namespaces and,
    /// with [`guarded`], live no longer than this namespace.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, outcome) = mpsc::channel();
        let job: Job = Box::new(move || {
            // `run` waits for this message.
            let _ = answer.send(panic::catch_unwind(AssertUnwindSafe(work)));
        });
        let jobs = self.holder.jobs.as_ref().expect("the inbox is closed only by drop");
        jobs.send(job).expect("the holder thread serves until the last handle is dropped");
        match outcome.recv().expect("every job answers") {
            Ok(value) => value,
            Err(panic) => panic::resume_unwind(panic),
        }
    }

    /// Runs `work` on a temporary thread in the namespaces. It may borrow, and calls may overlap; children started in it
    /// with [`guarded`] die when `work` ends.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let visit = scope.spawn(|| {
                self.join_from_here()?;
                Ok(work())
            });
            visit.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Starts a thread in the namespaces. The network namespace lasts at least as long as the thread.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let builder = thread::Builder::new().name(name.to_owned());
        // A new thread inherits the namespaces of the thread that starts it.
        self.run(move || builder.spawn(work))
            .map_err(Error::io(format!("start thread {name} in {}", self.label())))
    }

    /// Starts a long-lived child; use [`guarded`] so that it cannot outlive the namespace.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let line = process::line(&command);
        let (command, child) = self.run(move || {
            let child = command.spawn();
            (command, child)
        });
        let child = child.map_err(|error| process::start_failure(&command, error))?;
        let process = Process::new(line, child);
        process::wait_for_guard(&command, &process);
        Ok(process)
    }

    /// Runs a command and returns its output.
    pub fn output(&self, mut command: Command) -> Result<Output> {
        self.enter(move || command.output().map_err(|error| process::start_failure(&command, error)))?
    }

    /// Runs a command that has to succeed; returns its standard output.
    pub fn check(&self, command: Command) -> Result<String> {
        let line = process::line(&command);
        let output = self.output(command)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("Operation not permitted") {
            return Err(Error::NeedsRoot { action: format!("run `{line}`") });
        }
        let output = format!("{} {}", output.status, stderr.trim());
        Err(Error::Command { command: line, namespace: self.label().to_owned(), output })
    }

    /// Runs `ip` with blank-separated arguments.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(arguments.split_ascii_whitespace());
        self.check(command)
    }

    /// Sets a `net.*` sysctl of this namespace, named by its path under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        let action = format!("write {value} to {} in namespace {}", path.display(), self.label());
        // procfs shows the tables of the network namespace of the thread that opens them.
        let value = value.to_owned();
        self.run(move || std::fs::write(path, value)).map_err(Error::io(action))
    }

    /// Gives the namespace a name under `/run/netns`, for `ip netns exec NAME`, until it is dropped.
    pub fn publish(&self, name: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "attach", name, &self.holder.thread_id.to_string()]);
        host_command(command)?;
        let previous =
            self.holder.published.lock().unwrap_or_else(PoisonError::into_inner).replace(name.to_owned());
        previous.map_or(Ok(()), |previous| unpublish(&previous))
    }

    /// Moves the calling thread, which must be a new one, into the namespaces.
    fn join_from_here(&self) -> Result<()> {
        let task = format!("/proc/{}/task/{}/ns", std::process::id(), self.holder.thread_id);
        let open = |kind: &str| File::open(format!("{task}/{kind}"));
        let join = || -> io::Result<()> {
            // setns(2): a thread that shares its root and working directory cannot change its mount namespace.
            unshare(CloneFlags::CLONE_FS)?;
            setns(open("mnt")?, CloneFlags::CLONE_NEWNS)?;
            setns(open("net")?, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        join().map_err(Error::io(format!("enter namespace {}", self.label())))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(name) = self.published.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            // The name may be removed already.
            let _ = unpublish(&name);
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Jobs catch their panics, so the thread cannot fail.
            let _ = thread.join();
        }
    }
}

/// Removes a name under `/run/netns`, if it exists.
pub fn unpublish(name: &str) -> Result<()> {
    if !Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    command.args(["netns", "delete", name]);
    host_command(command)
}

fn host_command(mut command: Command) -> Result<()> {
    let output = command.output().map_err(|error| process::start_failure(&command, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: process::line(&command),
        namespace: "(host)".into(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Moves the calling thread into new network and mount namespaces.
fn enter_new(label: &str) -> Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(Error::errno(format!("make network namespace {label}")))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(Error::errno(format!("make the mounts of namespace {label} private")))?;
    // sysfs shows the devices of the namespace that it was mounted in.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
        .map_err(Error::errno(format!("mount /sys in namespace {label}")))?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .map_err(Error::errno(format!("mount a bpffs on /sys/fs/bpf in namespace {label}")))
}
