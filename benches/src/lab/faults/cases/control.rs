//! The source of Services disappears and comes back; established traffic must not be affected.

use std::time::Duration;
use std::{fs, thread};

use super::disturb::disturb;
use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{TestBed, services};

use crate::lab::faults::{Case, CaseContext};

pub(super) const CASES: [Case; 1] = [Case { name: "control_stall", run: control_stall }];

const OUTAGE: Duration = Duration::from_secs(2);

fn control_stall(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    let backends = bed.backends();
    let mut seen_stale = false;
    disturb(context, result, bed, |bed| {
        let folder = bed.gateway.manifests().path().to_owned();
        let aside = folder.with_extension("aside");
        let moved = |from: &std::path::Path, to: &std::path::Path| {
            fs::rename(from, to).map_err(Error::io(format!("move {}", from.display())))
        };
        moved(&folder, &aside)?;
        thread::sleep(OUTAGE);
        seen_stale =
            bed.gateway.show_json("tables")?["source"].as_str().is_some_and(|text| text.contains("stale"));
        moved(&aside, &folder)?;
        // A change that takes effect proves that the gateway reads the source again.
        let fewer = &backends[..backends.len() - 1];
        for service in services() {
            bed.gateway.manifests().set_endpoints(&service, fewer)?;
        }
        bed.await_backends(fewer)?;
        bed.set_backends(&backends)
    })?;
    result.expect(seen_stale, || "`show tables` does not report the source as stale".into());
    Ok(())
}
