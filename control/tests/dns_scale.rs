//! The zone of a large cluster: its correctness is asserted, its cost printed (`--nocapture`).
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "measures and prints")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use flowgate_control::dns::zone::{Status, Zone};
use flowgate_control::model::{ClusterAddress, Desired};
use hickory_proto::rr::{Name, RecordType};

use crate::dns::{put, put_slice, service, slice};

#[test]
fn a_cluster_of_5000_services_and_50000_endpoints_is_found_whole() {
    let mut desired = Desired::default();
    for n in 0..SERVICES {
        let cluster = if n % 2 == 0 {
            ClusterAddress::Headless
        } else {
            ClusterAddress::Assigned(vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + n))])
        };
        put(&mut desired, &format!("service-{n}"), service(cluster));
        put_slice(&mut desired, &format!("service-{n}-x"), slice(&format!("service-{n}"), endpoints(n)));
    }
    let empty = Zone::new("cluster.local", 5, Vec::new()).unwrap();
    let resident = resident_kib();
    let start = Instant::now();
    let zone = empty.updated(&Desired::default(), &desired);
    println!("built in {:?}, {} KiB", start.elapsed(), resident_kib().saturating_sub(resident));

    let before = desired.clone();
    put_slice(&mut desired, "service-2-x", slice("service-2", endpoints(SERVICES)));
    let start = Instant::now();
    let changed = zone.updated(&before, &desired);
    println!("one changed slice worked in within {:?}", start.elapsed());

    let start = Instant::now();
    for n in 0..SERVICES {
        let name = Name::from_ascii(format!("service-{n}.shop.svc.cluster.local.")).unwrap();
        let answer = zone.lookup(&name, RecordType::A);
        let count = if n % 2 == 0 { 10 } else { 1 };
        assert_eq!((answer.status, answer.answers.len()), (Status::Found, count), "{name}");
    }
    println!("{} ns a lookup", start.elapsed().as_nanos() / u128::from(SERVICES));
    for addr in (0..SERVICES).flat_map(endpoints) {
        let answer = zone.lookup(&Name::from(addr), RecordType::PTR);
        assert_eq!((answer.status, answer.answers.len()), (Status::Found, 1), "{addr}");
    }
    let reverse = |zone: &Zone, addr: IpAddr| zone.lookup(&Name::from(addr), RecordType::PTR).status;
    for (old, new) in endpoints(2).zip(endpoints(SERVICES)) {
        assert!(matches!(reverse(&changed, old), Status::OutOfZone(_)), "{old}");
        assert_eq!(reverse(&changed, new), Status::Found, "{new}");
    }
}

/// Ten addresses of its own for each Service.
fn endpoints(service: u32) -> impl Iterator<Item = IpAddr> {
    (0..10).map(move |n| IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + service * 10 + n)))
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const SERVICES: u32 = 5000;
