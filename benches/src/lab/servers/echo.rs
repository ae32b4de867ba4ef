//! Echo servers for TCP and UDP.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{ClientsSeen, ServerThread, tcp_listener};
use crate::error::{Error, Result};
use crate::netns::Namespace;

/// How an echo server behaves.
#[derive(Debug, Clone)]
pub struct EchoOptions {
    /// The name of the backend.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What it answers.
    pub answer: EchoAnswer,
    /// A fault to inject, to test that clients notice it.
    pub fault: Option<EchoFault>,
}

/// What an echo server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoAnswer {
    /// The received bytes.
    Echo,
    /// TCP: a line with its name when a connection opens, then the received bytes. UDP: its name for every datagram.
    Name,
    /// As [`Self::Name`], with the client address that the server sees after the name.
    NameAndClient,
}

impl EchoAnswer {
    /// The line that the server sends about itself, if any.
    fn banner(self, name: &str, client: SocketAddr) -> Option<String> {
        match self {
            Self::Echo => None,
            Self::Name => Some(name.to_owned()),
            Self::NameAndClient => Some(format!("{name} {}", client.ip().to_canonical())),
        }
    }
}

/// An injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoFault {
    /// Flip a bit of this byte of each TCP stream or UDP datagram.
    CorruptByte(u64),
    /// UDP: ignore every n-th datagram.
    LoseEvery(u64),
}

impl EchoOptions {
    /// A correct server on every address of both families.
    pub fn new(name: &str, port: u16, answer: EchoAnswer) -> Self {
        Self {
            name: name.to_owned(),
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            answer,
            fault: None,
        }
    }
}

/// A running TCP echo server; stopped, with all its connections, when dropped.
#[derive(Debug)]
pub struct TcpEchoServer {
    clients: ClientsSeen,
    _thread: ServerThread,
}

impl TcpEchoServer {
    /// Starts a server in a namespace; it accepts connections when this returns.
    pub fn start(namespace: &Namespace, options: EchoOptions) -> Result<Self> {
        let listener = tcp_listener(namespace, options.listen)?;
        let clients = ClientsSeen::default();
        let thread = ServerThread::start(namespace, &format!("tcp-{}", options.name), {
            let clients = clients.clone();
            |stopped| async move {
                let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                accept_until(stopped, &listener, &clients, &options).await;
            }
        })?;
        Ok(Self { clients, _thread: thread })
    }

    /// The addresses that connected.
    pub fn clients(&self) -> &ClientsSeen {
        &self.clients
    }
}

async fn accept_until(
    mut stopped: watch::Receiver<bool>,
    listener: &TcpListener,
    clients: &ClientsSeen,
    options: &EchoOptions,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        // EMFILE is temporary; the connection stays in the backlog.
        let Ok((stream, peer)) = accepted else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        clients.note(peer.ip());
        let options = options.clone();
        // How the client ends its connection does not matter.
        tokio::task::spawn_local(async move { echo(stream, peer, &options).await.ok() });
    }
}

async fn echo(mut stream: TcpStream, peer: SocketAddr, options: &EchoOptions) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(banner) = options.answer.banner(&options.name, peer) {
        stream.write_all(format!("{banner}\n").as_bytes()).await?;
    }
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return stream.shutdown().await;
        }
        corrupt(options.fault, offset, &mut buffer[..len]);
        stream.write_all(&buffer[..len]).await?;
        offset += u64::try_from(len).expect("a length fits 64 bits");
    }
}

fn corrupt(fault: Option<EchoFault>, offset: u64, bytes: &mut [u8]) {
    let Some(EchoFault::CorruptByte(place)) = fault else { return };
    let place = place.checked_sub(offset).and_then(|place| usize::try_from(place).ok());
    if let Some(byte) = place.and_then(|place| bytes.get_mut(place)) {
        *byte ^= 1;
    }
}

/// A running UDP echo server; stopped when dropped.
#[derive(Debug)]
pub struct UdpEchoServer {
    clients: ClientsSeen,
    _thread: ServerThread,
}

impl UdpEchoServer {
    /// Starts a server in a namespace; its socket is open when this returns.
    pub fn start(namespace: &Namespace, options: EchoOptions) -> Result<Self> {
        let listen = options.listen;
        let socket = namespace.run(move || {
            let socket = UdpSocket::bind(listen)?;
            socket.set_nonblocking(true)?;
            // A large receive buffer, so that bursts are not dropped.
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20))?;
            Ok(socket)
        });
        let socket =
            socket.map_err(Error::io(format!("bind UDP {listen} in namespace {}", namespace.label())))?;
        let clients = ClientsSeen::default();
        let thread = ServerThread::start(namespace, &format!("udp-{}", options.name), {
            let clients = clients.clone();
            |mut stopped| async move {
                let socket = tokio::net::UdpSocket::from_std(socket).expect("the socket is non-blocking");
                tokio::select! {
                    () = answer_datagrams(&socket, &clients, &options) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            }
        })?;
        Ok(Self { clients, _thread: thread })
    }

    /// The addresses that sent datagrams.
    pub fn clients(&self) -> &ClientsSeen {
        &self.clients
    }
}

async fn answer_datagrams(socket: &tokio::net::UdpSocket, clients: &ClientsSeen, options: &EchoOptions) {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        // The error is that of an ICMP message for an earlier answer; the next datagram is not affected.
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
        clients.note(peer.ip());
        count += 1;
        if matches!(options.fault, Some(EchoFault::LoseEvery(every)) if count % every == 0) {
            continue;
        }
        corrupt(options.fault, 0, &mut buffer[..len]);
        let banner = options.answer.banner(&options.name, peer);
        let answer = banner.as_ref().map_or(&buffer[..len], |text| text.as_bytes());
        // The client counts missing answers.
        let _ = socket.send_to(answer, peer).await;
    }
}
