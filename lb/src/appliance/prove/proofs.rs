//! The proofs: in which modes each interface lost full-size packets, in which they were proven to arrive, and which mode
//! follows. They outlive the process in a small JSON file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use flowgate_xsk::steering::{AttachReport, XdpMode, XdpModePolicy};
use flowgate_xsk::{BindMode, Driver, ZeroCopy};
use serde::{Deserialize, Serialize};

use crate::appliance::host;
use crate::config::Config;

/// How an interface works, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Native XDP, and AF_XDP without copies.
    ZeroCopy,
    /// Native XDP, and AF_XDP with copies.
    Copy,
    /// Generic XDP.
    Generic,
}

impl Mode {
    const ALL: [Self; 3] = [Self::ZeroCopy, Self::Copy, Self::Generic];

    pub(crate) fn of(xdp: XdpMode, bind: BindMode) -> Self {
        match (xdp, bind) {
            (XdpMode::Native, BindMode::ZeroCopy) => Self::ZeroCopy,
            (XdpMode::Native, BindMode::Copy) => Self::Copy,
            (XdpMode::Generic, _) => Self::Generic,
        }
    }

    pub(super) fn xdp(self) -> XdpMode {
        if self == Self::Generic { XdpMode::Generic } else { XdpMode::Native }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "zero copy",
            Self::Copy => "copy mode",
            Self::Generic => "generic XDP",
        })
    }
}

/// The device that a record is about. With another driver or MTU it has to be proven again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProvenDevice {
    pub(super) ifindex: u32,
    pub(super) driver: String,
    pub(super) mtu: u32,
}

impl ProvenDevice {
    fn of(report: &AttachReport) -> Self {
        let driver = Driver::of(&report.interface).to_string();
        Self { ifindex: report.ifindex, driver, mtu: report.mtu }
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Full-size packets arrive: which neighbour replied, and how the requests were sent.
    Proven(String),
    /// Nothing is known: why.
    Unproven(String),
    /// Full-size packets are lost in this mode: how.
    Lost(String),
}

/// All that is known of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    subject: ProvenDevice,
    /// The fastest mode that the kernel has given it.
    best: Mode,
    /// The modes in which packets were lost, and how.
    lost: BTreeMap<Mode, String>,
    /// The last outcome other than a loss, with the mode and frame length that it holds for.
    outcome: Option<(Mode, u32, Outcome)>,
    /// The MTU before it was raised while the interface served: packets up to there are no reason to doubt the mode.
    #[serde(default)]
    raised_from: Option<u32>,
}

impl Record {
    fn new(subject: ProvenDevice, best: Mode) -> Self {
        Self { subject, best, lost: BTreeMap::new(), outcome: None, raised_from: None }
    }

    /// A record of an interface that had native mode and is to have it again.
    fn native_again(subject: ProvenDevice) -> Self {
        // Zero copy follows by itself, if the kernel gives it.
        Self::new(subject, Mode::Copy)
    }

    /// The fastest mode not faster than `best` in which nothing was lost; `best` itself if there is none.
    fn mode(&self, best: Mode) -> Mode {
        let best = best.max(self.best);
        let mut modes = Mode::ALL.into_iter().filter(|mode| *mode >= best);
        modes.find(|mode| !self.lost.contains_key(mode)).unwrap_or(best)
    }

    /// Whether packets were lost in each mode from this one on: then the driver is not to blame.
    fn is_lost_everywhere(&self, from: Mode) -> bool {
        Mode::ALL.iter().filter(|mode| **mode >= from).all(|mode| self.lost.contains_key(mode))
    }
}

/// The state of an interface as `flowgate show workers` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProofStatus {
    /// `proven`, `unproven`, `path` or `off`.
    pub(crate) state: &'static str,
    pub(crate) detail: String,
    /// Why it does not work in a better mode.
    pub(crate) fell_back: Option<String>,
}

/// The boot and the configuration under which the proofs were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProofConditions {
    boot: String,
    zero_copy: String,
    mode: ModePolicy,
    frame_bytes: u32,
    prove: bool,
}

/// [`XdpModePolicy`] for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ModePolicy {
    Auto,
    Native,
    Generic,
}

impl From<XdpModePolicy> for ModePolicy {
    fn from(wanted: XdpModePolicy) -> Self {
        match wanted {
            XdpModePolicy::Auto => Self::Auto,
            XdpModePolicy::Native => Self::Native,
            XdpModePolicy::Generic => Self::Generic,
        }
    }
}

impl ProofConditions {
    /// What of an earlier process's records is worth something now. Other conditions need other proofs; but a pinned link stays
    /// in the mode that the earlier process gave it, so that it has to be known who shall have native mode again.
    fn inherit(&self, left: &Self, mut records: BTreeMap<String, Record>) -> BTreeMap<String, Record> {
        if self == left {
            return records;
        }
        if self.boot != left.boot || self.mode != ModePolicy::Auto {
            return BTreeMap::new();
        }
        records.retain(|interface, record| {
            let had_native = record.best.xdp() == XdpMode::Native;
            let was_forced = left.mode == ModePolicy::Generic;
            had_native || (was_forced && Driver::of(interface).native_mode_defect().is_none())
        });
        for record in records.values_mut() {
            *record = Record::native_again(record.subject.clone());
        }
        records
    }
}

/// What is known of all interfaces.
#[derive(Clone, Debug)]
pub(crate) struct Proofs {
    is_on: bool,
    file: PathBuf,
    conditions: ProofConditions,
    zero_copy: ZeroCopy,
    xdp: XdpModePolicy,
    records: BTreeMap<String, Record>,
    saved: BTreeMap<String, Record>,
    /// Interfaces that lose packets in the only mode that the configuration allows.
    refused: BTreeMap<String, String>,
}

impl Proofs {
    /// The proofs that an earlier process saved, as far as they still hold.
    pub(crate) fn load(config: &Config) -> Self {
        let boot = host::boot_id().map_or_else(|_| String::new(), |id| format!("{id:02x?}"));
        let conditions = ProofConditions {
            boot,
            zero_copy: format!("{:?}", config.xdp.zero_copy),
            mode: config.xdp.mode.into(),
            frame_bytes: config.rings.frame_bytes,
            prove: config.xdp.prove,
        };
        let file = file(config);
        let left = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let records = left.map_or_else(BTreeMap::new, |(left, records)| conditions.inherit(&left, records));
        Self {
            is_on: config.xdp.prove,
            file,
            conditions,
            zero_copy: config.xdp.zero_copy,
            xdp: config.xdp.mode,
            saved: records.clone(),
            records,
            refused: BTreeMap::new(),
        }
    }

    /// Saves them for the next process, if they have changed.
    pub(super) fn save_changes(&mut self) {
        if !self.is_on || self.records == self.saved {
            return;
        }
        self.saved.clone_from(&self.records);
        // Renamed into place, so that a sudden end never leaves half a file.
        let written = || -> io::Result<()> {
            let next = self.file.with_extension("next");
            fs::write(&next, serde_json::to_vec(&(&self.conditions, &self.records))?)?;
            fs::rename(next, &self.file)
        };
        if let Err(error) = written() {
            let file = self.file.display();
            tracing::warn!(%error, "cannot write {file}: the next start proves the interfaces again");
        }
    }

    /// The fastest mode that an interface had.
    pub(super) fn best(&self, interface: &str) -> Option<Mode> {
        self.records.get(interface).map(|record| record.best)
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Removes records of devices that are no longer served, or were replaced. A device that has only another MTU, and lost
    /// native mode because of the old one, gets native mode again.
    pub(crate) fn forget_others(&mut self, attached: &[AttachReport]) {
        self.records.retain(|interface, record| {
            let Some(report) = attached.iter().find(|report| report.interface == *interface) else {
                return false;
            };
            let now = ProvenDevice::of(report);
            if report.queues == 0 || record.subject == now {
                return true;
            }
            let is_same_device = record.subject.ifindex == now.ifindex;
            let lost_native = record.best.xdp() == XdpMode::Native && report.mode == XdpMode::Generic;
            *record = Record::native_again(now);
            is_same_device && lost_native
        });
        let records = &self.records;
        self.refused.retain(|interface, _| records.contains_key(interface));
    }

    /// Takes over another MTU of an interface that stays as it is. What was proven holds for smaller packets. Larger ones are
    /// proven anew, but if they are lost no other mode is tried: far more often than the driver the link has another MTU, and
    /// a change of modes interrupts all interfaces. In zero copy, where drivers do cut packets, the mode may change.
    pub(crate) fn follow_mtu(&mut self, report: &AttachReport) {
        let Some(record) = self.records.get_mut(&report.interface) else { return };
        let before = record.subject.mtu;
        record.subject.mtu = report.mtu;
        if report.mtu > before {
            record.outcome = None;
            record.raised_from = Some(record.raised_from.map_or(before, |earlier| earlier.min(before)));
        }
    }

    /// Whether packets were lost in a mode of this interface, so that it works in a slower one or is blamed on the path.
    pub(crate) fn has_fallen_back(&self, interface: &str) -> bool {
        self.records.get(interface).is_some_and(|record| !record.lost.is_empty())
    }

    /// The zero-copy policy that follows. All interfaces share one packet memory, so one that loses packets turns it off for
    /// all.
    pub(crate) fn zero_copy(&self) -> ZeroCopy {
        if self.is_zero_copy_fine() { self.zero_copy } else { ZeroCopy::Off }
    }

    fn is_zero_copy_fine(&self) -> bool {
        let wants =
            |record: &Record| record.best != Mode::ZeroCopy || record.mode(Mode::ZeroCopy) == record.best;
        self.records.iter().all(|(interface, record)| self.is_refused(interface) || wants(record))
    }

    /// Records the present mode of an interface. The first one is its fastest.
    pub(super) fn note_mode(&mut self, report: &AttachReport, mode: Mode) {
        let is_zero_copy_wanted = self.zero_copy() != ZeroCopy::Off;
        let new = || Record::new(ProvenDevice::of(report), mode);
        let record = self.records.entry(report.interface.clone()).or_insert_with(new);
        let was_refused = record.best == Mode::ZeroCopy && mode == Mode::Copy && is_zero_copy_wanted;
        if mode < record.best || was_refused {
            record.best = mode;
        }
    }

    /// Records that the kernel refuses native mode.
    pub(super) fn note_no_native(&mut self, interface: &str) {
        if let Some(record) = self.records.get_mut(interface) {
            record.best = Mode::Generic;
        }
    }

    /// The mode in which an interface is to work.
    pub(super) fn plan(&self, interface: &str) -> Option<Mode> {
        let record = self.records.get(interface)?;
        Some(if self.is_refused(interface) { record.best } else { record.mode(self.floor(record)) })
    }

    /// The fastest mode that is possible with the shared packet memory.
    fn floor(&self, record: &Record) -> Mode {
        if self.is_zero_copy_fine() { record.best } else { record.best.max(Mode::Copy) }
    }

    /// Whether it is not known if full-size packets arrive in this mode.
    pub(super) fn is_open(&self, interface: &str, mode: Mode, chunk_len: u32) -> bool {
        let Some(record) = self.records.get(interface) else { return false };
        let is_known = |(of, len, outcome): &(Mode, u32, Outcome)| {
            (*of, *len) == (mode, chunk_len) && !matches!(outcome, Outcome::Unproven(_))
        };
        // Packets that are lost in every mode may arrive once the path has been repaired.
        let may_be_lost = record.is_lost_everywhere(self.floor(record)) && !self.is_refused(interface);
        (may_be_lost || !record.lost.contains_key(&mode)) && !record.outcome.as_ref().is_some_and(is_known)
    }

    /// Whether no probe has ended yet in this mode with this frame length.
    pub(super) fn is_untried(&self, interface: &str, mode: Mode, chunk_len: u32) -> bool {
        let record = self.records.get(interface);
        let tried = record.and_then(|record| record.outcome.as_ref());
        record.is_some_and(|record| !record.lost.contains_key(&mode))
            && self.is_open(interface, mode, chunk_len)
            && tried.is_none_or(|(of, len, _)| (*of, *len) != (mode, chunk_len))
    }

    /// Records an outcome. `true` if it changes the planned mode of the interface.
    pub(super) fn note(&mut self, interface: &str, mode: Mode, chunk_len: u32, outcome: Outcome) -> bool {
        let before = self.plan(interface);
        let Some(record) = self.records.get_mut(interface) else { return false };
        // A probe without a reply does not refute an earlier loss.
        if matches!(outcome, Outcome::Unproven(_)) && record.lost.contains_key(&mode) {
            return false;
        }
        match outcome {
            Outcome::Lost(how) if record.raised_from.is_some() && mode != Mode::ZeroCopy => {
                let before = record.raised_from.unwrap_or_default();
                let how =
                    format!("{how}, since the MTU is more than {before}: is the MTU of the link smaller?");
                record.outcome = Some((mode, chunk_len, Outcome::Unproven(how)));
            }
            Outcome::Lost(how) => {
                record.lost.insert(mode, how);
            }
            other => {
                if matches!(other, Outcome::Proven(_)) && record.lost.contains_key(&mode) {
                    record.lost.clear();
                }
                record.outcome = Some((mode, chunk_len, other));
            }
        }
        self.plan(interface) != before
    }

    /// Why the configuration forbids the mode in which packets would arrive, and what to change; `None` if it does not.
    pub(super) fn objection(&self, interface: &str) -> Option<String> {
        let record = self.records.get(interface)?;
        let (mode, how) = (record.mode(record.best), self.how(record, record.best)?);
        let key = match (self.zero_copy, self.xdp) {
            (ZeroCopy::Force, _) if mode != Mode::ZeroCopy => "xdp.zero_copy is force",
            (_, XdpModePolicy::Native) if mode == Mode::Generic => "xdp.mode is native",
            _ => return None,
        };
        let frames = if record.best == Mode::ZeroCopy { ", set rings.frame_bytes to 4096" } else { "" };
        Some(format!("{interface} loses packets: {how}, and {key}: set it to auto{frames} or lower the MTU"))
    }

    /// Keeps an interface in its fastest mode although it loses packets, since the configuration demands that mode.
    pub(super) fn refuse(&mut self, interface: &str, why: String) {
        self.refused.insert(interface.to_owned(), why);
    }

    pub(super) fn is_refused(&self, interface: &str) -> bool {
        self.refused.contains_key(interface)
    }

    /// The status of an interface in this mode; `None`: it has no sockets.
    pub(crate) fn shown(&self, interface: &str, mode: Option<Mode>, chunk_len: u32) -> ProofStatus {
        let state = |state, detail: &str| (state, detail.to_owned());
        let (state_without, detail_without) =
            if self.is_on { ("unproven", "not tried yet") } else { ("off", "xdp.prove is false") };
        let record = self.records.get(interface).filter(|_| self.is_on);
        let (Some(record), Some(mode)) = (record, mode) else {
            return ProofStatus { state: state_without, detail: detail_without.to_owned(), fell_back: None };
        };
        let is_path = record.is_lost_everywhere(self.floor(record));
        let outcome = record.outcome.as_ref().filter(|(of, len, _)| (*of, *len) == (mode, chunk_len));
        let (state, detail) = match (record.lost.get(&mode), outcome) {
            (Some(how), _) if is_path => {
                state("path", &format!("{how}, nor in any other mode: is the MTU of the link smaller?"))
            }
            (Some(how), _) => state("unproven", self.refused.get(interface).unwrap_or(how)),
            (None, Some((_, _, Outcome::Proven(how)))) => state("proven", how),
            (None, Some((_, _, Outcome::Unproven(why) | Outcome::Lost(why)))) => state("unproven", why),
            (None, None) => state("unproven", "not tried yet"),
        };
        let fell_back = (!is_path && mode > record.best).then(|| self.how(record, mode)).flatten();
        ProofStatus { state, detail, fell_back }
    }

    /// How packets were lost in `mode` or faster ones, by this interface or else by another one of the packet memory.
    fn how(&self, record: &Record, mode: Mode) -> Option<String> {
        let here = record.lost.iter().filter(|(lost, _)| **lost <= mode).map(|(_, how)| how.clone());
        let here: Vec<String> = here.collect();
        if !here.is_empty() {
            return Some(here.join("; "));
        }
        let others = self.records.iter().filter(|(_, other)| other.mode(Mode::ZeroCopy) != other.best);
        let mut others = others.filter_map(|(interface, other)| {
            Some(format!("{interface}: {}", other.lost.get(&Mode::ZeroCopy)?))
        });
        others.next()
    }
}

/// Beside the admin socket.
fn file(config: &Config) -> PathBuf {
    config.admin.socket.with_file_name("proofs.json")
}

/// Removes the saved proofs, if there are any.
///
/// # Errors
/// The file system refuses.
pub(crate) fn remove(config: &Config) -> io::Result<()> {
    match fs::remove_file(file(config)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
