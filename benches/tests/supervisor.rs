//! `lab up` and `lab down`: both can be repeated, and both recover from a killed supervisor.
//!
//! A script stands in for the gateway, and this test binary itself for `flowgate lab supervise`.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands, its helpers too")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use flowgate_benches::lab::interrupt;
use flowgate_benches::lab::supervisor::{
    DownOutcome, LabInstance, LabKind, LabState, UpOutcome, down, supervise, up,
};
use flowgate_benches::loadgen::stop::Stop;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{eventually, require_root};

const SUPERVISOR: &str = "supervisor::plays_the_supervisor";

struct Stage {
    folder: TempDir,
    instance: LabInstance,
}

impl Stage {
    fn new(name: &str) -> Self {
        require_root();
        let folder = tempfile::tempdir().unwrap();
        let instance = LabInstance {
            folder: folder.path().join("state"),
            prefix: format!("fgtest-{name}-{}-", std::process::id()),
        };
        Self { folder, instance }
    }

    /// A `flowgate` whose gateway forwards nothing.
    fn flowgate(&self) -> PathBuf {
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in\nrun) exec sleep 600 ;;\nshow) echo '[\"my-nginx\", \"my-nginx-nodeport\", \"my-nginx-dual-stack\", \
             \"mysql\", \"udp-echo\", \"packets\"]' ;;\nlab) RUST_BACKTRACE=0 FGTEST_STATE=\"$4\" FGTEST_PREFIX=\"$6\" FGTEST_BINARY=\"$0\" exec {} \
             --ignored --exact {SUPERVISOR} ;;\nesac\n",
            env::current_exe().unwrap().display()
        );
        self.script("flowgate", &script)
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&self.instance.prefix)).collect()
    }

    fn start(&self) -> LabState {
        match up(&self.instance, &self.flowgate(), LabKind::Manifests, |_| {}).unwrap() {
            UpOutcome::Started(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn client_sees_gateway(&self) -> bool {
        let client = format!("{}client", self.instance.prefix);
        let found = Command::new("ip").args(["-n", &client, "route", "get", "10.96.0.80"]).output().unwrap();
        String::from_utf8_lossy(&found.stdout).contains("via 192.0.2.1")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = down(&self.instance);
    }
}

#[test]
#[ignore = "the other tests start it as a process"]
fn plays_the_supervisor() {
    let variable = |name| env::var(name).expect("the other tests set it");
    let instance = LabInstance { folder: variable("FGTEST_STATE").into(), prefix: variable("FGTEST_PREFIX") };
    let stop = interrupt::listen().unwrap();
    supervise(&instance, Path::new(&variable("FGTEST_BINARY")), LabKind::Manifests, &stop).unwrap();
}

#[test]
fn up_and_down_can_be_repeated() {
    let stage = Stage::new("repeat");
    assert_eq!(down(&stage.instance).unwrap(), DownOutcome::WasNotRunning);
    let state = stage.start();
    assert!(stage.client_sees_gateway());
    assert_eq!(stage.names().len(), state.names.len());
    assert!(
        state.socket.is_some() && state.manifests.as_ref().unwrap().join("my-nginx-service.yaml").exists()
    );
    assert_eq!(
        up(&stage.instance, &stage.flowgate(), LabKind::Manifests, |_| {}).unwrap(),
        UpOutcome::AlreadyRunning(state)
    );

    assert_eq!(down(&stage.instance).unwrap(), DownOutcome::Ended);
    assert_eq!(stage.names(), Vec::<String>::new());
    assert!(!stage.instance.folder.exists());
    assert_eq!(down(&stage.instance).unwrap(), DownOutcome::WasNotRunning);
    stage.start();
}

#[test]
fn both_recover_from_a_killed_supervisor() {
    let stage = Stage::new("killed");
    let first = stage.start();
    kill(Pid::from_raw(first.pid), Signal::SIGKILL).unwrap();
    eventually("the end of the supervisor", || stage.instance.state().is_ok() && !running(first.pid));
    assert!(!stage.names().is_empty(), "the killed one could not remove its names");
    let second = stage.start();
    assert_ne!(second.pid, first.pid);
    assert!(stage.client_sees_gateway());

    kill(Pid::from_raw(second.pid), Signal::SIGKILL).unwrap();
    eventually("the end of the supervisor", || !running(second.pid));
    assert_eq!(down(&stage.instance).unwrap(), DownOutcome::WasNotRunning);
    assert_eq!(stage.names(), Vec::<String>::new());
    assert!(!second.log.unwrap().exists(), "its temporary folders are gone too");
}

#[test]
fn a_gateway_that_cannot_start_is_reported_with_its_log_and_leaves_nothing() {
    let stage = Stage::new("broken");
    let good = stage.flowgate();
    let text = fs::read_to_string(good).unwrap();
    let text = text.replace("exec sleep 600", "echo 'no such option: speed' >&2; exit 3");
    let broken = stage.script("flowgate", &text.replace("show)", "show) exit 1;; never)"));
    let error = up(&stage.instance, &broken, LabKind::Manifests, |_| {}).unwrap_err().to_string();
    assert!(error.contains("no such option: speed"), "{error}");
    assert_eq!(stage.names(), Vec::<String>::new());
}

#[test]
fn a_second_supervisor_is_refused() {
    let stage = Stage::new("second");
    stage.start();
    let error = supervise(&stage.instance, &stage.flowgate(), LabKind::Manifests, &Stop::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("lab down"), "{error}");
    assert!(stage.client_sees_gateway(), "the first one is not disturbed");
}

#[test]
fn a_gateway_that_dies_is_started_again() {
    let stage = Stage::new("again");
    let state = stage.start();
    let gateways = || {
        let output =
            Command::new("pgrep").args(["-P", &state.pid.to_string(), "-x", "sleep"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let first = gateways();
    kill(Pid::from_raw(first.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    eventually("the new gateway", || !gateways().is_empty() && gateways() != first);
}

fn running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
