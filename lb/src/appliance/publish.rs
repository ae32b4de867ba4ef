//! Publishes a generation to the workers (tables) and to the XDP program (BPF maps), in the right order.

use flowgate_control::Update;
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{FrontendKind, Publisher, Tables};
use flowgate_xsk::steering::{AttachReport, Device, Steering, SteeringError, SteeringSet, VipKey};

use super::vlan_offload::VlanOffload;
use super::workers::StartContext;

/// The tables that workers see, and the maps that the XDP program sees.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) publisher: Publisher,
    pub(crate) steering: Steering,
    /// Whether workers answer the echo requests that VIPs receive.
    pub(crate) answers_echo: bool,
    /// The receive VLAN offload of devices with VLANs.
    pub(crate) vlan_offload: VlanOffload,
}

impl Publishing {
    /// What workers are started with now.
    pub(crate) fn start_context(&self) -> StartContext<'_> {
        StartContext {
            attached: self.steering.report(),
            publisher: &self.publisher,
            map: self.steering.sockets(),
        }
    }

    /// The devices of all interfaces as they are now.
    pub(super) fn devices(&self) -> Vec<Option<Device>> {
        self.steering.report().iter().map(|report| Device::named(&report.interface)).collect()
    }

    /// Makes a generation current.
    ///
    /// # Errors
    /// A map cannot be changed. The maps then have less than the tables, and traffic of the rest passes to the kernel.
    pub(crate) fn publish(&mut self, update: Update) -> Result<(), SteeringError> {
        self.follow_devices(&update.tables);
        self.vlan_offload.configure(&update.tables.routing);
        let mut wanted = steering_set(&update.tables);
        if self.answers_echo {
            wanted.answer_echo();
        }
        // The maps must never hold what the workers do not know: a redirected frame cannot be given back to the kernel. So stale
        // entries leave the maps before the tables change, and new ones enter them afterwards.
        self.steering.remove_stale(&wanted)?;
        self.publisher.publish(update.tables);
        self.steering.add_new(&wanted)
    }

    /// Attaches the program to devices that were created anew, before their sockets are opened: without it the kernel would
    /// reset our flows as soon as the device has its addresses again.
    fn follow_devices(&mut self, tables: &Tables) {
        // The interfaces begin with the devices, in the order of the report; VLANs follow. A device that is gone has ifindex 0.
        let served = tables.routing.interfaces().iter().map(|interface| interface.spec.ifindex);
        let is_new = |(now, attached): (u32, &AttachReport)| now != 0 && now != attached.ifindex;
        if !served.zip(self.steering.report()).any(is_new) {
            return;
        }
        for error in self.steering.reattach().err().into_iter().flatten() {
            // The supervisor tries again when it reopens the sockets, and logs the error then.
            tracing::debug!("a device that was created anew is not served yet: {error}");
        }
    }
}

fn vip_key(key: &ServiceKey) -> VipKey {
    VipKey { addr: key.addr, port: key.port.number(), protocol: key.protocol.number() }
}

fn steering_set(tables: &Tables) -> SteeringSet {
    let mut set = SteeringSet::default();
    for frontend in tables.services.frontends() {
        let (key, port) = (&frontend.key, frontend.key.port.number());
        if frontend.kind == FrontendKind::NodePort {
            set.node_addresses.insert(key.addr);
            match key.protocol {
                flowgate_wire::Protocol::Tcp => set.nodeports_tcp.insert(port),
                flowgate_wire::Protocol::Udp => set.nodeports_udp.insert(port),
                flowgate_wire::Protocol::Sctp => set.nodeports_sctp.insert(port),
            };
        } else {
            set.vips.insert(vip_key(key));
        }
    }
    set.reply_sources = tables.services.reply_sources().map(vip_key).collect();
    set.cluster_ips = tables.services.cluster_ips().collect();
    let cidrs = tables.services.service_cidrs().iter();
    set.service_cidrs = cidrs.map(|net| (net.network(), net.prefix_len())).collect();
    let interfaces = tables.routing.interfaces().iter();
    set.serve_vlans(interfaces.clone().filter_map(|interface| {
        let vlan = interface.spec.vlan.as_ref()?;
        Some((tables.routing.interfaces().get(vlan.parent)?.spec.ifindex, vlan.id))
    }));
    set.own_addresses = interfaces.flat_map(|interface| &interface.spec.addresses).copied().collect();
    set.snat_addresses = tables.snat.reply_addresses().iter().copied().collect();
    for &port in tables.snat.ports() {
        set.snat_ports.insert(port);
    }
    set
}
