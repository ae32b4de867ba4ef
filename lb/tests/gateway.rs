//! Connections to Services through the real binary on real rings: which backend replies, with which bytes, and what is
//! counted.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use flowgate_benches::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions};
use flowgate_benches::loadgen::udp::{self, UdpOptions};

use crate::support::{self, Lab, eventually, get, get_from_here, number, one_at_a_time, rows, snmp, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];

#[test]
fn http_reaches_every_backend_by_cluster_ip_and_node_port_and_every_view_agrees() -> Result<()> {
    const REQUESTS: usize = 60;
    let lab = Lab::with_backends(3)?;
    let servers = lab.http_servers(8080)?;
    let service =
        ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080).with_node_port(30_080);
    lab.gateway.manifests().apply(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;

    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    for target in [SocketAddr::from((CLUSTER_IP, 80)), SocketAddr::from((GATEWAY_UPLINK, 30_080))] {
        let names = lab
            .client()
            .enter(|| (0..REQUESTS).map(|_| get_from_here(target)).collect::<Result<Vec<_>>>())??;
        let mut spread: BTreeMap<_, usize> = BTreeMap::new();
        names.into_iter().for_each(|name| *spread.entry(name).or_default() += 1);
        assert_eq!(spread.len(), 3, "{target} reaches every backend: {spread:?}");
        spread.into_iter().for_each(|(name, count)| *answered.entry(name).or_default() += count);
    }
    for (name, server) in &servers {
        let seen = BTreeMap::from([(GATEWAY_FABRIC.into(), server.requests())]);
        assert_eq!(server.clients().snapshot(), seen, "{name} sees the gateway's address only");
        assert_eq!(usize::try_from(server.requests())?, answered[name]);
    }
    check_views(&lab, REQUESTS * 2, &answered)
}

/// Checks the admin views after `total` connections; `answered` has their number by backend.
fn check_views(lab: &Lab, total: usize, answered: &BTreeMap<String, usize>) -> Result<()> {
    // The last acknowledgement may still be under way, and counts appear a burst later.
    eventually("no packet moves any more", || {
        let before = lab.event("rx_packets")?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(before == lab.event("rx_packets")?)
    })?;
    check_services(lab, total)?;
    check_flows(lab, total, answered)?;
    check_neighbours_and_tables(lab, total)
}

fn check_services(lab: &Lab, total: usize) -> Result<()> {
    let services = lab.show("services")?;
    assert_eq!(rows(&services).count(), 1, "{services}");
    assert_eq!(
        (&services[0]["service"], &services[0]["protocol"]),
        (&"default/web:main".into(), &"TCP".into())
    );
    assert_eq!((number(&services[0]["backends"]), number(&services[0]["flows"])), (3, u64::try_from(total)?));
    let mut frontends: Vec<_> = rows(&services[0]["frontends"])
        .map(|frontend| (text(&frontend["kind"]), text(&frontend["address"]), text(&frontend["source_nat"])))
        .collect();
    frontends.sort_unstable();
    let wanted = [
        ("ClusterIP", "10.96.0.10:80", "always"),
        ("NodePort", "10.244.0.1:30080", "always"),
        ("NodePort", "192.0.2.1:30080", "always"),
    ];
    assert_eq!(frontends, wanted);
    Ok(())
}

/// Backends, flows and workers count the same packets.
fn check_flows(lab: &Lab, total: usize, answered: &BTreeMap<String, usize>) -> Result<()> {
    let backends = lab.show("backends")?;
    for host in lab.topology.backends() {
        let address = format!("{}:8080", host.address);
        let row = rows(&backends).find(|row| row["address"] == address.as_str());
        let row = row.unwrap_or_else(|| panic!("{address} is not in {backends}"));
        assert_eq!(usize::try_from(number(&row["flows"]))?, answered[&host.name]);
        assert_eq!(row["state"], "active");
    }

    let flows = lab.show("flows")?;
    assert_eq!((number(&flows["total"]), rows(&flows["flows"]).count()), (u64::try_from(total)?, total));
    for flow in rows(&flows["flows"]) {
        assert!(text(&flow["client"]).starts_with("192.0.2.10:"), "{flow}");
        assert!(["10.96.0.10:80", "192.0.2.1:30080"].contains(&text(&flow["vip"])), "{flow}");
        assert!(text(&flow["snat"]).starts_with("10.244.0.1:"), "{flow}");
        assert!(text(&flow["backend"]).starts_with("10.244.0.1"), "{flow}");
        assert_eq!((&flow["protocol"], &flow["state"]), (&"TCP".into(), &"time-wait".into()), "{flow}");
    }
    let workers = lab.show("workers")?;
    let sum =
        |rows_of: &serde_json::Value, key: &str| rows(rows_of).map(|row| number(&row[key])).sum::<u64>();
    let packets = sum(&flows["flows"], "packets") + sum(&flows["flows"], "reply_packets");
    assert_eq!(packets, sum(&backends, "packets"));
    let (received, sent) = (lab.event("rx_packets")?, lab.event("tx_packets")?);
    assert_eq!(received, sent, "what came in went out: {workers}");
    assert_eq!(packets, sent, "each packet sent counts once in its flow, held or not: {workers}");
    assert_eq!(lab.event("flows_opened")?, u64::try_from(total)?);
    assert_eq!(lab.drops()?, BTreeMap::new());

    assert!(rows(&workers).all(|worker| worker["state"] == "running"), "{workers}");
    Ok(())
}

fn check_neighbours_and_tables(lab: &Lab, total: usize) -> Result<()> {
    let neighbours = lab.show("neighbours")?;
    let resolved = rows(&neighbours).filter(|row| row["mac"].is_string());
    let resolved: Vec<_> = resolved.map(|row| text(&row["address"])).collect();
    for address in ["192.0.2.10", "10.244.0.11", "10.244.0.12", "10.244.0.13"] {
        assert!(resolved.contains(&address), "{address} is not resolved in {neighbours}");
    }
    let tables = lab.show("tables")?;
    assert_eq!(tables["source"], "synced");
    assert_eq!(
        (number(&tables["services"]), number(&tables["frontends"]), number(&tables["backends"])),
        (1, 3, 3)
    );
    assert_eq!(number(&tables["flow_entries_used"]), 2 * u64::try_from(total)?);
    assert_eq!(rows(&tables["report"]).count(), 0, "{tables}");
    assert!(rows(&tables["snat_addresses"]).any(|address| address == "10.244.0.1"), "{tables}");
    Ok(())
}

#[test]
fn datagrams_and_segments_up_to_the_mtu_arrive_intact_with_right_checksums() -> Result<()> {
    let _turn = one_at_a_time();
    let lab = Lab::with_backends(2)?;
    let udp_service = ServiceSpec::single("echo", CLUSTER_IP.into(), L4Protocol::Udp, 7000, 7001);
    let tcp_service = ServiceSpec::single("stream", [10, 96, 0, 11].into(), L4Protocol::Tcp, 90, 9090);
    let (mut udp_servers, mut tcp_servers) = (Vec::new(), Vec::new());
    for host in lab.topology.backends() {
        let (udp, tcp) = ((7001, EchoAnswer::Echo), (9090, EchoAnswer::Name));
        udp_servers.push(UdpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, udp.0, udp.1))?);
        tcp_servers.push(TcpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, tcp.0, tcp.1))?);
    }
    lab.gateway.manifests().apply(&udp_service, &lab.addresses())?;
    lab.gateway.manifests().apply(&tcp_service, &lab.addresses())?;
    eventually("both Services have their backends", || Ok(lab.active_backends()?.len() == 4))?;

    // The queue of packets for an unresolved neighbour is bounded, so each backend is resolved first.
    let known = || udp_servers.iter().all(|server| server.clients().total() > 0);
    lab.client().enter(|| {
        (30_000..30_100)
            .take_while(|_| !known())
            .try_for_each(|port| support::ask_by_udp(port, (CLUSTER_IP, 7000).into()).map(drop))
    })??;
    assert!(known(), "the flows are spread");

    // 1472 bytes fill a packet of 1500; odd lengths end in half a word of the checksum.
    for payload_len in [24, 25, 1471, 1472] {
        let options = UdpOptions {
            payload_len,
            flows: 8,
            grace: support::LIMIT,
            ..UdpOptions::new((CLUSTER_IP, 7000).into(), 400, Duration::from_millis(500))
        };
        let report =
            lab.client().enter(|| udp::run(&options, ProgressOutput::Nothing, &Stop::default()))??;
        let bad = (report.lost, report.mismatches, report.duplicates, report.send_failures);
        assert_eq!((report.sent, bad), (200, (0, 0, 0, 0)), "{payload_len} bytes: {report:?}");
    }

    let exchange = Exchange::Echo { len: 2 << 20, greeting: Greeting::Name };
    let target = SocketAddr::from(([10, 96, 0, 11], 90));
    let options = StreamOptions::new(target, 6, Duration::from_secs(1), exchange);
    let report = lab.client().enter(|| stream::run(options, ProgressOutput::Nothing, &Stop::default()))??;
    assert_eq!(report.failures(), 0, "{report:?}");
    assert!(report.bytes_verified >= 6 * (2 << 20), "{report:?}");

    let flows = lab.show("flows")?;
    let streams = rows(&flows["flows"]).filter(|flow| flow["protocol"] == "TCP");
    let mean = streams.map(|flow| number(&flow["bytes"]) / number(&flow["packets"]).max(1)).max();
    assert!(mean.is_some_and(|mean| mean > 1000), "segments fill the MTU: {mean:?} bytes a packet");
    assert!(lab.event("checksums_completed")? > 0, "local stacks leave checksums to the device");
    check_checksums(&lab)?;
    assert_eq!(lab.drops()?, BTreeMap::new());
    Ok(())
}

/// No kernel behind the gateway has seen a wrong checksum.
fn check_checksums(lab: &Lab) -> Result<()> {
    let hosts = lab.topology.backends().iter().chain(lab.topology.clients());
    for host in hosts {
        assert!(snmp(&host.namespace, "Ip", "InDelivers")? > 0, "{} got packets", host.name);
        for protocol in ["Tcp", "Udp"] {
            assert_eq!(snmp(&host.namespace, protocol, "InCsumErrors")?, 0, "{protocol} at {}", host.name);
        }
    }
    Ok(())
}

#[test]
fn with_local_traffic_policy_backends_see_the_client_and_direct_connections_go_on() -> Result<()> {
    let lab = Lab::with_backends(2)?;
    let servers = lab.http_servers(8080)?;
    lab.gateway.manifests().write("web.yaml", LOCAL_SERVICE)?;
    lab.client().ip(&format!("route add 203.0.113.0/24 via {GATEWAY_UPLINK}"))?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;

    let balancer = SocketAddr::from(([203, 0, 113, 10], 80));
    let names = |target: SocketAddr, count: usize| -> Result<Vec<String>> {
        lab.client().enter(|| (0..count).map(|_| get_from_here(target)).collect())?
    };
    let through = names(balancer, 30)?;
    for (name, server) in &servers {
        let count = through.iter().filter(|answer| *answer == name).count();
        assert!(count > 0, "{name} gets its share");
        let client = lab.topology.client().address;
        let seen = BTreeMap::from([(client.into(), u64::try_from(count)?)]);
        assert_eq!(server.clients().snapshot(), seen, "{name} sees the client itself");
    }
    // To the ClusterIP the policy does not apply: the source is the gateway's.
    get(lab.client(), (CLUSTER_IP, 80))?;
    let at_cluster_ip =
        servers.values().filter(|s| s.clients().snapshot().contains_key(&GATEWAY_FABRIC.into()));
    assert_eq!(at_cluster_ip.count(), 1);

    for host in lab.topology.backends() {
        let direct = SocketAddr::from((host.address, 8080));
        assert_eq!(names(direct, 3)?, vec![host.name.clone(); 3], "directly");
    }
    assert!(lab.event("routed")? > 0, "answers to direct connections are routed untranslated");
    assert_eq!(names(balancer, 5)?.len(), 5, "and the Service still answers");
    assert_eq!(lab.drops()?, BTreeMap::new());
    check_checksums(&lab)
}

const LOCAL_SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  externalTrafficPolicy: Local
  selector: {app: web}
  ports:
  - {name: main, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}
status:
  loadBalancer: {ingress: [{ip: 203.0.113.10}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports:
- {name: main, protocol: TCP, port: 8080}
endpoints:
- addresses: [10.244.0.11]
- addresses: [10.244.0.12]
";

#[test]
fn p501_a_service_without_endpoints_refuses_at_once_and_says_so() -> Result<()> {
    let lab = Lab::with_backends(0)?;
    let service = ServiceSpec::single("empty-udp", CLUSTER_IP.into(), L4Protocol::Udp, 7000, 7001);
    support::check_refusals(&lab, &service, CLUSTER_IP.into())
}
