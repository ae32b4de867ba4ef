//! Queries over UDP. Answers that need no upstream are sent at once; how many queries wait for upstreams is bounded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Counters;
use super::rate_limit::{RateLimiter, Verdict};
use super::respond::{Outcome, Responder, Response, Transport};

/// The rate limits of all sockets; `None`: there are none.
pub(super) type SharedLimiter = Option<Arc<Mutex<RateLimiter>>>;

/// Answers until dropped. Errors of the socket are logged once per series and do not end it.
pub(super) async fn serve(socket: UdpSocket, responder: Responder, limiter: SharedLimiter) {
    let server = UdpServer { socket, responder, limiter };
    // Tasks, so that a defect that one of them uncovers does not end the others.
    let mut forwarded = JoinSet::new();
    let mut bytes = vec![0; QUERY_LEN_MAX];
    let mut is_failing = false;
    loop {
        tokio::select! {
            received = server.socket.recv_from(&mut bytes) => match received {
                Ok((len, client)) => {
                    is_failing = false;
                    match server.responder.begin(&bytes[..len], client.ip(), Transport::Udp) {
                        Outcome::Ignore => {}
                        Outcome::Respond(response) => server.send(client, response).await,
                        Outcome::Forward(forwarding) => {
                            let response = server.responder.clone().forward(forwarding);
                            forwarded.spawn(async move { (client, response.await) });
                        }
                    }
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "DNS queries over UDP cannot be received; tried again until they can");
                    }
                    is_failing = true;
                    sleep(AFTER_ERROR).await;
                }
            },
            Some(done) = forwarded.join_next(), if !forwarded.is_empty() => {
                if let Ok((client, response)) = done {
                    server.send(client, response).await;
                }
            }
        }
    }
}

struct UdpServer {
    socket: UdpSocket,
    responder: Responder,
    limiter: SharedLimiter,
}

impl UdpServer {
    async fn send(&self, client: SocketAddr, response: Response) {
        let verdict = self.limiter.as_ref().map_or(Verdict::Send, |limiter| {
            let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.decide(client.ip(), response.kind, Instant::now())
        });
        let counters = &self.responder.counters;
        let bytes = match verdict {
            Verdict::Send => response.message.bytes,
            Verdict::Slip => {
                Counters::add(&counters.rate_slipped);
                response.message.shortened()
            }
            Verdict::Drop => {
                Counters::add(&counters.rate_limited);
                return;
            }
        };
        // The source of a query may be forged: there may be no way to it, or it may have port 0.
        if let Err(error) = self.socket.send_to(&bytes, client).await {
            tracing::debug!(%client, %error, "a DNS response was not sent");
        }
    }
}

/// The rest of a longer datagram is cut off, and the query malformed: a name with EDNS and a signature is much shorter.
const QUERY_LEN_MAX: usize = 4096;
const AFTER_ERROR: Duration = Duration::from_millis(100);
