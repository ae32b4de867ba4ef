//! The meaning of names in the cluster domain, by their form alone: whether they exist is not known here.

use flowgate_wire::Protocol;

/// A name at or below the cluster domain, by its labels in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryName<'a> {
    /// The cluster domain itself.
    Apex,
    /// `dns-version`: the version of the schema.
    Version,
    /// `ns.dns`: this server.
    Server,
    /// `dns` or `svc`: has no records, but names below it (RFC 9499, "empty non-terminal"). `pod` too, as in CoreDNS without
    /// pod records: its clients ask for it to find out whether there are any.
    EmptyNonTerminal,
    /// `<ns>.svc`.
    Namespace(&'a str),
    /// `<service>.<ns>.svc`, or a name below it.
    Service {
        /// The namespace.
        namespace: &'a str,
        /// The Service.
        service: &'a str,
        /// The Service itself, or what lies below.
        part: Part<'a>,
    },
    /// No name of this form exists.
    Nothing,
}

/// A name at or below that of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The Service itself.
    Whole,
    /// `<hostname>`: one of its endpoints.
    Endpoint(&'a str),
    /// `_<proto>`: has no records, but ports may lie below.
    Protocol(Protocol),
    /// `_<port>._<proto>`.
    Port(&'a str, Protocol),
}

impl<'a> QueryName<'a> {
    /// From the labels before the cluster domain, in the order of the name.
    pub(super) fn read(labels: &[&'a str]) -> Self {
        match labels {
            [] => Self::Apex,
            ["dns-version"] => Self::Version,
            ["ns", "dns"] => Self::Server,
            ["dns" | "svc" | "pod"] => Self::EmptyNonTerminal,
            [namespace, "svc"] => Self::Namespace(namespace),
            [below @ .., service, namespace, "svc"] => {
                Part::read(below).map_or(Self::Nothing, |part| Self::Service { namespace, service, part })
            }
            _ => Self::Nothing,
        }
    }
}

impl<'a> Part<'a> {
    fn read(labels: &[&'a str]) -> Option<Self> {
        match labels {
            [] => Some(Self::Whole),
            [label] if label.starts_with('_') => protocol(label).map(Self::Protocol),
            [label] => Some(Self::Endpoint(label)),
            [port, proto] => {
                // Ports without a name have no SRV record.
                let port = port.strip_prefix('_').filter(|name| !name.is_empty())?;
                Some(Self::Port(port, protocol(proto)?))
            }
            _ => None,
        }
    }
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_the_specification_says() {
        let of = |part| QueryName::Service { namespace: "shop", service: "web", part };
        let cases: [(&[&str], QueryName<'_>); 16] = [
            (&[], QueryName::Apex),
            (&["dns-version"], QueryName::Version),
            (&["svc"], QueryName::EmptyNonTerminal),
            (&["dns"], QueryName::EmptyNonTerminal),
            (&["pod"], QueryName::EmptyNonTerminal),
            (&["shop", "pod"], QueryName::Nothing),
            (&["ns", "dns"], QueryName::Server),
            (&["shop", "svc"], QueryName::Namespace("shop")),
            (&["web", "shop", "svc"], of(Part::Whole)),
            (&["pet-0", "web", "shop", "svc"], of(Part::Endpoint("pet-0"))),
            (&["_tcp", "web", "shop", "svc"], of(Part::Protocol(Protocol::Tcp))),
            (&["_http", "_sctp", "web", "shop", "svc"], of(Part::Port("http", Protocol::Sctp))),
            (&["_", "_tcp", "web", "shop", "svc"], QueryName::Nothing),
            (&["http", "_tcp", "web", "shop", "svc"], QueryName::Nothing),
            (&["a", "_http", "_tcp", "web", "shop", "svc"], QueryName::Nothing),
            (&["web", "shop", "pod"], QueryName::Nothing),
        ];
        for (labels, meaning) in cases {
            assert_eq!(QueryName::read(labels), meaning, "{labels:?}");
        }
    }
}
