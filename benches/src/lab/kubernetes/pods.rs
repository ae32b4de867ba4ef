//! Replaces scheduler, kubelets and containers: assigns each pod to a host of the lab, runs a real server there for each of
//! its ports, and updates pod status as a kubelet would. EndpointSlices are left to the controllers.
//!
//! A terminating pod serves on for a while, then drains its connections, and is removed only then: like a container with a
//! preStop hook.

mod lifecycle;
mod servers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::{mpsc, watch};

use super::ApiClient;
use super::api_client::ApiThread;
use crate::error::Result;
use crate::lab::topology::Host;
use servers::PodServers;

/// The timing of pods.
#[derive(Debug, Clone)]
pub struct PodHostsOptions {
    /// The Node that pods are bound to.
    pub node: String,
    /// Time until a container is ready.
    pub startup: Duration,
    /// How long a terminating pod serves on.
    pub linger: Duration,
    /// Time limit of draining after that.
    pub drain: Duration,
}

impl PodHostsOptions {
    /// Pods that start at once and linger for two seconds.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            startup: Duration::ZERO,
            linger: Duration::from_secs(2),
            drain: Duration::from_secs(10),
        }
    }
}

/// A running pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// The pod's name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Requests and datagrams answered by its servers.
    pub answers: u64,
    /// Whether it is terminating.
    pub terminating: bool,
}

/// The hosts of pods; stopped when dropped.
pub struct PodHosts {
    shared: Arc<Shared>,
    _thread: ApiThread,
}

struct Shared {
    options: PodHostsOptions,
    hosts: Vec<Host>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Indices into the hosts, the longest free first, so that addresses are reused as late as possible.
    free: VecDeque<usize>,
    /// By uid.
    running: BTreeMap<String, RunningPod>,
    /// Pods without a host, in order of arrival.
    waiting: VecDeque<Pod>,
    /// Failures of single pods.
    failures: Vec<String>,
}

struct RunningPod {
    name: String,
    host: usize,
    terminating: bool,
    servers: Option<PodServers>,
}

impl PodHosts {
    /// Starts watching pods. At most one pod runs per host; others are pending, as in a full cluster.
    pub fn start(client: &ApiClient, hosts: Vec<Host>, options: PodHostsOptions) -> Result<Self> {
        let state = State { free: (0..hosts.len()).collect(), ..State::default() };
        let shared = Arc::new(Shared { options, hosts, state: Mutex::new(state) });
        let thread = client.spawn("pods", {
            let shared = Arc::clone(&shared);
            |client, stopped| follow_pods(shared, client, stopped)
        })?;
        Ok(Self { shared, _thread: thread })
    }

    /// The running pods, by name.
    pub fn pods(&self) -> Vec<PodView> {
        let state = self.shared.lock();
        let mut pods: Vec<_> = state
            .running
            .values()
            .map(|pod| PodView {
                name: pod.name.clone(),
                address: self.shared.hosts[pod.host].address,
                answers: pod.servers.as_ref().map_or(0, PodServers::answers),
                terminating: pod.terminating,
            })
            .collect();
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// The failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.lock().failures.clone()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, pod: &str, what: impl std::fmt::Display) {
        self.lock().failures.push(format!("pod {pod}: {what}"));
    }
}

/// Watches pods until stopped.
async fn follow_pods(shared: Arc<Shared>, client: Client, mut stopped: watch::Receiver<bool>) {
    // Tests kill and restart the API server: retry with back-off.
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    let mut pods = pods.boxed_local();
    let (freed, mut freed_hosts) = mpsc::unbounded_channel();
    let mut listed = BTreeSet::new();
    let controller = PodController { shared, client, freed };
    loop {
        let event = tokio::select! {
            event = pods.next() => event,
            Some(()) = freed_hosts.recv() => {
                controller.admit_waiting();
                continue;
            }
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match event {
            Some(Ok(watcher::Event::Apply(pod))) => controller.reconcile(pod),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                listed.extend(pod.uid());
                controller.reconcile(pod);
            }
            Some(Ok(watcher::Event::Delete(pod))) => controller.remove_pod(&pod.uid().unwrap_or_default()),
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitDone)) => controller.remove_unlisted(&listed),
            // The stream retries with back-off.
            Some(Err(_)) => {}
            None => return,
        }
    }
}

/// Starts, ends and removes pods as their objects change.
struct PodController {
    shared: Arc<Shared>,
    client: Client,
    /// Signals that a host has become free.
    freed: mpsc::UnboundedSender<()>,
}

impl PodController {
    fn reconcile(&self, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let mut state = self.shared.lock();
        if let Some(running) = state.running.get_mut(&uid) {
            if terminating && !running.terminating {
                running.terminating = true;
                drop(state);
                tokio::task::spawn_local(lifecycle::end(Arc::clone(&self.shared), self.client.clone(), pod));
            }
            return;
        }
        if terminating {
            // It was never started: only its object has to be removed.
            state.waiting.retain(|waiting| waiting.uid().as_ref() != Some(&uid));
            drop(state);
            tokio::task::spawn_local(lifecycle::remove(Arc::clone(&self.shared), self.client.clone(), pod));
            return;
        }
        let Some(host) = state.free.pop_front() else {
            if state.waiting.iter().all(|waiting| waiting.uid().as_ref() != Some(&uid)) {
                state.waiting.push_back(pod);
            }
            return;
        };
        let running = RunningPod { name: pod.name_any(), host, terminating: false, servers: None };
        state.running.insert(uid, running);
        drop(state);
        tokio::task::spawn_local(lifecycle::begin(Arc::clone(&self.shared), self.client.clone(), pod, host));
    }

    /// The object was deleted: stop its servers and free its host.
    fn remove_pod(&self, uid: &str) {
        let mut state = self.shared.lock();
        state.waiting.retain(|waiting| waiting.uid().as_deref() != Some(uid));
        let Some(running) = state.running.remove(uid) else { return };
        state.free.push_back(running.host);
        drop(state);
        // After unlocking, because it joins the server threads.
        drop(running.servers);
        // The receiver lives as long as `self`.
        let _ = self.freed.send(());
    }

    fn remove_unlisted(&self, listed: &BTreeSet<String>) {
        let gone: Vec<_> =
            self.shared.lock().running.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.remove_pod(uid));
    }

    fn admit_waiting(&self) {
        let waiting = std::mem::take(&mut self.shared.lock().waiting);
        waiting.into_iter().for_each(|pod| self.reconcile(pod));
    }
}
