//! Manifests and questions in, answers out: the Kubernetes DNS specification 1.1.0, case by case.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::IpAddr;

use flowgate_control::dns::zone::{Answer, Status, Zone};
use flowgate_control::model::Desired;
use flowgate_control::source::manifests;
use hickory_proto::rr::{Name, RData, Record, RecordType};

const CLUSTER: &str = include_str!("dns/cluster.yaml");

#[test]
fn the_version_of_the_schema_is_told() {
    expect("dns-version", "TXT", &["TXT 1.1.0"]);
    expect("dns-version", "A", &["no record"]);
}

#[test]
fn a_service_has_the_addresses_of_all_its_families() {
    expect("web.shop.svc", "A", &["A 10.96.0.10"]);
    expect("web.shop.svc", "AAAA", &["AAAA fd00:96::10"]);
    expect("plain.shop.svc", "A", &["A 10.96.0.11"]);
    expect("plain.shop.svc", "AAAA", &["no record"]);
    expect("web.shop.svc", "MX", &["no record"]);
    expect("web.shop.svc", "CNAME", &["no record"]);
}

#[test]
fn a_service_without_an_address_yet_exists() {
    expect("pending.shop.svc", "A", &["no record"]);
    expect("_http._tcp.pending.shop.svc", "SRV", &["no such name"]);
}

#[test]
fn named_ports_have_srv_records_with_the_addresses_added() {
    let host = "web.shop.svc.cluster.local.";
    let added = ["+ A 10.96.0.10", "+ AAAA fd00:96::10"];
    for (port, record) in [
        ("_http._tcp", format!("SRV 0 100 80 {host}")),
        ("_dns._udp", format!("SRV 0 100 53 {host}")),
        ("_dns-tcp._tcp", format!("SRV 0 100 53 {host}")),
        ("_sig._sctp", format!("SRV 0 100 3868 {host}")),
    ] {
        expect(&format!("{port}.web.shop.svc"), "SRV", &[&record, added[0], added[1]]);
    }
    expect("_http._tcp.web.shop.svc", "A", &["no record"]);
}

#[test]
fn the_name_of_a_service_or_endpoint_has_srv_records_for_its_ports() {
    // As in CoreDNS; the specification has them for named ports only.
    let host = "web.shop.svc.cluster.local.";
    let [http, dns, sig] = [80, 53, 3868].map(|port| format!("SRV 0 100 {port} {host}"));
    let added = ["+ A 10.96.0.10", "+ AAAA fd00:96::10"];
    expect("web.shop.svc", "SRV", &[&dns, &http, &sig, added[0], added[1]]);
    let plain = "SRV 0 100 80 plain.shop.svc.cluster.local.";
    expect("plain.shop.svc", "SRV", &[plain, "+ A 10.96.0.11"]);
    let pet = |port: u16| format!("SRV 0 100 {port} pet-0.pets.zoo.svc.cluster.local.");
    let pets = ask("pets.zoo.svc", "SRV");
    assert!(pets.contains(&pet(9001)), "{pets:?}");
    assert!(ask("pet-0.pets.zoo.svc", "SRV").contains(&pet(9001)));
    expect("portless.zoo.svc", "SRV", &["no record"]);
    expect("pending.shop.svc", "SRV", &["no record"]);
    expect("gone.shop.svc", "SRV", &["no such name"]);
    expect("pet-9.pets.zoo.svc", "SRV", &["no such name"]);
}

#[test]
fn names_above_others_exist_without_records_as_in_coredns() {
    for name in ["svc", "pod", "shop.svc"] {
        for record_type in ["A", "AAAA", "SRV", "TXT"] {
            expect(name, record_type, &["no record"]);
        }
    }
    for name in ["gone.svc", "shop.pod", "10-244-0-5.shop.pod", "other"] {
        expect(name, "A", &["no such name"]);
    }
}

#[test]
fn ports_that_are_not_there_have_no_name() {
    for name in [
        "_dns._tcp.web.shop.svc",
        "_http._udp.web.shop.svc",
        "_80._tcp.web.shop.svc",
        "_._tcp.web.shop.svc",
        "_http._icmp.web.shop.svc",
        "_tcp.plain.shop.svc",
        "_._tcp.plain.shop.svc",
        "_http._tcp.gone.shop.svc",
        "x._http._tcp.web.shop.svc",
    ] {
        expect(name, "SRV", &["no such name"]);
    }
}

#[test]
fn addresses_lead_back_to_services() {
    expect_reverse("10.96.0.10", "PTR", &["PTR web.shop.svc.cluster.local."]);
    expect_reverse("fd00:96::10", "PTR", &["PTR web.shop.svc.cluster.local."]);
    expect_reverse("10.96.0.10", "TXT", &["no record"]);
}

#[test]
fn p105_a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    expect("pets.zoo.svc", "A", &["A 10.244.1.1", "A 10.244.1.2", "A 10.244.1.4"]);
    expect("pets.zoo.svc", "AAAA", &["AAAA fd00:244::1"]);
    expect("portless.zoo.svc", "A", &["A 10.244.3.1"]);
    expect("portless.zoo.svc", "AAAA", &["no record"]);
}

#[test]
fn endpoints_of_a_headless_service_have_names() {
    expect("pet-0.pets.zoo.svc", "A", &["A 10.244.1.1"]);
    expect("pet-0.pets.zoo.svc", "AAAA", &["AAAA fd00:244::1"]);
    expect("10-244-1-2.pets.zoo.svc", "A", &["A 10.244.1.2"]);
    expect("10-244-1-2.pets.zoo.svc", "AAAA", &["no record"]);
    // A host name that cannot be a label does not count.
    expect("10-244-1-4.pets.zoo.svc", "A", &["A 10.244.1.4"]);
    // An endpoint with a host name has no other, and one that is not ready has none.
    for gone in ["10-244-1-1", "fd00-244--1", "pet-2", "10-244-1-3", "pet-9"] {
        expect(&format!("{gone}.pets.zoo.svc"), "A", &["no such name"]);
    }
}

#[test]
fn a_headless_service_has_an_srv_record_for_each_endpoint_with_its_own_port() {
    let host = |label: &str| format!("SRV 0 100 9001 {label}.pets.zoo.svc.cluster.local.");
    let records = [host("10-244-1-2"), host("10-244-1-4"), host("pet-0")];
    let added = ["+ A 10.244.1.2", "+ A 10.244.1.4", "+ A 10.244.1.1", "+ AAAA fd00:244::1"];
    let all: Vec<&str> = records.iter().map(String::as_str).chain(added).collect();
    expect("_feed._tcp.pets.zoo.svc", "SRV", &all);
    expect("_groom._tcp.pets.zoo.svc", "SRV", &["no such name"]);
    assert_eq!(ask("_groom._udp.pets.zoo.svc", "SRV").iter().filter(|l| l.starts_with("SRV")).count(), 3);
}

#[test]
fn addresses_of_endpoints_lead_back_to_their_names() {
    expect_reverse("10.244.1.1", "PTR", &["PTR pet-0.pets.zoo.svc.cluster.local."]);
    expect_reverse("fd00:244::1", "PTR", &["PTR pet-0.pets.zoo.svc.cluster.local."]);
    expect_reverse("10.244.1.2", "PTR", &["PTR 10-244-1-2.pets.zoo.svc.cluster.local."]);
}

#[test]
fn a_headless_service_without_ready_endpoints_has_no_name() {
    // Specification 2.4.1, and the same for what lies below (RFC 8020).
    for name in
        ["asleep.zoo.svc", "bear-0.asleep.zoo.svc", "_feed._tcp.asleep.zoo.svc", "_tcp.asleep.zoo.svc"]
    {
        for record_type in ["A", "AAAA", "SRV"] {
            expect(name, record_type, &["no such name"]);
        }
    }
    expect_reverse("10.244.2.1", "PTR", &["elsewhere 1.2.244.10.in-addr.arpa."]);
}

#[test]
fn p118_manual_endpoints_are_seen_like_slices() {
    expect("manual.shop.svc", "A", &["A 192.0.2.10"]);
    expect("db-0.manual.shop.svc", "A", &["A 192.0.2.10"]);
    expect("db-1.manual.shop.svc", "A", &["no such name"]);
    let srv = "SRV 0 100 5433 db-0.manual.shop.svc.cluster.local.";
    expect("_sql._tcp.manual.shop.svc", "SRV", &[srv, "+ A 192.0.2.10"]);
    expect_reverse("192.0.2.10", "PTR", &["PTR db-0.manual.shop.svc.cluster.local."]);
}

#[test]
fn endpoints_of_a_service_with_an_address_have_names_too() {
    // As in CoreDNS; the specification leaves it open.
    expect("10-244-0-5.web.shop.svc", "A", &["A 10.244.0.5"]);
    expect("10-244-0-6.web.shop.svc", "A", &["no such name"]);
    expect_reverse("10.244.0.5", "PTR", &["PTR 10-244-0-5.web.shop.svc.cluster.local."]);
}

#[test]
fn p106_an_external_name_is_an_alias() {
    for record_type in ["A", "AAAA", "TXT"] {
        expect("search.shop.svc", record_type, &["CNAME www.example.com.", "elsewhere www.example.com."]);
    }
    expect("search.shop.svc", "CNAME", &["CNAME www.example.com."]);
    expect("search.shop.svc", "ANY", &["CNAME www.example.com."]);
    expect("x.search.shop.svc", "A", &["no such name"]);
    expect("_http._tcp.shortcut.shop.svc", "SRV", &["no such name"]);
}

#[test]
fn an_alias_within_the_cluster_is_followed() {
    let web = "CNAME web.shop.svc.cluster.local.";
    expect("shortcut.shop.svc", "A", &[web, "A 10.96.0.10"]);
    expect("shortcut.shop.svc", "MX", &[web, "no record"]);
    let detour = "CNAME shortcut.shop.svc.cluster.local.";
    expect("detour.shop.svc", "AAAA", &[detour, web, "AAAA fd00:96::10"]);
    let outward = "CNAME search.shop.svc.cluster.local.";
    let external = ["CNAME www.example.com.", "elsewhere www.example.com."];
    expect("outward.shop.svc", "A", &[outward, external[0], external[1]]);
}

#[test]
fn an_alias_that_leads_nowhere_is_told_with_its_end() {
    expect("dangling.shop.svc", "A", &["CNAME gone.shop.svc.cluster.local.", "no such name"]);
    let there = "CNAME about.shop.svc.cluster.local.";
    let back = "CNAME round.shop.svc.cluster.local.";
    expect("round.shop.svc", "A", &[there, back]);
    expect("address.shop.svc", "A", &["no such name"]);
}

#[test]
fn p102_p103_labels_for_proxies_do_not_hide_names() {
    expect("other-proxy.shop.svc", "A", &["A 10.96.0.12"]);
    expect("no-proxy.shop.svc", "A", &["A 10.96.0.13"]);
    expect_reverse("10.96.0.12", "PTR", &["PTR other-proxy.shop.svc.cluster.local."]);
}

#[test]
fn names_above_services_exist_and_have_nothing() {
    for name in ["", "svc", "dns", "shop.svc", "empty.svc", "_tcp.web.shop.svc", "_udp.pets.zoo.svc"] {
        for record_type in ["A", "AAAA", "SRV", "TXT"] {
            expect(name, record_type, &["no record"]);
        }
    }
}

#[test]
fn names_that_nobody_has_do_not_exist() {
    for name in [
        "gone.shop.svc",
        "web.gone.svc",
        "gone.svc",
        "shop.pod",
        "10-244-0-5.shop.pod",
        "web.shop",
        "web",
        "*.shop.svc",
        "*.svc",
        "a.b.c.d.e.f.g.web.shop.svc",
        "ns.svc.dns-version",
        "x.dns-version",
        "_tcp.shop.svc",
    ] {
        for record_type in ["A", "SRV", "ANY"] {
            expect(name, record_type, &["no such name"]);
        }
    }
}

#[test]
fn case_does_not_matter_and_the_one_asked_for_is_kept() {
    let name: Name = "WeB.sHoP.SVC.Cluster.LOCAL.".parse().unwrap();
    let answer = zone().lookup(&name, RecordType::A);
    assert_eq!(lines(&answer), ["A 10.96.0.10"]);
    assert!(answer.answers[0].name.eq_case(&name), "{}", answer.answers[0].name);
    expect("PET-0.Pets.Zoo.SVC", "A", &["A 10.244.1.1"]);
    expect(
        "_HTTP._Tcp.web.shop.svc",
        "SRV",
        &ask("_http._tcp.web.shop.svc", "SRV").iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let reverse: Name = "10.0.96.10.IN-ADDR.ARPA.".parse().unwrap();
    assert_eq!(lines(&zone().lookup(&reverse, RecordType::PTR)), ["PTR web.shop.svc.cluster.local."]);
}

#[test]
fn names_outside_are_for_others() {
    for name in [
        "www.example.com.",
        "local.",
        ".",
        "xcluster.local.",
        "1.0.96.10.in-addr.arpa.",
        "96.10.in-addr.arpa.",
        "in-addr.arpa.",
        "x.10.0.96.10.in-addr.arpa.",
        "999.0.96.10.in-addr.arpa.",
        "0.1.0.0.ip6.arpa.",
    ] {
        let answer = zone().lookup(&name.parse().unwrap(), RecordType::PTR);
        assert_eq!(lines(&answer), [format!("elsewhere {name}")]);
    }
}

#[test]
fn the_domain_names_its_server() {
    let soa = &ask("", "SOA")[0];
    assert!(soa.starts_with("SOA ns.dns.cluster.local. hostmaster.cluster.local. "), "{soa}");
    let answer = ["NS ns.dns.cluster.local.", "+ A 192.0.2.1", "+ AAAA 2001:db8::1"];
    expect("", "NS", &answer);
    expect("ns.dns", "A", &["A 192.0.2.1"]);
    expect("ns.dns", "AAAA", &["AAAA 2001:db8::1"]);
    expect("x.dns", "A", &["no such name"]);
    // Without an address to tell there is no such record.
    let silent = Zone::new("cluster.local", 5, vec![]).unwrap();
    assert_eq!(lines(&silent.lookup(&in_domain("ns.dns"), RecordType::A)), ["no such name"]);
    assert_eq!(lines(&silent.lookup(&in_domain(""), RecordType::NS)), ["no record"]);
}

#[test]
fn any_is_answered_with_as_little_as_there_can_be() {
    for name in
        ["", "svc", "shop.svc", "web.shop.svc", "pets.zoo.svc", "dns-version", "_http._tcp.web.shop.svc"]
    {
        expect(name, "ANY", &["HINFO RFC8482 "]);
    }
    expect_reverse("10.96.0.10", "ANY", &["HINFO RFC8482 "]);
}

#[test]
fn what_is_not_there_is_remembered_no_longer_than_what_is() {
    let answer = zone().lookup(&in_domain("gone.shop.svc"), RecordType::A);
    let Status::NxDomain(soa) = answer.status else { panic!("{answer:?}") };
    let RData::SOA(data) = &soa.data else { panic!("{soa}") };
    assert_eq!((soa.ttl, data.minimum), (5, 5));
    assert_eq!(soa.name, in_domain(""));
    let reverse = zone().lookup(&"10.0.96.10.in-addr.arpa.".parse().unwrap(), RecordType::A);
    let Status::NoData(soa) = reverse.status else { panic!("{reverse:?}") };
    assert_eq!(soa.name.to_string(), "10.0.96.10.in-addr.arpa.");
}

#[test]
fn every_record_has_the_ttl_that_was_configured() {
    let zone = filled(Zone::new("cluster.local", 17, vec![]).unwrap());
    for (name, record_type) in [("web.shop.svc", RecordType::A), ("_feed._tcp.pets.zoo.svc", RecordType::SRV)]
    {
        let answer = zone.lookup(&in_domain(name), record_type);
        let records = answer.answers.iter().chain(&answer.additionals);
        assert!(records.clone().count() > 0 && records.clone().all(|record| record.ttl == 17), "{answer:?}");
    }
}

#[test]
fn the_domain_can_be_another_one() {
    let zone = filled(Zone::new("K8s.Example.org.", 5, vec![]).unwrap());
    let ask = |name: &str| lines(&zone.lookup(&name.parse().unwrap(), RecordType::A));
    assert_eq!(ask("web.shop.svc.k8s.example.org."), ["A 10.96.0.10"]);
    assert_eq!(ask("web.shop.svc.cluster.local."), ["elsewhere web.shop.svc.cluster.local."]);
}

fn expect(name: &str, record_type: &str, answer: &[&str]) {
    assert_eq!(ask(name, record_type), answer, "{name} {record_type}");
}

fn expect_reverse(addr: &str, record_type: &str, answer: &[&str]) {
    let addr: IpAddr = addr.parse().unwrap();
    let found = zone().lookup(&Name::from(addr), record_type.parse().unwrap());
    assert_eq!(lines(&found), answer, "{addr} {record_type}");
}

/// Asks for a name in the cluster domain.
fn ask(name: &str, record_type: &str) -> Vec<String> {
    lines(&zone().lookup(&in_domain(name), record_type.parse().unwrap()))
}

fn in_domain(name: &str) -> Name {
    let dot = if name.is_empty() { "" } else { "." };
    Name::from_ascii(format!("{name}{dot}cluster.local.")).unwrap()
}

/// The answers, then with a plus what was added, then what is the matter, one a line.
fn lines(answer: &Answer) -> Vec<String> {
    let line = |record: &Record| match &record.data {
        // The serial number is of no interest here.
        RData::SOA(soa) => format!("SOA {} {} _", soa.mname, soa.rname),
        data => format!("{} {data}", record.record_type()),
    };
    let mut lines: Vec<String> = answer.answers.iter().map(line).collect();
    lines.extend(answer.additionals.iter().map(|record| format!("+ {}", line(record))));
    match &answer.status {
        Status::Found => {}
        Status::NoData(_) => lines.push("no record".into()),
        Status::NxDomain(_) => lines.push("no such name".into()),
        Status::OutOfZone(name) => lines.push(format!("elsewhere {name}")),
    }
    lines
}

fn zone() -> Zone {
    let servers = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    filled(Zone::new("cluster.local", 5, servers.to_vec()).unwrap())
}

fn filled(zone: Zone) -> Zone {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cluster.yaml"), CLUSTER).unwrap();
    let snapshot = manifests::read(dir.path()).unwrap();
    let errors: Vec<String> = snapshot.findings.iter().map(ToString::to_string).collect();
    assert_eq!(errors, [""; 0], "the manifests are good");
    zone.updated(&Desired::default(), &snapshot.desired)
}
