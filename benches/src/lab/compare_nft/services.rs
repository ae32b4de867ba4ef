//! The same Services as manifests for Flowgate and as rules for nft, written as kube-proxy writes them, and settings that
//! make both gateways alike where an operator may choose.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use crate::lab::manifests::{L4Protocol, ServicePort, ServiceSpec};
use crate::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK, SERVICE_RANGE_V6, ipv6_of};

pub(super) const CLIENTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12)];
/// Behind a router.
pub(super) const FAR_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(super) const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);

/// A Service of type NodePort.
pub(super) const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
pub(super) const SIGNALLING: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 84);
/// The load balancer address of a Service with the traffic policy Local, whose backend sees its clients' addresses.
pub(super) const KEPT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// A Service without endpoints.
pub(super) const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 85);
/// An address of the service range that no Service has.
pub(super) const UNALLOCATED: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
/// The Service of the datagrams that end a round.
pub(super) const LAST: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 99), 7);
pub(super) const LAST_TARGET_PORT: u16 = 7007;
/// Names of all Services that have endpoints.
pub(super) const NAMES: [&str; 4] = ["web", "signalling", "kept", "last"];

pub(super) const HTTP: (u16, u16) = (80, 8080);
pub(super) const DNS: (u16, u16) = (53, 5353);
pub(super) const DIAMETER: (u16, u16) = (3868, 3868);
pub(super) const HTTP_NODE_PORT: u16 = 30_080;
pub(super) const DNS_NODE_PORT: u16 = 30_053;

/// Idle times in seconds, of flows that are beginning or ending and of all others. A pause of the comparison is longer than
/// the short one and the 16 s of a sweep through Flowgate's table. On a busy machine a worker may stand still for a second:
/// that must not make the process execute itself again.
pub(super) const SHORT_S: u64 = 8;
pub(super) const FLOWGATE_CONFIG: &str = "[flows]\ntcp_opening_s = 8\ntcp_established_s = 600\n\
     tcp_half_closed_s = 600\ntcp_time_wait_s = 8\ntcp_reset_s = 8\nudp_unanswered_s = 8\nudp_answered_s = 600\n\n\
     [tcp]\nreset_unknown = false\n\n[workers]\nhang_ms = 20000\n";

/// Settings of both gateways: ICMP errors are not limited, and clients are not redirected to their router.
pub(super) const SYSCTLS: [(&str, &str); 11] = [
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "100000"),
    ("net/ipv4/icmp_msgs_burst", "100000"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/up0/rp_filter", "0"),
    ("net/ipv4/conf/fab0/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/up0/send_redirects", "0"),
    ("net/ipv4/conf/fab0/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
];

/// Settings of Linux: the same idle times, and a connection begins with a SYN. A COOKIE ECHO has the backend's tag, so that
/// Flowgate takes its sender for real, as it takes the third segment of TCP's handshake.
pub(super) const LINUX_SYSCTLS: [(&str, &str); 22] = [
    ("net/netfilter/nf_conntrack_tcp_loose", "0"),
    ("net/netfilter/nf_conntrack_checksum", "1"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "8"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", "8"),
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", "600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_last_ack", "8"),
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "8"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "8"),
    ("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "600"),
    ("net/netfilter/nf_conntrack_tcp_timeout_unacknowledged", "600"),
    ("net/netfilter/nf_conntrack_udp_timeout", "8"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "600"),
    ("net/netfilter/nf_conntrack_sctp_timeout_closed", "8"),
    ("net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "8"),
    ("net/netfilter/nf_conntrack_sctp_timeout_cookie_echoed", "600"),
    ("net/netfilter/nf_conntrack_sctp_timeout_established", "600"),
    ("net/netfilter/nf_conntrack_sctp_timeout_shutdown_sent", "600"),
    ("net/netfilter/nf_conntrack_sctp_timeout_shutdown_recd", "600"),
    ("net/netfilter/nf_conntrack_sctp_timeout_shutdown_ack_sent", "8"),
    ("net/netfilter/nf_conntrack_sctp_timeout_heartbeat_sent", "8"),
];

/// The manifests of all Services.
pub(super) fn manifests() -> String {
    let port = |name: &str, protocol, (port, target_port): (u16, u16), node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        target_port,
        node_port,
    };
    let service = |name: &str, cluster_ip, ports| {
        let mut service = ServiceSpec::single(name, cluster_ip, L4Protocol::Tcp, 1, 1).dual_stack();
        service.ports = ports;
        service
    };
    let web = [
        port("http", L4Protocol::Tcp, HTTP, Some(HTTP_NODE_PORT)),
        port("dns", L4Protocol::Udp, DNS, Some(DNS_NODE_PORT)),
    ];
    let kept = [
        port("http", L4Protocol::Tcp, HTTP, None),
        port("dns", L4Protocol::Udp, DNS, None),
        port("diameter", L4Protocol::Sctp, DIAMETER, None),
    ];
    let last = port("last", L4Protocol::Udp, (LAST.1, LAST_TARGET_PORT), None);
    let empty = kept[..2].to_vec();
    let services = [
        (service("web", WEB, web.to_vec()), &[BACKEND][..]),
        (service("signalling", SIGNALLING, kept[2..].to_vec()), &[BACKEND]),
        (service("empty", EMPTY, empty), &[]),
        (service("last", LAST.0, vec![last]), &[BACKEND]),
        (service("kept", Ipv4Addr::new(10, 96, 0, 90), kept.to_vec()), &[BACKEND]),
    ];
    let mut all: Vec<_> = services.iter().map(|(service, backends)| service.manifests(backends)).collect();
    let local = format!(
        "  type: LoadBalancer\n  externalTrafficPolicy: Local\nstatus:\n  loadBalancer:\n    ingress: [{{ip: {KEPT}}}, {{ip: \
         \"{}\"}}]\n",
        ipv6_of(KEPT)
    );
    if let Some(kept) = all.last_mut() {
        // The Service is the first document; its type comes first in its spec.
        let (service, slices) = kept.split_once("---\n").expect("slices follow the Service");
        *kept = format!("{}{local}---\n{slices}", service.replace("  type: ClusterIP\n", ""));
    }
    all.push(format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\nspec: {{cidrs: [\"10.96.0.0/16\", \
         \"{SERVICE_RANGE_V6}\"]}}\n"
    ));
    all.join("---\n")
}

/// The rules of nft.
pub(super) fn ruleset() -> String {
    [true, false].map(family_rules).concat()
}

fn family_rules(v4: bool) -> String {
    let family = if v4 { "ip" } else { "ip6" };
    let address = |address: Ipv4Addr| {
        if v4 { IpAddr::V4(address) } else { IpAddr::V6(ipv6_of(address)) }
    };
    let served = [
        (WEB, "tcp", HTTP),
        (WEB, "udp", DNS),
        (GATEWAY_UPLINK, "tcp", (HTTP_NODE_PORT, HTTP.1)),
        (GATEWAY_UPLINK, "udp", (DNS_NODE_PORT, DNS.1)),
        (GATEWAY_FABRIC, "tcp", (HTTP_NODE_PORT, HTTP.1)),
        (GATEWAY_FABRIC, "udp", (DNS_NODE_PORT, DNS.1)),
        (SIGNALLING, "sctp", DIAMETER),
        (KEPT, "tcp", HTTP),
        (KEPT, "udp", DNS),
        (KEPT, "sctp", DIAMETER),
        (LAST.0, "udp", (LAST.1, LAST_TARGET_PORT)),
    ];
    let mut text =
        format!("table {family} nat {{\n  chain pre {{ type nat hook prerouting priority dstnat;\n");
    let backend = if v4 { BACKEND.to_string() } else { format!("[{}]", address(BACKEND)) };
    for (vip, protocol, (port, target)) in served {
        let vip = address(vip);
        writeln!(text, "    {family} daddr {vip} {protocol} dport {port} dnat to {backend}:{target}")
            .expect("a String takes all");
    }
    let masqueraded =
        [WEB, GATEWAY_UPLINK, GATEWAY_FABRIC, SIGNALLING, LAST.0].map(|vip| address(vip).to_string());
    let cluster_ips = [WEB, SIGNALLING, EMPTY, LAST.0].map(|vip| address(vip).to_string()).join(", ");
    let range = if v4 { "10.96.0.0/16" } else { SERVICE_RANGE_V6 };
    let own = address(GATEWAY_FABRIC);
    let ports = "49152-65535";
    let masqueraded = masqueraded.join(", ");
    write!(
        text,
        "  }}\n  chain post {{ type nat hook postrouting priority srcnat;\n    ct original {family} daddr {{ {masqueraded} }} ct \
         status dnat meta l4proto {{ tcp, udp, sctp }} masquerade to :{ports}\n  }}\n}}\n\
         table {family} filter {{\n  chain forward {{ type filter hook forward priority filter;\n    ct state invalid drop\n    \
         ct state new {family} daddr {{ {cluster_ips} }} meta l4proto tcp reject with tcp reset\n    \
         ct state new {family} daddr {{ {cluster_ips} }} meta l4proto {{ udp, sctp }} reject\n    \
         ct state new {family} daddr {range} meta l4proto {{ tcp, udp, sctp }} drop\n  }}\n  \
         chain input {{ type filter hook input priority filter;\n    ct state invalid drop\n    ct state new {family} daddr {own} \
         meta l4proto {{ tcp, udp, sctp }} th dport {ports} drop\n  }}\n}}\n"
    )
    .expect("a String takes all");
    text
}
