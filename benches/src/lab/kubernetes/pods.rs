//! Stands in for scheduler, kubelets and containers: gives each pod a host of the lab, runs a real server there for each
//! of its ports, and tells the API server what a kubelet would. Never writes EndpointSlices: that is the controllers'
//! work.
//!
//! A pod that is being deleted goes on serving for a while, then finishes the requests under way, and only then is gone:
//! what a container with a preStop hook does.

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

/// How pods live.
#[derive(Debug, Clone)]
pub struct PodHostsOptions {
    /// The Node that pods are bound to.
    pub node: String,
    /// How long a container takes before it is ready.
    pub startup: Duration,
    /// How long a pod goes on serving after its deletion was asked for.
    pub linger: Duration,
    /// How long requests under way may take after that.
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

/// What runs on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// The pod's name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Requests and datagrams that its servers answered.
    pub answers: u64,
    /// Whether its deletion was asked for.
    pub terminating: bool,
}

/// The hosts of the pods, at work until dropped.
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
    /// Indices into the hosts, the longest free first: an address comes back as late as possible.
    free: VecDeque<usize>,
    /// By uid.
    running: BTreeMap<String, RunningPod>,
    /// Pods for which there was no host, in the order of their coming.
    waiting: VecDeque<Pod>,
    /// What went wrong with single pods, for people.
    failures: Vec<String>,
}

struct RunningPod {
    name: String,
    host: usize,
    terminating: bool,
    servers: Option<PodServers>,
}

impl PodHosts {
    /// Begins to watch pods. There may be as many at a time as there are hosts; others wait, as in a full cluster.
    pub fn start(client: &ApiClient, hosts: Vec<Host>, options: PodHostsOptions) -> Result<Self> {
        let state = State { free: (0..hosts.len()).collect(), ..State::default() };
        let shared = Arc::new(Shared { options, hosts, state: Mutex::new(state) });
        let thread = client.spawn("pods", {
            let shared = Arc::clone(&shared);
            |client, stopped| follow_pods(shared, client, stopped)
        })?;
        Ok(Self { shared, _thread: thread })
    }

    /// What runs now, by pod name.
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

    /// What went wrong so far.
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

/// Follows the pods until told to stop.
async fn follow_pods(shared: Arc<Shared>, client: Client, mut stopped: watch::Receiver<bool>) {
    // The API server may be killed and come back: it is asked again after a moment.
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
            // The stream waits by itself before it tries again.
            Some(Err(_)) => {}
            None => return,
        }
    }
}

/// Turns what is seen of pods into what is done for them.
struct PodController {
    shared: Arc<Shared>,
    client: Client,
    /// Told whenever a host has become free.
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
            // Nothing runs of it: it waits for its end only.
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

    /// The object is gone, so is what ran of it.
    fn remove_pod(&self, uid: &str) {
        let mut state = self.shared.lock();
        state.waiting.retain(|waiting| waiting.uid().as_deref() != Some(uid));
        let Some(running) = state.running.remove(uid) else { return };
        state.free.push_back(running.host);
        drop(state);
        // Outside of the lock: it waits for the threads of the servers.
        drop(running.servers);
        // The receiver lives as long as this.
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
