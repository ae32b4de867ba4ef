//! The numbers by which tables and conntrack entries refer to one another.

/// Number of a Service port; the same in all generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// A backend: its slot, and the epoch of the slot, which counts its earlier owners.
///
/// Conntrack entries store it. Once the backend is removed the slot has another epoch, so the entry is recognised as
/// stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BackendId(u32);

impl BackendId {
    /// Number of slots; the last one belongs to [`NONE`](Self::NONE).
    pub const SLOTS_MAX: u32 = 1 << SLOT_BITS;

    /// No backend: never current.
    pub const NONE: Self = Self(u32::MAX);

    pub(crate) const fn new(slot: u32, epoch: u8) -> Self {
        Self(slot | (epoch as u32) << SLOT_BITS)
    }

    /// The slot in the backend table.
    #[inline]
    pub const fn slot(self) -> usize {
        // The slot is in the lower 24 bits and the epoch above it: one 32-bit field of the entry.
        (self.0 & (Self::SLOTS_MAX - 1)) as usize
    }

    /// The number of earlier owners of the slot, modulo 256.
    #[inline]
    pub const fn epoch(self) -> u8 {
        (self.0 >> SLOT_BITS) as u8
    }

    /// The form that a conntrack entry stores.
    #[inline]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`BackendId::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// Number of an interface: devices in the order of the configuration, then their VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct InterfaceId(pub u8);

impl InterfaceId {
    /// Largest number of interfaces.
    pub const MAX: usize = u8::MAX as usize;

    /// Position among the interfaces.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Number of a next hop; the same in all generations that have its interface and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct NextHopId(pub(crate) u32);

impl NextHopId {
    /// Largest number of next hops: a conntrack entry has 24 bits for one.
    pub const MAX: u32 = 1 << 24;

    /// Position in the table.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The form that a conntrack entry stores.
    #[inline]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`NextHopId::to_bits`].
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

const SLOT_BITS: u32 = 24;
