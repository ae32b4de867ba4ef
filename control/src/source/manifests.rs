//! Source: a watched directory of manifests. Only reads.
//!
//! Read are the files of the directory itself, not of folders in it, whose names end in `.yaml`, `.yml` or
//! `.json` and do not start with a dot; symbolic links are followed, so a mounted ConfigMap works. They are read as
//! kubectl reads them: each may hold several documents, in YAML and JSON, and lists. Kinds that do not matter here are
//! counted and ignored.
//!
//! What happens to bad input:
//! - An object that the API server would refuse is reported, and its last accepted version stays in force
//!   as long as the file names it: the same as when the API server refuses an update.
//! - A document that cannot be parsed, or a file that became empty, may be half-written: it is reported,
//!   the other documents count, and what the file held before and does not name now stays in force.
//! - An object that two files hold, or that one file holds twice: the first in the order of file names
//!   counts, the other is reported.
//! - A directory that cannot be read: the last good state stays in force.

mod directory;
mod parse;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use self::directory::Directory;
use super::{Snapshot, SourceEvent, SourceHealth};
use crate::clock;
use crate::report::Shown;

/// Reads a directory once.
///
/// # Errors
/// The directory cannot be read. What is wrong with single files is in the findings.
pub fn read(dir: &Path) -> io::Result<Snapshot> {
    let mut directory = Directory::new(dir.to_owned());
    directory.scan()?;
    Ok(directory.snapshot())
}

/// Sends the objects of a directory at once and after each change, until the receiver is dropped.
pub async fn watch(dir: PathBuf, events: mpsc::Sender<SourceEvent>) {
    let mut directory = Directory::new(dir.clone());
    let changed = Arc::new(Notify::new());
    let mut watch = DirectoryWatch::default();
    let mut health = SourceHealth::Starting;
    while !events.is_closed() {
        // The watch is set before the directory is read: a change in between causes one scan too many, and is not
        // missed.
        watch.renew(&dir, &changed);
        let (returned, outcome) = scan(directory).await;
        directory = returned;
        let next = match outcome {
            Ok(outcome) => {
                let send = matches!(outcome, ScanOutcome::Changed) || health == SourceHealth::Starting;
                if send && events.send(SourceEvent::Replace(directory.snapshot())).await.is_err() {
                    return;
                }
                SourceHealth::Synced
            }
            Err(error) => {
                stale(&health, format!("{} cannot be read: {error}", Shown(&dir.to_string_lossy())))
            }
        };
        if next != health {
            health = next;
            if events.send(SourceEvent::Health(health.clone())).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = events.closed() => return,
            _ = timeout(RESCAN_AFTER, settled(&changed)) => {}
        }
    }
}

/// Whether a scan found a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanOutcome {
    Changed,
    Unchanged,
}

/// Scans on a thread for blocking work: there may be many files.
async fn scan(directory: Directory) -> (Directory, io::Result<ScanOutcome>) {
    let dir = directory.path().to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let mut directory = directory;
        let outcome = directory.scan();
        (directory, outcome)
    });
    task.await.unwrap_or_else(|error| (Directory::new(dir), Err(io::Error::other(error))))
}

fn stale(before: &SourceHealth, reason: String) -> SourceHealth {
    let since = match before {
        SourceHealth::Stale { since, .. } => *since,
        SourceHealth::Starting | SourceHealth::Synced => clock::now(),
    };
    SourceHealth::Stale { since, reason }
}

/// Waits for a change and then for the writers to pause.
async fn settled(changed: &Notify) {
    changed.notified().await;
    let latest = Instant::now() + DEBOUNCE_MAX;
    loop {
        let quiet = (Instant::now() + DEBOUNCE).min(latest);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

/// The inotify watch. It follows the directory that had the name when it was set, so it is set anew when another one
/// (by device and inode) has the name.
#[derive(Debug, Default)]
struct DirectoryWatch {
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
    /// The directory that cannot be watched, which was said: it is tried again with each scan.
    unwatched: Option<(u64, u64)>,
}

impl DirectoryWatch {
    fn renew(&mut self, dir: &Path, changed: &Arc<Notify>) {
        let identity = std::fs::metadata(dir).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        if self.watcher.as_ref().map(|(_, watched)| *watched) == identity {
            return;
        }
        self.watcher = identity.and_then(|identity| {
            // An error may mean lost events (a full inotify queue), so it counts as a change.
            let wake = Arc::clone(changed);
            let on_event = move |event: notify::Result<notify::Event>| {
                if event.map_or(true, |event| is_change(event.kind)) {
                    wake.notify_one();
                }
            };
            let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
                watcher.watch(dir, RecursiveMode::NonRecursive)?;
                Ok(watcher)
            });
            let is_new = self.unwatched != Some(identity);
            self.unwatched = watcher.is_err().then_some(identity);
            watcher
                .inspect_err(|error| {
                    if is_new {
                        tracing::warn!(dir = %dir.display(), %error, "no watch: changes take up to {RESCAN_AFTER:?}");
                    }
                })
                .ok()
                .map(|watcher| (watcher, identity))
        });
    }
}

/// inotify reports opening and reading too; our own scans must not cause further scans.
const fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => matches!(access, AccessKind::Close(AccessMode::Write)),
        _ => true,
    }
}

/// The pause between events after which the files are read.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The longest wait for such a pause.
const DEBOUNCE_MAX: Duration = Duration::from_millis(500);
/// The longest time between scans: files behind symbolic links and on network file systems change without an event.
const RESCAN_AFTER: Duration = Duration::from_secs(2);
