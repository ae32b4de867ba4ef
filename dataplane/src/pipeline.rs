//! The way of a burst of packets through a worker.
//!
//! Three passes over the burst hide the latency of memory. A flow table of a million flows is far larger than the caches:
//! a lookup costs two misses (bucket, entry) of some 100 ns each, and a packet has less than that in all.
//!
//! 1. Prefetch the headers of all frames.
//! 2. Parse and hash each packet, and prefetch the tags of its bucket in the flow table ([`staged`]).
//! 3. Decide and rewrite each packet ([`router`]). Before that compare the tags of the packet [`AHEAD`] places further on
//!    and prefetch its entry, so that the entry is in the cache when its turn comes.
//!
//! Which frame takes part in which loop is held in the bits of a `u64`, one per frame of the burst: `segments` are parsed
//! L4 packets, `others` are not IPv4. A test of a bit is cheaper than an enum per frame, and the positions of set bits are
//! walked without a branch per frame.
//!
//! Everything comes in as an argument: the pipeline reads no clock, allocates nothing and does not log. Looking a flow up takes
//! no lock; opening one takes the locks of its keys, and that of an affinity set where the Service has session affinity.

mod context;
mod established;
mod family;
mod fragments;
mod icmp;
mod input;
mod mss;
mod neighbours;
mod open;
mod router;
pub mod select;
mod shares;
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

/// How many packets ahead of its turn the entry of a packet is prefetched, at least. With fewer the entry comes too late;
/// with more the entries push one another out of the first-level cache.
const AHEAD: usize = 16;

/// Decides about a burst of frames and rewrites those that are to be transmitted.
pub trait Process {
    /// Puts the verdict on `frames[i]` into `verdicts[i]`. Both have the same length, at most [`BURST`].
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    );

    /// Hands each neighbour that is to be resolved since the last call to `resolve`.
    fn drain_requests(&mut self, resolve: impl FnMut(NeighbourKey));

    /// Hands each packet whose awaited fragment came since the last call to `ready`: the frames held for it are to be
    /// decided again.
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

    /// The second and third pass for the frames that are not IPv4: the bits of `others`. A function of its own, so that the
    /// loops over IPv4 keep their registers. It takes what [`Process::process`] takes, and the bits.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "those of `process`, and which frames")]
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
                Some(EtherType::Tag) => Verdict::Untag,
                Some(_) => Verdict::Pass(PassReason::NotIp),
                None => Verdict::Drop(DropReason::Malformed),
            };
        }
        let mut ahead = set_bits(segments);
        for i in ahead.by_ref().take(AHEAD) {
            context.flows.v6.prefetch(&mut v6[i % BURST].probe);
        }
        for (n, i) in set_bits(others).enumerate() {
            // Four at a time, so that their TLB misses overlap too: a page walk costs about as much as the cache miss.
            if n % 4 == 0 {
                for next in ahead.by_ref().take(4) {
                    context.flows.v6.prefetch(&mut v6[next % BURST].probe);
                }
            }
            let (frame, verdict) = (frames[i].as_mut(), &mut verdicts[i]);
            if segments & (1 << i) != 0 {
                router.decide(frame, &v6[i % BURST], i, checksums, context, counters, verdict);
            } else {
                let slow = &mut SlowPath { context, counters, checksums, ingress: context.ingress_of(i) };
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
                // Staged by `process_others`: one loop with both families would need both sets of registers.
                others |= 1 << i;
                continue;
            }
            match stage(frame, staged, context) {
                None => segments |= 1 << i,
                Some(other) => *verdict = not_a_segment(other),
            }
        }
        // Skipped for a burst of IPv6 only.
        if (others.count_ones() as usize) < frames.len() {
            // Not only for `segments`: for any other frame this loads the entry of an old probe, which is harmless and
            // cheaper than a branch.
            for staged in v4.iter_mut().take(AHEAD) {
                context.flows.v4.prefetch(&mut staged.probe);
            }
            for (i, (frame, verdict)) in frames.iter_mut().zip(verdicts.iter_mut()).enumerate() {
                if let Some(staged) = v4.get_mut(i + AHEAD) {
                    context.flows.v4.prefetch(&mut staged.probe);
                }
                if segments & (1 << i) != 0 {
                    self.router.decide(frame.as_mut(), &v4[i], i, checksums, context, counters, verdict);
                } else if others & (1 << i) == 0 {
                    let ingress = context.ingress_of(i);
                    let slow = &mut SlowPath { context, counters, checksums, ingress };
                    self.router.handle_non_l4(frame.as_mut(), slow, verdict);
                }
            }
        }
        if others != 0 {
            self.process_others(others, frames, checksums, context, counters, verdicts);
        }
    }

    fn drain_requests(&mut self, resolve: impl FnMut(NeighbourKey)) {
        self.router.requests.drain(resolve);
    }

    fn drain_ready(&mut self, ready: impl FnMut(AwaitedFragment)) {
        self.router.fragments.drain_ready(ready);
    }

    fn drain_exhaustions(&mut self, report: impl FnMut(Exhaustion) -> bool) {
        self.router.exhaustions.drain(report);
    }
}

/// The positions of the set bits, ascending.
#[inline(always)]
fn set_bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        // Clears the lowest set bit.
        bits &= bits - 1;
        Some(position)
    })
}

#[cold]
fn not_a_segment<A>(parsed: Result<Parsed<A>, Malformed>) -> Verdict {
    match parsed {
        Err(malformed) => input::drop_malformed(malformed),
        Ok(Parsed::Fragment) => Verdict::Pass(PassReason::Fragment),
        Ok(Parsed::NotL4 | Parsed::Icmp | Parsed::L4(_)) => Verdict::Pass(PassReason::NotL4),
    }
}
