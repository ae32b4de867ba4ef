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
    /// The error of the last write, so that a series of them is logged only once.
    last_error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    New,
    Known,
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
        let outcome = written.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
        match (self.note(outcome), &self.last_error) {
            (Noted::New, Some(reason)) => tracing::warn!(
                "{reason}; what was saved before stays, and it is tried again every {} s",
                RETRY_AFTER.as_secs()
            ),
            (Noted::New, None) => tracing::info!("the snapshot is saved again"),
            (Noted::Known, _) => {}
        }
    }

    /// Remembers how a write ended and when to write next; returns whether that is to be told. A series of failures is told
    /// once, whatever each of them says: on a full disk one write fails at its beginning and the next at its end.
    fn note(&mut self, outcome: Result<(), String>) -> Noted {
        let error = outcome.err();
        let noted = if error.is_some() == self.last_error.is_some() { Noted::Known } else { Noted::New };
        if error.is_some() {
            self.due = Some(Instant::now() + RETRY_AFTER);
        }
        self.last_error = error;
        noted
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
/// The time between a write that failed and the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_stays_full_is_told_once_and_tried_again() {
        let access = Access::DefaultKubeconfig;
        let mut writer = SnapshotWriter {
            path: Some("s.json".into()),
            access,
            cluster: None,
            due: None,
            last_error: None,
        };
        assert_eq!(writer.note(Ok(())), Noted::Known);
        assert_eq!(writer.due, None);
        assert_eq!(writer.note(Err("no space left on device".into())), Noted::New);
        assert!(writer.due.is_some(), "it is tried again although nothing changes");
        assert_eq!(writer.note(Err("no space left, in other words".into())), Noted::Known);
        assert_eq!(writer.note(Ok(())), Noted::New, "and when it works again");
        assert_eq!(writer.note(Ok(())), Noted::Known);
    }
}
