//! A client of the lab's API server; it connects from the control plane's namespace.

use std::path::PathBuf;
use std::thread::JoinHandle;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::netns::Namespace;

/// Connects to the API server; clones share only the address.
#[derive(Clone)]
pub struct ApiClient {
    namespace: Namespace,
    kubeconfig: PathBuf,
}

impl ApiClient {
    pub(super) fn new(namespace: &Namespace, kubeconfig: PathBuf) -> Self {
        Self { namespace: namespace.clone(), kubeconfig }
    }

    /// Runs `work` with a client. `action` describes it in errors.
    pub fn run<T: Send, F: Future<Output = kube::Result<T>>>(
        &self,
        action: &str,
        work: impl FnOnce(Client) -> F + Send,
    ) -> Result<T> {
        self.namespace.enter(|| {
            runtime(action)?.block_on(async {
                let client = self.connect().await?;
                work(client).await.map_err(Error::api(action))
            })
        })?
    }

    /// Runs `work` with a client on its own thread; the channel signals it to end.
    pub(crate) fn spawn<F: Future<Output = ()>>(
        &self,
        name: &str,
        work: impl FnOnce(Client, watch::Receiver<bool>) -> F + Send + 'static,
    ) -> Result<ApiThread> {
        let (stop, stopped) = watch::channel(false);
        let runtime = runtime(name)?;
        // Before the thread starts, so that an invalid configuration is an error of this call.
        let config = self.namespace.enter(|| runtime.block_on(self.config()))??;
        let thread = self.namespace.spawn_thread(name, move || {
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(async {
                let client = Client::try_from(config).expect("the same configuration has served before");
                work(client, stopped).await;
            }));
            drop(tasks);
            // Blocking tasks end on their own.
            runtime.shutdown_background();
        })?;
        Ok(ApiThread { stop, thread: Some(thread) })
    }

    async fn connect(&self) -> Result<Client> {
        let config = self.config().await?;
        Client::try_from(config).map_err(Error::api("make a client of the lab's API server"))
    }

    async fn config(&self) -> Result<Config> {
        let wrong =
            |error| Error::State(format!("{} is not a valid kubeconfig: {error}", self.kubeconfig.display()));
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).map_err(wrong)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)
    }
}

/// A background thread with a client; signalled and joined when dropped.
#[derive(Debug)]
pub(crate) struct ApiThread {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

fn runtime(purpose: &str) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io(format!("make a runtime to {purpose}")))
}
