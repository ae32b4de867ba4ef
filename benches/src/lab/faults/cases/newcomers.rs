//! New connections of a well-behaved client while others use all that they can get: forged SYNs and datagrams that backends
//! answer, a full flow table, a greedy client. Established connections must not be lost.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::cases::flood::{ATTACK, Flood, SOURCES, attach_attacker};
use crate::lab::faults::gateway_state::{drops, event};
use crate::lab::faults::idle::Idle;
use crate::lab::faults::load::{Load, Workload, new_connections_work};
use crate::lab::faults::test_bed::{DATAGRAMS, STREAM, TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::wait::eventually;
use crate::loadgen::packets::PacketKind;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 4] = [
    Case { name: "answered_syn_flood", run: answered_syn_flood },
    Case { name: "answered_udp_flood", run: answered_udp_flood },
    Case { name: "crowded_table", run: crowded_table },
    Case { name: "greedy_client", run: greedy_client },
];

/// Minimum share of new connections that succeed, in percent.
const SUCCEED_PERCENT: u64 = 95;
/// Forged packets per second: each of three backends has its 1,024 source ports taken within a second.
const RATE: u32 = 6_000;
const FEW_PORTS: &str = "[snat]\nports = \"40000-41023\"\n";
/// For how long new connections are opened.
const TRIAL: Duration = Duration::from_secs(6);
const ESTABLISHED: usize = 60;
/// Failed attempts after which a client has all that it gets.
const REFUSED_MAX: usize = 30;

/// SYNs from forged addresses, all of which a backend answers and nobody acknowledges.
fn answered_syn_flood(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    under_flood(context, result, PacketKind::TcpSyn, |bed, result| {
        try_connections(bed.client(), SocketAddr::from(STREAM), result)
    })
}

/// Datagrams from forged addresses, each of which a backend answers once.
fn answered_udp_flood(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    under_flood(context, result, PacketKind::Udp, |bed, result| {
        try_datagrams(bed.client(), SocketAddr::from(DATAGRAMS), result)?;
        try_connections(bed.client(), SocketAddr::from(STREAM), result)
    })
}

fn under_flood(
    context: &CaseContext<'_>,
    result: &mut CaseResult,
    kind: PacketKind,
    trial: impl FnOnce(&TestBed, &mut CaseResult) -> Result<()>,
) -> Result<()> {
    let attacker = Namespace::new("attacker")?;
    let options = TestBedOptions {
        interfaces: vec![ATTACK.into()],
        config: FEW_PORTS.into(),
        ..TestBedOptions::default()
    };
    let bed = TestBed::build(context, options, |topology| {
        // Answered without being remembered, so that what does not work is the gateway's fault and not that of a full queue
        // of a backend.
        for host in topology.backends() {
            host.namespace.sysctl("net/ipv4/tcp_syncookies", "2")?;
        }
        attach_attacker(topology, &attacker)
    })?;
    let workload = Workload::echo(256, Duration::from_millis(100));
    let load = Load::start(bed.client(), &stream_targets(), ESTABLISHED, &workload)?;
    let target = if kind == PacketKind::Udp { DATAGRAMS } else { STREAM };
    let flood = Flood::start_kind(&attacker, kind, (target, SOURCES), Some(RATE))?;
    eventually("the flood takes all source ports", || {
        Ok(event(&bed.gateway, "snat_ports_reclaimed")? > 1_000)
    })?;
    trial(&bed, result)?;
    let rate = flood.end()?;
    result.record("flood_packets_per_second", rate.round());
    result.record("snat_ports_reclaimed", event(&bed.gateway, "snat_ports_reclaimed")?);
    result
        .expect(rate > f64::from(RATE) / 4.0, || format!("the flood had {rate:.0} packets per second only"));
    end(bed, load, result)
}

/// Idle connections of two clients fill the IPv4 table; a third client opens new ones. Those of the two give way, those of the
/// third do not.
fn crowded_table(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let config = "[flows]\ncapacity = 1024\nper_client_percent = 60\n".into();
    let options = TestBedOptions { clients: 3, config, ..TestBedOptions::default() };
    let bed = TestBed::build(context, options, |_| Ok(()))?;
    let workload = Workload::echo(256, Duration::from_millis(100));
    let load = Load::start(bed.client(), &stream_targets()[..1], ESTABLISHED, &workload)?;
    let mut users = [1, 2].map(|user| Idle::new(&bed.topology.clients()[user].namespace));
    for user in &mut users {
        user.connect(700, REFUSED_MAX)?;
    }
    let made = users.iter().map(Idle::len).sum::<usize>();
    try_connections(bed.client(), SocketAddr::from(STREAM), result)?;
    let mut left = 0;
    for user in &mut users {
        left += user.answered()?;
    }
    result.record("idle_connections", made);
    result.record("idle_connections_left", left);
    result.record("flow_table_full", drops(&bed.gateway, "flow_table_full")?);
    result.expect(left < made, || "no idle connection gave way: the table was not full".into());
    end(bed, load, result)
}

/// One client opens all the connections that it can; another one opens new ones.
fn greedy_client(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let options = TestBedOptions { clients: 2, config: FEW_PORTS.into(), ..TestBedOptions::default() };
    let bed = TestBed::build(context, options, |_| Ok(()))?;
    let workload = Workload::echo(256, Duration::from_millis(100));
    let load = Load::start(bed.client(), &stream_targets(), ESTABLISHED, &workload)?;
    let mut greedy = Idle::new(&bed.topology.clients()[1].namespace);
    greedy.connect(4_000, REFUSED_MAX)?;
    let made = greedy.len();
    result.record("greedy_connections", made);
    result.record("client_limit", drops(&bed.gateway, "client_limit")?);
    // Three backends, of whose 1,024 ports each it may have half.
    result.expect((1_000..=1_536).contains(&made), || {
        format!("the greedy client had {made} connections, not its share of 1,536")
    });
    try_connections(bed.client(), SocketAddr::from(STREAM), result)?;
    let lost = made - greedy.answered()?;
    result.record_lost(u64::try_from(lost).unwrap_or(u64::MAX), Some("of the greedy client"));
    end(bed, load, result)
}

/// Opens connections, and expects nearly all of them to work.
fn try_connections(client: &Namespace, target: SocketAddr, result: &mut CaseResult) -> Result<()> {
    let exchange = Workload::echo(256, Duration::ZERO).exchange;
    let report = new_connections_work(client, target, &exchange, TRIAL)?;
    let (worked, failed) = (report.exchanges, report.failures());
    result.record("new_connections", worked);
    result.record("new_connections_failed", failed);
    result.record("new_connection_p99_ms", report.connect_latency.p99_us / 1e3);
    let enough = worked > 50 && worked * 100 >= (worked + failed) * SUCCEED_PERCENT;
    result.expect(enough, || {
        format!("{worked} new connections worked and {failed} failed: {:?}", report.first_failure)
    });
    Ok(())
}

/// Asks from new ports, and expects nearly all questions to be answered.
fn try_datagrams(client: &Namespace, target: SocketAddr, result: &mut CaseResult) -> Result<()> {
    const QUESTIONS: u64 = 500;
    let ask = || -> io::Result<u64> {
        let mut answered = 0;
        for _ in 0..QUESTIONS {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(b"am I heard?", target)?;
            answered += u64::from(socket.recv_from(&mut [0; 64]).is_ok());
        }
        Ok(answered)
    };
    let answered = client.enter(ask)?.map_err(Error::io(format!("send datagrams to {target}")))?;
    result.record("questions_answered", answered);
    result.expect(answered * 100 >= QUESTIONS * SUCCEED_PERCENT, || {
        format!("{answered} of {QUESTIONS} new questions were answered")
    });
    Ok(())
}

fn end(mut bed: TestBed, load: Load, result: &mut CaseResult) -> Result<()> {
    result.record("gap_ms", load.longest_gap_ms());
    load.finish("established", result)?;
    bed.check_end(result, 0);
    Ok(())
}
