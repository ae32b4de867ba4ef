//! Networks that lose, delay, reorder and duplicate packets, on both sides of the gateway.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{HOST_INTERFACE, ipv6_of};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::loadgen::udp::{self, UdpOptions};

use super::talk::{TCP, Talk};
use super::{CLUSTER_IP, EchoServers, SERVER_PORT, run};
use crate::support::{LIMIT, Lab, ask_by_udp, eventually, snmp};

const CONNECTIONS: usize = 4;
const BODY: usize = 200_000;

/// Has clients and backends send with these faults: what the gateway sends leaves by AF_XDP, past every qdisc.
fn spoil(lab: &Lab, faults: &str) -> Result<()> {
    for host in lab.topology.clients().iter().chain(lab.topology.backends()) {
        run(
            &host.namespace,
            &format!("tc qdisc replace dev {HOST_INTERFACE} root netem limit 10000 {faults}"),
        )?;
    }
    Ok(())
}

fn served(protocol: L4Protocol) -> Result<(Lab, EchoServers, [SocketAddr; 2])> {
    let lab = Lab::with_backends(2)?;
    let servers = EchoServers::start(&lab.topology)?;
    let service = ServiceSpec::single("echo", CLUSTER_IP.into(), protocol, 80, SERVER_PORT);
    lab.gateway.manifests().apply(&service.dual_stack(), &lab.addresses())?;
    eventually("the backends are known", || Ok(lab.active_backends()?.len() == 4))?;
    Ok((lab, servers, [(CLUSTER_IP, 80).into(), (ipv6_of(CLUSTER_IP.into()), 80).into()]))
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn connections_over_links_that_lose_reorder_and_duplicate_carry_all_bytes_unchanged() -> Result<()> {
    let (lab, _servers, targets) = served(L4Protocol::Tcp)?;
    spoil(&lab, "delay 4ms 3ms loss 3% duplicate 3%")?;
    let client = lab.topology.client();
    let own = [client.address.into(), client.address_v6.into()];
    let mut talks = Vec::new();
    for at in 0..CONNECTIONS {
        let (own, target) = (own[at % 2], targets[at % 2]);
        let talk = client.namespace.enter(|| Talk::open(TCP, own, target))?;
        talks.push(talk.with_context(|| format!("a connection to {target}"))?);
    }
    std::thread::scope(|scope| {
        let at_once: Vec<_> = talks.iter_mut().map(|talk| scope.spawn(|| talk.exchange(BODY))).collect();
        at_once.into_iter().try_for_each(|talk| talk.join().expect("an exchange does not panic"))
    })?;
    assert!(snmp(&client.namespace, "Tcp", "RetransSegs")? > 0, "the client lost something");
    for host in lab.topology.clients().iter().chain(lab.topology.backends()) {
        for counter in ["InCsumErrors", "OutRsts", "EstabResets"] {
            assert_eq!(snmp(&host.namespace, "Tcp", counter)?, 0, "{counter} at {}", host.name);
        }
    }
    // A last acknowledgement that is duplicated may find its connection gone, and be reset: that is no loss.
    talks.into_iter().try_for_each(Talk::close)?;
    assert_eq!(lab.event("flows_opened")?, CONNECTIONS as u64, "what was sent again opened none");
    assert_eq!(lab.drops()?, [].into());
    Ok(())
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn datagrams_that_are_duplicated_or_reordered_arrive_as_such_and_unchanged() -> Result<()> {
    let (lab, _servers, targets) = served(L4Protocol::Udp)?;
    // The queue of packets for an unresolved neighbour is bounded, so each backend is resolved first.
    for (target, port) in
        targets.into_iter().flat_map(|target| (30_000..30_020).map(move |port| (target, port)))
    {
        lab.client().enter(|| ask_by_udp(port, target))??;
    }
    let opened = lab.event("flows_opened")?;
    spoil(&lab, "delay 60ms 50ms duplicate 10%")?;
    for target in targets {
        let options = UdpOptions {
            payload_len: 1200,
            flows: 3,
            grace: LIMIT,
            ..UdpOptions::new(target, 100, Duration::from_secs(3))
        };
        let report =
            lab.client().enter(|| udp::run(&options, ProgressOutput::Nothing, &Stop::default()))??;
        let bad = (report.lost, report.mismatches, report.foreign, report.send_failures);
        assert_eq!((report.sent, bad), (300, (0, 0, 0, 0)), "{report:?}");
        assert!(report.duplicates > 0 && report.reordered > 0, "{report:?}");
    }
    assert_eq!(lab.event("flows_opened")? - opened, 6, "one a source port");
    assert_eq!(lab.drops()?, [].into());
    Ok(())
}
