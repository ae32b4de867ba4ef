//! Compiles a source once, for `flowgate check`. Opens no device.

use std::path::Path;
use std::sync::Arc;

use flowgate_tables::Tables;

use crate::compile::{CompileConfig, NodeAddresses, compile};
use crate::model::NetState;
use crate::report::{Entry, Place, Report, Severity};
use crate::source::{Snapshot, kube, manifests};

/// Compiles all manifests of a directory and returns the findings. NodePorts are judged on the
/// addresses of the Node object named in the configuration, if there is one.
pub fn check(dir: &Path, config: &CompileConfig) -> Report {
    match manifests::read(dir) {
        Ok(snapshot) => report(snapshot, config),
        Err(error) => {
            let place = Place { file: Arc::new(dir.to_owned()), line: 0 };
            unreadable(Some(place), format!("cannot be read: {error}"))
        }
    }
}

/// As [`check`], for the present objects of a cluster.
pub async fn check_cluster(cluster: kube::Config, config: &CompileConfig) -> Report {
    match kube::read(cluster).await {
        Ok(snapshot) => report(snapshot, config),
        Err(reason) => unreadable(None, reason),
    }
}

fn report(snapshot: Snapshot, config: &CompileConfig) -> Report {
    let config = CompileConfig { node_addresses: NodeAddresses::NodeObject, ..config.clone() };
    let (_, compiled) = compile(&snapshot.desired, &NetState::default(), &config, &Tables::empty());
    let mut entries = snapshot.findings;
    entries.extend(compiled.entries);
    Report { entries }
}

fn unreadable(place: Option<Place>, reason: String) -> Report {
    Report { entries: vec![Entry { severity: Severity::Error, place, object: None, reason }] }
}
