//! Saves the last good state: some seconds after a change, one write at a time.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use super::snapshot_file::{Saved, load, save};
use crate::model::Desired;

/// The file, if there is one, and when it is to be written.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    path: Option<PathBuf>,
    access: Access,
    /// The cluster that the objects are of, once the access was read.
    cluster: Option<String>,
    due: Option<Instant>,
    /// The last error, so that the same one is logged only once.
    last_error: Option<String>,
}

impl SnapshotWriter {
    /// Reads what was saved last. A file that is damaged or of another cluster is logged and ignored.
    pub(super) async fn begin(path: Option<PathBuf>, access: &Access) -> (Self, Option<Saved>) {
        let mut writer = Self { path, access: access.clone(), cluster: None, due: None, last_error: None };
        let Some((path, cluster)) = writer.target().await else { return (writer, None) };
        let shown = path.display().to_string();
        let loaded = spawn_blocking(move || load(&path, &cluster)).await;
        let saved = match loaded.map(|outcome| outcome.map_err(|error| error.to_string())) {
            Ok(Ok(saved)) => saved,
            Ok(Err(reason)) => {
                tracing::warn!("{reason}; it is ignored");
                None
            }
            Err(panicked) => {
                tracing::warn!("snapshot {shown}: {panicked}; it is ignored");
                None
            }
        };
        (writer, saved)
    }

    /// The objects are those of the API server and differ from what was saved.
    pub(super) fn changed(&mut self) {
        if self.path.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + AFTER);
        }
    }

    /// Returns when it is time to write; pending while nothing is to be written.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Writes the file. Errors are logged.
    pub(super) async fn save(&mut self, desired: &Desired) {
        self.due = None;
        let Some((path, cluster)) = self.target().await else { return };
        let saved = Saved { desired: desired.clone(), at: SystemTime::now() };
        let written =
            spawn_blocking(move || save(&path, &cluster, &saved).map_err(|error| error.to_string()));
        let error = written.await.unwrap_or_else(|panicked| Err(panicked.to_string())).err();
        if let Some(reason) = error.as_ref().filter(|_| error != self.last_error) {
            tracing::warn!("{reason}; a restart without the API server would begin with nothing");
        }
        self.last_error = error;
    }

    async fn target(&mut self) -> Option<(PathBuf, String)> {
        let path = self.path.clone()?;
        if self.cluster.is_none() {
            self.cluster = self.access.cluster().await.ok();
        }
        if self.cluster.is_none() {
            tracing::warn!(
                "snapshot {}: of which cluster it would be is not known; it is ignored",
                path.display()
            );
        }
        Some((path, self.cluster.clone()?))
    }
}

/// The time between a change and the write; further changes in it are part of the same write.
const AFTER: Duration = Duration::from_secs(5);
