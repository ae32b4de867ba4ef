//! Temporary folders, removed when dropped. Those of a killed lab are removed by the next one.

use std::{env, fs};

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::netns::is_alive;

const PREFIX: &str = "flowgate-lab-";

/// Creates a folder; its name holds the id of this process.
pub(crate) fn folder(purpose: &str) -> Result<TempDir> {
    sweep();
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-{purpose}-", std::process::id()))
        .tempdir()
        .map_err(Error::io(format!("make a temporary folder for {purpose} in {}", env::temp_dir().display())))
}

/// Removes the folders of processes that no longer exist.
pub(crate) fn sweep() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
        let owner = owner.and_then(|(id, _)| id.parse().ok());
        if owner.is_some_and(|id| !is_alive(id)) {
            // Another lab may remove the same folder at this moment.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_processes_go_and_others_stay() {
        // Larger than any process id: PID_MAX_LIMIT is 1 << 22.
        let dead = env::temp_dir().join(format!("{PREFIX}4194399-nginx-x"));
        let other = env::temp_dir().join(format!("{PREFIX}notes-{}", std::process::id()));
        fs::create_dir_all(dead.join("inner")).unwrap();
        fs::create_dir_all(&other).unwrap();
        let mine = folder("test").unwrap();
        sweep();
        assert!(mine.path().exists() && other.exists() && !dead.exists());
        fs::remove_dir(&other).unwrap();
    }
}
