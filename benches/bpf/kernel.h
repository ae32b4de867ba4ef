/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel declarations that the XDP programs need, so that they build with clang alone. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

enum xdp_action { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

/* include/uapi/linux/bpf.h: struct xdp_md */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#define BPF_MAP_TYPE_PERCPU_ARRAY 6

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

#define htons(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
