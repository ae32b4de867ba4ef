//! Where the gateway learns Services from goes away and comes back: traffic must not notice.

use std::time::Duration;
use std::{fs, thread};

use super::disturb::disturb;
use crate::error::{Error, Result};
use crate::lab::faults::figures::Figures;
use crate::lab::faults::rig::{Rig, services};
use crate::lab::faults::show::{await_backends, show};
use crate::lab::faults::{Case, Setting};

pub(super) const CASES: [Case; 1] = [Case { name: "control_stall", run: control_stall }];

const AWAY: Duration = Duration::from_secs(2);

fn control_stall(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let rig = Rig::usual(setting)?;
    let backends = rig.backends();
    let mut seen_stale = false;
    disturb(setting, figures, rig, |rig| {
        let folder = rig.gateway.manifests().path().to_owned();
        let aside = folder.with_extension("aside");
        let moved = |from: &std::path::Path, to: &std::path::Path| {
            fs::rename(from, to).map_err(Error::io(format!("move {}", from.display())))
        };
        moved(&folder, &aside)?;
        thread::sleep(AWAY);
        seen_stale =
            show(&rig.gateway, "tables")?["source"].as_str().is_some_and(|text| text.contains("stale"));
        moved(&aside, &folder)?;
        // A change that is seen proves that the gateway listens again.
        let fewer = &backends[..backends.len() - 1];
        for service in services() {
            rig.gateway.manifests().set_endpoints(&service, fewer)?;
        }
        await_backends(&rig.gateway, fewer)?;
        rig.set_backends(&backends)
    })?;
    figures.expect(seen_stale, || "`show tables` does not say that the source is stale".into());
    Ok(())
}
