/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The XDP program: decides for each frame that a NIC queue receives whether it is Flowgate's. What is certainly ours is
 * redirected to the AF_XDP socket of that queue; everything else passes to the kernel.
 *
 * It must never abort or change a packet. It drops only what is certainly ours, only if the queue's slot has no socket,
 * and only within the grace period (map `hold_until`), which Flowgate keeps a few seconds ahead while it runs. So when
 * Flowgate is replaced, the kernel does not answer in its place and reset connections that the next process continues.
 * If no process follows, the grace period ends and an empty slot is XDP_PASS for everything: the node fails open. What
 * the program does not understand passes to the kernel in any case.
 *
 * The parsers (parse.h) fill one `struct target`; steer() below reads no header.
 *
 * Fragments. Only the first one has ports, and a worker cannot return a packet to the kernel, so the decision on the first
 * is remembered, for all queues together, and later ones follow it. A later fragment whose first one is not known (it
 * arrived earlier, on another path, or the map was full) is ours if it is sent to a VIP that is not an address of the
 * node: the kernel could not use it. On an address of the node (NodePorts, SNAT addresses) it may belong to the node's
 * own datagram and passes, so reordered fragments of ours are lost there, as are those of a backend that sees the
 * client's address.
 *
 * Written for the verifier of Linux 6.1, to be compiled by clang 14 or newer: no loops, and bounds of numbers and pointers
 * are proven where they are used (BOUNDED and OPAQUE in bpf.h).
 */
#include "bpf.h"
#include "maps.h"
#include "parse.h"
#include "reasons.h"

/* No receiver waits longer for the missing fragments of a datagram (RFC 8200, 4.5: 60 s). */
#define FRAGMENT_NS (60 * 1000000000ULL)

/* Reasons as bits: one test instead of a comparison per reason. There are fewer than 64. */
#define BIT(reason) (1ULL << REASON_##reason)
#define REDIRECTS                                                                                              \
	(BIT(redirect_vip) | BIT(redirect_nodeport) | BIT(redirect_snat_reply) | BIT(redirect_kept_reply) |    \
	 BIT(redirect_unserved) | BIT(redirect_fragment) | BIT(redirect_icmp_error) | BIT(redirect_echo))

/* Reasons to pass a packet that may yet be ours, by its address alone. */
#define UNSERVED                                                                                               \
	(BIT(pass_not_l4) | BIT(pass_fragment) | BIT(pass_malformed) | BIT(pass_not_ours) | BIT(pass_extensions))

/* Set by the loader per interface before the program is verified. `volatile`, or clang would fold the zeros in. */
const volatile __u32 xsk_base = 0;   /* first socket slot of this interface */
const volatile __u32 xsk_queues = 0; /* number of its slots */
const volatile __u32 interface = 0;  /* its position in the configuration */

/* Bytes from which on a frame counts for `deliveries`: no driver splits packets that are shorter. */
#define LARGE_FRAME 1000

INLINE void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);
	if (counter)
		(*counter)++; /* per CPU, so not atomic */
}

INLINE int is_redirect(__u32 reason)
{
	return (REDIRECTS >> reason) & 1;
}

INLINE int port_in(__u32 set, __u16 port)
{
	struct ports *ports = bpf_map_lookup_elem(&port_sets, &set);
	return ports && (ports->bits[BOUNDED(port >> 3, sizeof(ports->bits) - 1)] & (1 << (port & 7)));
}

/* The bytes of an Ethernet address in a load of eight. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define STATION_MASK 0x0000ffffffffffffULL
#else
#define STATION_MASK 0xffffffffffff0000ULL
#endif

/* Whether an address that `stations` does not have for this interface is the machine's own. What the kernel would take for
 * PACKET_OTHERHOST, PACKET_BROADCAST or PACKET_MULTICAST (net/ethernet/eth.c:eth_type_trans) is not. */
NOINLINE int is_other_station(__u64 address, __u32 vlan, __u32 is_known)
{
	const __u8 *bytes = (const __u8 *)&address;
	if (bytes[0] & 1)
		return 0;
	if (!is_known)
		return 1;
	struct station_key key = { .base = xsk_base, .vlan = vlan };
	__builtin_memcpy(key.address, bytes, sizeof(key.address));
	if (bpf_map_lookup_elem(&other_stations, &key))
		return 1;
	/* The address of a device counts for its VLANs too. */
	key.vlan = 0;
	return vlan && bpf_map_lookup_elem(&other_stations, &key);
}

/* Whether the frame is sent to this machine and to no other. */
INLINE int is_for_us(struct xdp_md *ctx, const struct target *to)
{
	void *data = (void *)(long)ctx->data;
	if (data + sizeof(struct ethhdr) > (void *)(long)ctx->data_end)
		return 0;
	__u64 address = *(__u64 *)data & STATION_MASK;
	__u32 index = interface;
	__u64 *own = bpf_map_lookup_elem(&stations, &index);
	if (LIKELY(own && *own == address))
		return 1;
	return is_other_station(address, to->vlan, own && *own);
}

INLINE __u32 nodeports_of(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return PORT_SET_NODEPORT_TCP;
	return protocol == IPPROTO_UDP ? PORT_SET_NODEPORT_UDP : PORT_SET_NODEPORT_SCTP;
}

/* Whether everything to this address is ours, of whatever protocol. */
INLINE int is_unserved(const struct target *to)
{
	/* A trie looks for the longest prefix of the key: all 128 bits are given. */
	struct prefix exact = { .len = 128, .address = to->address };
	return (bpf_map_lookup_elem(&cluster_ips, &to->address) || bpf_map_lookup_elem(&service_cidrs, &exact)) &&
	       !bpf_map_lookup_elem(&own_addrs, &to->address);
}

/* Looks for a reason to redirect the packet to a worker. Port sets come before address sets: they are arrays, a hash lookup
 * costs several times as much, and most packets fail there. Own addresses are exceptions to the last two reasons. */
INLINE __u32 steer(const struct target *to)
{
	struct vip_key vip = {
		.address = to->address,
		.port = HTONS(to->port),
		.protocol = to->protocol,
	};
	if (bpf_map_lookup_elem(&vips, &vip))
		return REASON_redirect_vip;

	if (port_in(nodeports_of(to->protocol), to->port) && bpf_map_lookup_elem(&node_addrs, &to->address))
		return REASON_redirect_nodeport;

	if (port_in(PORT_SET_SNAT, to->port) && bpf_map_lookup_elem(&snat_addrs, &to->address))
		return REASON_redirect_snat_reply;

	struct vip_key source = {
		.address = to->source,
		.port = HTONS(to->source_port),
		.protocol = to->protocol,
	};
	if (bpf_map_lookup_elem(&reply_sources, &source) && !bpf_map_lookup_elem(&own_addrs, &to->address))
		return REASON_redirect_kept_reply;

	return is_unserved(to) ? REASON_redirect_unserved : REASON_pass_not_ours;
}

INLINE struct fragment_key fragment_key(const struct target *to)
{
	return (struct fragment_key){
		.address = to->address,
		.source = to->source,
		.id = to->fragment_id,
		.protocol = to->fragment_protocol,
	};
}

/* That a datagram is not ours is remembered only if it matters: if an older datagram with the same key was ours (ids are
 * reused), or if steer_later_fragment() would take unknown fragments to this address for ours. */
INLINE void remember_fragment(const struct target *to, int ours)
{
	struct fragment_key key = fragment_key(to);
	if (!ours && !bpf_map_lookup_elem(&fragments, &key) && !bpf_map_lookup_elem(&vip_addrs, &to->address))
		return;
	struct fragment fragment = { .seen = bpf_ktime_get_ns(), .ours = ours };
	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
}

INLINE __u32 steer_later_fragment(const struct target *to)
{
	struct fragment_key key = fragment_key(to);
	struct fragment *first = bpf_map_lookup_elem(&fragments, &key);
	if (first && bpf_ktime_get_ns() - first->seen < FRAGMENT_NS)
		return first->ours ? REASON_redirect_fragment : REASON_pass_fragment;
	if (has_ports(to->protocol) && bpf_map_lookup_elem(&vip_addrs, &to->address) &&
	    !bpf_map_lookup_elem(&own_addrs, &to->address))
		return REASON_redirect_fragment;
	if (is_icmp(to->protocol) && bpf_map_lookup_elem(&echo_addrs, &to->address))
		return REASON_redirect_fragment;
	return REASON_pass_fragment;
}

/* What a worker drops or rejects rather than the kernel: packets without a reason to be redirected, but to an address of which
 * everything is ours. Not those that the kernel needs to see. */
NOINLINE __u32 steer_unserved(__u32 reason, const struct target *of_caller)
{
	if (!of_caller || of_caller->for_kernel)
		return reason;
	const struct target to = *of_caller;
	return is_unserved(&to) ? REASON_redirect_unserved : reason;
}

/* Everything except whole packets with ports. */
NOINLINE __u32 steer_slow(__u32 parsed, const struct target *of_caller)
{
	if (!of_caller) /* in a global function a pointer argument may be null, as far as the verifier knows */
		return REASON_pass_malformed;
	/* Linux 6.1 accepts as the key of a map memory of this function's own stack, not of its caller's. */
	const struct target to = *of_caller;
	if (parsed == PARSED_LATER)
		return steer_later_fragment(&to);
	int is_answered = is_icmp(to.protocol) && bpf_map_lookup_elem(&echo_addrs, &to.address);
	if (parsed == PARSED_ECHO)
		return is_answered ? REASON_redirect_echo : REASON_pass_not_ours;
	__u32 reason;
	if (parsed == PARSED_FIRST && is_icmp(to.protocol))
		reason = is_answered ? REASON_redirect_echo : REASON_pass_not_ours;
	else
		reason = steer(&to);
	if (parsed == PARSED_FIRST)
		remember_fragment(&to, is_redirect(reason));
	else if (is_redirect(reason))
		reason = REASON_redirect_icmp_error;
	return reason;
}

INLINE int in_grace_period(void)
{
	__u32 only = 0;
	__u64 *until = bpf_map_lookup_elem(&hold_until, &only);
	return until && bpf_ktime_get_ns() < *until;
}

/* Records whether the interface delivers large packets whole. Queues may overwrite each other's lengths, which does no
 * harm: the next packets give the same. Returns an int, since the verifier wants a scalar from a global function. */
NOINLINE int note_delivery(__u32 len, __u32 parsed)
{
	__u32 index = interface;
	struct delivery *delivery = bpf_map_lookup_elem(&deliveries, &index);
	if (!delivery)
		return 0;
	if (parsed == REASON_pass_truncated) {
		delivery->truncated_len = len;
		__sync_fetch_and_add(&delivery->truncated, 1);
	} else if (delivery->longest < len) {
		delivery->longest = len;
	}
	return 0;
}

SEC("xdp") int flowgate_steer(struct xdp_md *ctx)
{
	struct target to = {};
	const __u32 parsed = parse(ctx, xsk_base, &to);
	__u32 reason = parsed;
	/* Only the first frame of a packet that was split begins with headers. The rest can look like anything, but hardly
	 * like a large IP packet, so it does not count as a whole one. */
	__u32 len = ctx->data_end - ctx->data;
	if (UNLIKELY(parsed == REASON_pass_truncated) ||
	    (len >= LARGE_FRAME && (parsed >= PARSED || parsed == REASON_pass_not_l4)))
		note_delivery(len, parsed);
	if (UNLIKELY(parsed >= PARSED && !is_for_us(ctx, &to)))
		reason = REASON_pass_other_host;
	else if (LIKELY(parsed == PARSED))
		reason = steer(&to);
	else if (parsed > PARSED)
		reason = steer_slow(parsed, &to);
	if (UNLIKELY(parsed != PARSED && (UNSERVED >> reason) & 1 && is_for_us(ctx, &to)))
		reason = steer_unserved(reason, &to);

	if (!is_redirect(reason)) {
		count(reason);
		return XDP_PASS;
	}
	/* A queue beyond the slots never has a socket, so no successor would serve it either: it passes, also within the
	 * grace period. */
	__u32 queue = ctx->rx_queue_index;
	long action = XDP_PASS;
	if (LIKELY(queue < xsk_queues)) {
		action = bpf_redirect_map(&xsks, xsk_base + queue, XDP_PASS);
		/* The third argument is the result for an empty slot. */
		if (UNLIKELY(action != XDP_REDIRECT && in_grace_period()))
			action = XDP_DROP;
	}
	if (UNLIKELY(action != XDP_REDIRECT))
		reason = action == XDP_DROP ? REASON_drop_held : REASON_pass_no_worker;
	count(reason);
	return action;
}

/* bpf_redirect_map is not restricted to GPL programs, but the kernel requires a licence string. */
char _license[] SEC("license") = "Dual MIT/GPL";
