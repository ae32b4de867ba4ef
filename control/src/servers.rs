//! The thread of the HTTP servers: probes, health check ports of Services and metrics. Whatever comes to their ports, the
//! control thread goes on as before.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::sync::{oneshot, watch};

use crate::descriptors::DescriptorBudget;
use crate::model::NetState;
use crate::reconcile::Status;
use crate::{health, http};

/// What the servers need.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) health: health::Config,
    pub(crate) metrics: http::metrics::Config,
    pub(crate) budget: Arc<DescriptorBudget>,
    /// The addresses of the served interfaces.
    pub(crate) net: watch::Receiver<NetState>,
    /// Gets the servers that cannot listen.
    pub(crate) status: watch::Sender<Status>,
}

/// The running thread. Dropping this ends the servers.
#[derive(Debug)]
pub(crate) struct ServerThread {
    _end: oneshot::Sender<()>,
}

impl Servers {
    /// Serves on a thread of its own, in the network namespace of the calling thread. `confine` is called there first, to give up
    /// privileges.
    ///
    /// # Errors
    /// The runtime or the thread could not be made.
    pub(crate) fn spawn(self, confine: fn()) -> io::Result<ServerThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        thread::Builder::new().name("flowgate-http".to_owned()).spawn(move || {
            confine();
            runtime.block_on(async {
                tokio::select! {
                    () = self.serve() => {}
                    // The sender is dropped.
                    _ = ended => {}
                }
            });
        })?;
        Ok(ServerThread { _end: end })
    }

    async fn serve(self) {
        let Self { health, metrics, budget, net, status } = self;
        let report = |purpose, findings| Status::show_listener_findings(&status, purpose, findings);
        tokio::join!(
            health::run(&health, &budget, net, &status),
            http::metrics::serve(&metrics, &budget, report),
        );
    }
}
