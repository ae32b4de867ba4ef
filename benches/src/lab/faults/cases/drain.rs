//! A backend is removed: its TCP flows continue, UDP flows move to other backends at once.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::load::{Load, Workload};
use crate::lab::faults::test_bed::{TestBed, datagram_targets, services, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::interrupt;
use crate::lab::wait::eventually;
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 1] = [Case { name: "backend_drain", run: backend_drain }];

/// Datagrams in flight may still arrive after the removal.
const IN_FLIGHT: Duration = Duration::from_millis(200);
const OBSERVED: Duration = Duration::from_secs(2);
const SOCKETS: usize = 60;

fn backend_drain(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let mut bed = TestBed::with_defaults(context)?;
    let workload = Workload::echo(512, Duration::from_millis(200));
    let load = Load::start(bed.client(), &stream_targets(), context.connections / 2, &workload)?;
    let datagrams = Datagrams::start(bed.client())?;
    let backends = bed.backends();
    let (removed, remaining) = backends.split_first().expect("the default test bed has backends");
    eventually("the backend gets datagrams", || Ok(bed.servers.datagrams_at(*removed)? > 100))?;

    for service in services() {
        bed.gateway.manifests().set_endpoints(&service, remaining)?;
    }
    let seen = bed.await_backends(remaining)?;
    thread::sleep(IN_FLIGHT);
    let after_removal = bed.servers.datagrams_at(*removed)?;
    let elsewhere: u64 = remaining.iter().filter_map(|at| bed.servers.datagrams_at(*at).ok()).sum();
    load.reset_gaps();
    interrupt::sleep(context.stop, OBSERVED)?;
    let late = bed.servers.datagrams_at(*removed)? - after_removal;
    let moved = remaining.iter().filter_map(|at| bed.servers.datagrams_at(*at).ok()).sum::<u64>() - elsewhere;
    datagrams.end()?;

    result.record("removal_seen_ms", seen.as_secs_f64() * 1e3);
    result.record("gap_ms", load.longest_gap_ms());
    result.record("datagrams_elsewhere", moved);
    result.record("datagrams_to_the_removed", late);
    result.expect(late == 0, || format!("{late} datagrams still went to the removed backend"));
    result.expect(moved > 0, || "no datagram went to another backend".into());
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// Datagrams of some flows in both families; answers are ignored.
struct Datagrams {
    stop: Stop,
    thread: thread::JoinHandle<Result<()>>,
}

impl Datagrams {
    fn start(client: &Namespace) -> Result<Self> {
        let stop = Stop::default();
        let until = stop.clone();
        let thread = client.spawn_thread("datagrams", move || {
            let open = |number: usize| {
                let (_, target) = datagram_targets()[number % 2];
                let own = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(own)?;
                socket.connect(target)?;
                Ok(socket)
            };
            let sockets = (0..SOCKETS).map(open).collect::<std::io::Result<Vec<_>>>();
            let sockets = sockets.map_err(Error::io("open UDP sockets in the client's namespace"))?;
            while !until.is_stopped() {
                for socket in &sockets {
                    // Loss does not matter here.
                    let _ = socket.send(b"a datagram of a flow that goes on");
                }
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })?;
        Ok(Self { stop, thread })
    }

    fn end(self) -> Result<()> {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
