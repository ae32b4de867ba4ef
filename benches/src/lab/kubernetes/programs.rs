//! Finds the programs of the control plane; an error says how to install a missing one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::netns::find_program;

/// The variable with the path of another build of the control plane than that of `make kubernetes`.
const OVERRIDE_VARIABLE: &str = "FLOWGATE_KUBERNETES";
const DEFAULT_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kubernetes/control-plane");

/// The paths of the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// etcd.
    pub etcd: PathBuf,
    /// All parts of Kubernetes in one binary, selected by the first argument.
    pub kubernetes: PathBuf,
}

impl Programs {
    /// Finds all programs.
    ///
    /// # Errors
    /// If one is missing.
    pub fn find() -> Result<Self> {
        let kubernetes =
            env::var_os(OVERRIDE_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from);
        if !kubernetes.is_file() {
            return Err(Error::State(format!(
                "the Kubernetes control plane is not built ({} is missing): run `make kubernetes`",
                kubernetes.display()
            )));
        }
        // Absolute, because children may have another working directory.
        let kubernetes = kubernetes
            .canonicalize()
            .map_err(Error::io(format!("find the real path of {}", kubernetes.display())))?;
        let etcd = find_program("etcd")
            .ok_or_else(|| Error::MissingProgram { program: "etcd".into(), package: "etcd-server" })?;
        Ok(Self { etcd, kubernetes })
    }
}

/// `kubectl` of the control plane's build, with the credentials in `kubeconfig` and its cache in the same folder.
pub fn kubectl_command(kubernetes: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(kubernetes);
    command.arg("kubectl").arg("--kubeconfig").arg(kubeconfig);
    command.arg("--cache-dir").arg(kubeconfig.with_file_name("kubectl-cache"));
    command
}
