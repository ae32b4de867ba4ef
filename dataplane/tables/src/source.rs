//! Classes of source addresses: traffic policies differ by where a packet comes from.

use std::net::IpAddr;

use hashbrown::HashSet;
use ipnet::IpNet;

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceClass {
    /// A client outside the node.
    Outside,
    /// A pod of this node, as far as the configured detection of local traffic can tell (P601).
    Pod,
    /// The node itself.
    Node,
}

/// One value for each class of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerSourceClass<T> {
    /// For clients outside the node.
    pub outside: T,
    /// For pods of this node.
    pub pod: T,
    /// For the node itself.
    pub node: T,
}

impl<T> PerSourceClass<T> {
    /// The value for a class.
    #[inline]
    pub const fn of(&self, class: SourceClass) -> &T {
        match class {
            SourceClass::Outside => &self.outside,
            SourceClass::Pod => &self.pod,
            SourceClass::Node => &self.node,
        }
    }

    /// The values, in the order of the fields.
    pub const fn all(&self) -> [&T; 3] {
        [&self.outside, &self.pod, &self.node]
    }

    /// Another value for each class.
    pub fn map<U>(&self, f: impl Fn(&T) -> U) -> PerSourceClass<U> {
        PerSourceClass { outside: f(&self.outside), pod: f(&self.pod), node: f(&self.node) }
    }
}

impl<T: Clone> PerSourceClass<T> {
    /// The same value for every class.
    pub fn same(value: T) -> Self {
        Self { outside: value.clone(), pod: value.clone(), node: value }
    }
}

/// Maps source addresses to classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceClassifier {
    pods: Vec<IpNet>,
    node: HashSet<IpAddr>,
}

impl SourceClassifier {
    /// Pods have addresses in `pods`; a family without a range there has no pods (P601). `node` are the node's own
    /// addresses.
    pub fn new(pods: Vec<IpNet>, node: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { pods, node: node.into_iter().collect() }
    }

    /// The class of a source address.
    #[inline]
    pub fn class(&self, addr: IpAddr) -> SourceClass {
        // Pods first, as in the rules of kube-proxy: an address of the node within the pods' range counts as a pod.
        if self.pods.iter().any(|net| net.contains(&addr)) {
            SourceClass::Pod
        } else if self.is_node(addr) {
            SourceClass::Node
        } else {
            SourceClass::Outside
        }
    }

    /// The node's own addresses, in no order.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node.iter().copied()
    }

    /// Whether the address is one of the node's own.
    pub fn is_node(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.node.contains(&addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_come_before_the_node_and_a_family_without_a_range_has_no_pods() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let sources = SourceClassifier::new(
            vec!["10.244.0.0/16".parse().unwrap()],
            ["192.0.2.1", "10.244.0.1", "2001:db8::1"].map(ip),
        );
        for (addr, class) in [
            ("10.244.3.4", SourceClass::Pod),
            ("10.244.0.1", SourceClass::Pod),
            ("192.0.2.1", SourceClass::Node),
            ("127.0.0.1", SourceClass::Node),
            ("192.0.2.2", SourceClass::Outside),
            ("2001:db8::1", SourceClass::Node),
            ("2001:db8::2", SourceClass::Outside),
        ] {
            assert_eq!(sources.class(ip(addr)), class, "{addr}");
        }
    }
}
