//! Exhausted flow tables and SNAT ports: established flows stay, refused ones are counted, and new connections work again
//! afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use crate::clock;
use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::gateway_state::drops;
use crate::lab::faults::idle::Idle;
use crate::lab::faults::load::{Load, Workload, new_connections_work};
use crate::lab::faults::test_bed::{STREAM, TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::loadgen::stream::{self, StreamOptions};

pub(super) const CASES: [Case; 2] =
    [Case { name: "table_full", run: table_full }, Case { name: "ports_exhausted", run: ports_exhausted }];

/// Time limit of the recovery.
const RECOVERY: Duration = Duration::from_secs(25);

/// Established connections of one client fill the IPv4 table; none of them may be evicted.
fn table_full(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    const ESTABLISHED: usize = 100;
    const WANTED: usize = 1400;
    let config = "[flows]\ncapacity = 1024\nper_client_percent = 100\ntcp_time_wait_s = 1\ntcp_reset_s = 1\n";
    let options = TestBedOptions { config: config.into(), ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |_| Ok(()))?;
    let workload = Workload::echo(256, Duration::from_millis(100));
    let load = Load::start(bed.client(), &stream_targets()[..1], ESTABLISHED, &workload)?;

    let mut idle = Idle::new(bed.client());
    idle.connect(WANTED, 50)?;
    let made = idle.len();
    let (full, tables) = (drops(&bed.gateway, "flow_table_full")?, bed.gateway.show_json("tables")?);
    result.record("flow_capacity", tables["flow_capacity"].clone());
    result.record("connections_made", made);
    result.record("flow_table_full", full);
    result.expect(full > 0, || "no packet was counted as flow_table_full".into());
    result.expect(made < WANTED, || "every connection had room: the table was not full".into());
    let lost = made - idle.answered()?;
    result.record_lost(u64::try_from(lost).unwrap_or(u64::MAX), Some("idle ones, evicted"));
    drop(idle);
    recover(&bed, SocketAddr::from(STREAM), &workload, result)?;
    result.record("gap_ms", load.longest_gap_ms());
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// One backend, and fewer SNAT ports than connections.
fn ports_exhausted(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    const ESTABLISHED: usize = 40;
    const WANTED: usize = 100;
    let config = "[snat]\nports = \"40000-40063\"\n\n[flows]\nper_client_percent = 100\ntcp_time_wait_s = 1\ntcp_reset_s = 1\n";
    let options = TestBedOptions { backends: 1, config: config.into(), ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |_| Ok(()))?;
    let workload = Workload::echo(256, Duration::from_millis(100));
    let load = Load::start(bed.client(), &stream_targets()[..1], ESTABLISHED, &workload)?;

    let target = SocketAddr::from(STREAM);
    let mut more = StreamOptions::new(target, WANTED, Duration::from_secs(4), workload.exchange.clone());
    (more.connect_timeout, more.pause) = (Duration::from_millis(1500), workload.pause);
    let more = stream::start(bed.client(), more)?.wait()?;
    let exhausted = drops(&bed.gateway, "snat_ports_exhausted")?;
    result.record("connections_wanted", WANTED);
    result.record("connections_made", more.connects);
    result.record("connections_refused", more.connect_failures.values().sum::<u64>());
    result.record("snat_ports_exhausted", exhausted);
    result.expect(exhausted > 0, || "no packet was counted as snat_ports_exhausted".into());
    result.expect(!more.connect_failures.is_empty(), || "every connection had a port".into());
    result.expect(more.broken.is_empty(), || format!("connections with a port broke: {:?}", more.broken));
    recover(&bed, target, &workload, result)?;
    result.record("gap_ms", load.longest_gap_ms());
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// Waits until new connections work again.
fn recover(bed: &TestBed, target: SocketAddr, workload: &Workload, result: &mut CaseResult) -> Result<()> {
    let begin = clock::now();
    loop {
        let fresh =
            new_connections_work(bed.client(), target, &workload.exchange, Duration::from_millis(300))?;
        if fresh.failures() == 0 && fresh.exchanges > 0 {
            result.record("recovered_ms", begin.elapsed().as_secs_f64() * 1e3);
            return Ok(());
        }
        if begin.elapsed() > RECOVERY {
            result.fail(format!(
                "new connections still fail {RECOVERY:?} after the pressure: {:?}",
                fresh.first_failure
            ));
            return Ok(());
        }
    }
}
