/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Every way a packet leaves the steering program, in the order of the `counters` map. Rust's `Reason::ALL`
 * lists the same names in the same order and a test compares the two. Append only: the index is the map key,
 * and a pinned map may be older than the program.
 */
#ifndef FLOWGATE_REASONS_H
#define FLOWGATE_REASONS_H

#define FLOWGATE_REASONS(X) \
	X(redirect_vip)         /* to the worker: destination is a VIP */ \
	X(redirect_nodeport)    /* to the worker: NodePort on one of the node's own addresses */ \
	X(redirect_snat_reply)  /* to the worker: answer to a flow that Flowgate masqueraded */ \
	X(pass_not_ip)          /* to the kernel: neither IPv4 nor IPv6, ARP for example */ \
	X(pass_not_l4)          /* to the kernel: neither TCP, UDP, SCTP, an ICMP error nor an echo request */ \
	X(pass_fragment)        /* to the kernel: a fragment whose first one was not ours, or is not known */ \
	X(pass_malformed)       /* to the kernel: a header that ends early or contradicts itself */ \
	X(pass_not_ours)        /* to the kernel: to nothing that Flowgate serves */ \
	X(pass_no_worker)       /* to the kernel: ours, but no socket stands in the slot of this queue */ \
	X(redirect_kept_reply)  /* to the worker: answer of a backend whose clients keep their address */ \
	X(redirect_unserved)    /* to the worker: a port or an address for cluster IPs that no Service has */ \
	X(redirect_fragment)    /* to the worker: a later fragment of a datagram that is ours */ \
	X(redirect_icmp_error)  /* to the worker: an ICMP error about a flow of ours */ \
	X(redirect_echo)        /* to the worker: an echo request to an address that answers them */ \
	X(pass_vlan)            /* to the kernel: a VLAN tag of no served VLAN interface, or two tags */ \
	X(pass_extensions)      /* to the kernel: IPv6 extension headers that are not followed */ \
	X(drop_held)            /* dropped: ours, no socket in the slot, and within the time to hold */ \
	X(pass_truncated)       /* to the kernel: an IP packet of which less arrived than its length says */

enum reason {
#define FLOWGATE_REASON_ENUM(name) REASON_##name,
	FLOWGATE_REASONS(FLOWGATE_REASON_ENUM)
#undef FLOWGATE_REASON_ENUM
	REASON_COUNT,
};

/* Entries of the `counters` map: room for later reasons without changing the shape of a pinned map. */
#define REASON_ROOM 64

#endif
