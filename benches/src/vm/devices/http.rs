//! An HTTP client that sends bodies and compares the echoed ones.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::pattern::Pattern;

/// Time limit of one read or write: a machine without KVM is slow, and a link may be down for a while.
const IO_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a backend that serves `/echo`.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(super) fn open(target: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, limit)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends `len` bytes and returns whether the same bytes came back.
    pub(super) fn echo(&mut self, len: usize) -> io::Result<bool> {
        let body = Pattern::new(u64::try_from(len).expect("a length fits 64 bits")).bytes(0, len);
        // Concurrently: with full socket buffers, writing before reading would deadlock.
        let mut sending = self.stream.get_ref().try_clone()?;
        let head = format!("POST /echo HTTP/1.1\r\nHost: lab\r\nContent-Length: {len}\r\n\r\n");
        let came_back = std::thread::scope(|scope| {
            let sender =
                scope.spawn(|| sending.write_all(head.as_bytes()).and_then(|()| sending.write_all(&body)));
            let received = self.receive();
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            received
        })?;
        Ok(came_back == body)
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut len = None;
        for first in [true].into_iter().chain(std::iter::repeat(false)) {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim_end();
            if first && line != "HTTP/1.1 200 OK" {
                return Err(broken(&format!("the answer begins with {line:?}")));
            }
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                len = value.parse().ok();
            }
        }
        let mut body = vec![0; len.ok_or_else(|| broken("the answer has no length"))?];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}
