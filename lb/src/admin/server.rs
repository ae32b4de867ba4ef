//! The server side of the admin socket, on the control thread.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowgate_control::descriptors::{Admission, DescriptorBudget};
use nix::unistd::geteuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_blocking;
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
    #[error("{}: {reason}", path.display())]
    Untrusted { path: PathBuf, reason: String },
    #[error(
        "{}: a process listens here and does not answer; stop it, or choose another admin.socket",
        .0.display()
    )]
    Silent(PathBuf),
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
    ///
    /// # Errors
    /// [`AdminError::InUse`] if a flowgate answers there, and [`AdminError::Silent`] if a process listens that does not, as one
    /// does that is being killed, or that hangs.
    pub(crate) fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
            check_dir(dir)?;
        }
        check_present(path)?;
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(stream) if answers(&stream) => return Err(AdminError::InUse(path.to_owned())),
            Ok(_) => return Err(AdminError::Silent(path.to_owned())),
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

    /// Serves connections within the budget, each in a task of its own, until cancelled.
    pub(crate) async fn serve(self, handler: Rc<impl Handler + 'static>, budget: Arc<DescriptorBudget>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (handler, admission) = (Rc::clone(&handler), budget.admit(None).await);
                    tokio::task::spawn_local(serve_within(stream, handler, admission));
                }
                Err(error) => budget.accept_failed(&error).await,
            }
        }
    }
}

/// Who can replace the socket sees what clients of the socket ask and tells them anything.
fn check_dir(dir: &Path) -> Result<(), AdminError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let refuse = |reason| Err(AdminError::Untrusted { path: dir.to_owned(), reason });
    let meta = fs::metadata(dir).map_err(|source| AdminError::Io { path: dir.to_owned(), source })?;
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if !is_ours(owner) {
        return refuse(format!(
            "belongs to user {owner}, who could replace the admin socket: choose another admin.socket"
        ));
    }
    // In a folder with the sticky bit, others can add files and not replace those of others.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return refuse(format!(
            "others can write to this folder (mode {mode:04o}) and could replace the admin socket: chmod go-w, or \
             choose another admin.socket"
        ));
    }
    Ok(())
}

/// What is at the path must be a socket of our own, or nothing: it is replaced.
fn check_present(path: &Path) -> Result<(), AdminError> {
    let refuse = |reason| Err(AdminError::Untrusted { path: path.to_owned(), reason });
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(AdminError::Io { path: path.to_owned(), source }),
    };
    if !meta.file_type().is_socket() {
        return refuse("is no socket, and is not replaced by one: choose another admin.socket".to_owned());
    }
    if !is_ours(meta.uid()) {
        return refuse(format!(
            "is a socket of user {}: remove it, or choose another admin.socket",
            meta.uid()
        ));
    }
    Ok(())
}

fn is_ours(owner: u32) -> bool {
    owner == 0 || owner == geteuid().as_raw()
}

/// Whether a server at the other end responds at all: to an empty request it does with an error.
fn answers(mut stream: &std::os::unix::net::UnixStream) -> bool {
    let mut exchange = || {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(b"\n")?;
        stream.read(&mut [0; 1])
    };
    // None: the process has ended meanwhile.
    exchange().is_ok_and(|len| len > 0)
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves one connection for as long as one may take, or until it has to make room.
async fn serve_within(stream: UnixStream, handler: Rc<impl Handler>, mut admission: Admission) {
    let requests = admission.requests();
    // One command at a time uses the connection: it is idle only until it has sent its first request.
    let counted = || {
        requests.fetch_add(1, Ordering::Relaxed);
    };
    let connection = serve_connection(stream, &*handler, counted);
    // The stream is closed before the admission is dropped.
    tokio::select! {
        // An error means that the client has closed the connection: nobody is left to report it to.
        _ = timeout(CONNECTION_TIMEOUT, connection) => {}
        () = admission.shed() => {}
    }
}

async fn serve_connection(stream: UnixStream, handler: &impl Handler, counted: impl Fn()) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(REQUEST_MAX_BYTES)).lines();
    while let Some(line) = lines.next_line().await? {
        counted();
        let response = match serde_json::from_str(&line) {
            Ok(request) => handler.handle(request).await,
            Err(error) => Response::Error(format!("the request makes no sense: {error}")),
        };
        // On another thread: a row for each backend of a large cluster is many megabytes.
        let mut text = spawn_blocking(move || serde_json::to_vec(&response)).await??;
        text.push(b'\n');
        write.write_all(&text).await?;
    }
    Ok(())
}

/// The control thread of a flowgate that serves is never silent for so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_MAX_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{chown, symlink};
    use std::os::unix::net::UnixListener as Listener;

    use super::*;

    fn refusal(path: &Path) -> String {
        AdminServer::bind(path).expect_err("not bound").to_string()
    }

    #[tokio::test]
    async fn only_a_socket_of_our_own_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // What a process left that has ended.
        drop(Listener::bind(&path).unwrap());
        drop(AdminServer::bind(&path).unwrap());
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert!(refusal(&path).contains("is no socket, and is not replaced by one"), "{}", refusal(&path));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let elsewhere = folder.path().join("elsewhere");
        drop(Listener::bind(&elsewhere).unwrap());
        symlink(&elsewhere, &path).unwrap();
        assert!(refusal(&path).contains("is no socket"), "{}", refusal(&path));
        fs::remove_file(&path).unwrap();

        if geteuid().is_root() {
            drop(Listener::bind(&path).unwrap());
            chown(&path, Some(1000), None).unwrap();
            assert!(refusal(&path).contains("is a socket of user 1000"), "{}", refusal(&path));
        }
    }

    #[tokio::test]
    async fn a_folder_in_which_others_can_replace_files_has_no_admin_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let permit = |mode| fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        permit(0o777);
        assert!(refusal(&path).contains("others can write to this folder (mode 0777)"), "{}", refusal(&path));
        permit(0o1777);
        drop(AdminServer::bind(&path).unwrap());
        if geteuid().is_root() {
            permit(0o755);
            chown(folder.path(), Some(1000), None).unwrap();
            assert!(refusal(&path).contains("belongs to user 1000"), "{}", refusal(&path));
        }
    }
}
