//! The endpoints of a Service port and its two sets (P111 to P118, P201 to P211). Written from the rules; shares nothing
//! with the code under test.

use std::net::{IpAddr, SocketAddr};

use crate::cluster::{Cluster, Endpoint, Port, Service};
use crate::machine::Machine;
use crate::owners::{EndpointOf, leads_back};

/// All endpoints of one family of a Service port.
pub(crate) struct PortEndpoints<'a> {
    list: Vec<(SocketAddr, Endpoint)>,
    /// Those of the list that run on a Node by any object.
    pods: Vec<SocketAddr>,
    cluster: &'a Cluster,
    machine: &'a Machine,
}

impl<'a> PortEndpoints<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        machine: &'a Machine,
        service: &Service,
        port: &Port,
        ipv4: bool,
    ) -> Self {
        let mut all = Self { list: Vec::new(), pods: Vec::new(), cluster, machine };
        for slice in &cluster.slices {
            let belongs = slice.namespace == service.namespace
                && slice.service.as_ref() == Some(&service.name)
                && slice.label.is_none_or(|label| !label.ends_with("/headless"))
                && slice.family == if ipv4 { "IPv4" } else { "IPv6" };
            let ports = slice
                .ports
                .iter()
                .filter(|p| belongs && p.name == port.name && p.protocol.unwrap_or("TCP") == port.protocol);
            for number in ports.filter_map(|port| port.number.filter(|number| *number != 0)) {
                for endpoint in &slice.endpoints {
                    all.add(number, endpoint);
                }
            }
        }
        for object in &cluster.endpoints {
            let mirrored = object.namespace == service.namespace
                && object.name == service.name
                && !object.skip
                && !service.selector;
            let ports = object
                .ports
                .iter()
                .filter(|p| mirrored && p.name == port.name && p.protocol.unwrap_or("TCP") == port.protocol);
            for number in ports.filter_map(|port| port.number) {
                for (list, ready) in [(&object.ready, true), (&object.unready, false)] {
                    for (ip, node) in list.iter().filter(|(ip, _)| ip.is_ipv4() == ipv4) {
                        let (addresses, node) = (vec![*ip], node.clone());
                        all.add(
                            number,
                            &Endpoint { addresses, node, ready: Some(ready), ..Endpoint::default() },
                        );
                    }
                }
            }
        }
        let PortEndpoints { list, pods, .. } = &mut all;
        list.retain(|(endpoint, _)| {
            let of = EndpointOf { service, is_pod: pods.contains(endpoint) };
            !leads_back(cluster, machine, port.protocol, *endpoint, of)
        });
        all
    }

    /// P113, P116
    fn add(&mut self, number: u16, endpoint: &Endpoint) {
        let Some(first) = endpoint.addresses.first() else { return };
        let key = SocketAddr::new(*first, number);
        if endpoint.node.as_ref().is_some_and(|node| !node.is_empty()) {
            self.pods.push(key);
        }
        match self.list.iter_mut().find(|(known, _)| *known == key) {
            None => self.list.push((key, endpoint.clone())),
            Some((_, known)) => {
                let rank = |e: &Endpoint| (!e.is_terminating(), e.is_ready(), e.serving.unwrap_or(true));
                if rank(endpoint) > rank(known) {
                    *known = endpoint.clone();
                }
            }
        }
    }

    /// P206
    pub(crate) fn any_usable(&self) -> bool {
        self.list.iter().any(|(_, endpoint)| endpoint.is_ready() || endpoint.is_last_resort())
    }

    /// P204, P205, P208 to P210
    pub(crate) fn cluster_set(&self) -> Vec<SocketAddr> {
        let ready: Vec<&(SocketAddr, Endpoint)> = self.list.iter().filter(|(_, e)| e.is_ready()).collect();
        if ready.is_empty() {
            return self.keys(Endpoint::is_last_resort);
        }
        if self.machine.is_gateway {
            return self.keys(Endpoint::is_ready);
        }
        let node = self.machine.name.to_owned();
        if ready.iter().all(|(_, e)| !e.nodes.is_empty())
            && ready.iter().any(|(_, e)| e.nodes.contains(&node))
        {
            return self.keys(|e| e.is_ready() && e.nodes.contains(&node));
        }
        if let Some(zone) = self.machine.zone(self.cluster).map(str::to_owned)
            && ready.iter().all(|(_, e)| !e.zones.is_empty())
            && ready.iter().any(|(_, e)| e.zones.contains(&zone))
        {
            return self.keys(|e| e.is_ready() && e.zones.contains(&zone));
        }
        self.keys(Endpoint::is_ready)
    }

    /// P202, P204, P205, P211
    pub(crate) fn local_set(&self) -> Vec<SocketAddr> {
        let here = |e: &Endpoint| e.node.as_deref() == Some(self.machine.name);
        let ready = self.keys(|e| here(e) && e.is_ready());
        if ready.is_empty() { self.keys(|e| here(e) && e.is_last_resort()) } else { ready }
    }

    fn keys(&self, wanted: impl Fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
        self.list.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(key, _)| *key).collect()
    }
}

/// P201
impl Endpoint {
    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }

    fn is_last_resort(&self) -> bool {
        self.serving.unwrap_or(true) && self.is_terminating()
    }
}

/// Whether a Service exists for a family at all (P102 to P106, P902).
pub(crate) fn is_served(service: &Service, ipv4: bool) -> bool {
    service.label.is_none_or(|label| !label.ends_with("/service-proxy-name"))
        && service.kind != "ExternalName"
        && cluster_ip(service, ipv4).is_some()
}

/// Its cluster IP of a family.
pub(crate) fn cluster_ip(service: &Service, ipv4: bool) -> Option<IpAddr> {
    service.cluster_ips.iter().flatten().find(|ip| ip.is_ipv4() == ipv4).copied()
}
