/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The steering program: decides, for each frame a NIC queue receives, whether it is Flowgate's. What is positively
 * ours goes to the AF_XDP socket of that queue; everything else goes on into the kernel.
 *
 * It must never abort or change a packet, and it drops only what is positively ours, only where no socket stands in
 * the queue's slot, and only before `hold_until`. Flowgate keeps that a few seconds ahead while it runs: when it is
 * replaced, no kernel stack answers in its place and resets what the next process goes on with. When nobody comes
 * back the time passes, and an empty slot is XDP_PASS for everything: the node fails open. Whatever the program does
 * not understand is the kernel's business, held or not.
 *
 * Every parser (parse.h) fills one `struct target`; steer() below knows no header.
 *
 * Fragments. Only the first one has ports, and a worker cannot give a packet back, so the later ones follow what was
 * decided for the first: it is remembered, by all queues in common. A later fragment whose first one is not known
 * (it came first, by another way, or the memory was full) is ours when it goes to a VIP that is not an address of
 * the node: the kernel could do nothing with it. On an address of the node (NodePorts, SNAT addresses) it may be
 * part of the node's own datagram and passes, so reordered fragments of ours are lost there; so are those of a
 * backend whose clients keep their address.
 *
 * Written for the verifier of Linux 6.1, and to be compiled by clang from 14 on: no loops, and what the verifier has to
 * know of a number or a pointer is proven where it is used (BOUNDED and MADE_ONCE in bpf.h).
 */
#include "bpf.h"
#include "maps.h"
#include "parse.h"
#include "reasons.h"

/* Longer than any reassembly waits for the rest (RFC 8200, 4.5: 60 s). */
#define FRAGMENT_NS (60 * 1000000000ULL)

#define BIT(reason) (1ULL << REASON_##reason)
#define REDIRECTS                                                                                              \
	(BIT(redirect_vip) | BIT(redirect_nodeport) | BIT(redirect_snat_reply) | BIT(redirect_kept_reply) |    \
	 BIT(redirect_unserved) | BIT(redirect_fragment) | BIT(redirect_icmp_error) | BIT(redirect_echo))

/* Set by the loader for each interface before the program is verified. */
const volatile __u32 xsk_base = 0;   /* first socket slot of this interface */
const volatile __u32 xsk_queues = 0; /* slots it has */
const volatile __u32 interface = 0;  /* its place in the configuration */

/* Frames from this length on are looked at: a driver that cuts packets cuts none that is shorter. */
#define LARGE_FRAME 1000

INLINE void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);
	if (counter)
		(*counter)++;
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

INLINE __u32 nodeports_of(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return PORT_SET_NODEPORT_TCP;
	return protocol == IPPROTO_UDP ? PORT_SET_NODEPORT_UDP : PORT_SET_NODEPORT_SCTP;
}

/* Looks for a reason to hand the packet to a worker. The port sets come before the address sets: they are arrays,
 * a hash lookup costs several times as much, and most packets fail there. */
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

	struct prefix exact = { .len = 128, .address = to->address };
	if ((bpf_map_lookup_elem(&cluster_ips, &to->address) || bpf_map_lookup_elem(&service_cidrs, &exact)) &&
	    !bpf_map_lookup_elem(&own_addrs, &to->address))
		return REASON_redirect_unserved;

	return REASON_pass_not_ours;
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

/* What is not ours is remembered too where it matters: where an older datagram of the same key was ours, or where
 * later fragments would be ours without knowing better. */
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
	return REASON_pass_fragment;
}

/* Everything but whole packets with ports. */
OUTLINE __u32 steer_unusual(__u32 parsed, const struct target *of_caller)
{
	if (!of_caller) /* for the verifier */
		return REASON_pass_malformed;
	/* Linux 6.1 takes no key of a map from what a caller's pointer leads to. */
	const struct target to = *of_caller;
	if (parsed == PARSED_LATER)
		return steer_later_fragment(&to);
	if (parsed == PARSED_ECHO)
		return bpf_map_lookup_elem(&echo_addrs, &to.address) ? REASON_redirect_echo :
									REASON_pass_not_ours;
	__u32 reason = steer(&to);
	if (parsed == PARSED_FIRST)
		remember_fragment(&to, is_redirect(reason));
	else if (is_redirect(reason))
		reason = REASON_redirect_icmp_error;
	return reason;
}

INLINE int is_held(void)
{
	__u32 only = 0;
	__u64 *until = bpf_map_lookup_elem(&hold_until, &only);
	return until && bpf_ktime_get_ns() < *until;
}

/* Notes whether the interface delivers large packets whole. Packets on several queues may overwrite each other's notes
 * of lengths: the next ones say the same. */
OUTLINE int note_delivery(__u32 len, __u32 parsed)
{
	__u32 place = interface;
	struct delivery *delivery = bpf_map_lookup_elem(&deliveries, &place);
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
	__u32 reason = parse(ctx, xsk_base, &to);
	/* Of what is cut only the first frame begins with headers: what follows it may look like anything, but hardly like
	 * a large packet of IP. */
	__u32 len = ctx->data_end - ctx->data;
	if (UNLIKELY(reason == REASON_pass_truncated) ||
	    (len >= LARGE_FRAME && (reason >= PARSED || reason == REASON_pass_not_l4)))
		note_delivery(len, reason);
	if (LIKELY(reason == PARSED))
		reason = steer(&to);
	else if (reason > PARSED)
		reason = steer_unusual(reason, &to);

	if (!is_redirect(reason)) {
		count(reason);
		return XDP_PASS;
	}
	/* A queue beyond the slots never has a socket: there is nothing to hold for. */
	__u32 queue = ctx->rx_queue_index;
	long action = XDP_PASS;
	if (LIKELY(queue < xsk_queues)) {
		action = bpf_redirect_map(&xsks, xsk_base + queue, XDP_PASS);
		if (UNLIKELY(action != XDP_REDIRECT && is_held()))
			action = XDP_DROP;
	}
	if (UNLIKELY(action != XDP_REDIRECT))
		reason = action == XDP_DROP ? REASON_drop_held : REASON_pass_no_worker;
	count(reason);
	return action;
}

/* bpf_redirect_map is open to every licence; the string is what the kernel's loader asks for. */
char _license[] SEC("license") = "Dual MIT/GPL";
