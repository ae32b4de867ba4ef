//! The load generator. Each generator runs in the network namespace of the calling thread and returns a report that prints
//! as a table or as JSON. None of them knows about the gateway between it and the servers.

pub mod latency;
pub mod packets;
pub mod progress;
pub mod report;
pub mod stop;
pub mod stream;
pub mod udp;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Raises the soft limit of open files to the hard limit: every connection needs a descriptor.
pub(crate) fn raise_open_files() -> Result<()> {
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    };
    raise().map_err(Error::errno("raise the limit of open files"))
}
