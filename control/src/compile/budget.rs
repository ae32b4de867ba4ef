//! Which Services are left out because they do not fit a budget. Decided before anything is built and by what objects
//! list: neither memory nor time is spent on what a Service asks for in excess, and no pod that becomes ready takes the
//! place of another Service.

use std::collections::HashSet;
use std::net::IpAddr;

use flowgate_tables::{Budgets, FrontendKind, SourceNat};
use flowgate_wire::Protocol;

use super::endpoints::is_local;
use super::policy::Scope;
use super::service_compiler::ServiceCompiler;
use super::wanted::Wanted;
use crate::model::{Key, Service};
use crate::report::LEFT_OUT;

/// What one Service takes of each budget, in entries. What several Services have in common is counted for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    services: u64,
    frontends: u64,
    vips: u64,
    vip_addresses: u64,
    cluster_ips: u64,
    reply_sources: u64,
    backends: u64,
}

impl Demand {
    /// The demand of a Service that is to be served.
    pub(super) fn new(compiler: &ServiceCompiler<'_>) -> Self {
        let ports = &compiler.service.ports;
        // Ports differ only in whether they have a NodePort, so one that has one stands for all. With ten thousand ports and
        // addresses each, the product must not be walked through.
        let with_node_port = || ports.iter().filter(|port| port.node_port.is_some());
        let Some(port) = with_node_port().next().or_else(|| ports.first()) else {
            return Self { services: 1, ..Self::default() };
        };
        let wanted = compiler.wanted(port);
        let (at_nodes, vips): (Vec<&Wanted>, Vec<&Wanted>) =
            wanted.iter().partition(|wanted| wanted.kind == FrontendKind::NodePort);
        let vip_addresses = len(vips.iter().map(|wanted| wanted.addr).collect::<HashSet<IpAddr>>());
        let vips = vip_addresses * len(ports);
        let backends = Backends::new(compiler);
        let mut reply_sources = 0;
        for policy in wanted.iter().flat_map(|wanted| compiler.policies(wanted).all().map(|policy| *policy)) {
            if policy.source_nat == SourceNat::PreserveClient {
                reply_sources = reply_sources.max(match policy.scope {
                    Scope::Cluster => backends.all,
                    Scope::Local => backends.local,
                });
            }
        }
        Self {
            services: 1,
            frontends: vips + len(&at_nodes) * len(with_node_port()),
            vips,
            vip_addresses,
            cluster_ips: len(compiler.cluster_ips),
            reply_sources,
            backends: backends.all,
        }
    }
}

/// How many endpoints the slices of a Service list, counted once per port of the Service.
struct Backends {
    all: u64,
    /// Those on this node.
    local: u64,
}

impl Backends {
    fn new(compiler: &ServiceCompiler<'_>) -> Self {
        let served: HashSet<(&str, Protocol)> =
            compiler.service.ports.iter().map(|port| (port.name.as_str(), port.protocol)).collect();
        let (mut all, mut local) = (0, 0);
        let (mut addresses, mut numbers) = (HashSet::new(), HashSet::new());
        for slice in compiler.slices {
            let matching =
                || slice.ports.iter().filter(|port| served.contains(&(port.name.as_str(), port.protocol)));
            let ports = len(matching());
            if ports == 0 {
                continue;
            }
            numbers.extend(matching().map(|port| (port.name.as_str(), port.protocol, port.port)));
            addresses.extend(slice.endpoints.iter().map(|endpoint| endpoint.addr));
            let here =
                slice.endpoints.iter().filter(|endpoint| is_local(endpoint, &compiler.config.node_name));
            all += len(&slice.endpoints) * ports;
            local += len(here) * ports;
        }
        // An endpoint that moves from one slice to another is in both for a while, and would be counted twice.
        all = all.min(len(addresses) * len(numbers));
        Self { all, local: local.min(all) }
    }
}

/// The number of items.
fn len(items: impl IntoIterator) -> u64 {
    items.into_iter().count() as u64
}

/// A Service that is to be served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) key: &'a Key,
    pub(super) service: &'a Service,
    pub(super) demand: Demand,
}

/// The candidates that are left out: for each, in their order, the reason. Depends on nothing but the arguments, so that
/// a restart serves the same Services. Candidates are sorted by key.
///
/// Of a budget that is exceeded the largest shares go first, of equal ones the newest, then the last by name.
pub(super) fn refusals(candidates: &[Candidate<'_>], budgets: &Budgets) -> Vec<Option<String>> {
    let mut refusals: Vec<Option<String>> = vec![None; candidates.len()];
    for (candidate, refusal) in candidates.iter().zip(&mut refusals) {
        let exceeded = OF_ONE.iter().find(|budget| budget.is_exceeded_by(&candidate.demand, budgets));
        *refusal = exceeded.map(|budget| budget.reason(&candidate.demand, budgets));
    }
    let mut start = 0;
    for namespace in candidates.chunk_by(|a, b| a.key.namespace == b.key.namespace) {
        let range = start..start + namespace.len();
        start = range.end;
        for budget in &OF_A_NAMESPACE {
            budget.enforce(&candidates[range.clone()], budgets, &mut refusals[range.clone()]);
        }
    }
    for budget in &OF_ALL {
        budget.enforce(candidates, budgets, &mut refusals);
    }
    refusals
}

/// A budget, and what a Service takes of it.
struct Budget {
    /// In the section `[limits]` of the configuration.
    key: &'static str,
    limit: fn(&Budgets) -> u32,
    share: fn(&Demand) -> u64,
    /// What follows the limit in a reason.
    remedy: &'static str,
}

impl Budget {
    fn is_exceeded_by(&self, demand: &Demand, budgets: &Budgets) -> bool {
        (self.share)(demand) > u64::from((self.limit)(budgets))
    }

    /// Refuses candidates until the rest fits.
    fn enforce(&self, candidates: &[Candidate<'_>], budgets: &Budgets, refusals: &mut [Option<String>]) {
        let limit = u64::from((self.limit)(budgets));
        let share = |at: usize| (self.share)(&candidates[at].demand);
        let admitted = || (0..candidates.len()).filter(|&at| refusals[at].is_none());
        let mut total: u64 = admitted().map(share).sum();
        if total <= limit {
            return;
        }
        let mut order: Vec<usize> = admitted().collect();
        order.sort_unstable_by_key(|&at| (share(at), candidates[at].service.age_order(), at));
        while total > limit
            && let Some(last) = order.pop()
        {
            total -= share(last);
            refusals[last] = Some(self.reason(&candidates[last].demand, budgets));
        }
    }

    fn reason(&self, demand: &Demand, budgets: &Budgets) -> String {
        let Self { key, limit, share, remedy } = self;
        format!("{LEFT_OUT}{} of limits.{key} = {}{remedy}", share(demand), limit(budgets))
    }
}

/// Declares budgets: per line the field of [`Budgets`], which is its key, and that of [`Demand`].
macro_rules! budgets {
    ($name:ident, $remedy:literal; $($key:ident: $share:ident,)*) => {
        const $name: [Budget; [$(stringify!($key)),*].len()] = [$(Budget {
            key: stringify!($key),
            limit: |budgets| budgets.$key,
            share: |demand| demand.$share,
            remedy: $remedy,
        }),*];
    };
}

budgets! { OF_ONE, ": split it, or raise the limit";
    service_frontends: frontends,
    service_endpoints: backends,
}

budgets! { OF_A_NAMESPACE, ", and other Services of its namespace leave less: ask for less, or raise the limit";
    namespace_frontends: frontends,
    namespace_endpoints: backends,
}

budgets! { OF_ALL, ", and other Services leave less: ask for less, or raise the limit";
    services: services,
    frontends: frontends,
    vips: vips,
    vip_addresses: vip_addresses,
    cluster_ips: cluster_ips,
    reply_sources: reply_sources,
    backends: backends,
}
