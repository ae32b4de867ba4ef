//! Answering on the admin socket, on the control thread.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{Answer, Question};

/// Whoever knows the answers.
pub(crate) trait Answerer {
    async fn answer(&self, question: Question) -> Answer;
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

/// Listens until dropped, and then takes its socket away.
#[derive(Debug)]
pub(crate) struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminServer {
    /// Takes the socket; one that a dead process left is replaced.
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

    /// Answers one question after another for each connection, until cancelled.
    pub(crate) async fn serve(self, answerer: Rc<impl Answerer + 'static>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let answerer = Rc::clone(&answerer);
                    tokio::task::spawn_local(async move {
                        // A client that goes away in between has nobody to tell.
                        let _ = timeout(PATIENCE, converse(stream, &*answerer)).await;
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
        // If it is gone already there is nothing left to take away.
        let _ = fs::remove_file(&self.path);
    }
}

async fn converse(stream: UnixStream, answerer: &impl Answerer) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(QUESTION_MAX_BYTES)).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(question) => answerer.answer(question).await,
            Err(error) => Answer::Error(format!("the question makes no sense: {error}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(10);
const QUESTION_MAX_BYTES: u64 = 64 * 1024;
