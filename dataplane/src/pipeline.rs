//! The way of a packet through a worker, for a burst at a time.
//!
//! Three passes over the burst, so that no packet waits for memory that could have been on its way:
//! headers are prefetched; parsed, hashed and the tags of their buckets prefetched; then each packet is
//! decided and rewritten, while the tags of one some way behind it are compared and its entry prefetched.
//! Everything comes in as an argument. Never reads a clock, takes a lock, allocates, logs or makes a system call.

mod context;
mod established;
mod family;
mod fragments;
mod icmp;
mod mss;
mod neighbours;
mod open;
mod router;
pub mod select;
mod staged;

use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_flow::prefetch;
use flowgate_tables::routing::NeighbourKey;
use flowgate_wire::{EtherType, Malformed, Parsed};

use crate::burst::{BURST, RxChecksums, WorkerNumber};
use crate::counters::Counters;
use crate::exhaustion::Exhaustion;
use crate::verdict::{AwaitedFragment, DropReason, PassReason, Verdict};
pub use context::Context;
use context::SlowPath;
pub use family::Family;
pub(crate) use fragments::EXPECTED_MS;
use router::Router;
use staged::{Staged, stage};

/// How many packets before its own the entry of a packet is asked for, at least. Fewer are not there in time, more push one
/// another out of the first-level cache.
const AHEAD: usize = 16;

/// Decides a burst of frames and rewrites those that are to be sent.
pub trait Process {
    /// Puts the fate of `frames[i]` into `verdicts[i]`. Both have the same length, [`BURST`] at most.
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    );

    /// Neighbours that are to be resolved since the last call, each handed to `ask`.
    fn drain_requests(&mut self, ask: impl FnMut(NeighbourKey));

    /// Packets whose awaited fragment has come since the last call, each handed to `ready`: what waits for them is
    /// to be decided again.
    fn drain_ready(&mut self, ready: impl FnMut(AwaitedFragment));

    /// Hands each new exhaustion event to `report`, which returns whether it was accepted.
    fn drain_exhaustions(&mut self, report: impl FnMut(Exhaustion) -> bool);
}

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    v4: Box<[Staged<Ipv4Addr>; BURST]>,
    v6: Box<[Staged<Ipv6Addr>; BURST]>,
    router: Router,
}

impl Pipeline {
    /// The pipeline of one worker.
    pub fn new(worker: WorkerNumber) -> Self {
        Self {
            v4: Box::new([Staged::EMPTY; BURST]),
            v6: Box::new([Staged::EMPTY; BURST]),
            router: Router::new(worker),
        }
    }

    /// The passes for the frames of a burst that are no IPv4, given by the bits of `others`. A function of its
    /// own, so that the loops over IPv4 keep their registers.
    #[inline(never)]
    fn process_others<F: AsMut<[u8]>>(
        &mut self,
        others: u64,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        let Self { v6, router, .. } = self;
        let mut segments = 0_u64;
        for i in set_bits(others) {
            let frame = frames[i].as_mut();
            verdicts[i] = match EtherType::of(frame) {
                Some(EtherType::Ipv6) => match stage(frame, &mut v6[i % BURST], context) {
                    None => {
                        segments |= 1 << i;
                        continue;
                    }
                    Some(other) => not_a_segment(other),
                },
                Some(_) => Verdict::Pass(PassReason::NotIp),
                None => Verdict::Drop(DropReason::Malformed),
            };
        }
        let mut ahead = set_bits(segments);
        for i in ahead.by_ref().take(AHEAD) {
            context.flows.v6.prefetch(&mut v6[i % BURST].probe);
        }
        for (n, i) in set_bits(others).enumerate() {
            // Four at a time, so that their misses of the TLB overlap as well.
            if n % 4 == 0 {
                for next in ahead.by_ref().take(4) {
                    context.flows.v6.prefetch(&mut v6[next % BURST].probe);
                }
            }
            let (frame, verdict) = (frames[i].as_mut(), &mut verdicts[i]);
            if segments & (1 << i) != 0 {
                router.decide(frame, &v6[i % BURST], checksums, context, counters, verdict);
            } else {
                let slow = &mut SlowPath { context, counters, checksums };
                router.handle_non_l4(frame, slow, verdict);
            }
        }
    }
}

impl Process for Pipeline {
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        assert!(
            frames.len() <= BURST && frames.len() == verdicts.len(),
            "a verdict for each frame of a burst"
        );
        for frame in frames.iter_mut() {
            prefetch(frame.as_mut());
        }
        let v4 = &mut self.v4[..frames.len()];
        let (mut segments, mut others) = (0_u64, 0_u64);
        for (i, ((frame, verdict), staged)) in
            frames.iter_mut().zip(verdicts.iter_mut()).zip(v4.iter_mut()).enumerate()
        {
            let frame = frame.as_mut();
            if EtherType::of(frame) != Some(EtherType::Ipv4) {
                others |= 1 << i;
                continue;
            }
            match stage(frame, staged, context) {
                None => segments |= 1 << i,
                Some(other) => *verdict = not_a_segment(other),
            }
        }
        if (others.count_ones() as usize) < frames.len() {
            // Harmless for a frame that is no segment: an old probe, whose entry is loaded for nothing.
            for staged in v4.iter_mut().take(AHEAD) {
                context.flows.v4.prefetch(&mut staged.probe);
            }
            for (i, (frame, verdict)) in frames.iter_mut().zip(verdicts.iter_mut()).enumerate() {
                if let Some(staged) = v4.get_mut(i + AHEAD) {
                    context.flows.v4.prefetch(&mut staged.probe);
                }
                if segments & (1 << i) != 0 {
                    self.router.decide(frame.as_mut(), &v4[i], checksums, context, counters, verdict);
                } else if others & (1 << i) == 0 {
                    let slow = &mut SlowPath { context, counters, checksums };
                    self.router.handle_non_l4(frame.as_mut(), slow, verdict);
                }
            }
        }
        if others != 0 {
            self.process_others(others, frames, checksums, context, counters, verdicts);
        }
    }

    fn drain_requests(&mut self, ask: impl FnMut(NeighbourKey)) {
        self.router.requests.drain(ask);
    }

    fn drain_ready(&mut self, ready: impl FnMut(AwaitedFragment)) {
        self.router.fragments.drain_ready(ready);
    }

    fn drain_exhaustions(&mut self, report: impl FnMut(Exhaustion) -> bool) {
        self.router.exhaustions.drain(report);
    }
}

/// The positions of the bits that are set, ascending.
#[inline(always)]
fn set_bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(position)
    })
}

#[cold]
fn not_a_segment<A>(parsed: Result<Parsed<A>, Malformed>) -> Verdict {
    match parsed {
        Err(_) => Verdict::Drop(DropReason::Malformed),
        Ok(Parsed::Fragment) => Verdict::Pass(PassReason::Fragment),
        Ok(Parsed::NotL4 | Parsed::Icmp | Parsed::L4(_)) => Verdict::Pass(PassReason::NotL4),
    }
}
