//! The attachment of one interface: a pinned bpf_link. So the program stays when this process ends, it is replaced without a
//! gap when Flowgate starts again, and netlink cannot replace it (net/core/dev.c:dev_xdp_attach returns EBUSY).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::loaded_programs;

use super::bpffs::PinDir;
use super::program::Program;
use super::{SteeringError, XdpMode, XdpModePolicy};
use crate::Driver;
use crate::sys::bpf::{self, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use crate::sys::netlink::{self, DeviceXdp};

const PIN_PREFIX: &str = "link-";

/// Where an attachment came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkOrigin {
    /// Attached by this process.
    Fresh,
    /// Left by an earlier process, and updated to our program without being detached.
    Reused,
}

impl LinkOrigin {
    /// `fresh` or `reused`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Reused => "reused",
        }
    }
}

/// The pinned link of one interface.
pub(super) struct PinnedLink {
    /// Keeps the link attached until it is pinned, and if the pin is lost.
    fd: OwnedFd,
    pub(super) pin: String,
    pub(super) mode: XdpMode,
    pub(super) origin: LinkOrigin,
    pub(super) messages: Vec<String>,
}

impl PinnedLink {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The name of an interface's pin.
pub(super) fn pin_name(interface: &str) -> String {
    // bpffs reserves names with dots (kernel/bpf/inode.c:bpf_lookup). An interface name contains no slash.
    format!("{PIN_PREFIX}{}", interface.replace('.', "%2e"))
}

pub(super) fn is_pin_name(name: &str) -> bool {
    name.starts_with(PIN_PREFIX)
}

/// Attaches the program to the interface: by updating the pinned link if that can be used, otherwise by a new link.
pub(super) fn attach(
    pins: &PinDir,
    interface: &str,
    ifindex: u32,
    policy: XdpModePolicy,
    program: BorrowedFd<'_>,
) -> Result<PinnedLink, SteeringError> {
    let pin = pin_name(interface);
    let mut messages = Vec::new();
    let failed = |action, source| SteeringError::Attach { interface: interface.to_owned(), action, source };

    if pins.names()?.contains(&pin) {
        match reuse(pins, &pin, ifindex, policy, program).map_err(|source| failed("update", source))? {
            Reuse::Reused(fd, mode) => {
                return Ok(PinnedLink { fd, pin, mode, origin: LinkOrigin::Reused, messages });
            }
            Reuse::Unusable(why) => {
                pins.remove(&pin)?;
                messages.push(format!("replaced the pinned link: {why}"));
            }
        }
    }

    // Asked beforehand for its name: the kernel's answer would only be EBUSY.
    let before = netlink::device_xdp(ifindex).map_err(|source| failed("query", source))?;
    if let Some(program_id) = before.any {
        return Err(SteeringError::ForeignProgram {
            interface: interface.to_owned(),
            program_id,
            program_name: program_name(program_id),
        });
    }

    let fd = create(interface, ifindex, policy, program, &mut messages)?;
    // Pinned last: an error until here closes `fd`, which detaches the program.
    let mode = mode_of(&fd, ifindex)
        .map_err(|source| failed("read back", source))?
        .ok_or_else(|| failed("read back", io::Error::other("the device does not run the program")))?;
    bpf::pin(fd.as_fd(), &pins.file(&pin)).map_err(|source| failed("pin", source))?;
    Ok(PinnedLink { fd, pin, mode, origin: LinkOrigin::Fresh, messages })
}

/// Updates a link to another program, atomically. A device that is gone needs none.
pub(super) fn update(link: &PinnedLink, interface: &str, program: &Program) -> Result<(), SteeringError> {
    match bpf::link_update(link.fd.as_fd(), program.xdp.fd()?.as_fd()) {
        Err(source) if source.raw_os_error() != Some(libc::ENOLINK) => {
            Err(SteeringError::Attach { interface: interface.to_owned(), action: "update", source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Detaches and unpins a link, whatever state it is in.
pub(super) fn remove(pins: &PinDir, pin: &str) -> Result<(), SteeringError> {
    if let Ok(Some(link)) = bpf::open_pinned_link(&pins.file(pin)) {
        // Fails for a link whose device is gone, which has nothing to detach. The pin is removed in any case.
        let _ = bpf::link_detach(link.as_fd());
    }
    pins.remove(pin)
}

enum Reuse {
    Reused(OwnedFd, XdpMode),
    Unusable(String),
}

fn reuse(
    pins: &PinDir,
    pin: &str,
    ifindex: u32,
    policy: XdpModePolicy,
    program: BorrowedFd<'_>,
) -> io::Result<Reuse> {
    let unusable = |why: &str| Ok(Reuse::Unusable(why.to_owned()));
    let Some(link) = bpf::open_pinned_link(&pins.file(pin))? else { return unusable("it was not a link") };
    let Some(info) = bpf::link_info(link.as_fd())? else { return unusable("it was not an XDP link") };
    // The kernel clears it when the device goes away; the link itself remains, without effect.
    if info.ifindex == 0 {
        return unusable("its device is gone");
    }
    // The interface was renamed, and another device has its name now.
    if info.ifindex != ifindex {
        let _ = bpf::link_detach(link.as_fd());
        return Ok(Reuse::Unusable(format!("it was attached to device {}", info.ifindex)));
    }
    let Some(mode) = mode_of(&link, ifindex)? else { return unusable("its device runs another program") };
    // The mode belongs to the attachment: an update cannot change it.
    if matches!(
        (policy, mode),
        (XdpModePolicy::Native, XdpMode::Generic) | (XdpModePolicy::Generic, XdpMode::Native)
    ) {
        bpf::link_detach(link.as_fd())?;
        return Ok(Reuse::Unusable(format!("it was in {} mode", mode.name())));
    }
    match bpf::link_update(link.as_fd(), program) {
        Ok(()) => Ok(Reuse::Reused(link, mode)),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => unusable("its device is gone"),
        Err(error) => Err(error),
    }
}

fn create(
    interface: &str,
    ifindex: u32,
    policy: XdpModePolicy,
    program: BorrowedFd<'_>,
    messages: &mut Vec<String>,
) -> Result<OwnedFd, SteeringError> {
    let failed = |action, source| SteeringError::Attach { interface: interface.to_owned(), action, source };
    let defect = Driver::of(interface).native_mode_defect().filter(|_| policy == XdpModePolicy::Auto);
    if let Some(why) = defect {
        messages.push(format!("generic mode: {why} (xdp.mode = \"native\" takes native mode all the same)"));
    }
    let native = match policy {
        XdpModePolicy::Generic => None,
        XdpModePolicy::Auto if defect.is_some() => None,
        XdpModePolicy::Auto | XdpModePolicy::Native => {
            match bpf::link_create(program, ifindex, XDP_FLAGS_DRV_MODE) {
                Ok(link) => return Ok(link),
                Err(error) => Some(error),
            }
        }
    };
    if let Some(error) = native {
        // These have nothing to do with native mode. Other errors come from drivers: an MTU too large for one buffer, LRO,
        // too few queues, or no XDP at all (EOPNOTSUPP).
        let no_fallback =
            matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV));
        if policy == XdpModePolicy::Native || no_fallback {
            return Err(failed("attach in native mode", error));
        }
        messages.push(format!(
            "native XDP was refused ({error}): generic mode, which is slower and drops packets that the sender left \
             unsegmented; check MTU, LRO and queue counts"
        ));
    }
    bpf::link_create(program, ifindex, XDP_FLAGS_SKB_MODE)
        .map_err(|source| failed("attach in generic mode", source))
}

/// The mode in which the device runs this link's program; `None` if it runs another program.
fn mode_of(link: &OwnedFd, ifindex: u32) -> io::Result<Option<XdpMode>> {
    // From netlink, as the kernel's description of a link does not contain the mode.
    let Some(info) = bpf::link_info(link.as_fd())? else { return Ok(None) };
    let DeviceXdp { native, generic, .. } = netlink::device_xdp(ifindex)?;
    Ok(if native == Some(info.program_id) {
        Some(XdpMode::Native)
    } else if generic == Some(info.program_id) {
        Some(XdpMode::Generic)
    } else {
        None
    })
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default()
}
