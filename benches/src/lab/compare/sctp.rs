//! SCTP without the kernel's: an INIT over a raw socket, and a server that answers it with its name and the client's address
//! in the State Cookie of an INIT ACK (RFC 9260 sections 3.3.2 and 3.3.3). The rules of both proxies need no more, and most
//! kernels of test machines have no SCTP sockets.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, recvfrom,
    sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::wire::crc32c;
use crate::netns::Namespace;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: [u8; 2] = [0, 7];
/// The common header, and a chunk's type, flags and length.
const HEADER: usize = 12;
const CHUNK_HEADER: usize = 4;
/// Bytes of INIT and INIT ACK before their parameters.
const INIT_LEN: usize = 20;
/// How often a server looks whether it is to end.
const POLL: Duration = Duration::from_millis(50);

/// Answers INITs at one port of every address of a namespace; ends when dropped.
#[derive(Debug)]
pub(super) struct SctpServer {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SctpServer {
    pub(super) fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let open = namespace.run(move || open(family, POLL));
            let raw = open.map_err(Error::io(format!("open a raw SCTP socket in {}", namespace.label())))?;
            let (name, ended) = (name.to_owned(), Arc::clone(&ended));
            threads.push(namespace.spawn_thread("sctp", move || {
                while !ended.load(Ordering::Relaxed) {
                    answer_one(&raw, &name, port);
                }
            })?);
        }
        Ok(Self { ended, threads })
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn answer_one(raw: &OwnedFd, name: &str, port: u16) {
    let mut buffer = [0; 2048];
    let Ok((len, Some(from))) = recvfrom::<SockaddrStorage>(raw.as_raw_fd(), &mut buffer) else { return };
    let Some(client) = address_of(&from) else { return };
    let packet = payload(&buffer[..len], client.is_ipv4());
    let Some(init) =
        packet.filter(|packet| chunk(packet) == Some(INIT) && packet[2..4] == port.to_be_bytes())
    else {
        return;
    };
    let text = format!("{name} {client}");
    let tag = &init[HEADER + CHUNK_HEADER..][..4];
    let answer = build([&init[2..4], &init[..2]], tag, INIT_ACK, text.as_bytes());
    // The client counts missing answers.
    let _ = sendto(
        raw.as_raw_fd(),
        &answer,
        &SockaddrStorage::from(SocketAddr::new(client, 0)),
        MsgFlags::empty(),
    );
}

/// Sends an INIT from the calling thread's namespace; the cookie of the answer, as text.
///
/// # Errors
/// `TimedOut`, or `ConnectionRefused` for an ABORT or an ICMP error, or another error of the network.
pub(super) fn ask(target: SocketAddr, limit: Duration) -> io::Result<String> {
    // Each attempt is an association of its own, as a new socket would be.
    static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
    let port = 20_000 + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % 10_000;
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let raw = open(family, limit / 3)?;
    // Without it a raw socket learns of no ICMP error.
    if target.is_ipv4() {
        setsockopt(&raw, Ipv4RecvErr, &true)?
    } else {
        setsockopt(&raw, Ipv6RecvErr, &true)?
    }
    connect(raw.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(target.ip(), 0)))?;
    let (own, far) = (port.to_be_bytes(), target.port().to_be_bytes());
    let init = build([&own, &far], &[0; 4], INIT, &[]);
    let deadline = clock::now() + limit;
    let mut buffer = [0; 2048];
    send(&raw, &init)?;
    while clock::now() < deadline {
        let len = match recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(io::Error::from) {
            Ok(len) => len,
            // Lost, perhaps because a neighbour had to be resolved first.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                send(&raw, &init)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some(packet) = payload(&buffer[..len], target.is_ipv4()) else { continue };
        if packet.len() < HEADER || packet[..2] != far || packet[2..4] != own {
            continue;
        }
        match chunk(packet) {
            Some(INIT_ACK) => {
                let cookie = packet.get(HEADER + INIT_LEN + 4..).unwrap_or_default();
                return Ok(String::from_utf8_lossy(cookie).trim_end_matches('\0').to_owned());
            }
            Some(ABORT) => return Err(ErrorKind::ConnectionRefused.into()),
            _ => {}
        }
    }
    Err(ErrorKind::TimedOut.into())
}

fn send(raw: &OwnedFd, packet: &[u8]) -> io::Result<()> {
    nix::sys::socket::send(raw.as_raw_fd(), packet, MsgFlags::empty()).map(drop).map_err(Into::into)
}

fn open(family: AddressFamily, timeout: Duration) -> io::Result<OwnedFd> {
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)?;
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(micros / 1_000_000, micros % 1_000_000))?;
    Ok(raw)
}

/// The SCTP packet in what a raw socket has received: IPv4 sockets get the IP header too.
fn payload(received: &[u8], is_ipv4: bool) -> Option<&[u8]> {
    let header = if is_ipv4 { usize::from(received.first()? & 15) * 4 } else { 0 };
    received.get(header..).filter(|packet| packet.len() >= HEADER + CHUNK_HEADER)
}

fn chunk(packet: &[u8]) -> Option<u8> {
    let kind = packet.get(HEADER).copied()?;
    let is_short = matches!(kind, INIT | INIT_ACK) && packet.len() < HEADER + INIT_LEN;
    (!is_short).then_some(kind)
}

/// A packet with one chunk, INIT or INIT ACK, and a cookie if there is one.
fn build(ports: [&[u8]; 2], tag: &[u8], kind: u8, cookie: &[u8]) -> Vec<u8> {
    let mut parameters = Vec::new();
    if !cookie.is_empty() {
        parameters.extend(STATE_COOKIE);
        parameters.extend((4 + u16::try_from(cookie.len()).unwrap_or_default()).to_be_bytes());
        parameters.extend(cookie);
    }
    let chunk_len = u16::try_from(INIT_LEN + parameters.len()).unwrap_or_default();
    let mut packet = [ports[0], ports[1], tag, &[0; 4], &[kind, 0]].concat();
    packet.extend(chunk_len.to_be_bytes());
    // Initiate tag, receive window, streams out and in, first sequence number.
    packet.extend([0x5a, 0xa5, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet.extend(parameters);
    packet.resize(packet.len().next_multiple_of(4), 0);
    let crc = crc32c(&packet);
    packet[8..HEADER].copy_from_slice(&crc.to_le_bytes());
    packet
}

fn address_of(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn an_init_ack_has_its_cookie_where_it_is_looked_for() {
        let packet = build([&[0, 1], &[0, 2]], &[9; 4], INIT_ACK, b"backend-1 192.0.2.10");
        assert_eq!(chunk(&packet), Some(INIT_ACK));
        assert!(packet[HEADER + INIT_LEN + 4..].starts_with(b"backend-1 "));
        assert_eq!(packet.len() % 4, 0);
    }
}
