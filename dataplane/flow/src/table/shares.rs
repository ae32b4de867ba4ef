//! Counts the flows of each client as they are inserted and removed.

use flowgate_wire::{FiveTuple, L4Port, Protocol};

use super::{FlowTable, NewFlow};
use crate::address::FlowAddress;
use crate::entry::{Identity, Side};
use crate::hash::FlowHash;

impl<A: FlowAddress> FlowTable<A> {
    /// The number of flows of the client with this address. All addresses of a /64 of IPv6 are one client.
    pub fn flows_of(&self, client: A) -> u32 {
        self.shares.flows.of(self.client_hash(client))
    }

    /// The number of flows of a client to the backend of `sent`, the tuple of its packets as they are sent to that backend, from
    /// source ports in the same block of [`PORT_BLOCK`].
    pub fn flows_in_port_block(&self, client: A, sent: &FiveTuple<A>) -> u32 {
        self.shares.ports.of(self.port_block_hash(client, sent))
    }

    /// Whose flow the entry with this identity belongs to.
    pub(super) fn client_of(identity: &Identity<A>) -> A {
        match identity.side {
            Side::Original => identity.tuple.src,
            Side::Reply => identity.translation.dst,
        }
    }

    /// Counts a flow that is about to be visible.
    pub(super) fn count(&self, flow: &NewFlow<A>) {
        let client = flow.original.tuple.src;
        self.shares.flows.add(self.client_hash(client));
        self.shares.ports.add(self.port_block_hash(client, &flow.reply.tuple.reversed()));
    }

    /// Takes back [`count`](Self::count) for a flow that was not inserted.
    pub(super) fn uncount(&self, flow: &NewFlow<A>) {
        self.remove_count(flow.original.tuple.src, &flow.reply.tuple.reversed());
    }

    /// Takes back [`count`](Self::count) for a flow whose original direction was removed.
    pub(super) fn uncount_removed(&self, original: &Identity<A>) {
        self.remove_count(original.tuple.src, &sent(original));
    }

    /// Counts an adopted flow by its original direction.
    pub(super) fn count_adopted(&self, original: &Identity<A>) {
        self.shares.flows.add(self.client_hash(original.tuple.src));
        self.shares.ports.add(self.port_block_hash(original.tuple.src, &sent(original)));
    }

    fn remove_count(&self, client: A, sent: &FiveTuple<A>) {
        self.shares.flows.remove(self.client_hash(client));
        self.shares.ports.remove(self.port_block_hash(client, sent));
    }

    fn client_hash(&self, client: A) -> FlowHash {
        let no_port = L4Port::new(0);
        let (src, dst) = (client.client(), A::UNSPECIFIED);
        self.key.hash(&FiveTuple { protocol: Protocol::Tcp, src, dst, src_port: no_port, dst_port: no_port })
    }

    fn port_block_hash(&self, client: A, sent: &FiveTuple<A>) -> FlowHash {
        let FiveTuple { protocol, dst, src_port, dst_port, .. } = *sent;
        let block = L4Port::new(src_port.number() & !(PORT_BLOCK - 1));
        self.key.hash(&FiveTuple { protocol, src: client.client(), dst, src_port: block, dst_port })
    }
}

/// The tuple of the packets of an original direction as they are sent to the backend.
fn sent<A: FlowAddress>(original: &Identity<A>) -> FiveTuple<A> {
    let translation = &original.translation;
    FiveTuple {
        protocol: original.tuple.protocol,
        src: translation.src,
        dst: translation.dst,
        src_port: translation.src_port,
        dst_port: translation.dst_port,
    }
}

/// Source ports are counted in blocks of so many, a power of two: with a share of each block a client has its share of the
/// ports of every worker, whose ports are a slice of all, and an entry need not tell which worker's it is.
pub const PORT_BLOCK: u16 = 256;
