//! The section `[dns]`. Never opens anything.

use std::net::{IpAddr, SocketAddr};

use flowgate_control::dns::{self, DNS_PORT, Upstream};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Dns {
    pub(super) listen: Vec<String>,
    pub(super) domain: String,
    pub(super) ttl_s: u32,
    pub(super) forward: Vec<String>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            domain: "cluster.local".into(),
            ttl_s: 5,
            forward: vec!["/etc/resolv.conf".into()],
        }
    }
}

impl Dns {
    pub(super) const KEYS: &[&str] = &["listen", "domain", "ttl_s", "forward"];

    /// What was meant; nothing if the server is off.
    pub(super) fn meant(self) -> Result<Option<dns::Config>, (&'static str, String)> {
        let mut listen = Vec::new();
        for text in &self.listen {
            let addr = socket_addr(text).ok_or_else(|| ("dns.listen", shape(text)))?;
            if listen.contains(&addr) {
                return Err(("dns.listen", format!("{addr} is listed twice")));
            }
            listen.push(addr);
        }
        if self.ttl_s > TTL_S_MAX {
            return Err(("dns.ttl_s", format!("{} is above {TTL_S_MAX}", self.ttl_s)));
        }
        let upstream = |text: &String| {
            if text.starts_with('/') {
                return Ok(Upstream::File(text.into()));
            }
            let server = socket_addr(text).map(Upstream::Server);
            server.ok_or_else(|| {
                ("dns.forward", format!("{}, or a file such as /etc/resolv.conf", shape(text)))
            })
        };
        let upstreams = self.forward.iter().map(upstream).collect::<Result<_, _>>()?;
        if let Err(error) = dns::zone::Zone::new(&self.domain, self.ttl_s, Vec::new()) {
            return Err(("dns.domain", error.to_string()));
        }
        let config = dns::Config { listen, domain: self.domain, ttl_s: self.ttl_s, upstreams };
        Ok(Some(config).filter(|config| !config.listen.is_empty()))
    }
}

fn socket_addr(text: &str) -> Option<SocketAddr> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.map(|ip| SocketAddr::new(ip, DNS_PORT)).or_else(|| text.parse().ok())
}

fn shape(text: &str) -> String {
    format!("`{text}` is no address such as 127.0.0.1, 127.0.0.1:53 or [::1]:53")
}

/// Endpoints come and go faster than any longer time.
const TTL_S_MAX: u32 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dns_server_is_off_until_it_is_told_where_to_listen() {
        assert_eq!(Dns::default().meant(), Ok(None));
        let on = Dns { listen: vec!["127.0.0.1".into(), "[::1]:5353".into()], ..Dns::default() };
        let config = on.meant().unwrap().unwrap();
        assert_eq!(config.listen, ["127.0.0.1:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
        assert_eq!((config.domain.as_str(), config.ttl_s), ("cluster.local", 5));
        assert_eq!(config.upstreams, [Upstream::File("/etc/resolv.conf".into())]);
    }

    #[test]
    fn upstreams_are_addresses_files_or_none() {
        let with = |forward: &[&str]| Dns {
            listen: vec!["127.0.0.1".into()],
            forward: forward.iter().map(|&text| text.to_owned()).collect(),
            ..Dns::default()
        };
        let upstreams = |dns: Dns| dns.meant().unwrap().unwrap().upstreams;
        assert_eq!(upstreams(with(&[])), []);
        let server = |text: &str| Upstream::Server(text.parse().unwrap());
        assert_eq!(
            upstreams(with(&["192.0.2.53", "[2001:db8::53]:5353", "/run/resolv.conf"])),
            [
                server("192.0.2.53:53"),
                server("[2001:db8::53]:5353"),
                Upstream::File("/run/resolv.conf".into())
            ]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let key = |dns: Dns| dns.meant().unwrap_err().0;
        assert_eq!(key(Dns { listen: vec!["localhost".into()], ..Dns::default() }), "dns.listen");
        let twice = vec!["127.0.0.1".into(), "127.0.0.1:53".into()];
        assert_eq!(key(Dns { listen: twice, ..Dns::default() }), "dns.listen");
        assert_eq!(key(Dns { forward: vec!["8.8.8".into()], ..Dns::default() }), "dns.forward");
        assert_eq!(key(Dns { ttl_s: 3601, ..Dns::default() }), "dns.ttl_s");
        for domain in ["", ".", "a..b", "under_score.local", &"a.".repeat(100)] {
            assert_eq!(key(Dns { domain: domain.into(), ..Dns::default() }), "dns.domain", "{domain}");
        }
    }
}
