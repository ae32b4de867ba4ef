//! `flowgate lab up|down|kubectl|demo|bench|compare|bench-control|faults|soak|kernels|vm|vm-tests`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::bare_forward::{self, BareForwardArgs};
use crate::error::{Error, Result};
use crate::lab::bench::{BenchOptions, bench};
use crate::lab::compare::{CompareOptions, compare};
use crate::lab::control_bench::{ControlBenchOptions, control_bench};
use crate::lab::demo::{DemoOptions, demo};
use crate::lab::faults::{FaultOptions, case_names, faults};
use crate::lab::interrupt;
use crate::lab::soak::{SoakOptions, soak};
use crate::lab::supervisor::{Down, LabKind, LabPlace, Up, down, kubectl, supervise, up};
use crate::vm::devices::{Device, DeviceOptions, device};
use crate::vm::kernels::{KernelOptions, kernels};
use crate::vm::modules::{ModuleOptions, modules};
use crate::vm::{self, TestProgram};

/// The subcommands of `flowgate lab`.
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Start the lab in the background: clients, backends with nginx, and a gateway, in network namespaces.
    Up(UpArgs),
    /// End the lab and remove everything that it made.
    Down(PlaceArgs),
    /// Run kubectl against the API server of a lab that was started with --kubernetes.
    Kubectl(KubectlArgs),
    /// Show the whole product at work, step by step, in a lab of its own.
    Demo(DemoArgs),
    /// Compare packets per second with those of a bare AF_XDP forwarder; ends with one line of JSON.
    Bench(BenchArgs),
    /// Send the same probes through flowgate and through real kube-proxy, and compare what comes of them; ends with one
    /// line of JSON.
    Compare(CompareArgs),
    /// Measure how fast changes in the API become changes in forwarding, beside real kube-proxy; ends with one line of
    /// JSON.
    BenchControl(BenchControlArgs),
    /// Break everything that can break around a gateway under load, one case after the other; ends with one line of JSON.
    Faults(FaultsArgs),
    /// Everything of `faults` at random and all at once for a time; ends with one line of JSON.
    Soak(SoakArgs),
    /// Try other kernels in virtual machines: tests of this workspace, run in each; ends with one line of JSON.
    Kernels(KernelsArgs),
    /// Try the driver of an emulated NIC in a virtual machine, with the real binary; ends with one line of JSON.
    Vm(VmArgs),
    /// Run the tests that need more modules than this machine's kernel may have in a virtual machine; ends with one line
    /// of JSON.
    VmTests(VmTestsArgs),
    /// Do what the outside says: the first process of a virtual machine.
    #[command(hide = true)]
    Guest,
    /// Hold the lab: what `up` starts.
    #[command(hide = true)]
    Supervise(UpArgs),
    /// Forward frames between two interfaces and decide nothing: what `bench` compares with.
    #[command(hide = true)]
    BareForward(BareForwardArgs),
}

/// Where the lab keeps its state.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// The folder of the lab's state.
    #[arg(long, hide = true, default_value = "/run/flowgate-lab")]
    pub state_dir: PathBuf,
    /// What the names of the namespaces begin with.
    #[arg(long, hide = true, default_value = "flowgate-")]
    pub prefix: String,
}

/// The options of `flowgate lab up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// With a real Kubernetes control plane, which `make kubernetes` builds.
    #[arg(long)]
    kubernetes: bool,
}

/// The options of `flowgate lab kubectl`.
#[derive(Debug, Clone, Args)]
pub struct KubectlArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// What kubectl is told.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// The options of `flowgate lab demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Connections that transfer while backends come and go.
    #[arg(long, default_value_t = 200)]
    pub connections: usize,
    /// Seconds of the packet load.
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// Flows of the packet load.
    #[arg(long, default_value_t = 1000)]
    pub flows: u32,
}

/// The options of `flowgate lab bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Rounds; each measures everything once.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    /// The core that makes the packets.
    #[arg(long, default_value_t = 0)]
    pub generator_cpu: usize,
    /// The core of the forwarder.
    #[arg(long, default_value_t = 1)]
    pub worker_cpu: usize,
}

/// The options of `flowgate lab compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// The role of the gateway.
    #[arg(long, default_value = "gateway", value_parser = ["gateway", "node"])]
    pub role: String,
    /// Only probes whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
}

/// The options of `flowgate lab faults`.
#[derive(Debug, Clone, Args)]
pub struct FaultsArgs {
    /// Only this case; may be repeated.
    #[arg(long = "case", value_name = "NAME", value_parser = case_names())]
    pub cases: Vec<String>,
    /// Connections at work in the cases of restarts and floods.
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// What random choices follow from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The options of `flowgate lab soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Seconds in which things happen.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// TCP connections at work.
    #[arg(long, default_value_t = 200)]
    pub connections: usize,
    /// What random choices follow from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The options of `flowgate lab kernels`.
#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    /// The kernels, by the names that `.ci/vm` knows.
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
    /// A test program to run in each, with its arguments after blanks; may be repeated.
    #[arg(long = "test", required = true, value_name = "PROGRAM")]
    tests: Vec<TestProgram>,
    /// Where `.ci/vm` has put QEMU and kernels.
    #[arg(long, default_value = vm::FOLDER)]
    store: PathBuf,
}

/// The options of `flowgate lab vm-tests`.
#[derive(Debug, Clone, Args)]
pub struct VmTestsArgs {
    /// The kernel, by a name that `.ci/vm` knows.
    #[arg(long, default_value = "sid")]
    kernel: String,
    /// A test program, with its arguments after blanks; may be repeated.
    #[arg(long = "test", required = true, value_name = "PROGRAM")]
    tests: Vec<TestProgram>,
    /// Where `.ci/vm` has put QEMU and kernels.
    #[arg(long, default_value = vm::FOLDER)]
    store: PathBuf,
}

/// The options of `flowgate lab vm`.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    /// The device.
    #[arg(long, value_enum)]
    device: Device,
    /// The kernel, by a name that `.ci/vm` knows.
    #[arg(long, default_value = "sid")]
    kernel: String,
    /// Queues of each NIC, virtual CPUs, and workers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    queues: u32,
    /// More lines for the section `xdp` of the configuration.
    #[arg(long, default_value = "", value_name = "TOML")]
    xdp: String,
    /// More lines for the section `rings`.
    #[arg(long, default_value = "", value_name = "TOML")]
    rings: String,
    /// Where `.ci/vm` has put QEMU and kernels.
    #[arg(long, default_value = vm::FOLDER)]
    store: PathBuf,
}

/// The options of `flowgate lab bench-control`.
#[derive(Debug, Clone, Args)]
pub struct BenchControlArgs {
    /// Services in all.
    #[arg(long, default_value_t = 5000)]
    pub services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    pub endpoints: u32,
    /// Changes that are measured, for each of the two.
    #[arg(long, default_value_t = 100)]
    pub changes: u32,
}

/// Runs a `flowgate lab` command. `flowgate` is the binary to start as the gateway: usually the running one.
pub fn run_lab(command: &LabCommand, flowgate: &Path) -> Result<ExitCode> {
    match command {
        LabCommand::Up(args) => {
            let place = args.place.place();
            let show = |doing: &str| super::loadgen::print(doing);
            let (first, state) = match up(&place, flowgate, args.kind(), show)? {
                Up::Started(state) => (format!("the lab is up (process {})", state.pid), state),
                Up::AlreadyRunning(state) => {
                    (format!("the lab is already running (process {})", state.pid), state)
                }
            };
            super::loadgen::print(&format!("{first}\n\n{}", state.guide(&place, flowgate)));
        }
        LabCommand::Down(place) => {
            super::loadgen::print(match down(&place.place())? {
                Down::Ended => "the lab is down",
                Down::WasNotRunning => "no lab was running",
            });
        }
        LabCommand::Kubectl(args) => {
            let mut command = kubectl(&args.place.place())?;
            let status = command
                .args(&args.arguments)
                .status()
                .map_err(Error::io("run kubectl by `ip netns exec`"))?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        LabCommand::Demo(args) => {
            let options = DemoOptions {
                connections: args.connections,
                measure: Duration::from_secs(args.seconds),
                flows: args.flows,
            };
            let outcome = demo(&options, flowgate, &interrupt::listen()?)?;
            return Ok(if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Bench(args) => {
            let options = BenchOptions {
                rounds: args.rounds,
                measure: Duration::from_secs(args.seconds),
                generator_cpu: args.generator_cpu,
                worker_cpu: args.worker_cpu,
                ..BenchOptions::default()
            };
            let report = bench(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
        }
        LabCommand::Compare(args) => {
            let options = CompareOptions { role: args.role.clone(), only: args.only.clone() };
            let report = compare(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
            return Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::BenchControl(args) => {
            let options = ControlBenchOptions {
                services: args.services,
                endpoints: args.endpoints,
                changes: args.changes,
            };
            let report = control_bench(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
        }
        LabCommand::Faults(args) => {
            let options =
                FaultOptions { cases: args.cases.clone(), connections: args.connections, seed: args.seed };
            let report = faults(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
            return Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Soak(args) => {
            let options = SoakOptions {
                duration: Duration::from_secs(args.seconds),
                connections: args.connections,
                seed: args.seed,
            };
            let report = soak(&options, flowgate, &interrupt::listen()?)?;
            let success = report.is_success();
            super::loadgen::print(&report.json());
            return Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Kernels(args) => {
            let options = KernelOptions {
                store: args.store.clone(),
                kernels: args.kernels.clone(),
                tests: args.tests.clone(),
            };
            let report = kernels(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
            return Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Vm(args) => {
            let options = DeviceOptions {
                store: args.store.clone(),
                kernel: args.kernel.clone(),
                device: args.device,
                queues: args.queues,
                xdp: args.xdp.clone(),
                rings: args.rings.clone(),
            };
            let report = device(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
            return Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::VmTests(args) => {
            let options = ModuleOptions {
                store: args.store.clone(),
                kernel: args.kernel.clone(),
                tests: args.tests.clone(),
            };
            let report = modules(&options, flowgate, &interrupt::listen()?)?;
            super::loadgen::print(&report.json());
            return Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Guest => return vm::agent::serve(),
        LabCommand::BareForward(args) => return bare_forward::run(args),
        LabCommand::Supervise(args) => {
            supervise(&args.place.place(), flowgate, args.kind(), &interrupt::listen()?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl UpArgs {
    fn kind(&self) -> LabKind {
        if self.kubernetes { LabKind::Kubernetes } else { LabKind::Manifests }
    }
}

impl PlaceArgs {
    fn place(&self) -> LabPlace {
        LabPlace { folder: self.state_dir.clone(), prefix: self.prefix.clone() }
    }
}
