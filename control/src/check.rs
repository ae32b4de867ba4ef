//! Compiling a directory once, for `flowgate check`. Opens nothing but the directory.

use std::path::Path;
use std::sync::Arc;

use flowgate_tables::Tables;

use crate::compile::{NodeAddresses, Settings, compile};
use crate::model::NetState;
use crate::report::{Entry, Place, Report, Severity};
use crate::source::manifests;

/// Compiles all manifests of a directory and says what is wrong with them. NodePorts are judged on the
/// addresses of the Node object named in the settings, if there is one.
pub fn check(dir: &Path, settings: &Settings) -> Report {
    let settings = Settings { node_addresses: NodeAddresses::NodeObject, ..settings.clone() };
    let snapshot = match manifests::read(dir) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let place = Place { file: Arc::new(dir.to_owned()), line: 0 };
            let reason = format!("cannot be read: {error}");
            let entry = Entry { severity: Severity::Error, place: Some(place), object: None, reason };
            return Report { entries: vec![entry] };
        }
    };
    let (_, compiled) = compile(&snapshot.desired, &NetState::default(), &settings, &Tables::empty());
    let mut entries = snapshot.findings;
    entries.extend(compiled.entries);
    Report { entries }
}
