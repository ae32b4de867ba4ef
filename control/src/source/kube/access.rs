//! Address and credentials of the API server: from a kubeconfig, or from the service account of a pod.
//!
//! Credentials are read whenever a client is made, and one is made after each failure: a corrected kubeconfig, a
//! renewed client certificate or a rotated token take effect without a restart. In between, kube-client reads a token
//! file again once a minute and goes on with the token it has if that fails.

use std::fmt;
use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::error_chain::error_chain;

/// Where address and credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// This kubeconfig.
    Kubeconfig(PathBuf),
    /// The kubeconfig that kubectl would take: `$KUBECONFIG`, else `~/.kube/config`.
    DefaultKubeconfig,
    /// The service account of the pod that this runs in.
    InCluster,
}

/// Why no client could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{access}: {reason}")]
pub struct AccessError {
    access: Access,
    reason: String,
}

impl Access {
    /// A client with fresh credentials, and the server's address. Its requests have no time limit and are not
    /// repeated.
    pub(super) async fn client(&self) -> Result<(Client, String), AccessError> {
        let mut config = self.config().await?;
        // The reflector has a back-off of its own.
        config.default_retry = false;
        let cluster = config.cluster_url.to_string();
        // Blocking: a credential plugin, if one is configured, is run to its end.
        let made = tokio::task::spawn_blocking(move || Client::try_from(config)).await;
        match made {
            Ok(made) => Ok((made.map_err(|error| self.error(&error))?, cluster)),
            Err(panicked) => Err(self.error(&panicked)),
        }
    }

    /// The address of the API server, which names the cluster.
    pub(super) async fn cluster(&self) -> Result<String, AccessError> {
        Ok(self.config().await?.cluster_url.to_string())
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let read = match self {
            Self::Kubeconfig(path) => Kubeconfig::read_from(path),
            Self::DefaultKubeconfig => Kubeconfig::read(),
            Self::InCluster => return Config::incluster().map_err(|error| self.error(&error)),
        };
        let read = read.map_err(|error| self.error(&error))?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        config.map_err(|error| self.error(&error))
    }

    fn error(&self, error: &(dyn std::error::Error + 'static)) -> AccessError {
        AccessError { access: self.clone(), reason: error_chain(error) }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(path) => write!(f, "kubeconfig {}", path.display()),
            Self::DefaultKubeconfig => f.write_str("kubeconfig ($KUBECONFIG, else ~/.kube/config)"),
            Self::InCluster => f.write_str("the service account of this pod"),
        }
    }
}
