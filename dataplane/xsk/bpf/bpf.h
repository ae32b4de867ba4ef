/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The little of BPF's C side that the steering program needs, on the kernel's own uapi headers, so that building
 * it takes clang and the C library's headers and nothing else.
 */
#ifndef FLOWGATE_BPF_H
#define FLOWGATE_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* A function of its own, which keeps what is rare out of the way. Not static, so that the verifier looks at it once,
 * knowing nothing of its callers; as a static one it would be verified again for every way that leads to it. */
#define OUTLINE __attribute__((noinline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Fields of a map definition that is described by BTF. */
#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) typeof(type) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HTONS(x) __builtin_bswap16((__u16)(x))
#define HTONL(x) __builtin_bswap32((__u32)(x))
#else
#define HTONS(x) ((__u16)(x))
#define HTONL(x) ((__u32)(x))
#endif
#define NTOHS(x) HTONS(x)

/* `value`, in which no bit is set outside of `mask`, so that the verifier knows it. A comparison does not tell it that
 * reliably: the compiler may compare one copy of a value and use another, and up to Linux 6.12 a value is unknown once
 * its bytes were swapped. The compiler can neither leave this instruction out nor see through it. The mask is one of
 * 31 bits, since the instruction has room for a signed number of 32. */
#define BOUNDED(value, mask)                                                \
	({                                                                  \
		__u64 bounded = (value);                                    \
		asm volatile("%0 &= %1" : "+r"(bounded) : "i"(mask));       \
		bounded;                                                    \
	})

/* The same pointer, and the compiler does not know of what it was added up. What a comparison with the end of the packet
 * proves, it proves of pointers that come from the same addition: if the compiler made the sum anew to read by it,
 * the verifier would know nothing of that one. */
#define MADE_ONCE(pointer)                                                  \
	({                                                                  \
		void *made_once = (pointer);                                \
		asm volatile("" : "+r"(made_once));                         \
		made_once;                                                  \
	})

#endif
