//! The Kubernetes source against an API server that misbehaves. Only loopback; every wait is bounded.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use flowgate_control::model::{Desired, Key};
use flowgate_control::source::kube::{self, Access, Config, Scope, WatchTimeouts};
use flowgate_control::source::{SourceEvent, SourceHealth};
use flowgate_control::{Entry, ObjectRef};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fake_api::{CIDRS, FakeApi, Lists, NODES, SERVICES, SLICES};

const QUICK: WatchTimeouts = WatchTimeouts {
    response: Duration::from_secs(2),
    watch: Duration::from_secs(60),
    list_idle: Duration::from_secs(5),
    backoff_min: Duration::from_millis(20),
    backoff_max: Duration::from_millis(100),
    absent_retry: Duration::from_millis(200),
    optional_wait: Duration::from_millis(300),
};

fn config(api: &FakeApi) -> Config {
    Config {
        access: Access::Kubeconfig(api.kubeconfig()),
        scope: Scope::Served,
        node_name: Some("edge".into()),
        snapshot: None,
        timeouts: QUICK,
    }
}

/// A watching source and the events it has sent, combined as the reconciler does.
struct Watched {
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<()>,
    desired: Option<Desired>,
    findings: Vec<Entry>,
    health: SourceHealth,
    replaced: usize,
    /// Names in changes, in order.
    changed: Vec<String>,
}

impl Watched {
    fn start(config: Config) -> Self {
        let (sender, events) = mpsc::channel(16);
        let (desired, findings, changed) = (None, Vec::new(), Vec::new());
        let task = tokio::spawn(kube::watch(config, sender));
        Self { events, task, desired, findings, health: SourceHealth::Starting, replaced: 0, changed }
    }

    /// Takes events until `holds`.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let reached = timeout(LIMIT, async {
            while !holds(self) {
                let event = self.events.recv().await.expect("the source goes on");
                self.take(event);
            }
        });
        if reached.await.is_err() {
            let (services, health) = (self.services(), &self.health);
            panic!("never: {what}; services {services:?}, {health:?}, {:?}", self.findings);
        }
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Replace(snapshot) => {
                self.replaced += 1;
                (self.desired, self.findings) = (Some(snapshot.desired), snapshot.findings);
            }
            SourceEvent::Change(changes) => {
                let desired = self.desired.as_mut().expect("a change follows a whole set");
                for change in changes {
                    self.findings.retain(|entry| entry.object.as_ref() != Some(&change.name));
                    self.findings.extend(change.findings);
                    self.changed.push(change.name.name.clone());
                    match change.object {
                        Some(object) => {
                            desired.apply(Key::new(&change.name.namespace, &change.name.name), object, None);
                        }
                        None => drop(desired.delete(&change.name)),
                    }
                }
            }
            SourceEvent::Health(health) => self.health = health,
        }
    }

    /// Waits until all lists are complete.
    async fn synced(&mut self) {
        self.until("synced", |w| w.health == SourceHealth::Synced && w.desired.is_some()).await;
    }

    /// Waits until the source is stale for a reason that holds `part`.
    async fn stale(&mut self, part: &str) {
        self.until(part, |w| w.reason().is_some_and(|reason| reason.contains(part))).await;
    }

    fn reason(&self) -> Option<&str> {
        match &self.health {
            SourceHealth::Stale { reason, .. } => Some(reason),
            SourceHealth::Starting | SourceHealth::Synced => None,
        }
    }

    fn services(&self) -> Vec<&str> {
        self.desired.iter().flat_map(|d| d.services().keys()).map(|key| key.name.as_str()).collect()
    }

    fn finding(&self, name: &str) -> Option<&Entry> {
        self.findings.iter().find(|entry| entry.object.as_ref().is_some_and(|object| object.name == name))
    }

    fn port_of(&self, name: &str) -> Option<u16> {
        let stored = self.desired.as_ref()?.services().get(&Key::new("default", name))?;
        Some(stored.object.ports[0].port)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn service(name: &str, port: u16) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]}})
}

fn slice(name: &str, service: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": null, "ports": null})
}

fn bookmark(version: &str) -> String {
    json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}).to_string()
}

/// A server with two Services and one object of each other kind.
async fn server() -> FakeApi {
    let api = FakeApi::start().await;
    api.put(SERVICES, service("a", 80));
    api.put(SERVICES, service("b", 80));
    api.put(SLICES, slice("a-1", "a"));
    api.put(CIDRS, json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}));
    api.put(NODES, json!({"metadata": {"name": "edge", "labels": {"zone": "z"}}}));
    api
}

#[tokio::test]
async fn p1001_the_first_set_is_whole_and_then_only_changes_are_sent() {
    let api = server().await;
    api.state.lock().unwrap().mute = vec![SLICES];
    let mut watched = Watched::start(config(&api));
    watched.stale("cannot follow endpointslices: the API server did not answer within 2s").await;
    assert!(watched.desired.is_none(), "nothing before all lists are in");
    api.state.lock().unwrap().mute.clear();
    watched.synced().await;
    let counts = watched.desired.as_ref().unwrap().counts();
    assert_eq!((counts.services, counts.endpoint_slices, counts.nodes, counts.service_cidrs), (2, 1, 1, 1));
    assert_eq!(watched.findings, []);

    api.put(SERVICES, service("c", 80));
    watched.until("c", |w| w.port_of("c") == Some(80)).await;
    api.put(SERVICES, service("c", 81));
    watched.until("c changed", |w| w.port_of("c") == Some(81)).await;
    api.delete(SERVICES, "a");
    watched.until("a gone", |w| w.services() == ["b", "c"]).await;
    assert_eq!((watched.replaced, watched.changed.as_slice()), (1, &["c", "c", "a"].map(String::from)[..]));
}

#[tokio::test]
async fn p101_what_does_not_count_is_not_asked_for_and_lists_are_streamed_from_now() {
    let api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    for (path, label) in [(SERVICES, "service-proxy-name"), (SLICES, "headless")] {
        let without = format!("labelSelector=%21service.kubernetes.io%2F{label}");
        assert_eq!(api.asked(path, &without), 1, "{path}");
    }
    assert_eq!(api.asked(NODES, "fieldSelector=metadata.name%3Dedge"), 1);
    let requests = api.state.lock().unwrap().requests.clone();
    assert_eq!(requests.len(), 4, "{requests:?}");
    let streamed = |request: &String| {
        request.contains("sendInitialEvents=true") && request.ends_with("resourceVersion=")
    };
    assert!(requests.iter().all(streamed), "{requests:?}");
}

#[tokio::test]
async fn a_server_that_does_not_stream_lists_is_asked_for_pages() {
    for lists in [Lists::Refused, Lists::Storeless, Lists::Unknown] {
        let api = server().await;
        api.state.lock().unwrap().lists = lists;
        for name in ["c", "d", "e"] {
            api.put(SERVICES, service(name, 80));
        }
        let timeouts = WatchTimeouts { list_idle: Duration::from_millis(300), ..QUICK };
        let mut watched = Watched::start(Config { timeouts, ..config(&api) });
        watched.synced().await;
        assert_eq!(watched.services(), ["a", "b", "c", "d", "e"], "{lists:?}");
        assert_eq!(api.asked(SERVICES, "continue="), 2, "{lists:?}: three pages of two");
        assert_eq!(api.asked(SERVICES, "sendInitialEvents"), 1, "{lists:?}: asked once and never again");
        api.delete(SERVICES, "c");
        watched.until("c gone", |w| w.services() == ["a", "b", "d", "e"]).await;
    }
}

#[tokio::test]
async fn a_broken_watch_goes_on_where_it_was_and_bookmarks_count() {
    let api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    api.send_line(SERVICES, bookmark("4711"));
    // Behind it an object that has no version, to know that the bookmark was read.
    api.send_line(SERVICES, json!({"type": "ADDED", "object": service("z", 80)}).to_string());
    watched.until("z", |w| w.services() == ["a", "b", "z"]).await;
    api.disconnect();
    eventually("the watch goes on from the bookmark", || api.asked(SERVICES, "resourceVersion=4711") > 0)
        .await;
    assert_eq!(api.asked(SERVICES, "sendInitialEvents"), 1, "nothing was listed again");
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_of_an_object_loses_nothing() {
    let api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    // New watches break after one whole line each.
    api.state.lock().unwrap().breaks_after = Some(2);
    api.disconnect();
    for n in 0..8 {
        api.put(SERVICES, service(&format!("s{n}"), 80));
    }
    watched.until("all ten", |w| w.services().len() == 10).await;
    assert_eq!((watched.replaced, watched.changed.len()), (1, 8), "each came once");
}

#[tokio::test]
async fn p1002_while_the_server_is_away_the_last_set_stays_and_afterwards_all_converges() {
    let mut api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    let before = SystemTime::now();
    api.stop().await;
    watched.stale("Connection refused").await;
    let SourceHealth::Stale { since, .. } = watched.health.clone() else { unreachable!() };
    assert!(since >= before && since <= SystemTime::now());
    assert_eq!(watched.services(), ["a", "b"]);
    api.put(SERVICES, service("c", 80));
    api.delete(SERVICES, "a");
    tokio::time::sleep(Duration::from_millis(300)).await;
    while let Ok(event) = watched.events.try_recv() {
        watched.take(event);
    }
    assert!(matches!(watched.health, SourceHealth::Stale { since: still, .. } if still == since));
    assert_eq!(watched.services(), ["a", "b"]);
    api.listen().await;
    watched.synced().await;
    watched.until("what happened meanwhile", |w| w.services() == ["b", "c"]).await;
    assert_eq!(watched.replaced, 1);
}

#[tokio::test]
async fn an_expired_version_means_a_new_list_and_what_vanished_meanwhile_vanishes() {
    for by_status in [false, true] {
        let mut api = server().await;
        let mut watched = Watched::start(config(&api));
        watched.synced().await;
        api.state.lock().unwrap().expires_by_status = by_status;
        api.stop().await;
        api.delete(SERVICES, "a");
        api.put(SERVICES, service("b", 8080));
        api.delete(SLICES, "a-1");
        api.compact();
        api.listen().await;
        watched.until("b changed", |w| w.services() == ["b"] && w.port_of("b") == Some(8080)).await;
        watched.until("no slice", |w| w.desired.as_ref().unwrap().counts().endpoint_slices == 0).await;
        watched.synced().await;
        assert_eq!(watched.replaced, 1, "told as changes");
        assert!(!watched.changed.contains(&"edge".to_owned()), "what is the same is not told again");
        assert_eq!(api.asked(SERVICES, "sendInitialEvents"), 2);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_any_more_is_noticed() {
    let api = server().await;
    let timeouts = WatchTimeouts { watch: Duration::from_secs(2), ..QUICK };
    let mut watched = Watched::start(Config { timeouts, ..config(&api) });
    watched.synced().await;
    // This server never ends a watch, as one whose machine has lost its power.
    watched.stale("said nothing for").await;
    watched.synced().await;
}

#[tokio::test]
async fn a_slow_server_is_stale_and_heals() {
    let api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    api.state.lock().unwrap().mute = vec![SERVICES];
    api.disconnect();
    watched.stale("cannot follow services: the API server did not answer").await;
    api.state.lock().unwrap().mute.clear();
    watched.synced().await;
    api.put(SERVICES, service("c", 80));
    watched.until("c", |w| w.services() == ["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_rotated_token_is_read_again_when_the_old_one_is_refused() {
    let api = server().await;
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    api.state.lock().unwrap().token = Some("second".into());
    api.disconnect();
    watched.stale("(401): the credentials are not accepted; renew the token or certificate").await;
    assert_eq!(watched.services(), ["a", "b"]);
    fs::write(api.token_file(), "second").unwrap();
    watched.synced().await;
    api.put(SERVICES, service("c", 80));
    watched.until("c", |w| w.services() == ["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_missing_permission_is_named_with_verb_and_resource() {
    let api = server().await;
    api.state.lock().unwrap().statuses.insert(SLICES, 403);
    let mut watched = Watched::start(config(&api));
    let remedy = "grant the verbs list and watch on endpointslices in apiGroup \"discovery.k8s.io\"";
    watched.stale(remedy).await;
    assert!(watched.desired.is_none());
    assert!(kube::read(config(&api)).await.is_err_and(|reason| reason.contains(remedy)));
    api.state.lock().unwrap().statuses.clear();
    watched.synced().await;
    assert_eq!(kube::read(config(&api)).await.unwrap().desired, watched.desired.clone().unwrap());
}

#[tokio::test]
async fn malformed_objects_cost_only_themselves_in_lists_and_in_watches() {
    for lists in [Lists::Streamed, Lists::Refused] {
        let api = server().await;
        api.state.lock().unwrap().lists = lists;
        api.put(SERVICES, json!({"metadata": {"name": "spec", "namespace": "default"}, "spec": 5}));
        api.put(
            SERVICES,
            json!({"metadata": {"name": "label", "namespace": "default", "labels": 1}, "spec": {}}),
        );
        api.put(SERVICES, json!({"metadata": {"namespace": "default"}}));
        api.put(SERVICES, json!("not even an object"));
        api.put(SERVICES, service("port", 0));
        let mut watched = Watched::start(config(&api));
        watched.synced().await;
        assert_eq!(watched.services(), ["a", "b"], "{lists:?}");
        for (name, reason) in [
            ("spec", "spec: invalid type: integer `5`"),
            ("label", "metadata.labels"),
            ("", "metadata.name is missing"),
            ("port", "spec.ports[0].port: 0 is not a port"),
        ] {
            let entry = watched.finding(name).unwrap_or_else(|| panic!("{name}: {:?}", watched.findings));
            assert!(entry.reason.contains(reason), "{entry}");
        }
        assert_eq!(
            watched.finding("port").unwrap().object,
            Some(ObjectRef::new("Service", "default", "port")),
            "kind and namespace are named too"
        );

        api.put(SERVICES, service("a", 0));
        watched.until("a refused", |w| w.finding("a").is_some()).await;
        assert_eq!(watched.port_of("a"), Some(80), "its last accepted version stays in force");
        let retained =
            "Service default/a: spec.ports: no port is left (its last accepted version stays in force until";
        let reasons: Vec<String> = watched.findings.iter().map(ToString::to_string).collect();
        assert!(reasons.iter().any(|reason| reason.starts_with(retained)), "{reasons:?}");
        api.put(SERVICES, service("port", 90));
        watched
            .until("port is mended", |w| w.finding("port").is_none() && w.port_of("port") == Some(90))
            .await;
        api.put(SERVICES, service("a", 81));
        watched.until("a is mended", |w| w.finding("a").is_none() && w.port_of("a") == Some(81)).await;

        // A line that is nothing at all ends the stream, not the watch.
        api.send_line(SERVICES, "<html>");
        watched.stale("the answer is not that of an API server").await;
        api.put(SERVICES, service("c", 80));
        watched.until("c", |w| w.port_of("c") == Some(80)).await;
        watched.synced().await;
    }
}

#[tokio::test]
async fn an_optional_collection_that_cannot_be_read_is_named_and_stops_no_other() {
    for (path, plural, group, status) in [
        (CIDRS, "servicecidrs", "networking.k8s.io", 403),
        (CIDRS, "servicecidrs", "networking.k8s.io", 404),
        (NODES, "nodes", "", 403),
        (NODES, "nodes", "", 404),
        (NODES, "nodes", "", 500),
    ] {
        let api = server().await;
        api.state.lock().unwrap().statuses.insert(path, status);
        let mut watched = Watched::start(config(&api));
        watched.synced().await;
        let what = format!("{plural} {status}");
        let count = |w: &Watched| {
            let counts = w.desired.as_ref().unwrap().counts();
            if path == CIDRS { counts.service_cidrs } else { counts.nodes }
        };
        assert_eq!((watched.services(), count(&watched)), (vec!["a", "b"], 0), "{what}");
        watched
            .until(&what, |w| w.finding(plural).is_some_and(|f| f.reason.contains(&status.to_string())))
            .await;
        let finding = watched.finding(plural).unwrap().to_string();
        let remedy = match status {
            403 => {
                format!("grant the verbs list and watch on {plural} in apiGroup {group:?} (see rbac.yaml)")
            }
            404 => format!("the server has no {plural} in "),
            _ => String::new(),
        };
        assert!(finding.starts_with(&format!("Collection {plural}: cannot follow {plural}: ")), "{finding}");
        assert!(
            finding.contains(&remedy) && finding.contains("Services and EndpointSlices go on: "),
            "{finding}"
        );
        assert_eq!(kube::read(config(&api)).await.unwrap().desired.counts().services, 2, "{what}");

        // Meanwhile the others are followed.
        api.put(SERVICES, service("c", 80));
        watched.until("c", |w| w.services() == ["a", "b", "c"]).await;
        assert_eq!(watched.health, SourceHealth::Synced, "{what}");

        // It comes back, and what it holds counts.
        api.state.lock().unwrap().statuses.clear();
        watched.until(&what, |w| w.finding(plural).is_none() && count(w) == 1).await;

        // And it goes again later: what is known stays.
        api.state.lock().unwrap().statuses.insert(path, status);
        api.disconnect();
        watched.until(&what, |w| w.finding(plural).is_some()).await;
        let finding = watched.finding(plural).unwrap().to_string();
        assert!(finding.ends_with("what is known of them stays in force"), "{finding}");
        assert_eq!(count(&watched), 1, "{what}");
        api.put(SERVICES, service("d", 80));
        watched.until("d", |w| w.services() == ["a", "b", "c", "d"]).await;
        watched.synced().await;
    }
}

#[tokio::test]
async fn an_optional_collection_that_is_never_answered_keeps_nobody_waiting() {
    let api = server().await;
    api.state.lock().unwrap().mute = vec![NODES, CIDRS];
    let mut watched = Watched::start(config(&api));
    watched.synced().await;
    assert_eq!(watched.services(), ["a", "b"]);
    for plural in ["nodes", "servicecidrs"] {
        let finding = watched.finding(plural).unwrap().to_string();
        assert!(finding.contains("were not listed in time; Services and EndpointSlices go on"), "{finding}");
    }
    api.state.lock().unwrap().mute.clear();
    watched.until("both are listed", |w| w.findings.is_empty()).await;
    let counts = watched.desired.as_ref().unwrap().counts();
    assert_eq!((counts.nodes, counts.service_cidrs), (1, 1));
}

#[tokio::test]
async fn a_snapshot_is_replaced_by_what_can_be_read() {
    let api = server().await;
    let path = api.folder().join("snapshot.json");
    let with_snapshot = |api: &FakeApi| Config { snapshot: Some(path.clone()), ..config(api) };
    let mut first = Watched::start(with_snapshot(&api));
    first.synced().await;
    saved(&path).await;
    drop(first);
    api.delete(SERVICES, "a");
    for path in [NODES, CIDRS] {
        api.state.lock().unwrap().statuses.insert(path, 403);
    }
    let mut second = Watched::start(with_snapshot(&api));
    second.synced().await;
    assert_eq!((second.services(), second.replaced), (vec!["b"], 2), "the lists take its place");
    let counts = second.desired.as_ref().unwrap().counts();
    assert_eq!((counts.nodes, counts.service_cidrs), (1, 1), "the rest of it stays");
    for plural in ["nodes", "servicecidrs"] {
        let finding = second.finding(plural).unwrap().to_string();
        assert!(finding.ends_with("what is known of them stays in force"), "{finding}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named_and_read_again() {
    let api = server().await;
    let missing = api.folder().join("later");
    let access = Access::Kubeconfig(missing.clone());
    let mut watched = Watched::start(Config { access, ..config(&api) });
    watched.stale(&format!("kubeconfig {}: ", missing.display())).await;
    fs::write(&missing, "current-context: [").unwrap();
    watched.stale("failed to parse").await;
    fs::write(&missing, "apiVersion: v1\nkind: Config\ncurrent-context: none\n").unwrap();
    watched.stale("none").await;
    fs::copy(api.kubeconfig(), &missing).unwrap();
    watched.synced().await;
    assert_eq!(watched.services(), ["a", "b"]);
}

#[tokio::test]
async fn a_restart_without_the_server_begins_with_the_snapshot() {
    let mut api = server().await;
    let path = api.folder().join("state/snapshot.json");
    let with_snapshot = |api: &FakeApi| Config { snapshot: Some(path.clone()), ..config(api) };
    let mut first = Watched::start(with_snapshot(&api));
    first.synced().await;
    saved(&path).await;
    drop(first);
    api.stop().await;
    api.delete(SERVICES, "a");

    let mut second = Watched::start(with_snapshot(&api));
    second.until("the snapshot", |w| w.desired.is_some()).await;
    assert_eq!(second.services(), ["a", "b"]);
    let SourceHealth::Stale { since, reason } = second.health.clone() else { panic!("{:?}", second.health) };
    assert!(reason.starts_with("from the snapshot"), "{reason}");
    assert!(since <= SystemTime::now() && since.elapsed().unwrap() < Duration::from_secs(120));
    second.stale("from the snapshot; cannot follow services").await;
    api.listen().await;
    second.synced().await;
    assert_eq!(second.services(), ["b"], "the lists take the place of the snapshot");
    assert_eq!(second.replaced, 2);
    drop(second);

    // The state of another cluster is not ours.
    let other = FakeApi::start().await;
    let mut third = Watched::start(with_snapshot(&other));
    third.synced().await;
    assert_eq!((third.services(), third.replaced), (vec![], 1));
    drop(third);

    fs::write(&path, "{}").unwrap();
    let mut fourth = Watched::start(with_snapshot(&api));
    fourth.synced().await;
    assert_eq!((fourth.services(), fourth.replaced), (vec!["b"], 1));
}

/// Waits until the file exists.
async fn saved(path: &Path) {
    eventually("the state is saved", || path.exists()).await;
}

/// Polls until the condition holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let polled = timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    polled.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The longest that a test waits for anything.
const LIMIT: Duration = Duration::from_secs(60);
