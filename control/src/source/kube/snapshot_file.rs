//! The file that holds the last good state, so that a restart without the API server forwards at once.
//!
//! One JSON object: a header with format, version and cluster, then the objects in the form of the model. It is
//! written to a second file, synced and renamed, so that the file is complete at any time. If it cannot be written, as on
//! a full disk, the second file is removed, and what was saved before stays.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::model::{Desired, EndpointSlice, Key, Node, Object, Service, ServiceCidr, Stored};

/// The objects at the time they were saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) desired: Desired,
    pub(super) at: SystemTime,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {}: {reason}", path.display())]
pub(super) struct SavedError {
    path: PathBuf,
    reason: String,
}

/// Writes the state of `cluster`; readable by the owner only.
pub(super) fn save(path: &Path, cluster: &str, saved: &Saved) -> Result<(), SavedError> {
    write(path, cluster, saved, create)
        .map_err(|error| SavedError { path: path.to_owned(), reason: error.to_string() })
}

/// Reads the state of `cluster`; `None` if nothing was ever saved.
pub(super) fn load(path: &Path, cluster: &str) -> Result<Option<Saved>, SavedError> {
    let refuse = |reason: String| SavedError { path: path.to_owned(), reason };
    let bytes = match read_trusted(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(refuse(error.to_string()));
        }
        Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
    };
    // The header alone first: the objects of another version may have another form.
    let header: Header<String> =
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is no snapshot: {error}")))?;
    if header.format != FORMAT || header.version != VERSION {
        return Err(refuse(format!(
            "is of format {:?} {}, not {FORMAT:?} {VERSION}",
            header.format, header.version
        )));
    }
    if header.cluster != cluster {
        return Err(refuse(format!("is of the cluster at {}, not of {cluster}", header.cluster)));
    }
    let body: Body =
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is damaged: {error}")))?;
    Ok(Some(Saved {
        desired: body.into_desired(),
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(header.saved_at_unix_ms),
    }))
}

/// The content of a file that nobody else can have written: it decides where all traffic goes.
fn read_trusted(path: &Path) -> io::Result<Vec<u8>> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file = match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return refuse("is a symbolic link, and only a file of root is read: remove it".into());
        }
        opened => opened?,
    };
    let meta = file.metadata()?;
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if !meta.is_file() {
        return refuse("is no file".into());
    }
    if owner != 0 && owner != geteuid().as_raw() {
        return refuse(format!("belongs to user {owner}, and only a file of root is read: remove it"));
    }
    if mode & 0o022 != 0 {
        return refuse(format!("can be written by others (mode {mode:04o}): remove it, or chmod go-w"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(path: &Path, cluster: &str, saved: &Saved, create: fn(&Path) -> io::Result<File>) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut second = path.as_os_str().to_owned();
    second.push(".new");
    let at = saved.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = Whole {
        header: Header {
            format: FORMAT,
            version: VERSION,
            cluster,
            saved_at_unix_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
        },
        services: borrowed(saved.desired.services()),
        endpoint_slices: borrowed(saved.desired.slices()),
        nodes: borrowed(saved.desired.nodes()),
        service_cidrs: borrowed(saved.desired.service_cidrs()),
    };
    let second = Path::new(&second);
    let written = create(second).and_then(|file| fill(file, &whole)).and_then(|()| fs::rename(second, path));
    if let Err(error) = written {
        // On a full disk half a file would only take the room that others wait for.
        let _ = fs::remove_file(second);
        return Err(error);
    }
    // The rename is durable only once the directory is synced.
    File::open(folder)?.sync_all()
}

/// A new file, readable by the owner only. What has its name, such as a link, is not written through.
fn create(path: &Path) -> io::Result<File> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn fill(file: File, whole: &Whole<'_>) -> io::Result<()> {
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, whole)?;
    writer.write_all(b"\n")?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn borrowed<T>(objects: &BTreeMap<Key, Stored<T>>) -> Vec<(&Key, &T)> {
    objects.iter().map(|(key, stored)| (key, &*stored.object)).collect()
}

#[derive(Serialize, Deserialize)]
struct Header<S> {
    format: S,
    version: u32,
    cluster: S,
    saved_at_unix_ms: u64,
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    header: Header<&'a str>,
    services: Vec<(&'a Key, &'a Service)>,
    endpoint_slices: Vec<(&'a Key, &'a EndpointSlice)>,
    nodes: Vec<(&'a Key, &'a Node)>,
    service_cidrs: Vec<(&'a Key, &'a ServiceCidr)>,
}

#[derive(Deserialize)]
struct Body {
    services: Vec<(Key, Service)>,
    endpoint_slices: Vec<(Key, EndpointSlice)>,
    nodes: Vec<(Key, Node)>,
    service_cidrs: Vec<(Key, ServiceCidr)>,
}

impl Body {
    fn into_desired(self) -> Desired {
        let mut desired = Desired::default();
        let Self { services, endpoint_slices, nodes, service_cidrs } = self;
        for (key, object) in services {
            desired.apply(key, Object::Service(Arc::new(object)), None);
        }
        for (key, object) in endpoint_slices {
            desired.apply(key, Object::EndpointSlice(Arc::new(object)), None);
        }
        for (key, object) in nodes {
            desired.apply(key, Object::Node(Arc::new(object)), None);
        }
        for (key, object) in service_cidrs {
            desired.apply(key, Object::ServiceCidr(Arc::new(object)), None);
        }
        desired
    }
}

const FORMAT: &str = "flowgate-snapshot";
/// To be raised when the saved form of the model changes its meaning: other versions are not read.
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Kind;
    use crate::report::ObjectRef;
    use crate::source::convert;

    const CLUSTER: &str = "https://10.0.0.1:6443/";

    fn everything() -> Desired {
        let mut desired = Desired::default();
        let mut add = |kind: Kind, mut value: serde_json::Value| {
            let name = value["metadata"]["name"].as_str().unwrap().to_owned();
            let namespace = if kind.is_namespaced() { "default" } else { "" };
            value["metadata"]["namespace"] = namespace.into();
            let (object, findings) =
                convert::object(kind, &ObjectRef::new(kind.name(), namespace, &name), value);
            desired.apply(Key::new(namespace, name), object.unwrap_or_else(|| panic!("{findings:?}")), None);
        };
        add(
            Kind::Service,
            json!({"metadata": {"name": "web", "labels": {"service.kubernetes.io/headless": ""}}, "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.9"],
                "selector": {"app": "web"}, "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 30001, "loadBalancerSourceRanges": ["192.0.2.0/24"],
                "ports": [
                    {"name": "a", "port": 80, "targetPort": "http", "nodePort": 30080, "appProtocol": "h2c"},
                    {"name": "b", "port": 53, "protocol": "UDP", "targetPort": 5353},
                    {"name": "c", "port": 99, "protocol": "SCTP"}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "Proxy"}]}}}),
        );
        add(Kind::Service, json!({"metadata": {"name": "none"}, "spec": {"clusterIP": "None"}}));
        add(
            Kind::Service,
            json!({"metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        );
        add(
            Kind::EndpointSlice,
            json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}, "annotations":
                    {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-24T10:00:00.5Z"}},
                "addressType": "IPv4", "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": ["10.244.0.1"], "conditions": {"ready": false, "terminating": true},
                        "hostname": "web-0", "nodeName": "n1", "hints": {"forZones": [{"name": "z"}]}},
                    {"addresses": ["10.244.0.2"]}]}),
        );
        add(
            Kind::Node,
            json!({"metadata": {"name": "n1", "labels": {"zone": "z"}}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        );
        add(
            Kind::ServiceCidr,
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
        );
        desired
    }

    #[test]
    fn what_is_saved_is_read_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/snapshot.json");
        assert_eq!(load(&path, CLUSTER).unwrap(), None);
        let saved = Saved {
            desired: everything(),
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        };
        save(&path, CLUSTER, &saved).unwrap();
        save(&path, CLUSTER, &saved).unwrap();
        assert_eq!(load(&path, CLUSTER).unwrap(), Some(saved));
        let names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["snapshot.json"], "nothing else is left");
    }

    #[test]
    fn a_file_that_others_can_have_written_is_not_read() {
        use std::fs::Permissions;
        use std::os::unix::fs::{PermissionsExt, chown, symlink};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        let saved = Saved { desired: everything(), at: SystemTime::UNIX_EPOCH };
        // A link in the way of the second file is not followed.
        let victim = folder.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        symlink(&victim, folder.path().join("s.json.new")).unwrap();
        save(&path, CLUSTER, &saved).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert_eq!(load(&path, CLUSTER).unwrap(), Some(saved));

        let refusal = |path: &Path| load(path, CLUSTER).unwrap_err().to_string();
        fs::set_permissions(&path, Permissions::from_mode(0o606)).unwrap();
        assert!(refusal(&path).contains("can be written by others (mode 0606)"), "{}", refusal(&path));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(load(&path, CLUSTER).is_ok());
        let link = folder.path().join("link.json");
        symlink(&path, &link).unwrap();
        assert!(refusal(&link).contains("is a symbolic link"), "{}", refusal(&link));
        assert!(refusal(folder.path()).contains("is no file"), "{}", refusal(folder.path()));
        if geteuid().is_root() {
            chown(&path, Some(1000), None).unwrap();
            assert!(refusal(&path).contains("belongs to user 1000"), "{}", refusal(&path));
        }
    }

    #[test]
    fn a_full_disk_leaves_what_was_saved_before_and_no_half_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        let saved = Saved { desired: everything(), at: SystemTime::UNIX_EPOCH };
        save(&path, CLUSTER, &saved).unwrap();
        let on_full_disk = |path: &Path| {
            fs::write(path, "{\"format\":\"flow").unwrap();
            OpenOptions::new().write(true).open("/dev/full")
        };
        let error =
            write(&path, CLUSTER, &Saved { desired: Desired::default(), ..saved.clone() }, on_full_disk);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(load(&path, CLUSTER).unwrap(), Some(saved));
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["s.json"]);
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.json");
        let saved = Saved { desired: everything(), at: SystemTime::UNIX_EPOCH };
        save(&path, CLUSTER, &saved).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let refusal = |text: &str, cluster: &str| {
            fs::write(&path, text).unwrap();
            load(&path, cluster).unwrap_err().to_string()
        };
        let is = |text: String, part: &str| {
            assert!(
                text.starts_with(&format!("snapshot {}: ", path.display())) && text.contains(part),
                "{text}"
            );
        };
        is(refusal("", CLUSTER), "is no snapshot");
        is(refusal("{}", CLUSTER), "is no snapshot");
        is(refusal(&good[..good.len() / 2], CLUSTER), "is no snapshot");
        is(refusal(&good.replace("\"version\":1", "\"version\":2"), CLUSTER), "not \"flowgate-snapshot\" 1");
        is(refusal(&good.replace("\"V4\"", "\"V5\""), CLUSTER), "is damaged");
        is(
            refusal(&good, "https://other/"),
            "is of the cluster at https://10.0.0.1:6443/, not of https://other/",
        );
    }
}
