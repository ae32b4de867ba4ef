//! Workers that panic or hang under load: traffic of Services pauses briefly, that of the node itself does not.

use std::thread;
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::TestBed;
use crate::lab::faults::{Case, CaseContext};
use crate::lab::gateway::rows;
use crate::lab::interrupt;
use crate::lab::wait::eventually;

pub(super) const CASES: [Case; 2] =
    [Case { name: "worker_panic", run: worker_panic }, Case { name: "worker_hang", run: worker_hang }];

const SETTLE_TIME: Duration = Duration::from_secs(1);
/// Longest gap in ms of connections to the node itself.
const NODE_GAP_MS: f64 = 100.0;
/// Longest gap in ms of Services; the watchdog notices a hang after a second.
const GAP_MS: f64 = 2000.0;

fn worker_panic(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    break_worker(context, result, "panic", 1)
}

fn worker_hang(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    break_worker(context, result, "hang", 0)
}

fn break_worker(
    context: &CaseContext<'_>,
    result: &mut CaseResult,
    fault: &str,
    panics_allowed: usize,
) -> Result<()> {
    let mut bed = TestBed::with_defaults(context)?;
    let load = bed.web_load(context.connections)?;
    let node_load = bed.node_load()?;
    interrupt::sleep(context.stop, SETTLE_TIME)?;
    [&load, &node_load].iter().for_each(|load| load.reset_gaps());
    let (process, begin) = (bed.gateway.process_id(), clock::now());
    let answer = bed.gateway.ask(&format!(r#"{{"show":"fault","worker":0,"fault":"{fault}"}}"#))?;
    if answer.contains("error") {
        return Err(Error::State(format!("the gateway did not inject the fault: {answer}")));
    }
    // Answers in flight have arrived by then.
    thread::sleep(Duration::from_millis(100));
    load.await_answers()?;
    result.record("recovered_ms", begin.elapsed().as_secs_f64() * 1e3);
    eventually("all workers run again", || {
        let workers = bed.gateway.show_json("workers")?;
        Ok(rows(&workers).len() > 0 && rows(&workers).all(|worker| worker["state"] == "running"))
    })?;
    thread::sleep(SETTLE_TIME);
    let (gap, node_gap) = (load.longest_gap_ms(), node_load.longest_gap_ms());
    result.record("gap_ms", gap);
    result.record("node_gap_ms", node_gap);
    result.expect(gap < GAP_MS, || format!("Services were silent for {gap:.0} ms, not below {GAP_MS}"));
    result.expect(node_gap < NODE_GAP_MS, || {
        format!("the node's own connections were silent for {node_gap:.0} ms, not below {NODE_GAP_MS}")
    });
    result.expect(bed.gateway.process_id() == process, || "the process is another one".into());
    load.finish("service", result)?;
    node_load.finish("node", result)?;
    bed.check_end(result, panics_allowed);
    Ok(())
}
