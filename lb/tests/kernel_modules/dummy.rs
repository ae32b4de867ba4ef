//! A VIP that is an address of the gateway itself, on an interface that is not served.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use flowgate_benches::lab::topology::{GATEWAY_UPLINK, ipv6_of};

use super::talk::{TCP, Talk};
use super::{EchoServers, SERVER_PORT};
use crate::support::{Lab, eventually};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

const MANIFEST: &str = "\
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"2001:db8:10:96::10\"]
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  externalIPs: [203.0.113.10, \"2001:db8:203::113:10\"]
  selector: {app: echo}
  ports: [{name: main, protocol: TCP, port: 80, targetPort: 7001}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-v4, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: main, protocol: TCP, port: 7001}]
endpoints: [{addresses: [10.244.0.11]}, {addresses: [10.244.0.12]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-v6, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv6
ports: [{name: main, protocol: TCP, port: 7001}]
endpoints: [{addresses: [\"2001:db8:10:244::11\"]}, {addresses: [\"2001:db8:10:244::12\"]}]
";

#[test]
#[ignore = "needs modules that not every kernel has: make vm-tests"]
fn an_external_ip_on_a_dummy_interface_is_served_with_and_without_that_interface() -> Result<()> {
    let lab = Lab::with_backends(2)?;
    let _servers = EchoServers::start(&lab.topology)?;
    let gateway = lab.topology.gateway();
    gateway.ip("link add vip0 type dummy")?;
    gateway.ip("link set vip0 up")?;
    gateway.ip(&format!("addr add {VIP}/32 dev vip0"))?;
    gateway.ip(&format!("addr add {}/128 dev vip0 nodad", ipv6_of(VIP)))?;
    lab.topology.client().route("203.0.113.0/24", GATEWAY_UPLINK)?;
    assert_eq!(SERVER_PORT, 7001);
    lab.gateway.manifests().write("echo.yaml", MANIFEST)?;
    eventually("the backends are known", || Ok(lab.active_backends()?.len() == 4))?;

    let client = lab.topology.client();
    let ends = [
        (client.address.into(), SocketAddr::from((VIP, 80))),
        (client.address_v6.into(), SocketAddr::from((ipv6_of(VIP), 80))),
    ];
    let mut talks = Vec::new();
    for (own, target) in ends {
        let mut talk = client.namespace.enter(|| Talk::open(TCP, own, target))??;
        talk.exchange(50_000)?;
        talks.push(talk);
    }
    // The address is the kernel's business only: what runs goes on, and what is new begins.
    gateway.ip("link del vip0")?;
    for (own, target) in ends {
        talks.push(client.namespace.enter(|| Talk::open(TCP, own, target))??);
    }
    talks.iter_mut().try_for_each(|talk| talk.exchange(1000))?;
    talks.into_iter().try_for_each(Talk::close)?;
    assert_eq!(lab.drops()?, [].into());
    Ok(())
}
