//! Files and command-line arguments of the control plane.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::lab::topology::{SERVICE_RANGE, SERVICE_RANGE_V6};

/// Where the API server listens.
pub(super) const API_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 6443);
/// Where etcd listens, inside the control plane's namespace.
pub(super) const ETCD: &str = "127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
/// The token of the only user, an administrator. Only the lab's namespaces can reach the API server.
const TOKEN: &str = "lab";

/// The controllers for EndpointSlices and pods, and for clean-up. The node lifecycle controllers are left out, because
/// they would evict pods from nodes without a kubelet.
const CONTROLLERS: [&str; 9] = [
    "deployment-controller",
    "replicaset-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "endpoints-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "service-cidr-controller",
    "serviceaccount-controller",
];

/// The files of a control plane, all in one folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    pub(super) fn service_account_key(&self) -> PathBuf {
        self.folder.join("service-account.key")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The certificate that the API server generates for itself, with its CA.
    fn certificate(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }

    fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    fn tokens(&self) -> PathBuf {
        self.folder.join("tokens.csv")
    }

    /// Writes the files that must exist before the first start.
    pub(super) fn write(&self) -> Result<()> {
        self.write_file(&self.tokens(), &format!("{TOKEN},lab,lab,system:masters\n"))?;
        self.write_file(&self.kubeconfig(), &self.kubeconfig_for(TOKEN))
    }

    /// A kubeconfig for the bearer of `token`.
    pub(super) fn kubeconfig_for(&self, token: &str) -> String {
        let (address, port) = API_SERVER;
        let certificate = self.certificate();
        let certificate = certificate.display();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: \
             lab}}\nclusters:\n- name: lab\n  cluster:\n    server: https://{address}:{port}\n    \
             certificate-authority: {certificate}\nusers:\n- name: lab\n  user:\n    token: {token}\n"
        )
    }

    pub(super) fn write_file(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn etcd_arguments(&self) -> Vec<String> {
        vec![
            format!("--data-dir={}", self.folder.join("etcd").display()),
            format!("--listen-client-urls=http://{ETCD}"),
            format!("--advertise-client-urls=http://{ETCD}"),
            format!("--listen-peer-urls={ETCD_PEERS}"),
            format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            format!("--initial-cluster=default={ETCD_PEERS}"),
            // The data ends with the lab: waiting for the disk at each write would only make it slow.
            "--unsafe-no-fsync".into(),
            "--logger=zap".into(),
            "--log-level=warn".into(),
        ]
    }

    pub(super) fn api_server_arguments(&self) -> Vec<String> {
        let (address, port) = API_SERVER;
        let key = self.service_account_key();
        let key = key.display();
        vec![
            "kube-apiserver".into(),
            format!("--etcd-servers=http://{ETCD}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.certificates().display()),
            format!("--service-cluster-ip-range={SERVICE_RANGE},{SERVICE_RANGE_V6}"),
            format!("--token-auth-file={}", self.tokens().display()),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            // Without a kubelet nothing mounts the tokens that this plugin requires.
            "--disable-admission-plugins=ServiceAccount".into(),
        ]
    }

    pub(super) fn controllers_arguments(&self) -> Vec<String> {
        vec![
            "kube-controller-manager".into(),
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--service-account-private-key-file={}", self.service_account_key().display()),
            format!("--controllers={}", CONTROLLERS.join(",")),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            // So that bursts of objects do not wait for the client-side rate limit.
            "--kube-api-qps=1000".into(),
            "--kube-api-burst=2000".into(),
        ]
    }
}
