//! The path to a backend changes: its route, or its Ethernet address.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{TestBed, TestBedOptions};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::{HOST_INTERFACE, ipv6_of};
use crate::netns::Namespace;

pub(super) const CASES: [Case; 2] = [
    Case { name: "route_change", run: route_change },
    Case { name: "neighbour_change", run: neighbour_change },
];

const PAUSE: Duration = Duration::from_millis(400);
/// A router on the fabric through which the backends can also be reached.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 60);

fn route_change(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::build(context, TestBedOptions::default(), |topology| {
        let router = topology.add_host("router", ROUTER)?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/eth0/send_redirects", "0"),
        ] {
            router.namespace.sysctl(key, value)?;
        }
        Ok(())
    })?;
    let gateway = bed.topology.gateway().clone();
    let backends: Vec<_> = bed.backends().into_iter().filter(|address| *address != ROUTER).collect();
    disturb(context, result, bed, |_| {
        for verb in ["add", "del", "add", "del"] {
            for &backend in &backends {
                gateway.ip(&format!("route {verb} {backend}/32 via {ROUTER}"))?;
                gateway.ip(&format!("route {verb} {}/128 via {}", ipv6_of(backend), ipv6_of(ROUTER)))?;
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    })
}

/// As after a failover: the new owner of an address sends gratuitous ARP and unsolicited neighbour advertisements.
fn neighbour_change(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    let hosts: Vec<Namespace> = bed.topology.backends().iter().map(|host| host.namespace.clone()).collect();
    disturb(context, result, bed, |_| {
        for (number, host) in hosts.iter().enumerate() {
            host.sysctl(&format!("net/ipv4/conf/{HOST_INTERFACE}/arp_notify"), "1")?;
            host.sysctl(&format!("net/ipv6/conf/{HOST_INTERFACE}/ndisc_notify"), "1")?;
            host.ip(&format!("link set {HOST_INTERFACE} address 02:f0:ee:00:00:{number:02x}"))?;
            thread::sleep(PAUSE);
        }
        Ok(())
    })
}
