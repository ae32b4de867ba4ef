//! Idle connections: opened, and left alone until the end.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::test_bed::STREAM;
use crate::error::Result;
use crate::loadgen::raise_open_files;
use crate::netns::Namespace;

/// Connections of a client without an exchange.
pub(in crate::lab) struct Idle<'n> {
    client: &'n Namespace,
    streams: Vec<TcpStream>,
}

impl<'n> Idle<'n> {
    pub(in crate::lab) fn new(client: &'n Namespace) -> Self {
        Self { client, streams: Vec::new() }
    }

    /// Connects until there are `wanted` connections, or `refused_max` attempts have failed.
    pub(in crate::lab) fn connect(&mut self, wanted: usize, refused_max: usize) -> Result<()> {
        raise_open_files()?;
        let streams = &mut self.streams;
        self.client.enter(|| {
            let mut refused = 0;
            while streams.len() < wanted && refused < refused_max {
                match connect() {
                    Ok(stream) => streams.push(stream),
                    Err(_) => refused += 1,
                }
            }
        })
    }

    /// The number of connections.
    pub(in crate::lab) fn len(&self) -> usize {
        self.streams.len()
    }

    /// The number of connections whose server still answers.
    pub(in crate::lab) fn answered(&mut self) -> Result<usize> {
        let streams = &mut self.streams;
        self.client.enter(|| streams.iter_mut().filter_map(|stream| echo(stream).ok()).count())
    }
}

/// Connects, and reads the name of the server, a line.
fn connect() -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(STREAM), Duration::from_millis(200))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

/// Sends a byte and reads it back.
fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}
