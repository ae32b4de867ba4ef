//! The init process of a machine: executes requests from a serial line. A request or reply is one line of JSON.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, sync};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Error, Result};

/// The serial port of requests and replies; ttyS0 is the console.
const SERIAL_PORT: &str = "/dev/ttyS1";
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A request of the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run a program, at most for `seconds`.
    Run { command: Vec<String>, seconds: u64 },
    /// Start a program in the background with its output in `log`; `name` identifies it later.
    Start { command: Vec<String>, name: String, log: String },
    /// Send a started program a signal, by its number.
    Signal { name: String, signal: i32 },
    /// Wait for the end of a started program, at most for `seconds`.
    Wait { name: String, seconds: u64 },
    /// Write a file; missing folders are created.
    Write { path: String, text: String },
    /// Read a file.
    Read { path: String },
    /// Power the machine off.
    PowerOff,
}

/// The reply to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    /// The exit code of a program that exited.
    pub(super) code: Option<i32>,
    /// Its standard output, or the text of the file.
    pub(super) output: String,
    /// Its standard error, or why the request failed.
    pub(super) errors: String,
}

impl Reply {
    fn done(output: impl Into<String>) -> Self {
        Self { code: Some(0), output: output.into(), errors: String::new() }
    }

    fn failed(reason: impl ToString) -> Self {
        Self { code: None, output: String::new(), errors: reason.to_string() }
    }
}

/// Serves requests until power-off. Must run as the init process.
pub fn serve() -> Result<ExitCode> {
    if std::process::id() != 1 {
        return Err(Error::State("`lab guest` only runs as the init process of a virtual machine".into()));
    }
    prepare()?;
    let line = File::options()
        .read(true)
        .write(true)
        .open(SERIAL_PORT)
        .map_err(Error::io(format!("open {SERIAL_PORT}")))?;
    let mut settings =
        tcgetattr(&line).map_err(Error::errno(format!("read the settings of {SERIAL_PORT}")))?;
    cfmakeraw(&mut settings);
    tcsetattr(&line, SetArg::TCSANOW, &settings).map_err(Error::errno(format!("set up {SERIAL_PORT}")))?;

    let mut replies = line.try_clone().map_err(Error::io(format!("share {SERIAL_PORT}")))?;
    let mut answer = move |reply: &Reply| -> Result<()> {
        let text = serde_json::to_string(reply).expect("a reply has string keys");
        replies
            .write_all(format!("{text}\n").as_bytes())
            .map_err(Error::io(format!("write to {SERIAL_PORT}")))
    };
    // `Machine::boot` waits for this reply.
    answer(&Reply::done("ready"))?;
    let mut children = Children::default();
    for request in BufReader::new(line).lines() {
        let request = request.map_err(Error::io(format!("read {SERIAL_PORT}")))?;
        let request = match serde_json::from_str(&request) {
            Ok(Request::PowerOff) => break,
            Ok(request) => request,
            Err(error) => {
                answer(&Reply::failed(error))?;
                continue;
            }
        };
        answer(&children.execute(request).unwrap_or_else(Reply::failed))?;
    }
    sync();
    reboot(RebootMode::RB_POWER_OFF).map_err(Error::errno("end the machine"))?;
    Ok(ExitCode::SUCCESS)
}

/// Mounts the file systems that programs expect. `/tmp` gets none: the initramfs may hold test programs there.
fn prepare() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(Error::errno(format!("mount {kind} on {target}")))?;
    }
    Ok(())
}

/// Programs running in the background.
#[derive(Default)]
struct Children {
    by_name: HashMap<String, Child>,
}

impl Children {
    fn execute(&mut self, request: Request) -> io::Result<Reply> {
        match request {
            Request::Run { command, seconds } => run(&command, Duration::from_secs(seconds)),
            Request::Start { command, name, log } => {
                let log = File::options().create(true).append(true).open(log)?;
                let child = program(&command)?.stdout(log.try_clone()?).stderr(log).spawn()?;
                self.by_name.insert(name, child);
                Ok(Reply::done(""))
            }
            Request::Signal { name, signal } => {
                let signal = Signal::try_from(signal)?;
                let id = i32::try_from(self.child(&name)?.id()).expect("process ids fit in pid_t");
                kill(Pid::from_raw(id), signal)?;
                Ok(Reply::done(""))
            }
            Request::Wait { name, seconds } => {
                let code = wait(self.child(&name)?, Duration::from_secs(seconds))?;
                Ok(code.map_or_else(
                    || Reply::failed(format!("{name} has not exited")),
                    |code| Reply { code: Some(code), ..Reply::default() },
                ))
            }
            Request::Write { path, text } => {
                fs::create_dir_all(Path::new(&path).parent().unwrap_or_else(|| Path::new("/")))?;
                fs::write(path, text).map(|()| Reply::done(""))
            }
            Request::Read { path } => Ok(Reply::done(String::from_utf8_lossy(&fs::read(path)?))),
            Request::PowerOff => Ok(Reply::done("")),
        }
    }

    fn child(&mut self, name: &str) -> io::Result<&mut Child> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no program {name} was started"));
        self.by_name.get_mut(name).ok_or_else(unknown)
    }
}

/// A command with the environment of a root shell.
fn program(line: &[String]) -> io::Result<Command> {
    let (name, arguments) =
        line.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty command"))?;
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/tmp");
    Ok(command)
}

fn run(line: &[String], limit: Duration) -> io::Result<Reply> {
    // Files instead of pipes, which would have to be read while the program runs.
    let (output, errors) = ("/tmp/.output", "/tmp/.errors");
    let mut child = program(line)?.stdout(File::create(output)?).stderr(File::create(errors)?).spawn()?;
    let code = wait(&mut child, limit)?;
    if code.is_none() {
        // It may have ended at this moment.
        let _ = child.kill();
        child.wait()?;
    }
    let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut reply = Reply { code, output: text(output)?, errors: text(errors)? };
    if code.is_none() {
        reply.errors.push_str(&format!("\nended by a signal, or after {limit:?}"));
    }
    Ok(reply)
}

/// The exit code; `None` if a signal ended the program, or if it did not end in time.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<i32>> {
    let deadline = clock::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if clock::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Vec<String> {
        ["sh", "-c", line].map(str::to_owned).into()
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let mut children = Children::default();
        let request = Request::Run { command: shell("echo begun; exec sleep 60"), seconds: 0 };
        let reply = children.execute(request).unwrap();
        assert_eq!(reply.code, None);
        assert!(reply.errors.contains("ended by a signal, or after"), "{reply:?}");
    }

    #[test]
    fn what_nobody_started_cannot_be_waited_for() {
        let error =
            Children::default().execute(Request::Wait { name: "flowgate".into(), seconds: 1 }).unwrap_err();
        assert_eq!(error.to_string(), "no program flowgate was started");
    }
}
