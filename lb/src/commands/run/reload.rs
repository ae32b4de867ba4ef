//! SIGHUP: the configuration is read again, and what can change while Flowgate runs is put in force.

use anyhow::Context;
use flowgate_control::CompileConfig;
use flowgate_tables::PortSet;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log::LogHandle;
use crate::appliance::Appliance;
use crate::appliance::supervisor::{ShuttingDown, SupervisorHandle};
use crate::config::{Change, Config, ConfigFile, Reloaded};
use crate::metrics::{Breakdown, Metrics};

/// Everything that takes over changes.
pub(super) struct Reloader<'a> {
    /// `None`: the configuration is all on the command line.
    pub(super) file: Option<ConfigFile>,
    pub(super) log: LogHandle,
    pub(super) supervisor: SupervisorHandle,
    pub(super) compile: watch::Sender<CompileConfig>,
    pub(super) metrics: &'a Metrics,
    /// Those that were reserved at the start.
    pub(super) snat_ports: PortSet,
}

impl Reloader<'_> {
    /// Reloads at each signal, until dropped.
    pub(super) async fn follow(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            if let Err(error) = self.reload().await {
                tracing::error!("the configuration stays as it was: {error:#}");
            }
        }
        std::future::pending().await
    }

    async fn reload(&mut self) -> anyhow::Result<()> {
        let file =
            self.file.as_mut().context("there is no file to read again: all is on the command line")?;
        let Reloaded { config, taken, refused } = file.reload()?;
        let path = file.path().display().to_string();
        self.put_in_force(config).await?;
        for change in &taken {
            tracing::info!("{path}: {change}");
        }
        for change in &refused {
            tracing::warn!("{path}: {change} needs a restart: the old value stays in force until then");
        }
        summarise(&path, &taken, &refused);
        Ok(())
    }

    async fn put_in_force(&self, config: Config) -> Result<(), ShuttingDown> {
        self.log.set_level(config.log.level);
        let (detail, services_max) = (config.metrics.detail, config.metrics.services_max);
        self.metrics.set_breakdown(Breakdown { detail, services_max });
        let compile = config.compile_config(self.snat_ports.clone());
        // Compiling everything anew takes a while: only if it would come to something else.
        self.compile.send_if_modified(|in_force| {
            let changed = *in_force != compile;
            *in_force = compile;
            changed
        });
        self.supervisor.request(move |appliance| take_over(appliance, &config)).await
    }
}

fn take_over(Appliance { workers, publishing }: &mut Appliance, config: &Config) {
    workers.reconfigure(config);
    publishing.choose(&config.pipeline, Instant::now().into_std());
}

fn summarise(path: &str, taken: &[Change], refused: &[Change]) {
    match (taken.len(), refused.len()) {
        (0, 0) => tracing::info!("{path} was read again: nothing has changed"),
        (taken, refused) => {
            tracing::info!("{path} was read again: {taken} changes are in force, {refused} need a restart")
        }
    }
}
