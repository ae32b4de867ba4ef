//! Start and end of a pod, as a kubelet reports them. Each request is retried while the API server is down.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{PodServers, Shared};

const RETRY: Duration = Duration::from_millis(200);

/// Binds the pod to the node, starts its servers and reports it as running and ready.
pub(super) async fn begin(shared: Arc<Shared>, client: Client, pod: Pod, host: usize) {
    let name = pod.name_any();
    let pods = api(&client, &pod);
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        let bound = retry_until_answered(|| bind(&pods, &name, &shared.options.node)).await;
        if let Err(error) = bound {
            return shared.fail(&name, format!("could not be bound to a node: {error}"));
        }
    }
    sleep(shared.options.startup).await;
    let host = &shared.hosts[host];
    let servers = match PodServers::start(&pod, host) {
        Ok(servers) => servers,
        Err(error) => return shared.fail(&name, error),
    };
    {
        let uid = pod.uid().unwrap_or_default();
        let mut state = shared.lock();
        // Deleted meanwhile.
        let Some(running) = state.running.get_mut(&uid) else { return };
        running.servers = Some(servers);
    }
    let status = Patch::Strategic(json!({"status": running_status(&pod, &host.address.to_string())}));
    let by = PatchParams::default();
    if let Err(error) = retry_until_answered(|| pods.patch_status(&name, &by, &status)).await {
        shared.fail(&name, format!("its status could not be written: {error}"));
    }
}

/// Serves on for a while, drains, and removes the object.
pub(super) async fn end(shared: Arc<Shared>, client: Client, pod: Pod) {
    sleep(shared.options.linger).await;
    let servers = {
        let uid = pod.uid().unwrap_or_default();
        shared.lock().running.get_mut(&uid).and_then(|running| running.servers.take())
    };
    if let Some(servers) = servers {
        let limit = shared.options.drain;
        // Draining blocks; other pods must go on meanwhile.
        match tokio::task::spawn_blocking(move || servers.drain(limit)).await {
            Ok(0) => {}
            Ok(cut) => shared.fail(&pod.name_any(), format!("{cut} connections were cut off at its end")),
            Err(error) => shared.fail(&pod.name_any(), error),
        }
    }
    remove(shared, client, pod).await;
}

/// Removes the object of a pod without servers.
pub(super) async fn remove(shared: Arc<Shared>, client: Client, pod: Pod) {
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.uid(), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    let (name, pods) = (pod.name_any(), api(&client, &pod));
    if let Err(error) = retry_until_answered(|| pods.delete(&name, &now)).await {
        shared.fail(&name, format!("could not be removed: {error}"));
    }
}

async fn bind(pods: &Api<Pod>, name: &str, node: &str) -> kube::Result<Status> {
    let target = ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..Default::default() };
    let mut binding = Binding { target, ..Binding::default() };
    binding.metadata.name = Some(name.to_owned());
    pods.create_subresource("binding", name, &PostParams::default(), &binding).await
}

/// Retries until the API server answers. Client errors are final; 404 and 409 mean that the pod is gone.
async fn retry_until_answered<T, F: Future<Output = kube::Result<T>>>(
    request: impl Fn() -> F,
) -> kube::Result<()> {
    loop {
        match request().await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code < 500 => return Err(kube::Error::Api(status)),
            Err(_) => sleep(RETRY).await,
        }
    }
}

fn api(client: &Client, pod: &Pod) -> Api<Pod> {
    Api::namespaced(client.clone(), &pod.namespace().unwrap_or_else(|| "default".into()))
}

/// The status of a pod whose containers all run and are ready.
fn running_status(pod: &Pod, address: &str) -> Value {
    let now = Timestamp::now().to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "observedGeneration": 1});
    let conditions = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"];
    let conditions = conditions.map(condition);
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
        json!({
            "name": container.name,
            "image": container.image,
            "imageID": "lab",
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        })
    });
    let containers: Vec<_> = containers.collect();
    json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": conditions,
        "containerStatuses": containers,
    })
}
