//! Publishes a generation to the workers (tables) and to the XDP program (BPF maps), in the right order.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use flowgate_control::log_limit::LogLimit;
use flowgate_control::{Entry, Update};
use flowgate_dataplane::{PipelineConfig, UnservedPorts};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{FrontendKind, PortSet, Publisher, Tables};
use flowgate_xsk::steering::{AttachReport, Device, StationKey, Steering, SteeringSet, VipKey};

use super::map_growth::MapGrowth;
use super::vlan_offload::VlanOffload;
use super::workers::StartContext;
use crate::config::OTHER_OWN_ADDRESSES;

/// The tables that workers see, and the maps that the XDP program sees.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) publisher: Publisher,
    pub(crate) steering: Steering,
    /// Whether workers answer the echo requests that VIPs receive.
    pub(crate) answers_echo: bool,
    /// Whether workers get what no Service has to all VIPs, and not only to cluster IPs.
    pub(crate) keeps_unserved: bool,
    /// Source ports of flows of an earlier process that `snat.ports` does not have: their replies are steered too.
    pub(crate) older_ports: PortSet,
    /// The receive VLAN offload of devices with VLANs.
    pub(crate) vlan_offload: VlanOffload,
    /// What the maps should hold, and what they lack.
    pub(crate) map_growth: MapGrowth,
    /// Of lines about generations that differ in routes or neighbours only: packets cause these.
    pub(crate) network_changes: LogLimit,
    /// The generation that is to be published next, while what it lacks is removed from the maps.
    pub(crate) next: Option<NextGeneration>,
}

/// A generation that is about to be published.
#[derive(Debug)]
pub(crate) struct NextGeneration {
    tables: Tables,
    wanted: SteeringSet,
    /// `answers_echo` and `keeps_unserved` that `wanted` was made with.
    choices: (bool, bool),
}

/// A generation, and what the maps should hold for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    tables: Tables,
    wanted: SteeringSet,
}

impl Prepared {
    /// Takes long in a large cluster: not for the control thread.
    pub(crate) fn new(update: Update) -> Self {
        let wanted = steering_set(&update.tables);
        Self { tables: update.tables, wanted }
    }
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

    /// Takes the next generation: to be published by [`withdraw_some`](Self::withdraw_some) until that is false,
    /// [`publish`](Self::publish), [`extend_some`](Self::extend_some) until that is false, and
    /// [`complete`](Self::complete). Each of them is short, whatever the maps hold, so that the supervisor does its other
    /// duties in between.
    pub(crate) fn take_up(&mut self, Prepared { tables, wanted }: Prepared) {
        let wanted = self.with_choices(wanted, &tables);
        self.next = Some(NextGeneration { tables, wanted, choices: self.choices() });
    }

    /// Removes from the maps a part of what the next generation lacks; true if there may be more of it.
    pub(crate) fn withdraw_some(&mut self) -> bool {
        self.next.as_ref().is_some_and(|next| self.steering.remove_some(&next.wanted))
    }

    /// The generation that [`publish`](Self::publish) makes current.
    pub(crate) fn next_tables(&self) -> Option<&Tables> {
        self.next.as_ref().map(|next| &next.tables)
    }

    /// Makes the next generation current. What the maps cannot hold passes to the kernel, see [`findings`](Self::findings),
    /// and is tried again by [`follow_up`](Self::follow_up); everything else is served.
    pub(crate) fn publish(&mut self) {
        let Some(NextGeneration { tables, mut wanted, choices }) = self.next.take() else { return };
        self.follow_devices(&tables);
        self.vlan_offload.configure(&tables.routing);
        if choices != self.choices() {
            wanted = self.with_choices(steering_set(&tables), &tables);
        }
        // The maps must never hold what the workers do not know: a redirected frame cannot be given back to the kernel. So stale
        // entries leave the maps before the tables change, and new ones enter them afterwards.
        self.map_growth.begin(&mut self.steering, wanted);
        self.publisher.publish(tables);
    }

    /// Adds to the maps a part of what the current generation has in addition; true if there may be more of it.
    pub(crate) fn extend_some(&mut self) -> bool {
        self.map_growth.complete_in_part(&mut self.steering)
    }

    /// Adds to the maps all the rest of the current generation.
    pub(crate) fn complete(&mut self, now: Instant) {
        self.map_growth.complete(&mut self.steering, now);
    }

    /// Lets the maps grow, and tries again what the kernel has refused. To be called periodically.
    pub(crate) fn follow_up(&mut self, now: Instant) {
        self.map_growth.follow_up(&mut self.steering, now);
    }

    /// What the maps lack, for the operator.
    pub(crate) fn findings(&self) -> Vec<Entry> {
        self.map_growth.findings()
    }

    /// Why this process is unhealthy, one sentence each.
    pub(crate) fn unhealthy_reasons(&self) -> impl Iterator<Item = String> {
        self.map_growth.unhealthy_reasons()
    }

    /// Which packets of VIPs workers get from now on.
    pub(crate) fn choose(&mut self, pipeline: &PipelineConfig, now: Instant) {
        let keeps_unserved = pipeline.unserved_ports != UnservedPorts::Pass;
        if self.choices() == (pipeline.echo_vips, keeps_unserved) {
            return;
        }
        (self.answers_echo, self.keeps_unserved) = (pipeline.echo_vips, keeps_unserved);
        let tables = self.publisher.current();
        let wanted = self.with_choices(steering_set(&tables), &tables);
        self.map_growth.begin(&mut self.steering, wanted);
        self.map_growth.complete(&mut self.steering, now);
    }

    fn choices(&self) -> (bool, bool) {
        (self.answers_echo, self.keeps_unserved)
    }

    /// Adds what does not follow from the tables.
    fn with_choices(&self, mut set: SteeringSet, tables: &Tables) -> SteeringSet {
        for port in self.older_ports.iter() {
            set.snat_ports.insert(port);
        }
        if self.answers_echo {
            set.answer_echo();
        }
        if !self.keeps_unserved {
            set.cluster_ips.retain(|addr| tables.services.unmatched(*addr).is_some());
        }
        set
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
    // Collected first: a tree is built from sorted values in a fraction of the time of single insertions.
    let mut vips = Vec::new();
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
            vips.push(vip_key(key));
        }
    }
    set.vips = vips.into_iter().collect();
    set.reply_sources = tables.services.reply_sources().map(vip_key).collect();
    // What no Service has is a worker's too, unless the address is the node's own, on whichever interface.
    let is_node = |addr: &IpAddr| tables.sources.is_node(*addr);
    set.cluster_ips = tables.services.cluster_ips().chain(set.vips.iter().map(|vip| vip.addr)).collect();
    set.cluster_ips.retain(|addr| !is_node(addr));
    let cidrs = tables.services.service_cidrs().iter();
    set.service_cidrs = cidrs.map(|net| (net.network(), net.prefix_len())).collect();
    let interfaces = tables.routing.interfaces().iter();
    set.serve_vlans(interfaces.clone().filter_map(|interface| {
        let vlan = interface.spec.vlan.as_ref()?;
        Some((tables.routing.interfaces().get(vlan.parent)?.spec.ifindex, vlan.id))
    }));
    set.stations = stations(tables).collect();
    set.own_addresses = interfaces.flat_map(|interface| &interface.spec.addresses).copied().collect();
    // Of other interfaces, those that are no VIPs: a device for the VIPs of a cluster may have all of these.
    let elsewhere = tables.sources.node_addresses().filter(|addr| !tables.services.is_vip(*addr));
    let elsewhere: BTreeSet<IpAddr> = elsewhere.filter(|addr| !set.own_addresses.contains(addr)).collect();
    set.own_addresses.extend(elsewhere.into_iter().take(OTHER_OWN_ADDRESSES as usize));
    set.snat_addresses = tables.snat.reply_addresses().iter().copied().collect();
    for &port in tables.snat.ports() {
        set.snat_ports.insert(port);
    }
    set
}

/// The Ethernet addresses to which frames are this machine's.
fn stations(tables: &Tables) -> impl Iterator<Item = StationKey> {
    let routing = &tables.routing;
    let own = routing.interfaces().iter().map(|interface| (interface.id, interface.spec.mac));
    let others = routing.other_stations().iter().filter_map(|station| {
        let interface = routing.interfaces().get(station.interface)?;
        Some((interface.id, station.mac))
    });
    own.chain(others).filter_map(|(interface, mac)| {
        let (device, vlan) = routing.device(interface);
        let ifindex = routing.interfaces().get(device.index())?.spec.ifindex;
        // A device without an address, such as a tunnel, receives no Ethernet frames.
        let is_station = ifindex != 0 && mac.0 != [0; 6];
        is_station.then_some(StationKey { ifindex, vlan: vlan.unwrap_or(0), address: mac.0 })
    })
}

#[cfg(test)]
mod agreement;
