/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The steering program's maps and their keys. `src/steering/maps.rs` has the same shapes; a pinned map of another
 * shape is replaced when the program is loaded.
 */
#ifndef FLOWGATE_MAPS_H
#define FLOWGATE_MAPS_H

#include "bpf.h"
#include "reasons.h"

#define QUEUE_SLOTS 4096 /* in the socket map, over all interfaces */
#define INTERFACES 16	 /* that have slots there */
#define FRAGMENTS 16384  /* datagrams whose later fragments are told by the first */

struct address {
	__u32 word[4]; /* network byte order; IPv4 in its v4-mapped form */
};

struct vip_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct prefix {
	__u32 len; /* in bits; an IPv4 prefix has 96 more */
	struct address address;
};

struct vlan_key {
	__u32 base;	  /* first socket slot of the interface that receives the tag */
	__be16 ethertype; /* of the tag: 802.1Q or 802.1ad */
	__u16 id;	  /* host byte order */
};

/* What fragments of one datagram share (RFC 791, 3.2; RFC 8200, 4.5, where the protocol is not among it). */
struct fragment_key {
	struct address address;
	struct address source;
	__u32 id;
	__u32 protocol; /* 0 for IPv6 */
};

/* What became of a first fragment. */
struct fragment {
	__u64 seen; /* ns, bpf_ktime_get_ns */
	__u64 ours; /* 0 or 1 */
};

/* What an interface delivers. In zero copy some drivers cut a packet that is longer than their part of a frame into
 * several frames, all but the last of one length: none of them is a whole packet. */
struct delivery {
	__u64 truncated;     /* frames with less of an IP packet than its length says */
	__u32 truncated_len; /* bytes of the last of them */
	__u32 longest;	     /* bytes of the longest other frame, of those that are large */
};

enum port_set {
	PORT_SET_NODEPORT_TCP,
	PORT_SET_NODEPORT_UDP,
	PORT_SET_SNAT,
	PORT_SET_NODEPORT_SCTP,
	PORT_SET_COUNT,
};

struct ports {
	__u8 bits[65536 / 8];
};

/* A set: a hash map of which only the keys matter. */
#define SET(name, member, size)                            \
	struct {                                           \
		UINT(type, BPF_MAP_TYPE_HASH);             \
		UINT(max_entries, size);                   \
		UINT(map_flags, BPF_F_NO_PREALLOC);        \
		TYPE(key, member);                         \
		TYPE(value, __u32);                        \
	} name SEC(".maps")

SET(vips, struct vip_key, 262144);

/* The addresses of `vips`. */
SET(vip_addrs, struct address, 262144);

/* Addresses whose echo requests a worker answers. */
SET(echo_addrs, struct address, 262144);

SET(node_addrs, struct address, 4096);

SET(snat_addrs, struct address, 4096);

/* Backends whose clients keep their address: their answers go to the client and not to an address of ours. */
SET(reply_sources, struct vip_key, 65536);

/* The node's own addresses: what such a backend sends to the node itself is the kernel's. */
SET(own_addrs, struct address, 4096);

/* Cluster IPs: on these every port is ours, those that no Service has are refused (P505). */
SET(cluster_ips, struct address, 65536);

/* The ranges that cluster IPs are taken from: what no Service has ends here (P506). */
struct {
	UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	UINT(max_entries, 1024);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, __u32);
} service_cidrs SEC(".maps");

/* The VLANs that are looked into. */
SET(vlans, struct vlan_key, 65536);

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, PORT_SET_COUNT);
	TYPE(key, __u32);
	TYPE(value, struct ports);
} port_sets SEC(".maps");

/* The only map that the program itself writes, besides those that count. */
struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, FRAGMENTS);
	TYPE(key, struct fragment_key);
	TYPE(value, struct fragment);
} fragments SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_XSKMAP);
	UINT(max_entries, QUEUE_SLOTS);
	TYPE(key, __u32);
	TYPE(value, __u32);
} xsks SEC(".maps");

/* By the interfaces' places in the configuration. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, INTERFACES);
	TYPE(key, __u32);
	TYPE(value, struct delivery);
} deliveries SEC(".maps");

/* Until when what is ours is dropped where no socket is: ns of bpf_ktime_get_ns, which is CLOCK_MONOTONIC. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} hold_until SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, REASON_ROOM);
	TYPE(key, __u32);
	TYPE(value, __u64);
} counters SEC(".maps");

#endif
