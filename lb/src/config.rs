//! The configuration: one file per section, each with its keys, their defaults and what they must hold to; [`mod@file`] reads
//! the TOML text. Everything is checked before anything is opened, and every error names the file and the key.
//!
//! A new key is a field of its section, its use, and a line in the sample `config/flowgate.toml`. The sample says what each
//! key means, and a test compares its keys and defaults with the sections.

mod admin;
mod dns;
mod file;
mod flows;
mod gateway;
mod health;
mod icmp;
mod limits;
mod log;
mod metrics;
mod node;
mod privileges;
mod reload;
mod rings;
mod role;
mod services;
mod snat;
mod source;
mod tcp;
#[cfg(test)]
mod tests;
mod value;
mod workers;
mod xdp;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use flowgate_control::source::kube::Scope;
use flowgate_control::{CompileConfig, NodeAddresses, Role, Source, dns as control_dns};
use flowgate_dataplane::PipelineConfig;
use flowgate_tables::PortSet;
use flowgate_tables::spec::SnatSpec;

use file::Sections;
use value::Invalid;

pub(crate) use limits::OTHER_OWN_ADDRESSES;
pub(crate) use log::LogLevel;
pub(crate) use metrics::MetricsDetail;
pub(crate) use privileges::Privileges;
pub(crate) use reload::{Change, ConfigFile, Reloaded};
pub(crate) use role::RoleName;
pub(crate) use services::Services;
#[cfg(test)]
pub(crate) use snat::DEFAULT_PORTS as DEFAULT_SNAT_PORTS;
pub(crate) use snat::port_range;
pub(crate) use source::SourceOverride;

/// The operator's decisions, checked, with the command line applied.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) role: Role,
    pub(crate) node_name: String,
    pub(crate) source: Source,
    pub(crate) gateway: gateway::Gateway,
    pub(crate) node: node::Node,
    pub(crate) services: Services,
    pub(crate) snat: snat::Snat,
    pub(crate) workers: workers::Workers,
    pub(crate) xdp: xdp::Xdp,
    pub(crate) rings: rings::Rings,
    pub(crate) flows: flows::Flows,
    pub(crate) limits: limits::Limits,
    /// How single packets are treated: the sections `tcp` and `icmp`, and parts of `flows` and `services`.
    pub(crate) pipeline: PipelineConfig,
    /// `None`: no DNS server.
    pub(crate) dns: Option<control_dns::Config>,
    pub(crate) admin: admin::Admin,
    pub(crate) health: health::Health,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) privileges: Privileges,
    pub(crate) log: log::Log,
}

/// What a command line sets instead of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) source: SourceOverride,
    pub(crate) role: Option<RoleName>,
    pub(crate) node_name: Option<String>,
    pub(crate) interfaces: Vec<String>,
}

/// Why there is no configuration. Names the file, the key and what to write.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("{place}: {reason}")]
    Syntax { place: String, reason: String },
    #[error("{place}: unknown key `{key}`{}", nearest.as_ref().map(|n| format!(": did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { place: String, key: String, nearest: Option<String> },
    #[error("{place}: {key}: {reason}")]
    Value { place: String, key: String, reason: String },
}

impl Config {
    /// Reads the file, if one is named, and applies the command line.
    ///
    /// # Errors
    /// [`ConfigError`], for the first thing that is wrong.
    pub(crate) fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Self::resolve_at("command line", Sections::default(), overrides);
        };
        let text = file::read(path)?;
        let place = path.display().to_string();
        Self::resolve_at(&place, Sections::parse(&text, &place)?, overrides)
    }

    fn resolve_at(place: &str, sections: Sections, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::resolve(sections, overrides).map_err(|Invalid { key, reason }| ConfigError::Value {
            place: place.to_owned(),
            key: key.to_owned(),
            reason,
        })
    }

    fn resolve(sections: Sections, overrides: Overrides) -> Result<Self, Invalid> {
        let Sections { role, node_name, source, gateway, node, snat, workers, xdp, rings, flows, .. } =
            sections;
        let Sections { limits, services, tcp, icmp, dns, admin, health, metrics, privileges, log, .. } =
            sections;
        let role = Role::from(overrides.role.unwrap_or(role));
        // P202: the Node has the name of the host unless the operator gives another. A gateway belongs to no Node unless the
        // operator names one.
        let given_name = overrides.node_name.or(node_name).map(|name| name.to_lowercase());
        let node_name = given_name.clone().unwrap_or_else(|| host_name().to_lowercase());
        let followed_node = if role == Role::Node { Some(node_name.clone()) } else { given_name };
        let dns = dns.resolve();
        let scope = if dns.is_some() { Scope::Named } else { Scope::Served };
        let mut pipeline = PipelineConfig::default();
        tcp.apply_to(&mut pipeline);
        icmp.apply_to(&mut pipeline);
        flows.apply_to(&mut pipeline);
        services.apply_to_pipeline(&mut pipeline);
        Ok(Self {
            role,
            node_name,
            source: source.resolve(overrides.source, scope, followed_node)?,
            gateway: gateway.resolve(overrides.interfaces)?,
            node,
            services,
            snat,
            workers: workers.resolve()?,
            xdp,
            rings,
            flows,
            limits,
            pipeline,
            dns,
            admin,
            health,
            metrics,
            privileges,
            log,
        })
    }

    /// What the control plane compiles by, with these source ports.
    pub(crate) fn compile_config(&self, snat_ports: PortSet) -> CompileConfig {
        let mut compile = CompileConfig {
            role: self.role,
            node_name: self.node_name.clone(),
            snat: SnatSpec { addresses: self.snat.addresses.clone(), ports: snat_ports },
            node_addresses: NodeAddresses::Interfaces,
            ..CompileConfig::default()
        };
        self.gateway.apply_to(&mut compile);
        self.limits.apply_to(&mut compile);
        self.node.apply_to(&mut compile);
        self.services.apply_to(&mut compile, &self.own_servers());
        compile
    }

    /// Where the servers of this process listen, and whether by UDP too.
    fn own_servers(&self) -> Vec<(SocketAddr, bool)> {
        let dns = self.dns.iter().flat_map(|dns| dns.listen.iter().copied());
        let http = http_servers(&self.health, &self.metrics);
        http.chain(dns.map(|listen| (listen, true))).collect()
    }

    /// The folder of the flow tables that outlive the process.
    pub(crate) fn flow_folder(&self) -> PathBuf {
        self.admin.socket.with_file_name("flows")
    }

    /// Where the verifier's log goes if it refuses the XDP program.
    pub(crate) fn log_folder(&self) -> PathBuf {
        self.admin.socket.parent().map_or_else(std::env::temp_dir, Into::into)
    }
}

/// Where the servers of a process listen by default, and whether by UDP too.
pub(crate) fn default_servers() -> Vec<(SocketAddr, bool)> {
    http_servers(&health::Health::default(), &metrics::Metrics::default()).collect()
}

fn http_servers(
    health: &health::Health,
    metrics: &metrics::Metrics,
) -> impl Iterator<Item = (SocketAddr, bool)> + use<> {
    [health.listen, metrics.listen].into_iter().flatten().map(|listen| (listen, false))
}

/// The name that the operating system has for this machine; empty if it has none.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}
