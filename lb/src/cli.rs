//! The command line: its words and what they mean. The commands themselves are in [`commands`](crate::commands).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Overrides, RoleName, SourceOverride};

/// A kernel-bypass L4 load balancer for Kubernetes Services.
#[derive(Debug, Parser)]
#[command(name = "flowgate", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach to the interfaces and forward packets until a signal arrives.
    Run(RunArgs),
    /// Compile all objects without opening a device; print every error with its place, and exit with 1 if there is any.
    Check(RunArgs),
    /// Show the state of a running flowgate.
    Show(ShowArgs),
    /// Print what `run` would do with packets, by its own tables and code. Needs no privileges.
    Trace(crate::commands::TraceArgs),
    /// Detach from all interfaces and remove what a stopped flowgate left for the next one.
    Detach(RunArgs),
    /// The network-namespace lab.
    #[cfg(feature = "lab")]
    #[command(subcommand)]
    Lab(flowgate_benches::cli::LabCommand),
    /// The load generator.
    #[cfg(feature = "lab")]
    Loadgen(flowgate_benches::cli::LoadgenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The directory of manifests, instead of the source in the file.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The kubeconfig of the cluster to follow, instead of the source in the file.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// What this machine is to the cluster, instead of the role in the file.
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// The name of this machine's Node object.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// An interface to serve, instead of those in the file; may be repeated.
    #[arg(long = "interface", value_name = "IF")]
    interfaces: Vec<String>,
}

impl RunArgs {
    pub(crate) fn overrides(&self) -> Overrides {
        let source = match (&self.manifests, &self.kubeconfig) {
            (Some(dir), _) => SourceOverride::Manifests(dir.clone()),
            (None, Some(path)) => SourceOverride::Kubeconfig(path.clone()),
            (None, None) => SourceOverride::None,
        };
        Overrides {
            source,
            role: self.role,
            node_name: self.node_name.clone(),
            interfaces: self.interfaces.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// What to show.
    #[arg(value_enum)]
    pub(crate) what: What,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// The admin socket of the running flowgate.
    #[arg(long, value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// With flows: how many at most.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: usize,
    /// With flows: only the clients, Services, backends or source addresses with the most of them; how many.
    #[arg(long, value_name = "N")]
    pub(crate) top: Option<usize>,
    /// With --top: by what flows are summed.
    #[arg(long, value_enum, default_value_t = crate::admin::GroupBy::Client, requires = "top")]
    pub(crate) by: crate::admin::GroupBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Service ports with the addresses that lead to them.
    Services,
    /// Backends with their flows.
    Backends,
    /// Flows, the busiest first.
    Flows,
    /// Next hops and whether they are resolved.
    Neighbours,
    /// Workers with their queues and counts.
    Workers,
    /// Packets that were not forwarded, by reason.
    Drops,
    /// The published generation and the findings about objects.
    Tables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}
