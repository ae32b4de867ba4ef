//! The section `[node]`: what only the role `node` needs.

use flowgate_control::{CompileConfig, LocalPods};
use ipnet::IpNet;
use serde::Deserialize;

use super::value::word;

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    #[serde(deserialize_with = "word")]
    detect_local: DetectLocal,
    cluster_cidrs: Vec<IpNet>,
    masquerade_all: bool,
    localhost_nodeports: bool,
}

/// How pods of this node are recognised.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum DetectLocal {
    #[default]
    ClusterCidr,
    NodeCidr,
    None,
}

impl Node {
    pub(super) fn apply_to(&self, compile: &mut CompileConfig) {
        compile.local_pods = match self.detect_local {
            DetectLocal::ClusterCidr => LocalPods::ClusterCidr(self.cluster_cidrs.clone()),
            DetectLocal::NodeCidr => LocalPods::NodeCidr,
            DetectLocal::None => LocalPods::Unknown,
        };
        compile.masquerade_all = self.masquerade_all;
        compile.localhost_nodeports = self.localhost_nodeports;
    }
}
