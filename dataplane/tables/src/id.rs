//! The numbers by which tables and conntrack entries refer to one another. Imports nothing of this crate.

/// Numbers a Service port; keeps its number across generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// A backend: its slot and how often the slot had been given away before.
///
/// A conntrack entry keeps one. When the backend is removed and the slot goes to another, the epoch
/// differs and the entry is seen to be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BackendId(u32);

impl BackendId {
    /// Slots that can be numbered; the last one is that of [`NONE`](Self::NONE).
    pub const SLOTS_MAX: u32 = 1 << SLOT_BITS;

    /// That of no backend: never current.
    pub const NONE: Self = Self(u32::MAX);

    pub(crate) const fn new(slot: u32, epoch: u8) -> Self {
        Self(slot | (epoch as u32) << SLOT_BITS)
    }

    /// The slot in the backend table.
    #[inline]
    pub const fn slot(self) -> usize {
        (self.0 & (Self::SLOTS_MAX - 1)) as usize
    }

    /// How often the slot had been given away before, modulo 256.
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

/// Numbers an interface: the devices in the order of the configuration, then their VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct InterfaceId(pub u8);

impl InterfaceId {
    /// Interfaces at most.
    pub const MAX: usize = u8::MAX as usize;

    /// Position among the interfaces.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Numbers a next hop; keeps its number while interface and address stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct NextHopId(pub(crate) u32);

impl NextHopId {
    /// Next hops at most: a conntrack entry keeps 24 bits.
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
