//! Sends each probe many times as an ordinary client would, each time over a new connection.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::observation::{Attempt, Compare, Observation};
use super::sctp;
use crate::error::{Error, Result};
use crate::lab::topology::Host;
use crate::loadgen::stop::Stop;

/// Concurrent probes.
const CONCURRENCY: usize = 12;
/// Attempts per probe: with three backends all of them answer, except with a probability of 1e-10.
const ATTEMPTS: usize = 60;
/// Attempts of a probe if none of the first is answered.
const UNANSWERED_ATTEMPTS: usize = 3;
/// ENOPROTOOPT.
const PROTOCOL_UNREACHABLE: i32 = 92;
/// Longer than the first SYN retransmission, in case a neighbour has to be resolved first.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);

/// Where to send to, and what to compare of the answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probe {
    pub(super) id: String,
    pub(super) about: String,
    pub(super) to: Vec<Target>,
    #[serde(default = "first_client")]
    pub(super) client: usize,
    /// The number of the backend that sends it, in place of a client.
    #[serde(default)]
    pub(super) pod: Option<usize>,
    #[serde(default)]
    pub(super) compare: Compare,
}

/// `tcp ADDRESS:PORT`, `udp ADDRESS:PORT` or `sctp ADDRESS:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Target {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Sctp(SocketAddr),
}

impl Target {
    fn is_ipv4(self) -> bool {
        let (Self::Tcp(address) | Self::Udp(address) | Self::Sctp(address)) = self;
        address.is_ipv4()
    }
}

impl Probe {
    /// A probe for a Service at this ClusterIP.
    pub(super) fn sentinel(address: &str) -> Self {
        let address: Ipv4Addr = address.parse().expect("the API server gives every Service an address");
        let to = vec![Target::Tcp(SocketAddr::from((address, 80)))];
        Self {
            id: "sentinel".into(),
            about: "a new Service".into(),
            to,
            client: first_client(),
            pod: None,
            compare: Compare::Names,
        }
    }
}

/// Sends these probes from the client's namespace.
pub(super) fn send_all(
    client: &Host,
    probes: &[&Probe],
    stop: &Stop,
) -> Result<BTreeMap<String, Observation>> {
    client.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("make a runtime for the probes"))?;
        runtime.block_on(async {
            // The kernel reports an ICMP error to every raw socket with the same peer: one at a time.
            let raw = Mutex::new(());
            let raw = &raw;
            let sent = stream::iter(probes.iter().map(|probe| async move {
                let attempts = attempts(probe, raw, stop).await?;
                let is_ipv4 = probe.to.iter().all(|target| target.is_ipv4());
                let own = if is_ipv4 { IpAddr::from(client.address) } else { client.address_v6.into() };
                let seen = Observation::of(&attempts, own, probe.compare);
                Ok((probe.id.clone(), seen))
            }));
            let seen: Vec<Result<_>> = sent.buffer_unordered(CONCURRENCY).collect().await;
            seen.into_iter().collect()
        })
    })?
}

async fn attempts(probe: &Probe, raw: &Mutex<()>, stop: &Stop) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for target in probe.to.iter().cycle().take(ATTEMPTS) {
        if stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let attempt = match target {
            Target::Tcp(address) => timeout(ATTEMPT_TIMEOUT, over_tcp(*address)).await,
            Target::Udp(address) => timeout(ATTEMPT_TIMEOUT, over_udp(*address)).await,
            Target::Sctp(address) => Ok(over_sctp(*address, raw).await),
        };
        attempts.push(match attempt {
            Err(_) => Attempt::Silent,
            Ok(Ok(text)) => parse_answer(&text)?,
            Ok(Err(error)) => attempt_of_error(&error)?,
        });
        let answered = attempts.iter().any(|attempt| matches!(attempt, Attempt::Answer { .. }));
        if !answered && attempts.len() == UNANSWERED_ATTEMPTS {
            break;
        }
    }
    Ok(attempts)
}

/// The first line that the server sends.
async fn over_tcp(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let mut text = String::new();
    let mut byte = [0];
    while stream.read(&mut byte).await? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

/// The answer to a datagram, which is sent again if it was lost.
async fn over_udp(address: SocketAddr) -> io::Result<String> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    let mut buffer = [0; 256];
    loop {
        socket.send(b"who are you?").await?;
        if let Ok(received) = timeout(ATTEMPT_TIMEOUT / 3, socket.recv(&mut buffer)).await {
            return Ok(String::from_utf8_lossy(&buffer[..received?]).into_owned());
        }
    }
}

async fn over_sctp(address: SocketAddr, raw: &Mutex<()>) -> io::Result<String> {
    let _turn = raw.lock().await;
    // A thread of the pool is in the namespace of the thread that started it.
    let asked = spawn_blocking(move || sctp::ask(address, ATTEMPT_TIMEOUT)).await;
    asked.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

fn parse_answer(text: &str) -> Result<Attempt> {
    let parsed = text.split_once(' ').and_then(|(backend, sees)| {
        Some(Attempt::Answer { backend: backend.to_owned(), sees: sees.parse().ok()? })
    });
    parsed.ok_or_else(|| Error::State(format!("a probe got {text:?}, which no backend of the lab sends")))
}

fn attempt_of_error(error: &io::Error) -> Result<Attempt> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Ok(Attempt::Refused),
        // Accepted, then reset before the greeting: no backend of the lab does this, so a proxy refused it.
        io::ErrorKind::ConnectionReset => Ok(Attempt::Refused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Ok(Attempt::Unreachable),
        io::ErrorKind::TimedOut => Ok(Attempt::Silent),
        // ICMP protocol unreachable: this kernel has no SCTP of its own.
        _ if matches!(error.raw_os_error(), Some(PROTOCOL_UNREACHABLE)) => Ok(Attempt::Unreachable),
        _ => Err(Error::State(format!("a probe could not be sent: {error}"))),
    }
}

fn first_client() -> usize {
    1
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not `tcp ADDRESS:PORT`, `udp ...` or `sctp ...`");
        let (protocol, address) = text.split_once(' ').ok_or_else(wrong)?;
        let address = address.parse().ok().ok_or_else(wrong)?;
        match protocol {
            "tcp" => Ok(Self::Tcp(address)),
            "udp" => Ok(Self::Udp(address)),
            "sctp" => Ok(Self::Sctp(address)),
            _ => Err(wrong()),
        }
    }
}
