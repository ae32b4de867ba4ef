//! The servers of a pod: HTTP for each TCP port of its containers, echo for each UDP port. All answer with the name of the pod.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::error::Result;
use crate::lab::servers::echo::{EchoAnswer, EchoOptions, UdpEchoServer};
use crate::lab::servers::http::{HttpServer, HttpServerOptions};
use crate::lab::topology::Host;

/// The servers of a pod; stopped when dropped.
pub(super) struct PodServers {
    http: Vec<HttpServer>,
    udp: Vec<UdpEchoServer>,
}

impl PodServers {
    /// Starts a server for each port that the pod declares.
    pub(super) fn start(pod: &Pod, host: &Host) -> Result<Self> {
        let name = pod.name_any();
        let mut servers = Self { http: Vec::new(), udp: Vec::new() };
        for (port, protocol) in ports(pod) {
            let listen = SocketAddr::from((host.address, port));
            match protocol {
                "UDP" => {
                    let options = EchoOptions { listen, ..EchoOptions::new(&name, port, EchoAnswer::Name) };
                    servers.udp.push(UdpEchoServer::start(&host.namespace, options)?);
                }
                _ => {
                    let options = HttpServerOptions { listen, ..HttpServerOptions::new(&name, port) };
                    servers.http.push(HttpServer::start(&host.namespace, options)?);
                }
            }
        }
        Ok(servers)
    }

    /// Answered requests and datagrams.
    pub(super) fn answers(&self) -> u64 {
        let http: u64 = self.http.iter().map(HttpServer::requests).sum();
        http + self.udp.iter().map(|server| server.clients().total()).sum::<u64>()
    }

    /// Drains connections, at most `limit`, and ends. Returns how many were cut off.
    pub(super) fn drain(self, limit: Duration) -> u64 {
        self.http.into_iter().map(|server| server.drain(limit)).sum()
    }
}

fn ports(pod: &Pod) -> impl Iterator<Item = (u16, &str)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let number = u16::try_from(port.container_port).ok()?;
        Some((number, port.protocol.as_deref().unwrap_or("TCP")))
    })
}
