//! The common part of cases that change the environment: open connections, apply the change, check its effect.

use std::thread;
use std::time::Duration;

use crate::error::Result;
use crate::lab::faults::CaseContext;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::load::new_connections_work;
use crate::lab::faults::test_bed::{TestBed, web_targets};
use crate::lab::interrupt;
use crate::loadgen::stream::Exchange;

const SETTLE_TIME: Duration = Duration::from_millis(1500);

/// Applies `change` under load. Established connections must survive it, and new ones must work afterwards.
pub(super) fn disturb(
    context: &CaseContext<'_>,
    result: &mut CaseResult,
    mut bed: TestBed,
    change: impl FnOnce(&mut TestBed) -> Result<()>,
) -> Result<()> {
    let load = bed.web_load(context.connections)?;
    let node_load = bed.node_load()?;
    interrupt::sleep(context.stop, Duration::from_millis(500))?;
    [&load, &node_load].iter().for_each(|load| load.reset_gaps());
    change(&mut bed)?;
    load.await_answers()?;
    thread::sleep(SETTLE_TIME);
    result.record("gap_ms", load.longest_gap_ms());
    result.record("node_gap_ms", node_load.longest_gap_ms());
    for (label, target) in web_targets() {
        let exchange = Exchange::Http { path: "/bytes/512".into() };
        let fresh = new_connections_work(bed.client(), target, &exchange, Duration::from_millis(300))?;
        result.expect(fresh.failures() == 0 && fresh.exchanges > 0, || {
            format!("new connections to {label} fail afterwards: {:?}", fresh.first_failure)
        });
    }
    load.finish("service", result)?;
    node_load.finish("node", result)?;
    bed.check_end(result, 0);
    Ok(())
}
