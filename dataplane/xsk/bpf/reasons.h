/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Every way a packet leaves the steering program, in the order of the `counters` map. Rust's `Reason::ALL`
 * lists the same names in the same order and a test compares the two. Append only: the index is the map key,
 * and a pinned map may be older than the program.
 */
#ifndef FLOWGATE_REASONS_H
#define FLOWGATE_REASONS_H

#define FLOWGATE_REASONS(X)                                                                                    \
	X(redirect_vip)         /* to the worker: destination is a VIP */                                      \
	X(redirect_nodeport)    /* to the worker: NodePort on one of the node's own addresses */               \
	X(redirect_snat_reply)  /* to the worker: answer to a flow that Flowgate masqueraded */                \
	X(pass_not_ip)          /* to the kernel: ARP, LLDP, a VLAN tag, IPv6 ... */                           \
	X(pass_not_l4)          /* to the kernel: IP, but neither TCP nor UDP */                               \
	X(pass_fragment)        /* to the kernel: any IPv4 fragment */                                         \
	X(pass_malformed)       /* to the kernel: a header that ends early or contradicts itself */            \
	X(pass_not_ours)        /* to the kernel: TCP or UDP to nothing that Flowgate serves */                \
	X(pass_no_worker)       /* to the kernel: ours, but no socket stands in the slot of this queue */ \
	X(redirect_kept_reply)  /* to the worker: answer of a backend whose clients keep their address */      \
	X(redirect_unserved)    /* to the worker: a port or an address for cluster IPs that no Service has */

enum reason {
#define FLOWGATE_REASON_ENUM(name) REASON_##name,
	FLOWGATE_REASONS(FLOWGATE_REASON_ENUM)
#undef FLOWGATE_REASON_ENUM
	REASON_COUNT,
};

/* Entries of the `counters` map: room for later reasons without changing the shape of a pinned map. */
#define REASON_ROOM 64

#endif
