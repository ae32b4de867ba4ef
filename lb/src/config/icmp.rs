//! The section `[icmp]`: what is answered to echo requests.

use flowgate_dataplane::PipelineConfig;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Icmp {
    echo_vips: bool,
}

impl Default for Icmp {
    fn default() -> Self {
        Self { echo_vips: PipelineConfig::default().echo_vips }
    }
}

impl Icmp {
    pub(super) const fn apply_to(&self, pipeline: &mut PipelineConfig) {
        pipeline.echo_vips = self.echo_vips;
    }
}
