//! Compiling a source once, for `flowgate check`. Opens nothing but the source.

use std::path::Path;
use std::sync::Arc;

use flowgate_tables::Tables;

use crate::compile::{NodeAddresses, Settings, compile};
use crate::model::NetState;
use crate::report::{Entry, Place, Report, Severity};
use crate::source::{Snapshot, kube, manifests};

/// Compiles all manifests of a directory and says what is wrong with them. NodePorts are judged on the
/// addresses of the Node object named in the settings, if there is one.
pub fn check(dir: &Path, settings: &Settings) -> Report {
    match manifests::read(dir) {
        Ok(snapshot) => report(snapshot, settings),
        Err(error) => {
            let place = Place { file: Arc::new(dir.to_owned()), line: 0 };
            unreadable(Some(place), format!("cannot be read: {error}"))
        }
    }
}

/// As [`check`], for the objects that a cluster has now.
pub async fn check_cluster(config: kube::Config, settings: &Settings) -> Report {
    match kube::read(config).await {
        Ok(snapshot) => report(snapshot, settings),
        Err(reason) => unreadable(None, reason),
    }
}

fn report(snapshot: Snapshot, settings: &Settings) -> Report {
    let settings = Settings { node_addresses: NodeAddresses::NodeObject, ..settings.clone() };
    let (_, compiled) = compile(&snapshot.desired, &NetState::default(), &settings, &Tables::empty());
    let mut entries = snapshot.findings;
    entries.extend(compiled.entries);
    Report { entries }
}

fn unreadable(place: Option<Place>, reason: String) -> Report {
    Report { entries: vec![Entry { severity: Severity::Error, place, object: None, reason }] }
}
