//! New flows that were refused for lack of source ports or table space, by Service: counted for the metrics, logged with
//! the remedy, and shown by `flowgate show tables`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use flowgate_control::log_limit::LogLimit;
use flowgate_dataplane::exhaustion::{ExhaustedResource, Exhaustion, ExhaustionReporter};
use flowgate_tables::{InterfaceId, Tables};

/// What workers have reported, by Service and resource. Of at most [`SERVICES_MAX`]: Services come and go, and clients can
/// have new flows refused to as many as there are.
pub(crate) struct ExhaustionLog {
    events: Arc<ArrayQueue<Exhaustion>>,
    by_service: BTreeMap<(String, ExhaustedResource), Refused>,
    limits: BTreeMap<ExhaustedResource, LogLimit>,
}

/// New flows of one Service that were refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    /// First packets, since the start of the process.
    pub(crate) flows: u64,
    /// When the last of them was reported.
    pub(crate) last: Instant,
    /// The interface that the last of them were to leave by.
    egress: Option<InterfaceId>,
    logged_flows: u64,
}

impl Default for ExhaustionLog {
    fn default() -> Self {
        Self {
            events: Arc::new(ArrayQueue::new(EVENTS_MAX)),
            by_service: BTreeMap::new(),
            limits: BTreeMap::new(),
        }
    }
}

impl ExhaustionLog {
    /// The workers' end of the queue.
    pub(crate) fn reporter(&self) -> ExhaustionReporter {
        let events = Arc::clone(&self.events);
        ExhaustionReporter::new(move |exhaustion| events.push(exhaustion).is_ok())
    }

    /// Counts what was reported since the last call and returns the warnings that are due, at most one per
    /// [`LOG_EVERY`](flowgate_control::log_limit::LOG_EVERY) for a resource: clients choose how many Services they have flows
    /// refused to.
    pub(crate) fn take_warnings(&mut self, tables: &Tables, now: Instant) -> Vec<String> {
        while let Some(Exhaustion { resource, service, egress, flows }) = self.events.pop() {
            // It may have been removed since.
            let Some(service) = tables.services.service(service) else { continue };
            let name = service.spec.name.to_string();
            let is_new = !self.by_service.contains_key(&(name.clone(), resource));
            if is_new && self.by_service.len() >= SERVICES_MAX {
                self.forget_oldest();
            }
            let refused = Refused { flows: 0, last: now, egress, logged_flows: 0 };
            let refused = self.by_service.entry((name, resource)).or_insert(refused);
            (refused.flows, refused.last, refused.egress) = (refused.flows + flows, now, egress);
        }
        let is_untold = |refused: &Refused| refused.flows > refused.logged_flows;
        let untold = self.by_service.iter().filter(|(_, refused)| is_untold(refused));
        let resources: BTreeSet<_> = untold.map(|((_, resource), _)| *resource).collect();
        let due = |resource: &ExhaustedResource| self.limits.entry(*resource).or_default().due(now).is_some();
        let resources: Vec<_> = resources.into_iter().filter(due).collect();
        resources.into_iter().filter_map(|resource| self.warning(resource, tables)).collect()
    }

    /// What was refused for lack of a resource since the last warning: the Service with the most flows by its name.
    fn warning(&mut self, resource: ExhaustedResource, tables: &Tables) -> Option<String> {
        let of_resource = self.by_service.iter_mut().filter(|((_, other), _)| *other == resource);
        let mut untold: Vec<(u64, &str, Option<InterfaceId>)> = Vec::new();
        for ((name, _), refused) in of_resource {
            let flows = refused.flows - refused.logged_flows;
            if flows > 0 {
                untold.push((flows, name, refused.egress));
            }
            refused.logged_flows = refused.flows;
        }
        let &(flows, name, egress) = untold.iter().max()?;
        let all: u64 = untold.iter().map(|(flows, ..)| flows).sum();
        let others = match untold.len() - 1 {
            0 => String::new(),
            services => format!(" (and {} of {services} other Services)", all - flows),
        };
        let interfaces = tables.routing.interfaces();
        let egress = egress.and_then(|egress| interfaces.get(egress.index()));
        let egress = egress.map_or("?", |i| i.spec.name.as_str());
        Some(format!("{name}: {flows} new flows refused{others}: {}", remedy(resource, egress)))
    }

    /// Makes room for another Service.
    fn forget_oldest(&mut self) {
        let oldest =
            self.by_service.iter().min_by_key(|(_, refused)| refused.last).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.by_service.remove(&key);
        }
    }

    /// All counts since the start of the process; those of a Service begin anew if it was forgotten in between.
    pub(crate) fn totals(&self) -> impl Iterator<Item = (&str, ExhaustedResource, Refused)> {
        self.by_service.iter().map(|((name, resource), refused)| (name.as_str(), *resource, *refused))
    }

    /// Those of the last ten minutes, in words.
    pub(crate) fn recent(&self, now: Instant) -> Vec<String> {
        self.totals()
            .filter(|(.., refused)| now.duration_since(refused.last) < RECENT)
            .map(|(name, resource, refused)| {
                let ago = now.duration_since(refused.last).as_secs();
                format!("{name}: {} x {}, the last {ago} s ago", refused.flows, resource.reason().name())
            })
            .collect()
    }
}

/// What is lacking, and who can help.
fn remedy(resource: ExhaustedResource, egress: &str) -> String {
    match resource {
        ExhaustedResource::SnatPorts => format!(
            "all source ports towards a backend are in use: give {egress} more addresses, or widen snat.ports"
        ),
        ExhaustedResource::ReplyTuples => {
            "a client that keeps its address has no port left towards a backend: it reuses its ports too fast"
                .into()
        }
        ExhaustedResource::FlowTable => {
            "the flow table is full: raise flows.capacity (or capacity_v6)".into()
        }
        ExhaustedResource::HalfOpen => {
            "too many connections that nobody answers, as in a SYN flood: look at `show flows`, or raise \
             flows.half_open_percent or flows.capacity"
                .into()
        }
        ExhaustedResource::ClientShare => {
            "one client has its share of the flow table or of a backend's source ports: look at `show flows --top 10`, \
             or raise flows.per_client_percent"
                .into()
        }
    }
}

/// Reports that wait to be taken. A worker that finds the queue full merges further ones and reports them later.
const EVENTS_MAX: usize = 1024;

/// Services, for each resource, that are remembered: those that had flows refused last.
const SERVICES_MAX: usize = 1024;

const RECENT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_tables::ServiceTable;
    use flowgate_tables::spec::{ServiceName, ServiceSpec};
    use flowgate_wire::Protocol;

    fn tables(names: &[String]) -> Tables {
        let spec = |name: &String| {
            Arc::new(ServiceSpec {
                name: ServiceName { namespace: "shop".into(), name: name.clone(), port: "http".into() },
                protocol: Protocol::Tcp,
                frontends: Vec::new(),
                endpoint_sets: Vec::new(),
                serving: Vec::new(),
                affinity: None,
            })
        };
        let specs = names.iter().map(spec).collect();
        let (services, errors) = ServiceTable::build(&ServiceTable::default(), specs, Vec::new());
        assert!(errors.is_empty(), "{errors:?}");
        Tables { services: Arc::new(services), ..Tables::empty() }
    }

    #[test]
    fn services_that_had_flows_refused_are_remembered_within_a_bound_the_latest_ones() {
        let names: Vec<String> = (0..SERVICES_MAX + 500).map(|n| format!("web-{n:05}")).collect();
        let (tables, mut log) = (tables(&names), ExhaustionLog::default());
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let (mut now, mut warnings) = (Instant::now(), Vec::new());
        for service in tables.services.services() {
            now += Duration::from_millis(1);
            let exhaustion = Exhaustion {
                resource: ExhaustedResource::FlowTable,
                service: service.id,
                egress: None,
                flows: 1,
            };
            assert!(log.reporter().report(exhaustion));
            warnings.extend(log.take_warnings(&tables, now));
        }
        assert_eq!(warnings.len(), 1, "one in ten seconds, however many Services");
        let later = log.take_warnings(&tables, now + Duration::from_secs(10));
        assert!(later[0].contains(": 1 new flows refused (and 1023 of 1023 other Services): "), "{later:?}");
        assert_eq!(log.totals().count(), SERVICES_MAX);
        let forgotten = &tables.services.services()[0].spec.name.to_string();
        let last = &tables.services.services().last().unwrap().spec.name.to_string();
        assert!(log.totals().all(|(name, ..)| name != forgotten));
        assert!(log.totals().any(|(name, ..)| name == last));
    }

    #[test]
    fn a_service_is_named_once_in_ten_seconds_and_every_flow_is_counted() {
        let (tables, mut log) = (tables(&["web".into()]), ExhaustionLog::default());
        let service = tables.services.services()[0].id;
        let report = |log: &ExhaustionLog, flows| {
            let exhaustion = Exhaustion {
                resource: ExhaustedResource::SnatPorts,
                service,
                egress: Some(InterfaceId(0)),
                flows,
            };
            assert!(log.reporter().report(exhaustion));
        };
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let start = Instant::now();
        report(&log, 3);
        report(&log, 4);
        let warnings = log.take_warnings(&tables, start);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("shop/web:http: 7 new flows refused: all source ports"),
            "{warnings:?}"
        );
        report(&log, 1);
        assert!(log.take_warnings(&tables, start + Duration::from_secs(9)).is_empty());
        report(&log, 1);
        let later = start + Duration::from_secs(10);
        assert!(log.take_warnings(&tables, later)[0].contains(": 2 new flows refused"));
        assert_eq!(log.recent(later), ["shop/web:http: 9 x snat_ports_exhausted, the last 0 s ago"]);
        assert!(log.recent(later + RECENT).is_empty());
        assert_eq!(log.totals().map(|(.., refused)| refused.flows).sum::<u64>(), 9);
    }
}
