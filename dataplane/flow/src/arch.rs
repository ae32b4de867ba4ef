//! Prefetch and byte comparison: instructions without a portable form in Rust, with a fallback of the same result.
#![allow(unsafe_code, reason = "processor instructions behind safe functions")]

use crate::sync::{AtomicU64, Ordering, fence};

/// Starts loading the cache line that `target` begins in.
#[inline(always)]
pub fn prefetch<T: ?Sized>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = std::ptr::from_ref(target).cast::<i8>();
        // SAFETY: PREFETCHT0 is a hint: it neither faults nor writes, whatever the address (Intel SDM 2B).
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = target;
}

/// One bit per byte of `words`, in memory order: whether it is equal to `byte`. Each byte is read with acquire ordering,
/// but not all at the same time.
#[inline(always)]
pub(crate) fn equal_bytes(words: &AlignedWords, byte: u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe { equal_bytes_sse2(words, byte) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    equal_bytes_portable(words.0.each_ref().map(|word| word.load(Ordering::Acquire)), byte)
}

/// Four words that can be read as two registers of 16 bytes.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub(crate) struct AlignedWords(pub(crate) [AtomicU64; 4]);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn equal_bytes_sse2(words: &AlignedWords, byte: u8) -> u32 {
    #[cfg(feature = "interleave")]
    crate::interleave::step();
    use std::arch::asm;
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set1_epi8};
    let (low, high): (__m128i, __m128i);
    // Atomic loads would go through general registers, as the compiler must not join them.
    // SAFETY: reads the 32 bytes of `words`, which are aligned to 32, and nothing else. The processor may
    // do so in several steps, as 32 atomic loads of a byte would: no byte is torn.
    unsafe {
        asm!(
            "movdqa {low}, [{words}]",
            "movdqa {high}, [{words} + 16]",
            words = in(reg) words,
            low = out(xmm_reg) low,
            high = out(xmm_reg) high,
            options(pure, readonly, nostack, preserves_flags),
        );
    };
    // x86 does not reorder loads with other loads (Intel SDM 3A, "Memory Ordering"); the fence stops the compiler from it.
    fence(Ordering::Acquire);
    let wanted = _mm_set1_epi8(byte.cast_signed());
    let low = _mm_movemask_epi8(_mm_cmpeq_epi8(low, wanted)).cast_unsigned();
    let high = _mm_movemask_epi8(_mm_cmpeq_epi8(high, wanted)).cast_unsigned();
    low | high << 16
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_bytes_portable(words: [u64; 4], byte: u8) -> u32 {
    const LOW7: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    words.into_iter().zip(0..).fold(0, |mask, (word, number)| {
        let differing = word ^ (0x0101_0101_0101_0101 * u64::from(byte));
        // Bit 7 of every byte that is zero, exactly: nothing carries from byte to byte.
        let zero = !(((differing & LOW7) + LOW7) | differing | LOW7);
        // Gathers the eight bits in the top byte.
        let gathered = (zero >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        mask | ((gathered & 0xff) as u32) << (number * 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_forms_find_exactly_the_equal_bytes(bytes in any::<[u8; 32]>(), spots in any::<u32>(), wanted in any::<u8>()) {
            let byte = |i: usize| if spots >> i & 1 == 1 { wanted } else { bytes[i] };
            let words = std::array::from_fn(|w| u64::from_le_bytes(std::array::from_fn(|b| byte(w * 8 + b))));
            let oracle = (0..32).filter(|&i| byte(i) == wanted).fold(0_u32, |mask, i| mask | 1 << i);
            prop_assert_eq!(equal_bytes(&AlignedWords(words.map(AtomicU64::new)), wanted), oracle);
            prop_assert_eq!(equal_bytes_portable(words, wanted), oracle);
        }
    }
}
