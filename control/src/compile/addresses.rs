//! The node's own addresses, its pods' ranges and its zone.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

use flowgate_tables::Budgets;
use ipnet::IpNet;

use super::net::may_arrive_from;
use super::{CompileConfig, NodeAddresses, Role};
use crate::model::{Desired, NetState, Node};
use crate::report::{Entry, ObjectRef, Severity};

/// An entry of the list of the node's addresses that serve NodePorts (P306).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// Addresses in this range.
    Range(IpNet),
    /// The first address of each family.
    Primary,
    /// 127.0.0.1, from the node itself (P308).
    Localhost,
    /// All addresses but loopback and link-local ones.
    All,
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            range => {
                let net: Option<IpNet> = range.parse().ok();
                net.map(|net| Self::Range(net.trunc())).ok_or_else(|| {
                    format!("`{range}` is none of primary, localhost, all, and no range such as 192.0.2.0/24")
                })
            }
        }
    }
}

/// How source addresses of this node's pods are recognised (P601).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LocalPods {
    /// Not at all.
    #[default]
    Unknown,
    /// By these ranges of the whole cluster.
    ClusterCidr(Vec<IpNet>),
    /// By `spec.podCIDRs` of this machine's Node.
    NodeCidr,
}

/// This machine's place in network and cluster: the same for every Service.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct NodeContext {
    /// Addresses that serve NodePorts, ascending.
    pub(super) nodeport_addresses: Vec<IpAddr>,
    /// Whether 127.0.0.1 serves NodePorts (P308).
    pub(super) localhost_nodeports: bool,
    /// The first address of each family.
    pub(super) primary: Vec<IpAddr>,
    /// All addresses of the node on the served interfaces, ascending.
    pub(super) own: Vec<IpAddr>,
    /// Its addresses by its Node object, ascending.
    pub(super) of_node: Vec<IpAddr>,
    /// Its addresses on other interfaces, ascending.
    pub(super) elsewhere: Arc<Vec<IpAddr>>,
    /// Ranges of the addresses of this node's pods.
    pub(super) pods: Vec<IpNet>,
    /// The node's zone, by its label (P209).
    pub(super) zone: Option<String>,
    /// Those of `pods` whose packets no served interface receives.
    absent_pods: Vec<IpNet>,
    /// Ranges that cluster IPs are taken from (P506), ascending.
    pub(super) service_cidrs: Vec<IpNet>,
    /// What is left out because of a budget.
    pub(super) findings: Vec<Entry>,
}

impl NodeContext {
    pub(super) fn new(desired: &Desired, net: &NetState, config: &CompileConfig) -> Self {
        let node = desired.node(&config.node_name);
        let of_node = || node.map(|node| node.addresses.clone()).unwrap_or_default();
        let of_interfaces =
            || net.interfaces.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let mut own: Vec<IpAddr> = match config.node_addresses {
            NodeAddresses::Interfaces => of_interfaces(),
            NodeAddresses::NodeObject => of_node(),
        };
        own.retain(is_unique);
        let primary = primary_addresses(&of_node(), &own);
        let (service_cidrs, mut findings) = service_cidrs(desired, &config.budgets);
        findings.extend(fit_own_addresses(&mut own, config));
        own.sort_unstable();
        own.dedup();
        let mut node_addresses = of_node();
        node_addresses.retain(is_unique);
        node_addresses.sort_unstable();
        let list = &config.nodeport_addresses;
        let pods = pods(node, config);
        Self {
            nodeport_addresses: own
                .iter()
                .copied()
                .filter(|ip| selected(list, config.role, *ip, &primary))
                .collect(),
            localhost_nodeports: localhost_selected(config),
            primary,
            own,
            of_node: node_addresses,
            elsewhere: Arc::clone(&net.elsewhere),
            absent_pods: pods.iter().filter(|range| !may_arrive_from(net, range)).copied().collect(),
            pods,
            zone: zone(node),
            service_cidrs,
            findings,
        }
    }

    /// Whether others reach this machine by the address. One of an interface that is not served does not count: routing
    /// daemons announce VIPs from there.
    pub(super) fn is_own(&self, addr: IpAddr) -> bool {
        self.own.binary_search(&addr).is_ok() || self.of_node.binary_search(&addr).is_ok()
    }

    /// Whether the address is one of this machine's, on whichever interface.
    pub(super) fn is_of_host(&self, addr: IpAddr) -> bool {
        self.is_own(addr) || self.elsewhere.binary_search(&addr).is_ok()
    }

    /// Whether pods of this node can be told from others in this family (P604).
    pub(super) fn knows_pods(&self, ipv4: bool) -> bool {
        self.pods.iter().any(|net| net.addr().is_ipv4() == ipv4)
    }

    /// Whether packets of pods of this family can arrive by a served interface.
    pub(super) fn pods_arrive(&self, ipv4: bool) -> bool {
        let mut of_family = self.pods.iter().filter(|net| net.addr().is_ipv4() == ipv4);
        of_family.any(|net| !self.absent_pods.contains(net))
    }
}

/// The ranges of all ServiceCIDRs, ascending and each once. An object whose ranges do not fit the budget is left out whole,
/// with a finding.
fn service_cidrs(desired: &Desired, budgets: &Budgets) -> (Vec<IpNet>, Vec<Entry>) {
    let limit = usize::try_from(budgets.service_cidrs).unwrap_or(usize::MAX);
    let (mut all, mut findings) = (BTreeSet::new(), Vec::new());
    for (key, stored) in desired.service_cidrs() {
        let new: BTreeSet<IpNet> =
            stored.object.cidrs.iter().copied().filter(|cidr| !all.contains(cidr)).collect();
        if all.len() + new.len() <= limit {
            all.extend(new);
            continue;
        }
        findings.push(Entry {
            severity: Severity::Error,
            place: stored.place.clone(),
            object: Some(ObjectRef::new("ServiceCIDR", "", &key.name)),
            reason: format!(
                "is left out: it wants {} of limits.service_cidrs = {limit}, and those before it by name leave less: raise the limit",
                new.len()
            ),
        });
    }
    (all.into_iter().collect(), findings)
}

/// Those of a Node object are not bounded yet.
fn fit_own_addresses(own: &mut Vec<IpAddr>, config: &CompileConfig) -> Option<Entry> {
    let limit = usize::try_from(config.budgets.node_addresses).unwrap_or(usize::MAX);
    let left_out = own.len().checked_sub(limit).filter(|&left_out| left_out > 0)?;
    own.truncate(limit);
    let reason =
        format!("{left_out} of its addresses are not used: limits.node_addresses = {limit} is used up");
    let object = Some(ObjectRef::new("Node", "", &config.node_name));
    Some(Entry { severity: Severity::Error, place: None, object, reason })
}

/// A link-local address is not unique: on another link it is another node's.
fn is_unique(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// The Node object's first address of each family, else the first of the interfaces (P305).
fn primary_addresses(of_node: &[IpAddr], own: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4: bool| of_node.iter().chain(own).find(|ip| ip.is_ipv4() == v4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

/// P305 and P306. Without a list a gateway serves NodePorts on all of its addresses, a node on its primary
/// ones, as kube-proxy does in nftables mode (X1).
fn selected(list: &[NodePortAddress], role: Role, ip: IpAddr, primary: &[IpAddr]) -> bool {
    if list.is_empty() {
        return role == Role::Gateway || primary.contains(&ip);
    }
    is_listed(list, ip, primary) || !concerns(list, ip.is_ipv4())
}

/// Whether an entry of the list names the address.
fn is_listed(list: &[NodePortAddress], ip: IpAddr, primary: &[IpAddr]) -> bool {
    list.iter().any(|entry| match entry {
        NodePortAddress::Range(net) => net.contains(&ip),
        NodePortAddress::Primary => primary.contains(&ip),
        NodePortAddress::Localhost => false,
        NodePortAddress::All => true,
    })
}

/// Whether the list has an entry for a family; without one all its addresses are selected.
fn concerns(list: &[NodePortAddress], ipv4: bool) -> bool {
    list.iter().any(|entry| match entry {
        NodePortAddress::Range(net) => net.addr().is_ipv4() == ipv4,
        NodePortAddress::Primary | NodePortAddress::Localhost | NodePortAddress::All => true,
    })
}

/// The node's addresses that a list names; `None` if it has no entry for the family: then a server listens on every
/// address (P1104).
pub(crate) fn listed(
    list: &[NodePortAddress],
    ipv4: bool,
    node: Option<&Node>,
    net: &NetState,
) -> Option<Vec<IpAddr>> {
    if !concerns(list, ipv4) {
        return None;
    }
    let mut own: Vec<IpAddr> = net.interfaces.iter().flat_map(|i| i.addresses.iter().copied()).collect();
    own.retain(is_unique);
    let primary = primary_addresses(node.map_or(&[][..], |node| &node.addresses), &own);
    own.retain(|ip| ip.is_ipv4() == ipv4 && is_listed(list, *ip, &primary));
    Some(own)
}

/// P308: requested, and not excluded by a list of IPv4 ranges.
fn localhost_selected(config: &CompileConfig) -> bool {
    let list = &config.nodeport_addresses;
    let named = list.contains(&NodePortAddress::Localhost);
    let mut ranges = list.iter().filter_map(|entry| match entry {
        NodePortAddress::Range(net) if net.addr().is_ipv4() => Some(net),
        _ => None,
    });
    let in_ranges =
        ranges.clone().next().is_none() || ranges.any(|net| net.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    config.role == Role::Node && (named || (config.localhost_nodeports && in_ranges))
}

/// P601: the first range of a family counts.
fn pods(node: Option<&Node>, config: &CompileConfig) -> Vec<IpNet> {
    let ranges = match &config.local_pods {
        LocalPods::Unknown => &[],
        LocalPods::ClusterCidr(ranges) => ranges.as_slice(),
        LocalPods::NodeCidr => node.map_or(&[][..], |node| &node.pod_cidrs),
    };
    // Pods are not on a gateway (see `policy`).
    if config.role == Role::Gateway {
        return Vec::new();
    }
    let first = |v4: bool| ranges.iter().find(|net| net.addr().is_ipv4() == v4).copied();
    [first(true), first(false)].into_iter().flatten().collect()
}

/// P210: an empty label counts as no label.
fn zone(node: Option<&Node>) -> Option<String> {
    node?.labels.get("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn list(entries: &[&str]) -> Vec<NodePortAddress> {
        entries.iter().map(|entry| entry.parse().unwrap()).collect()
    }

    #[test]
    fn p306_ranges_of_the_other_family_select_everything() {
        let (v6, v4) = (list(&["fd00::/8"]), list(&["10.0.0.0/8"]));
        let selected = |list: &[NodePortAddress], text: &str| selected(list, Role::Gateway, ip(text), &[]);
        assert!(selected(&v6, "192.0.2.1") && selected(&v6, "fd00::1"));
        assert!(!selected(&v6, "2001:db8::1") && !selected(&v4, "192.0.2.1"));
        assert!(selected(&[], "192.0.2.1") && selected(&v4, "10.9.9.9"));
        assert!(selected(&list(&["10.0.0.0/8", "0.0.0.0/0"]), "192.0.2.1"));
    }

    #[test]
    fn p305_a_node_serves_its_primary_addresses_and_a_gateway_all() {
        let primary = [ip("192.0.2.1"), ip("2001:db8::1")];
        let at = |role, entries: &[&str], text| selected(&list(entries), role, ip(text), &primary);
        assert!(at(Role::Node, &[], "192.0.2.1") && at(Role::Node, &[], "2001:db8::1"));
        assert!(!at(Role::Node, &[], "192.0.2.2") && at(Role::Gateway, &[], "192.0.2.2"));
        assert!(!at(Role::Gateway, &["primary"], "192.0.2.2") && at(Role::Node, &["all"], "192.0.2.2"));
    }

    #[test]
    fn p308_localhost_is_asked_for_and_may_be_excluded() {
        let at = |entries: &[&str], asked| {
            localhost_selected(&CompileConfig {
                role: Role::Node,
                nodeport_addresses: list(entries),
                localhost_nodeports: asked,
                ..CompileConfig::default()
            })
        };
        assert!(!at(&[], false) && at(&[], true) && at(&["primary"], true));
        assert!(!at(&["192.0.2.0/24"], true) && at(&["127.0.0.0/8"], true) && at(&["0.0.0.0/0"], true));
        assert!(at(&["localhost"], false));
    }

    #[test]
    fn p601_the_first_range_of_a_family_counts() {
        let ranges = ["10.0.0.0/8", "10.244.0.0/16", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec();
        let config = CompileConfig {
            role: Role::Node,
            local_pods: LocalPods::ClusterCidr(ranges.clone()),
            ..CompileConfig::default()
        };
        assert_eq!(pods(None, &config), [ranges[0], ranges[2]]);
        assert_eq!(pods(None, &CompileConfig { local_pods: LocalPods::NodeCidr, ..config.clone() }), []);
        let node = Node { pod_cidrs: vec![ranges[1]], ..Node::default() };
        let by_node = CompileConfig { local_pods: LocalPods::NodeCidr, ..config };
        assert_eq!(pods(Some(&node), &by_node), [ranges[1]]);
    }

    #[test]
    fn an_unknown_word_in_the_list_is_refused_with_what_to_write() {
        let error = "eth0".parse::<NodePortAddress>().unwrap_err();
        assert_eq!(error, "`eth0` is none of primary, localhost, all, and no range such as 192.0.2.0/24");
    }
}
