//! Metrics of the control plane: objects, tables, source, health.

use std::time::{Duration, SystemTime};

use flowgate_control::health::local::no_local_endpoints;
use flowgate_control::health::{HealthInputs, Identity};
use flowgate_control::model::Desired;
use flowgate_control::source::SourceHealth;
use flowgate_control::{Severity, Status, clock};
use flowgate_tables::Tables;

use super::families::{Families, Kind, Number};

/// Adds the families of the published tables.
pub(super) fn add_tables(families: &mut Families, tables: &Tables, retired: usize) {
    families.gauge(
        "flowgate_generation",
        "Number of the published generation of the tables.",
        tables.generation,
    );
    let help = "Generations that were replaced and that a worker may still look at.";
    families.gauge("flowgate_retired_generations", help, retired);
    families.gauge(
        "flowgate_service_ports",
        "Service ports that are served.",
        tables.services.services().len(),
    );
    let help = "Addresses and ports that clients may aim at.";
    families.gauge("flowgate_frontends", help, tables.services.frontends().count());
    families.gauge("flowgate_backends", "Backends that flows are sent to.", tables.services.backends().len());
    let help = "Memory of the tables by which new flows are spread over backends, shared ones once.";
    families.gauge("flowgate_lookup_table_bytes", help, tables.services.lookup_table_bytes());
    let unresolved = tables.routing.next_hops().filter(|(_, hop)| hop.ether.is_none()).count();
    families.gauge("flowgate_next_hops", "Next hops in use.", tables.routing.next_hops().count());
    let help = "Next hops whose Ethernet address is not known.";
    families.gauge("flowgate_next_hops_unresolved", help, unresolved);
    let addresses = tables.snat.all_addresses().len();
    families.gauge("flowgate_snat_addresses", "Source addresses for translated flows.", addresses);
    families.gauge("flowgate_snat_ports", "Source ports on each of them.", tables.snat.ports().len());
}

/// Adds the families of the reconciler and of health.
pub(super) fn add_control(families: &mut Families, health_inputs: &HealthInputs) {
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    families.add(Kind::Gauge, "flowgate_build_info", "The version that runs.", [(version, 1_u64.into())]);
    families.gauge("flowgate_healthy", "Whether /livez says that all is well.", health_inputs.is_healthy());
    let help = "Whether /healthz says that load balancers may send traffic to this node.";
    families.gauge("flowgate_node_eligible", help, health_inputs.node_eligible().is_ok());
    add_status(families, &health_inputs.status.borrow().clone(), clock::now());
}

fn add_status(families: &mut Families, status: &Status, now: SystemTime) {
    let counts = status.objects;
    let objects = [
        ("Service", counts.services),
        ("EndpointSlice", counts.endpoint_slices),
        ("Endpoints", counts.endpoints),
        ("Node", counts.nodes),
        ("Namespace", counts.namespaces),
        ("ServiceCIDR", counts.service_cidrs),
    ];
    let samples = objects.map(|(kind, count)| (vec![("kind", kind.to_owned())], count.into()));
    families.add(Kind::Gauge, "flowgate_objects", "Objects that the source holds, by kind.", samples);
    let help = "Objects of kinds that do not matter here.";
    families.gauge("flowgate_ignored_objects", help, status.ignored_objects);
    let found = [Severity::Error, Severity::Warning].map(|severity| {
        let count = status.findings().filter(|entry| entry.severity == severity).count();
        (vec![("severity", severity.name().to_owned())], Number::from(count))
    });
    families.add(Kind::Gauge, "flowgate_findings", "What is wrong with objects and servers now.", found);
    let stale = match &status.source {
        SourceHealth::Stale { since, .. } => Some(now.duration_since(*since).unwrap_or_default()),
        SourceHealth::Starting | SourceHealth::Synced => None,
    };
    let help = "Whether the source is up to date.";
    families.gauge("flowgate_source_synced", help, status.source == SourceHealth::Synced);
    let help = "How long the source has been out of touch; 0 while it is not.";
    families.gauge("flowgate_source_stale_seconds", help, stale.as_ref().map_or(0.0, Duration::as_secs_f64));
    let help = "Whether the newest tables were refused and older ones are in force.";
    families.gauge("flowgate_publish_refused", help, status.refused.is_some());
    if let Some(at) = status.last_change {
        let at = clock::shown(at).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        families.gauge("flowgate_last_publish_timestamp_seconds", "When tables were last published.", at);
    }
}

/// Service ports whose policy finds no endpoint here (P1207). A gauge, although kube-proxy's name ends in `_total`.
pub(super) fn add_no_local_endpoints(families: &mut Families, desired: &Desired, identity: &Identity) {
    let found = no_local_endpoints(desired, identity);
    let samples = [
        ("IPv4", "internal", found.internal.v4),
        ("IPv6", "internal", found.internal.v6),
        ("IPv4", "external", found.external.v4),
        ("IPv6", "external", found.external.v6),
    ];
    let samples = samples.map(|(family, policy, count)| {
        let labels = vec![("ip_family", family.to_owned()), ("traffic_policy", policy.to_owned())];
        (labels, count.into())
    });
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let help = "Service ports with a Local policy that have endpoints, but none on this node.";
    families.add(Kind::Gauge, name, help, samples);
}

#[cfg(test)]
mod tests {
    use flowgate_control::Entry;

    use super::super::families::tests::text;
    use super::*;

    #[test]
    fn p1207_has_kube_proxys_name_and_labels() {
        let mut families = Families::default();
        add_no_local_endpoints(&mut families, &Desired::default(), &Identity::default());
        let line = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 0\n";
        assert!(text(families).contains(line));
    }

    #[test]
    fn p1002_how_long_the_source_has_been_away_is_a_metric() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let stale = SourceHealth::Stale { since: at(10), reason: "away".into() };
        let mut status = Status { source: stale, last_change: Some(at(5)), ..Status::default() };
        let entry = Entry { severity: Severity::Error, place: None, object: None, reason: "taken".into() };
        status.set_listener_findings("tests", vec![entry]);
        let mut families = Families::default();
        add_status(&mut families, &status, at(70));
        let text = text(families);
        for line in [
            "flowgate_source_stale_seconds 60.0\n",
            "flowgate_source_synced 0\n",
            "flowgate_findings{severity=\"error\"} 1\n",
            "flowgate_last_publish_timestamp_seconds 5.0\n",
            "flowgate_objects{kind=\"Service\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
