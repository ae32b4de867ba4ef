//! Workers that panic or hang under load: the node's own traffic must not notice, that of Services for a moment.

use std::thread;
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::figures::Figures;
use crate::lab::faults::rig::Rig;
use crate::lab::faults::show::{eventually, rows, show};
use crate::lab::faults::{Case, Setting};
use crate::lab::interrupt;

pub(super) const CASES: [Case; 2] =
    [Case { name: "worker_panic", run: worker_panic }, Case { name: "worker_hang", run: worker_hang }];

const SETTLED: Duration = Duration::from_secs(1);
/// What the node's own connections may be silent for.
const NODE_GAP_MS: f64 = 100.0;
/// What Services may be silent for: a hang is noticed after a second.
const GAP_MS: f64 = 2000.0;

fn worker_panic(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    break_worker(setting, figures, "panic", 1)
}

fn worker_hang(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    break_worker(setting, figures, "hang", 0)
}

fn break_worker(
    setting: &Setting<'_>,
    figures: &mut Figures,
    fault: &str,
    panics_allowed: usize,
) -> Result<()> {
    let mut rig = Rig::usual(setting)?;
    let load = rig.web_load(setting.connections)?;
    let own = rig.own_load()?;
    interrupt::sleep(setting.stop, SETTLED)?;
    [&load, &own].iter().for_each(|load| load.forget_gaps());
    let (process, begin) = (rig.gateway.process_id(), clock::now());
    let answer = rig.gateway.ask(&format!(r#"{{"show":"fault","worker":0,"fault":"{fault}"}}"#))?;
    if answer.contains("error") {
        return Err(Error::State(format!("the gateway does not break its worker: {answer}")));
    }
    // What was on its way has come back by then.
    thread::sleep(Duration::from_millis(100));
    load.await_answers()?;
    figures.figure("recovered_ms", begin.elapsed().as_secs_f64() * 1e3);
    eventually("all workers run again", || {
        let workers = show(&rig.gateway, "workers")?;
        Ok(!rows(&workers).is_empty() && rows(&workers).iter().all(|worker| worker["state"] == "running"))
    })?;
    thread::sleep(SETTLED);
    let (gap, node_gap) = (load.longest_gap_ms(), own.longest_gap_ms());
    figures.figure("gap_ms", gap);
    figures.figure("node_gap_ms", node_gap);
    figures.expect(gap < GAP_MS, || format!("Services were silent for {gap:.0} ms, not below {GAP_MS}"));
    figures.expect(node_gap < NODE_GAP_MS, || {
        format!("the node's own connections were silent for {node_gap:.0} ms, not below {NODE_GAP_MS}")
    });
    figures.expect(rig.gateway.process_id() == process, || "the process is another one".into());
    load.finish("service", figures)?;
    own.finish("node", figures)?;
    rig.check_end(figures, panics_allowed);
    Ok(())
}
