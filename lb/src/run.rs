//! `flowgate run`, `check` and `detach`: wiring, in the order in which things must come up.
//!
//! Until the first generation is published no socket is in the socket map, so all traffic passes to the
//! kernel or, if an earlier process ended a moment ago, is held by the XDP program; from then on a packet
//! that the program sends up finds tables that know it, and the flows of that process.

mod answers;
mod care;
mod device;
mod frames;
mod gateway;
mod host;
mod kept;
mod metrics;
mod prove;
mod reexec;
mod short;
mod steer;
mod tags;
mod users;
mod workers;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use flowgate_control::{NodeAddresses, Settings, Source};
use flowgate_tables::PortSet;
use flowgate_tables::spec::SnatSpec;
use flowgate_xsk::steering;

use self::gateway::Ended;
use crate::config::Config;

/// Serves until a signal ends it.
pub(crate) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    init_log();
    anyhow::ensure!(
        !config.interfaces.is_empty(),
        "no interface to serve: set gateway.interfaces in the configuration, or pass --interface IF"
    );
    let devices = host::devices(&config.interfaces, Path::new("/sys/class/net"))?;
    let config = Config { interfaces: devices, ..config.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    match local.block_on(&runtime, gateway::serve(&config))? {
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
        Ended::Hang(reexecutions) => Err(reexecutions.again()),
    }
}

/// Compiles everything and opens nothing.
#[expect(clippy::print_stdout, reason = "its report is its output")]
pub(crate) fn check(config: &Config) -> anyhow::Result<ExitCode> {
    let ports = config.snat_ports.clone().collect();
    let settings = settings(config, ports);
    let (report, place) = match &config.source {
        Source::Manifests(dir) => (flowgate_control::check(dir, &settings), dir.display().to_string()),
        Source::Kubernetes(cluster) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(flowgate_control::check_cluster(cluster.clone(), &settings));
            (report, cluster.access.to_string())
        }
    };
    print!("{report}");
    if report.has_errors() {
        return Ok(ExitCode::FAILURE);
    }
    println!("{place}: no errors");
    Ok(ExitCode::SUCCESS)
}

/// Removes what a stopped flowgate left in place for its successor.
#[expect(clippy::print_stdout, reason = "says what it did")]
pub(crate) fn detach(config: &Config) -> anyhow::Result<ExitCode> {
    let removed = steering::uninstall(&config.pin_dir).context("detaching")?;
    kept::remove(&config.flow_folder).context("removing the flows")?;
    prove::remove(config).context("removing what is known of the interfaces")?;
    host::release_ports(&config.snat_ports)?;
    println!("detached from {} interfaces, removed {} maps", removed.links, removed.maps);
    Ok(ExitCode::SUCCESS)
}

fn settings(config: &Config, snat_ports: PortSet) -> Settings {
    Settings {
        role: config.role,
        node_name: config.node_name.clone(),
        snat: SnatSpec { addresses: config.snat_addresses.clone(), ports: snat_ports },
        nodeport_addresses: config.nodeport_addresses.clone(),
        localhost_nodeports: config.node.localhost_nodeports,
        local_pods: config.node.local_pods.clone(),
        masquerade_all: config.node.masquerade_all,
        node_addresses: NodeAddresses::Interfaces,
    }
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // The netlink crates warn of attributes of newer kernels, which nobody here reads; kube-client of each
        // failed request, which the source says once and better; the DNS library tells of every query.
        .unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new(
                "info,netlink_packet_route=error,kube_client=off,hickory_server=warn",
            )
        });
    let on_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(on_terminal)
        .with_writer(std::io::stderr)
        .init();
}
