//! Queries over TCP, with a limit on connections: clients must not use up the file descriptors of the process. The
//! server library has no such limit.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hickory_proto::op::MessageType;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_server::net::tcp::TcpStream as Messages;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandle, TimeoutStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Counters;
use super::respond::Responder;

/// One permit per connection that may be open, for all addresses together.
pub(super) fn connection_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS_MAX))
}

/// Accepts connections until dropped, which ends them too.
pub(super) async fn accept(listener: TcpListener, responder: Responder, permits: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => {
                    let responder = responder.clone();
                    connections.spawn(async move {
                        serve(stream, &responder).await;
                        drop(permit);
                    });
                }
                Err(_) => Counters::add(&responder.counters.connections_refused),
            },
            Err(error) => {
                // Most likely EMFILE: the connection stays in the backlog, and accepting again at once would spin.
                tracing::warn!(%error, "a DNS connection was not accepted");
                sleep(AFTER_ERROR).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one query after the other, until the client is idle for a while or sends something that is no query.
async fn serve(stream: TcpStream, responder: &Responder) {
    let Ok(peer) = stream.peer_addr() else { return };
    let (messages, handle) =
        Messages::from_stream_with_buffer_size(AsyncIoTokioAsStd(stream), peer, RESPONSES_WAITING);
    let mut messages = TimeoutStream::new(messages, IDLE_MAX);
    while let Some(Ok(message)) = messages.next().await {
        let (bytes, client) = message.into_parts();
        let Ok(request) = Request::from_bytes(bytes, client, Protocol::Tcp) else { return };
        if request.metadata.message_type != MessageType::Query {
            return;
        }
        let response = ResponseHandle::new(client, handle.clone(), Protocol::Tcp);
        responder.handle_request::<_, TokioTime>(&request, response).await;
    }
}

const CONNECTIONS_MAX: usize = 256;
const RESPONSES_WAITING: usize = 8;
const IDLE_MAX: Duration = Duration::from_secs(10);
const AFTER_ERROR: Duration = Duration::from_millis(100);
