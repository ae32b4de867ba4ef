//! What the cases read from a gateway with `flowgate show`: drops, events.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::lab::gateway::{Gateway, rows};

/// Packets dropped for one reason, in the XDP program and in the workers.
pub(in crate::lab) fn drops(gateway: &Gateway, reason: &str) -> Result<u64> {
    let drops = gateway.show_json("drops")?;
    let of_reason = rows(&drops).filter(|row| row["reason"] == reason);
    Ok(of_reason.filter_map(|row| row["packets"].as_u64()).sum())
}

/// Packets that a worker did not forward, by reason.
pub(in crate::lab) fn stopped(gateway: &Gateway) -> Result<Map<String, Value>> {
    let (drops, mut stopped) = (gateway.show_json("drops")?, Map::new());
    for row in rows(&drops) {
        let (at, reason) =
            (row["at"].as_str().unwrap_or_default(), row["reason"].as_str().unwrap_or_default());
        if at != "xdp" && row["packets"].as_u64() > Some(0) {
            stopped.insert(format!("{at} {reason}"), row["packets"].clone());
        }
    }
    Ok(stopped)
}

/// The count of an event of `show workers`, summed over the workers.
pub(in crate::lab) fn event(gateway: &Gateway, name: &str) -> Result<u64> {
    let workers = gateway.show_json("workers")?;
    let events = rows(&workers).flat_map(|worker| rows(&worker["events"]));
    Ok(events.filter(|event| event[0] == name).filter_map(|event| event[1].as_u64()).sum())
}
