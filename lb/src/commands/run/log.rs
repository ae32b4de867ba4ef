//! The log: to standard error, as severe as the configuration says.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogLevel;

/// Changes the level of a running log.
pub(super) struct LogHandle(Option<reload::Handle<EnvFilter, Registry>>);

impl LogHandle {
    /// Writes messages of this level and more severe ones from now on. The environment variable RUST_LOG stays in force.
    pub(super) fn set_level(&self, level: LogLevel) {
        if let Some(handle) = &self.0
            && let Err(error) = handle.reload(filter(level.name()))
        {
            tracing::error!(%error, "log.level stays as it was");
        }
    }
}

/// Begins to log.
pub(super) fn init(level: LogLevel) -> LogHandle {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let is_fixed = asked.is_some();
    let (filter, handle) = reload::Layer::new(filter(asked.as_deref().unwrap_or_else(|| level.name())));
    let lines = fmt::layer()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    LogHandle((!is_fixed).then_some(handle))
}

/// What is asked for adds to the quiet crates: a level for everything leaves them as they are, a level for one of them replaces
/// it.
fn filter(asked: &str) -> EnvFilter {
    EnvFilter::new(format!("{QUIET_CRATES},{asked}"))
}

/// The netlink crates warn of attributes of newer kernels, which are not needed; kube-client logs each failed request, which
/// the source logs once and better; the DNS library logs each query that no upstream answers, of which strangers can send any
/// number.
const QUIET_CRATES: &str =
    "netlink_packet_route=error,kube_client=off,hickory_resolver=off,hickory_net=off,hickory_proto=off";
