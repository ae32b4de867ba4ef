//! Fuzz target: a line of `flowgate trace`, which is traced or reported with its error.

use flowgate_control::Role;
use flowgate_control::model::Desired;
use flowgate_fuzz::{Feature, Rng, Target, feature};

use super::{CompileConfig, LocalPods, NetState, Tables, compile, read_packet, trace_one};

const WORDS: &[&[u8]] = &[
    b"\"proto\":\"tcp\"",
    b"\"udp\"",
    b"\"sctp\"",
    b"\"icmp\"",
    b"[fd00::1]:80",
    b"10.0.0.2:1234",
    b"0.0.0.0:0",
    b"255.255.255.255:65535",
    b":99999",
    b"[::ffff:10.0.0.1]:1",
    b"[fe80::1%25eth0]:1",
    b"null",
    b"\\u0000",
];

#[test]
fn whatever_a_line_holds_it_is_traced_or_its_error_is_told() {
    let compile_config = CompileConfig {
        role: Role::Gateway,
        node_name: "n1".into(),
        local_pods: LocalPods::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        ..CompileConfig::default()
    };
    let (tables, _) = compile(&Desired::default(), &NetState::default(), &compile_config, &Tables::empty());
    let make = |random: &mut Rng| {
        let [a, b] = std::array::from_fn(|_| random.u32(..));
        let (src, dst) = (std::net::Ipv4Addr::from_bits(a), std::net::Ipv4Addr::from_bits(b));
        format!(r#"{{"id":{a},"proto":"tcp","src":"{src}:{}","dst":"{dst}:80"}}"#, random.u16(..))
            .into_bytes()
    };
    Target::new("trace", env!("CARGO_MANIFEST_DIR")).dictionary(WORDS).run(make, |line| check(&tables, line));
}

fn check(tables: &Tables, line: &[u8]) -> Feature {
    let Ok(line) = std::str::from_utf8(line) else { return 0 };
    match read_packet(line) {
        Ok((id, tuple)) => {
            assert_eq!(tuple.src.is_ipv4(), tuple.dst.is_ipv4());
            let traced = trace_one(tables, id.clone(), &tuple);
            assert_eq!(traced.id, id);
            assert!(!traced.reason.is_empty() && traced.backend.is_none());
            feature(&(traced.verdict, traced.reason, tuple.protocol.number(), id.is_null()))
        }
        Err((_, reason)) => {
            assert!(!reason.trim().is_empty());
            let kind: String = reason.chars().filter(|c| c.is_ascii_alphabetic()).take(24).collect();
            feature(&kind)
        }
    }
}
