//! Asking a running flowgate.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{Answer, Question};

/// Asks the flowgate that listens on `socket`.
///
/// # Errors
/// Nobody listens there, it does not answer in time, or it refuses the question.
pub(crate) fn ask(socket: &Path, question: Question) -> anyhow::Result<Answer> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no flowgate answers on {place}: is `flowgate run` up? (--socket PATH)"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&question)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).with_context(|| format!("asking on {place}"))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).with_context(|| format!("no answer on {place}"))?;
    match serde_json::from_str(&answer).with_context(|| format!("the answer on {place} makes no sense"))? {
        Answer::Error(reason) => anyhow::bail!("{place}: {reason}"),
        answer => Ok(answer),
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
