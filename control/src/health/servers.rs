//! Opens and closes the health check ports of Services (P323), as [`ports`] decides.

use std::collections::HashMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::HealthInputs;
use super::ports::{self, HealthPort, Wanted};
use crate::descriptors::{DescriptorBudget, ListenerPermit};
use crate::http::{self, listen};
use crate::model::{Key, NetState};
use crate::reconcile::Status;
use crate::report::{Entry, Severity};

/// Opens, updates and closes ports as objects and addresses change, until dropped.
pub(super) async fn serve(
    inputs: &HealthInputs,
    budget: &Arc<DescriptorBudget>,
    mut net: watch::Receiver<NetState>,
    status: &watch::Sender<Status>,
) {
    let mut desired = inputs.desired.clone();
    let mut servers = Servers::default();
    let (mut desired_open, mut net_open) = (true, true);
    loop {
        // Marks both as seen before they are read: a change after this line wakes the select below.
        let wanted = {
            let objects = Arc::clone(&desired.borrow_and_update());
            let net = net.borrow_and_update().clone();
            ports::wanted(&objects, &net, &inputs.identity)
        };
        let mut findings = wanted.findings.clone();
        let refused = servers.adjust(&wanted, inputs, budget).await;
        let again = !refused.is_empty();
        findings.extend(refused);
        Status::show_listener_findings(status, PURPOSE, findings);
        tokio::select! {
            changed = desired.changed(), if desired_open => desired_open = changed.is_ok(),
            changed = net.changed(), if net_open => net_open = changed.is_ok(),
            () = sleep(listen::RETRY_AFTER), if again => {}
            // All senders are gone and nothing is retried; the ports stay open until dropped.
            else => std::future::pending().await,
        }
    }
}

/// The open ports.
#[derive(Debug, Default)]
struct Servers {
    running: HashMap<SocketAddr, Running>,
}

impl Servers {
    /// Opens and closes ports until they are those wanted; returns those that cannot be opened.
    async fn adjust(
        &mut self,
        wanted: &Wanted,
        inputs: &HealthInputs,
        budget: &Arc<DescriptorBudget>,
    ) -> Vec<Entry> {
        // Close first: a port to be opened may need the address of one to be closed.
        let gone: Vec<_> = self
            .running
            .extract_if(|address, running| {
                // A port that another Service has now is closed too: its handler responds for the old one.
                wanted.ports.get(address).is_none_or(|port| port.service != running.service)
            })
            .collect();
        let (mut opened, closed) = (0_usize, gone.len());
        for (address, running) in gone {
            tracing::debug!(%address, service = %running.service, "health check port closed");
            running.close().await;
        }
        let mut refused = Vec::new();
        for (&address, port) in &wanted.ports {
            if let Some(running) = self.running.get(&address) {
                running.ready.store(port.ready, Ordering::Relaxed);
                continue;
            }
            let Some(permit) = budget.listener() else {
                refused.push(no_descriptor(address, port, budget));
                continue;
            };
            match Running::open(address, port, permit, (inputs, budget)) {
                Ok(running) => {
                    tracing::debug!(%address, service = %port.service, "health check port open");
                    opened += 1;
                    self.running.insert(address, running);
                }
                Err(error) => refused.push(refusal(address, port, &error)),
            }
        }
        // One line, however many Services come and go at once.
        if opened + closed > 0 {
            tracing::info!(opened, closed, open = self.running.len(), "health check ports of Services");
        }
        refused
    }
}

/// One open port; closed when dropped.
#[derive(Debug)]
struct Running {
    service: Key,
    ready: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Running {
    fn open(
        address: SocketAddr,
        port: &HealthPort,
        permit: ListenerPermit,
        (inputs, budget): (&HealthInputs, &Arc<DescriptorBudget>),
    ) -> std::io::Result<Self> {
        let listener = listen::bind(address)?;
        let ready_endpoints = Arc::new(AtomicUsize::new(port.ready));
        let (service, count) = (port.service.clone(), Arc::clone(&ready_endpoints));
        let (inputs, budget) = (inputs.clone(), Arc::clone(budget));
        let handler = move |_: Request<Incoming>| {
            let endpoints = if inputs.is_left_out(&service) { 0 } else { count.load(Ordering::Relaxed) };
            ready(ports::response(&service, endpoints, inputs.is_healthy()))
        };
        let task = tokio::spawn(async move {
            http::serve(listener, &budget, handler).await;
            drop(permit);
        });
        Ok(Self { service: port.service.clone(), ready: ready_endpoints, task })
    }

    /// Closes the port; its address is free when this returns.
    async fn close(mut self) {
        self.task.abort();
        // The error is the abort itself.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn refusal(address: SocketAddr, port: &HealthPort, error: &std::io::Error) -> Entry {
    let reason = format!(
        "healthCheckNodePort {}: cannot listen on {address}: {error}: free the port or give the Service another; \
         tried again every {} s",
        address.port(),
        listen::RETRY_AFTER.as_secs()
    );
    ports::finding(&port.service, port.place.clone(), Severity::Error, reason)
}

fn no_descriptor(address: SocketAddr, port: &HealthPort, budget: &DescriptorBudget) -> Entry {
    let reason = format!(
        "healthCheckNodePort {}: is not open on {}: the {} listening sockets that the limit of open files leaves are \
         in use: raise it (LimitNOFILE); tried again every {} s",
        address.port(),
        address.ip(),
        budget.limits().listeners,
        listen::RETRY_AFTER.as_secs()
    );
    ports::finding(&port.service, port.place.clone(), Severity::Error, reason)
}

const PURPOSE: &str = "health check ports of Services";

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::descriptors::DescriptorLimits;
    use crate::health::inputs::node_eligible;
    use crate::health::inputs::tests::healthy;
    use crate::health::ports::tests::{desired, node, yaml};
    use crate::http::tests::{budget, free_addresses, get, get_until};
    use crate::model::Desired;
    use crate::reconcile::SyncMetrics;
    use crate::report::{LEFT_OUT, Report};

    const HERE: &str = "\n      - {addresses: [10.1.0.1], nodeName: this}";

    /// The servers of a node, and the senders of what they watch.
    struct TestBed {
        status: watch::Receiver<Status>,
        report: watch::Sender<Status>,
        dataplane: watch::Sender<Arc<[String]>>,
        desired: watch::Sender<Arc<Desired>>,
        _net: watch::Sender<NetState>,
        task: JoinHandle<()>,
    }

    impl TestBed {
        fn start() -> Self {
            Self::with(budget(64))
        }

        fn with(budget: Arc<DescriptorBudget>) -> Self {
            let (status, status_receiver) = watch::channel(healthy().status);
            let report = status.clone();
            let (dataplane, dataplane_receiver) = watch::channel(Arc::from([]));
            let (desired, desired_receiver) = watch::channel(Arc::default());
            let (net, net_receiver) = watch::channel(NetState::default());
            let inputs = HealthInputs {
                status: status_receiver.clone(),
                sync_metrics: SyncMetrics::default(),
                dataplane: dataplane_receiver,
                desired: desired_receiver,
                identity: node(),
            };
            let task = tokio::spawn(async move { serve(&inputs, &budget, net_receiver, &status).await });
            Self { status: status_receiver, report, dataplane, desired, _net: net, task }
        }

        fn apply(&self, yaml: &str) {
            self.desired.send_replace(Arc::new(desired(yaml)));
        }
    }

    impl Drop for TestBed {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// A Service with this health check port.
    fn with_port(port: u16) -> String {
        yaml("LoadBalancer", "Local", HERE).replace("32000", &port.to_string())
    }

    /// Returns once the response is good.
    async fn eventually(address: SocketAddr, what: &str, good: impl Fn(&str) -> bool) {
        let is_good = |outcome: &std::io::Result<String>| outcome.as_ref().is_ok_and(|text| good(text));
        get_until(address, "/any/path", what, is_good).await.unwrap();
    }

    async fn answers(address: SocketAddr, code: u16) {
        let start = format!("HTTP/1.1 {code} ");
        eventually(address, &start, |text| text.starts_with(&start)).await;
    }

    async fn closed(address: SocketAddr) {
        drop(get_until(address, "/any/path", "closed", Result::is_err).await);
    }

    #[tokio::test]
    async fn p323_the_port_follows_port_policy_type_and_service() {
        let bed = TestBed::start();
        let [first, second] = free_addresses();
        bed.apply(&with_port(first.port()));
        answers(first, 200).await;
        bed.apply(&with_port(second.port()));
        answers(second, 200).await;
        closed(first).await;
        let cluster = with_port(0)
            .replace("policy: Local", "policy: Cluster")
            .replace("  healthCheckNodePort: 0\n", "");
        bed.apply(&cluster);
        closed(second).await;
        bed.apply(&with_port(first.port()));
        answers(first, 200).await;
        let port = format!("  healthCheckNodePort: {}\n", first.port());
        let node_port = with_port(first.port()).replace("LoadBalancer", "NodePort").replace(&port, "");
        bed.apply(&node_port);
        closed(first).await;
        bed.apply(&with_port(first.port()));
        answers(first, 200).await;
        bed.apply("");
        closed(first).await;
    }

    #[tokio::test]
    async fn p1101_the_answer_follows_endpoints_and_the_health_of_this_process() {
        let bed = TestBed::start();
        let [port] = free_addresses();
        bed.apply(&with_port(port.port()));
        answers(port, 200).await;
        bed.apply(&with_port(port.port()).replace(HERE, " []"));
        answers(port, 503).await;
        bed.apply(&with_port(port.port()));
        answers(port, 200).await;
        bed.dataplane.send_replace(Arc::from(["worker 0 is dead".to_owned()]));
        answers(port, 503).await;
        let text = get(port, "/").await.unwrap();
        assert!(text.ends_with("\"localEndpoints\":1,\"serviceProxyHealthy\":false}"), "{text}");
    }

    #[tokio::test]
    async fn a_service_that_is_left_out_because_of_a_budget_answers_that_nothing_is_ready() {
        let bed = TestBed::start();
        let [port] = free_addresses();
        bed.apply(&with_port(port.port()));
        answers(port, 200).await;
        let report = |name: &str| {
            let reason = format!("{LEFT_OUT}2 of limits.services = 1");
            let entry = ports::finding(&Key::new("default", name), None, Severity::Error, reason);
            let report = Arc::new(Report { entries: vec![entry] });
            bed.report.send_modify(|status| status.report = report);
        };
        report("web");
        answers(port, 503).await;
        let text = get(port, "/").await.unwrap();
        assert!(text.ends_with("\"localEndpoints\":0,\"serviceProxyHealthy\":true}"), "{text}");
        report("other");
        answers(port, 200).await;
    }

    #[tokio::test]
    async fn p1105_a_node_that_is_about_to_be_removed_answers_as_before() {
        let bed = TestBed::start();
        let [port] = free_addresses();
        let leaving = "apiVersion: v1\nkind: Node\nmetadata: {name: this, deletionTimestamp: \"2026-01-01T00:00:00Z\"}\n";
        let objects = format!("{}---\n{leaving}", with_port(port.port()));
        assert!(node_eligible(&desired(&objects), &node()).is_err());
        bed.apply(&objects);
        answers(port, 200).await;
    }

    #[tokio::test]
    async fn a_port_that_goes_to_another_service_answers_for_it() {
        let bed = TestBed::start();
        let [port] = free_addresses();
        bed.apply(&with_port(port.port()));
        answers(port, 200).await;
        bed.apply(&with_port(port.port()).replace("web", "shop"));
        eventually(port, "that of shop", |text| text.contains("\"name\":\"shop\"")).await;
    }

    #[tokio::test]
    async fn p1104_a_taken_port_is_named_while_the_others_open_and_is_opened_once_free() {
        let mut bed = TestBed::start();
        let taken = listen::bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let taken_port = taken.local_addr().unwrap().port();
        let [other] = free_addresses();
        let shop = with_port(other.port())
            .replace("web", "shop")
            .replace("10.96.0.1", "10.96.0.2")
            .replace("30080", "30081");
        bed.apply(&format!("{}---\n{shop}", with_port(taken_port)));
        answers(other, 200).await;
        let said = {
            let status = bed.status.wait_for(|status| status.findings().next().is_some()).await.unwrap();
            status.findings().next().unwrap().to_string()
        };
        let expected = format!(
            "Service default/web: healthCheckNodePort {taken_port}: cannot listen on 0.0.0.0:{taken_port}: "
        );
        assert!(said.contains(&expected) && said.contains("give the Service another"), "{said}");
        drop(taken);
        let freed: SocketAddr = (Ipv4Addr::LOCALHOST, taken_port).into();
        answers(freed, 200).await;
        assert!(bed.status.wait_for(|status| status.findings().next().is_none()).await.is_ok());
    }

    #[tokio::test]
    async fn health_check_ports_beyond_the_budget_are_named_and_open_when_others_close() {
        let limits = DescriptorLimits { listeners: 3, ..DescriptorLimits::default() };
        let mut bed = TestBed::with(DescriptorBudget::new(limits));
        let addresses: [SocketAddr; 5] = free_addresses();
        let objects = |addresses: &[SocketAddr]| {
            let service = |(n, address): (usize, &SocketAddr)| {
                with_port(address.port())
                    .replace("web", &format!("web-{n}"))
                    .replace("10.96.0.1", &format!("10.96.0.{}", n + 1))
                    .replace("30080", &format!("{}", 30_080 + n))
            };
            addresses.iter().enumerate().map(service).collect::<Vec<_>>().join("---\n")
        };
        bed.apply(&objects(&addresses));
        let is_short = |status: &Status| status.findings().count() == 2;
        let said: Vec<_> = {
            let status = bed.status.wait_for(is_short).await.unwrap();
            status.findings().map(ToString::to_string).collect()
        };
        assert!(said.iter().all(|finding| finding.contains("healthCheckNodePort ")), "{said:?}");
        assert!(said.iter().all(|finding| finding.contains("raise it (LimitNOFILE)")), "{said:?}");
        let mut open = Vec::new();
        for address in addresses {
            if get(address, "/").await.is_ok() {
                open.push(address);
            }
        }
        assert_eq!(open.len(), 3);
        bed.apply(&objects(&addresses[..3]));
        for address in &addresses[..3] {
            answers(*address, 200).await;
        }
        assert!(bed.status.wait_for(|status| status.findings().next().is_none()).await.is_ok());
    }
}
