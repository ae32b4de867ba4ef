//! The section `[services]`: what Services may claim, and what becomes of the rest of their addresses.

use std::net::SocketAddr;

use flowgate_control::{CompileConfig, ExternalIps, ProtectedPort};
use flowgate_dataplane::{PipelineConfig, UnservedPorts};
use flowgate_wire::Protocol;
use serde::{Deserialize, Deserializer};

use super::value::parse_with;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Services {
    /// `None`: as the role has it.
    #[serde(deserialize_with = "external_ips")]
    pub(crate) external_ips: Option<ExternalIps>,
    #[serde(deserialize_with = "protected_ports")]
    pub(crate) protected_ports: Vec<ProtectedPort>,
    #[serde(deserialize_with = "unserved_ports")]
    pub(crate) unserved_ports: UnservedPorts,
}

impl Default for Services {
    fn default() -> Self {
        let protected = |text: &&str| text.parse().expect("the defaults are ports");
        Self {
            external_ips: None,
            protected_ports: PROTECTED_PORTS.iter().map(protected).collect(),
            unserved_ports: PipelineConfig::default().unserved_ports,
        }
    }
}

impl Services {
    pub(super) const fn apply_to_pipeline(&self, pipeline: &mut PipelineConfig) {
        pipeline.unserved_ports = self.unserved_ports;
    }

    /// `own` are the addresses on which Flowgate's own servers listen, by UDP too if `true`.
    pub(crate) fn apply_to(&self, compile: &mut CompileConfig, own: &[(SocketAddr, bool)]) {
        compile.external_ips.clone_from(&self.external_ips);
        compile.protected_ports.clone_from(&self.protected_ports);
        for (listen, udp_too) in own {
            let addr = Some(listen.ip()).filter(|ip| !ip.is_unspecified());
            let protocols = if *udp_too { &[Protocol::Tcp, Protocol::Udp][..] } else { &[Protocol::Tcp] };
            let port = |&protocol| ProtectedPort { addr, protocol, port: listen.port() };
            compile.protected_ports.extend(protocols.iter().map(port));
        }
    }
}

/// What nodes and routers listen on: ssh, BGP (RFC 4271) and its BFD (RFC 5881, RFC 5883), etcd, the API server, the kubelet.
const PROTECTED_PORTS: &[&str] =
    &["22/tcp", "179/tcp", "3784/udp", "4784/udp", "2379/tcp", "2380/tcp", "6443/tcp", "10250/tcp"];

fn unserved_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UnservedPorts, D::Error> {
    parse_with(deserializer, |word: String| match word.as_str() {
        "drop" => Ok(UnservedPorts::Drop),
        "reject" => Ok(UnservedPorts::Reject),
        "pass" => Ok(UnservedPorts::Pass),
        other => Err(format!("`{other}` is none of drop, reject and pass")),
    })
}

fn external_ips<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ExternalIps>, D::Error> {
    /// A word, or a list of ranges.
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one of \"safe\", \"all\", \"none\", or a list of ranges")]
    enum Written {
        Word(String),
        Ranges(Vec<String>),
    }
    parse_with(deserializer, |written| match written {
        Written::Word(word) => word.parse().map(Some),
        Written::Ranges(ranges) if ranges.is_empty() => Ok(Some(ExternalIps::Nowhere)),
        Written::Ranges(ranges) => ranges.join(",").parse().map(Some),
    })
}

fn protected_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ProtectedPort>, D::Error> {
    parse_with(deserializer, |list: Vec<String>| list.iter().map(|entry| entry.parse()).collect())
}
