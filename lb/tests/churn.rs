//! Backends come and go while clients have connections: which must not break, and which may get another backend.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use flowgate_benches::lab::servers::http::{HttpServer, HttpServerOptions};
use flowgate_benches::lab::topology::Host;
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions, StreamReport, StreamRun};

use serde_json::Value;

use crate::support::{Lab, ask_by_udp, eventually, get, one_at_a_time, rows, snmp, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];

#[test]
fn a_thousand_connections_survive_the_coming_and_going_of_backends() -> Result<()> {
    const CONNECTIONS: u64 = 1000;
    let _turn = one_at_a_time();
    let mut lab = Lab::with_backends(3)?;
    let mut servers = Vec::new();
    for host in lab.topology.backends() {
        servers.push(named_echo(host)?);
    }
    let service = ServiceSpec::single("stream", CLUSTER_IP.into(), L4Protocol::Tcp, 90, 9090);
    let first = lab.addresses();
    lab.gateway.manifests().apply(&service, &first)?;
    lab.wait_for_backends(&first, 9090)?;

    let load = transfers(&lab, CONNECTIONS)?;
    eventually("all connections transfer", || {
        let report = load.snapshot();
        Ok(open(&report) == CONNECTIONS && report.exchanges > CONNECTIONS)
    })?;

    let added = lab.topology.add_backend()?;
    servers.push(named_echo(&added)?);
    lab.gateway.manifests().set_endpoints(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 9090)?;
    exchange_on_all(&load, CONNECTIONS)?;
    let newcomers = transfers(&lab, 100)?;
    eventually("the new backend gets new connections", || {
        Ok(newcomers.snapshot().by_backend.contains_key(&added.name))
    })?;

    // What is removed still lives: it ends its connections when it likes.
    lab.gateway.manifests().set_endpoints(&service, &[first[0], first[2], added.address])?;
    lab.wait_for_backends(&[first[0], first[2], added.address], 9090)?;
    exchange_on_all(&load, CONNECTIONS)?;
    let report = transfers(&lab, 50).and_then(|late| {
        eventually("late connections transfer", || Ok(open(&late.snapshot()) == 50))?;
        Ok(late.finish()?)
    })?;
    assert_eq!((report.failures(), report.by_backend.get("backend-2")), (0, None), "{report:?}");
    let report = newcomers.finish()?;
    assert_eq!(report.failures(), 0, "{report:?}");

    // Now it dies: its own connections break, no other does.
    let lost = load.snapshot().by_backend["backend-2"].open;
    assert!(lost > 0, "it had its share");
    drop(servers.remove(1));
    eventually("its connections are broken", || {
        let report = load.snapshot();
        Ok(report.by_backend["backend-2"].open == 0 && open(&report) == CONNECTIONS)
    })?;
    let report = load.finish()?;
    let broken: BTreeMap<_, _> =
        report.by_backend.iter().map(|(name, tally)| (name.as_str(), tally.broken)).collect();
    assert!(broken.iter().all(|(name, count)| *count == 0 || *name == "backend-2"), "{broken:?}");
    assert!(report.connect_failures.is_empty() && report.broken_by("mismatch") == 0, "{report:?}");
    assert_eq!(report.connects, CONNECTIONS + lost, "nobody else had to connect again");
    Ok(())
}

/// `flowgate show backends`: the state of each address, and whether it has flows.
fn states(lab: &Lab) -> Result<BTreeMap<String, (String, bool)>> {
    let backends = lab.show("backends")?;
    let state = |row: &Value| (text(&row["state"]).to_owned(), row["flows"] != 0);
    Ok(rows(&backends).map(|row| (text(&row["address"]).to_owned(), state(row))).collect())
}

#[test]
fn show_calls_a_backend_active_only_while_it_takes_new_flows() -> Result<()> {
    const CONNECTIONS: u64 = 20;
    let _turn = one_at_a_time();
    let lab = Lab::with_backends(2)?;
    let mut servers = Vec::new();
    for host in lab.topology.backends() {
        servers.push(named_echo(host)?);
    }
    let service = ServiceSpec::single("stream", CLUSTER_IP.into(), L4Protocol::Tcp, 90, 9090);
    let addresses = lab.addresses();
    lab.gateway.manifests().apply(&service, &addresses)?;
    lab.wait_for_backends(&addresses, 9090)?;
    let load = transfers(&lab, CONNECTIONS)?;
    eventually("both have connections", || {
        let report = load.snapshot();
        Ok(open(&report) == CONNECTIONS && report.by_backend.len() == 2)
    })?;
    let shown = |wanted: [&str; 2]| {
        let named = addresses.iter().map(|address| format!("{address}:9090"));
        let wanted: BTreeMap<_, _> = named.zip(wanted.map(|state| (state.to_owned(), true))).collect();
        eventually(&format!("the backends are shown as {wanted:?}"), || Ok(states(&lab)? == wanted))
    };
    shown(["active", "active"])?;

    let endpoint = |address: Ipv4Addr, conditions: &str| {
        format!("- {{addresses: [{address}], conditions: {{{conditions}}}}}\n")
    };
    let ready = endpoint(addresses[0], "ready: true");
    let terminating = endpoint(addresses[1], "ready: false, serving: true, terminating: true");
    let write = |endpoints: &str| {
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: stream-lab-ipv4\n  \
                     namespace: default\n  labels:\n    kubernetes.io/service-name: stream\naddressType: IPv4\nports:\n- \
                     {name: main, protocol: TCP, port: 9090}\nendpoints:\n";
        lab.gateway.manifests().write("stream-endpoints.yaml", &format!("{slice}{endpoints}"))
    };
    write(&format!("{ready}{terminating}"))?;
    shown(["active", "draining"])?;
    exchange_on_all(&load, CONNECTIONS)?;
    let late = transfers(&lab, 20)?;
    eventually("late connections are open", || Ok(open(&late.snapshot()) == 20))?;
    assert_eq!(late.finish()?.by_backend.keys().collect::<Vec<_>>(), ["backend-1"]);

    // The last endpoints of a Service take new flows even while they terminate.
    write(&terminating)?;
    shown(["removed", "active"])?;
    exchange_on_all(&load, CONNECTIONS)?;
    assert_eq!(load.finish()?.failures(), 0);
    Ok(())
}

/// Connections that echo 2000 bytes five times a second, each byte checked.
fn transfers(lab: &Lab, connections: u64) -> Result<StreamRun> {
    let exchange = Exchange::Echo { len: 2000, greeting: Greeting::Name };
    let (target, connections) = ((CLUSTER_IP, 90).into(), usize::try_from(connections)?);
    let mut options = StreamOptions::new(target, connections, Duration::from_secs(600), exchange);
    options.pause = Duration::from_millis(200);
    Ok(stream::start(lab.client(), options)?)
}

fn named_echo(host: &Host) -> Result<TcpEchoServer> {
    let options = EchoOptions::new(&host.name, 9090, EchoAnswer::Name);
    Ok(TcpEchoServer::start(&host.namespace, options)?)
}

fn open(report: &StreamReport) -> u64 {
    report.by_backend.values().map(|tally| tally.open).sum()
}

/// Waits for some exchanges on every connection, on average.
fn exchange_on_all(load: &StreamRun, connections: u64) -> Result<()> {
    let before = load.snapshot().exchanges;
    eventually("all connections go on", || Ok(load.snapshot().exchanges > before + 3 * connections))?;
    let report = load.snapshot();
    assert_eq!((report.failures(), open(&report)), (0, connections), "{report:?}");
    Ok(())
}

/// The choice of a backend follows from the client's address and port: the same clients ask before and after.
#[test]
fn at_most_one_percent_more_new_flows_move_than_must() -> Result<()> {
    const CLIENTS: u16 = 2000;
    let _turn = one_at_a_time();
    let mut lab = Lab::start(3, "[flows]\nudp_answered_s = 1\nudp_unanswered_s = 1\n")?;
    let added = lab.topology.add_backend()?;
    let mut servers = Vec::new();
    for host in lab.topology.backends() {
        let options = EchoOptions::new(&host.name, 7001, EchoAnswer::Name);
        servers.push(UdpEchoServer::start(&host.namespace, options)?);
    }
    let service = ServiceSpec::single("names", CLUSTER_IP.into(), L4Protocol::Udp, 7000, 7001);
    let choices = |backends: &[Ipv4Addr]| -> Result<Vec<String>> {
        // Old flows are over after a second: whoever asks again is a new one.
        thread::sleep(Duration::from_millis(1200));
        lab.gateway.manifests().apply(&service, backends)?;
        lab.wait_for_backends(backends, 7001)?;
        let target = SocketAddr::from((CLUSTER_IP, 7000));
        lab.client().enter(|| (0..CLIENTS).map(|client| ask_by_udp(20_000 + client, target)).collect())?
    };
    let all = lab.addresses();
    let (three, four) = (choices(&all[..3])?, choices(&all)?);
    let two_of_four = choices(&[all[0], all[2], all[3]])?;

    let pairs = || three.iter().zip(&four);
    let to_added = pairs().filter(|(_, after)| **after == added.name).count();
    let moved_besides = pairs().filter(|(before, after)| before != after && **after != added.name).count();
    assert!((400..=600).contains(&to_added), "a quarter of 2000 goes to the new backend, not {to_added}");
    assert!(moved_besides <= 20, "{moved_besides} of 2000 moved between backends that both stayed");

    let pairs = || four.iter().zip(&two_of_four);
    assert!(two_of_four.iter().all(|name| name != "backend-2"));
    let moved_besides = pairs().filter(|(before, after)| before != after && *before != "backend-2").count();
    assert!(moved_besides <= 20, "{moved_besides} of 2000 moved though their backend stayed");
    Ok(())
}

#[test]
fn the_first_connection_to_a_new_backend_waits_for_no_retransmission() -> Result<()> {
    let mut lab = Lab::with_backends(1)?;
    let service = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080);
    let mut servers = BTreeMap::new();
    // Nobody has spoken to any of them when the gateway hears of it.
    for _ in 0..5 {
        let host = lab.topology.add_backend()?;
        let server = HttpServer::start(&host.namespace, HttpServerOptions::new(&host.name, 8080))?;
        servers.insert(host.name.clone(), server);
        lab.gateway.manifests().apply(&service, &[host.address])?;
        lab.wait_for_backends(&[host.address], 8080)?;
        assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, host.name);
    }
    assert_eq!(snmp(lab.client(), "Tcp", "RetransSegs")?, 0);
    assert_eq!(lab.drops()?, BTreeMap::new());

    // A neighbour that the kernel has forgotten: the packet is held until it is found again. Who else looks for it may be
    // faster than the packet: then once more.
    let held = lab.event("held")?;
    let host = lab.topology.backends().last().cloned().expect("five were added");
    let is_known = || -> Result<bool> {
        let neighbours = lab.show("neighbours")?;
        let mut rows = rows(&neighbours);
        Ok(rows.any(|row| row["address"] == host.address.to_string().as_str() && row["mac"].is_string()))
    };
    eventually("the first packet to a forgotten neighbour was held", || {
        // The kernel is asked for an address once a second at most.
        thread::sleep(Duration::from_millis(1100));
        lab.topology.gateway().ip(&format!("neigh del {} dev fab0", host.address))?;
        for _ in 0..20 {
            if !is_known()? {
                break;
            }
        }
        assert_eq!(get(lab.client(), (CLUSTER_IP, 80))?, host.name);
        Ok(lab.event("held")? > held)
    })?;
    assert_eq!(snmp(lab.client(), "Tcp", "RetransSegs")?, 0);
    Ok(())
}
