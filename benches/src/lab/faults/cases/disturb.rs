//! What the cases of changing surroundings have in common: connections at work, a change, and a look at what it did.

use std::thread;
use std::time::Duration;

use crate::error::Result;
use crate::lab::faults::Setting;
use crate::lab::faults::figures::Figures;
use crate::lab::faults::load::new_connections_work;
use crate::lab::faults::rig::{Rig, web_targets};
use crate::lab::interrupt;
use crate::loadgen::stream::Exchange;

const SETTLED: Duration = Duration::from_millis(1500);

/// Connections live through it, and new ones work afterwards.
pub(super) fn disturb(
    setting: &Setting<'_>,
    figures: &mut Figures,
    mut rig: Rig,
    change: impl FnOnce(&mut Rig) -> Result<()>,
) -> Result<()> {
    let load = rig.web_load(setting.connections)?;
    let own = rig.own_load()?;
    interrupt::sleep(setting.stop, Duration::from_millis(500))?;
    [&load, &own].iter().for_each(|load| load.forget_gaps());
    change(&mut rig)?;
    load.await_answers()?;
    thread::sleep(SETTLED);
    figures.figure("gap_ms", load.longest_gap_ms());
    figures.figure("node_gap_ms", own.longest_gap_ms());
    for (label, target) in web_targets() {
        let exchange = Exchange::Http { path: "/bytes/512".into() };
        let fresh = new_connections_work(rig.client(), target, &exchange, Duration::from_millis(300))?;
        figures.expect(fresh.failures() == 0 && fresh.exchanges > 0, || {
            format!("new connections to {label} fail afterwards: {:?}", fresh.first_failure)
        });
    }
    load.finish("service", figures)?;
    own.finish("node", figures)?;
    rig.check_end(figures, 0);
    Ok(())
}
