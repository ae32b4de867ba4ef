//! The gateway is restarted: after SIGTERM, after SIGKILL, and with another binary.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::load::Load;
use crate::lab::faults::test_bed::TestBed;
use crate::lab::faults::{Case, CaseContext};
use crate::lab::{interrupt, scratch};

pub(super) const CASES: [Case; 3] = [
    Case { name: "hot_restart", run: hot_restart },
    Case { name: "kill_restart", run: kill_restart },
    Case { name: "upgrade", run: upgrade },
];

/// Traffic before and after, to catch late failures too.
const SETTLE_TIME: Duration = Duration::from_millis(1500);
const GRACE: Duration = Duration::from_secs(5);

fn hot_restart(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    restart(context, result, |bed| bed.gateway.terminate(GRACE).map(drop))
}

fn kill_restart(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    restart(context, result, |bed| bed.gateway.kill())
}

/// The next process runs another binary at another path, as with packages installed side by side.
fn upgrade(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let folder = scratch::folder("upgrade")?;
    let copy: PathBuf = folder.path().join("flowgate-next");
    fs::copy(context.flowgate, &copy).map_err(Error::io(format!(
        "copy {} to {}",
        context.flowgate.display(),
        copy.display()
    )))?;
    restart(context, result, move |bed| {
        bed.gateway.set_binary(copy);
        bed.gateway.terminate(GRACE).map(drop)
    })
}

fn restart(
    context: &CaseContext<'_>,
    result: &mut CaseResult,
    end: impl FnOnce(&mut TestBed) -> Result<()>,
) -> Result<()> {
    let mut bed = TestBed::with_defaults(context)?;
    let load = bed.web_load(context.connections)?;
    let node_load = bed.node_load()?;
    interrupt::sleep(context.stop, SETTLE_TIME)?;
    forget(&[&load, &node_load]);
    let begin = clock::now();
    end(&mut bed)?;
    let ended = begin.elapsed();
    bed.gateway.restart()?;
    let restarted = begin.elapsed();
    load.await_answers()?;
    thread::sleep(SETTLE_TIME);
    result.record("end_ms", ended.as_secs_f64() * 1e3);
    result.record("restart_ms", restarted.as_secs_f64() * 1e3);
    result.record("gap_ms", load.longest_gap_ms());
    result.record("node_gap_ms", node_load.longest_gap_ms());
    load.finish("service", result)?;
    node_load.finish("node", result)?;
    bed.check_end(result, 0);
    Ok(())
}

fn forget(loads: &[&Load]) {
    loads.iter().for_each(|load| load.reset_gaps());
}
