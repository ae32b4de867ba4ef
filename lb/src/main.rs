//! The `flowgate` binary: the top crate, which wires the data plane (`flowgate-dataplane`, `flowgate-xsk`) to the control
//! plane (`flowgate-control`). It decides nothing about packets or Services itself.
//!
//! - [`cli`] has the words of the command line, [`commands`] one file per command, [`config`] the configuration file.
//! - [`appliance`] is what serves while `flowgate run` runs; [`admin`] and [`metrics`] show it.
//!
//! Read `commands/run.rs` first: it brings the parts up in order. Then `appliance/workers.rs` and `appliance/supervisor.rs`.
//!
//! Ids such as P202 or D1 in comments and names of tests stand for behaviours of Kubernetes; control/KUBERNETES.md defines
//! them.
#![forbid(unsafe_code)]

mod admin;
mod appliance;
mod cli;
mod commands;
mod config;
#[cfg(test)]
mod fuzz;
mod metrics;
mod process;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use config::{Config, ConfigFile};

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flowgate: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one sentence. A cause that the text ends with already is not repeated.
fn sentence(error: &anyhow::Error) -> String {
    let append = |text: String, cause: String| {
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    };
    error.chain().map(ToString::to_string).reduce(append).unwrap_or_default()
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => commands::run(ConfigFile::load(args.config.as_deref(), args.overrides())?),
        Command::Check(args) => commands::check(&Config::load(args.config.as_deref(), args.overrides())?),
        Command::Detach(args) => commands::detach(&Config::load(args.config.as_deref(), args.overrides())?),
        Command::Show(args) => commands::show(&args),
        Command::Trace(args) => commands::trace(&args),
        #[cfg(feature = "lab")]
        Command::Lab(command) => {
            // The first process of a machine has no /proc yet, and starts no other flowgate.
            let flowgate = std::env::current_exe().unwrap_or_else(|_| "flowgate".into());
            Ok(flowgate_benches::cli::run_lab(&command, &flowgate)?)
        }
        #[cfg(feature = "lab")]
        Command::Loadgen(args) => Ok(flowgate_benches::cli::run_loadgen(&args)?),
    }
}
