//! Looks up route and neighbour of a destination in the kernel.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::MacAddr;
use crate::clock;
use crate::error::{Error, Result};

const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(3);

/// Interface and next hop of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextHop {
    /// The interface.
    pub interface: String,
    /// The Ethernet address of the next hop.
    pub mac: MacAddr,
}

#[derive(Deserialize)]
struct RouteAnswer {
    dev: String,
    gateway: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
struct NeighbourAnswer {
    lladdr: Option<String>,
}

/// Finds the next hop to `destination` in the calling thread's namespace, and resolves its Ethernet address if needed.
pub fn resolve(destination: Ipv4Addr) -> Result<NextHop> {
    let no_route =
        || Error::State(format!("there is no route to {destination}: check `ip route get {destination}`"));
    let routes: Vec<RouteAnswer> = ip_json(&["route", "get", &destination.to_string()])?;
    let route = routes.into_iter().next().ok_or_else(no_route)?;
    let hop = route.gateway.unwrap_or(destination);
    let deadline = clock::now() + NEIGHBOUR_LIMIT;
    loop {
        let neighbours: Vec<NeighbourAnswer> =
            ip_json(&["neigh", "show", "to", &hop.to_string(), "dev", &route.dev])?;
        if let Some(mac) = neighbours.into_iter().find_map(|neighbour| neighbour.lladdr) {
            return Ok(NextHop { interface: route.dev, mac: mac.parse()? });
        }
        if clock::now() > deadline {
            return Err(Error::Timeout {
                what: format!("the answer of {hop} to ARP on {}", route.dev),
                after: NEIGHBOUR_LIMIT,
                hint: "check that it is up and on this link".into(),
            });
        }
        // Any datagram makes the kernel resolve the neighbour; port 9 is discard.
        let nudge =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.send_to(&[0], (hop, 9)));
        nudge.map_err(Error::io(format!("send a datagram to {hop}")))?;
        thread::sleep(Duration::from_millis(20));
    }
}

fn ip_json<T: serde::de::DeserializeOwned>(arguments: &[&str]) -> Result<Vec<T>> {
    let line = format!("ip -j {}", arguments.join(" "));
    let output = Command::new("ip").arg("-j").args(arguments).output();
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::MissingProgram { program: "ip".into(), package: "iproute2" },
        _ => Error::io(format!("run `{line}`"))(error),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Command { command: line, namespace: "of this thread".into(), output: text });
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::State(format!("`{line}` printed something unexpected: {error}")))
}
