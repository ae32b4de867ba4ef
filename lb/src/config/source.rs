//! The section `[source]`: where Kubernetes objects come from, which is one place only.

use std::path::{Path, PathBuf};

use flowgate_control::Source;
use flowgate_control::source::kube::{self, Access, Scope, WatchTimeouts};
use serde::Deserialize;

use super::value::Invalid;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename = "Source")]
pub(super) struct SourceSection {
    pub(super) manifests: Option<PathBuf>,
    pub(super) kubeconfig: Option<PathBuf>,
    in_cluster: bool,
    /// Empty: the state of the cluster is not saved.
    snapshot: PathBuf,
}

impl Default for SourceSection {
    fn default() -> Self {
        Self {
            manifests: None,
            kubeconfig: None,
            in_cluster: false,
            snapshot: "/var/lib/flowgate/snapshot.json".into(),
        }
    }
}

/// The source that the command line names instead of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SourceOverride {
    /// It names none.
    #[default]
    None,
    Manifests(PathBuf),
    Kubeconfig(PathBuf),
}

impl SourceSection {
    /// The one source. `node_name` is that of the Node to follow, if there is one.
    ///
    /// # Errors
    /// The key of a second source, and which one to remove.
    pub(super) fn resolve(
        self,
        command_line: SourceOverride,
        scope: Scope,
        node_name: Option<String>,
    ) -> Result<Source, Invalid> {
        let Self { manifests, kubeconfig, in_cluster, snapshot } = self;
        let second = |key, other| {
            let reason = format!("not along with {other}: objects come from one place, remove one");
            Err(Invalid { key, reason })
        };
        let access = match command_line {
            SourceOverride::Manifests(dir) => return Ok(Source::Manifests(dir)),
            SourceOverride::Kubeconfig(path) => Access::Kubeconfig(path),
            SourceOverride::None => match (manifests, kubeconfig, in_cluster) {
                (manifests, None, false) => {
                    return Ok(Source::Manifests(manifests.unwrap_or_else(|| MANIFESTS.into())));
                }
                (Some(_), Some(_), _) => return second("source.kubeconfig", "source.manifests"),
                (Some(_), None, true) => return second("source.in_cluster", "source.manifests"),
                (None, Some(_), true) => return second("source.in_cluster", "source.kubeconfig"),
                (None, Some(path), false) if path == Path::new(DEFAULT) => Access::DefaultKubeconfig,
                (None, Some(path), false) => Access::Kubeconfig(path),
                (None, None, true) => Access::InCluster,
            },
        };
        let snapshot = Some(snapshot).filter(|path| !path.as_os_str().is_empty());
        Ok(Source::Kubernetes(kube::Config {
            access,
            scope,
            node_name,
            snapshot,
            timeouts: WatchTimeouts::default(),
        }))
    }
}

const MANIFESTS: &str = "/etc/flowgate/manifests";
/// The word for the kubeconfig that kubectl would take.
const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    fn from(section: SourceSection) -> Result<Source, String> {
        section
            .resolve(SourceOverride::None, Scope::Served, None)
            .map_err(|Invalid { key, reason }| format!("{key}: {reason}"))
    }

    #[test]
    fn objects_come_from_one_place_and_the_command_line_names_it_last() {
        let none = SourceSection::default;
        let manifests = || SourceSection { manifests: Some("/m".into()), ..none() };
        assert_eq!(from(none()), Ok(Source::Manifests(MANIFESTS.into())));
        assert_eq!(from(manifests()), Ok(Source::Manifests("/m".into())));
        let kubeconfig = SourceOverride::Kubeconfig("/k".into());
        let wanted = manifests().resolve(kubeconfig, Scope::Served, Some("edge".into()));
        let Ok(Source::Kubernetes(config)) = wanted else { panic!("{wanted:?}") };
        assert_eq!(config.access, Access::Kubeconfig("/k".into()));
        assert_eq!(config.node_name.as_deref(), Some("edge"));
        assert_eq!(config.snapshot, Some("/var/lib/flowgate/snapshot.json".into()));
        let both = SourceSection { kubeconfig: Some("/k".into()), ..manifests() };
        assert_eq!(
            from(both.clone()).unwrap_err(),
            "source.kubeconfig: not along with source.manifests: objects come from one place, remove one"
        );
        assert!(from(SourceSection { in_cluster: true, ..manifests() }).is_err());
        assert!(from(SourceSection { manifests: None, in_cluster: true, ..both }).is_err());
    }

    #[test]
    fn an_empty_snapshot_is_none_and_the_word_default_is_no_file() {
        let section =
            SourceSection { kubeconfig: Some("default".into()), snapshot: "".into(), ..Default::default() };
        let Ok(Source::Kubernetes(config)) = from(section) else { panic!("a kubeconfig is an API") };
        assert_eq!((config.access, config.snapshot), (Access::DefaultKubeconfig, None));
    }
}
