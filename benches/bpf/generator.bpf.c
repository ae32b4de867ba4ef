/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generates the packets of the load generator, one per run, and sends them out of one interface.
 *
 * The kernel recycles the pages of live frames without resetting them, and a forwarder may have rewritten them, so each
 * run writes the whole header without reading old bytes. The only state is the per-CPU struct below.
 */
#include "kernel.h"

#define HEADER_LEN 60

/* Set by the loader; the verifier sees them as constants. */
const volatile __u64 template[8] = {}; /* the frame, source address, source port and checksums zero */
const volatile __u32 ip_sum = 0;       /* one's complement sum of the template's IP header */
const volatile __u32 l4_sum = 0;       /* one's complement sum of pseudo header, L4 header and payload */
const volatile __u32 ifindex = 0;
const volatile __u32 flows = 1;
const volatile __u32 first_address = 0; /* host order */
const volatile __u32 first_port = 0;
const volatile __u32 ports_log2 = 0; /* source ports per source address */
const volatile __u32 is_tcp = 0;
const volatile __u64 period_1024 = 0; /* 1/1024 ns between packets of one CPU; 0: full rate */

struct generator_state {
	__u64 sent;
	__u64 flow;
	__u64 due_1024;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct generator_state);
} states SEC(".maps");

static __u16 finish(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Limits the rate by dropping frames that are not due: unlike sleeping between calls, this keeps the gaps even. */
static int is_due(struct generator_state *state)
{
	__u64 now = bpf_ktime_get_ns() << 10;

	if (now < state->due_1024)
		return 0;
	/* Catch up at most 1 ms, to avoid a burst. */
	if (now - state->due_1024 > (1000000ULL << 10))
		state->due_1024 = now;
	state->due_1024 += period_1024;
	return 1;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct generator_state *state;
	__u32 zero = 0, flow, source, sum;
	__u16 port;

	state = bpf_map_lookup_elem(&states, &zero);
	if (!state || data + HEADER_LEN > end)
		return XDP_ABORTED;
	if (period_1024 && !is_due(state))
		return XDP_DROP;

	flow = state->flow;
	state->flow = flow + 1 < flows ? flow + 1 : 0;
	source = htonl(first_address + (flow >> ports_log2));
	port = htons(first_port + (flow & ((1U << ports_log2) - 1)));
	sum = (source & 0xffff) + (source >> 16);

	*(__u64 *)(data + 0) = template[0];
	*(__u64 *)(data + 8) = template[1];
	*(__u64 *)(data + 16) = template[2];
	*(__u64 *)(data + 24) = template[3];
	*(__u64 *)(data + 32) = template[4];
	*(__u64 *)(data + 40) = template[5];
	*(__u64 *)(data + 48) = template[6];
	*(__u32 *)(data + 56) = template[7];

	*(__u16 *)(data + 24) = finish(ip_sum + sum);
	*(__u32 *)(data + 26) = source;
	*(__u16 *)(data + 34) = port;
	sum = finish(l4_sum + sum + port);
	if (is_tcp)
		*(__u16 *)(data + 50) = sum;
	else
		*(__u16 *)(data + 40) = sum ? sum : 0xffff; /* RFC 768: 0 means no checksum */

	state->sent++;
	return bpf_redirect(ifindex, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
