//! The real kube-proxy in nftables mode, to compare the gateway with.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::ControlPlane;
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::lab::scratch;
use crate::netns::{Namespace, Process, find_program, guarded};

const END_LIMIT: Duration = Duration::from_secs(10);

/// How to start kube-proxy.
#[derive(Debug, Clone)]
pub struct KubeProxyOptions {
    /// The name of its Node object, which must have an InternalIP.
    pub node: String,
    /// The range of pods: other clients of ClusterIPs are masqueraded.
    pub cluster_cidr: String,
}

/// A running kube-proxy; killed when dropped. Its rules stay in the namespace.
pub struct KubeProxy {
    process: Process,
    folder: TempDir,
}

impl KubeProxy {
    /// Starts it in a namespace that has joined the control plane. Its rules appear some time later.
    pub fn start(plane: &ControlPlane, namespace: &Namespace, options: &KubeProxyOptions) -> Result<Self> {
        if find_program("nft").is_none() {
            return Err(Error::MissingProgram { program: "nft".into(), package: "nftables" });
        }
        let folder = scratch::folder("kube-proxy")?;
        let log = folder.path().join("kube-proxy.log");
        let output = File::create(&log).map_err(Error::io(format!("write {}", log.display())))?;
        let errors = output.try_clone().map_err(Error::io("share the log of kube-proxy"))?;
        let mut command = guarded(&plane.programs().kubernetes);
        command
            .args(["kube-proxy", "--proxy-mode=nftables", "--nodeport-addresses=primary"])
            .arg(format!("--kubeconfig={}", plane.kubeconfig().display()))
            .arg(format!("--hostname-override={}", options.node))
            .arg(format!("--cluster-cidr={}", options.cluster_cidr))
            // Conntrack limits apply to the whole machine, not to a namespace: leave them alone.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .stdout(output)
            .stderr(errors);
        Ok(Self { process: namespace.spawn(command)?, folder })
    }

    /// The process id.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The end of its log, for messages.
    pub fn log_end(&self) -> String {
        last_lines(&fs::read_to_string(self.log_path()).unwrap_or_default(), 20)
    }

    /// Checks that it still runs.
    ///
    /// # Errors
    /// If it has exited; the message holds the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => Err(Error::State(format!(
                "kube-proxy ended ({status}); its log ends with:\n{}",
                self.log_end()
            ))),
        }
    }

    /// Ends it and removes its rules.
    pub fn stop(mut self, namespace: &Namespace) -> Result<()> {
        self.process.terminate(END_LIMIT)?;
        let mut command = std::process::Command::new("nft");
        command.args(["flush", "ruleset"]);
        namespace.check(command).map(drop)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("kube-proxy.log")
    }
}
