/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The steering program: decides, for each frame a NIC queue receives, whether it is Flowgate's. What is positively
 * ours goes to the AF_XDP socket of that queue; everything else goes on into the kernel.
 *
 * It must never drop, abort or change a packet: whatever it does not understand is the kernel's business. An empty
 * socket slot (worker dead, hung or not started) is XDP_PASS too, so the node fails open.
 *
 * How it grows: every parser fills one `struct target` (addresses are 16 bytes, IPv4 in its v4-mapped form) and
 * hands back a reason to pass or PARSED; steer() below it knows no header. IPv6, VLAN tags, fragments and ICMP are
 * further parsers and further reasons.
 */
#include "bpf.h"
#include "reasons.h"

#define QUEUE_SLOTS 4096 /* in the socket map, over all interfaces */
#define IP_FRAGMENT 0x3fff /* more-fragments flag and offset; "don't fragment" is not among them */
#define PARSED REASON_COUNT

/* Set by the loader for each interface before the program is verified. */
const volatile __u32 xsk_base = 0;   /* first socket slot of this interface */
const volatile __u32 xsk_queues = 0; /* slots it has */

struct address {
	__u32 word[4]; /* network byte order */
};

struct vip_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

/* Where a packet goes and comes from: all that steering looks at. */
struct target {
	struct address address;
	struct address source;
	__u16 port; /* host byte order */
	__u16 source_port;
	__u8 protocol;
};

enum port_set {
	PORT_SET_NODEPORT_TCP,
	PORT_SET_NODEPORT_UDP,
	PORT_SET_SNAT,
	PORT_SET_COUNT,
};

struct ports {
	__u8 bits[65536 / 8];
};

struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 262144);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct vip_key);
	TYPE(value, __u32);
} vips SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 4096);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, __u32);
} node_addrs SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 4096);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, __u32);
} snat_addrs SEC(".maps");

/* Backends whose clients keep their address: their answers go to the client and not to an address of ours. */
struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 65536);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct vip_key);
	TYPE(value, __u32);
} reply_sources SEC(".maps");

/* The node's own addresses: what such a backend sends to the node itself is the kernel's. */
struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 4096);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, __u32);
} own_addrs SEC(".maps");

/* Cluster IPs: on these every port is ours, those that no Service has are refused (P505). */
struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	UINT(max_entries, 65536);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct address);
	TYPE(value, __u32);
} cluster_ips SEC(".maps");

struct prefix {
	__u32 len; /* in bits; an IPv4 prefix has 96 more */
	struct address address;
};

/* The ranges that cluster IPs are taken from: what no Service has ends here (P506). */
struct {
	UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	UINT(max_entries, 1024);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, __u32);
} service_cidrs SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, PORT_SET_COUNT);
	TYPE(key, __u32);
	TYPE(value, struct ports);
} port_sets SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_XSKMAP);
	UINT(max_entries, QUEUE_SLOTS);
	TYPE(key, __u32);
	TYPE(value, __u32);
} xsks SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, REASON_ROOM);
	TYPE(key, __u32);
	TYPE(value, __u64);
} counters SEC(".maps");

INLINE void count(__u32 reason)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &reason);
	if (counter)
		(*counter)++;
}

INLINE int port_in(__u32 set, __u16 port)
{
	struct ports *ports = bpf_map_lookup_elem(&port_sets, &set);
	return ports && (ports->bits[port >> 3] & (1 << (port & 7)));
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

	__u32 nodeports = to->protocol == IPPROTO_TCP ? PORT_SET_NODEPORT_TCP : PORT_SET_NODEPORT_UDP;
	if (port_in(nodeports, to->port) && bpf_map_lookup_elem(&node_addrs, &to->address))
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

INLINE __u32 parse_ports(void *l4, void *end, __u32 l4_len, struct target *to)
{
	if (to->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		if ((void *)(tcp + 1) > end || l4_len < sizeof(*tcp))
			return REASON_pass_malformed;
		to->port = NTOHS(tcp->dest);
		to->source_port = NTOHS(tcp->source);
		return PARSED;
	}
	if (to->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;
		if ((void *)(udp + 1) > end || l4_len < sizeof(*udp))
			return REASON_pass_malformed;
		to->port = NTOHS(udp->dest);
		to->source_port = NTOHS(udp->source);
		return PARSED;
	}
	return REASON_pass_not_l4;
}

INLINE __u32 parse_ipv4(void *l3, void *end, struct target *to)
{
	struct iphdr *ip = l3;
	if ((void *)(ip + 1) > end)
		return REASON_pass_malformed;

	__u32 header_len = ip->ihl * 4;
	__u32 total_len = NTOHS(ip->tot_len);
	if (ip->version != 4 || header_len < sizeof(*ip) || total_len < header_len)
		return REASON_pass_malformed;
	if (l3 + total_len > end)
		return REASON_pass_malformed;
	if (ip->frag_off & HTONS(IP_FRAGMENT))
		return REASON_pass_fragment;

	to->address.word[2] = HTONL(0xffff); /* RFC 4291, 2.5.5.2: ::ffff:a.b.c.d */
	to->address.word[3] = ip->daddr;
	to->source.word[2] = HTONL(0xffff);
	to->source.word[3] = ip->saddr;
	to->protocol = ip->protocol;
	return parse_ports(l3 + header_len, end, total_len - header_len, to);
}

INLINE __u32 parse(struct xdp_md *ctx, struct target *to)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return REASON_pass_malformed;
	if (eth->h_proto == HTONS(ETH_P_IP))
		return parse_ipv4(eth + 1, end, to);
	return REASON_pass_not_ip;
}

SEC("xdp") int flowgate_steer(struct xdp_md *ctx)
{
	struct target to = {};
	__u32 reason = parse(ctx, &to);
	if (LIKELY(reason == PARSED))
		reason = steer(&to);

	long action = XDP_PASS;
	if (reason <= REASON_redirect_snat_reply || reason >= REASON_redirect_kept_reply) {
		__u32 queue = ctx->rx_queue_index;
		if (LIKELY(queue < xsk_queues))
			action = bpf_redirect_map(&xsks, xsk_base + queue, XDP_PASS);
		if (UNLIKELY(action != XDP_REDIRECT))
			reason = REASON_pass_no_worker;
	}
	count(reason);
	return action;
}

/* bpf_redirect_map is open to every licence; the string is what the kernel's loader asks for. */
char _license[] SEC("license") = "Dual MIT/GPL";
