/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Every way in which a packet leaves the XDP program, in the order of the `counters` map. Rust's `Reason::ALL` has the
 * same names in the same order and a test compares the two. Append only: the index is the key in a pinned map that may be
 * older than the program. The names are those of metrics.
 */
#ifndef FLOWGATE_REASONS_H
#define FLOWGATE_REASONS_H

#define FLOWGATE_REASONS(X) \
	X(redirect_vip)         /* to the worker: destination is a VIP */ \
	X(redirect_nodeport)    /* to the worker: NodePort on one of the node's own addresses */ \
	X(redirect_snat_reply)  /* to the worker: answer to a flow that Flowgate masqueraded */ \
	X(pass_not_ip)          /* to the kernel: neither IPv4 nor IPv6, ARP for example */ \
	X(pass_not_l4)          /* to the kernel: neither TCP, UDP, SCTP, an ICMP error nor an echo request */ \
	X(pass_fragment)        /* to the kernel: a fragment whose first fragment was not ours, or is not known */ \
	X(pass_malformed)       /* to the kernel: a header that ends early or contradicts itself */ \
	X(pass_not_ours)        /* to the kernel: to an address and port that Flowgate does not serve */ \
	X(pass_no_worker)       /* to the kernel: ours, but the slot of this queue has no socket */ \
	X(redirect_kept_reply)  /* to the worker: reply of a backend that sees the client's address */ \
	X(redirect_unserved)    /* to the worker: what no Service has, to a cluster IP or another VIP */ \
	X(redirect_fragment)    /* to the worker: a later fragment of a datagram that is ours */ \
	X(redirect_icmp_error)  /* to the worker: an ICMP error about a packet of ours */ \
	X(redirect_echo)        /* to the worker: an echo request to an address for which workers reply */ \
	X(pass_vlan)            /* to the kernel: the tag of a VLAN that is not served, or two VLANs */ \
	X(pass_extensions)      /* to the kernel: IPv6 extension headers that are not followed */ \
	X(drop_held)            /* dropped: ours, no socket in the slot, within the grace period */ \
	X(pass_truncated)       /* to the kernel: the frame ends before the IP packet in it */ \
	X(pass_other_host)      /* to the kernel: the frame is for another Ethernet address, or for a group */

enum reason {
#define FLOWGATE_REASON_ENUM(name) REASON_##name,
	FLOWGATE_REASONS(FLOWGATE_REASON_ENUM)
#undef FLOWGATE_REASON_ENUM
	REASON_COUNT,
};

/* Entries of the `counters` map: room for later reasons without changing the shape of a pinned map. */
#define REASON_ROOM 64

#endif
