//! The server side of the admin socket, on the control thread.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{Request, Response};

/// Responds to requests. A test has a second implementation.
pub(crate) trait Handler {
    async fn handle(&self, request: Request) -> Response;
}

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("{}: another flowgate answers here; stop it, or choose another admin.socket", .0.display())]
    InUse(PathBuf),
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Listens until dropped, and then removes its socket.
#[derive(Debug)]
pub(crate) struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminServer {
    /// Creates the socket, and replaces one that a process left which has ended.
    pub(crate) fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(AdminError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // It shows addresses of clients: for root and its group only.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves connections, each in a task of its own, until cancelled.
    pub(crate) async fn serve(self, handler: Rc<impl Handler + 'static>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handler = Rc::clone(&handler);
                    tokio::task::spawn_local(async move {
                        // An error here means that the client has closed the connection: nobody is left to report it to.
                        let _ = timeout(CONNECTION_TIMEOUT, serve_connection(stream, &*handler)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve_connection(stream: UnixStream, handler: &impl Handler) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(REQUEST_MAX_BYTES)).lines();
    while let Some(line) = lines.next_line().await? {
        let response = match serde_json::from_str(&line) {
            Ok(request) => handler.handle(request).await,
            Err(error) => Response::Error(format!("the request makes no sense: {error}")),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
    Ok(())
}

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_MAX_BYTES: u64 = 64 * 1024;
