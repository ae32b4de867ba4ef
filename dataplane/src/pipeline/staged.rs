//! The second pass of a burst: parse, hash, and begin the lookup in the flow table.

use flowgate_flow::Probe;
use flowgate_wire::{Address, Malformed, Packet, Parsed};

use super::{Context, Family};

/// A packet between the second and the third pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged<A> {
    pub(super) packet: Packet<A>,
    pub(super) probe: Probe,
}

impl<A: Address> Staged<A> {
    pub(super) const EMPTY: Self = Self { packet: Packet::EMPTY, probe: Probe::EMPTY };
}

impl<A: Family> Staged<A> {
    /// Stores a packet and begins its lookup.
    #[inline(always)]
    fn put(&mut self, packet: Packet<A>, context: &Context<'_>) {
        self.probe = A::table(context.flows).probe(&packet.tuple);
        self.packet = packet;
    }
}

/// Parses a frame and begins its lookup; returns the outcome of parsing if it is no L4 packet.
#[inline(always)]
pub(super) fn stage<A: Family>(
    frame: &[u8],
    staged: &mut Staged<A>,
    context: &Context<'_>,
) -> Option<Result<Parsed<A>, Malformed>> {
    match A::parse_fast(frame) {
        Some(packet) => {
            staged.put(packet, context);
            None
        }
        None => stage_slow(frame, staged, context),
    }
}

/// The same for a frame with IP options, extension headers, or no L4 packet.
#[cold]
#[inline(never)]
fn stage_slow<A: Family>(
    frame: &[u8],
    staged: &mut Staged<A>,
    context: &Context<'_>,
) -> Option<Result<Parsed<A>, Malformed>> {
    match A::parse(frame) {
        Ok(Parsed::L4(packet)) => {
            staged.put(packet, context);
            None
        }
        other => Some(other),
    }
}
