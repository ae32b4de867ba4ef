//! Opens sockets on packet memory, at the start and while a worker uses the memory.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;

use crate::region::RegionRef;
use crate::umem::Rings;
use crate::{BindMode, MissingFeature, XskError, XskSocket, XskSocketConfig, ZeroCopy, umem};

/// A handle on the memory of a [`FramePool`](crate::FramePool). It may be used by another thread than the pool's, and opens
/// sockets whose frames are the pool's.
pub struct PacketMemory {
    region: RegionRef,
}

/// Sockets that were opened together.
#[derive(Debug)]
pub struct OpenedSockets {
    /// The sockets, in the order of their configurations.
    pub sockets: Vec<XskSocket>,
    /// Why they are in copy mode although zero copy was tried; `None` otherwise.
    pub zero_copy_refusal: Option<String>,
    /// Features that this kernel does not have, without which the sockets work.
    pub missing_features: BTreeSet<MissingFeature>,
}

impl PacketMemory {
    pub(crate) fn of(region: RegionRef) -> Self {
        Self { region }
    }

    /// Binds the sockets, in their order. Of an interface all have to be opened by one call.
    ///
    /// If all are [`ZeroCopy::Auto`], tries zero copy first; if one cannot be bound so, binds all in copy mode.
    ///
    /// # Errors
    ///
    /// [`XskError`] with the socket and a hint. A queue that is still busy because of a process that has just died is tried
    /// for about three seconds.
    pub fn open(&self, sockets: &[XskSocketConfig]) -> Result<OpenedSockets, XskError> {
        umem::check_sockets(sockets)?;
        if sockets.iter().any(|socket| socket.zero_copy == ZeroCopy::Off) {
            return self.open_in(BindMode::Copy, sockets, None);
        }
        match self.open_in(BindMode::ZeroCopy, sockets, None) {
            Err(XskError::Bind { source, .. })
                // No device or no privilege: copy mode would fail in the same way.
                if sockets.iter().all(|socket| socket.zero_copy == ZeroCopy::Auto)
                    && !matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EPERM)) =>
            {
                self.open_in(BindMode::Copy, sockets, Some(source.to_string()))
            }
            other => other,
        }
    }

    fn open_in(
        &self,
        mode: BindMode,
        sockets: &[XskSocketConfig],
        zero_copy_refusal: Option<String>,
    ) -> Result<OpenedSockets, XskError> {
        let mut rings: Vec<Rings> = Vec::with_capacity(sockets.len());
        // All are bound before the first `XskSocket` exists: an error here leaves nothing that refers to frames.
        for socket in sockets {
            let earlier = sockets.iter().zip(&rings).find(|(other, _)| other.interface == socket.interface);
            let shared = earlier.map(|(_, rings)| rings.fd.as_fd());
            rings.push(umem::open(&self.region, socket, mode, shared)?);
        }
        let mut missing_features = BTreeSet::new();
        let open = |(config, rings): (&XskSocketConfig, Rings)| {
            XskSocket::new(config, rings, self.region.another(), &mut missing_features)
        };
        let sockets = sockets.iter().zip(rings).map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(OpenedSockets { sockets, zero_copy_refusal, missing_features })
    }
}

impl fmt::Debug for PacketMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketMemory").field("chunks", &self.region.chunk_count()).finish()
    }
}
