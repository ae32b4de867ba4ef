//! Loads and attaches the XDP program, or takes over an attached one, and keeps its maps equal to what Flowgate serves.
//!
//! The program and its maps are pinned and outlive this process on purpose. When it dies, the kernel removes its sockets
//! from the socket map, and after the grace period all traffic passes to the kernel. When it starts again, it updates the
//! pinned link without detaching, since attaching and detaching reset many NICs. Only [`Steering::detach`] and
//! [`uninstall`] detach.

mod bpffs;
mod delivery;
mod error;
mod grace;
mod kernel;
mod limits;
mod link;
mod maps;
mod mend;
mod perfmon;
mod probe;
mod program;
mod reason;
mod reattach;
mod resize;
mod set;
mod sockets;
mod stray;
mod verifier_log;

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::net::if_::if_nametoindex;

use bpffs::PinDir;
use kernel::Kernel;
use link::PinnedLink;
use maps::Maps;
use program::{MapPins, Program};
use sockets::{InterfaceSlots, MAX_INTERFACES, QUEUES_PER_INTERFACE};
use verifier_log::VerifierLog;

pub use delivery::Delivery;
pub use error::SteeringError;
pub use kernel::OLDEST_KERNEL;
pub use limits::{SetLimits, Shortfall, ShortfallCause};
pub use link::LinkOrigin;
pub use probe::Verdict;
pub use reason::Reason;
pub use reattach::Device;
pub use resize::{Resize, Resized};
pub use set::{ETHERTYPE_8021Q, PortSet, StationKey, SteeringSet, VipKey, VlanKey};
pub use sockets::SocketMap;

/// Interfaces to attach to, and where pins and logs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeringConfig {
    /// A directory inside a bpffs, such as `/sys/fs/bpf/flowgate`. Used by one process at a time.
    pub pin_dir: PathBuf,
    /// Directory for the verifier's log if the verifier rejects the program. Created when it is needed.
    pub log_dir: PathBuf,
    /// The interfaces that receive traffic for Flowgate.
    pub interfaces: Vec<InterfaceConfig>,
    /// How large the sets may become.
    pub limits: SetLimits,
}

/// One interface to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// The device's name.
    pub name: String,
    /// The XDP mode to attach in.
    pub mode: XdpModePolicy,
}

/// Which XDP mode to attach in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum XdpModePolicy {
    /// Native, otherwise generic with a message.
    #[default]
    Auto,
    /// Native or an error.
    Native,
    /// Generic.
    Generic,
}

/// The XDP mode of an interface, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack, after the driver has built an sk_buff.
    Generic,
}

impl XdpMode {
    /// `native` or `generic`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// How one interface was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachReport {
    /// The device's name.
    pub interface: String,
    /// The device's index; 0 if there has been none of this name yet.
    pub ifindex: u32,
    /// Number of its receive queues, read after attaching, which changes it with some drivers; 0 if there is no such device.
    pub queues: u32,
    /// Its largest IP packet, in bytes.
    pub mtu: u32,
    /// The mode, read back from the kernel.
    pub mode: XdpMode,
    /// Whether the link is new or was taken over.
    pub link: LinkOrigin,
    /// Messages for the operator.
    pub messages: Vec<String>,
}

/// What [`uninstall`] and [`Steering::detach`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uninstalled {
    /// Number of interfaces detached.
    pub links: usize,
    /// Number of maps unpinned.
    pub maps: usize,
}

/// The attached program of all interfaces, and its maps.
///
/// Dropping it changes nothing in the kernel: the program stays attached until [`detach`](Self::detach).
pub struct Steering {
    programs: Vec<Program>,
    /// The link of each interface; `None` until there is a device of its name.
    links: Vec<Option<PinnedLink>>,
    reports: Vec<AttachReport>,
    /// The configured policy of each interface.
    policies: Vec<XdpModePolicy>,
    notices: Vec<String>,
    warnings: Vec<String>,
    maps: Maps,
    sockets: SocketMap,
    pins: Arc<PinDir>,
    limits: SetLimits,
    object: &'static [u8],
    log_dir: PathBuf,
}

impl Steering {
    /// Attaches the program to every interface, taking over what an earlier process left in the pin directory. One that does
    /// not exist is attached by [`reattach`](Self::reattach) once it does; until then its report has no queues.
    ///
    /// Afterwards all socket slots are empty and the other maps are as they were found: call
    /// [`remove_stale`](Self::remove_stale) before anything else.
    ///
    /// # Errors
    ///
    /// [`SteeringError`] with the cause. Links that this call made are removed again, and those it took over stay; if there
    /// are none of these, no pin stays either, nor a bpffs that this call mounted.
    pub fn attach(config: &SteeringConfig) -> Result<Self, SteeringError> {
        Self::attach_object(config, program::OBJECT)
    }

    fn attach_object(config: &SteeringConfig, object: &'static [u8]) -> Result<Self, SteeringError> {
        let kernel = Kernel::running();
        let warnings: Vec<String> = kernel.check()?.into_iter().collect();
        let slots = assign_slots(config)?;
        let (pins, mounted) = PinDir::create(&config.pin_dir)?;
        let mut notices: Vec<String> = mounted.into_iter().collect();
        let (mut programs, mut links) = (Vec::new(), Vec::new());
        let verifier_log = VerifierLog { kernel: &kernel, dir: &config.log_dir };
        let opened = prepare_pins(config, &pins, &slots)
            .map(|replaced| notices.extend(replaced))
            .and_then(|()| {
                let object = (object, &verifier_log);
                attach_all(config, &pins, object, &slots, (&mut programs, &mut links))
            })
            .and_then(|()| open_maps(&pins, &slots))
            .and_then(|(maps, sockets)| {
                let names = config.interfaces.iter().map(|interface| &interface.name).zip(&slots);
                let reports = names.zip(&mut links).map(|((name, slots), link)| match link {
                    Some(link) => report(name, slots.ifindex, link),
                    None => Ok(absent(name)),
                });
                let reports = reports.collect::<Result<_, _>>()?;
                // Last: a start that fails leaves what an earlier process had attached.
                notices.extend(remove_unused(config, &pins, &programs)?);
                Ok((maps, sockets, reports))
            });
        let (maps, sockets, reports) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                roll_back(pins, &programs, &links);
                return Err(error);
            }
        };
        Ok(Self {
            programs,
            links,
            reports,
            policies: config.interfaces.iter().map(|interface| interface.mode).collect(),
            notices,
            warnings,
            maps,
            sockets,
            pins: Arc::new(pins),
            limits: config.limits,
            object,
            log_dir: config.log_dir.clone(),
        })
    }

    /// How each interface was attached, in the order of the configuration.
    #[must_use]
    pub fn report(&self) -> &[AttachReport] {
        &self.reports
    }

    /// What was done in addition to attaching: a bpffs mounted, a stale pin replaced.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Warnings about this kernel for the operator.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the maps contain now.
    #[must_use]
    pub fn applied(&self) -> &SteeringSet {
        self.maps.applied()
    }

    /// Removes from the maps what `next` lacks. To be called before workers forget it, so that no packet is redirected to a
    /// worker that does not know its Service.
    ///
    /// # Errors
    ///
    /// Those of the kernel, one per map; everything else is removed.
    pub fn remove_stale(&mut self, next: &SteeringSet) -> Result<(), Vec<SteeringError>> {
        let errors = self.maps.remove_stale(next);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Removes a part of what `next` lacks, which takes a few milliseconds; true if there may be more of it. Once it is
    /// false, [`remove_stale`](Self::remove_stale) does the rest.
    pub fn remove_some(&mut self, next: &SteeringSet) -> bool {
        self.maps.remove_some(next, STEP) == STEP
    }

    /// Adds a part of what `next` has in addition, as [`remove_some`](Self::remove_some) removes. Once it is false,
    /// [`add_new`](Self::add_new) does the rest.
    pub fn add_some(&mut self, next: &SteeringSet) -> bool {
        self.maps.add_some(next, STEP) == STEP
    }

    /// Adds to the maps what `next` has in addition. To be called after workers know it. Sets that are too small for it
    /// are replaced by [`resize`](Self::resize) and [`switch_to`](Self::switch_to).
    ///
    /// # Errors
    ///
    /// What is missing, by map; everything else is added.
    pub fn add_new(&mut self, next: &SteeringSet) -> Result<(), Vec<Shortfall>> {
        let missing = self.maps.add_new(next);
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// A handle on the socket slots, for start-up and for the watchdog thread.
    #[must_use]
    pub fn sockets(&self) -> SocketMap {
        self.sockets.clone()
    }

    /// See [`SocketMap::set`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_socket(&self, ifindex: u32, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        self.sockets.set(ifindex, queue, socket)
    }

    /// See [`SocketMap::clear`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn clear_socket(&self, ifindex: u32, queue: u32) -> Result<(), SteeringError> {
        self.sockets.clear(ifindex, queue)
    }

    /// See [`SocketMap::clear_all`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn clear_all_sockets(&self) -> Result<(), SteeringError> {
        self.sockets.clear_all()
    }

    /// The program's counters since the map was created, summed over CPUs and interfaces.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, SteeringError> {
        self.maps.counters()
    }

    /// Detaches from every interface and removes all pins.
    ///
    /// # Errors
    ///
    /// The first pin or link that could not be removed.
    pub fn detach(self) -> Result<Uninstalled, SteeringError> {
        let Self { links, pins, .. } = self;
        // A link exists as long as a descriptor or a pin refers to it: the descriptors go first.
        drop(links);
        remove_all(&pins)
    }

    /// Undoes [`attach`](Self::attach) for a start that has failed: detaches from the interfaces that it attached to, and if
    /// no link of an earlier process is left, removes all pins and unmounts a bpffs that it mounted.
    pub fn undo(self) {
        let Self { links, pins, programs, maps, sockets, .. } = self;
        drop((maps, sockets));
        // A resize that is still prepared has a handle on the directory, but none is begun before the start is complete.
        if let Some(pins) = Arc::into_inner(pins) {
            roll_back(pins, &programs, &links);
        }
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").field("reports", &self.reports).finish_non_exhaustive()
    }
}

/// Detaches and unpins what a dead process left in a pin directory. It need not exist.
///
/// # Errors
///
/// [`SteeringError::InUse`] if a process uses the directory, or the first pin that could not be removed.
pub fn uninstall(pin_dir: &Path) -> Result<Uninstalled, SteeringError> {
    PinDir::open(pin_dir)?.map_or_else(|| Ok(Uninstalled::default()), |pins| remove_all(&pins))
}

fn remove_all(pins: &PinDir) -> Result<Uninstalled, SteeringError> {
    let mut removed = Uninstalled::default();
    for name in pins.names()? {
        if link::is_pin_name(&name) {
            link::remove(pins, &name)?;
            removed.links += 1;
        } else if program::is_pin_name(&name) || resize::is_leftover(&name) {
            pins.remove(&name)?;
        } else if maps::names().any(|map| map == name) {
            pins.remove(&name)?;
            removed.maps += 1;
        }
    }
    pins.remove_dir()?;
    Ok(removed)
}

/// Pins again what has lost its pin, and removes pins that cannot be used. Returns notices of both.
fn prepare_pins(
    config: &SteeringConfig,
    pins: &PinDir,
    slots: &[InterfaceSlots],
) -> Result<Vec<String>, SteeringError> {
    // One that stays is only in the way of growth, which reports it.
    let _ = resize::remove_leftovers(pins);
    let mut notices = stray::take_over(pins, &config.interfaces, slots)?;
    // Before loading: the loader creates and pins the maps that are missing, and reuses the others as they are.
    notices.extend(maps::remove_incompatible(pins)?);
    Ok(notices)
}

/// Attaches to every interface. What was made is in `made`, also after an error.
fn attach_all(
    config: &SteeringConfig,
    pins: &PinDir,
    (object, verifier_log): (&[u8], &VerifierLog<'_>),
    slots: &[InterfaceSlots],
    (programs, links): (&mut Vec<Program>, &mut Vec<Option<PinnedLink>>),
) -> Result<(), SteeringError> {
    let sizes = maps::initial_sizes(&config.limits);
    let map_pins = MapPins { pins, sizes: &sizes, new_prefix: "" };
    for (interface, slots) in config.interfaces.iter().zip(slots) {
        let program = program::reuse_or_load(&map_pins, object, *slots, verifier_log)?;
        programs.push(program);
        let fd = programs[programs.len() - 1].xdp.fd()?.as_fd();
        let attach = || link::attach(pins, &interface.name, slots.ifindex, interface.mode, fd);
        // One that does not exist has its program already, and is attached once it does.
        links.push((slots.ifindex != 0).then(attach).transpose()?);
    }
    Ok(())
}

/// Opens the maps, with all socket slots empty: nothing is redirected until new sockets are set, whatever a predecessor left
/// there.
fn open_maps(pins: &PinDir, slots: &[InterfaceSlots]) -> Result<(Maps, SocketMap), SteeringError> {
    let (maps, socket_map) = Maps::open(pins, slots.to_vec())?;
    let sockets = SocketMap::new(socket_map, slots.to_vec());
    sockets.clear_all()?;
    Ok((maps, sockets))
}

/// Detaches from interfaces that are not configured any more, and removes the pins of programs that are not attached.
fn remove_unused(
    config: &SteeringConfig,
    pins: &PinDir,
    programs: &[Program],
) -> Result<Vec<String>, SteeringError> {
    let mut notices = Vec::new();
    for name in pins.names()? {
        let is_configured = |interface: &InterfaceConfig| link::pin_name(&interface.name) == name;
        if link::is_pin_name(&name) && !config.interfaces.iter().any(is_configured) {
            link::remove(pins, &name)?;
            notices.push(format!("removed {name}: that interface is not configured any more"));
        } else if program::is_pin_name(&name) && !programs.iter().any(|program| program.pin == name) {
            pins.remove(&name)?;
        }
    }
    Ok(notices)
}

/// Gives each interface its slots in the socket map, in the order of the configuration.
fn assign_slots(config: &SteeringConfig) -> Result<Vec<InterfaceSlots>, SteeringError> {
    let interfaces = &config.interfaces;
    if interfaces.is_empty() || interfaces.len() > MAX_INTERFACES as usize {
        return Err(SteeringError::Interfaces { count: interfaces.len(), most: MAX_INTERFACES });
    }
    let mut seen = BTreeSet::new();
    let mut slots = Vec::new();
    for (interface, first) in interfaces.iter().zip((0..).step_by(QUEUES_PER_INTERFACE as usize)) {
        if !seen.insert(&interface.name) {
            return Err(SteeringError::Twice { interface: interface.name.clone() });
        }
        let ifindex = if_nametoindex(interface.name.as_str()).unwrap_or(0);
        slots.push(InterfaceSlots { ifindex, first });
    }
    Ok(slots)
}

/// Removes what a failed call made; if no link of an earlier process is left, everything.
fn roll_back(pins: PinDir, programs: &[Program], links: &[Option<PinnedLink>]) {
    // Errors are ignored: the one that led here is of more use to the operator than one about cleaning up.
    for link in links.iter().flatten().filter(|link| link.origin == LinkOrigin::Fresh) {
        let _ = link::remove(&pins, &link.pin);
    }
    for (position, program) in programs.iter().enumerate() {
        // A link that was taken over runs this program already, and goes on with it.
        let link = links.get(position).and_then(Option::as_ref);
        let is_in_use = link.is_some_and(|link| link.origin == LinkOrigin::Reused);
        if !program.is_reused && !is_in_use {
            let _ = pins.remove(&program.pin);
        }
    }
    if pins.names().is_ok_and(|names| !names.iter().any(|name| link::is_pin_name(name))) {
        let _ = remove_all(&pins);
        pins.unmount();
    }
}

/// The report of an interface that does not exist yet.
fn absent(interface: &str) -> AttachReport {
    AttachReport {
        interface: interface.to_owned(),
        ifindex: 0,
        queues: 0,
        mtu: 0,
        mode: XdpMode::Native,
        link: LinkOrigin::Fresh,
        messages: Vec::new(),
    }
}

fn report(interface: &str, ifindex: u32, link: &mut PinnedLink) -> Result<AttachReport, SteeringError> {
    let mut messages = std::mem::take(&mut link.messages);
    let Device { queues, mtu, .. } = Device::named(interface)
        .filter(|device| device.ifindex == ifindex)
        .ok_or_else(|| SteeringError::NoInterface { interface: interface.to_owned() })?;
    if queues > QUEUES_PER_INTERFACE {
        messages.push(format!(
            "{queues} queues, of which {QUEUES_PER_INTERFACE} can have a socket: the others pass to the kernel"
        ));
    }
    Ok(AttachReport {
        interface: interface.to_owned(),
        ifindex,
        queues,
        mtu,
        mode: link.mode,
        link: link.origin,
        messages,
    })
}

/// Entries that are changed in one go: some 10 ms.
const STEP: usize = 16_384;
