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
    /// What it says.
    pub answer: EchoAnswer,
    /// What it does wrong, so that a test can see that a client notices.
    pub fault: Option<EchoFault>,
}

/// What an echo server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoAnswer {
    /// What it hears.
    Echo,
    /// TCP: its name and a line feed when a connection opens, then what it hears. UDP: its name for every datagram.
    Name,
    /// The same, with the client's address as the server sees it after the name.
    NameAndClient,
}

impl EchoAnswer {
    /// What the server says of itself, if anything.
    fn banner(self, name: &str, client: SocketAddr) -> Option<String> {
        match self {
            Self::Echo => None,
            Self::Name => Some(name.to_owned()),
            Self::NameAndClient => Some(format!("{name} {}", client.ip().to_canonical())),
        }
    }
}

/// What an echo server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoFault {
    /// Flips a bit of this byte of each TCP stream or UDP datagram.
    CorruptByte(u64),
    /// UDP: does not answer every n-th datagram.
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
        // Running out of descriptors passes; the client's connection waits in the queue.
        let Ok((stream, peer)) = accepted else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        clients.note(peer.ip());
        let options = options.clone();
        // How the client ends its connection is its own business.
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
            // A burst waits in the socket rather than being lost.
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
        // An ICMP error for an earlier answer shows up here; the next datagram is not affected.
        let Ok((len, peer)) = socket.recv_from(&mut buffer).await else { continue };
        clients.note(peer.ip());
        count += 1;
        if matches!(options.fault, Some(EchoFault::LoseEvery(every)) if count % every == 0) {
            continue;
        }
        corrupt(options.fault, 0, &mut buffer[..len]);
        let banner = options.answer.banner(&options.name, peer);
        let answer = banner.as_ref().map_or(&buffer[..len], |text| text.as_bytes());
        // The client counts what it misses.
        let _ = socket.send_to(answer, peer).await;
    }
}
