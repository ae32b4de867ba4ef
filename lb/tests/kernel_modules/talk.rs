//! Connections whose bytes are all compared with what was sent.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use flowgate_benches::netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

/// For what happens soon unless it never does: several retransmissions in a machine that is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one write, and so of one message of SCTP.
const PIECE: usize = 9000;
const TURN: Duration = Duration::from_millis(200);

pub(crate) const TCP: Protocol = Protocol::TCP;
pub(crate) const SCTP: Protocol = Protocol::SCTP;

/// The client's end of a connection or association.
pub(crate) struct Talk {
    socket: Socket,
    said: u64,
}

impl Talk {
    /// Connects from one address of the calling thread's namespace. SCTP announces no other one then.
    pub(crate) fn open(protocol: Protocol, own: IpAddr, target: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(protocol))?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(&target.into())?;
        Ok(Self { socket, said: 0 })
    }

    /// Says so many bytes and hears the same.
    pub(crate) fn exchange(&mut self, len: usize) -> Result<()> {
        let said = pattern(self.said, len);
        self.said += len as u64;
        thread::scope(|scope| {
            let speaker =
                scope.spawn(|| said.chunks(PIECE).try_for_each(|piece| (&self.socket).write_all(piece)));
            let mut heard = vec![0; len];
            let outcome = (&self.socket).read_exact(&mut heard);
            if outcome.is_err() {
                // The speaker may wait for room that nobody makes.
                let _ = self.socket.shutdown(Shutdown::Both);
            }
            let spoken = speaker.join().expect("writing does not panic");
            outcome.with_context(|| format!("hearing {len} bytes"))?;
            spoken.context("saying")?;
            let wrong = heard.iter().zip(&said).position(|(heard, said)| heard != said);
            ensure!(wrong.is_none(), "byte {wrong:?} of {len} is another one");
            Ok(())
        })
    }

    /// Ends in order, and hears the other side do the same. Counters of the kernel tell that SCTP did.
    pub(crate) fn close(self) -> Result<()> {
        self.socket.shutdown(Shutdown::Write).context("ending")?;
        match (&self.socket).read(&mut [0; 16]) {
            // The latter is what SCTP says when the handshake of the end is done already.
            Ok(0) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Ok(rest) => bail!("{rest} bytes more than were said"),
            Err(error) => Err(error).context("waiting for the other end"),
        }
    }
}

/// Bytes that differ from place to place in a stream.
fn pattern(from: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1];
    (from..).take(len).map(byte).collect()
}

/// Echoes what it hears at one address, by SCTP; ended when dropped.
pub(crate) struct SctpEchoServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    accepted: AtomicU64,
    /// How conversations ended that did not end in order.
    failures: Mutex<Vec<String>>,
}

impl SctpEchoServer {
    /// Listens when this returns.
    pub(crate) fn start(namespace: &Namespace, listen: SocketAddr) -> Result<Self> {
        let listener = namespace.run(move || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(SCTP))?;
            socket.bind(&listen.into())?;
            socket.listen(64)?;
            // So that accepting ends now and then, and sees that it is to stop.
            socket.set_read_timeout(Some(TURN))?;
            Ok(socket)
        });
        let listener = listener.with_context(|| format!("listening by SCTP at {listen}"))?;
        let shared = Arc::<Shared>::default();
        let thread = namespace.spawn_thread("sctp-echo", {
            let shared = Arc::clone(&shared);
            move || shared.serve(&listener)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many associations there were.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Those that did not end in order.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for SctpEchoServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed, and what it took along is missed by the client.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, listener: &Socket) {
        thread::scope(|scope| {
            while !self.stopped.load(Ordering::Relaxed) {
                let Ok((socket, _)) = listener.accept() else { continue };
                self.accepted.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    if let Err(error) = self.echo(&socket) {
                        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                    }
                });
            }
        });
    }

    fn echo(&self, mut socket: &Socket) -> io::Result<()> {
        socket.set_read_timeout(Some(TURN))?;
        let mut buffer = vec![0; 64 * 1024];
        while !self.stopped.load(Ordering::Relaxed) {
            match socket.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => socket.write_all(&buffer[..len])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
