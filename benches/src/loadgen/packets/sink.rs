//! Counts packets where they arrive.

use std::thread;
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use serde::Serialize;

use super::interface_index;
use crate::clock;
use crate::error::{Error, Result};
use crate::loadgen::report::per_second;

/// What to count.
#[derive(Debug, Clone, Copy)]
pub struct SinkOptions {
    /// The destination port; `None` for every port.
    pub port: Option<u16>,
    /// The IP protocol number; `None` for TCP and UDP.
    pub ip_proto: Option<u8>,
    /// The fate of a counted packet.
    pub action: SinkAction,
}

/// The fate of a counted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkAction {
    /// Drop it: the cheapest receiver.
    Drop,
    /// Pass it to the kernel.
    Pass,
}

/// An XDP program on an interface; detached when dropped.
pub struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// Attaches to an interface of the calling thread's namespace.
    pub fn attach(interface: &str, options: SinkOptions) -> Result<Self> {
        let index = interface_index(interface)?;
        let action: u8 = match options.action {
            SinkAction::Drop => 1,
            SinkAction::Pass => 2,
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("port_be", &options.port.unwrap_or_default().to_be(), true)
            .override_global("ip_proto", &options.ip_proto.unwrap_or_default(), true)
            .override_global("action", &action, true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.o")))
            .map_err(Error::bpf("load the sink (needs root and a kernel with BPF)"))?;
        let program: &mut Xdp = ebpf
            .program_mut("sink")
            .expect("the object holds this program")
            .try_into()
            .expect("the program is of type XDP");
        program.load().map_err(Error::bpf("load the sink (needs root, or CAP_BPF and CAP_NET_ADMIN)"))?;
        program.attach_to_if_index(index, XdpMode::Driver).map_err(Error::bpf(format!(
            "attach the sink to {interface} (is another XDP program attached?)"
        )))?;
        Ok(Self { ebpf })
    }

    /// Counters since it was attached.
    pub fn counters(&self) -> Result<SinkCounters> {
        let map = self.ebpf.map("counters").expect("the object holds this map");
        let counters: PerCpuArray<&MapData, [u64; 3]> =
            PerCpuArray::try_from(map).map_err(Error::bpf("open the sink's counters"))?;
        let counters = counters.get(&0, 0).map_err(Error::bpf("read the sink's counters"))?;
        Ok(counters.iter().fold(SinkCounters::default(), |sum, [packets, bytes, others]| SinkCounters {
            packets: sum.packets + packets,
            bytes: sum.bytes + bytes,
            others: sum.others + others,
        }))
    }

    /// Counts for `duration`.
    pub fn measure(&self, duration: Duration) -> Result<SinkRate> {
        let (before, begin) = (self.counters()?, clock::now());
        thread::sleep(duration);
        let (after, seconds) = (self.counters()?, begin.elapsed().as_secs_f64());
        let packets = after.packets - before.packets;
        Ok(SinkRate { seconds, packets, per_second: per_second(packets, seconds) })
    }
}

/// The counters of a sink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SinkCounters {
    /// Matching packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// All other packets.
    pub others: u64,
}

/// A measured rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SinkRate {
    /// Duration in seconds.
    pub seconds: f64,
    /// Packets.
    pub packets: u64,
    /// Packets per second.
    pub per_second: f64,
}
