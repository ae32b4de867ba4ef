//! Queries over TCP (RFC 7766). A connection may have several under way: those that need no upstream are answered at once
//! and in order, others when their upstream has answered. Everything is bounded: connections by the budget that all servers
//! share, the time for a query, queries under way, and what waits for a client that reads slowly.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::Counters;
use super::respond::{Outcome, Responder, Response, Transport};
use crate::descriptors::{Admission, DescriptorBudget};

/// Accepts connections until dropped, which ends them too.
pub(super) async fn accept(listener: TcpListener, responder: Responder, budget: Arc<DescriptorBudget>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let admission = budget.admit(Some(client.ip())).await;
                connections.spawn(serve(stream, client.ip(), responder.clone(), admission));
            }
            Err(error) => budget.accept_failed(&error).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers until the client closes its side and has all responses, is idle for a while, sends something that is no query, or
/// reads none of them.
async fn serve(stream: TcpStream, client: IpAddr, responder: Responder, mut admission: Admission) {
    let requests = admission.requests();
    let (reader, writer) = stream.into_split();
    let (responses, waiting) = mpsc::channel(RESPONSES_WAITING);
    let connection = Connection { queries: QueryReader::new(reader), responder: &responder, responses };
    // Both halves are closed before the admission is dropped.
    let exchange = async {
        let mut writing = pin!(write(writer, waiting, &requests));
        tokio::select! {
            () = &mut writing => {}
            () = connection.answer(client, &requests) => writing.await,
        }
    };
    tokio::select! {
        () = exchange => {}
        () = admission.shed() => Counters::add(&responder.counters.connections_shed),
    }
}

/// The reading side of a connection.
struct Connection<'a> {
    queries: QueryReader,
    responder: &'a Responder,
    responses: mpsc::Sender<Response>,
}

impl Connection<'_> {
    /// Answers queries until there are no more, and those under way.
    async fn answer(self, client: IpAddr, requests: &AtomicUsize) {
        let Self { mut queries, responder, responses } = self;
        let mut forwarded = FuturesUnordered::new();
        let mut is_open = true;
        while is_open || !forwarded.is_empty() {
            // Sending waits for a client that reads slowly, instead of reading more from it.
            let sent = tokio::select! {
                query = queries.next(), if is_open && forwarded.len() < FORWARDED_MAX => {
                    let Ok(Some(query)) = query else {
                        // The client may have closed its side only, and still waits for responses.
                        is_open = false;
                        continue;
                    };
                    requests.fetch_add(1, Ordering::Relaxed);
                    match responder.begin(&query, client, Transport::Tcp) {
                        // Who sends responses or nonsense does not speak DNS.
                        Outcome::Ignore => return,
                        Outcome::Respond(response) => responses.send(response).await,
                        Outcome::Forward(forwarding) => {
                            forwarded.push(responder.clone().forward(forwarding));
                            Ok(())
                        }
                    }
                }
                Some(response) = forwarded.next(), if !forwarded.is_empty() => responses.send(response).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

/// Writes responses until there are no more, or until the client reads none for a while.
async fn write(mut writer: OwnedWriteHalf, mut responses: mpsc::Receiver<Response>, requests: &AtomicUsize) {
    while let Some(response) = responses.recv().await {
        let mut bytes = response.message.bytes;
        let len = u16::try_from(bytes.len()).expect("a response has at most 65,535 bytes");
        // Length and message in one segment (RFC 7766 section 8).
        bytes.splice(..0, len.to_be_bytes());
        if !matches!(timeout(WRITE_MAX, writer.write_all(&bytes)).await, Ok(Ok(()))) {
            return;
        }
        requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads queries, each with its length before it. A call of [`next`](Self::next) that is cancelled loses nothing.
struct QueryReader {
    reader: OwnedReadHalf,
    bytes: Vec<u8>,
    filled: usize,
    /// How long the client may be silent before its next query.
    silence_max: Duration,
    /// Until when that query must begin or, once it has, be whole; from the first attempt to read it.
    deadline: Option<Instant>,
}

impl QueryReader {
    fn new(reader: OwnedReadHalf) -> Self {
        let bytes = vec![0; LEN_LEN + QUERY_LEN_MAX];
        Self { reader, bytes, filled: 0, silence_max: QUERY_MAX, deadline: None }
    }

    /// The next query; `None` after the last.
    ///
    /// # Errors
    /// The connection failed, the query is longer than any, or it did not come in time.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(query) = self.take()? {
                return Ok(Some(query));
            }
            let wait = if self.filled == 0 { self.silence_max } else { QUERY_MAX };
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + wait);
            let read = self.reader.read(&mut self.bytes[self.filled..]);
            let len = timeout_at(deadline, read).await.map_err(|_elapsed| io::ErrorKind::TimedOut)??;
            if len == 0 {
                return Ok(None);
            }
            if self.filled == 0 {
                self.deadline = Some(Instant::now() + QUERY_MAX);
            }
            self.filled += len;
        }
    }

    /// Takes a query that is whole.
    fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(&len) = self.bytes[..self.filled].first_chunk::<LEN_LEN>() else { return Ok(None) };
        let end = LEN_LEN + usize::from(u16::from_be_bytes(len));
        if end > self.bytes.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.filled < end {
            return Ok(None);
        }
        let query = self.bytes[LEN_LEN..end].to_vec();
        self.bytes.copy_within(end..self.filled, 0);
        self.filled -= end;
        (self.silence_max, self.deadline) = (IDLE_MAX, None);
        Ok(Some(query))
    }
}

/// The field before each message (RFC 1035 section 4.2.2).
const LEN_LEN: usize = 2;
/// A name with EDNS and a signature is much shorter.
const QUERY_LEN_MAX: usize = 4096;
/// Responses that wait while another is being written. Each may have 64 KB.
const RESPONSES_WAITING: usize = 1;
/// Queries of a connection that wait for upstreams.
const FORWARDED_MAX: usize = 16;
/// For the first query after the connection is open, and for the rest of one that has begun.
const QUERY_MAX: Duration = Duration::from_secs(1);
/// Until the next query begins.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// For a response, until the client has read most of it.
const WRITE_MAX: Duration = Duration::from_secs(3);
