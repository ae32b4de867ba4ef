//! `flowgate trace`: what `flowgate run` would do with packets, by the same tables and code. Reads only manifests and
//! packets; each packet counts as the first of its flow.

#[cfg(test)]
mod fuzz;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use flowgate_control::model::NetState;
use flowgate_control::source::manifests;
use flowgate_control::{CompileConfig, ExternalIps, LocalPods, NodeAddresses, ProtectedPort, compile};
use flowgate_dataplane::pipeline::select::{Decision, Selection, select_backend};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::spec::SnatSpec;
use flowgate_tables::{Backend, SourceClass, Tables};
use flowgate_wire::{FiveTuple, L4Port, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{RoleName, Services, default_servers, host_name, port_range};

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The directory of Service, EndpointSlice, Endpoints, Node, Namespace and ServiceCIDR manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// What this machine is to the cluster.
    #[arg(long, value_enum, default_value_t = RoleName::Gateway)]
    role: RoleName,
    /// The Node whose addresses, zone and endpoints are this machine's [default: the host name].
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The range of pod addresses; may be repeated, the first of each family counts.
    #[arg(long = "cluster-cidr", value_name = "CIDR")]
    cluster_cidrs: Vec<IpNet>,
    /// On which of the node's addresses NodePorts are served: a range, primary, localhost or all; may be repeated.
    #[arg(long = "nodeport-addresses", value_name = "RANGE", value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Masquerade everything to cluster IPs.
    #[arg(long)]
    masquerade_all: bool,
    /// How pods of this node are distinguished from other clients.
    #[arg(long, value_enum, default_value_t = DetectLocal::ClusterCidr)]
    detect_local: DetectLocal,
    /// Serve NodePorts on 127.0.0.1.
    #[arg(long)]
    localhost_nodeports: bool,
    /// Which externalIPs are served: safe, all, none or ranges [default: safe for a gateway, all for a node].
    #[arg(long, value_name = "WHICH")]
    external_ips: Option<ExternalIps>,
    /// Ports of the node's own addresses that no Service gets, such as 22/tcp; may be repeated. Beside those of ssh, BGP, the
    /// kubelet and Flowgate's own servers.
    #[arg(long = "protected-ports", value_name = "PORT", value_delimiter = ',')]
    protected_ports: Vec<ProtectedPort>,
    /// Source addresses of translated flows, without which they are the node's own; may be repeated.
    #[arg(long = "snat-addresses", value_name = "ADDRESS", value_delimiter = ',')]
    snat_addresses: Vec<IpAddr>,
    /// Source ports of translated flows, such as 40000-59999: packets from them come from ourselves [default: none].
    #[arg(long, value_name = "RANGE", value_parser = port_range)]
    snat_ports: Option<RangeInclusive<u16>>,
    /// One JSON object per line, `{"id":"x","proto":"tcp","src":"10.0.0.2:1234","dst":"10.96.0.1:80"}`; - for stdin.
    #[arg(long, value_name = "FILE")]
    packets: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = TraceOutput::Json)]
    output: TraceOutput,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DetectLocal {
    ClusterCidr,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TraceOutput {
    Json,
}

/// One line of input.
#[derive(Debug, Deserialize)]
struct Packet {
    #[serde(default)]
    id: Value,
    proto: String,
    src: String,
    dst: String,
}

/// One line of output.
#[derive(Debug, PartialEq, Serialize)]
struct Traced {
    id: Value,
    verdict: &'static str,
    service: Option<String>,
    candidates: Vec<String>,
    backend: Option<String>,
    snat: bool,
    reason: String,
}

/// The output for a line of input that is not a packet.
#[derive(Debug, Serialize)]
struct Misread {
    id: Value,
    error: String,
}

/// Traces all packets. Findings about the manifests go to stderr and stop nothing. A line that is not a packet gives an error
/// in its place of the output, and exit code 1 at the end.
pub(crate) fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let TraceOutput::Json = args.output;
    let tables = tables(args)?;
    let input: Box<dyn BufRead> = if args.packets == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(&args.packets);
        Box::new(BufReader::new(file.with_context(|| args.packets.display().to_string())?))
    };
    let mut output = BufWriter::new(io::stdout().lock());
    let mut all_read = true;
    for (line, number) in input.lines().zip(1_u64..) {
        let line = line.with_context(|| format!("{}:{number}", args.packets.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        match read_packet(&line) {
            Ok((id, tuple)) => serde_json::to_writer(&mut output, &trace_one(&tables, id, &tuple))?,
            Err((id, reason)) => {
                all_read = false;
                let error = format!("{}:{number}: {reason}", args.packets.display());
                serde_json::to_writer(&mut output, &Misread { id, error })?;
            }
        }
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(if all_read { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tables(args: &TraceArgs) -> anyhow::Result<Tables> {
    let nodeport_addresses =
        args.nodeport_addresses.iter().map(|entry| entry.parse()).collect::<Result<_, _>>();
    let snat_ports = args.snat_ports.clone().into_iter().flatten().collect();
    let mut compile_config = CompileConfig {
        role: args.role.into(),
        snat: SnatSpec { addresses: args.snat_addresses.clone(), ports: snat_ports },
        node_name: args.node_name.clone().unwrap_or_else(host_name).to_lowercase(),
        nodeport_addresses: nodeport_addresses
            .map_err(|reason| anyhow::anyhow!("--nodeport-addresses: {reason}"))?,
        localhost_nodeports: args.localhost_nodeports,
        local_pods: match args.detect_local {
            DetectLocal::ClusterCidr => LocalPods::ClusterCidr(args.cluster_cidrs.clone()),
            DetectLocal::None => LocalPods::Unknown,
        },
        masquerade_all: args.masquerade_all,
        node_addresses: NodeAddresses::NodeObject,
        ..CompileConfig::default()
    };
    let mut services = Services { external_ips: args.external_ips.clone(), ..Services::default() };
    services.protected_ports.extend(&args.protected_ports);
    services.apply_to(&mut compile_config, &default_servers());
    let snapshot = manifests::read(&args.manifests)
        .with_context(|| format!("--manifests: {}: cannot be read", args.manifests.display()))?;
    if snapshot.desired.node(&compile_config.node_name).is_none() {
        eprintln!(
            "flowgate: {}: no Node named {:?}: it has no addresses of its own, so no NodePort is served",
            args.manifests.display(),
            compile_config.node_name
        );
    }
    let (tables, report) =
        compile(&snapshot.desired, &NetState::default(), &compile_config, &Tables::empty());
    for entry in snapshot.findings.iter().chain(&report.entries) {
        eprintln!("flowgate: {}: {entry}", entry.severity.name());
    }
    Ok(tables)
}

fn read_packet(line: &str) -> Result<(Value, FiveTuple<IpAddr>), (Value, String)> {
    let packet: Packet = serde_json::from_str(line).map_err(|error| (Value::Null, error.to_string()))?;
    let tuple = || -> Result<_, String> {
        let protocol: Protocol = packet.proto.parse().map_err(|error| format!("proto: {error}"))?;
        let address = |field: &str, text: &str| {
            text.parse::<SocketAddr>().ok().ok_or_else(|| {
                format!(
                    "{field}: {text:?} is not an address with a port, such as 10.0.0.2:1234 or [fd00::2]:1234"
                )
            })
        };
        let (src, dst) = (address("src", &packet.src)?, address("dst", &packet.dst)?);
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(format!("src {src} and dst {dst} are of different address families"));
        }
        Ok(FiveTuple {
            protocol,
            src: src.ip(),
            dst: dst.ip(),
            src_port: L4Port::new(src.port()),
            dst_port: L4Port::new(dst.port()),
        })
    };
    match tuple() {
        Ok(tuple) => Ok((packet.id, tuple)),
        Err(reason) => Err((packet.id, reason)),
    }
}

fn trace_one(tables: &Tables, id: Value, tuple: &FiveTuple<IpAddr>) -> Traced {
    let key = ServiceKey { protocol: tuple.protocol, addr: tuple.dst, port: tuple.dst_port };
    let service = tables.services.frontend(&key).and_then(|f| tables.services.service(f.service));
    let ended = |verdict, reason: String| Traced {
        id: id.clone(),
        verdict,
        service: service.map(|service| service.spec.name.to_string()),
        candidates: Vec::new(),
        backend: None,
        snat: false,
        reason,
    };
    match select_backend(tables, None, tuple) {
        Decision::Forward(selection) => {
            let Selection { frontend, policy, backend, source_nat, .. } = selection;
            let members = policy.backends.members().iter();
            let mut candidates: Vec<SocketAddr> =
                members.filter_map(|id| tables.services.backends().get(*id)).map(socket_address).collect();
            candidates.sort_unstable();
            let class = match tables.sources.class(tuple.src) {
                SourceClass::Outside => "a client outside",
                SourceClass::Pod => "a pod of this node",
                SourceClass::Node => "the node itself",
            };
            let kept = if source_nat { "source replaced" } else { "source kept" };
            Traced {
                verdict: "forward",
                candidates: candidates.iter().map(ToString::to_string).collect(),
                backend: Some(socket_address(backend).to_string()),
                snat: source_nat,
                ..ended("forward", format!("{} from {class}, {kept}", frontend.kind.name()))
            }
        }
        Decision::Reject(reason) => ended("reject", format!("{}: {}", reason.name(), reason.meaning())),
        Decision::Drop(reason) => ended("drop", format!("{}: {}", reason.name(), reason.meaning())),
        Decision::NotOurs if tables.sources.is_node(tuple.dst) => {
            ended("local", "An address of the node, and no Service has this port on it.".into())
        }
        Decision::NotOurs => ended("pass", "No Service has this address and port.".into()),
    }
}

fn socket_address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.addr, backend.port.number())
}
