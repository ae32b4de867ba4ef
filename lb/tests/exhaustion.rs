//! A Service that runs out of source ports: its established connections go on, the operator learns which Service it is and
//! what would help, and new connections get through once old ones end.
//!
//! Needs root; without it the test fails with a message.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::servers::echo::{EchoAnswer, EchoOptions, TcpEchoServer};

use crate::support::{self, Lab, eventually, number, rows, text};

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const PORTS: usize = 8;

fn talks(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut answer)).is_ok() && &answer == b"ping"
}

#[test]
fn a_service_without_source_ports_keeps_its_connections_and_is_named() -> Result<()> {
    let lab = Lab::start(1, "\n[snat]\nports = \"40000-40007\"\n")?;
    let host = &lab.topology.backends()[0];
    let _server =
        TcpEchoServer::start(&host.namespace, EchoOptions::new(&host.name, 9090, EchoAnswer::Echo))?;
    let service = ServiceSpec::single("stream", CLUSTER_IP.into(), L4Protocol::Tcp, 90, 9090);
    lab.gateway.manifests().apply(&service, &lab.addresses())?;
    lab.wait_for_backends(&lab.addresses(), 9090)?;

    let target = SocketAddr::from((CLUSTER_IP, 90));
    let connect = || -> Result<Option<TcpStream>> {
        lab.client().enter(|| {
            let stream = TcpStream::connect_timeout(&target, Duration::from_millis(300)).ok();
            if let Some(stream) = &stream {
                stream.set_read_timeout(Some(support::LIMIT))?;
            }
            anyhow::Ok(stream)
        })?
    };
    // Each worker has its share of the ports: the client's ports decide which worker it is.
    let mut streams = Vec::new();
    let mut refused = 0;
    while refused < 5 {
        match connect()? {
            Some(stream) => streams.push(stream),
            None => refused += 1,
        }
        ensure!(streams.len() <= PORTS, "{} connections by {PORTS} ports", streams.len());
    }
    ensure!(!streams.is_empty() && streams.iter_mut().all(talks), "{} connections", streams.len());

    eventually("the Service is named", || {
        let tables = lab.show("tables")?;
        let named = rows(&tables["short"])
            .map(text)
            .any(|line| line.starts_with("default/stream:main: ") && line.contains("snat_ports_exhausted"));
        Ok(named && lab.gateway.log().contains("give fab0 more addresses, or widen snat.ports"))
    })?;
    let top = |by: &str| -> Result<serde_json::Value> {
        let text = lab.gateway.show(&["flows", "--top", "1", "--by", by, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("--by {by} printed {text:?}"))
    };
    for (by, name) in [
        ("service", "default/stream:main".to_owned()),
        ("backend", format!("{}:9090", host.address)),
        ("client", lab.topology.client().address.to_string()),
    ] {
        let users = top(by)?;
        ensure!(text(&users[0]["name"]) == name, "--by {by}: {users}");
        ensure!(number(&users[0]["flows"]) >= streams.len() as u64, "--by {by}: {users}");
    }
    let table = lab.gateway.show(&["flows", "--top", "1", "--by", "snat"])?;
    ensure!(table.contains("SOURCE PORTS"), "{table}");

    // The pressure ends: the ports of closed connections serve new ones.
    drop(streams);
    eventually(
        "a new connection gets through",
        || Ok(connect()?.is_some_and(|mut stream| talks(&mut stream))),
    )
}
