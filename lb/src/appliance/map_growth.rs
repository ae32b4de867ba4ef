//! Keeps the BPF maps equal to what was published last, whatever fails on the way: sets that are too small are replaced by
//! larger ones, which a thread of its own prepares, and what could not be added is tried again. What is missing meanwhile
//! passes to the kernel and becomes a finding.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use flowgate_control::{Entry, Severity, error_chain};
use flowgate_xsk::steering::{
    Resized, SetLimits, Shortfall, ShortfallCause, Steering, SteeringError, SteeringSet,
};

/// What the maps should hold, what they lack, and the larger maps on their way.
#[derive(Debug, Default)]
pub(crate) struct MapGrowth {
    /// What was published last.
    wanted: SteeringSet,
    /// Larger maps that are being prepared.
    preparing: Option<Receiver<Result<Resized, SteeringError>>>,
    missing: Vec<Shortfall>,
    /// Why stale entries are still in the maps.
    stale: Vec<String>,
    /// Why the last larger maps could not be had.
    cannot_grow: Option<String>,
    retry_at: Option<Instant>,
    pins_checked_at: Option<Instant>,
    /// Why pins that were lost cannot be made again.
    lost_pins: Option<String>,
}

impl MapGrowth {
    /// Removes from the maps what a new generation no longer has. To be called before the workers forget it.
    pub(super) fn begin(&mut self, steering: &mut Steering, wanted: SteeringSet) {
        self.wanted = wanted;
        self.remove_stale(steering);
    }

    /// Adds a part of what the new generation has in addition; true if there may be more of it.
    pub(super) fn complete_in_part(&self, steering: &mut Steering) -> bool {
        steering.add_some(&self.wanted)
    }

    /// Adds to the maps what the new generation has in addition. To be called when the workers know it.
    pub(super) fn complete(&mut self, steering: &mut Steering, now: Instant) {
        self.add_new(steering);
        // After a failure it is tried again by `follow_up`, and not with each generation.
        if self.cannot_grow.is_none() {
            self.grow(steering, now);
        }
    }

    /// Takes larger maps into use that have become ready, and tries again what has failed. To be called periodically.
    pub(super) fn follow_up(&mut self, steering: &mut Steering, now: Instant) {
        self.mend_pins(steering, now);
        match self.preparing.as_ref().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(Ok(prepared)) => {
                self.preparing = None;
                self.switch(steering, prepared, now);
            }
            Some(Err(TryRecvError::Disconnected)) => {
                self.preparing = None;
                self.failed(&io::Error::other("the thread that makes larger ones panicked"), now);
                self.add_new(steering);
            }
        }
        let is_due = self.retry_at.is_none_or(|at| now >= at);
        if is_due && self.needs_retry() {
            self.retry_at = Some(now + RETRY_EVERY);
            self.remove_stale(steering);
            self.add_new(steering);
        }
        if is_due {
            self.grow(steering, now);
        }
    }

    fn mend_pins(&mut self, steering: &Steering, now: Instant) {
        if self.pins_checked_at.is_some_and(|at| now.duration_since(at) < PINS_EVERY) {
            return;
        }
        self.pins_checked_at = Some(now);
        match steering.mend_pins() {
            Ok(mended) if mended.is_empty() => {}
            Ok(mended) => tracing::warn!("pins had been removed and were made again: {}", mended.join(", ")),
            Err(error) => {
                self.lost_pins = Some(error.to_string());
                return;
            }
        }
        self.lost_pins = None;
    }

    fn needs_retry(&self) -> bool {
        !self.stale.is_empty() || !self.missing.is_empty()
    }

    fn remove_stale(&mut self, steering: &mut Steering) {
        let errors = steering.remove_stale(&self.wanted).err().into_iter().flatten();
        self.stale = errors.map(|error| error.to_string()).collect();
    }

    fn add_new(&mut self, steering: &mut Steering) {
        self.missing = steering.add_new(&self.wanted).err().unwrap_or_default();
    }

    /// Has larger maps prepared if some are too small. Loading a program means verification, which would stop the control
    /// thread for too long.
    fn grow(&mut self, steering: &Steering, now: Instant) {
        if self.preparing.is_some() {
            return;
        }
        let Some(resize) = steering.resize(&self.wanted) else {
            self.cannot_grow = None;
            return;
        };
        let sizes = in_words(resize.sizes());
        let (sender, receiver) = channel();
        let prepare = move || {
            // The receiver is gone when the process ends.
            let _ = sender.send(resize.prepare());
        };
        match thread::Builder::new().name("bpf-maps".to_owned()).spawn(prepare) {
            Ok(_) => {
                tracing::info!("BPF maps are replaced by others with another number of entries: {sizes}");
                self.preparing = Some(receiver);
            }
            Err(source) => self.failed(&source, now),
        }
    }

    fn switch(&mut self, steering: &mut Steering, prepared: Result<Resized, SteeringError>, now: Instant) {
        let switched = prepared.and_then(|resized| {
            // What they were made for may be gone: this thread would take long to empty them.
            if steering.is_outdated(&resized, &self.wanted) {
                return steering.abandon(resized).map(|()| "larger BPF maps are needed no longer");
            }
            steering.switch_to(resized, &self.wanted).map(|()| "the new BPF maps are in use")
        });
        match switched {
            Ok(outcome) => {
                tracing::info!("{outcome}");
                (self.cannot_grow, self.retry_at) = (None, None);
            }
            Err(SteeringError::InterfacesChanged) => {}
            Err(error) => self.failed(&error, now),
        }
        self.add_new(steering);
    }

    fn failed(&mut self, error: &dyn std::error::Error, now: Instant) {
        self.cannot_grow = Some(error_chain(error));
        self.retry_at = Some(now + RETRY_EVERY);
    }

    /// What the maps lack, for the operator.
    pub(super) fn findings(&self) -> Vec<Entry> {
        let lacking = self.missing.iter().filter(|lacking| !self.is_on_its_way(lacking));
        let mut findings: Vec<Entry> = lacking.map(|lacking| error(self.describe(lacking))).collect();
        findings.extend(self.stale.iter().map(|why| {
            error(format!(
                "packets of what is no longer served are still given to workers, which drop them: {why}"
            ))
        }));
        findings.extend(self.lost_pins.iter().map(|why| {
            let reason = format!(
                "pins of the XDP program were removed ({why}): when this process ends the program is detached, and \
                 connections are reset until the next start; tried again every {} s",
                PINS_EVERY.as_secs()
            );
            Entry { severity: Severity::Warning, ..error(reason) }
        }));
        if let (Some(why), true) = (&self.cannot_grow, self.missing.is_empty()) {
            let reason = format!(
                "the XDP program's maps hold everything, but are nearly full and cannot grow ({why}): tried again \
                 every {} s",
                RETRY_EVERY.as_secs()
            );
            findings.push(Entry { severity: Severity::Warning, ..error(reason) });
        }
        findings
    }

    /// Why this process is unhealthy: what the kernel refuses. Too many objects for a limit is no such reason.
    pub(super) fn unhealthy_reasons(&self) -> impl Iterator<Item = String> {
        let refused = self.missing.iter().filter(|lacking| match lacking.cause {
            ShortfallCause::Kernel(_) => true,
            _ => self.cannot_grow.is_some(),
        });
        let refused = refused.map(|lacking| self.describe(lacking));
        refused.chain(self.stale.iter().cloned())
    }

    /// Whether a larger map has the missing entries in a moment.
    fn is_on_its_way(&self, lacking: &Shortfall) -> bool {
        let waits = !matches!(lacking.cause, ShortfallCause::Kernel(_));
        waits && self.preparing.is_some() && self.cannot_grow.is_none()
    }

    fn describe(&self, lacking: &Shortfall) -> String {
        let Shortfall { map, capacity, missing, first, cause } = lacking;
        let what = format!("{missing} entries of the XDP program's map {map} are missing, the first {first}");
        let follows = "their packets pass to the kernel";
        match (cause, &self.cannot_grow) {
            (ShortfallCause::Kernel(error), _) => format!(
                "{what}, since the kernel refuses them ({error}): {follows}; tried again every {} s",
                RETRY_EVERY.as_secs()
            ),
            (ShortfallCause::OwnAddressMissing, _) => {
                format!("{what}, since an own address of the node is missing in own_addrs: {follows}")
            }
            (_, Some(why)) => format!(
                "{what}, since the map is full with {capacity} entries and cannot grow ({why}): {follows}; tried again \
                 every {} s",
                RETRY_EVERY.as_secs()
            ),
            (_, None) => {
                let remedy = SetLimits::field_of(map)
                    .map_or_else(String::new, |field| format!("; raise limits.{field}"));
                format!("{what}, since it is full at its limit of {capacity} entries: {follows}{remedy}")
            }
        }
    }
}

fn error(reason: String) -> Entry {
    Entry { severity: Severity::Error, place: None, object: None, reason }
}

fn in_words(sizes: Vec<(&'static str, u32)>) -> String {
    let sizes: BTreeMap<_, _> = sizes.into_iter().collect();
    let sizes: Vec<_> = sizes.iter().map(|(name, size)| format!("{name} {size}")).collect();
    sizes.join(", ")
}

/// How often what has failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// How often it is checked that no pin was removed.
const PINS_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(cause: ShortfallCause) -> Shortfall {
        let first = "203.0.113.1 port 80/TCP".to_owned();
        Shortfall { map: "vips", capacity: 4096, missing: 12, first, cause }
    }

    fn shown(growth: &MapGrowth) -> (Vec<String>, Vec<String>) {
        let findings = growth.findings().iter().map(ToString::to_string).collect();
        (findings, growth.unhealthy_reasons().collect())
    }

    #[test]
    fn what_a_limit_leaves_out_is_a_finding_with_its_key_and_no_reason_to_be_unhealthy() {
        let growth = MapGrowth { missing: vec![lacking(ShortfallCause::Full)], ..MapGrowth::default() };
        let finding = "12 entries of the XDP program's map vips are missing, the first 203.0.113.1 port 80/TCP, since it \
                       is full at its limit of 4096 entries: their packets pass to the kernel; raise limits.vips";
        assert_eq!(shown(&growth), (vec![finding.to_owned()], vec![]));
    }

    #[test]
    fn while_a_larger_map_is_prepared_nobody_is_told_of_the_full_one() {
        let (_sender, receiver) = channel();
        let missing = vec![lacking(ShortfallCause::Full)];
        let growth = MapGrowth { missing, preparing: Some(receiver), ..MapGrowth::default() };
        assert_eq!(shown(&growth), (vec![], vec![]));
    }

    #[test]
    fn what_the_kernel_refuses_is_a_finding_and_unhealthy() {
        let no_memory = || io::Error::from_raw_os_error(12);
        let refused =
            MapGrowth { missing: vec![lacking(ShortfallCause::Kernel(no_memory()))], ..MapGrowth::default() };
        let cannot_grow = MapGrowth {
            missing: vec![lacking(ShortfallCause::Full)],
            cannot_grow: Some(no_memory().to_string()),
            ..MapGrowth::default()
        };
        for growth in [refused, cannot_grow] {
            let (findings, unhealthy) = shown(&growth);
            assert_eq!(findings, unhealthy);
            for part in ["map vips", "12 entries", "203.0.113.1", "Cannot allocate memory", "tried again"] {
                assert!(findings[0].contains(part), "{findings:?}");
            }
        }
        let nothing_missing =
            MapGrowth { cannot_grow: Some(no_memory().to_string()), ..MapGrowth::default() };
        let (findings, unhealthy) = shown(&nothing_missing);
        assert_eq!((findings.len(), unhealthy.len()), (1, 0), "all is served");
    }
}
