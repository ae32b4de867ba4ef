//! Where objects come from: one place, whoever names it. Looks at no file.

use std::path::{Path, PathBuf};

use flowgate_control::Source;
use flowgate_control::source::kube::{self, Access, Scope, WatchTimeouts};

use super::raw;

/// What the command line says instead of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What the file says.
    #[default]
    AsConfigured,
    Manifests(PathBuf),
    Kubeconfig(PathBuf),
}

/// The one source. `node_name` is that of the Node to follow, if there is one.
///
/// # Errors
/// The key of a second source, and which one to remove.
pub(super) fn source(
    raw: raw::Source,
    wanted: Wanted,
    scope: Scope,
    node_name: Option<String>,
) -> Result<Source, (&'static str, String)> {
    let raw::Source { manifests, kubeconfig, in_cluster, snapshot } = raw;
    let second = |other| format!("not along with {other}: objects come from one place, remove one");
    let access = match wanted {
        Wanted::Manifests(dir) => return Ok(Source::Manifests(dir)),
        Wanted::Kubeconfig(path) => Access::Kubeconfig(path),
        Wanted::AsConfigured => match (manifests, kubeconfig, in_cluster) {
            (manifests, None, false) => {
                return Ok(Source::Manifests(manifests.unwrap_or_else(|| MANIFESTS.into())));
            }
            (Some(_), Some(_), _) => return Err(("source.kubeconfig", second("source.manifests"))),
            (Some(_), None, true) => return Err(("source.in_cluster", second("source.manifests"))),
            (None, Some(_), true) => return Err(("source.in_cluster", second("source.kubeconfig"))),
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

const MANIFESTS: &str = "/etc/flowgate/manifests";
/// The word for the kubeconfig that kubectl would take.
const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    fn from(raw: raw::Source) -> Result<Source, String> {
        source(raw, Wanted::AsConfigured, Scope::Served, None)
            .map_err(|(key, reason)| format!("{key}: {reason}"))
    }

    #[test]
    fn objects_come_from_one_place_and_the_command_line_names_it_last() {
        let none = raw::Source::default;
        let manifests = || raw::Source { manifests: Some("/m".into()), ..none() };
        assert_eq!(from(none()), Ok(Source::Manifests(MANIFESTS.into())));
        assert_eq!(from(manifests()), Ok(Source::Manifests("/m".into())));
        let wanted = source(manifests(), Wanted::Kubeconfig("/k".into()), Scope::Served, Some("edge".into()));
        let Ok(Source::Kubernetes(config)) = wanted else { panic!("{wanted:?}") };
        assert_eq!(config.access, Access::Kubeconfig("/k".into()));
        assert_eq!(config.node_name.as_deref(), Some("edge"));
        assert_eq!(config.snapshot, Some("/var/lib/flowgate/snapshot.json".into()));
        let both = raw::Source { kubeconfig: Some("/k".into()), ..manifests() };
        assert_eq!(
            from(both.clone()).unwrap_err(),
            "source.kubeconfig: not along with source.manifests: objects come from one place, remove one"
        );
        assert!(from(raw::Source { in_cluster: true, ..manifests() }).is_err());
        assert!(from(raw::Source { manifests: None, in_cluster: true, ..both }).is_err());
    }

    #[test]
    fn an_empty_snapshot_is_none_and_the_word_default_is_no_file() {
        let raw =
            raw::Source { kubeconfig: Some("default".into()), snapshot: "".into(), ..Default::default() };
        let Ok(Source::Kubernetes(config)) = from(raw) else { panic!("a kubeconfig is an API") };
        assert_eq!((config.access, config.snapshot), (Access::DefaultKubeconfig, None));
    }
}
