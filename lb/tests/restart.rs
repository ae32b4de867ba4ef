//! Planned and sudden ends of flowgate: which connections go on meanwhile, what is left behind, and what the next start finds.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer};
use flowgate_benches::lab::servers::http::{HttpServer, HttpServerOptions};
use flowgate_benches::lab::topology::{FABRIC, GATEWAY_FABRIC, GATEWAY_UPLINK, UPLINK};
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions, StreamRun};

use crate::support::{LIMIT, Lab, eventually, flowgate, get, one_at_a_time, pins};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const SSH: u16 = 22;

/// A lab with Service `web` and, in the gateway's own namespace, a server for clients of the node.
struct Served {
    lab: Lab,
    _servers: BTreeMap<String, HttpServer>,
    _node: TcpEchoServer,
}

impl Served {
    fn start() -> Result<Self> {
        let lab = Lab::with_backends(2)?;
        let servers = lab.http_servers(8080)?;
        let node =
            TcpEchoServer::start(lab.topology.gateway(), EchoOptions::new("node", SSH, EchoAnswer::Name))?;
        let service =
            ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080).with_node_port(30_080);
        lab.gateway.manifests().apply(&service, &lab.addresses())?;
        lab.wait_for_backends(&lab.addresses(), 8080)?;
        Ok(Self { lab, _servers: servers, _node: node })
    }

    /// Connections to the node itself, as those of ssh are.
    fn ssh_like(&self) -> Result<StreamRun> {
        let exchange = Exchange::Echo { len: 500, greeting: Greeting::Name };
        let target = SocketAddr::from((GATEWAY_UPLINK, SSH));
        let mut options = StreamOptions::new(target, 3, Duration::from_secs(600), exchange);
        options.pause = Duration::from_millis(5);
        Ok(stream::start(self.lab.client(), options)?)
    }

    /// Transfers through the Service.
    fn load(&self) -> Result<StreamRun> {
        let exchange = Exchange::Http { path: "/bytes/100000".into() };
        let target = SocketAddr::from((CLUSTER_IP, 80));
        let mut options = StreamOptions::new(target, 20, Duration::from_secs(600), exchange);
        options.pause = Duration::from_millis(10);
        // While flowgate is down the Service is too: whoever waits shall try again soon.
        (options.connect_timeout, options.exchange_timeout) =
            (Duration::from_secs(2), Duration::from_secs(2));
        Ok(stream::start(self.lab.client(), options)?)
    }

    fn programs(&self) -> Result<[Option<u64>; 2]> {
        Ok([self.lab.xdp_program(UPLINK)?, self.lab.xdp_program(FABRIC)?])
    }
}

/// Waits until more exchanges are done.
fn goes_on(what: &str, run: &StreamRun) -> Result<()> {
    let before = run.snapshot().exchanges;
    eventually(what, || Ok(run.snapshot().exchanges > before + 30))
}

#[test]
fn a_kill_under_load_touches_no_connection_to_the_node_and_needs_no_clean_up() -> Result<()> {
    let _turn = one_at_a_time();
    let mut served = Served::start()?;
    let (ssh, load) = (served.ssh_like()?, served.load()?);
    goes_on("the load runs", &load)?;
    goes_on("the connections to the node run", &ssh)?;
    let (programs, pinned) = (served.programs()?, served.lab.pins()?);
    assert!(programs.iter().all(Option::is_some), "{programs:?}");

    for _ in 0..2 {
        served.lab.gateway.kill()?;
        assert_eq!(served.lab.pins()?, pinned, "maps and links stay");
        assert!(served.programs()?.iter().all(Option::is_some), "the programs stay attached");
        goes_on("the connections to the node run without flowgate", &ssh)?;
        let new = StreamOptions::new(
            (GATEWAY_FABRIC, SSH).into(),
            1,
            Duration::from_millis(50),
            Exchange::Echo { len: 500, greeting: Greeting::Name },
        );
        let report = stream::start(served.lab.client(), new)?.wait()?;
        assert!(report.failures() == 0 && report.exchanges > 0, "new ones are taken: {report:?}");

        served.lab.gateway.restart()?;
        served.lab.wait_for_backends(&served.lab.addresses(), 8080)?;
        get(served.lab.client(), (CLUSTER_IP, 80))?;
        get(served.lab.client(), (GATEWAY_UPLINK, 30_080))?;
        goes_on("the load runs again", &load)?;
        let links = |pins: &BTreeMap<String, u64>| -> Vec<_> {
            pins.iter().filter(|(path, _)| path.contains("link")).map(|(p, i)| (p.clone(), *i)).collect()
        };
        assert_eq!(links(&served.lab.pins()?), links(&pinned), "the links are the same");
        assert_eq!(links(&pinned).len(), 2, "{pinned:?}");
    }
    let report = ssh.finish()?;
    assert_eq!((report.failures(), report.connects), (0, 3), "no connection to the node broke: {report:?}");
    let report = load.finish()?;
    assert_eq!(report.broken_by("mismatch") + report.broken_by("bad_answer"), 0, "{report:?}");
    Ok(())
}

#[test]
fn sigterm_leaves_the_program_attached_and_detach_leaves_nothing() -> Result<()> {
    let mut served = Served::start()?;
    let ssh = served.ssh_like()?;
    goes_on("the connections to the node run", &ssh)?;
    let (programs, pinned) = (served.programs()?, served.lab.pins()?);
    let socket = served.lab.gateway.socket_path();
    assert!(socket.exists());

    let status = served.lab.gateway.terminate(LIMIT)?;
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", served.lab.gateway.log());
    assert!(!socket.exists(), "the admin socket is gone");
    assert_eq!((served.programs()?, served.lab.pins()?), (programs, pinned));
    goes_on("the connections to the node run without flowgate", &ssh)?;

    let gateway = served.lab.topology.gateway();
    let reserved = || gateway.run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports"));
    assert_eq!(reserved()?.trim(), "49152-65535");
    let config = served.lab.gateway.config_path().display().to_string();
    for expected in ["detached from 2 interfaces", "detached from 0 interfaces"] {
        let ended = flowgate(gateway, &["detach", "--config", &config])?;
        assert!(ended.status.success() && ended.stdout.starts_with(expected), "{ended:?}");
        assert_eq!(served.programs()?, [None, None]);
        assert_eq!(pins(gateway)?, BTreeMap::new());
        let flows = socket.with_file_name("flows");
        assert!(!gateway.run(move || flows.exists()), "the flows are gone");
        assert_eq!(reserved()?.trim(), "");
    }
    goes_on("the connections to the node run after that", &ssh)?;
    let report = ssh.finish()?;
    assert_eq!((report.failures(), report.connects), (0, 3), "{report:?}");
    Ok(())
}

#[test]
fn another_flowgate_on_the_same_socket_or_pins_is_refused_and_the_first_goes_on() -> Result<()> {
    let served = Served::start()?;
    let lab = &served.lab;
    let (programs, pinned) = (served.programs()?, lab.pins()?);
    let config = lab.gateway.config_path();
    let same_socket = flowgate(lab.topology.gateway(), &["run", "--config", &config.display().to_string()])?;
    assert!(same_socket.is_refusal("another flowgate answers here"), "{same_socket:?}");

    let other_socket = lab.gateway.socket_path().with_file_name("other.sock");
    let other_config = config.with_file_name("other.toml");
    let text = fs::read_to_string(&config)?.replace("admin.sock", "other.sock");
    fs::write(&other_config, text)?;
    let same_pins =
        flowgate(lab.topology.gateway(), &["run", "--config", &other_config.display().to_string()])?;
    assert!(same_pins.is_refusal("/sys/fs/bpf/flowgate"), "{same_pins:?}");
    assert!(!other_socket.exists(), "its socket is gone");

    assert_eq!((served.programs()?, lab.pins()?), (programs, pinned));
    get(lab.client(), (CLUSTER_IP, 80))?;
    Ok(())
}

#[test]
fn detach_does_not_take_the_program_from_a_running_flowgate() -> Result<()> {
    let served = Served::start()?;
    let lab = &served.lab;
    let (programs, pinned) = (served.programs()?, lab.pins()?);
    let config = lab.gateway.config_path().display().to_string();
    let ended = flowgate(lab.topology.gateway(), &["detach", "--config", &config])?;
    assert!(ended.is_refusal("/sys/fs/bpf/flowgate"), "{ended:?}");
    assert_eq!((served.programs()?, lab.pins()?), (programs, pinned));
    get(lab.client(), (CLUSTER_IP, 80))?;
    Ok(())
}

#[test]
fn backends_and_addresses_that_change_under_a_running_gateway_are_followed() -> Result<()> {
    let lab = Lab::with_backends(1)?;
    let host = &lab.topology.backends()[0];
    let server = HttpServer::start(&host.namespace, HttpServerOptions::new(&host.name, 8080))?;
    let service =
        ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080).with_node_port(30_080);
    lab.gateway.manifests().apply(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    let web = SocketAddr::from((CLUSTER_IP, 80));
    assert_eq!(get(lab.client(), web)?, "backend-1");

    // The backend's side of the wire, then the gateway's.
    host.namespace.ip("link set eth0 down")?;
    host.namespace.ip("link set eth0 up")?;
    assert_eq!(get(lab.client(), web)?, "backend-1", "after the backend's link came back");
    let answers = || Ok(get(lab.client(), web).is_ok_and(|name| name == "backend-1"));
    lab.topology.gateway().ip("link set fab0 down")?;
    lab.topology.gateway().ip("link set fab0 up")?;
    // Until its routes are back, a gateway says so by ICMP, as any router does, and a connect fails at once.
    eventually("an answer after the gateway's link came back", answers)?;

    // Another address towards the backends: their traffic comes from it. One more towards the clients: a NodePort.
    lab.topology.gateway().ip(&format!("addr del {GATEWAY_FABRIC}/24 dev {FABRIC}"))?;
    lab.topology.gateway().ip(&format!("addr add 10.244.0.7/24 dev {FABRIC}"))?;
    lab.topology.gateway().ip(&format!("addr add 192.0.2.7/24 dev {UPLINK}"))?;
    eventually("the new addresses are known", || {
        let (services, tables) = (lab.show("services")?.to_string(), lab.show("tables")?);
        let sources = tables["snat_addresses"].to_string();
        Ok(services.contains("192.0.2.7:30080")
            && sources.contains("10.244.0.7")
            && !sources.contains("10.244.0.1\""))
    })?;
    assert_eq!(get(lab.client(), web)?, "backend-1", "from the new address");
    assert_eq!(get(lab.client(), ([192, 0, 2, 7], 30_080))?, "backend-1", "at the new address");
    let seen = server.clients().snapshot();
    assert_eq!(seen.get(&[10, 244, 0, 7].into()), Some(&2), "{seen:?}");
    Ok(())
}
