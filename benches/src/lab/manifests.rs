//! Writes Services and EndpointSlices into the gateway's manifest directory. Each write is a rename, so that the gateway
//! reads complete files only.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::topology::ipv6_of;
use crate::error::{Error, Result};

/// A directory of manifests.
#[derive(Debug, Clone)]
pub struct ManifestDir {
    path: PathBuf,
}

impl ManifestDir {
    /// Creates the directory, if needed.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(Error::io(format!("make folder {}", path.display())))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes or replaces the file `name` atomically.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let (target, draft) = (self.path.join(name), self.path.join(format!(".{name}.draft")));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &target))
            .map_err(Error::io(format!("write {}", target.display())))
    }

    /// Removes the file `name`; no error if there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        let target = self.path.join(name);
        match fs::remove_file(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(Error::io(format!("remove {}", target.display()))),
        }
    }

    /// Writes a Service and the EndpointSlice of its backends.
    pub fn apply(&self, service: &ServiceSpec, backends: &[Ipv4Addr]) -> Result<()> {
        self.write(&format!("{}-service.yaml", service.name), &service.yaml())?;
        self.set_endpoints(service, backends)
    }

    /// Replaces the EndpointSlice of a Service.
    pub fn set_endpoints(&self, service: &ServiceSpec, backends: &[Ipv4Addr]) -> Result<()> {
        self.write(&format!("{}-endpoints.yaml", service.name), &service.endpoint_slice_yaml(backends))
    }
}

/// The properties of a Service that the lab varies.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Its name; the namespace is `default`.
    pub name: String,
    /// Its ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its address families.
    pub families: Families,
}

/// The address families of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    V4,
    /// Both families, IPv4 first; ClusterIP and backends have the IPv6 addresses of [`ipv6_of`].
    Dual,
}

/// One port of a Service.
#[derive(Debug, Clone)]
pub struct ServicePort {
    /// Its name.
    pub name: String,
    /// Its transport.
    pub protocol: L4Protocol,
    /// The port at the ClusterIP.
    pub port: u16,
    /// The port of the backends.
    pub target_port: u16,
    /// The NodePort, which makes the Service one of type NodePort.
    pub node_port: Option<u16>,
}

/// The transport of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl L4Protocol {
    /// The name in Kubernetes objects.
    pub fn kubernetes_name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl ServiceSpec {
    /// A Service with one port.
    pub fn single(
        name: &str,
        cluster_ip: Ipv4Addr,
        protocol: L4Protocol,
        port: u16,
        target_port: u16,
    ) -> Self {
        let port = ServicePort { name: "main".into(), protocol, port, target_port, node_port: None };
        Self { name: name.into(), cluster_ip, ports: vec![port], families: Families::V4 }
    }

    /// The same Service for both address families.
    pub fn dual_stack(mut self) -> Self {
        self.families = Families::Dual;
        self
    }

    /// The same Service, its first port also a NodePort.
    pub fn with_node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.first_mut() {
            port.node_port = Some(node_port);
        }
        self
    }

    /// The manifest of the Service and those of its EndpointSlices.
    pub(crate) fn manifests(&self, backends: &[Ipv4Addr]) -> String {
        format!("{}---\n{}", self.yaml(), self.endpoint_slice_yaml(backends))
    }

    fn yaml(&self) -> String {
        let Self { name, cluster_ip, .. } = self;
        let kind =
            if self.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let (policy, families, addresses) = match self.families {
            Families::V4 => ("SingleStack", "IPv4", cluster_ip.to_string()),
            Families::Dual => {
                ("RequireDualStack", "IPv4, IPv6", format!("{cluster_ip}, \"{}\"", ipv6_of(*cluster_ip)))
            }
        };
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  type: {kind}\n  \
             clusterIP: {cluster_ip}\n  clusterIPs: [{addresses}]\n  ipFamilyPolicy: {policy}\n  ipFamilies: [{families}]\n  selector:\n    app: {name}\n  ports:\n"
        );
        for port in &self.ports {
            let ServicePort { name, protocol, port, target_port, node_port } = port;
            let protocol = protocol.kubernetes_name();
            let node_port = node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
            writeln!(
                yaml,
                "  - {{name: {name}, protocol: {protocol}, port: {port}, targetPort: {target_port}{node_port}}}"
            )
            .expect("writing to a String cannot fail");
        }
        yaml
    }

    /// One EndpointSlice per family.
    fn endpoint_slice_yaml(&self, backends: &[Ipv4Addr]) -> String {
        let v4 = self.slice_yaml("IPv4", backends.iter().copied().map(IpAddr::V4));
        match self.families {
            Families::V4 => v4,
            Families::Dual => {
                let v6 =
                    self.slice_yaml("IPv6", backends.iter().map(|&backend| IpAddr::V6(ipv6_of(backend))));
                format!("{v4}---\n{v6}")
            }
        }
    }

    fn slice_yaml(&self, family: &str, backends: impl ExactSizeIterator<Item = IpAddr>) -> String {
        let Self { name, .. } = self;
        let mut yaml = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-lab-{}\n  namespace: \
             default\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n",
            family.to_lowercase()
        );
        for ServicePort { name, protocol, target_port, .. } in &self.ports {
            let protocol = protocol.kubernetes_name();
            writeln!(yaml, "- {{name: {name}, protocol: {protocol}, port: {target_port}}}")
                .expect("writing to a String cannot fail");
        }
        yaml.push_str(if backends.len() == 0 { "endpoints: []\n" } else { "endpoints:\n" });
        for backend in backends {
            writeln!(yaml, "- {{addresses: [\"{backend}\"], conditions: {{ready: true}}}}")
                .expect("writing to a String cannot fail");
        }
        yaml
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_slice_leaves_no_draft_and_lists_the_new_backends() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = ManifestDir::create(folder.path().join("manifests")).unwrap();
        let service = ServiceSpec::single("web", Ipv4Addr::new(10, 96, 0, 9), L4Protocol::Tcp, 80, 8080)
            .with_node_port(30_080);
        let first = [Ipv4Addr::new(10, 244, 0, 11), Ipv4Addr::new(10, 244, 0, 12)];
        manifests.apply(&service, &first).unwrap();
        manifests.set_endpoints(&service, &first[..1]).unwrap();

        let mut names: Vec<_> =
            fs::read_dir(manifests.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["web-endpoints.yaml", "web-service.yaml"]);
        let slice = fs::read_to_string(manifests.path().join("web-endpoints.yaml")).unwrap();
        assert!(slice.contains("10.244.0.11") && !slice.contains("10.244.0.12"), "{slice}");
        let service = fs::read_to_string(manifests.path().join("web-service.yaml")).unwrap();
        assert!(service.contains("type: NodePort") && service.contains("nodePort: 30080"), "{service}");
    }

    #[test]
    fn a_service_of_both_families_has_a_slice_of_each() {
        let service =
            ServiceSpec::single("web", Ipv4Addr::new(10, 96, 0, 9), L4Protocol::Tcp, 80, 8080).dual_stack();
        assert!(
            service.yaml().contains("clusterIPs: [10.96.0.9, \"2001:db8:10:96::9\"]"),
            "{}",
            service.yaml()
        );
        let slices = service.endpoint_slice_yaml(&[Ipv4Addr::new(10, 244, 0, 11)]);
        let (v4, v6) = slices.split_once("---\n").unwrap();
        assert!(v4.contains("addressType: IPv4") && v4.contains("\"10.244.0.11\""), "{v4}");
        assert!(v6.contains("addressType: IPv6") && v6.contains("\"2001:db8:10:244::11\""), "{v6}");
    }

    #[test]
    fn removing_a_file_that_is_not_there_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = ManifestDir::create(folder.path()).unwrap();
        manifests.write("a.yaml", "kind: List\n").unwrap();
        manifests.remove("a.yaml").unwrap();
        manifests.remove("a.yaml").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
