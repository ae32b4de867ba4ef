//! Associations between real SCTP sockets. The kernel verifies the CRC32c of each packet and drops bad ones silently.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use flowgate_benches::lab::gateway::{Gateway, GatewayOptions};
use flowgate_benches::lab::manifests::{L4Protocol, ServiceSpec};
use flowgate_benches::lab::topology::{GATEWAY_UPLINK, Host, Topology, TopologyOptions, ipv6_of};

use super::talk::{SCTP, SctpEchoServer, Talk};
use super::{CLUSTER_IP, NODE_PORT, SERVER_PORT};
use crate::support::{FLOWGATE, Lab, eventually, rows, text};

const SERVICE_PORT: u16 = 2905;
/// From one byte over what fills a packet to many of them.
const SIZES: [usize; 6] = [1, 3, 1400, 1500, 9001, 150_000];

struct Served {
    lab: Lab,
    servers: Vec<SctpEchoServer>,
}

impl Served {
    fn start(backends: u8) -> Result<Self> {
        let topology = Topology::build(TopologyOptions { backends, ..TopologyOptions::default() })?;
        let mut options = GatewayOptions::new(FLOWGATE);
        // A restart takes long in a slow machine, and the kernel behind Flowgate, which has SCTP too, would abort what
        // it does not know.
        options.xdp_config = "hold_ms = 60000".into();
        let lab = Lab { gateway: Gateway::start(topology.gateway(), options)?, topology };
        let mut servers = Vec::new();
        for host in lab.topology.backends() {
            // With one listener for all its addresses a backend would announce them all, also those that the client
            // does not know it by.
            for address in [IpAddr::from(host.address), host.address_v6.into()] {
                servers.push(SctpEchoServer::start(&host.namespace, (address, SERVER_PORT).into())?);
            }
        }
        let service =
            ServiceSpec::single("m3ua", CLUSTER_IP.into(), L4Protocol::Sctp, SERVICE_PORT, SERVER_PORT);
        let service = service.with_node_port(NODE_PORT).dual_stack();
        lab.gateway.manifests().apply(&service, &lab.addresses())?;
        lab.gateway.wait_for_service("m3ua:main")?;
        if backends > 0 {
            eventually("the backends are known", || {
                Ok(lab.active_backends()?.len() == 2 * usize::from(backends))
            })?;
        }
        Ok(Self { lab, servers })
    }

    /// Opens an association from the client's address of the target's family.
    fn open(&self, target: SocketAddr) -> Result<Talk> {
        let Host { address, address_v6, .. } = self.lab.topology.client();
        let own = if target.is_ipv4() { IpAddr::from(*address) } else { (*address_v6).into() };
        let talk = self.lab.client().enter(|| Talk::open(SCTP, own, target))?;
        talk.with_context(|| format!("an association with {target}"))
    }

    /// After so many associations: each ended in order everywhere, and no kernel saw a wrong checksum.
    fn check(&self, associations: u64) -> Result<()> {
        let states = || -> Result<Vec<String>> {
            let flows = self.lab.show("flows")?;
            Ok(rows(&flows["flows"])
                .map(|flow| format!("{} {}", text(&flow["protocol"]), text(&flow["state"])))
                .collect())
        };
        eventually("all flows have ended", || Ok(states()?.iter().all(|state| state == "SCTP time-wait")))?;
        assert_eq!(states()?.len() as u64, associations);
        assert_eq!(self.servers.iter().map(SctpEchoServer::accepted).sum::<u64>(), associations);
        assert_eq!(self.servers.iter().flat_map(SctpEchoServer::failures).collect::<Vec<_>>(), [""; 0]);
        for host in self.lab.topology.backends().iter().chain(self.lab.topology.clients()) {
            for counter in ["SctpChecksumErrors", "SctpAborteds", "SctpOutOfBlues"] {
                assert_eq!(counted(host, counter)?, 0, "{counter} at {}", host.name);
            }
        }
        assert_eq!(counted(self.lab.topology.client(), "SctpActiveEstabs")?, associations);
        assert_eq!(counted(self.lab.topology.client(), "SctpShutdowns")?, associations);
        assert_eq!(self.lab.drops()?, [].into());
        Ok(())
    }
}

/// A counter of the SCTP of a host (RFC 3873).
fn counted(host: &Host, counter: &str) -> Result<u64> {
    let table = host.namespace.run(|| fs::read_to_string("/proc/thread-self/net/sctp/snmp"))?;
    let mut words = table.split_whitespace();
    let value = words.find(|word| *word == counter).and_then(|_| words.next()?.parse().ok());
    value.with_context(|| format!("no {counter} in {table}"))
}

fn targets() -> [SocketAddr; 4] {
    let cluster_ip = CLUSTER_IP.into();
    [
        (cluster_ip, SERVICE_PORT).into(),
        (ipv6_of(cluster_ip), SERVICE_PORT).into(),
        (GATEWAY_UPLINK, NODE_PORT).into(),
        (ipv6_of(GATEWAY_UPLINK), NODE_PORT).into(),
    ]
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn sctp_associations_of_both_families_carry_bytes_unchanged_and_end_in_order() -> Result<()> {
    let served = Served::start(1)?;
    for target in targets() {
        let mut talk = served.open(target)?;
        for len in SIZES {
            talk.exchange(len).with_context(|| format!("{len} bytes with {target}"))?;
        }
        talk.close().with_context(|| format!("the end with {target}"))?;
    }
    served.check(4)
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn sctp_associations_at_once_reach_several_backends_and_do_not_mix() -> Result<()> {
    let served = Served::start(3)?;
    let mut talks = Vec::new();
    for _ in 0..4 {
        for target in targets() {
            talks.push(served.open(target)?);
        }
    }
    std::thread::scope(|scope| {
        let at_once: Vec<_> = talks.iter_mut().map(|talk| scope.spawn(|| talk.exchange(20_000))).collect();
        at_once.into_iter().try_for_each(|talk| talk.join().expect("an exchange does not panic"))
    })?;
    talks.into_iter().try_for_each(Talk::close)?;
    let busy = served.servers.iter().filter(|server| server.accepted() > 0).count();
    assert!(busy >= 4, "{busy} listeners of 3 backends got something");
    served.check(16)
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn an_sctp_association_goes_on_across_a_restart_of_the_gateway() -> Result<()> {
    let mut served = Served::start(2)?;
    let mut talks = Vec::new();
    for target in targets() {
        let mut talk = served.open(target)?;
        talk.exchange(5000)?;
        talks.push(talk);
    }
    served.lab.gateway.restart()?;
    for talk in &mut talks {
        talk.exchange(50_000).context("after the restart")?;
    }
    talks.into_iter().try_for_each(Talk::close)?;
    served.check(4)
}

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn p501_an_sctp_association_without_endpoints_is_refused_at_once() -> Result<()> {
    let served = Served::start(0)?;
    for target in targets() {
        let refused = served.open(target).err().with_context(|| format!("{target} accepts"))?;
        let reason = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(reason, Some(std::io::ErrorKind::ConnectionRefused), "{target}: {refused:#}");
    }
    eventually("each is counted once: nobody tried again", || {
        Ok(served.lab.drops()? == [("no_endpoint".to_owned(), 4)].into())
    })
}
