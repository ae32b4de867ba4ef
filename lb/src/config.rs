//! The configuration: as typed ([`raw`]), then as meant ([`Config`]). All of it is checked before
//! anything is opened; every error names the file and the key.

mod dns;
mod packets;
mod raw;
mod source;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowgate_control::source::kube::Scope;
use flowgate_control::{
    CompileConfig, LocalPods, NodeAddresses, NodePortAddress, Role, Source, dns as control_dns,
};
use flowgate_dataplane::PipelineConfig;
use flowgate_flow::Timeouts;
use flowgate_tables::PortSet;
use flowgate_tables::spec::SnatSpec;
use flowgate_xsk::ZeroCopy;
use flowgate_xsk::steering::XdpModePolicy;
use ipnet::IpNet;

pub(crate) use raw::Raw;
pub(crate) use source::Wanted;

/// What the operator decided.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) role: Role,
    pub(crate) node_name: String,
    pub(crate) source: Source,
    pub(crate) interfaces: Vec<String>,
    pub(crate) nodeport_addresses: Vec<NodePortAddress>,
    pub(crate) node: Node,
    pub(crate) snat_addresses: Vec<IpAddr>,
    pub(crate) snat_ports: RangeInclusive<u16>,
    pub(crate) workers: Workers,
    pub(crate) pin_dir: PathBuf,
    pub(crate) xdp_mode: XdpModePolicy,
    /// Grace period (`xdp.hold_ms`): how long traffic is dropped for a successor process.
    pub(crate) grace: Duration,
    pub(crate) zero_copy: ZeroCopy,
    /// Whether interfaces prove that full-size packets arrive.
    pub(crate) prove: bool,
    pub(crate) rings: Rings,
    pub(crate) flow_capacity: u32,
    pub(crate) flow_capacity_v6: u32,
    /// Whether flows outlive the process, in `flow_folder`.
    pub(crate) keep_flows: bool,
    pub(crate) flow_folder: PathBuf,
    /// Where the verifier's log goes if it refuses the XDP program.
    pub(crate) log_folder: PathBuf,
    pub(crate) affinity_capacity: u32,
    pub(crate) timeouts: Timeouts,
    /// How single packets are treated.
    pub(crate) pipeline: PipelineConfig,
    /// None: off.
    pub(crate) dns: Option<control_dns::Config>,
    pub(crate) admin_socket: PathBuf,
    pub(crate) health_listen: Option<SocketAddr>,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) metrics_detail: MetricsDetail,
}

/// How much the metrics tell of flows; each level has what those before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MetricsDetail {
    Totals,
    Services,
    Backends,
}

/// What only the role `node` asks for.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) local_pods: LocalPods,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_nodeports: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Workers {
    /// 0: as many as queues allow.
    pub(crate) count: usize,
    /// Empty: the last cores.
    pub(crate) cores: Vec<usize>,
    pub(crate) idle_before_sleep: Duration,
    pub(crate) hang: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) fill: u32,
    /// 0: what the largest MTU needs.
    pub(crate) frame_bytes: u32,
}

/// What a command line says instead of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) source: Wanted,
    pub(crate) role: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) interfaces: Vec<String>,
}

/// Why there is no configuration. Names the file, the key and what to write.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{place}: {reason}")]
    Syntax { place: String, reason: String },
    #[error("{place}: unknown key `{key}`{}", nearest.as_ref().map(|n| format!(": did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { place: String, key: String, nearest: Option<String> },
    #[error("{place}: {key}: {reason}")]
    Value { place: String, key: &'static str, reason: String },
}

impl Config {
    /// What control compiles by, with these source ports.
    pub(crate) fn compile_config(&self, snat_ports: PortSet) -> CompileConfig {
        CompileConfig {
            role: self.role,
            node_name: self.node_name.clone(),
            snat: SnatSpec { addresses: self.snat_addresses.clone(), ports: snat_ports },
            nodeport_addresses: self.nodeport_addresses.clone(),
            localhost_nodeports: self.node.localhost_nodeports,
            local_pods: self.node.local_pods.clone(),
            masquerade_all: self.node.masquerade_all,
            node_addresses: NodeAddresses::Interfaces,
        }
    }

    /// Reads the file, if one is named, and applies the command line.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing that is wrong.
    pub(crate) fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let (raw, place) = match path {
            None => (Raw::default(), "command line".to_owned()),
            Some(path) => {
                let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
                let text = std::fs::read_to_string(path).map_err(unreadable)?;
                let place = path.display().to_string();
                (Raw::parse(&text, &place)?, place)
            }
        };
        Self::from_raw(raw, overrides, &place)
    }

    fn from_raw(raw: Raw, overrides: Overrides, place: &str) -> Result<Self, ConfigError> {
        let wrong = |key, reason: String| ConfigError::Value { place: place.to_owned(), key, reason };
        let role = overrides.role.unwrap_or(raw.role);
        let role = match role.as_str() {
            "gateway" => Role::Gateway,
            "node" => Role::Node,
            other => return Err(wrong("role", format!("`{other}` is neither gateway nor node"))),
        };
        let interfaces =
            if overrides.interfaces.is_empty() { raw.gateway.interfaces } else { overrides.interfaces };
        if let Some(twice) = first_repeated(&interfaces) {
            return Err(wrong("gateway.interfaces", format!("`{twice}` is listed twice")));
        }
        let (lower, upper) = parse_ports(&raw.snat.ports).map_err(|reason| wrong("snat.ports", reason))?;
        if let Some(addr) = raw.snat.addresses.iter().find(|addr| !is_source(addr)) {
            let reason = format!("`{addr}` is no address that packets can come from and be answered to");
            return Err(wrong("snat.addresses", reason));
        }
        if let Some(twice) = first_repeated(&raw.snat.addresses) {
            return Err(wrong("snat.addresses", format!("`{twice}` is listed twice")));
        }
        let rings = raw.rings;
        for (key, length) in [("rings.rx", rings.rx), ("rings.tx", rings.tx), ("rings.fill", rings.fill)] {
            if !length.is_power_of_two() || !(64..=32_768).contains(&length) {
                return Err(wrong(key, format!("{length} is not a power of two from 64 to 32768")));
            }
        }
        if ![0, 2048, 4096].contains(&rings.frame_bytes) {
            return Err(wrong("rings.frame_bytes", format!("{} is not 0, 2048 or 4096", rings.frame_bytes)));
        }
        for (key, capacity) in
            [("flows.capacity", raw.flows.capacity), ("flows.capacity_v6", raw.flows.capacity_v6)]
        {
            if !(64..=500_000_000).contains(&capacity) {
                return Err(wrong(key, format!("{capacity} is not from 64 to 500000000")));
            }
        }
        if !(8..=100_000_000).contains(&raw.flows.affinity_capacity) {
            let reason = format!("{} is not from 8 to 100000000", raw.flows.affinity_capacity);
            return Err(wrong("flows.affinity_capacity", reason));
        }
        if raw.workers.hang_ms < 200 {
            return Err(wrong(
                "workers.hang_ms",
                format!("{} is below 200: a sleeping worker moves every 100 ms", raw.workers.hang_ms),
            ));
        }
        if raw.xdp.hold_ms > HOLD_MAX_MS {
            let reason =
                format!("{} is above {HOLD_MAX_MS}: all that time nobody is served", raw.xdp.hold_ms);
            return Err(wrong("xdp.hold_ms", reason));
        }
        let count = if raw.workers.count == 0 { raw.workers.cores.len() } else { raw.workers.count };
        if !raw.workers.cores.is_empty() && raw.workers.cores.len() != count {
            let reason = format!("{} cores for {count} workers", raw.workers.cores.len());
            return Err(wrong("workers.cores", reason));
        }
        if let Some(twice) = first_repeated(&raw.workers.cores) {
            return Err(wrong("workers.cores", format!("core {twice} is listed twice")));
        }
        // P202: the node is called as the operating system is, unless it is said otherwise. A gateway is no
        // node of the cluster unless it is said which.
        let named = overrides.node_name.or(raw.node_name).map(|name| name.to_lowercase());
        let node_name = named.clone().unwrap_or_else(|| host_name().to_lowercase());
        let followed = if role == Role::Node { Some(node_name.clone()) } else { named };
        let dns = raw.dns.meant().map_err(|(key, reason)| wrong(key, reason))?;
        let scope = if dns.is_some() { Scope::Named } else { Scope::Served };
        let source = source::source(raw.source, overrides.source, scope, followed)
            .map_err(|(key, reason)| wrong(key, reason))?;
        let pipeline = packets::meant(&raw.tcp, &raw.icmp, raw.flows.half_open_percent)
            .map_err(|(key, reason)| wrong(key, reason))?;
        let timeouts = raw.flows.timeouts().map_err(|(key, reason)| wrong(key, reason))?;
        Ok(Self {
            role,
            node_name,
            source,
            interfaces,
            nodeport_addresses: parse_nodeport_addresses(&raw.gateway.nodeport_addresses)
                .map_err(|reason| wrong("gateway.nodeport_addresses", reason))?,
            node: Node {
                local_pods: parse_local_pods(&raw.node.detect_local, &raw.node.cluster_cidrs)
                    .map_err(|reason| wrong("node.detect_local", reason))?,
                masquerade_all: raw.node.masquerade_all,
                localhost_nodeports: raw.node.localhost_nodeports,
            },
            snat_addresses: raw.snat.addresses,
            snat_ports: lower..=upper,
            workers: Workers {
                count,
                cores: raw.workers.cores,
                idle_before_sleep: Duration::from_micros(raw.workers.idle_before_sleep_us),
                hang: Duration::from_millis(raw.workers.hang_ms),
            },
            pin_dir: raw.xdp.pin_dir,
            xdp_mode: match raw.xdp.mode.as_str() {
                "auto" => XdpModePolicy::Auto,
                "native" => XdpModePolicy::Native,
                "generic" => XdpModePolicy::Generic,
                other => {
                    return Err(wrong("xdp.mode", format!("`{other}` is none of auto, native, generic")));
                }
            },
            grace: Duration::from_millis(raw.xdp.hold_ms),
            zero_copy: match raw.xdp.zero_copy.as_str() {
                "auto" => ZeroCopy::Auto,
                "force" => ZeroCopy::Force,
                "off" => ZeroCopy::Off,
                other => {
                    return Err(wrong("xdp.zero_copy", format!("`{other}` is none of auto, force, off")));
                }
            },
            prove: raw.xdp.prove,
            rings: Rings { rx: rings.rx, tx: rings.tx, fill: rings.fill, frame_bytes: rings.frame_bytes },
            flow_capacity: raw.flows.capacity,
            flow_capacity_v6: raw.flows.capacity_v6,
            keep_flows: raw.flows.keep,
            flow_folder: raw.admin.socket.with_file_name("flows"),
            log_folder: raw.admin.socket.parent().map_or_else(std::env::temp_dir, Into::into),
            affinity_capacity: raw.flows.affinity_capacity,
            timeouts,
            pipeline,
            dns,
            admin_socket: raw.admin.socket,
            health_listen: parse_listen(&raw.health.listen)
                .map_err(|reason| wrong("health.listen", reason))?,
            metrics_listen: parse_listen(&raw.metrics.listen)
                .map_err(|reason| wrong("metrics.listen", reason))?,
            metrics_detail: match raw.metrics.detail.as_str() {
                "totals" => MetricsDetail::Totals,
                "services" => MetricsDetail::Services,
                "backends" => MetricsDetail::Backends,
                other => {
                    let reason = format!("`{other}` is none of totals, services, backends");
                    return Err(wrong("metrics.detail", reason));
                }
            },
        })
    }
}

/// Words and ranges that say on which addresses NodePorts are served.
pub(crate) fn parse_nodeport_addresses(list: &[String]) -> Result<Vec<NodePortAddress>, String> {
    list.iter().map(|entry| entry.parse()).collect()
}

/// How pods of this node are recognised, by the word for it.
pub(crate) fn parse_local_pods(word: &str, cluster_cidrs: &[IpNet]) -> Result<LocalPods, String> {
    match word {
        "none" => Ok(LocalPods::Unknown),
        "cluster-cidr" => Ok(LocalPods::ClusterCidr(cluster_cidrs.to_vec())),
        "node-cidr" => Ok(LocalPods::NodeCidr),
        other => Err(format!("`{other}` is none of cluster-cidr, node-cidr, none")),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let shape = || format!("`{text}` is not a range of ports such as \"40000-59999\"");
    let (lower, upper) = text.split_once('-').ok_or_else(shape)?;
    let number = |part: &str| part.trim().parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(shape);
    let (lower, upper) = (number(lower)?, number(upper)?);
    if lower > upper { Err(format!("{lower} is above {upper}")) } else { Ok((lower, upper)) }
}

fn parse_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let address: Option<SocketAddr> = text.parse().ok();
    match address.filter(|address| address.port() != 0) {
        Some(address) => Ok(Some(address)),
        None => Err(format!("`{text}` is neither an address with a port such as \"0.0.0.0:10256\" nor off")),
    }
}

/// Whether packets can have the address as their source and be answered beyond the link.
const fn is_source(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    }
}

fn first_repeated<T: PartialEq + Clone>(items: &[T]) -> Option<T> {
    items.iter().enumerate().find(|(i, item)| items[..*i].contains(item)).map(|(_, item)| item.clone())
}

/// What the operating system calls this machine.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

const HOLD_MAX_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_dataplane::MssClamp;

    fn load(text: &str) -> Result<Config, String> {
        let raw = Raw::parse(text, "f.toml").map_err(|error| error.to_string())?;
        Config::from_raw(raw, Overrides::default(), "f.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.snat_ports, 40_000..=59_999);
        assert_eq!(config.timeouts, Timeouts::default());
        assert_eq!(config.role, Role::Gateway);
    }

    #[test]
    fn p1106_p1107_servers_listen_where_kube_proxys_do_unless_they_are_off() {
        let config = load("").unwrap();
        assert_eq!(config.health_listen, "0.0.0.0:10256".parse().ok());
        assert_eq!(config.metrics_listen, "127.0.0.1:10249".parse().ok());
        let config = load("[health]\nlisten = \"off\"\n[metrics]\nlisten = \"[::1]:9\"").unwrap();
        assert_eq!((config.health_listen, config.metrics_listen), (None, "[::1]:9".parse().ok()));
    }

    #[test]
    fn the_sample_file_holds_every_key_with_its_default() {
        let sample = include_str!("../../config/flowgate.toml");
        let uncomment = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let text: Vec<String> = sample.lines().map(uncomment).collect();
        let full: toml::Table = toml::from_str(&text.join("\n")).unwrap();
        for (section, keys) in raw::KEYS {
            for key in *keys {
                let table = if section.is_empty() { Some(&full) } else { full[*section].as_table() };
                assert!(table.unwrap().contains_key(*key), "{section}.{key} is missing in the sample");
            }
        }
        let shown = Raw::parse(&text.join("\n"), "sample").unwrap();
        let examples = Raw {
            node_name: None,
            source: raw::Source { kubeconfig: None, ..shown.source.clone() },
            gateway: raw::Gateway { nodeport_addresses: vec![], ..shown.gateway.clone() },
            node: raw::Node { cluster_cidrs: vec![], ..shown.node.clone() },
            snat: raw::Snat { addresses: vec![], ..shown.snat.clone() },
            workers: raw::Workers { cores: vec![], ..shown.workers.clone() },
            dns: dns::Dns { listen: vec![], ..shown.dns.clone() },
            ..shown
        };
        let defaults = Raw {
            source: raw::Source {
                manifests: Some("/etc/flowgate/manifests".into()),
                ..raw::Source::default()
            },
            gateway: raw::Gateway { interfaces: vec!["eth0".into()], ..Default::default() },
            ..Raw::default()
        };
        assert_eq!(examples, defaults, "what the sample shows as default is the default");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_one() {
        let error = load("role = \"gateway\"\n[flows]\ncapacty = 5\n").unwrap_err();
        assert_eq!(error, "f.toml:3: unknown key `flows.capacty`: did you mean `flows.capacity`?");
        let error = load("[flow]\n").unwrap_err();
        assert_eq!(error, "f.toml:1: unknown key `flow`: did you mean `flows`?");
        let error = load("zzzzzzzz = 1\n").unwrap_err();
        assert_eq!(error, "f.toml:1: unknown key `zzzzzzzz`");
    }

    #[test]
    fn a_wrong_value_is_named_with_what_to_write() {
        for (text, message) in [
            ("role = \"router\"", "f.toml: role: `router` is neither gateway nor node"),
            (
                "[snat]\nports = \"5\"",
                "f.toml: snat.ports: `5` is not a range of ports such as \"40000-59999\"",
            ),
            (
                "[snat]\naddresses = [\"192.0.2.1\", \"fe80::1\"]",
                "f.toml: snat.addresses: `fe80::1` is no address that packets can come from and be answered to",
            ),
            (
                "[snat]\naddresses = [\"2001:db8::1\", \"2001:db8::1\"]",
                "f.toml: snat.addresses: `2001:db8::1` is listed twice",
            ),
            ("[snat]\nports = \"9-5\"", "f.toml: snat.ports: 9 is above 5"),
            ("[rings]\nrx = 100", "f.toml: rings.rx: 100 is not a power of two from 64 to 32768"),
            ("[gateway]\ninterfaces = [\"a\", \"a\"]", "f.toml: gateway.interfaces: `a` is listed twice"),
            ("[workers]\ncount = 2\ncores = [1]", "f.toml: workers.cores: 1 cores for 2 workers"),
            (
                "[source]\nmanifests = \"/m\"\nin_cluster = true",
                "f.toml: source.in_cluster: not along with source.manifests: objects come from one place, remove one",
            ),
            ("[flows]\nudp_answered_s = 0", "f.toml: flows.udp_answered_s: 0 is not from 1 to 2073600"),
            (
                "[health]\nlisten = \"10256\"",
                "f.toml: health.listen: `10256` is neither an address with a port such as \"0.0.0.0:10256\" nor off",
            ),
            (
                "[metrics]\ndetail = \"all\"",
                "f.toml: metrics.detail: `all` is none of totals, services, backends",
            ),
            (
                "[tcp]\nmss_clamp = \"on\"",
                "f.toml: tcp.mss_clamp: `on` is neither off, auto nor a number of bytes",
            ),
            ("[flows]\nhalf_open_percent = 0", "f.toml: flows.half_open_percent: 0 is not from 1 to 100"),
            ("[tcp]\nmss_clamp = 500", "f.toml: tcp.mss_clamp: 500 is not from 536 to 65495"),
        ] {
            assert_eq!(load(text).unwrap_err(), message);
        }
        let error = load("[flows]\ncapacity = \"many\"").unwrap_err();
        assert!(error.starts_with("f.toml:2: ") && error.contains("invalid type"), "{error}");
    }

    #[test]
    fn how_packets_are_treated_can_be_chosen() {
        assert_eq!(load("").unwrap().pipeline, PipelineConfig::default());
        let text = "[tcp]\nreset_unknown = false\nmss_clamp = \"auto\"\n[icmp]\necho_vips = true";
        let chosen = PipelineConfig {
            reset_unknown: false,
            echo_vips: true,
            mss_clamp: MssClamp::Auto,
            ..PipelineConfig::default()
        };
        assert_eq!(load(text).unwrap().pipeline, chosen);
        assert_eq!(load("[tcp]\nmss_clamp = 1360").unwrap().pipeline.mss_clamp, MssClamp::To(1360));
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = Overrides {
            source: Wanted::Manifests("/m".into()),
            role: Some("node".into()),
            node_name: Some("EDGE".into()),
            interfaces: vec!["x0".into()],
        };
        let config = Config::from_raw(Raw::default(), overrides, "command line").unwrap();
        assert_eq!((config.role, config.node_name.as_str()), (Role::Node, "edge"));
        assert_eq!(
            (config.source, config.interfaces),
            (Source::Manifests("/m".into()), vec!["x0".to_owned()])
        );
    }
}
