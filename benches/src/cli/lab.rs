//! `flowgate lab up|down|kubectl|demo|bench|compare|compare-nft|bench-control|faults|soak|kernels|vm|vm-tests`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::bare_forward::{self, BareForwardArgs};
use crate::error::{Error, Result};
use crate::lab::bench::{BenchOptions, bench};
use crate::lab::compare::{CompareOptions, compare};
use crate::lab::compare_nft::{CompareNftOptions, compare_nft};
use crate::lab::control_bench::{ControlBenchOptions, control_bench};
use crate::lab::demo::{DemoOptions, demo};
use crate::lab::faults::{FaultOptions, case_names, faults};
use crate::lab::interrupt;
use crate::lab::output::print_line;
use crate::lab::soak::{SoakOptions, soak};
use crate::lab::supervisor::{DownOutcome, LabInstance, LabKind, UpOutcome, down, kubectl, supervise, up};
use crate::vm::devices::{Device, DeviceOptions, device};
use crate::vm::kernels::{KernelOptions, kernels};
use crate::vm::modules::{ModuleOptions, modules};
use crate::vm::{self, TestProgram};

/// The subcommands of `flowgate lab`.
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Start the lab in the background: clients, backends with nginx, and a gateway, in network namespaces.
    Up(UpArgs),
    /// End the lab and remove everything that it created.
    Down(InstanceArgs),
    /// Run kubectl against the API server of a lab that was started with --kubernetes.
    Kubectl(KubectlArgs),
    /// Demonstrate the product step by step in a lab of its own, with every claim checked.
    Demo(DemoArgs),
    /// Compare packets per second with those of a bare AF_XDP forwarder; ends with one line of JSON.
    Bench(BenchArgs),
    /// Send the same probes through flowgate and through real kube-proxy, and compare the outcomes; ends with one line of
    /// JSON.
    Compare(CompareArgs),
    /// Send the same random packets through flowgate and through Linux with nft, and compare what becomes of each; ends with
    /// one line of JSON.
    CompareNft(CompareNftArgs),
    /// Measure how fast changes in the API become changes in forwarding, beside real kube-proxy; ends with one line of
    /// JSON.
    BenchControl(BenchControlArgs),
    /// Inject faults into a gateway under load, one case after the other; ends with one line of JSON.
    Faults(FaultsArgs),
    /// Repeat the faults in random order under mixed load for a given time; ends with one line of JSON.
    Soak(SoakArgs),
    /// Run tests of this workspace on other kernels, each in a virtual machine; ends with one line of JSON.
    Kernels(KernelsArgs),
    /// Test the driver of an emulated NIC with the real binary in a virtual machine; ends with one line of JSON.
    Vm(VmArgs),
    /// Run the tests that need more modules than this machine's kernel may have in a virtual machine; ends with one line
    /// of JSON.
    VmTests(VmTestsArgs),
    /// Carry out requests of the host as the first process of a virtual machine.
    #[command(hide = true)]
    Guest,
    /// Run the lab in the foreground: what `up` starts.
    #[command(hide = true)]
    Supervise(UpArgs),
    /// Forward frames between two interfaces without looking at them: the baseline of `bench`.
    #[command(hide = true)]
    BareForward(BareForwardArgs),
}

/// The lab's state directory and namespace prefix.
#[derive(Debug, Clone, Args)]
pub struct InstanceArgs {
    /// The folder of the lab's state.
    #[arg(long, hide = true, default_value = "/run/flowgate-lab")]
    pub state_dir: PathBuf,
    /// The prefix of the namespace names.
    #[arg(long, hide = true, default_value = "flowgate-")]
    pub prefix: String,
}

/// The options of `flowgate lab up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Start a real Kubernetes control plane, which `make kubernetes` builds, as the source of Services.
    #[arg(long)]
    kubernetes: bool,
}

/// The options of `flowgate lab kubectl`.
#[derive(Debug, Clone, Args)]
pub struct KubectlArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// The arguments of kubectl.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// The options of `flowgate lab demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Connections that transfer while backends are added and removed.
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
    /// The core of the packet generator.
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

/// The options of `flowgate lab compare-nft`.
#[derive(Debug, Clone, Args)]
pub struct CompareNftArgs {
    /// Packets to send through each gateway.
    #[arg(long, default_value_t = 10_000)]
    pub packets: usize,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often all conversations pause: by turns for 2.5 s, and so long that flows which are beginning or ending expire.
    #[arg(long, default_value_t = 6)]
    pub pauses: usize,
}

/// The options of `flowgate lab faults`.
#[derive(Debug, Clone, Args)]
pub struct FaultsArgs {
    /// Only this case; may be repeated.
    #[arg(long = "case", value_name = "NAME", value_parser = case_names())]
    pub cases: Vec<String>,
    /// Open connections in the cases of restarts and floods.
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long the case `listener_abuse` abuses the listening ports, in seconds.
    #[arg(long, default_value_t = 10)]
    pub abuse_seconds: u64,
    /// How many broken objects the case `hostile_objects` applies beside good ones.
    #[arg(long, default_value_t = 2000)]
    pub hostile_objects: usize,
}

/// The options of `flowgate lab soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Seconds during which faults are injected.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Open TCP connections.
    #[arg(long, default_value_t = 200)]
    pub connections: usize,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The options of `flowgate lab kernels`.
#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    /// The kernels, by the names that `.ci/vm` knows.
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
    /// A test program to run on each kernel, with its arguments after blanks; may be repeated.
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
    /// Endpoints per Service.
    #[arg(long, default_value_t = 10)]
    pub endpoints: u32,
    /// Changes to measure with each of the two proxies.
    #[arg(long, default_value_t = 100)]
    pub changes: u32,
}

/// Runs a `flowgate lab` command. `flowgate` is the binary to start as the gateway: usually the running one.
pub fn run_lab(command: &LabCommand, flowgate: &Path) -> Result<ExitCode> {
    match command {
        LabCommand::Up(args) => args.start(flowgate),
        LabCommand::Down(instance) => {
            print_line(match down(&instance.instance())? {
                DownOutcome::Ended => "the lab is down",
                DownOutcome::WasNotRunning => "no lab was running",
            });
            Ok(ExitCode::SUCCESS)
        }
        LabCommand::Kubectl(args) => args.run(),
        LabCommand::Demo(args) => {
            let outcome = demo(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(exit_code(outcome.is_success()))
        }
        LabCommand::Bench(args) => {
            let report = bench(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), true))
        }
        LabCommand::Compare(args) => {
            let report = compare(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::CompareNft(args) => {
            let report = compare_nft(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::BenchControl(args) => {
            let report = control_bench(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), true))
        }
        LabCommand::Faults(args) => {
            let report = faults(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::Soak(args) => {
            let report = soak(&args.options(), flowgate, &interrupt::listen()?)?;
            let success = report.is_success();
            Ok(finish(&report.json(), success))
        }
        LabCommand::Kernels(args) => {
            let report = kernels(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::Vm(args) => {
            let report = device(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::VmTests(args) => {
            let report = modules(&args.options(), flowgate, &interrupt::listen()?)?;
            Ok(finish(&report.json(), report.is_success()))
        }
        LabCommand::Guest => vm::agent::serve(),
        LabCommand::BareForward(args) => bare_forward::run(args),
        LabCommand::Supervise(args) => {
            supervise(&args.instance.instance(), flowgate, args.kind(), &interrupt::listen()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints a report, one line of JSON, and turns its outcome into an exit code.
fn finish(json: &str, success: bool) -> ExitCode {
    print_line(json);
    exit_code(success)
}

fn exit_code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl UpArgs {
    fn start(&self, flowgate: &Path) -> Result<ExitCode> {
        let instance = self.instance.instance();
        let (first, state) = match up(&instance, flowgate, self.kind(), |step| print_line(step))? {
            UpOutcome::Started(state) => (format!("the lab is up (process {})", state.pid), state),
            UpOutcome::AlreadyRunning(state) => {
                (format!("the lab is already running (process {})", state.pid), state)
            }
        };
        print_line(format!("{first}\n\n{}", state.guide(&instance, flowgate)));
        Ok(ExitCode::SUCCESS)
    }

    fn kind(&self) -> LabKind {
        if self.kubernetes { LabKind::Kubernetes } else { LabKind::Manifests }
    }
}

impl InstanceArgs {
    fn instance(&self) -> LabInstance {
        LabInstance { folder: self.state_dir.clone(), prefix: self.prefix.clone() }
    }
}

impl KubectlArgs {
    fn run(&self) -> Result<ExitCode> {
        let mut command = kubectl(&self.instance.instance())?;
        let status =
            command.args(&self.arguments).status().map_err(Error::io("run kubectl by `ip netns exec`"))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

impl DemoArgs {
    fn options(&self) -> DemoOptions {
        DemoOptions {
            connections: self.connections,
            measure: Duration::from_secs(self.seconds),
            flows: self.flows,
        }
    }
}

impl BenchArgs {
    fn options(&self) -> BenchOptions {
        BenchOptions {
            rounds: self.rounds,
            measure: Duration::from_secs(self.seconds),
            generator_cpu: self.generator_cpu,
            worker_cpu: self.worker_cpu,
            ..BenchOptions::default()
        }
    }
}

impl CompareArgs {
    fn options(&self) -> CompareOptions {
        CompareOptions { role: self.role.clone(), only: self.only.clone() }
    }
}

impl CompareNftArgs {
    fn options(&self) -> CompareNftOptions {
        CompareNftOptions { packets: self.packets, seed: self.seed, pauses: self.pauses }
    }
}

impl BenchControlArgs {
    fn options(&self) -> ControlBenchOptions {
        ControlBenchOptions { services: self.services, endpoints: self.endpoints, changes: self.changes }
    }
}

impl FaultsArgs {
    fn options(&self) -> FaultOptions {
        FaultOptions {
            cases: self.cases.clone(),
            connections: self.connections,
            seed: self.seed,
            abuse: Duration::from_secs(self.abuse_seconds),
            hostile_objects: self.hostile_objects,
        }
    }
}

impl SoakArgs {
    fn options(&self) -> SoakOptions {
        SoakOptions {
            duration: Duration::from_secs(self.seconds),
            connections: self.connections,
            seed: self.seed,
        }
    }
}

impl KernelsArgs {
    fn options(&self) -> KernelOptions {
        KernelOptions { store: self.store.clone(), kernels: self.kernels.clone(), tests: self.tests.clone() }
    }
}

impl VmArgs {
    fn options(&self) -> DeviceOptions {
        DeviceOptions {
            store: self.store.clone(),
            kernel: self.kernel.clone(),
            device: self.device,
            queues: self.queues,
            xdp: self.xdp.clone(),
            rings: self.rings.clone(),
        }
    }
}

impl VmTestsArgs {
    fn options(&self) -> ModuleOptions {
        ModuleOptions { store: self.store.clone(), kernel: self.kernel.clone(), tests: self.tests.clone() }
    }
}
