//! `flowgate check`: compiles the objects of the source and reports what is wrong with them. Opens no device.

use std::process::ExitCode;

use flowgate_control::{Shown, Source};

use crate::appliance::host;
use crate::appliance::source_ports::EphemeralPorts;
use crate::config::Config;
use crate::process::memory_need::MemoryNeed;

/// Compiles all objects and prints the report. The exit code is 1 if it has errors.
#[expect(clippy::print_stdout, reason = "the report goes to stdout")]
pub(crate) fn check(config: &Config) -> anyhow::Result<ExitCode> {
    let ports = config.snat.ports.clone().collect();
    let compile_config = config.compile_config(ports);
    let (report, place) = match &config.source {
        Source::Manifests(dir) => (flowgate_control::check(dir, &compile_config), dir.display().to_string()),
        Source::Kubernetes(cluster) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(flowgate_control::check_cluster(cluster.clone(), &compile_config));
            (report, cluster.access.to_string())
        }
    };
    for interface in host::missing(&config.gateway.interfaces) {
        println!("gateway.interfaces: {interface} does not exist here: it is served once it does");
    }
    print!("{report}");
    // The machine that runs it may be another one, so this is no error.
    if let Err(too_much) = MemoryNeed::of(config).check() {
        println!("warning: {too_much}");
    }
    if let Some(ports) = EphemeralPorts::beside(&config.snat.ports) {
        println!("{}: {ports}", if ports.are_scarce() { "warning" } else { "note" });
    }
    if report.has_errors() {
        return Ok(ExitCode::FAILURE);
    }
    println!("{}: no errors", Shown(&place));
    Ok(ExitCode::SUCCESS)
}
