//! Type, key, value and capacity of a pinned map.

use aya::maps::{MapInfo, MapType};

/// Allocates entries when they are added: a set has room for more than it holds.
const BPF_F_NO_PREALLOC: u32 = 1;

/// What the kernel must report of a pinned map.
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) key_len: usize,
    pub(super) value_len: usize,
    pub(super) size: Size,
    pub(super) flags: u32,
}

/// How many entries a map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// As the program expects.
    Fixed(u32),
    /// Any: a set that is too small or too large is replaced later, without a gap.
    Any,
}

impl Shape {
    /// A map of which only the keys matter; its values are a `u32` that nobody reads.
    pub(super) const fn set(name: &'static str, kind: MapType, key_len: usize) -> Self {
        Self { name, kind, key_len, value_len: 4, size: Size::Any, flags: BPF_F_NO_PREALLOC }
    }

    pub(super) const fn array(name: &'static str, value_len: usize, max_entries: u32) -> Self {
        Self { name, kind: MapType::Array, key_len: 4, value_len, size: Size::Fixed(max_entries), flags: 0 }
    }

    pub(super) fn matches(&self, info: &MapInfo) -> bool {
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key_len
            && info.value_size() as usize == self.value_len
            && (self.size == Size::Any || self.size == Size::Fixed(info.max_entries()))
            && info.map_flags() == self.flags
    }
}
