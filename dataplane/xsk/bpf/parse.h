/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * From a frame to a `struct target`. Every parser returns a reason to pass the packet to the kernel, or one of `enum
 * parsed`. They know what is in the frame and not what is served, except for VLANs. `tests/program/model.rs` is the same in
 * Rust, as the oracle of a property test.
 */
#ifndef FLOWGATE_PARSE_H
#define FLOWGATE_PARSE_H

#include "maps.h"

#define IP_MORE 0x2000	    /* RFC 791, 3.1: more fragments */
#define IP_OFFSET 0x1fff    /* RFC 791, 3.1: fragment offset, in units of 8 bytes */
#define IPV6_MORE 0x0001    /* RFC 8200, 4.5: M flag */
#define IPV6_OFFSET 0xfff8  /* RFC 8200, 4.5: fragment offset, in bytes */
#define IPV6_VERSION 6	    /* <linux/ip.h> has IPVERSION, which is 4 */
#define IPV6_EXTENSIONS 6   /* extension headers that are followed */
#define VLAN_ID 0x0fff	    /* IEEE 802.1Q, 9.6: the lower 12 bits of the TCI */
#define V4_MAPPED HTONL(0xffff) /* third word of ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) */
#define MAX_OFFSET 0x3fff	    /* offset behind which no header is looked for: all that are followed take less */

/* RFC 792. <linux/icmp.h> has the same numbers, but includes <sys/socket.h>, which clang cannot read for this target. */
#define ICMP_ECHO 8
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

/* RFC 4861, 4: the first and the last message of neighbour discovery. */
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_REDIRECT 137

/* What a parser can return besides a reason to pass; the numbers go on after `enum reason`. */
enum parsed {
	PARSED = REASON_COUNT, /* a whole packet with ports */
	PARSED_FIRST,	       /* a first fragment with ports, or of an echo request */
	PARSED_LATER,	       /* a later fragment, which has no ports */
	PARSED_ERROR,	       /* an ICMP error, with the ports of the packet inside */
	PARSED_ECHO,	       /* an echo request */
};

/* Addresses, ports and protocol of a packet: all that steering looks at. For an ICMP error, those of a reply to the packet
 * inside, so that steer() needs no case for it. */
struct target {
	struct address address;
	struct address source;
	__u16 port; /* host byte order */
	__u16 source_port;
	__u32 fragment_id;
	__u8 protocol;
	__u8 fragment_protocol; /* 0 for IPv6 */
	__u16 vlan;		/* of the tag, host byte order; 0: none */
	__u16 for_kernel;	/* 1: whatever it is addressed to */
	__u16 hop_limit;	/* of IPv6 */
};

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

struct icmp_header { /* RFC 792 and RFC 4443, 2.1 */
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

struct extension { /* RFC 8200, 4.3, 4.4 and 4.6: what hop-by-hop options, routing and destination options share */
	__u8 next;
	__u8 len; /* in units of 8 bytes, without the first 8 */
	__u8 routing_type;
	__u8 segments_left;
	__be32 rest;
};

struct fragment_header { /* RFC 8200, 4.5 */
	__u8 next;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* TCP, UDP and SCTP headers all begin with these. */
struct l4_ports {
	__be16 source;
	__be16 dest;
};

struct sctp_header { /* RFC 9260, 3.1 */
	struct l4_ports ports;
	__be32 tag;
	__be32 checksum;
};

/* What is left of a packet behind the headers parsed so far: `offset` from the start of the frame, and `len` bytes as the
 * lengths in those headers have it. An offset and not a pointer: one is passed to a global function as a plain number,
 * the other would lose what the verifier knows of it. */
struct part {
	__u32 offset;
	__u32 len;
};

/* The first `size` bytes of the part, or null if it or the frame is shorter. */
INLINE void *header_at(struct xdp_md *ctx, const struct part *part, __u32 size)
{
	void *end = (void *)(long)ctx->data_end;
	if (part->len < size || part->offset > MAX_OFFSET)
		return 0;
	void *header = OPAQUE((void *)(long)ctx->data + BOUNDED(part->offset, MAX_OFFSET));
	return header + size > end ? 0 : header;
}

INLINE void skip(struct part *part, __u32 size)
{
	part->offset += size;
	part->len -= size;
}

INLINE int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

INLINE int is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

INLINE __u32 parse_ports(void *l4, void *end, __u32 l4_len, struct target *to)
{
	struct l4_ports *ports = l4;
	if (to->protocol == IPPROTO_TCP) {
		if (l4 + sizeof(struct tcphdr) > end || l4_len < sizeof(struct tcphdr))
			return REASON_pass_malformed;
	} else if (to->protocol == IPPROTO_UDP) {
		if (l4 + sizeof(struct udphdr) > end || l4_len < sizeof(struct udphdr))
			return REASON_pass_malformed;
	} else if (to->protocol == IPPROTO_SCTP) {
		if (l4 + sizeof(struct sctp_header) > end || l4_len < sizeof(struct sctp_header))
			return REASON_pass_malformed;
	} else {
		return REASON_pass_not_l4;
	}
	to->port = NTOHS(ports->dest);
	to->source_port = NTOHS(ports->source);
	return PARSED;
}

/* The first fragment of a message: PARSED_FIRST if it is an echo request. */
INLINE __u32 parse_first_of_icmp(struct xdp_md *ctx, const struct part *part, __u8 echo)
{
	struct icmp_header *icmp = header_at(ctx, part, sizeof(*icmp));
	return icmp && icmp->type == echo ? PARSED_FIRST : REASON_pass_fragment;
}

/* The ports of a packet inside an ICMP error, swapped to those of a reply. RFC 792 guarantees 8 bytes of L4; the ports are
 * the first 4. */
INLINE __u32 parse_embedded_ports(struct xdp_md *ctx, const struct part *l4, struct target *to)
{
	if (!has_ports(to->protocol))
		return REASON_pass_not_l4;
	struct l4_ports *ports = header_at(ctx, l4, sizeof(*ports));
	if (!ports)
		return REASON_pass_malformed;
	to->port = NTOHS(ports->source);
	to->source_port = NTOHS(ports->dest);
	return PARSED_ERROR;
}

/* ICMP, not fragmented. An error is sent to the source of the packet inside (RFC 792): one that is sent elsewhere is not
 * about a flow of ours. */
NOINLINE __u32 parse_icmpv4(struct xdp_md *ctx, __u32 offset, __u32 len, struct target *to)
{
	struct part part = { offset, len };
	struct icmp_header *icmp = header_at(ctx, &part, sizeof(*icmp));
	if (!icmp || !to)
		return REASON_pass_malformed;
	if (icmp->type == ICMP_ECHO)
		return PARSED_ECHO;
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_PARAMETERPROB)
		return REASON_pass_not_l4;

	skip(&part, sizeof(*icmp));
	struct iphdr *ip = header_at(ctx, &part, sizeof(*ip));
	if (!ip)
		return REASON_pass_malformed;
	__u32 header_len = ip->ihl * 4;
	if (ip->version != IPVERSION || header_len < sizeof(*ip) || part.len < header_len)
		return REASON_pass_malformed;
	if (ip->frag_off & HTONS(IP_OFFSET))
		return REASON_pass_fragment;
	if (ip->saddr != to->address.word[3])
		return REASON_pass_not_ours;
	to->source.word[3] = ip->daddr;
	to->protocol = ip->protocol;
	skip(&part, header_len);
	return parse_embedded_ports(ctx, &part, to);
}

INLINE __u32 parse_ipv4(struct xdp_md *ctx, void *l3, void *end, struct target *to)
{
	struct iphdr *ip = l3;
	if ((void *)(ip + 1) > end)
		return REASON_pass_malformed;

	__u32 header_len = ip->ihl * 4;
	__u64 total_len = BOUNDED(NTOHS(ip->tot_len), 0xffff);
	if (ip->version != IPVERSION || header_len < sizeof(*ip) || total_len < header_len)
		return REASON_pass_malformed;
	if (l3 + total_len > end)
		return REASON_pass_truncated;

	to->address.word[2] = V4_MAPPED;
	to->address.word[3] = ip->daddr;
	to->source.word[2] = V4_MAPPED;
	to->source.word[3] = ip->saddr;
	to->protocol = ip->protocol;

	void *l4 = OPAQUE(l3 + header_len);
	__u32 l4_len = total_len - header_len;
	if (LIKELY(!(ip->frag_off & HTONS(IP_MORE | IP_OFFSET)))) {
		if (UNLIKELY(ip->protocol == IPPROTO_ICMP))
			return parse_icmpv4(ctx, l4 - (void *)(long)ctx->data, l4_len, to);
		return parse_ports(l4, end, l4_len, to);
	}
	to->fragment_id = ip->id;
	to->fragment_protocol = ip->protocol;
	if (ip->frag_off & HTONS(IP_OFFSET))
		return PARSED_LATER;
	if (ip->protocol == IPPROTO_ICMP) {
		struct part part = { l4 - (void *)(long)ctx->data, l4_len };
		return parse_first_of_icmp(ctx, &part, ICMP_ECHO);
	}
	if (!has_ports(ip->protocol))
		return REASON_pass_fragment;
	__u32 parsed = parse_ports(l4, end, l4_len, to);
	return parsed == PARSED ? PARSED_FIRST : parsed;
}

/* v4-mapped addresses do not appear in IPv6 packets. One that has them nevertheless must not match IPv4 entries of the maps. */
INLINE int is_mapped(const struct address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == V4_MAPPED;
}

INLINE void copy_ipv6(struct address *to, const struct in6_addr *from)
{
	const __u32 *words = (const void *)from;
	to->word[0] = words[0];
	to->word[1] = words[1];
	to->word[2] = words[2];
	to->word[3] = words[3];
}

INLINE int is_same(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

/* Follows the extension headers that begin with `to->protocol`; afterwards `to->protocol` and `part` are those of the
 * upper layer. Unrolled, since Linux 6.1 rejects a loop whose jump back is unconditional, and the compiler chooses which
 * jump that is. */
INLINE __u32 walk_extensions(struct xdp_md *ctx, struct part *part, struct target *to)
{
	__u32 parsed = PARSED;
#pragma unroll
	for (int i = 0; i <= IPV6_EXTENSIONS; i++) {
		__u8 next = to->protocol;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			return parsed;
		/* Hop-by-hop options stand first or are an error (RFC 8200, 4.1). */
		if (i == IPV6_EXTENSIONS || (i > 0 && next == IPPROTO_HOPOPTS))
			return REASON_pass_extensions;

		struct extension *extension = header_at(ctx, part, sizeof(*extension));
		if (!extension)
			return REASON_pass_malformed;
		to->protocol = extension->next;
		__u32 len = sizeof(*extension);
		if (next == IPPROTO_FRAGMENT) {
			struct fragment_header *fragment = (void *)extension;
			to->fragment_id = fragment->id;
			if (fragment->offset & HTONS(IPV6_OFFSET))
				return PARSED_LATER;
			/* Without M flag and offset it is a whole packet (RFC 6946, atomic fragments). */
			if (fragment->offset & HTONS(IPV6_MORE))
				parsed = PARSED_FIRST;
		} else {
			len += extension->len * 8;
			if (part->len < len)
				return REASON_pass_malformed;
			/* The final destination is still another one (RFC 8200, 4.4). */
			if (next == IPPROTO_ROUTING && extension->segments_left)
				return REASON_pass_extensions;
		}
		skip(part, len);
	}
	return REASON_pass_extensions;
}

/* Neighbour discovery (RFC 4861, 7.1) and MLD (RFC 2710, 3; RFC 3810, 5) by a neighbour, which no router can have forwarded: a
 * router may probe any address of ours by unicast. */
INLINE int is_of_link(__u8 type, __u16 hop_limit)
{
	if (type >= ICMPV6_ROUTER_SOLICITATION && type <= ICMPV6_REDIRECT)
		return hop_limit == 255;
	return ((type >= ICMPV6_MGM_QUERY && type <= ICMPV6_MGM_REDUCTION) || type == ICMPV6_MLD2_REPORT) && hop_limit == 1;
}

/* As parse_icmpv4(). Neighbour discovery and MLD are ICMPv6 as well and pass. */
NOINLINE __u32 parse_icmpv6(struct xdp_md *ctx, __u32 offset, __u32 len, struct target *to)
{
	struct part part = { offset, len };
	struct icmp_header *icmp = header_at(ctx, &part, sizeof(*icmp));
	if (!icmp || !to)
		return REASON_pass_malformed;
	if (icmp->type == ICMPV6_ECHO_REQUEST)
		return PARSED_ECHO;
	to->for_kernel = is_of_link(icmp->type, to->hop_limit);
	/* The four errors of RFC 4443 in a row, of which "packet too big" is the second. */
	if (icmp->type < ICMPV6_DEST_UNREACH || icmp->type > ICMPV6_PARAMPROB)
		return REASON_pass_not_l4;

	skip(&part, sizeof(*icmp));
	struct ipv6hdr *ip = header_at(ctx, &part, sizeof(*ip));
	if (!ip || ip->version != IPV6_VERSION)
		return REASON_pass_malformed;
	struct address source;
	copy_ipv6(&source, &ip->saddr);
	if (!is_same(&source, &to->address))
		return REASON_pass_not_ours;
	copy_ipv6(&to->source, &ip->daddr);
	if (is_mapped(&to->source))
		return REASON_pass_not_ours;

	to->protocol = ip->nexthdr;
	skip(&part, sizeof(*ip));
	__u32 parsed = walk_extensions(ctx, &part, to);
	if (parsed == PARSED_LATER)
		return REASON_pass_fragment;
	if (parsed < PARSED)
		return parsed;
	return parse_embedded_ports(ctx, &part, to);
}

/* IPv6 in which the fixed header is not directly followed by one with ports. */
NOINLINE __u32 parse_ipv6_slow(struct xdp_md *ctx, __u32 offset, __u32 len, struct target *to)
{
	struct part part = { offset, len };
	if (!to)
		return REASON_pass_malformed;
	__u32 parsed = walk_extensions(ctx, &part, to);
	if (parsed < PARSED || parsed == PARSED_LATER)
		return parsed;
	if (to->protocol == IPPROTO_ICMPV6) {
		if (parsed == PARSED)
			return parse_icmpv6(ctx, part.offset, part.len, to);
		return parse_first_of_icmp(ctx, &part, ICMPV6_ECHO_REQUEST);
	}
	if (!has_ports(to->protocol))
		return parsed == PARSED_FIRST ? REASON_pass_fragment : REASON_pass_not_l4;
	void *l4 = header_at(ctx, &part, sizeof(struct l4_ports));
	if (!l4)
		return REASON_pass_malformed;
	__u32 ports = parse_ports(l4, (void *)(long)ctx->data_end, part.len, to);
	return ports == PARSED ? parsed : ports;
}

INLINE __u32 parse_ipv6(struct xdp_md *ctx, void *l3, void *end, struct target *to)
{
	struct ipv6hdr *ip = l3;
	if ((void *)(ip + 1) > end)
		return REASON_pass_malformed;
	__u64 len = BOUNDED(NTOHS(ip->payload_len), 0xffff);
	if (ip->version != IPV6_VERSION)
		return REASON_pass_malformed;
	if ((void *)(ip + 1) + len > end)
		return REASON_pass_truncated;

	copy_ipv6(&to->address, &ip->daddr);
	copy_ipv6(&to->source, &ip->saddr);
	/* The maps have IPv4 addresses so. A worker drops what has such a source. */
	if (is_mapped(&to->address)) {
		to->for_kernel = 1;
		return REASON_pass_not_ours;
	}
	to->hop_limit = ip->hop_limit;
	to->protocol = ip->nexthdr;
	if (LIKELY(has_ports(to->protocol)))
		return parse_ports(ip + 1, end, len, to);
	return parse_ipv6_slow(ctx, (void *)(ip + 1) - (void *)(long)ctx->data, len, to);
}

INLINE int is_tag(__be16 ethertype)
{
	return ethertype == HTONS(ETH_P_8021Q) || ethertype == HTONS(ETH_P_8021AD);
}

/* `base`: first socket slot of the interface.
 *
 * Only a tag inside the frame is seen. One that an offload moved into the packet's metadata (rxvlan of a NIC, txvlan of the
 * peer of a veth, in native as in generic mode) is not readable by a program that is not bound to one device
 * (bpf_xdp_metadata_rx_vlan_tag): the frame looks untagged. Interfaces with VLANs need these offloads turned off. */
INLINE __u32 parse(struct xdp_md *ctx, __u32 base, struct target *to)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > end)
		return REASON_pass_malformed;

	__be16 ethertype = eth->h_proto;
	if (LIKELY(ethertype == HTONS(ETH_P_IP)))
		return parse_ipv4(ctx, eth + 1, end, to);
	void *l3 = eth + 1;
	if (is_tag(ethertype)) {
		struct vlan_tag *tag = l3;
		if ((void *)(tag + 1) > end)
			return REASON_pass_malformed;
		/* A priority tag names no VLAN (IEEE 802.1Q, 9.6): that of one may follow it. */
		if (!(tag->control & HTONS(VLAN_ID)) && is_tag(tag->ethertype)) {
			ethertype = tag->ethertype;
			tag++;
			if ((void *)(tag + 1) > end)
				return REASON_pass_malformed;
		}
		struct vlan_key key = {
			.base = base,
			.ethertype = ethertype,
			.id = NTOHS(tag->control) & VLAN_ID,
		};
		if (is_tag(tag->ethertype) || (key.id && !bpf_map_lookup_elem(&vlans, &key)))
			return REASON_pass_vlan;
		to->vlan = key.id;
		ethertype = tag->ethertype;
		l3 = tag + 1;
		if (ethertype == HTONS(ETH_P_IP))
			return parse_ipv4(ctx, l3, end, to);
	}
	if (ethertype == HTONS(ETH_P_IPV6))
		return parse_ipv6(ctx, l3, end, to);
	return REASON_pass_not_ip;
}

#endif
