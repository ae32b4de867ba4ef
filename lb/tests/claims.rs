//! What Services claim of the gateway itself: its own ports stay its own, and what leads back to it makes no loop.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::http::{HttpServer, HttpServerOptions};
use flowgate_benches::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK};

use crate::support::{Lab, eventually, get, http_answer, rows, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const OTHER_IP: [u8; 4] = [10, 96, 0, 11];

#[test]
fn ssh_bgp_the_kubelet_and_health_are_reached_though_a_service_claims_their_ports() -> Result<()> {
    let lab = Lab::start(1, "[services]\nexternal_ips = \"all\"\n")?;
    let _backends = lab.http_servers(8080)?;
    let node = lab.topology.gateway();
    let own = [22, 179, 10_250];
    let start = |port: &u16| HttpServer::start(node, HttpServerOptions::new("node", *port));
    let _node = own.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let claimed = [22, 179, 10_250, 10_256, 8443];
    lab.gateway.manifests().write("thief.yaml", &thief(&claimed))?;
    eventually("the Service has its backend by each port", || {
        Ok(lab.active_backends()?.len() == claimed.len())
    })?;

    // A port that nobody protects is the Service's, so its claims do work.
    assert_eq!(get(lab.client(), (GATEWAY_UPLINK, 8443))?, "backend-1");
    for port in own {
        assert_eq!(get(lab.client(), (GATEWAY_UPLINK, port))?, "node", "port {port}");
        assert_eq!(get(lab.client(), (CLUSTER_IP, port))?, "backend-1", "port {port} of the cluster IP");
    }
    let health = SocketAddr::from((GATEWAY_UPLINK, 10_256));
    let answer = lab.client().enter(|| http_answer(health, "/healthz"))??;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let tables = lab.show("tables")?;
    for port in [22, 179, 10_250, 10_256] {
        let sentence = format!("{GATEWAY_UPLINK}:{port} TCP is not served: this machine keeps that port");
        assert!(rows(&tables["report"]).any(|line| text(line).contains(&sentence)), "{sentence}: {tables}");
    }
    Ok(())
}

/// A Service that claims ports of the gateway's own address, as external address and in its status.
fn thief(ports: &[u16]) -> String {
    let mut manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: thief, namespace: default}}\nspec:\n  type: LoadBalancer\n  \
         clusterIP: 10.96.0.10\n  externalIPs: [{GATEWAY_UPLINK}]\n  ports:\n"
    );
    let mut slice_ports = String::new();
    for port in ports {
        writeln!(manifest, "  - {{name: p{port}, port: {port}}}").expect("a string takes all");
        writeln!(slice_ports, "- {{name: p{port}, port: 8080}}").expect("a string takes all");
    }
    manifest
        + &format!(
            "status: {{loadBalancer: {{ingress: [{{ip: {GATEWAY_UPLINK}}}]}}}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: thief-1, namespace: default, labels: {{kubernetes.io/service-name: thief}}}}\n\
             addressType: IPv4\nports:\n{slice_ports}endpoints:\n- {{addresses: [10.244.0.11]}}\n"
        )
}

#[test]
fn datagrams_to_two_services_that_point_at_each_other_are_not_multiplied() -> Result<()> {
    const SENT: u16 = 10;
    let lab = Lab::with_backends(1)?;
    // A router behind the gateway sends back what is for cluster IPs.
    let router = &lab.topology.backends()[0];
    router.namespace.sysctl("net/ipv4/ip_forward", "1")?;
    lab.topology.gateway().ip(&format!("route add 10.96.0.0/16 via {}", router.address))?;
    for (name, cluster_ip, other) in [("ping", CLUSTER_IP, OTHER_IP), ("pong", OTHER_IP, CLUSTER_IP)] {
        let service = ServiceSpec::single(name, cluster_ip.into(), L4Protocol::Udp, 7000, 7000);
        lab.gateway.manifests().apply(&service, &[other.into()])?;
    }
    eventually("both Services are there, with what is left out of them", || {
        let tables = lab.show("tables")?;
        let says = |sentence: &str| rows(&tables["report"]).any(|line| text(line).contains(sentence));
        Ok(says("endpoint 10.96.0.11:7000 UDP has the cluster IP of Service default/pong and is left out")
            && says(
                "endpoint 10.96.0.10:7000 UDP has the cluster IP of Service default/ping and is left out",
            ))
    })?;
    lab.client().enter(|| -> Result<()> {
        for port in 0..SENT {
            // A socket of its own for each: the refusal of one would end the next.
            let socket = UdpSocket::bind(("0.0.0.0", 20_000 + port))?;
            socket.send_to(b"around", SocketAddr::from((CLUSTER_IP, 7000)))?;
        }
        Ok(())
    })??;
    eventually("all have come", || Ok(lab.event("rx_packets")? >= u64::from(SENT)))?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        (lab.event("rx_packets")?, lab.event("flows_opened")?),
        (u64::from(SENT), 0),
        "none has come twice: {:?}",
        lab.drops()?
    );
    Ok(())
}

#[test]
fn a_new_flow_from_a_source_of_the_gateways_own_is_dropped_and_counted() -> Result<()> {
    let lab = Lab::start(1, "[snat]\nports = \"40000-40999\"\n")?;
    let service = ServiceSpec::single("echo", CLUSTER_IP.into(), L4Protocol::Udp, 7000, 7001);
    lab.gateway.manifests().apply(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 7001)?;
    // The client takes the gateway's address for its own, and asks for the gateway's Ethernet address by its real one.
    lab.client().sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    lab.client().ip(&format!("address add {GATEWAY_FABRIC}/32 dev lo"))?;
    lab.client().enter(|| -> Result<()> {
        for port in [40_000, 40_999] {
            let socket = UdpSocket::bind((GATEWAY_FABRIC, port))?;
            socket.send_to(b"forged", SocketAddr::from((CLUSTER_IP, 7000)))?;
        }
        Ok(())
    })??;
    let dropped = BTreeMap::from([("own_source".to_owned(), 2)]);
    eventually("both are dropped and counted", || Ok(lab.drops()? == dropped))?;
    assert_eq!(lab.event("flows_opened")?, 0);
    Ok(())
}
