/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts the packets of one L4 destination port where they arrive, and drops them. Everything else passes to the kernel,
 * which has to answer ARP.
 */
#include "kernel.h"

#define HEADERS_LEN (14 + 20 + 4)

/* Set by the loader. */
const volatile __u16 port_be = 0;      /* 0: every port */
const volatile __u8 ip_proto = 0;      /* 0: TCP and UDP */
const volatile __u8 action = XDP_DROP; /* XDP_PASS: count and pass to the kernel */

struct sink_counters {
	__u64 packets;
	__u64 bytes;
	__u64 others;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sink_counters);
} counters SEC(".maps");

static int is_counted(void *data)
{
	__u8 proto = *(__u8 *)(data + 23);

	/* EtherType IPv4, no IP options */
	if (*(__u16 *)(data + 12) != htons(0x0800) || *(__u8 *)(data + 14) != 0x45)
		return 0;
	if (ip_proto ? proto != ip_proto : proto != 6 && proto != 17)
		return 0;
	return !port_be || *(__u16 *)(data + 36) == port_be;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct sink_counters *count;
	__u32 zero = 0;

	count = bpf_map_lookup_elem(&counters, &zero);
	if (!count)
		return XDP_PASS;
	if (data + HEADERS_LEN > end || !is_counted(data)) {
		count->others++;
		return XDP_PASS;
	}
	count->packets++;
	count->bytes += end - data;
	return action;
}

char _license[] SEC("license") = "Dual MIT/GPL";
