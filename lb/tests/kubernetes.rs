//! The gateway on a real Kubernetes API, whose controllers make EndpointSlices of Deployments. Clients check the result.
//!
//! Needs root, etcd and the control plane that `make kubernetes` builds; without them every test fails with a message.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flowgate_benches::lab::kubernetes::bulk::{self, BulkOptions};
use flowgate_benches::lab::kubernetes::{ClusterOptions, KubernetesCluster};
use flowgate_benches::lab::sample::{NGINX, node_port_address};
use flowgate_benches::loadgen::report::Report as _;
use flowgate_benches::loadgen::stream::{self, Exchange, Reuse, StreamOptions, StreamReport, StreamRun};
use flowgate_benches::netns::Namespace;
use serde_json::Value;

use support::{FLOWGATE, get, number, one_at_a_time, rows, text};

/// For what passes through controllers, API and gateway, all on a machine that may be busy with other tests.
const CLUSTER_LIMIT: Duration = Duration::from_secs(120);

/// On one cluster, since a control plane takes longer to start than most of this.
#[test]
fn samples_applied_by_kubectl_are_served_and_neither_scaling_nor_a_rolling_update_fails_a_request()
-> Result<()> {
    let _turn = one_at_a_time();
    let cluster = sample_cluster()?;
    samples_are_served_at_cluster_ip_and_node_port(&cluster)?;
    scaling_up_and_down_under_load_fails_no_request(&cluster)?;
    cluster.apply_samples()?;
    a_rolling_update_with_terminating_endpoints_fails_no_request(&cluster)
}

fn samples_are_served_at_cluster_ip_and_node_port(cluster: &KubernetesCluster) -> Result<()> {
    let pods = running_pods(cluster, 3)?;
    for target in [SocketAddr::from(NGINX), node_port_address()] {
        let answers = cluster_eventually(&format!("every pod answers at {target}"), || {
            let answered: BTreeSet<_> =
                (0..40).map(|_| get(client(cluster), target)).collect::<Result<_>>()?;
            Ok((answered == pods).then_some(answered))
        })?;
        assert_eq!(answers, pods);
    }
    // A Service whose Endpoints are written by hand reaches the gateway by the controller that mirrors them.
    let mysql = client(cluster).enter(|| greeting((flowgate_benches::lab::sample::MYSQL).into()))??;
    assert_eq!(mysql, "mysql");
    assert_eq!(cluster.pods().failures(), Vec::<String>::new());
    Ok(())
}

fn scaling_up_and_down_under_load_fails_no_request(cluster: &KubernetesCluster) -> Result<()> {
    running_pods(cluster, 3)?;
    let load = requests(cluster)?;
    all_answer(&load, &running_pods(cluster, 3)?)?;

    cluster.control_plane().kubectl(&["scale", "deployment", "my-nginx", "--replicas", "8"])?;
    all_answer(&load, &running_pods(cluster, 8)?)?;

    cluster.control_plane().kubectl(&["scale", "deployment", "my-nginx", "--replicas", "2"])?;
    let left = running_pods(cluster, 2)?;
    let before = load.snapshot();
    cluster_eventually("a thousand more requests are answered", || {
        Ok((load.snapshot().exchanges > before.exchanges + 1000).then_some(()))
    })?;
    let report = load.finish()?;
    assert_clean(&report);
    for (pod, tally) in &report.by_backend {
        let earlier = before.by_backend.get(pod).map_or(0, |earlier| earlier.exchanges);
        assert!(left.contains(pod) || tally.exchanges == earlier, "{pod} is gone and was still asked");
    }
    assert_eq!(cluster.pods().failures(), Vec::<String>::new());
    Ok(())
}

fn a_rolling_update_with_terminating_endpoints_fails_no_request(cluster: &KubernetesCluster) -> Result<()> {
    let old = running_pods(cluster, 3)?;
    let load = requests(cluster)?;
    all_answer(&load, &old)?;

    let plane = cluster.control_plane();
    plane.kubectl(&["set", "image", "deployment/my-nginx", "my-nginx=nginx:2"])?;
    plane.kubectl(&["rollout", "status", "deployment/my-nginx", "--timeout", "120s"])?;
    let new = cluster_eventually("only new pods run", || {
        let pods = pod_names(cluster);
        Ok((pods.len() == 3 && pods.is_disjoint(&old)).then_some(pods))
    })?;
    all_answer(&load, &new)?;
    let report = load.finish()?;
    assert_clean(&report);
    let asked: BTreeSet<_> = report.by_backend.keys().cloned().collect();
    assert!(asked.is_superset(&old) && asked.is_superset(&new), "{asked:?}");
    assert_eq!(cluster.pods().failures(), Vec::<String>::new());
    Ok(())
}

/// On one cluster, as above.
#[test]
fn p1002_a_dead_api_server_stops_no_traffic_and_whatever_was_missed_meanwhile_is_made_up_for() -> Result<()> {
    let _turn = one_at_a_time();
    let mut cluster = sample_cluster()?;
    a_dead_api_server_stops_no_traffic_and_is_followed_again_when_it_is_back(&mut cluster)?;
    cluster.apply_samples()?;
    a_watch_that_expired_while_the_gateway_was_away_loses_no_change(&mut cluster)
}

fn a_dead_api_server_stops_no_traffic_and_is_followed_again_when_it_is_back(
    cluster: &mut KubernetesCluster,
) -> Result<()> {
    let pods = running_pods(cluster, 3)?;
    let load = requests(cluster)?;
    all_answer(&load, &pods)?;

    cluster.control_plane_mut().kill_api_server()?;
    cluster_eventually("the gateway says that what it knows is stale", || {
        let tables = cluster.gateway()?.show(&["tables"])?;
        Ok(tables.contains("stale").then_some(()))
    })?;
    let before = load.snapshot();
    // Longer than a few attempts to reconnect.
    thread::sleep(Duration::from_secs(5));
    let after = load.snapshot();
    ensure!(after.exchanges > before.exchanges + 100, "requests are answered without the API server");
    assert_clean(&after);

    cluster.control_plane_mut().start_api_server()?;
    cluster.control_plane().kubectl(&["scale", "deployment", "my-nginx", "--replicas", "5"])?;
    all_answer(&load, &running_pods(cluster, 5)?)?;
    cluster_eventually("the gateway says that it is in step again", || {
        Ok((!cluster.gateway()?.show(&["tables"])?.contains("stale")).then_some(()))
    })?;
    assert_clean(&load.finish()?);
    Ok(())
}

fn a_watch_that_expired_while_the_gateway_was_away_loses_no_change(
    cluster: &mut KubernetesCluster,
) -> Result<()> {
    running_pods(cluster, 3)?;
    cluster.gateway()?.wait_for_service("my-nginx")?;
    let gateway = cluster.topology().gateway().clone();

    // Cut off from the API server, the gateway misses a deletion and a creation; then history is forgotten. It has to
    // notice that its connections are gone first: those of a link that went silent live until a keep-alive fails.
    cluster.control_plane_mut().kill_api_server()?;
    gateway.ip("link set mgmt0 down")?;
    let plane = cluster.control_plane_mut();
    plane.start_api_server()?;
    plane.kubectl(&["delete", "service", "mysql"])?;
    plane.kubectl(&[
        "expose",
        "deployment",
        "my-nginx",
        "--name",
        "late",
        "--port",
        "8000",
        "--target-port",
        "80",
    ])?;
    plane.expire_history()?;
    gateway.ip("link set mgmt0 up")?;

    cluster_eventually("the gateway serves what is there and nothing else", || {
        let services = services(cluster)?;
        let has = |name: &str| services.iter().any(|service| service.starts_with(&format!("default/{name}")));
        Ok((has("late") && has("my-nginx") && !has("mysql")).then_some(()))
    })?;
    let address =
        cluster.control_plane().kubectl(&["get", "service", "late", "-o", "jsonpath={.spec.clusterIP}"])?;
    let address: IpAddr = address.parse().with_context(|| format!("kubectl printed {address:?}"))?;
    // Its endpoints come by another watch than itself.
    cluster_eventually("a pod answers at the Service that was missed", || {
        let answered = get(client(cluster), SocketAddr::new(address, 8000));
        Ok(answered.is_ok_and(|pod| pod_names(cluster).contains(&pod)).then_some(()))
    })
}

#[test]
fn five_thousand_services_with_fifty_thousand_endpoints_are_programmed() -> Result<()> {
    let _turn = one_at_a_time();
    let mut cluster = KubernetesCluster::start(ClusterOptions::default(), |_| {})?;
    // Hosts behind one next hop: every endpoint can be reached as far as the gateway is concerned.
    let next_hop = cluster.topology().backends()[0].address;
    cluster.topology().gateway().ip(&format!("route add 10.200.0.0/14 via {next_hop}"))?;
    let bulk = BulkOptions {
        services: 5000,
        endpoints: 10,
        first_address: Ipv4Addr::new(10, 97, 0, 1),
        first_endpoint: Ipv4Addr::new(10, 200, 0, 1),
    };
    bulk::create(&cluster.control_plane().client(), &bulk)?;
    cluster.start_gateway(FLOWGATE, "")?;
    cluster_eventually("all of them are in the tables", || {
        let tables: Value = serde_json::from_str(&cluster.gateway()?.show(&["tables", "-o", "json"])?)?;
        let complete = number(&tables["services"]) >= 5000 && number(&tables["backends"]) >= 50_000;
        Ok(complete.then_some(()))
    })?;
    // One that answers, among all the others.
    cluster.apply_samples()?;
    let pods = running_pods(&cluster, 3)?;
    cluster_eventually("a Service that came last is served", || {
        Ok(get(client(&cluster), NGINX).is_ok_and(|pod| pods.contains(&pod)).then_some(()))
    })
}

/// The samples, applied and known to the gateway.
fn sample_cluster() -> Result<KubernetesCluster> {
    let mut cluster = KubernetesCluster::start(ClusterOptions::default(), |_| {})?;
    cluster.start_gateway(FLOWGATE, "")?;
    cluster.apply_samples()?;
    for service in ["my-nginx", "my-nginx-nodeport", "mysql"] {
        cluster.gateway()?.wait_for_service(service)?;
    }
    Ok(cluster)
}

fn client(cluster: &KubernetesCluster) -> &Namespace {
    &cluster.topology().client().namespace
}

fn pod_names(cluster: &KubernetesCluster) -> BTreeSet<String> {
    cluster.pods().pods().into_iter().map(|pod| pod.name).collect()
}

/// Waits until exactly so many pods run, none of them terminating, and returns their names.
fn running_pods(cluster: &KubernetesCluster, count: usize) -> Result<BTreeSet<String>> {
    cluster_eventually(&format!("{count} pods run"), || {
        let pods = cluster.pods().pods();
        let settled = pods.len() == count && pods.iter().all(|pod| !pod.terminating);
        Ok(settled.then(|| pods.into_iter().map(|pod| pod.name).collect()))
    })
}

/// Service ports as `show services` names them.
fn services(cluster: &KubernetesCluster) -> Result<Vec<String>> {
    let services: Value = serde_json::from_str(&cluster.gateway()?.show(&["services", "-o", "json"])?)?;
    Ok(rows(&services).map(|service| text(&service["service"]).to_owned()).collect())
}

/// Requests without end to the sample Service, each on a connection of its own.
fn requests(cluster: &KubernetesCluster) -> Result<StreamRun> {
    let exchange = Exchange::Http { path: "/".into() };
    let mut options = StreamOptions::new(NGINX.into(), 4, Duration::from_secs(3600), exchange);
    (options.reuse, options.pause) = (Reuse::PerExchange, Duration::from_millis(5));
    // Until the first pod answers there is nobody: that is not what these tests are about.
    cluster_eventually("the Service answers", || Ok(get(client(cluster), NGINX).ok()))?;
    Ok(stream::start(client(cluster), options)?)
}

/// Waits until each of the pods has answered requests that came after this call.
fn all_answer(load: &StreamRun, pods: &BTreeSet<String>) -> Result<()> {
    let before = load.snapshot();
    let exchanges =
        |report: &StreamReport, pod: &String| report.by_backend.get(pod).map_or(0, |tally| tally.exchanges);
    cluster_eventually(&format!("all of {pods:?} answer"), || {
        let now = load.snapshot();
        Ok(pods.iter().all(|pod| exchanges(&now, pod) > exchanges(&before, pod)).then_some(()))
    })
}

fn assert_clean(report: &StreamReport) {
    assert!(report.is_clean(), "{:?}, {:?}", report.first_failure, report.connect_failures);
}

/// The line with which a server greets.
fn greeting(target: SocketAddr) -> Result<String> {
    use std::io::{BufRead as _, BufReader};
    let stream = std::net::TcpStream::connect_timeout(&target, support::LIMIT)?;
    stream.set_read_timeout(Some(support::LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Waits until `condition` finds something, at most [`CLUSTER_LIMIT`].
fn cluster_eventually<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut found = None;
    support::eventually_within(CLUSTER_LIMIT, Duration::from_millis(20), what, || {
        found = condition()?;
        Ok(found.is_some())
    })?;
    found.context("the wait ends with what was found")
}
