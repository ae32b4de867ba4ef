//! The client side of the admin socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{Request, Response};

/// Sends a request to the flowgate that listens on `socket` and waits for its response.
///
/// # Errors
/// Nobody listens there, the response takes longer than [`TIMEOUT`], or it is [`Response::Error`].
pub(crate) fn request(socket: &Path, request: Request) -> anyhow::Result<Response> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no flowgate answers on {place}: is `flowgate run` up? (--socket PATH)"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).with_context(|| format!("sending the request to {place}"))?;
    let mut response = String::new();
    BufReader::new(stream).read_line(&mut response).with_context(|| format!("no answer on {place}"))?;
    match serde_json::from_str(&response).with_context(|| format!("the answer on {place} makes no sense"))? {
        Response::Error(reason) => anyhow::bail!("{place}: {reason}"),
        response => Ok(response),
    }
}

const TIMEOUT: Duration = Duration::from_secs(10);
