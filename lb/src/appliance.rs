//! What serves while `flowgate run` runs: sockets and workers, the tables and BPF maps that they use, and the supervisor.
//! Read [`workers`] first, then [`supervisor`]. Imports neither commands nor admin nor metrics.

pub(crate) mod exhaustion;
pub(crate) mod flow_files;
mod frames;
pub(crate) mod host;
mod interfaces;
pub(crate) mod map_growth;
pub(crate) mod prove;
pub(crate) mod publish;
pub(crate) mod reexec;
pub(crate) mod sockets;
pub(crate) mod source_ports;
pub(crate) mod supervisor;
pub(crate) mod vlan_offload;
pub(crate) mod workers;

use publish::Publishing;
use workers::Workers;

/// All that serves. The [supervisor](supervisor::Supervisor) owns it; other tasks send the supervisor a request.
pub(crate) struct Appliance {
    pub(crate) workers: Workers,
    pub(crate) publishing: Publishing,
}
