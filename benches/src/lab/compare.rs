//! `lab compare`: the gateway beside real kube-proxy, with the same objects from one API server, two identical networks and
//! the same probes through both. It does not decide which of the two is right: a difference either has an explanation in
//! `cases/explained.yaml` or fails the comparison.

mod cases;
mod objects;
mod observation;
mod probe;
mod report;
mod sctp;
mod side;

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::interrupt;
use super::kubernetes::{ControlPlane, NodeSpec, Programs};
use super::output::print_line;
use super::topology::{GATEWAY_UPLINK, ipv6_of};
use crate::error::Result;
use crate::loadgen::stop::Stop;
use cases::Cases;
use observation::Observation;
use side::{FlowgateSide, KubeProxySide};

pub use report::CompareReport;

/// The Node object of both sides.
const NODE: &str = "edge";
/// Time after the last change took effect, for events of other watches that are still pending.
const SETTLE: Duration = Duration::from_secs(3);

/// How to compare.
#[derive(Debug, Clone)]
pub struct CompareOptions {
    /// The role of the gateway: `gateway` or `node`.
    pub role: String,
    /// Only probes whose id contains this.
    pub only: Option<String>,
}

/// Runs the comparison and removes everything it created.
pub fn compare(options: &CompareOptions, flowgate: &Path, stop: &Stop) -> Result<CompareReport> {
    let cases = Cases::load(options)?;
    let mut plane = ControlPlane::start(Programs::find()?, |doing| print_line(doing))?;
    let mut node = NodeSpec::new(NODE, GATEWAY_UPLINK);
    node.addresses.push(ipv6_of(GATEWAY_UPLINK).into());
    node.labels.insert("topology.kubernetes.io/zone".into(), "a".into());
    plane.client().register_node(&node)?;
    interrupt::check(stop)?;
    print_line("starting flowgate and kube-proxy, each in a network of its own");
    let mut proxy = KubeProxySide::start(&mut plane)?;
    let flowgate = FlowgateSide::start(&mut plane, flowgate, &options.role)?;
    print_line("applying the Services");
    plane.apply(&objects::as_list(&cases.objects))?;
    cases::write_statuses(&plane.client(), &cases.objects)?;
    await_sentinel(&plane, &flowgate, &mut proxy, stop, "first")?;
    print_line("changing some of the Services");
    plane.apply(&objects::as_list(&cases.changes))?;
    for service in cases::DELETED {
        plane.kubectl(&["delete", "service", service])?;
    }
    await_sentinel(&plane, &flowgate, &mut proxy, stop, "second")?;
    print_line(format!("sending {} probes through both", cases.probes.len()));
    let (ours, theirs) = thread::scope(|scope| {
        let ours = scope.spawn(|| flowgate.network().send(&cases.probes, stop));
        let theirs = proxy.network().send(&cases.probes, stop);
        (ours.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), theirs)
    });
    let report = report(&cases, &ours?, &theirs?);
    if !report.is_success() {
        print_line(format!("what flowgate dropped:\n{}", flowgate.drops()?));
    }
    Ok(report)
}

fn report(
    cases: &Cases,
    ours: &BTreeMap<String, Observation>,
    theirs: &BTreeMap<String, Observation>,
) -> CompareReport {
    let mut report = CompareReport::default();
    for probe in &cases.probes {
        report.add(probe, &ours[&probe.id], &theirs[&probe.id], cases.explanation(&probe.id));
    }
    print_line(report.table());
    report
}

/// Creates a new Service and waits until both sides forward to it: earlier changes have then been processed, or are about
/// to be.
fn await_sentinel(
    plane: &ControlPlane,
    flowgate: &FlowgateSide,
    proxy: &mut KubeProxySide,
    stop: &Stop,
    name: &str,
) -> Result<()> {
    let address = plane.apply(&cases::sentinel(name)).and_then(|_| {
        let path = "jsonpath={.spec.clusterIP}";
        plane.kubectl(&["get", "service", &format!("sentinel-{name}"), "-o", path])
    })?;
    let probe = probe::Probe::sentinel(address.trim());
    flowgate
        .network()
        .await_answer(&probe, stop, || Ok(()))
        .inspect_err(|_| print_line(format!("flowgate's log ends with:\n{}", flowgate.log_end())))?;
    let answered = proxy.await_answer(&probe, stop);
    answered.inspect_err(|_| print_line(format!("kube-proxy's log ends with:\n{}", proxy.log_end())))?;
    interrupt::sleep(stop, SETTLE)
}
