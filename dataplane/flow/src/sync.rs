//! The atomics of the flow table. With the feature `interleave`, which only tests use, each operation first passes
//! through the scheduler of `interleave.rs`; the layout is the same.

pub(crate) use std::sync::atomic::{Ordering, fence};

#[cfg(not(feature = "interleave"))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};

#[cfg(feature = "interleave")]
pub(crate) use stepped::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};

#[cfg(feature = "interleave")]
mod stepped {
    #![allow(unreachable_pub, reason = "as public as the types that they stand for")]

    use std::sync::atomic::{self, Ordering};

    use crate::interleave::step;

    /// Declares an atomic with the scheduler in front of each operation.
    macro_rules! stepped {
        ($name:ident, $value:ty) => {
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub struct $name(atomic::$name);

            #[allow(dead_code, reason = "each type is used for a part of it")]
            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    step();
                    self.0.load(order)
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    step();
                    self.0.store(value, order);
                }

                pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.fetch_and(value, order)
                }

                pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    step();
                    self.0.fetch_or(value, order)
                }

                pub(crate) fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    step();
                    self.0.compare_exchange(current, new, success, failure)
                }

                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    // A weak exchange may fail spuriously, so that a seed would not repeat its schedule.
                    self.compare_exchange(current, new, success, failure)
                }
            }
        };
    }

    stepped!(AtomicBool, bool);
    stepped!(AtomicU16, u16);
    stepped!(AtomicU32, u32);
    stepped!(AtomicU64, u64);

    impl AtomicU32 {
        pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
            step();
            self.0.fetch_add(value, order)
        }

        pub(crate) fn fetch_update(
            &self,
            set: Ordering,
            fetch: Ordering,
            change: impl FnMut(u32) -> Option<u32>,
        ) -> Result<u32, u32> {
            step();
            self.0.fetch_update(set, fetch, change)
        }
    }
}
