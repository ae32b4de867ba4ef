//! The section `[dns]`: the server for the names of Services.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use flowgate_control::dns::{self, DNS_PORT, RateLimit, Upstream};
use serde::{Deserialize, Deserializer};

use super::value::{first_repeated, parse_with};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Dns {
    /// Empty: no server.
    #[serde(deserialize_with = "listen")]
    pub(super) listen: Vec<SocketAddr>,
    #[serde(deserialize_with = "domain")]
    domain: String,
    #[serde(deserialize_with = "ttl_s")]
    ttl_s: u32,
    #[serde(deserialize_with = "forward")]
    forward: Vec<Upstream>,
    /// 0: no limit.
    responses_per_s: u32,
    slip: u8,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            domain: "cluster.local".into(),
            ttl_s: 5,
            forward: vec![Upstream::File("/etc/resolv.conf".into())],
            responses_per_s: 0,
            slip: 2,
        }
    }
}

impl Dns {
    /// The server's configuration; `None` if it listens nowhere.
    pub(super) fn resolve(self) -> Option<dns::Config> {
        let Self { listen, domain, ttl_s, forward: upstreams, responses_per_s, slip } = self;
        let limit = |responses_per_s| RateLimit { responses_per_s, slip };
        let rate_limit = NonZeroU32::new(responses_per_s).map(limit);
        (!listen.is_empty()).then_some(dns::Config { listen, domain, ttl_s, upstreams, rate_limit })
    }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    parse_with(deserializer, |list: Vec<String>| {
        let address = |text: &String| socket_addr(text).ok_or_else(|| shape(text));
        let addresses = list.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        match first_repeated(&addresses) {
            Some(twice) => Err(format!("{twice} is listed twice")),
            None => Ok(addresses),
        }
    })
}

fn domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    parse_with(deserializer, |domain: String| match dns::zone::Zone::new(&domain, 0, Vec::new()) {
        Ok(_) => Ok(domain),
        Err(error) => Err(error.to_string()),
    })
}

fn ttl_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |ttl_s: u32| {
        if ttl_s > TTL_S_MAX { Err(format!("{ttl_s} is above {TTL_S_MAX}")) } else { Ok(ttl_s) }
    })
}

fn forward<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Upstream>, D::Error> {
    let upstream = |text: &String| {
        if text.starts_with('/') {
            return Ok(Upstream::File(text.into()));
        }
        let server = socket_addr(text).map(Upstream::Server);
        server.ok_or_else(|| format!("{}, or a file such as /etc/resolv.conf", shape(text)))
    };
    parse_with(deserializer, |list: Vec<String>| list.iter().map(upstream).collect())
}

fn socket_addr(text: &str) -> Option<SocketAddr> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.map(|ip| SocketAddr::new(ip, DNS_PORT)).or_else(|| text.parse().ok())
}

fn shape(text: &str) -> String {
    format!("`{text}` is no address such as 127.0.0.1, 127.0.0.1:53 or [::1]:53")
}

/// Endpoints change faster than any longer time.
const TTL_S_MAX: u32 = 3600;

#[cfg(test)]
mod tests {
    use super::super::ConfigError;
    use super::super::file::Sections;
    use super::*;

    fn dns(keys: &str) -> Result<Option<dns::Config>, ConfigError> {
        Sections::parse(&format!("[dns]\n{keys}"), "f.toml").map(|sections| sections.dns.resolve())
    }

    #[test]
    fn the_dns_server_is_off_until_it_is_told_where_to_listen() {
        assert_eq!(dns("").unwrap(), None);
        let config = dns("listen = [\"127.0.0.1\", \"[::1]:5353\"]").unwrap().unwrap();
        assert_eq!(config.listen, ["127.0.0.1:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
        assert_eq!((config.domain.as_str(), config.ttl_s), ("cluster.local", 5));
        assert_eq!(config.upstreams, [Upstream::File("/etc/resolv.conf".into())]);
        assert_eq!(config.rate_limit, None);
    }

    #[test]
    fn responses_are_limited_once_a_rate_is_given() {
        let limit =
            |keys: &str| dns(&format!("listen = [\"127.0.0.1\"]\n{keys}")).unwrap().unwrap().rate_limit;
        let responses_per_s = NonZeroU32::new(50).unwrap();
        assert_eq!(limit("responses_per_s = 50"), Some(RateLimit { responses_per_s, slip: 2 }));
        assert_eq!(limit("responses_per_s = 50\nslip = 0"), Some(RateLimit { responses_per_s, slip: 0 }));
        assert_eq!(limit("slip = 1"), None);
    }

    #[test]
    fn upstreams_are_addresses_files_or_none() {
        let upstreams = |forward: &[&str]| {
            let keys = format!("listen = [\"127.0.0.1\"]\nforward = {forward:?}");
            dns(&keys).unwrap().unwrap().upstreams
        };
        assert_eq!(upstreams(&[]), []);
        let server = |text: &str| Upstream::Server(text.parse().unwrap());
        assert_eq!(
            upstreams(&["192.0.2.53", "[2001:db8::53]:5353", "/run/resolv.conf"]),
            [
                server("192.0.2.53:53"),
                server("[2001:db8::53]:5353"),
                Upstream::File("/run/resolv.conf".into())
            ]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let key = |keys: &str| match dns(keys) {
            Err(ConfigError::Value { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key("listen = [\"localhost\"]"), "dns.listen");
        assert_eq!(key("listen = [\"127.0.0.1\", \"127.0.0.1:53\"]"), "dns.listen");
        assert_eq!(key("forward = [\"8.8.8\"]"), "dns.forward");
        assert_eq!(key("ttl_s = 3601"), "dns.ttl_s");
        for domain in ["", ".", "a..b", "under_score.local", &"a.".repeat(100)] {
            assert_eq!(key(&format!("domain = {domain:?}")), "dns.domain", "{domain}");
        }
    }
}
