//! The configuration as typed: one field a key, with its default. Judges nothing but names and types.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use flowgate_flow::Timeouts;
use ipnet::IpNet;
use serde::Deserialize;
use toml::de::DeTable;

use super::ConfigError;
use super::dns::Dns;
use super::packets::{Icmp, Tcp};

/// Every key, by section; the keys outside of sections first.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    ("", &["role", "node_name"]),
    ("source", &["manifests", "kubeconfig", "in_cluster", "snapshot"]),
    ("gateway", &["interfaces", "nodeport_addresses"]),
    ("node", &["detect_local", "cluster_cidrs", "masquerade_all", "localhost_nodeports"]),
    ("snat", &["addresses", "ports"]),
    ("workers", &["count", "cores", "idle_before_sleep_us", "hang_ms"]),
    ("xdp", &["pin_dir", "mode", "zero_copy", "prove", "hold_ms"]),
    ("rings", &["rx", "tx", "fill", "frame_bytes"]),
    (
        "flows",
        &[
            "capacity",
            "capacity_v6",
            "keep",
            "affinity_capacity",
            "half_open_percent",
            "tcp_opening_s",
            "tcp_established_s",
            "tcp_half_closed_s",
            "tcp_time_wait_s",
            "tcp_reset_s",
            "udp_unanswered_s",
            "udp_answered_s",
            "drain_s",
        ],
    ),
    ("tcp", Tcp::KEYS),
    ("icmp", Icmp::KEYS),
    ("dns", Dns::KEYS),
    ("admin", &["socket"]),
    ("health", &["listen"]),
    ("metrics", &["listen", "detail"]),
];

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Raw {
    pub(super) role: String,
    pub(super) node_name: Option<String>,
    pub(super) source: Source,
    pub(super) gateway: Gateway,
    pub(super) node: Node,
    pub(super) snat: Snat,
    pub(super) workers: Workers,
    pub(super) xdp: Xdp,
    pub(super) rings: Rings,
    pub(super) flows: Flows,
    pub(super) tcp: Tcp,
    pub(super) icmp: Icmp,
    pub(super) dns: Dns,
    pub(super) admin: Admin,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            role: "gateway".into(),
            node_name: None,
            source: Source::default(),
            gateway: Gateway::default(),
            node: Node::default(),
            snat: Snat::default(),
            workers: Workers::default(),
            xdp: Xdp::default(),
            rings: Rings::default(),
            flows: Flows::default(),
            tcp: Tcp::default(),
            icmp: Icmp::default(),
            dns: Dns::default(),
            admin: Admin::default(),
            health: Health::default(),
            metrics: Metrics::default(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Source {
    pub(super) manifests: Option<PathBuf>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) in_cluster: bool,
    pub(super) snapshot: PathBuf,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            manifests: None,
            kubeconfig: None,
            in_cluster: false,
            snapshot: "/var/lib/flowgate/snapshot.json".into(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) interfaces: Vec<String>,
    pub(super) nodeport_addresses: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Node {
    pub(super) detect_local: String,
    pub(super) cluster_cidrs: Vec<IpNet>,
    pub(super) masquerade_all: bool,
    pub(super) localhost_nodeports: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            detect_local: "cluster-cidr".into(),
            cluster_cidrs: Vec::new(),
            masquerade_all: false,
            localhost_nodeports: false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Snat {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: String,
}

impl Default for Snat {
    fn default() -> Self {
        Self { addresses: Vec::new(), ports: "40000-59999".into() }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Workers {
    pub(super) count: usize,
    pub(super) cores: Vec<usize>,
    pub(super) idle_before_sleep_us: u64,
    pub(super) hang_ms: u64,
}

impl Default for Workers {
    fn default() -> Self {
        Self { count: 0, cores: Vec::new(), idle_before_sleep_us: 200, hang_ms: 1000 }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Xdp {
    pub(super) pin_dir: PathBuf,
    pub(super) mode: String,
    pub(super) zero_copy: String,
    pub(super) prove: bool,
    pub(super) hold_ms: u64,
}

impl Default for Xdp {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/flowgate".into(),
            mode: "auto".into(),
            zero_copy: "auto".into(),
            prove: true,
            hold_ms: 5000,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rings {
    pub(super) rx: u32,
    pub(super) tx: u32,
    pub(super) fill: u32,
    pub(super) frame_bytes: u32,
}

impl Default for Rings {
    fn default() -> Self {
        Self { rx: 2048, tx: 2048, fill: 4096, frame_bytes: 0 }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Flows {
    pub(super) capacity: u32,
    pub(super) capacity_v6: u32,
    pub(super) keep: bool,
    pub(super) affinity_capacity: u32,
    pub(super) half_open_percent: u8,
    tcp_opening_s: u64,
    tcp_established_s: u64,
    tcp_half_closed_s: u64,
    tcp_time_wait_s: u64,
    tcp_reset_s: u64,
    udp_unanswered_s: u64,
    udp_answered_s: u64,
    drain_s: u64,
}

impl Default for Flows {
    fn default() -> Self {
        let t = Timeouts::default();
        Self {
            capacity: 262_144,
            capacity_v6: 65_536,
            keep: true,
            affinity_capacity: 65_536,
            half_open_percent: 50,
            tcp_opening_s: t.tcp_opening.as_secs(),
            tcp_established_s: t.tcp_established.as_secs(),
            tcp_half_closed_s: t.tcp_half_closed.as_secs(),
            tcp_time_wait_s: t.tcp_time_wait.as_secs(),
            tcp_reset_s: t.tcp_reset.as_secs(),
            udp_unanswered_s: t.udp_unanswered.as_secs(),
            udp_answered_s: t.udp_answered.as_secs(),
            drain_s: t.drain.map_or(0, |drain| drain.as_secs()),
        }
    }
}

impl Flows {
    pub(super) fn timeouts(&self) -> Result<Timeouts, (&'static str, String)> {
        let longest = Timeouts::MAX.as_secs();
        let timeout = |key, seconds| {
            if (1..=longest).contains(&seconds) {
                Ok(Duration::from_secs(seconds))
            } else {
                Err((key, format!("{seconds} is not from 1 to {longest}")))
            }
        };
        Ok(Timeouts {
            tcp_opening: timeout("flows.tcp_opening_s", self.tcp_opening_s)?,
            tcp_established: timeout("flows.tcp_established_s", self.tcp_established_s)?,
            tcp_half_closed: timeout("flows.tcp_half_closed_s", self.tcp_half_closed_s)?,
            tcp_time_wait: timeout("flows.tcp_time_wait_s", self.tcp_time_wait_s)?,
            tcp_reset: timeout("flows.tcp_reset_s", self.tcp_reset_s)?,
            udp_unanswered: timeout("flows.udp_unanswered_s", self.udp_unanswered_s)?,
            udp_answered: timeout("flows.udp_answered_s", self.udp_answered_s)?,
            drain: (self.drain_s != 0).then(|| timeout("flows.drain_s", self.drain_s)).transpose()?,
        })
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: crate::admin::DEFAULT_SOCKET.into() }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Health {
    pub(super) listen: String,
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: "0.0.0.0:10256".into() }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: String,
    pub(super) detail: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: "127.0.0.1:10249".into(), detail: "services".into() }
    }
}

impl Raw {
    /// Parses a file's text.
    ///
    /// # Errors
    /// [`ConfigError`] with `place` and line.
    pub(super) fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        let at = |offset: usize| format!("{place}:{}", text[..offset].lines().count().max(1));
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            place: error.span().map_or_else(|| place.to_owned(), |span| at(span.end.min(text.len()))),
            reason: error.message().to_owned(),
        };
        let table = DeTable::parse(text).map_err(syntax)?;
        for (key, value) in table.get_ref() {
            let known = KEYS.iter().find(|(section, _)| !section.is_empty() && section == key.get_ref());
            if let Some((section, keys)) = known {
                let mut inner = value.get_ref().as_table().into_iter().flatten();
                if let Some((inner_key, _)) = inner.find(|(key, _)| !keys.contains(&key.get_ref().as_ref())) {
                    let candidates = keys.iter().map(|key| format!("{section}.{key}"));
                    let key = format!("{section}.{}", inner_key.get_ref());
                    return Err(unknown(at(inner_key.span().end), key, candidates));
                }
            } else if !KEYS[0].1.contains(&key.get_ref().as_ref()) {
                let sections = KEYS[1..].iter().map(|(section, _)| (*section).to_owned());
                let candidates = KEYS[0].1.iter().map(|key| (*key).to_owned()).chain(sections);
                return Err(unknown(at(key.span().end), key.get_ref().to_string(), candidates));
            }
        }
        toml::from_str(text).map_err(syntax)
    }
}

fn unknown(place: String, key: String, candidates: impl Iterator<Item = String>) -> ConfigError {
    let near = |candidate: &String| strsim::damerau_levenshtein(&key, candidate);
    let nearest = candidates.min_by_key(near).filter(|candidate| near(candidate) <= 1 + key.len() / 3);
    ConfigError::UnknownKey { place, key, nearest }
}
