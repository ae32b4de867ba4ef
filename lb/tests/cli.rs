//! Mistakes of operators: a bad object, key or interface is named in one sentence, and nothing else is affected.
//!
//! Tests with a namespace need root; without it they fail with a message.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ManifestDir, ServiceSpec};
use flowgate_benches::netns::Namespace;
use tempfile::TempDir;

use crate::support::{
    Ended, FLOWGATE, Lab, eventually, flowgate, flowgate_here, get, pins, rows, text, xdp_program,
};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
/// Findings by file; the line is that of the object.
const BAD: [(&str, &str); 3] = [
    (
        "port.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: zero}\nspec: {clusterIP: 10.96.1.1, ports: [{port: 0}]}\n",
    ),
    (
        "two.yaml",
        "# The second is wrong.\napiVersion: v1\nkind: Service\nmetadata: {name: fine}\nspec: {clusterIP: 10.96.1.2, \
         ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: text}\nspec: {clusterIP: \
         10.96.1.3, ports: [{port: 80, protocol: tcp}]}\n",
    ),
    ("torn.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [\n"),
];
const FINDINGS: [&str; 3] = [
    "port.yaml:1: Service default/zero: spec.ports[0].port: 0 is not a port",
    "two.yaml:7: Service default/text: spec.ports[0].protocol: unknown protocol \"tcp\"",
    "torn.yaml:",
];

fn write_bad(manifests: &ManifestDir) -> Result<()> {
    BAD.iter().try_for_each(|(name, text)| Ok(manifests.write(name, text)?))
}

#[test]
fn bad_objects_are_reported_with_their_place_while_the_good_one_is_served_and_heal() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let _servers = lab.http_servers(8080)?;
    let manifests = lab.gateway.manifests();
    write_bad(manifests)?;
    let service = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080);
    manifests.apply(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");

    let report = || -> Result<Vec<String>> {
        let tables = lab.show("tables")?;
        let errors = rows(&tables["report"]).map(text).filter(|line| line.starts_with("error: "));
        Ok(errors.map(|line| line["error: ".len()..].to_owned()).collect())
    };
    eventually("all findings are reported", || Ok(report()?.len() >= FINDINGS.len()))?;
    for finding in FINDINGS {
        assert!(report()?.iter().any(|line| line.contains(finding)), "{finding} is not in {:?}", report()?);
        assert!(lab.gateway.log().contains(finding), "the log has {finding} too");
    }
    let config = lab.gateway.config_path().display().to_string();
    let checked = flowgate_here(&["check", "--config", &config])?;
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    for line in report()? {
        assert!(checked.stdout.contains(&line), "`check` says {line:?} too: {checked:?}");
    }

    // The corrected object is served, and its report is gone; so with the others, one by one.
    let fixed = ServiceSpec::single("zero", [10, 96, 1, 1].into(), L4Protocol::Tcp, 80, 8080);
    manifests.remove("port.yaml")?;
    manifests.apply(&fixed, &lab.addresses())?;
    eventually("the finding is gone", || Ok(!report()?.iter().any(|line| line.contains("port.yaml:"))))?;
    lab.gateway.wait_for_service("zero:main")?;
    assert_eq!(get(lab.client(), SocketAddr::from(([10, 96, 1, 1], 80)))?, "backend-1");
    manifests.write("two.yaml", &BAD[1].1.replace("tcp", "TCP"))?;
    manifests.remove("torn.yaml")?;
    eventually("nothing is wrong any more", || Ok(report()?.is_empty()))?;
    let checked = flowgate_here(&["check", "--config", &config])?;
    assert!(checked.status.success() && checked.stdout.ends_with(": no errors\n"), "{checked:?}");
    assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, "backend-1");
    Ok(())
}

#[test]
fn check_names_every_bad_object_and_opens_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifests = ManifestDir::create(folder.path().join("manifests"))?;
    write_bad(&manifests)?;
    let path = manifests.path().display().to_string();
    let checked = flowgate_here(&["check", "--manifests", &path])?;
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    for finding in FINDINGS {
        assert!(checked.stdout.contains(finding), "{finding}: {checked:?}");
    }
    BAD.iter().try_for_each(|(name, _)| manifests.remove(name))?;
    let checked = flowgate_here(&["check", "--manifests", &path])?;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let ports = "note: snat.ports = \"49152-65535\" leaves this host ";
    assert!(checked.stdout.starts_with(ports), "{checked:?}");
    assert!(checked.stdout.ends_with(&format!("{path}: no errors\n")), "{checked:?}");
    let missing = flowgate_here(&["check", "--manifests", &format!("{path}/missing")])?;
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(format!("{}{}", missing.stdout, missing.stderr).contains("/missing"), "{missing:?}");
    Ok(())
}

#[test]
fn a_cluster_that_cannot_be_asked_is_named_and_two_sources_are_refused() -> Result<()> {
    let checked = flowgate_here(&["check", "--kubeconfig", "/nowhere/kubeconfig"])?;
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let sentence = "error: cannot follow services: kubeconfig /nowhere/kubeconfig: failed to read";
    assert!(checked.stdout.starts_with(sentence), "{checked:?}");
    let both = flowgate_here(&["check", "--kubeconfig", "/k", "--manifests", "/m"])?;
    assert!(!both.status.success() && both.stderr.contains("cannot be used with"), "{both:?}");
    Ok(())
}

#[test]
fn an_unknown_configuration_key_is_refused_with_the_nearest_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("flowgate.toml");
    fs::write(&config, "[gateway]\ninterface = [\"eth0\"]\n")?;
    let config = config.display().to_string();
    for command in ["run", "check", "detach"] {
        let ended = flowgate_here(&[command, "--config", &config])?;
        let sentence = format!(
            "flowgate: {config}:2: unknown key `gateway.interface`: did you mean `gateway.interfaces`?\n"
        );
        assert_eq!((ended.status.code(), ended.stderr), (Some(1), sentence), "{command}");
    }
    let missing = flowgate_here(&["check", "--config", "/nowhere/flowgate.toml"])?;
    assert!(missing.is_refusal("/nowhere/flowgate.toml: No such file"), "{missing:?}");
    Ok(())
}

#[test]
fn a_question_to_nobody_says_where_it_was_asked() -> Result<()> {
    let ended = flowgate_here(&["show", "services", "--socket", "/nowhere/admin.sock"])?;
    assert!(ended.is_refusal("no flowgate answers on /nowhere/admin.sock"), "{ended:?}");
    Ok(())
}

#[test]
fn a_start_that_cannot_work_says_why_in_one_sentence_and_leaves_nothing() -> Result<()> {
    let place = Place::new()?;
    for (extra, interfaces, reason) in [
        ("", &[][..], "no interface to serve: set gateway.interfaces"),
        ("[xdp]\npin_dir = \"/proc/flowgate\"\n", &["good0"], "cannot use /proc/flowgate for pins"),
        ("[workers]\ncount = 2\ncores = [1]\n", &["good0"], "workers.cores: 1 cores for 2 workers"),
    ] {
        let ended = place.run(extra, interfaces)?;
        assert!(ended.is_refusal(reason), "{reason}: {ended:?}");
        assert_eq!(place.left()?, Left::default(), "{reason}");
    }
    Ok(())
}

/// Errors that are found only once the program is attached.
#[test]
fn a_start_that_fails_late_says_why_in_one_sentence_and_leaves_nothing() -> Result<()> {
    let place = Place::new()?;
    for (extra, reason) in [
        ("[workers]\ncores = [4000]\n", "workers.cores: core 4000 is not among the cores"),
        ("[xdp]\nzero_copy = \"force\"\n", "cannot bind an AF_XDP socket to good0 queue 0 (zero-copy)"),
    ] {
        let ended = place.run(extra, &["good0"])?;
        assert!(ended.is_refusal(reason), "{reason}: {ended:?}");
        assert_eq!(place.left()?, Left::default(), "{reason}");
    }
    Ok(())
}

/// A namespace with an interface, and a folder for flowgate's files.
struct Place {
    namespace: Namespace,
    folder: TempDir,
}

/// What a flowgate left behind. The default: nothing.
#[derive(Debug, Default, PartialEq)]
struct Left {
    pins: BTreeMap<String, u64>,
    program: Option<u64>,
    has_socket: bool,
    reserved_ports: String,
}

impl Place {
    fn new() -> Result<Self> {
        let namespace = Namespace::new("alone")?;
        namespace.ip("link add good0 type veth peer name good1")?;
        namespace.ip("link set good0 up")?;
        let folder = tempfile::tempdir()?;
        ManifestDir::create(folder.path().join("manifests"))?;
        Ok(Self { namespace, folder })
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("flowgate.toml")
    }

    fn run(&self, extra_config: &str, interfaces: &[&str]) -> Result<Ended> {
        let folder = self.folder.path();
        let (manifests, socket) = (folder.join("manifests"), folder.join("admin.sock"));
        let config =
            format!("[source]\nmanifests = {manifests:?}\n[admin]\nsocket = {socket:?}\n{extra_config}");
        fs::write(self.config(), config)?;
        let config = self.config().display().to_string();
        let mut arguments = vec!["run", "--config", &config];
        interfaces.iter().for_each(|interface| arguments.extend(["--interface", *interface]));
        flowgate(&self.namespace, &arguments)
    }

    fn left(&self) -> Result<Left> {
        let reserved = || fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
        Ok(Left {
            pins: pins(&self.namespace)?,
            program: xdp_program(&self.namespace, "good0")?,
            has_socket: self.folder.path().join("admin.sock").exists(),
            reserved_ports: self.namespace.run(reserved)?.trim().to_owned(),
        })
    }
}

#[test]
fn the_version_and_a_missing_command_are_answered() -> Result<()> {
    let version = flowgate_here(&["--version"])?;
    assert_eq!(version.stdout, format!("flowgate {}\n", env!("CARGO_PKG_VERSION")), "{FLOWGATE}");
    let none = flowgate_here(&[])?;
    assert_eq!(none.status.code(), Some(2));
    assert!(none.stderr.contains("Usage: flowgate"), "{none:?}");
    Ok(())
}
