//! What `lab up` prints: addresses and commands to try.

use std::net::SocketAddr;
use std::path::Path;

use super::{LabInstance, LabState};
use crate::lab::sample::{LOAD_BALANCER_IP, MYSQL, NGINX, node_port_address};
use crate::lab::topology::ipv6_of;

impl LabState {
    /// Addresses and commands to try.
    pub fn guide(&self, instance: &LabInstance, binary: &Path) -> String {
        let client = format!("ip netns exec {}client", instance.prefix);
        let (nginx, mysql) = (SocketAddr::from(NGINX), SocketAddr::from(MYSQL));
        let node_port = node_port_address();
        let socket = self.socket.as_deref().unwrap_or_else(|| Path::new("(starting)")).display();
        let binary = binary.display();
        let mut lines = vec![
            format!("my-nginx             http://{nginx}/ (ClusterIP)"),
            format!("my-nginx-nodeport    http://{node_port}/ (NodePort)"),
            format!("mysql                {mysql}"),
            format!(
                "my-nginx-dual-stack  http://{LOAD_BALANCER_IP}/ http://[{}]/ (LoadBalancer)",
                ipv6_of(LOAD_BALANCER_IP)
            ),
        ];
        if let Some(manifests) = &self.manifests {
            lines.push(format!("manifests            {}", manifests.display()));
        }
        if let Some(kubernetes) = &self.kubernetes {
            lines.push(format!("kubeconfig           {}", kubernetes.kubeconfig.display()));
        }
        lines.extend([
            format!("namespaces           {}", self.names.join(" ")),
            String::new(),
            "Try:".to_owned(),
            format!("  {client} curl http://{nginx}/"),
            format!("  {client} {binary} loadgen http --target {nginx} --path /bytes/16384"),
            format!("  {binary} show backends --socket {socket}"),
        ]);
        if self.kubernetes.is_some() {
            lines.push(format!("  {binary} lab kubectl -- get pods,services,endpointslices"));
            lines.push(format!("  {binary} lab kubectl -- scale deployment my-nginx --replicas 5"));
        }
        lines.push(format!("  {binary} lab down\n"));
        lines.join("\n")
    }
}
