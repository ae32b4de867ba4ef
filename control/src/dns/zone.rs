//! The records of the cluster domain: a question in, an answer out. Pure.
//!
//! After the Kubernetes DNS-based service discovery specification 1.1.0. As in CoreDNS, which most clusters run,
//! endpoints of Services with a cluster IP have names of their own too, and the name of a Service or endpoint has SRV records
//! for all of its ports. There are no pod records, which the
//! specification dropped, and no wildcards.
//!
//! A name exists if it or a name below it has a record (RFC 8020): for another type it is answered with NODATA, and
//! otherwise with NXDOMAIN (RFC 2308).

mod answer;
mod entry;
mod index;
mod query_name;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::net::IpAddr;

use flowgate_wire::Protocol;
use hickory_proto::rr::rdata::{CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use self::answer::Step;
pub use self::answer::{Answer, Status};
use self::entry::{Entry, Kind, PortTarget};
use self::index::Index;
use self::query_name::{Part, QueryName};
use crate::model::Desired;

/// The names of a cluster at one moment. A clone shares nearly everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The cluster domain, in lower case.
    origin: Name,
    /// `svc` in it.
    services: Name,
    /// `ns.dns` in it: this server.
    server: Name,
    /// `hostmaster` in it.
    contact: Name,
    /// The TTL of the records, in seconds.
    ttl_s: u32,
    /// The addresses of this server.
    servers: Vec<IpAddr>,
    serial: u32,
    index: Index,
}

/// The cluster domain cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{domain:?} is not a domain that names of Services fit into, such as cluster.local")]
pub struct BadDomain {
    domain: String,
}

impl Zone {
    /// A zone without Services.
    ///
    /// # Errors
    /// [`BadDomain`]: it is the root, not a host name, or so long that names of Services would not fit.
    pub fn new(domain: &str, ttl_s: u32, servers: Vec<IpAddr>) -> Result<Self, BadDomain> {
        let refuse = || BadDomain { domain: domain.to_owned() };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let domain_name = domain.strip_suffix('.').unwrap_or(domain);
        if domain_name.len() > DOMAIN_LEN_MAX || !domain_name.split('.').all(is_label) {
            return Err(refuse());
        }
        let name = |labels: &[&[u8]]| {
            let domain = domain_name.split('.').map(|label| label.to_ascii_lowercase().into_bytes());
            let labels = labels.iter().map(|label| label.to_vec()).chain(domain);
            Name::from_labels(labels).ok().ok_or_else(refuse)
        };
        Ok(Self {
            origin: name(&[])?,
            services: name(&[b"svc"])?,
            server: name(&[b"ns", b"dns"])?,
            contact: name(&[b"hostmaster"])?,
            ttl_s,
            servers,
            serial: 0,
            index: Index::default(),
        })
    }

    /// The zone after a change, with the next serial number. `before` is what this zone was made from.
    #[must_use]
    pub fn updated(&self, before: &Desired, after: &Desired) -> Self {
        let mut next = self.clone();
        next.index.update(before, after, &self.services);
        next.serial = next.serial.wrapping_add(1);
        next
    }

    /// The zone with another serial number.
    #[must_use]
    pub fn with_serial(self, serial: u32) -> Self {
        Self { serial, ..self }
    }

    /// Whether a name is the cluster domain or lies below it.
    pub fn contains(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    /// Answers a question of class IN. The records have the name in the question's spelling: some clients compare it
    /// case by case ("0x20" randomisation).
    pub fn lookup(&self, name: &Name, record_type: RecordType) -> Answer {
        let mut answers = Vec::new();
        let mut name = name.clone();
        loop {
            match self.step(&name, record_type) {
                Step::Done { status, records, additionals } => {
                    answers.extend(records);
                    return Answer { status, answers, additionals };
                }
                Step::Follow(alias) => {
                    let target = alias.0.clone();
                    answers.push(self.record(name, RData::CNAME(alias)));
                    // A loop or a long chain ends here, and the client has its part of it.
                    let seen = answers.iter().any(|record| record.name == target);
                    if seen || answers.len() == CHAIN_LEN_MAX {
                        return Answer { status: Status::Found, answers, additionals: Vec::new() };
                    }
                    name = target;
                }
            }
        }
    }

    fn step(&self, name: &Name, record_type: RecordType) -> Step {
        if !self.contains(name) {
            return self.reverse(name, record_type);
        }
        let lower = name.to_lowercase();
        let own = usize::from(lower.num_labels() - self.origin.num_labels());
        let labels: Option<Vec<&str>> =
            lower.iter().take(own).map(|label| std::str::from_utf8(label).ok()).collect();
        let no_name = || Step::nothing(Status::NxDomain(Box::new(self.soa(&self.origin))));
        // Names in DNS are bytes; a label that is no UTF-8 is no name of Kubernetes.
        let Some(labels) = labels else { return no_name() };
        let found = match QueryName::read(&labels) {
            QueryName::Apex => Some(self.apex(name, record_type)),
            QueryName::Version => {
                let version = TXT::new(vec![SCHEMA_VERSION.to_owned()]);
                Some(self.typed(record_type, RecordType::TXT, vec![self.version(name, version)]))
            }
            QueryName::Server if !self.servers.is_empty() => {
                Some(self.addressed(name, record_type, &self.servers))
            }
            QueryName::EmptyNonTerminal => Some(self.present(name, record_type)),
            QueryName::Namespace(namespace) => {
                self.index.has_namespace(namespace).then(|| self.present(name, record_type))
            }
            QueryName::Service { namespace, service, part } => self
                .index
                .service(namespace, service)
                .and_then(|entry| self.service(entry, part, name, record_type)),
            QueryName::Server | QueryName::Nothing => None,
        };
        found.unwrap_or_else(no_name)
    }

    fn service(&self, entry: &Entry, part: Part<'_>, name: &Name, record_type: RecordType) -> Option<Step> {
        match part {
            Part::Whole => match entry.kind() {
                Kind::Alias(target) if matches!(record_type, RecordType::CNAME | RecordType::ANY) => {
                    Some(Step::found(vec![self.record(name.clone(), RData::CNAME(CNAME(target)))]))
                }
                Kind::Alias(target) => Some(Step::Follow(CNAME(target))),
                _ if !entry.exists() => None,
                // As in CoreDNS: the ports of a Service need not be known to be found.
                _ if record_type == RecordType::SRV => Some(self.ports(name, &entry.all_ports())),
                _ => Some(self.addressed(name, record_type, &entry.addresses())),
            },
            Part::Endpoint(label) => {
                let addresses = entry.endpoint(label);
                (!addresses.is_empty()).then(|| match record_type {
                    RecordType::SRV => self.ports(name, &entry.endpoint_ports(label)),
                    _ => self.addressed(name, record_type, &addresses),
                })
            }
            Part::Protocol(protocol) => entry.has_protocol(protocol).then(|| self.present(name, record_type)),
            Part::Port(port, protocol) => self.port(entry, port, protocol, name, record_type),
        }
    }

    fn port(
        &self,
        entry: &Entry,
        port: &str,
        protocol: Protocol,
        name: &Name,
        record_type: RecordType,
    ) -> Option<Step> {
        let targets = entry.port(port, protocol);
        if targets.is_empty() {
            return None;
        }
        if record_type != RecordType::SRV {
            return Some(self.present(name, record_type));
        }
        Some(self.ports(name, &targets))
    }

    /// The SRV records of these targets, with the addresses of their hosts; NODATA if there are none.
    fn ports(&self, name: &Name, targets: &[PortTarget]) -> Step {
        if targets.is_empty() {
            return self.present(name, RecordType::SRV);
        }
        // One SRV record per host and port, however many addresses the host has or protocols the port.
        let ports: BTreeSet<(&Name, u16)> =
            targets.iter().map(|target| (&target.host, target.port)).collect();
        let records = ports.into_iter().map(|(host, port)| {
            let srv = SRV::new(SRV_PRIORITY, SRV_WEIGHT, port, host.clone());
            self.record(name.clone(), RData::SRV(srv))
        });
        let records = records.collect();
        let hosts: BTreeSet<(&Name, IpAddr)> =
            targets.iter().map(|target| (&target.host, target.addr)).collect();
        let additionals =
            hosts.into_iter().map(|(host, addr)| self.record(host.clone(), addr.into())).collect();
        Step::Done { status: Status::Found, records, additionals }
    }

    fn apex(&self, name: &Name, record_type: RecordType) -> Step {
        let server = &self.server;
        match record_type {
            RecordType::SOA => Step::found(vec![self.soa(name)]),
            RecordType::NS if !self.servers.is_empty() => {
                let addresses = self.servers.iter().map(|&addr| self.record(server.clone(), addr.into()));
                Step::Done {
                    status: Status::Found,
                    additionals: addresses.collect(),
                    records: vec![self.record(name.clone(), RData::NS(NS(server.clone())))],
                }
            }
            _ => self.present(name, record_type),
        }
    }

    /// A name in the reverse tree (in-addr.arpa, ip6.arpa): the names of an address that a Service or endpoint has.
    fn reverse(&self, name: &Name, record_type: RecordType) -> Step {
        let elsewhere = || Step::nothing(Status::OutOfZone(name.clone()));
        // Only whole addresses: names of networks in the reverse tree are not ours.
        let whole = name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len());
        let Some(addr) = whole.map(|net| net.addr()) else { return elsewhere() };
        let mut names: Vec<Name> = Vec::new();
        for entry in self.index.owners(addr) {
            let own = entry.names_of(addr);
            // A Service's own address stands for the Service, whatever endpoints have it too.
            if own.contains(&entry.name) {
                names = own;
                break;
            }
            names.extend(own);
        }
        if names.is_empty() {
            return elsewhere();
        }
        let records = names.into_iter().map(|target| self.record(name.clone(), RData::PTR(PTR(target))));
        let records: Vec<Record> = records.collect();
        match record_type {
            RecordType::PTR => Step::found(records),
            RecordType::ANY => Step::found(vec![self.any(name)]),
            // In the reverse tree only such names are ours, so each is a zone of its own with its own SOA.
            _ => Step::nothing(Status::NoData(Box::new(self.soa(name)))),
        }
    }

    fn addressed(&self, name: &Name, record_type: RecordType, addresses: &[IpAddr]) -> Step {
        let family = |ipv4: bool| {
            let of_family = addresses.iter().filter(|addr| addr.is_ipv4() == ipv4);
            of_family.map(|&addr| self.record(name.clone(), addr.into())).collect()
        };
        match record_type {
            RecordType::A => self.typed(record_type, record_type, family(true)),
            RecordType::AAAA => self.typed(record_type, record_type, family(false)),
            _ => self.present(name, record_type),
        }
    }

    /// The records if they are of the requested type, else NODATA: the name exists.
    fn typed(&self, requested: RecordType, have: RecordType, records: Vec<Record>) -> Step {
        if requested == RecordType::ANY
            && let Some(record) = records.first()
        {
            return Step::found(vec![self.any(&record.name)]);
        }
        if requested == have && !records.is_empty() {
            return Step::found(records);
        }
        Step::nothing(Status::NoData(Box::new(self.soa(&self.origin))))
    }

    /// A name that exists without a record of the requested type.
    fn present(&self, name: &Name, record_type: RecordType) -> Step {
        if record_type == RecordType::ANY {
            return Step::found(vec![self.any(name)]);
        }
        Step::nothing(Status::NoData(Box::new(self.soa(&self.origin))))
    }

    /// The response to ANY: one synthetic record instead of all, which would serve amplification (RFC 8482 section
    /// 4.2).
    fn any(&self, name: &Name) -> Record {
        self.record(name.clone(), RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))
    }

    fn version(&self, name: &Name, version: TXT) -> Record {
        Record::from_rdata(name.clone(), self.ttl_s.max(SCHEMA_TTL_S), RData::TXT(version))
    }

    fn soa(&self, owner: &Name) -> Record {
        let (server, contact) = (self.server.clone(), self.contact.clone());
        let [refresh, retry, expire] = [7200, 1800, 86_400];
        let soa = SOA::new(server, contact, self.serial, refresh, retry, expire, self.ttl_s);
        self.record(owner.clone(), RData::SOA(soa))
    }

    fn record(&self, name: Name, data: RData) -> Record {
        Record::from_rdata(name, self.ttl_s, data)
    }
}

/// The version of the specification, for `dns-version`.
const SCHEMA_VERSION: &str = "1.1.0";
/// The version changes only with the program.
const SCHEMA_TTL_S: u32 = 28_800;
/// All targets of a port are equal (RFC 2782).
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 100;
/// The longest chain of aliases that is followed.
const CHAIN_LEN_MAX: usize = 8;
/// `svc.` and a Service and a namespace of 63 bytes each still fit into the 253 bytes of a name.
const DOMAIN_LEN_MAX: usize = 253 - "svc.".len() - 2 * 64;
