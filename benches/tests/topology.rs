//! The network of the lab, with kernel forwarding in place of the gateway.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands, its helpers too")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use flowgate_benches::lab::topology::{FABRIC, Host, Topology, TopologyOptions, UPLINK};

use crate::common::require_root;

/// Sends a line from one host to another through the gateway; returns the source address that the receiver saw.
fn talk(from: &Host, to: &Host) -> std::io::Result<SocketAddr> {
    talk_at(from, to, to.address.into())
}

/// As above, to this address of the receiver.
fn talk_at(from: &Host, to: &Host, address: IpAddr) -> std::io::Result<SocketAddr> {
    let target = SocketAddr::from((address, 7000));
    let listener = to.namespace.run(move || TcpListener::bind(target))?;
    let mut sender = from
        .namespace
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(3)))
        .expect("entering works")?;
    let (mut receiver, peer) = listener.accept()?;
    sender.write_all(b"hello")?;
    let mut text = [0; 5];
    receiver.read_exact(&mut text)?;
    assert_eq!(&text, b"hello");
    Ok(peer)
}

#[test]
fn client_and_backend_talk_through_the_gateway_with_offloads_on() {
    require_root();
    let lab = Topology::build(TopologyOptions::default()).unwrap();
    assert_eq!(lab.backends().len(), 3);
    for backend in lab.backends() {
        let peer = talk(lab.client(), backend).unwrap();
        assert_eq!(peer.ip(), Ipv4Addr::new(192, 0, 2, 10), "the kernel forwards without translation");
        let peer = talk_at(lab.client(), backend, backend.address_v6.into()).unwrap();
        assert_eq!(peer.ip(), lab.client().address_v6, "nor that of IPv6");
    }
}

#[test]
fn several_clients_share_the_uplink() {
    require_root();
    let options = TopologyOptions { clients: 3, backends: 1, ..TopologyOptions::default() };
    let lab = Topology::build(options).unwrap();
    for (number, client) in lab.clients().iter().enumerate() {
        let peer = talk(client, &lab.backends()[0]).unwrap();
        assert_eq!(peer.ip(), Ipv4Addr::new(192, 0, 2, 10 + u8::try_from(number).unwrap()));
    }
}

#[test]
fn backends_come_and_go_and_a_returning_address_is_reachable_at_once() {
    require_root();
    let options = TopologyOptions { backends: 1, ..TopologyOptions::default() };
    let mut lab = Topology::build(options).unwrap();
    let second = lab.add_backend().unwrap();
    assert_eq!((second.name.as_str(), second.address), ("backend-2", Ipv4Addr::new(10, 244, 0, 12)));
    talk(lab.client(), &second).unwrap();
    lab.remove_backend("backend-2").unwrap();
    assert!(talk(lab.client(), &second).is_err(), "its link is gone");
    let again = lab.add_backend().unwrap();
    assert_eq!(again.address, second.address);
    talk(lab.client(), &again).unwrap();
    assert!(lab.remove_backend("backend-9").unwrap_err().to_string().contains("backend-9"));
}

#[test]
fn queues_and_mtu_are_as_asked() {
    require_root();
    let options = TopologyOptions { queues: 2, mtu: Some(9000), ..TopologyOptions::default() };
    let lab = Topology::build(options).unwrap();
    for interface in [UPLINK, FABRIC] {
        let rx_queues = lab
            .gateway()
            .enter(|| {
                let entries = std::fs::read_dir(format!("/sys/class/net/{interface}/queues")).unwrap();
                entries
                    .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("rx"))
                    .count()
            })
            .unwrap();
        assert_eq!(rx_queues, 2);
        assert!(lab.gateway().ip(&format!("link show {interface}")).unwrap().contains("mtu 9000"));
    }
    talk(lab.client(), &lab.backends()[0]).unwrap();
}
