//! Creates many Services with their EndpointSlices, for tests at scale, with concurrent requests: `kubectl` would take
//! minutes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::ApiClient;
use crate::error::Result;

/// Concurrent requests.
const CONCURRENCY: usize = 32;
/// Endpoints per slice, as the Kubernetes controller writes them.
const SLICE_LEN: u32 = 100;

/// The number of Services and their endpoints.
#[derive(Debug, Clone)]
pub struct BulkOptions {
    /// The number of Services.
    pub services: u32,
    /// Endpoints per Service.
    pub endpoints: u32,
    /// The first ClusterIP; the others follow.
    pub first_address: Ipv4Addr,
    /// The first endpoint's address; the others follow.
    pub first_endpoint: Ipv4Addr,
}

/// The namespace of the bulk Services.
pub const NAMESPACE: &str = "default";
/// The port of each Service and of its endpoints.
pub const PORT: u16 = 80;

/// The name of the n-th Service.
pub fn name(number: u32) -> String {
    format!("bulk-{number}")
}

impl BulkOptions {
    /// The ClusterIP of the n-th Service.
    pub fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first_address) + number)
    }

    /// The addresses of the endpoints of the n-th Service.
    pub fn endpoints_of(&self, number: u32) -> Vec<IpAddr> {
        let first = u32::from(self.first_endpoint) + number * self.endpoints;
        (first..first + self.endpoints).map(|address| Ipv4Addr::from(address).into()).collect()
    }
}

/// Creates all Services and slices.
pub fn create(client: &ApiClient, options: &BulkOptions) -> Result<()> {
    client.run(&format!("create {} Services", options.services), |client| async move {
        let client = &client;
        let all = stream::iter((0..options.services).map(Ok::<_, kube::Error>));
        all.try_for_each_concurrent(CONCURRENCY, |number| async move {
            Api::namespaced(client.clone(), NAMESPACE)
                .create(&PostParams::default(), &service(options, number))
                .await?;
            write_slices(client, &name(number), &options.endpoints_of(number)).await
        })
        .await
    })
}

/// Creates the slices of one Service.
async fn write_slices(client: &Client, service: &str, endpoints: &[IpAddr]) -> kube::Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let chunks = endpoints.chunks(usize::try_from(SLICE_LEN).expect("32 bits fit"));
    stream::iter(chunks.enumerate())
        .map(Ok)
        .try_for_each(|(index, chunk)| {
            let slices = slices.clone();
            async move {
                let slice = slice(service, index, chunk);
                slices.create(&PostParams::default(), &slice).await.map(drop)
            }
        })
        .await
}

fn service(options: &BulkOptions, number: u32) -> Service {
    let port = ServicePort { name: Some("main".into()), port: PORT.into(), ..ServicePort::default() };
    let spec = ServiceSpec {
        cluster_ip: Some(options.address(number).to_string()),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let metadata = ObjectMeta { name: Some(name(number)), ..ObjectMeta::default() };
    Service { metadata, spec: Some(spec), status: None }
}

/// The n-th slice of a Service, every endpoint ready.
pub fn slice(service: &str, index: usize, endpoints: &[IpAddr]) -> EndpointSlice {
    let label = ("kubernetes.io/service-name".to_owned(), service.to_owned());
    let metadata = ObjectMeta {
        name: Some(format!("{service}-{index}")),
        labels: Some(BTreeMap::from([label])),
        ..ObjectMeta::default()
    };
    let ready = EndpointConditions { ready: Some(true), ..EndpointConditions::default() };
    let endpoint = |address: &IpAddr| Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(ready.clone()),
        ..Endpoint::default()
    };
    let port = EndpointPort {
        name: Some("main".into()),
        port: Some(PORT.into()),
        protocol: Some("TCP".into()),
        ..EndpointPort::default()
    };
    EndpointSlice {
        address_type: "IPv4".into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        metadata,
        ports: Some(vec![port]),
    }
}
