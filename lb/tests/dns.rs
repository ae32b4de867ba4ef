//! DNS queries for the names of Services, to the real binary, by a client behind the gateway's interface.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context as _, Result};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::GATEWAY_UPLINK;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use crate::support::{self, LIMIT, Lab, eventually, flowgate};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const SERVER: (std::net::Ipv4Addr, u16) = (GATEWAY_UPLINK, 53);
const WEB: &str = "web.default.svc.cluster.local.";

#[test]
fn a_client_finds_services_by_name_while_they_come_and_go() -> Result<()> {
    let lab = Lab::start(2, &format!("[dns]\nlisten = [\"{GATEWAY_UPLINK}\"]\nforward = []\n"))?;
    let ask = |name: &str| lab.client().enter(|| by_udp(&query(name)))?;
    eventually("nobody has the name yet", || Ok(ask(WEB)?.metadata.response_code == ResponseCode::NXDomain))?;
    let service = ServiceSpec::single("web", CLUSTER_IP.into(), L4Protocol::Tcp, 80, 8080);
    lab.gateway.manifests().apply(&service, &lab.addresses())?;
    let wanted = [IpAddr::from(CLUSTER_IP)];
    eventually("the name leads to the cluster IP", || Ok(addresses(&ask(WEB)?) == wanted))?;

    let over_tcp = lab.client().enter(|| by_tcp(&query(WEB)))??;
    assert_eq!(addresses(&over_tcp), wanted);
    // The address that DNS told is served.
    let servers = lab.http_servers(8080)?;
    lab.wait_for_backends(&lab.addresses(), 8080)?;
    let answered = support::get(lab.client(), SocketAddr::from((CLUSTER_IP, 80)))?;
    assert!(servers.contains_key(&answered), "{answered}");
    assert_eq!(ask("www.example.com.")?.metadata.response_code, ResponseCode::Refused);
    Ok(())
}

/// The name and the address are facts of the cluster, whatever is served here.
#[test]
fn a_service_that_a_budget_leaves_out_keeps_its_name() -> Result<()> {
    let dns = format!("[dns]\nlisten = [\"{GATEWAY_UPLINK}\"]\nforward = []\n");
    let lab = Lab::start(2, &format!("[limits]\nservice_endpoints = 1\n{dns}"))?;
    let backends = lab.addresses();
    for (name, cluster_ip, endpoints) in
        [("web", CLUSTER_IP, &backends[..1]), ("large", [10, 96, 0, 11], &backends)]
    {
        let service = ServiceSpec::single(name, cluster_ip.into(), L4Protocol::Tcp, 80, 8080);
        lab.gateway.manifests().apply(&service, endpoints)?;
    }
    lab.wait_for_backends(&backends[..1], 8080)?;
    let finding = "Service default/large: is not served: it wants 2 of limits.service_endpoints = 1";
    eventually("the budget is named", || Ok(lab.show("tables")?.to_string().contains(finding)))?;
    let services = lab.show("services")?.to_string();
    assert!(services.contains("web") && !services.contains("large"), "{services}");
    for (name, cluster_ip) in [(WEB, CLUSTER_IP), ("large.default.svc.cluster.local.", [10, 96, 0, 11])] {
        let answer = lab.client().enter(|| by_udp(&query(name)))??;
        assert_eq!(addresses(&answer), [IpAddr::from(cluster_ip)], "{name}");
    }
    Ok(())
}

#[test]
fn an_address_that_nobody_has_is_refused_before_anything_is_attached() -> Result<()> {
    let topology = flowgate_benches::lab::topology::Topology::build(
        flowgate_benches::lab::topology::TopologyOptions::default(),
    )?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("flowgate.toml");
    let socket = folder.path().join("admin.sock");
    std::fs::write(&file, format!("[admin]\nsocket = {socket:?}\n[dns]\nlisten = [\"198.51.100.99\"]\n"))?;
    let interface = flowgate_benches::lab::topology::UPLINK;
    let file = file.to_string_lossy();
    let ended = flowgate(topology.gateway(), &["run", "--config", &file, "--interface", interface])?;
    assert!(ended.is_refusal("DNS cannot listen on 198.51.100.99:53 over UDP"), "{ended:?}");
    assert!(ended.stderr.contains("change dns.listen"), "{ended:?}");
    assert_eq!(support::xdp_program(topology.gateway(), interface)?, None);
    Ok(())
}

fn query(name: &str) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(name.parse::<Name>().expect("a name"), RecordType::A));
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn by_udp(question: &Message) -> Result<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(SERVER)?;
    socket.send(&question.to_vec()?)?;
    let mut bytes = [0; 512];
    let len = socket.recv(&mut bytes).context("DNS over UDP")?;
    Ok(Message::from_vec(&bytes[..len])?)
}

fn by_tcp(question: &Message) -> Result<Message> {
    let mut stream = TcpStream::connect_timeout(&SERVER.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let bytes = question.to_vec()?;
    stream.write_all(&u16::try_from(bytes.len())?.to_be_bytes())?;
    stream.write_all(&bytes)?;
    let mut len = [0; 2];
    stream.read_exact(&mut len).context("DNS over TCP")?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut bytes)?;
    Ok(Message::from_vec(&bytes)?)
}
