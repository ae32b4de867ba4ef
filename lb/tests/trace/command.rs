//! Runs `flowgate trace` and parses its output.
#![allow(dead_code, reason = "each file of tests uses its part")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use tempfile::TempDir;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate");

/// One line of output, as the interface promises it: no field more, none less.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) id: serde_json::Value,
    pub(crate) verdict: String,
    pub(crate) service: Option<String>,
    pub(crate) candidates: BTreeSet<String>,
    pub(crate) backend: Option<String>,
    pub(crate) snat: bool,
    pub(crate) reason: String,
}

impl Answer {
    /// What holds of every answer, whatever the cluster.
    fn check(&self) {
        let forward = self.verdict == "forward";
        assert!(["forward", "reject", "drop", "pass", "local"].contains(&&*self.verdict), "{self:?}");
        assert_eq!(forward, !self.candidates.is_empty(), "{self:?}");
        assert_eq!(forward, self.backend.is_some(), "{self:?}");
        assert!(self.backend.iter().all(|backend| self.candidates.contains(backend)), "{self:?}");
        assert!(forward || !self.snat, "{self:?}");
        assert!(!forward || self.service.is_some(), "{self:?}");
        assert!(!self.reason.is_empty(), "{self:?}");
    }
}

/// A directory of manifests and the flags to trace it with.
pub(crate) struct Traced {
    folder: TempDir,
    flags: Vec<String>,
}

impl Traced {
    /// Writes the manifests.
    pub(crate) fn new(manifests: &str, flags: Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(folder.path().join("manifests")).expect("a directory in it");
        let traced = Self { folder, flags };
        fs::write(traced.manifests().join("all.json"), manifests).expect("a file in it");
        traced
    }

    pub(crate) fn manifests(&self) -> std::path::PathBuf {
        self.folder.path().join("manifests")
    }

    /// Runs the command over these lines, which it reads from a file.
    pub(crate) fn run(&self, lines: &str) -> Output {
        let packets = self.folder.path().join("packets");
        fs::write(&packets, lines).expect("a file for the packets");
        self.command(&packets).output().expect("flowgate starts")
    }

    /// The same from standard input.
    pub(crate) fn run_from_stdin(&self, lines: &str) -> Output {
        let packets = self.folder.path().join("packets");
        fs::write(&packets, lines).expect("a file for the packets");
        let stdin = File::open(&packets).expect("the file just written");
        self.command(Path::new("-")).stdin(stdin).output().expect("flowgate starts")
    }

    /// What becomes of packets `(protocol, source, destination)`, in this order.
    pub(crate) fn answers(&self, packets: &[(String, String, String)]) -> Vec<Answer> {
        let mut lines = String::new();
        for ((proto, src, dst), id) in packets.iter().zip(0..) {
            let line = serde_json::json!({"id": id, "proto": proto, "src": src, "dst": dst});
            lines.extend([line.to_string(), "\n".to_owned()]);
        }
        let output = self.run(&lines);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let answers = parse(&output);
        assert_eq!(answers.len(), packets.len(), "one answer for each packet: {stderr}");
        for (answer, id) in answers.iter().zip(0..) {
            assert_eq!(answer.id, id, "the order is kept");
            answer.check();
        }
        answers
    }

    fn command(&self, packets: &Path) -> Command {
        let mut command = Command::new(FLOWGATE);
        command.args(["trace", "-o", "json", "--manifests"]).arg(self.manifests());
        command.args(&self.flags).arg("--packets").arg(packets).stdin(Stdio::null());
        command
    }
}

/// The answers among the output, all of them.
pub(crate) fn parse(output: &Output) -> Vec<Answer> {
    let text = String::from_utf8(output.stdout.clone()).expect("JSON is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}
