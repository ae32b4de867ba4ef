/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * The XDP program's maps and their keys. The names are those of the pins, and `src/steering/maps/` has the same shapes: a
 * pinned map of another shape is replaced when the program is loaded. Names and shapes stay, so that a restart can go on
 * with the maps, and a program of an earlier version with this one's.
 */
#ifndef FLOWGATE_MAPS_H
#define FLOWGATE_MAPS_H

#include "bpf.h"
#include "reasons.h"

#define QUEUE_SLOTS 4096 /* entries of the socket map, for all interfaces together */
#define INTERFACES 16	 /* interfaces with slots in the socket map */
#define FRAGMENTS 16384  /* datagrams whose first fragment is remembered */
#define SET_ENTRIES 4096 /* entries of a set at first: the loader makes larger ones as sets grow */

struct address {
	__u32 word[4]; /* network byte order; IPv4 in its v4-mapped form */
};

struct vip_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero; /* explicit padding: a hash map compares all bytes of its keys */
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

/* What the fragments of one datagram have in common: RFC 791, 3.2; RFC 8200, 4.5, where the protocol is not part of it. */
struct fragment_key {
	struct address address;
	struct address source;
	__u32 id;
	__u32 protocol; /* 0 for IPv6 */
};

/* The decision on a first fragment. */
struct fragment {
	__u64 seen; /* ns, bpf_ktime_get_ns */
	__u64 ours; /* 0 or 1 */
};

/* Whether an interface delivers large packets whole. In zero copy some drivers split a packet that is longer than their
 * receive buffer into several frames, all but the last of the same length: none of them is a whole packet. */
struct delivery {
	__u64 truncated;     /* frames that end before the IP packet in them */
	__u32 truncated_len; /* bytes of the last of them */
	__u32 longest;	     /* bytes of the longest whole frame, from LARGE_FRAME on */
};

/* An Ethernet address of an interface, besides the one in `stations`: that of a VLAN which has its own. */
struct station_key {
	__u32 base; /* first socket slot of the interface */
	__u16 vlan; /* host byte order; 0: frames without a tag */
	__u8 address[6];
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

/* A set: a hash map of which only the keys matter. Not preallocated, since most entries of these sizes are never used. */
#define SET(name, member)                                  \
	struct {                                           \
		UINT(type, BPF_MAP_TYPE_HASH);             \
		UINT(max_entries, SET_ENTRIES);            \
		UINT(map_flags, BPF_F_NO_PREALLOC);        \
		TYPE(key, member);                         \
		TYPE(value, __u32);                        \
	} name SEC(".maps")

/* ClusterIPs, external and LoadBalancer addresses with their ports. */
SET(vips, struct vip_key);

/* The addresses of `vips`: later fragments have no port to look up. */
SET(vip_addrs, struct address);

/* Addresses whose echo requests a worker answers. */
SET(echo_addrs, struct address);

/* The node's addresses on which NodePorts are served. */
SET(node_addrs, struct address);

/* Addresses that Flowgate masquerades with. */
SET(snat_addrs, struct address);

/* Backends that see the client's address (preserved, DNAT only): their replies go to the client and not to an address of
 * ours. */
SET(reply_sources, struct vip_key);

/* The node's own addresses. What such a backend sends to the node itself is for the kernel. */
SET(own_addrs, struct address);

/* Cluster IPs, and other VIPs whose unserved ports are not left to the kernel: every port of them is ours; a worker rejects or
 * drops what no Service has (P505). */
SET(cluster_ips, struct address);

/* The ranges that cluster IPs are taken from: a worker rejects addresses that no Service has (P506). */
struct {
	UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	UINT(max_entries, SET_ENTRIES);
	UINT(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, __u32);
} service_cidrs SEC(".maps");

/* VLANs whose frames are parsed. Frames with other tags pass to the kernel. */
SET(vlans, struct vlan_key);

/* Ethernet addresses of interfaces that `stations` does not have. */
SET(other_stations, struct station_key);

/* The Ethernet address of each interface, by its position in the configuration: six bytes and two zeros, one load. All zero: not
 * known, then every address counts that is no group's. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, INTERFACES);
	TYPE(key, __u32);
	TYPE(value, __u64);
} stations SEC(".maps");

/* Bitmaps by `enum port_set`: an array lookup is inlined and costs a fraction of a hash lookup. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, PORT_SET_COUNT);
	TYPE(key, __u32);
	TYPE(value, struct ports);
} port_sets SEC(".maps");

/* First fragments. The only map that the program itself writes, besides `deliveries` and `counters`. LRU, since nobody
 * removes entries. */
struct {
	UINT(type, BPF_MAP_TYPE_LRU_HASH);
	UINT(max_entries, FRAGMENTS);
	TYPE(key, struct fragment_key);
	TYPE(value, struct fragment);
} fragments SEC(".maps");

/* The AF_XDP sockets: INTERFACES times as many slots as an interface can have queues with a socket. */
struct {
	UINT(type, BPF_MAP_TYPE_XSKMAP);
	UINT(max_entries, QUEUE_SLOTS);
	TYPE(key, __u32);
	TYPE(value, __u32);
} xsks SEC(".maps");

/* By the interfaces' positions in the configuration. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, INTERFACES);
	TYPE(key, __u32);
	TYPE(value, struct delivery);
} deliveries SEC(".maps");

/* End of the grace period: until then what is ours is dropped where no socket is. In ns of bpf_ktime_get_ns, which is
 * CLOCK_MONOTONIC. The name is older than the word, and pins do not change theirs. */
struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u64);
} hold_until SEC(".maps");

/* By `enum reason`. */
struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	UINT(max_entries, REASON_ROOM);
	TYPE(key, __u32);
	TYPE(value, __u64);
} counters SEC(".maps");

#endif
