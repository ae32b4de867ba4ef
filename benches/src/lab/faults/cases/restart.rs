//! The process ends, as asked or not, and another takes its place.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::faults::figures::Figures;
use crate::lab::faults::load::Load;
use crate::lab::faults::rig::Rig;
use crate::lab::faults::{Case, Setting};
use crate::lab::{interrupt, scratch};

pub(super) const CASES: [Case; 3] = [
    Case { name: "hot_restart", run: hot_restart },
    Case { name: "kill_restart", run: kill_restart },
    Case { name: "upgrade", run: upgrade },
];

/// Load before and after, so that what breaks late is seen too.
const SETTLED: Duration = Duration::from_millis(1500);
const GRACE: Duration = Duration::from_secs(5);

fn hot_restart(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    restart(setting, figures, |rig| rig.gateway.terminate(GRACE).map(drop))
}

fn kill_restart(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    restart(setting, figures, |rig| rig.gateway.kill())
}

/// The binary is replaced by one at another path, as packages that keep versions side by side do.
fn upgrade(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let folder = scratch::folder("upgrade")?;
    let copy: PathBuf = folder.path().join("flowgate-next");
    fs::copy(setting.flowgate, &copy).map_err(Error::io(format!(
        "copy {} to {}",
        setting.flowgate.display(),
        copy.display()
    )))?;
    restart(setting, figures, move |rig| {
        rig.gateway.set_binary(copy);
        rig.gateway.terminate(GRACE).map(drop)
    })
}

fn restart(
    setting: &Setting<'_>,
    figures: &mut Figures,
    end: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<()> {
    let mut rig = Rig::usual(setting)?;
    let load = rig.web_load(setting.connections)?;
    let own = rig.own_load()?;
    interrupt::sleep(setting.stop, SETTLED)?;
    forget(&[&load, &own]);
    let begin = clock::now();
    end(&mut rig)?;
    let ended = begin.elapsed();
    rig.gateway.restart()?;
    let restarted = begin.elapsed();
    load.await_answers()?;
    thread::sleep(SETTLED);
    figures.figure("end_ms", ended.as_secs_f64() * 1e3);
    figures.figure("restart_ms", restarted.as_secs_f64() * 1e3);
    figures.figure("gap_ms", load.longest_gap_ms());
    figures.figure("node_gap_ms", own.longest_gap_ms());
    load.finish("service", figures)?;
    own.finish("node", figures)?;
    rig.check_end(figures, 0);
    Ok(())
}

fn forget(loads: &[&Load]) {
    loads.iter().for_each(|load| load.forget_gaps());
}
