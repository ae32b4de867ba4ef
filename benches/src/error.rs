//! What can go wrong in the lab and the load generator. Every message names the object and, where there is one, the
//! remedy.

use std::io;
use std::time::Duration;

/// A failure of the lab or of the load generator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something that root may do.
    #[error(
        "cannot {action}: permission denied; run as root (sudo), with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF"
    )]
    NeedsRoot {
        /// What was tried.
        action: String,
    },
    /// A program of the system is not installed.
    #[error("`{program}` is missing: install it (apt-get install {package})")]
    MissingProgram {
        /// The program.
        program: String,
        /// Its Debian package.
        package: &'static str,
    },
    /// A system call or file operation failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, with its object.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A command in a namespace failed.
    #[error("`{command}` failed in namespace {namespace}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// The namespace that it ran in.
        namespace: String,
        /// What it printed.
        output: String,
    },
    /// Loading, attaching or running an XDP program failed.
    #[error("cannot {action}: {source}")]
    Bpf {
        /// What was tried, with its object.
        action: String,
        /// The loader's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A request to the lab's API server failed.
    #[error("cannot {action}: {source}")]
    Api {
        /// What was tried, with its object.
        action: String,
        /// The client's reason, or the server's.
        source: Box<kube::Error>,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}; {hint}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        after: Duration,
        /// Where to look.
        hint: String,
    },
    /// An option has a value that cannot work.
    #[error("{0}")]
    Option(String),
    /// The state of the lab on this machine does not allow the request.
    #[error("{0}")]
    State(String),
    /// Ctrl-C, or a request to end.
    #[error("interrupted; everything that the lab made is gone")]
    Interrupted,
}

/// The result of lab and load generator operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with what was tried; permission errors get their remedy.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NeedsRoot { action: action.into() },
            _ => Self::Io { action: action.into(), source },
        }
    }

    /// The same for the error numbers of `nix`.
    pub(crate) fn errno(action: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::io(action)(errno.into())
    }

    /// Wraps an error of the XDP loader with what was tried.
    pub(crate) fn bpf<E>(action: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Bpf { action: action.into(), source: Box::new(source) }
    }

    /// Wraps an error of the API client with what was tried.
    pub(crate) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action: action.into(), source: Box::new(source) }
    }
}
