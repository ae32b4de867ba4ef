//! The address that sources are replaced by goes away and comes back, and another one joins it.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::figures::Figures;
use crate::lab::faults::rig::Rig;
use crate::lab::faults::{Case, Setting};
use crate::lab::topology::{FABRIC, GATEWAY_FABRIC, twin};

pub(super) const CASES: [Case; 1] = [Case { name: "address_change", run: address_change }];

const AWAY: Duration = Duration::from_millis(500);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

fn address_change(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let rig = Rig::usual(setting)?;
    let gateway = rig.topology.gateway().clone();
    let each = |verb: &str, v4: Ipv4Addr| -> Result<()> {
        gateway.ip(&format!("addr {verb} {v4}/24 dev {FABRIC}"))?;
        gateway.ip(&format!("addr {verb} {}/64 dev {FABRIC} nodad", twin(v4))).map(drop)
    };
    disturb(setting, figures, rig, |_| {
        each("del", GATEWAY_FABRIC)?;
        thread::sleep(AWAY);
        each("add", GATEWAY_FABRIC)?;
        thread::sleep(AWAY);
        each("add", SECOND)?;
        thread::sleep(AWAY);
        each("del", SECOND)
    })
}
