//! Reading the configuration again while Flowgate runs. Some keys can change then; for all others the log names old and new
//! value, and the old one stays in force until a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use serde::Deserialize;
use toml::{Table, Value};

use super::file::{self, Sections};
use super::{Config, ConfigError, Overrides};

/// The file that a configuration came from, with what of it is in force.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    overrides: Overrides,
    in_force: Table,
}

/// What has changed in the file.
#[derive(Debug)]
pub(crate) struct Reloaded {
    /// What was in force, with the changes that are possible now.
    pub(crate) config: Config,
    /// Those changes.
    pub(crate) taken: Vec<Change>,
    /// Changes that need a restart.
    pub(crate) refused: Vec<Change>,
}

/// One key with another value than the one in force.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    key: String,
    old: Option<Value>,
    new: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |value: &Option<Value>| value.as_ref().map_or_else(|| "its default".to_owned(), Value::to_string);
        write!(f, "{} = {} (was {})", self.key, shown(&self.new), shown(&self.old))
    }
}

impl ConfigFile {
    /// As [`Config::load`], and the file to load again; `None` without a file.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub(crate) fn load(
        path: Option<&Path>,
        overrides: Overrides,
    ) -> Result<(Config, Option<Self>), ConfigError> {
        let config = Config::load(path, overrides.clone())?;
        let Some(path) = path else { return Ok((config, None)) };
        let mut file = Self { path: path.to_owned(), overrides, in_force: Table::new() };
        file.in_force = file.read()?.1;
        Ok((config, Some(file)))
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again. What of it can change is taken for being in force from now on.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing that is wrong; then nothing has changed.
    pub(crate) fn reload(&mut self) -> Result<Reloaded, ConfigError> {
        // The control thread must not wait for whoever writes into a pipe.
        let regular = |metadata: fs::Metadata| match metadata.is_file() {
            true => Ok(()),
            false => Err(io::Error::other("not a regular file")),
        };
        fs::metadata(&self.path)
            .and_then(regular)
            .map_err(|cause| ConfigError::Unreadable { path: self.path.clone(), cause })?;
        let (sections, table) = self.read()?;
        let place = self.path.display().to_string();
        Config::resolve_at(&place, sections, self.overrides.clone())?;
        let (taken, refused): (Vec<_>, Vec<_>) =
            changes(&self.in_force, &table).into_iter().partition(|change| is_reloadable(&change.key));
        let mut next = self.in_force.clone();
        taken.iter().for_each(|change| set(&mut next, &change.key, change.new.as_ref()));
        let config = Config::resolve_at(&place, sections_of(&next), self.overrides.clone())?;
        self.in_force = next;
        Ok(Reloaded { config, taken, refused })
    }

    fn read(&self) -> Result<(Sections, Table), ConfigError> {
        let text = file::read(&self.path)?;
        let place = self.path.display().to_string();
        let sections = Sections::parse(&text, &place)?;
        let syntax =
            |error: toml::de::Error| ConfigError::Syntax { place, reason: error.message().to_owned() };
        Ok((sections, text.parse().map_err(syntax)?))
    }
}

/// The keys that mean something else in `new`. One that is written out with its default, or in other words, has not changed.
fn changes(old: &Table, new: &Table) -> Vec<Change> {
    let keys: BTreeSet<String> = leaves(old, "").into_iter().chain(leaves(new, "")).collect();
    let before = sections_of(old);
    let change = |key: String| Change { old: get(old, &key).cloned(), new: get(new, &key).cloned(), key };
    let is_effective = |change: &Change| {
        let mut with = old.clone();
        set(&mut with, &change.key, change.new.as_ref());
        change.old != change.new && sections_of(&with) != before
    };
    keys.into_iter().map(change).filter(is_effective).collect()
}

/// The sections of a table whose values were all checked.
fn sections_of(table: &Table) -> Sections {
    // A value that is wrong was an error before it came into a table here.
    Sections::deserialize(Value::Table(table.clone())).unwrap_or_default()
}

/// All keys of a table with the sections that they are in, such as `flows.capacity`.
fn leaves(table: &Table, section: &str) -> Vec<String> {
    let of_one = |(key, value): (&String, &Value)| {
        let path = format!("{section}{key}");
        match value {
            Value::Table(inner) => leaves(inner, &format!("{path}.")),
            _ => vec![path],
        }
    };
    table.iter().flat_map(of_one).collect()
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn set(table: &mut Table, key: &str, value: Option<&Value>) {
    match (key.split_once('.'), value) {
        (Some((section, rest)), _) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
        (None, Some(value)) => drop(table.insert(key.to_owned(), value.clone())),
        (None, None) => drop(table.remove(key)),
    }
}

fn is_reloadable(key: &str) -> bool {
    RELOADABLE.iter().any(|known| match known.strip_suffix('*') {
        Some(section) => key.starts_with(section),
        None => key == *known,
    })
}

/// The keys that can change while Flowgate runs; `*` stands for a whole section. `run/reload.rs` puts them in force. All others
/// are bound to what is opened at the start.
const RELOADABLE: [&str; 28] = [
    "node.detect_local",
    "node.cluster_cidrs",
    "node.masquerade_all",
    "node.localhost_nodeports",
    "services.*",
    "snat.addresses",
    "workers.idle_before_sleep_us",
    "workers.hang_ms",
    "xdp.hold_ms",
    "flows.half_open_percent",
    "flows.per_client_percent",
    "flows.tcp_opening_s",
    "flows.tcp_established_s",
    "flows.tcp_half_closed_s",
    "flows.tcp_time_wait_s",
    "flows.tcp_reset_s",
    "flows.udp_unanswered_s",
    "flows.udp_answered_s",
    "flows.drain_s",
    "tcp.*",
    "icmp.*",
    "metrics.detail",
    "metrics.services_max",
    "log.level",
    // The other limits are sizes of maps.
    "limits.service_frontends",
    "limits.service_endpoints",
    "limits.namespace_frontends",
    "limits.namespace_endpoints",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::file::known_keys;
    use super::*;

    struct TestFile {
        _folder: tempfile::TempDir,
        file: ConfigFile,
    }

    impl TestFile {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("f.toml");
            fs::write(&path, text).unwrap();
            let (_, file) = ConfigFile::load(Some(&path), Overrides::default()).unwrap();
            Self { _folder: folder, file: file.unwrap() }
        }

        fn reload(&mut self, text: &str) -> Result<Reloaded, ConfigError> {
            fs::write(&self.file.path, text).unwrap();
            self.file.reload()
        }
    }

    fn shown(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_can_change_is_taken_and_what_needs_a_restart_is_named_with_both_values() {
        let mut file = TestFile::new("[workers]\ncount = 1\n[flows]\ntcp_reset_s = 5\n");
        let text = "[workers]\ncount = 2\n[flows]\nudp_answered_s = 7\n[gateway]\ninterfaces = [\"a\"]\n";
        let reloaded = file.reload(text).unwrap();
        let taken = ["flows.tcp_reset_s = its default (was 5)", "flows.udp_answered_s = 7 (was its default)"];
        assert_eq!(shown(&reloaded.taken), taken);
        let refused = ["gateway.interfaces = [\"a\"] (was its default)", "workers.count = 2 (was 1)"];
        assert_eq!(shown(&reloaded.refused), refused);
        let config = reloaded.config;
        assert_eq!(config.flows.timeouts().udp_answered, Duration::from_secs(7));
        assert_eq!((config.workers.count, config.gateway.interfaces.len()), (1, 0), "as before");

        let again = file.reload(text).unwrap();
        assert_eq!(shown(&again.taken), [""; 0], "they are in force");
        assert_eq!(shown(&again.refused), refused, "these still need a restart");
    }

    #[test]
    fn a_wrong_file_changes_nothing_and_says_why() {
        let mut file = TestFile::new("[tcp]\nreset_unknown = false\n");
        for (text, reason) in [
            ("[tcp\n", "f.toml:1"),
            ("[tcp]\nreset_unknown = 5\n", "tcp.reset_unknown: invalid type"),
            ("[tpc]\n", "did you mean `tcp`?"),
            ("[workers]\ncount = 2\ncores = [1]\n", "workers.cores: 1 cores for 2 workers"),
        ] {
            let error = file.reload(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        fs::remove_file(&file.file.path).unwrap();
        assert!(file.file.reload().unwrap_err().to_string().contains("No such file"));
        let reloaded = file.reload("[tcp]\nreset_unknown = true\n").unwrap();
        assert_eq!(shown(&reloaded.taken), ["tcp.reset_unknown = true (was false)"]);
    }

    #[test]
    fn a_default_that_is_written_out_is_no_change() {
        let mut file = TestFile::new("");
        let reloaded = file.reload(include_str!("../../../config/flowgate.toml")).unwrap();
        let shown = shown(&[reloaded.taken, reloaded.refused].concat());
        let interfaces = "gateway.interfaces = [\"eth0\"] (was its default)";
        // The folder of manifests is the default too, but only of the whole section.
        assert!(
            shown.iter().all(|line| line == interfaces || line.starts_with("source.manifests")),
            "{shown:?}"
        );
    }

    #[test]
    fn what_is_no_file_or_longer_than_any_configuration_is_refused_and_waited_for_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flowgate.toml");
        let remove = || fs::remove_file(&path).unwrap();
        fs::write(&path, "[tcp]\nreset_unknown = false\n").unwrap();
        let (_, file) = ConfigFile::load(Some(&path), Overrides::default()).unwrap();
        let mut file = file.unwrap();
        let mut refusal = || file.reload().unwrap_err().to_string();
        remove();
        assert!(refusal().ends_with("flowgate.toml: No such file or directory (os error 2)"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal().ends_with(": not a regular file"));
        remove();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(refusal().ends_with(": not a regular file"));
        remove();
        fs::write(&path, "#".repeat(2 << 20)).unwrap();
        assert!(refusal().ends_with(": longer than 1048576 bytes"));
        // A start may read a pipe, as of a shell, but not without end.
        let endless = Config::load(Some(Path::new("/dev/zero")), Overrides::default()).unwrap_err();
        assert_eq!(endless.to_string(), "/dev/zero: longer than 1048576 bytes");
    }

    #[test]
    fn every_reloadable_key_exists() {
        for key in RELOADABLE {
            let (section, name) = key.split_once('.').unwrap();
            assert!(known_keys(None).iter().any(|known| known == section), "{section}");
            assert!(name == "*" || known_keys(Some(section)).iter().any(|known| known == name), "{key}");
        }
    }
}
