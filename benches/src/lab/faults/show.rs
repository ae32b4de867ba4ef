//! What a gateway says of itself, as the cases ask it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use super::rig::services;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::Gateway;
use crate::lab::topology::twin;

/// For what happens at once unless it never does.
pub(in crate::lab) const LIMIT: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(10);

/// `flowgate show WHAT -o json`.
pub(in crate::lab) fn show(gateway: &Gateway, what: &str) -> Result<Value> {
    let text = gateway.show(&[what, "-o", "json", "--limit", "100000"])?;
    serde_json::from_str(&text)
        .map_err(|error| Error::State(format!("`show {what} -o json` printed {text:?}: {error}")))
}

/// The rows of a JSON array; none of anything else.
pub(in crate::lab) fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Packets that did not go on, for one reason, wherever it was decided.
pub(in crate::lab) fn drops(gateway: &Gateway, reason: &str) -> Result<u64> {
    let drops = show(gateway, "drops")?;
    let of_reason = rows(&drops).iter().filter(|row| row["reason"] == reason);
    Ok(of_reason.filter_map(|row| row["packets"].as_u64()).sum())
}

/// All packets that did not go on, by place and reason; what passes to the kernel is not among them.
pub(in crate::lab) fn stopped(gateway: &Gateway) -> Result<Map<String, Value>> {
    let (drops, mut stopped) = (show(gateway, "drops")?, Map::new());
    for row in rows(&drops) {
        let (at, reason) =
            (row["at"].as_str().unwrap_or_default(), row["reason"].as_str().unwrap_or_default());
        if at != "xdp" && row["packets"].as_u64() > Some(0) {
            stopped.insert(format!("{at} {reason}"), row["packets"].clone());
        }
    }
    Ok(stopped)
}

/// An event of `show workers`, over all workers.
pub(in crate::lab) fn event(gateway: &Gateway, name: &str) -> Result<u64> {
    let workers = show(gateway, "workers")?;
    let events = rows(&workers).iter().flat_map(|worker| rows(&worker["events"]));
    Ok(events.filter(|event| event[0] == name).filter_map(|event| event[1].as_u64()).sum())
}

/// Waits until every Service of [`services`] has exactly these backends, of both families; returns how long that took.
pub(in crate::lab) fn await_backends(gateway: &Gateway, backends: &[Ipv4Addr]) -> Result<Duration> {
    let both = backends.iter().flat_map(|&address| [IpAddr::V4(address), IpAddr::V6(twin(address))]);
    let mut wanted: Vec<_> = both.flat_map(|address| vec![address; services().len()]).collect();
    wanted.sort_unstable();
    eventually(&format!("all Services have the backends {backends:?}"), || {
        let backends = show(gateway, "backends")?;
        let active = rows(&backends).iter().filter(|row| row["state"] == "active");
        let addresses = active.filter_map(|row| row["address"].as_str()?.parse::<SocketAddr>().ok());
        let mut addresses: Vec<_> = addresses.map(|address| address.ip()).collect();
        addresses.sort_unstable();
        Ok(addresses == wanted)
    })
}

/// Waits until something holds; errors on the way count as "not yet".
pub(in crate::lab) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begin = clock::now();
    loop {
        let last = holds();
        if matches!(last, Ok(true)) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > LIMIT {
            let hint = match last {
                Ok(_) => "it never held".into(),
                Err(error) => error.to_string(),
            };
            return Err(Error::Timeout { what: what.to_owned(), after: LIMIT, hint });
        }
        thread::sleep(STEP);
    }
}
