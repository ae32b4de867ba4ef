//! The SNAT address of the gateway is removed and added again, then a second one is added and removed.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::TestBed;
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::{FABRIC, GATEWAY_FABRIC, ipv6_of};

pub(super) const CASES: [Case; 1] = [Case { name: "address_change", run: address_change }];

const OUTAGE: Duration = Duration::from_millis(500);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

fn address_change(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    let gateway = bed.topology.gateway().clone();
    let each = |verb: &str, v4: Ipv4Addr| -> Result<()> {
        gateway.ip(&format!("addr {verb} {v4}/24 dev {FABRIC}"))?;
        gateway.ip(&format!("addr {verb} {}/64 dev {FABRIC} nodad", ipv6_of(v4))).map(drop)
    };
    disturb(context, result, bed, |_| {
        each("del", GATEWAY_FABRIC)?;
        thread::sleep(OUTAGE);
        each("add", GATEWAY_FABRIC)?;
        thread::sleep(OUTAGE);
        each("add", SECOND)?;
        thread::sleep(OUTAGE);
        each("del", SECOND)
    })
}
