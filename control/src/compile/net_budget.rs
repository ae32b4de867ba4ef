//! The part of the network state that fits the budgets: what does not is left out, with a finding, before anything is built
//! from it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::InterfaceSpec;
use flowgate_tables::{Budgets, InterfaceId};

use super::net::finding;
use crate::model::NetState;
use crate::report::{Entry, Severity};

/// The network state without interfaces that cannot be numbered and without addresses beyond the budget.
pub(super) fn fitting<'a>(net: &'a NetState, budgets: &Budgets) -> (Cow<'a, NetState>, Vec<Entry>) {
    let address_count: usize = net.interfaces.iter().map(|interface| interface.addresses.len()).sum();
    if net.interfaces.len() <= InterfaceId::MAX && address_count <= entries_of(budgets.node_addresses) {
        return (Cow::Borrowed(net), Vec::new());
    }
    let mut fitting = net.clone();
    let interfaces = Arc::make_mut(&mut fitting.interfaces);
    let mut findings = Vec::new();
    for interface in interfaces.split_off(interfaces.len().min(InterfaceId::MAX)) {
        let reason = format!("is not served: there are {} served interfaces before it", InterfaceId::MAX);
        findings.push(finding(Severity::Error, &interface, &reason));
    }
    findings.extend(leave_out_addresses(interfaces, budgets));
    if net.interfaces.len() > InterfaceId::MAX {
        // A route that led only through them has no hop now and does not fall through to a shorter prefix, as one through any
        // other interface that is not served.
        for route in Arc::make_mut(&mut fitting.routes) {
            route.hops.retain(|hop| hop.interface < InterfaceId::MAX);
        }
        Arc::make_mut(&mut fitting.neighbours).retain(|neighbour| neighbour.interface < InterfaceId::MAX);
    }
    (Cow::Owned(fitting), findings)
}

/// The primary address of each family of each interface stays first, since flows are translated to it.
fn leave_out_addresses(interfaces: &mut [InterfaceSpec], budgets: &Budgets) -> Vec<Entry> {
    let mut order: Vec<(bool, usize, usize)> = Vec::new();
    for (at, interface) in interfaces.iter().enumerate() {
        let is_primary = |ip: &IpAddr| {
            interface.addresses.iter().find(|first| first.is_ipv4() == ip.is_ipv4()) == Some(ip)
        };
        order.extend(interface.addresses.iter().enumerate().map(|(i, ip)| (!is_primary(ip), at, i)));
    }
    order.sort_unstable();
    let kept: HashSet<(usize, usize)> = order
        .into_iter()
        .take(entries_of(budgets.node_addresses))
        .map(|(_, interface, address)| (interface, address))
        .collect();
    let mut findings = Vec::new();
    for (at, interface) in interfaces.iter_mut().enumerate() {
        let before = interface.addresses.len();
        let mut positions = 0..;
        interface.addresses.retain(|_| positions.next().is_some_and(|i| kept.contains(&(at, i))));
        let left_out = before - interface.addresses.len();
        if left_out > 0 {
            let reason = format!(
                "{left_out} of its {before} addresses are not used: limits.node_addresses = {} is used up: remove some, or raise the limit",
                budgets.node_addresses
            );
            findings.push(finding(Severity::Error, interface, &reason));
        }
    }
    findings
}

/// The addresses of each interface and those at which only replies arrive, without what is beyond the budget.
pub(super) fn fit_snat_addresses(
    by_interface: &mut [Vec<IpAddr>],
    reply_only: &mut Vec<IpAddr>,
    budgets: &Budgets,
) -> Option<Entry> {
    let limit = entries_of(budgets.snat_addresses);
    let mut fitting: HashSet<IpAddr> = HashSet::new();
    let mut left_out: HashSet<IpAddr> = HashSet::new();
    // Addresses that new flows get come first.
    for &ip in by_interface.iter().flatten().chain(reply_only.iter()) {
        if fitting.len() < limit {
            fitting.insert(ip);
        } else if !fitting.contains(&ip) {
            left_out.insert(ip);
        }
    }
    if left_out.is_empty() {
        return None;
    }
    for addresses in by_interface {
        addresses.retain(|ip| fitting.contains(ip));
    }
    reply_only.retain(|ip| fitting.contains(ip));
    let reason = format!(
        "{} sources of translated flows are not used: limits.snat_addresses = {limit} is used up: take some out of snat.addresses, or raise the limit",
        left_out.len()
    );
    Some(Entry { severity: Severity::Error, place: None, object: None, reason })
}

fn entries_of(budget: u32) -> usize {
    usize::try_from(budget).unwrap_or(usize::MAX)
}
