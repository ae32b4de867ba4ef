//! Path MTU discovery through the gateway: a hop with MTU 1400 behind it and one in front of it; large transfers complete.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::gateway_state::event;
use crate::lab::faults::test_bed::{TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::{HOST_INTERFACE, Host, Link, add_ipv6_address, configure_host, ipv6_of};
use crate::loadgen::stream::{self, Exchange, Greeting, StreamOptions, StreamReport};
use crate::netns::Namespace;

pub(super) const CASES: [Case; 2] =
    [Case { name: "pmtu_v4", run: pmtu_v4 }, Case { name: "pmtu_v6", run: pmtu_v6 }];

const NARROW_MTU: u32 = 1400;
const TRANSFER_LEN: usize = 1 << 20;
const TRANSFERS: usize = 4;
/// A router on the fabric.
const INNER_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 60);
const NARROW: &str = "narrow";

fn pmtu_v4(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    pmtu(context, result, 0)
}

fn pmtu_v6(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    pmtu(context, result, 1)
}

/// `family` is the index of the target in [`stream_targets`].
fn pmtu(context: &CaseContext<'_>, result: &mut CaseResult, family: usize) -> Result<()> {
    let mut ends = None;
    let options = TestBedOptions { clients: 2, backends: 1, ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |topology| {
        let router = topology.add_host("router", INNER_ROUTER)?;
        let inner = NarrowPath::build(&router, [10, 246, 0], [10, 245, 0])?;
        inner.routes_to(topology.gateway(), INNER_ROUTER)?;
        let router = topology.clients()[1].clone();
        let outer = NarrowPath::build(&router, [10, 248, 0], [10, 247, 0])?;
        outer.routes_to(topology.gateway(), router.address)?;
        ends = Some((inner, outer));
        Ok(())
    })?;
    let (inner, outer) = ends.expect("the test bed was prepared");
    let near = vec![bed.topology.backends()[0].address];
    let (label, target) = stream_targets()[family];

    let transfer = |from: &Namespace| -> Result<StreamReport> {
        let exchange = Exchange::Echo { len: TRANSFER_LEN, greeting: Greeting::Name };
        let options = StreamOptions::new(target, TRANSFERS, Duration::from_secs(3), exchange);
        stream::start(from, options)?.wait()
    };
    let translated = |bed: &TestBed| event(&bed.gateway, "icmp_errors_translated");
    bed.set_backends(&near)?;
    let in_front = transfer(&outer.end.namespace)?;
    let errors_in_front = translated(&bed)?;
    bed.servers.start(&inner.end)?;
    bed.set_backends(&[inner.end.address])?;
    let behind = transfer(bed.client())?;
    let errors_behind = translated(&bed)? - errors_in_front;
    for (place, report, errors) in
        [("in_front", &in_front, errors_in_front), ("behind", &behind, errors_behind)]
    {
        result.record(&format!("{place}_icmp_errors"), errors);
        result.expect(errors > 0, || format!("no ICMP error came from the narrow hop {place}"));
        result.record(&format!("{place}_mbytes_per_second"), mbytes_per_second(report));
        result.record(&format!("{place}_transfers"), report.exchanges);
        result.record_lost(report.failures(), report.first_failure.as_deref());
        result.expect(report.exchanges > 0, || format!("no transfer over {label}, narrow hop {place}"));
    }
    bed.check_end(result, 0);
    Ok(())
}

fn mbytes_per_second(report: &StreamReport) -> f64 {
    crate::loadgen::report::per_second(report.bytes_verified, report.seconds) / 1e6
}

/// router - narrow link - second router - host; all other links have MTU 1500.
struct NarrowPath {
    end: Host,
    _far_router: Namespace,
}

impl NarrowPath {
    fn build(router: &Host, narrow: [u8; 3], far: [u8; 3]) -> Result<Self> {
        let at = |[a, b, c]: [u8; 3], last| Ipv4Addr::new(a, b, c, last);
        let far_router = Namespace::new("far-router")?;
        let end = Namespace::new("far-end")?;
        let link = Link { queues: 1, mtu: Some(NARROW_MTU) };
        link.connect(&router.namespace, NARROW, &far_router, NARROW)?;
        Link { queues: 1, mtu: None }.connect(&far_router, "far", &end, HOST_INTERFACE)?;
        for (namespace, interface, address) in [
            (&router.namespace, NARROW, at(narrow, 1)),
            (&far_router, NARROW, at(narrow, 2)),
            (&far_router, "far", at(far, 1)),
        ] {
            namespace.ip(&format!("addr add {address}/24 dev {interface}"))?;
            add_ipv6_address(namespace, interface, address)?;
            namespace.sysctl("net/ipv4/ip_forward", "1")?;
            namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        configure_host(&end, at(far, 11))?;
        let address_v6 = add_ipv6_address(&end, HOST_INTERFACE, at(far, 11))?;
        route(&end, "default", "default", at(far, 1))?;
        route(&far_router, "default", "default", at(narrow, 1))?;
        let (v4, v6) = networks(at(far, 0));
        route(&router.namespace, &v4, &v6, at(narrow, 2))?;
        let name = format!("behind-{}", router.name);
        let end = Host { name, address: at(far, 11), address_v6, namespace: end };
        Ok(Self { end, _far_router: far_router })
    }

    /// Adds a route to the host behind it.
    fn routes_to(&self, gateway: &Namespace, via: Ipv4Addr) -> Result<()> {
        let (v4, v6) = networks(self.end.address);
        route(gateway, &v4, &v6, via)
    }
}

fn networks(address: Ipv4Addr) -> (String, String) {
    let [a, b, c, _] = address.octets();
    let first = Ipv4Addr::new(a, b, c, 0);
    (format!("{first}/24"), format!("{}/64", ipv6_of(first)))
}

fn route(namespace: &Namespace, v4: &str, v6: &str, via: Ipv4Addr) -> Result<()> {
    namespace.ip(&format!("route add {v4} via {via}"))?;
    namespace.ip(&format!("-6 route add {v6} via {}", ipv6_of(via))).map(drop)
}
