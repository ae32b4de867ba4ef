//! One TCP connection and the exchanges on it.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::tally::StreamError;
use super::{Exchange, Greeting, StreamOptions};
use crate::lab::servers::http::BACKEND_HEADER;
use crate::pattern::Pattern;

/// Maximum length of the name that a server sends.
const MAX_GREETING_LEN: usize = 256;

pub(super) enum Connection {
    Echo(EchoConnection),
    Http(HttpConnection),
}

/// A completed exchange.
pub(super) struct Answer {
    pub(super) verified_len: u64,
    /// The name of the backend, if the answer has it.
    pub(super) backend: Option<String>,
    pub(super) next: Next,
}

/// What the server does after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Continues,
    Closes,
}

impl Connection {
    pub(super) async fn open(options: &StreamOptions, seed: u64) -> Result<Self, StreamError> {
        let connect = async {
            let stream = TcpStream::connect(options.target).await?;
            stream.set_nodelay(true)?;
            match &options.exchange {
                Exchange::Echo { len, greeting } => {
                    EchoConnection::open(stream, *len, *greeting, seed).await.map(Self::Echo)
                }
                Exchange::Http { path } => {
                    HttpConnection::open(stream, options.target, path).await.map(Self::Http)
                }
            }
        };
        timeout(options.connect_timeout, connect).await.unwrap_or(Err(StreamError::TimedOut))
    }

    /// The name in the greeting, if any.
    pub(super) fn greeted_by(&self) -> Option<&str> {
        match self {
            Self::Echo(echo) => echo.greeting.as_deref(),
            Self::Http(_) => None,
        }
    }

    pub(super) async fn exchange(&mut self) -> Result<Answer, StreamError> {
        match self {
            Self::Echo(echo) => echo.exchange().await,
            Self::Http(http) => http.exchange().await,
        }
    }

    /// Whether the connection takes another request; `false` after an orderly close.
    pub(super) async fn still_open(&mut self) -> Result<bool, StreamError> {
        match self {
            // The echo server never closes first: a broken connection shows in the next exchange.
            Self::Echo(_) => Ok(true),
            Self::Http(http) => http.still_open().await,
        }
    }

    pub(super) async fn close(self) {
        match self {
            // All exchanges are complete, so a server that is gone already does not matter.
            Self::Echo(mut echo) => drop(echo.stream.shutdown().await),
            Self::Http(http) => drop(http),
        }
    }
}

pub(super) struct EchoConnection {
    stream: TcpStream,
    pattern: Pattern,
    offset: u64,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    greeting: Option<String>,
}

impl EchoConnection {
    async fn open(
        mut stream: TcpStream,
        len: usize,
        greeting: Greeting,
        seed: u64,
    ) -> Result<Self, StreamError> {
        let greeting = match greeting {
            Greeting::None => None,
            Greeting::Name => Some(read_line(&mut stream).await?),
        };
        let (outgoing, incoming) = (vec![0; len], vec![0; len]);
        Ok(Self { stream, pattern: Pattern::new(seed), offset: 0, outgoing, incoming, greeting })
    }

    async fn exchange(&mut self) -> Result<Answer, StreamError> {
        self.pattern.fill(self.offset, &mut self.outgoing);
        let (mut reader, mut writer) = self.stream.split();
        // Concurrently: an exchange may be larger than all socket buffers, and writing first would deadlock.
        tokio::try_join!(writer.write_all(&self.outgoing), reader.read_exact(&mut self.incoming))?;
        self.pattern.check(self.offset, &self.incoming).map_err(StreamError::Mismatch)?;
        let len = u64::try_from(self.incoming.len()).expect("a length fits 64 bits");
        self.offset += len;
        Ok(Answer { verified_len: len, backend: None, next: Next::Continues })
    }
}

async fn read_line(stream: &mut TcpStream) -> Result<String, StreamError> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if line.len() < MAX_GREETING_LEN => line.push(byte),
            _ => return Err(StreamError::BadAnswer("the greeting has no end".into())),
        }
    }
    String::from_utf8(line)
        .map_err(|error| StreamError::BadAnswer(format!("the greeting is not UTF-8: {error}")))
}

pub(super) struct HttpConnection {
    requests: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<Result<(), hyper::Error>>,
    host: String,
    path: String,
    /// The length of `/bytes/N`.
    pattern_len: Option<u64>,
    has_answered: bool,
}

impl HttpConnection {
    async fn open(stream: TcpStream, target: SocketAddr, path: &str) -> Result<Self, StreamError> {
        let (requests, connection) = handshake(TokioIo::new(stream)).await.map_err(stream_error)?;
        let driver = tokio::task::spawn_local(connection);
        let pattern_len = path.strip_prefix("/bytes/").and_then(|len| len.parse().ok());
        Ok(Self {
            requests,
            driver,
            host: target.to_string(),
            path: path.to_owned(),
            pattern_len,
            has_answered: false,
        })
    }

    async fn exchange(&mut self) -> Result<Answer, StreamError> {
        let request = Request::get(&self.path)
            .header(HOST, &self.host)
            .body(Empty::new())
            .map_err(|error| StreamError::BadAnswer(format!("{} is not a valid path: {error}", self.path)))?;
        let mut response =
            self.requests.send_request(request).await.map_err(|error| match stream_error(error) {
                StreamError::ClosedEarly if self.has_answered => StreamError::ClosedIdle,
                failure => failure,
            })?;
        self.has_answered = true;
        if response.status() != StatusCode::OK {
            return Err(StreamError::BadAnswer(format!("GET {} answered {}", self.path, response.status())));
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let backend = header(BACKEND_HEADER).map(str::to_owned);
        let closes = header(CONNECTION.as_str()).is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let mut received = 0;
        while let Some(frame) = response.frame().await {
            let Ok(bytes) = frame.map_err(stream_error)?.into_data() else { continue };
            if self.pattern_len.is_some() {
                Pattern::HTTP.check(received, &bytes).map_err(StreamError::Mismatch)?;
            }
            received += u64::try_from(bytes.len()).expect("a length fits 64 bits");
        }
        match self.pattern_len {
            Some(len) if len != received => {
                Err(StreamError::BadAnswer(format!("GET {} sent {received} bytes", self.path)))
            }
            pattern_len => Ok(Answer {
                verified_len: pattern_len.unwrap_or_default(),
                backend,
                next: if closes { Next::Closes } else { Next::Continues },
            }),
        }
    }

    async fn still_open(&mut self) -> Result<bool, StreamError> {
        if self.requests.ready().await.is_ok() {
            return Ok(true);
        }
        // The result of the driver shows whether the server closed or reset the connection.
        match (&mut self.driver).await {
            Ok(Ok(())) => Ok(false),
            Ok(Err(error)) => Err(stream_error(error)),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        // Closes the socket, which the driver owns.
        self.driver.abort();
    }
}

fn stream_error(error: hyper::Error) -> StreamError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return StreamError::from(io::Error::new(io.kind(), io.to_string()));
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return StreamError::ClosedEarly;
    }
    StreamError::BadAnswer(error.to_string())
}
