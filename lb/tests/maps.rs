//! BPF maps that grow with the cluster while it is served, and starts that fail.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{FABRIC, GATEWAY_UPLINK, Topology, TopologyOptions, UPLINK};
use flowgate_benches::loadgen::stream::{self, Exchange, StreamOptions};
use flowgate_xsk::steering::{InterfaceConfig, SetLimits, Steering, SteeringConfig, XdpModePolicy};
use nix::mount::{MsFlags, mount};

use crate::support::{
    FLOWGATE, Lab, PIN_DIR, eventually, flowgate, get, http_answer, one_at_a_time, pins, xdp_program,
};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const EXTERNAL: [u8; 4] = [198, 51, 100, 0];
/// External addresses and ports of the large Service: 6,060 VIPs with those of its cluster IP, more than maps have room for
/// at first.
const ADDRESSES: u8 = 100;
const PORTS: u16 = 60;

fn external(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(EXTERNAL[0], EXTERNAL[1], EXTERNAL[2], host)
}

/// A Service whose VIPs do not fit into the first maps.
fn large_service(backends: &[Ipv4Addr]) -> String {
    let external: Vec<_> = (1..=ADDRESSES).map(|host| external(host).to_string()).collect();
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: large\n  namespace: default\nspec:\n  clusterIP: 10.96.0.20\n  \
         clusterIPs: [10.96.0.20]\n  externalIPs: [{}]\n  ports:\n",
        external.join(", ")
    );
    let mut slice =
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: large-1\n  namespace: \
                     default\n  labels:\n    kubernetes.io/service-name: large\naddressType: IPv4\nports:\n"
            .to_owned();
    for port in 0..PORTS {
        let number = 9000 + port;
        writeln!(yaml, "  - {{name: p{port}, port: {number}, targetPort: 8080}}").expect("a String");
        writeln!(slice, "- {{name: p{port}, protocol: TCP, port: 8080}}").expect("a String");
    }
    slice.push_str("endpoints:\n");
    for backend in backends {
        writeln!(slice, "- addresses: [{backend}]\n  conditions: {{ready: true}}").expect("a String");
    }
    format!("{yaml}---\n{slice}")
}

#[test]
fn a_service_that_outgrows_the_maps_is_served_and_no_other_notices() -> Result<()> {
    let _turn = one_at_a_time();
    let mut lab = Lab::with_backends(2)?;
    let _servers = lab.http_servers(8080)?;
    let web = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080);
    lab.gateway.manifests().apply(&web, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    lab.topology.client().route("198.51.100.0/24", GATEWAY_UPLINK)?;

    let exchange = Exchange::Http { path: "/bytes/10000".into() };
    let target = SocketAddr::from((CLUSTER_IP, 80));
    let mut options = StreamOptions::new(target, 10, Duration::from_secs(600), exchange);
    options.pause = Duration::from_millis(5);
    let load = stream::start(lab.client(), options)?;
    lab.gateway.manifests().write("large.yaml", &large_service(&lab.addresses()))?;
    eventually("larger maps are in use", || Ok(lab.gateway.log().contains("the new BPF maps are in use")))?;
    let last = (external(ADDRESSES), 9000 + PORTS - 1);
    eventually("the last VIP is served", || Ok(get(lab.client(), last).is_ok()))?;
    get(lab.client(), (external(1), 9000))?;
    let report = load.finish()?;
    assert_eq!(report.failures(), 0, "{report:?}");
    assert!(report.exchanges > 0);

    // The successor of a killed process finds the large maps.
    let programs = [lab.xdp_program(UPLINK)?, lab.xdp_program(FABRIC)?];
    lab.gateway.kill()?;
    lab.gateway.restart()?;
    eventually("the last VIP is served again", || Ok(get(lab.client(), last).is_ok()))?;
    assert_eq!([lab.xdp_program(UPLINK)?, lab.xdp_program(FABRIC)?], programs, "no program was loaded");
    let findings = lab.show("tables")?.to_string();
    assert!(!findings.contains("are missing"), "{findings}");
    Ok(())
}

/// A map `vips` with room for one entry that nothing can take the place of, since a folder has the name of its successor.
fn make_map_too_small(topology: &Topology) -> Result<()> {
    let interface = |name: &str| InterfaceConfig { name: name.to_owned(), mode: XdpModePolicy::Auto };
    let config = SteeringConfig {
        pin_dir: PIN_DIR.into(),
        log_dir: std::env::temp_dir(),
        interfaces: [UPLINK, FABRIC].map(interface).to_vec(),
        limits: SetLimits { vips: 1, ..SetLimits::default() },
    };
    topology.gateway().run(move || {
        drop(Steering::attach(&config)?);
        Ok(fs::create_dir_all(format!("{PIN_DIR}/next-vips/taken"))?)
    })
}

#[test]
fn workers_start_whatever_could_not_be_published_and_it_is_published_as_soon_as_it_can_be() -> Result<()> {
    let _turn = one_at_a_time();
    let topology = Topology::build(TopologyOptions { backends: 1, ..TopologyOptions::default() })?;
    make_map_too_small(&topology)?;
    let gateway = Gateway::start(topology.gateway(), GatewayOptions::new(FLOWGATE))?;
    let mut lab = Lab { gateway, topology };
    let _servers = lab.http_servers(8080)?;
    lab.topology.client().route("198.51.100.0/24", GATEWAY_UPLINK)?;
    let web = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080);
    lab.gateway.manifests().apply(&web, &lab.addresses())?;
    lab.gateway.manifests().write("large.yaml", &large_service(&lab.addresses()))?;
    let health = SocketAddr::from(([127, 0, 0, 1], 10_256));
    let healthz = |lab: &Lab| lab.topology.gateway().enter(|| http_answer(health, "/healthz"))?;
    let finding = "entries of the XDP program's map vips are missing, the first 10.96.0.20 port 9000/TCP";
    eventually("what is missing is told", || Ok(lab.show("tables")?.to_string().contains(finding)))?;
    for attempt in ["first start", "restart"] {
        eventually(&format!("{attempt}: the VIP that has room is served"), || {
            Ok(get(lab.client(), (CLUSTER_IP, 80)).is_ok())
        })?;
        eventually(&format!("{attempt}: what is missing makes unhealthy"), || {
            Ok(healthz(&lab)?.starts_with("HTTP/1.1 503")
                && lab.show("tables")?.to_string().contains(finding))
        })?;
        if attempt == "first start" {
            lab.gateway.kill()?;
            lab.gateway.restart()?;
        }
    }
    lab.topology.gateway().run(|| fs::remove_dir_all(format!("{PIN_DIR}/next-vips")))?;
    let last = (external(ADDRESSES), 9000 + PORTS - 1);
    eventually("everything is served", || Ok(get(lab.client(), last).is_ok()))?;
    eventually("and it is healthy", || Ok(healthz(&lab)?.starts_with("HTTP/1.1 200")))
}

#[test]
fn a_start_that_fails_after_attaching_leaves_nothing() -> Result<()> {
    let topology = Topology::build(TopologyOptions { backends: 1, ..TopologyOptions::default() })?;
    let gateway = topology.gateway();
    let folder = tempfile::tempdir()?;
    let (config, manifests) = (folder.path().join("flowgate.toml"), folder.path().join("manifests"));
    fs::create_dir(&manifests)?;
    let written = |more: &str| {
        fs::write(
            &config,
            format!(
                "[source]\nmanifests = \"{}\"\n[gateway]\ninterfaces = [\"{UPLINK}\", \"{FABRIC}\"]\n[admin]\nsocket = \
                 \"{}\"\n{more}\n",
                manifests.display(),
                folder.path().join("admin.sock").display()
            ),
        )
    };
    let is_bpffs_mounted = || {
        gateway.run(|| {
            fs::read_to_string("/proc/thread-self/mounts")
                .map(|text| text.contains(" bpf bpf ") || text.contains(" /sys/fs/bpf bpf "))
        })
    };
    let mounted_before = is_bpffs_mounted()?;
    let start = || flowgate(gateway, &["run", "--config", &config.display().to_string()]);
    let leaves_nothing = |what: &str| -> Result<()> {
        for interface in [UPLINK, FABRIC] {
            assert_eq!(xdp_program(gateway, interface)?, None, "{what}: {interface}");
        }
        let left = pins(gateway).unwrap_or_default();
        assert_eq!(left, BTreeMap::new(), "{what}");
        assert_eq!(is_bpffs_mounted()?, mounted_before, "{what}");
        assert!(!folder.path().join("flows").exists(), "{what}: the flow tables");
        Ok(())
    };

    written("[workers]\ncount = 4")?;
    let ended = start()?;
    assert!(ended.is_refusal("workers.count is 4, but an interface has 1 queues"), "{ended:?}");
    leaves_nothing("more workers than queues")?;

    // The range of source ports cannot be reserved.
    written("")?;
    gateway.run(|| -> nix::Result<()> {
        let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        let none = None::<&str>;
        mount(Some(file), file, none, MsFlags::MS_BIND, none)?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, file, none, flags, none)
    })?;
    let ended = start()?;
    assert!(ended.is_refusal("ip_local_reserved_ports"), "{ended:?}");
    leaves_nothing("no source ports")
}
