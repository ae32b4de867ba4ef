/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The part of libbpf's headers that the XDP program needs, on top of the kernel's uapi headers: building it takes clang
 * and the kernel headers of the C library, and neither libbpf nor bpftool.
 */
#ifndef FLOWGATE_BPF_H
#define FLOWGATE_BPF_H

#include <linux/bpf.h>
#include <linux/icmpv6.h>
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
/* A function of its own, so that rare cases do not spill registers in the common one. It is global and not static: the
 * verifier checks a global function once, with unknown arguments (kernel/bpf/verifier.c:do_check_subprogs), and a static
 * one again for every path that leads to it. */
#define NOINLINE __attribute__((noinline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Fields of a map definition in `.maps`. The loader reads them from BTF: a number is the length of an array type, a type
 * the target of a pointer type. Neither is ever an object in memory. */
#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) typeof(type) *name

/* A helper is called by its number: clang turns a call through a constant address into BPF_CALL with that number. */
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

/* `value`, which has no bit outside of `mask`, in a form that the verifier knows to be bounded. A comparison does not
 * show that reliably: the compiler may compare one copy of a value and use another, and up to Linux 6.12 the verifier
 * knows nothing of a value whose bytes were swapped. The compiler can neither drop this instruction nor see through it.
 * The mask has at most 31 bits: the immediate operand is a signed number of 32 bits. */
#define BOUNDED(value, mask)                                                \
	({                                                                  \
		__u64 bounded = (value);                                    \
		asm volatile("%0 &= %1" : "+r"(bounded) : "i"(mask));       \
		bounded;                                                    \
	})

/* The same pointer, with its origin hidden from the compiler. A comparison with the end of the packet proves something
 * only for pointers from the same addition of a variable offset, to which the verifier gives one id
 * (kernel/bpf/verifier.c:find_good_pkt_pointers). If the compiler added again before it reads, the verifier would know
 * nothing of the new sum. */
#define OPAQUE(pointer)                                                     \
	({                                                                  \
		void *opaque = (pointer);                                   \
		asm volatile("" : "+r"(opaque));                            \
		opaque;                                                     \
	})

#endif
