//! When the last good state is written: some seconds after a change, and never while a write is under way.
//! Never decides what is good.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::access::Access;
use super::saved::{Saved, load, save};
use crate::model::Desired;

/// The file, if there is one, and when it is due.
#[derive(Debug)]
pub(super) struct Saving {
    path: Option<PathBuf>,
    access: Access,
    /// Which cluster the objects are of, once it is known.
    cluster: Option<String>,
    due: Option<Instant>,
    /// What went wrong last: said once.
    complaint: Option<String>,
}

impl Saving {
    /// Reads what was saved last, if it is of this cluster.
    pub(super) async fn begin(path: Option<PathBuf>, access: &Access) -> (Self, Option<Saved>) {
        let mut saving = Self { path, access: access.clone(), cluster: None, due: None, complaint: None };
        let Some((path, cluster)) = saving.target().await else { return (saving, None) };
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
        (saving, saved)
    }

    /// The objects are the API server's and differ from what was saved.
    pub(super) fn changed(&mut self) {
        if self.path.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + AFTER);
        }
    }

    /// Returns when it is time to write; never, if there is nothing to.
    pub(super) async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Writes.
    pub(super) async fn save(&mut self, desired: &Desired) {
        self.due = None;
        let Some((path, cluster)) = self.target().await else { return };
        let saved = Saved { desired: desired.clone(), at: SystemTime::now() };
        let written =
            spawn_blocking(move || save(&path, &cluster, &saved).map_err(|error| error.to_string()));
        let complaint = written.await.unwrap_or_else(|panicked| Err(panicked.to_string())).err();
        if let Some(reason) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            tracing::warn!("{reason}; a restart without the API server would begin with nothing");
        }
        self.complaint = complaint;
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

/// Changes come in crowds: the file is written at most once in so long.
const AFTER: Duration = Duration::from_secs(5);
