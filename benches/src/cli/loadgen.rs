//! `flowgate loadgen packets|tcp|udp|http|sink`, in the network namespace of the process.

use std::net::{SocketAddr, SocketAddrV4};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::error::Result;
use crate::lab::interrupt;
use crate::lab::output::print_line;
use crate::loadgen::packets::{
    self, FlowRange, MacAddr, PacketKind, PacketOptions, Sink, SinkAction, SinkOptions,
};
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::report::{Report, human_rate};
use crate::loadgen::stop::Stop;
use crate::loadgen::stream::{self, Exchange, Greeting, Reuse, StreamOptions};
use crate::loadgen::udp::{self, UdpOptions};

/// The options of `flowgate loadgen`.
#[derive(Debug, Clone, Args)]
pub struct LoadgenArgs {
    /// How to print the report.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table, global = true)]
    pub output: OutputFormat,
    /// Do not draw a progress bar.
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// What to send.
    #[command(subcommand)]
    pub command: LoadgenCommand,
}

/// How to print a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table.
    Table,
    /// One line of JSON.
    Json,
}

/// The subcommands of `flowgate loadgen`.
#[derive(Debug, Clone, Subcommand)]
pub enum LoadgenCommand {
    /// Send as many packets per second as the kernel can, generated in XDP.
    Packets(PacketArgs),
    /// Open connections to an echo server and check every byte that comes back.
    Tcp(TcpArgs),
    /// Send datagrams at a fixed rate to an echo server: latency, loss and reordering.
    Udp(UdpArgs),
    /// Send HTTP requests, on persistent connections or a new one for each.
    Http(HttpArgs),
    /// Count and drop the packets that arrive at an interface.
    Sink(SinkArgs),
}

/// The options of `flowgate loadgen packets`.
#[derive(Debug, Clone, Args)]
pub struct PacketArgs {
    /// The destination, ADDRESS:PORT.
    #[arg(long)]
    pub target: SocketAddrV4,
    /// Seconds to send.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Flows, each with its own source address and port.
    #[arg(long, default_value_t = 1000)]
    pub flows: u32,
    /// The kind of packets.
    #[arg(long, value_enum, default_value_t = KindArg::Udp)]
    pub kind: KindArg,
    /// Bytes of each frame.
    #[arg(long, default_value_t = 60)]
    pub frame_len: u16,
    /// At most this many packets per second.
    #[arg(long)]
    pub rate: Option<u32>,
    /// The cores that send.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub cpus: Vec<usize>,
    /// The source address of the first flows.
    #[arg(long, default_value = "198.18.0.1")]
    pub first_source: std::net::Ipv4Addr,
    /// The interface to send from; by default that of the route.
    #[arg(long, requires = "next_hop")]
    pub interface: Option<String>,
    /// The MAC address of the next hop; by default it is resolved.
    #[arg(long, requires = "interface")]
    pub next_hop: Option<MacAddr>,
}

/// The kind of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// UDP datagrams.
    Udp,
    /// TCP ACKs.
    TcpAck,
    /// TCP SYNs.
    TcpSyn,
}

/// The options of `flowgate loadgen tcp`.
#[derive(Debug, Clone, Args)]
pub struct TcpArgs {
    /// Options of `tcp` and `http`.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Bytes of each exchange.
    #[arg(long, default_value_t = 1024)]
    pub bytes: usize,
    /// Expect the server to send a line with its name first.
    #[arg(long)]
    pub greeting: bool,
}

/// The options of `flowgate loadgen http`.
#[derive(Debug, Clone, Args)]
pub struct HttpArgs {
    /// Options of `tcp` and `http`.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// The path to request; /bytes/N of the lab's servers is checked byte by byte.
    #[arg(long, default_value = "/")]
    pub path: String,
}

/// Options of `tcp` and `http`.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// The server, ADDRESS:PORT.
    #[arg(long)]
    pub target: SocketAddr,
    /// Concurrent connections.
    #[arg(long, default_value_t = 10)]
    pub connections: usize,
    /// Duration in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Open a new connection for each exchange.
    #[arg(long)]
    pub new_connections: bool,
    /// Pause of a connection between two exchanges, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
}

/// The options of `flowgate loadgen udp`.
#[derive(Debug, Clone, Args)]
pub struct UdpArgs {
    /// The server, ADDRESS:PORT.
    #[arg(long)]
    pub target: SocketAddr,
    /// Datagrams per second.
    #[arg(long, default_value_t = 1000)]
    pub rate: u32,
    /// Seconds to send.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Source ports, used in turn.
    #[arg(long, default_value_t = 10)]
    pub flows: u16,
    /// Bytes of each datagram.
    #[arg(long, default_value_t = 32)]
    pub bytes: usize,
}

/// The options of `flowgate loadgen sink`.
#[derive(Debug, Clone, Args)]
pub struct SinkArgs {
    /// The interface.
    #[arg(long)]
    pub interface: String,
    /// The destination port to count; by default every port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Seconds to count.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// Runs a `flowgate loadgen` command; fails if the report is not clean.
pub fn run_loadgen(args: &LoadgenArgs) -> Result<ExitCode> {
    let stop = interrupt::listen()?;
    let show = if args.no_progress { ProgressOutput::Nothing } else { ProgressOutput::Bar };
    let output = args.output;
    Ok(match &args.command {
        LoadgenCommand::Packets(packets) => finish(&packets::run(packets.options()?, show, &stop)?, output),
        LoadgenCommand::Tcp(tcp) => {
            let greeting = if tcp.greeting { Greeting::Name } else { Greeting::None };
            let options = tcp.stream.options(Exchange::Echo { len: tcp.bytes, greeting });
            finish(&stream::run(options, show, &stop)?, output)
        }
        LoadgenCommand::Http(http) => {
            let options = http.stream.options(Exchange::Http { path: http.path.clone() });
            finish(&stream::run(options, show, &stop)?, output)
        }
        LoadgenCommand::Udp(udp) => {
            let mut options = UdpOptions::new(udp.target, udp.rate, Duration::from_secs(udp.seconds));
            (options.flows, options.payload_len) = (udp.flows, udp.bytes);
            finish(&udp::run(&options, show, &stop)?, output)
        }
        LoadgenCommand::Sink(sink) => finish(&sink.count(output, &stop)?, output),
    })
}

impl PacketArgs {
    fn options(&self) -> Result<PacketOptions> {
        let (interface, next_hop) = match (&self.interface, self.next_hop) {
            (Some(interface), Some(next_hop)) => (interface.clone(), next_hop),
            _ => {
                let hop = packets::resolve(*self.target.ip())?;
                (hop.interface, hop.mac)
            }
        };
        let duration = Duration::from_secs(self.seconds);
        let mut options = PacketOptions::new(&interface, next_hop, self.target, self.flows, duration);
        options.kind = match self.kind {
            KindArg::Udp => PacketKind::Udp,
            KindArg::TcpAck => PacketKind::TcpAck,
            KindArg::TcpSyn => PacketKind::TcpSyn,
        };
        options.flows = FlowRange { first: self.first_source, count: self.flows };
        (options.frame_len, options.rate, options.cpus) = (self.frame_len, self.rate, self.cpus.clone());
        Ok(options)
    }
}

impl StreamArgs {
    fn options(&self, exchange: Exchange) -> StreamOptions {
        let duration = Duration::from_secs(self.seconds);
        let mut options = StreamOptions::new(self.target, self.connections, duration, exchange);
        options.reuse = if self.new_connections { Reuse::PerExchange } else { Reuse::KeepAlive };
        options.pause = Duration::from_millis(self.pause_ms);
        options
    }
}

impl SinkArgs {
    /// Counts, and prints the rate every second unless the output is JSON.
    fn count(&self, output: OutputFormat, stop: &Stop) -> Result<SinkReport> {
        let options = SinkOptions { port: self.port, ip_proto: None, action: SinkAction::Drop };
        let sink = Sink::attach(&self.interface, options)?;
        let mut report =
            SinkReport { interface: self.interface.clone(), seconds: 0.0, packets: 0, per_second: 0.0 };
        for _ in 0..self.seconds {
            if stop.is_stopped() {
                break;
            }
            let rate = sink.measure(Duration::from_secs(1))?;
            report.seconds += rate.seconds;
            report.packets += rate.packets;
            if output == OutputFormat::Table {
                print_line(human_rate(rate.per_second));
            }
        }
        report.per_second = crate::loadgen::report::per_second(report.packets, report.seconds);
        Ok(report)
    }
}

/// The outcome of a sink run.
#[derive(Debug, Clone, Serialize)]
struct SinkReport {
    interface: String,
    seconds: f64,
    packets: u64,
    per_second: f64,
}

impl Report for SinkReport {
    fn rows(&self) -> Vec<(String, String)> {
        let packets = crate::loadgen::report::grouped(self.packets);
        vec![
            ("interface".into(), self.interface.clone()),
            ("packets".into(), format!("{packets} ({})", human_rate(self.per_second))),
        ]
    }

    fn is_clean(&self) -> bool {
        self.packets > 0
    }
}

fn finish(report: &impl Report, output: OutputFormat) -> ExitCode {
    print_line(match output {
        OutputFormat::Table => report.table(),
        OutputFormat::Json => report.json(),
    });
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
