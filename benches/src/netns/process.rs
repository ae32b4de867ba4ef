//! Child processes of a namespace. They die with it, and every wait for them has a time limit.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use std::{io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;
use crate::error::{Error, Result};

const GUARD: &str = "setpriv";
const GUARD_ARGUMENTS: [&str; 3] = ["--pdeathsig", "KILL", "--"];

/// A command whose process the kernel kills when the thread that started it ends (PR_SET_PDEATHSIG). It has its own
/// process group, so that Ctrl-C does not reach it: the lab ends its children in order.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(GUARD);
    command.args(GUARD_ARGUMENTS).arg(program).process_group(0);
    command
}

/// Finds a program in `PATH` or in the sbin directories, which a user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Process {
    line: String,
    child: Child,
}

impl Process {
    pub(super) fn new(line: String, child: Child) -> Self {
        Self { line, child }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The command line, for messages.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.child.id()).expect("process ids fit in pid_t");
        kill(Pid::from_raw(id), signal).map_err(Error::errno(format!("send {signal} to `{}`", self.line)))
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = clock::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if clock::now() >= deadline {
                return Err(Error::Timeout {
                    what: format!("the end of `{}`", self.line),
                    after: limit,
                    hint: format!("see what process {} is doing", self.child.id()),
                });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the process with SIGTERM, and with SIGKILL after `grace`.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        if let Ok(status) = self.wait(grace) {
            return Ok(status);
        }
        self.kill()
    }

    /// Kills the process (SIGKILL) and reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already; a zombie that cannot be reaped ends with this process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(id: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until the guard of a [`guarded`] command has called exec: if the parent ended before, PR_SET_PDEATHSIG would not
/// be set yet and the child would survive.
pub(super) fn wait_for_guard(command: &Command, process: &Process) {
    // Not `comm`, which exec sets only after it has released the parent of a vfork.
    let exe = format!("/proc/{}/exe", process.id());
    let is_guard = || std::fs::read_link(&exe).is_ok_and(|program| program.ends_with(GUARD));
    while command.get_program() == GUARD && is_guard() {
        thread::sleep(Duration::from_micros(200));
    }
}

/// The command line as a person would type it, without the guard.
pub(super) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    let words: Vec<_> = words.collect();
    let is_guarded = words.first().is_some_and(|program| program == GUARD);
    words[if is_guarded { 1 + GUARD_ARGUMENTS.len() } else { 0 }..].join(" ")
}

/// The error of a command that did not start, with the missing package if that is known.
pub(super) fn start_failure(command: &Command, error: io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    if error.kind() != io::ErrorKind::NotFound {
        return Error::io(format!("start `{}`", line(command)))(error);
    }
    let base = Path::new(&program).file_name().and_then(OsStr::to_str).unwrap_or_default();
    let package = match base {
        "ip" => "iproute2",
        "setpriv" | "taskset" | "setsid" => "util-linux",
        "nginx" => "nginx-light",
        "curl" => "curl",
        "ethtool" => "ethtool",
        _ => return Error::io(format!("start `{}`", line(command)))(error),
    };
    Error::MissingProgram { program, package }
}
