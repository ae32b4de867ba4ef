//! The error type of the crate. Every message names the object and, if there is one, the remedy.

use std::io;
use std::time::Duration;

/// A failure of the lab or of the load generator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel denied an operation that needs root.
    #[error(
        "cannot {action}: permission denied; run as root (sudo), with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF"
    )]
    NeedsRoot {
        /// The failed action.
        action: String,
    },
    /// A required program is not installed.
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
        /// The failed action, with its object.
        action: String,
        /// The cause.
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
        /// The failed action, with its object.
        action: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A request to the lab's API server failed.
    #[error("cannot {action}: {source}")]
    Api {
        /// The failed action, with its object.
        action: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}; {hint}")]
    Timeout {
        /// The event.
        what: String,
        /// The time limit.
        after: Duration,
        /// The last known state, or where to look.
        hint: String,
    },
    /// An option has an invalid value.
    #[error("{0}")]
    Option(String),
    /// The state of the lab or of this machine does not allow the operation.
    #[error("{0}")]
    State(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted; everything that the lab created is removed")]
    Interrupted,
}

/// The result of lab and load generator operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with the failed action; a permission error becomes [`Error::NeedsRoot`].
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NeedsRoot { action: action.into() },
            _ => Self::Io { action: action.into(), source },
        }
    }

    /// [`Self::io`] for the error numbers of `nix`.
    pub(crate) fn errno(action: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::io(action)(errno.into())
    }

    /// Wraps an error of the XDP loader with the failed action.
    pub(crate) fn bpf<E>(action: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Bpf { action: action.into(), source: Box::new(source) }
    }

    /// Wraps an error of the API client with the failed action.
    pub(crate) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action: action.into(), source: Box::new(source) }
    }
}
