//! IPv6 Services through the real binary on real rings, beside the IPv4 ones.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer, UdpEchoServer};
use flowgate_benches::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK, ipv6_of};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::stream::{self, Exchange, Greeting, StreamOptions};
use flowgate_benches::loadgen::udp::{self, UdpOptions};

use crate::support::{self, Lab, eventually, get_from_here, one_at_a_time, rows, snmp, snmp6, text};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLUSTER_IP_V6: Ipv6Addr = ipv6_of(CLUSTER_IP);
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// Waits until the Services have so many backends of both families.
fn wait_for_backends(lab: &Lab, count: usize) -> Result<()> {
    eventually("the Services have their backends", || Ok(lab.active_backends()?.len() == count))
}

#[test]
fn http_reaches_every_backend_by_cluster_ip_and_node_port_of_both_families() -> Result<()> {
    const REQUESTS: usize = 60;
    let lab = Lab::with_backends(3)?;
    let servers = lab.http_servers(8080)?;
    let service = ServiceSpec::single("web", CLUSTER_IP, L4Protocol::Tcp, 80, 8080);
    lab.gateway.manifests().apply(&service.with_node_port(30_080).dual_stack(), &lab.addresses())?;
    wait_for_backends(&lab, 6)?;

    for target in [
        SocketAddr::from((CLUSTER_IP_V6, 80)),
        SocketAddr::from((CLUSTER_IP, 80)),
        SocketAddr::from((ipv6_of(GATEWAY_UPLINK), 30_080)),
        SocketAddr::from((GATEWAY_UPLINK, 30_080)),
    ] {
        let names = lab
            .client()
            .enter(|| (0..REQUESTS).map(|_| get_from_here(target)).collect::<Result<Vec<_>>>())??;
        let mut spread: BTreeMap<_, usize> = BTreeMap::new();
        names.into_iter().for_each(|name| *spread.entry(name).or_default() += 1);
        assert_eq!(spread.len(), 3, "{target} reaches every backend: {spread:?}");
    }
    for (name, server) in &servers {
        let seen: Vec<_> = server.clients().snapshot().into_keys().collect();
        assert_eq!(seen, [IpAddr::V4(GATEWAY_FABRIC), ipv6_of(GATEWAY_FABRIC).into()], "what {name} sees");
    }
    let flows = lab.show("flows")?;
    let of_v6 =
        rows(&flows["flows"]).filter(|flow| text(&flow["client"]).starts_with("[2001:db8:192::2:10]:"));
    let of_v6: Vec<_> = of_v6.collect();
    assert_eq!(of_v6.len(), 2 * REQUESTS, "{flows}");
    for flow in of_v6 {
        assert!(text(&flow["snat"]).starts_with("[2001:db8:10:244::1]:"), "{flow}");
        assert!(text(&flow["backend"]).starts_with("[2001:db8:10:244::1"), "{flow}");
        assert_eq!((&flow["protocol"], &flow["state"]), (&"TCP".into(), &"time-wait".into()), "{flow}");
    }
    assert_eq!(lab.drops()?, BTreeMap::new());
    Ok(())
}

#[test]
fn datagrams_and_segments_up_to_the_mtu_arrive_intact_with_right_checksums() -> Result<()> {
    let _turn = one_at_a_time();
    let lab = Lab::with_backends(2)?;
    let manifests = lab.gateway.manifests();
    let (mut udp_servers, mut tcp_servers) = (Vec::new(), Vec::new());
    for host in lab.topology.backends() {
        let (udp, tcp) = ((7001, EchoAnswer::Echo), (9090, EchoAnswer::Name));
        udp_servers.push(UdpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, udp.0, udp.1))?);
        tcp_servers.push(TcpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, tcp.0, tcp.1))?);
    }
    let udp_service = ServiceSpec::single("echo", CLUSTER_IP, L4Protocol::Udp, 7000, 7001).dual_stack();
    let tcp_service = ServiceSpec::single("stream", [10, 96, 0, 11].into(), L4Protocol::Tcp, 90, 9090);
    manifests.apply(&udp_service, &lab.addresses())?;
    manifests.apply(&tcp_service.dual_stack(), &lab.addresses())?;
    wait_for_backends(&lab, 8)?;

    // The queue of packets for an unresolved neighbour is bounded, so each backend is resolved first.
    let target = SocketAddr::from((CLUSTER_IP_V6, 7000));
    let known = || udp_servers.iter().all(|server| server.clients().total() > 0);
    lab.client().enter(|| {
        (30_000..30_100)
            .take_while(|_| !known())
            .try_for_each(|port| support::ask_by_udp(port, target).map(drop))
    })??;
    assert!(known(), "the flows are spread");

    // 1452 bytes fill a packet of 1500; odd lengths end in half a word of the checksum.
    for payload_len in [24, 25, 1451, 1452] {
        let options = UdpOptions {
            payload_len,
            flows: 8,
            grace: support::LIMIT,
            ..UdpOptions::new(target, 400, Duration::from_millis(500))
        };
        let report =
            lab.client().enter(|| udp::run(&options, ProgressOutput::Nothing, &Stop::default()))??;
        let bad = (report.lost, report.mismatches, report.duplicates, report.send_failures);
        assert_eq!((report.sent, bad), (200, (0, 0, 0, 0)), "{payload_len} bytes: {report:?}");
    }

    let exchange = Exchange::Echo { len: 2 << 20, greeting: Greeting::Name };
    let target = SocketAddr::from((ipv6_of([10, 96, 0, 11].into()), 90));
    let options = StreamOptions::new(target, 6, Duration::from_secs(1), exchange);
    let report = lab.client().enter(|| stream::run(options, ProgressOutput::Nothing, &Stop::default()))??;
    assert_eq!(report.failures(), 0, "{report:?}");
    assert!(report.bytes_verified >= 6 * (2 << 20), "{report:?}");
    assert!(lab.event("checksums_completed")? > 0, "local stacks leave checksums to the device");
    check_checksums(&lab)?;
    assert_eq!(lab.drops()?, BTreeMap::new());
    Ok(())
}

/// No kernel behind the gateway has seen a wrong checksum.
fn check_checksums(lab: &Lab) -> Result<()> {
    for host in lab.topology.backends().iter().chain(lab.topology.clients()) {
        assert!(snmp6(&host.namespace, "Ip6InDelivers")? > 0, "{} got packets", host.name);
        assert_eq!(snmp6(&host.namespace, "Udp6InCsumErrors")?, 0, "UDP at {}", host.name);
        assert_eq!(snmp(&host.namespace, "Tcp", "InCsumErrors")?, 0, "TCP at {}", host.name);
    }
    Ok(())
}

#[test]
fn with_local_traffic_policy_backends_see_the_client_and_direct_connections_go_on() -> Result<()> {
    let lab = Lab::with_backends(2)?;
    let servers = lab.http_servers(8080)?;
    lab.gateway.manifests().write("web.yaml", LOCAL_SERVICE)?;
    lab.topology.client().route("203.0.113.0/24", GATEWAY_UPLINK)?;
    wait_for_backends(&lab, 2)?;

    let balancer = SocketAddr::from((ipv6_of(BALANCER), 80));
    let names = |target: SocketAddr, count: usize| -> Result<Vec<String>> {
        lab.client().enter(|| (0..count).map(|_| get_from_here(target)).collect())?
    };
    let through = names(balancer, 30)?;
    for (name, server) in &servers {
        let count = through.iter().filter(|answer| *answer == name).count();
        assert!(count > 0, "{name} gets its share");
        let seen = BTreeMap::from([(lab.topology.client().address_v6.into(), u64::try_from(count)?)]);
        assert_eq!(server.clients().snapshot(), seen, "{name} sees the client itself");
    }
    for host in lab.topology.backends() {
        let direct = SocketAddr::from((host.address_v6, 8080));
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
  clusterIP: \"2001:db8:10:96::10\"
  clusterIPs: [\"2001:db8:10:96::10\"]
  ipFamilies: [IPv6]
  externalTrafficPolicy: Local
  selector: {app: web}
  ports:
  - {name: main, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}
status:
  loadBalancer: {ingress: [{ip: \"2001:db8:203::113:10\"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {kubernetes.io/service-name: web}
addressType: IPv6
ports:
- {name: main, protocol: TCP, port: 8080}
endpoints:
- addresses: [\"2001:db8:10:244::11\"]
- addresses: [\"2001:db8:10:244::12\"]
";

#[test]
fn p501_a_service_without_endpoints_refuses_at_once_and_says_so() -> Result<()> {
    let lab = Lab::with_backends(0)?;
    let service = ServiceSpec::single("empty-udp", CLUSTER_IP, L4Protocol::Udp, 7000, 7001);
    support::check_refusals(&lab, &service.dual_stack(), CLUSTER_IP_V6.into())
}
