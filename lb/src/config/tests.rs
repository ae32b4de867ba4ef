//! What a file and a command line make of a [`Config`], and the sample file.

use flowgate_control::{ExternalIps, ProtectedPort};
use flowgate_dataplane::MssClamp;
use flowgate_flow::Timeouts;
use flowgate_tables::Budgets;

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let loaded = Sections::parse(text, "f.toml")
        .and_then(|sections| Config::resolve_at("f.toml", sections, Overrides::default()));
    loaded.map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = load("").unwrap();
    assert_eq!(config.snat.ports, 49_152..=65_535);
    assert_eq!(config.flows.timeouts(), Timeouts::default());
    assert_eq!(config.role, Role::Gateway);
}

#[test]
fn p1106_p1107_servers_listen_where_kube_proxys_do_unless_they_are_off() {
    let config = load("").unwrap();
    assert_eq!(config.health.listen, "0.0.0.0:10256".parse().ok());
    assert_eq!(config.metrics.listen, "127.0.0.1:10249".parse().ok());
    let config = load("[health]\nlisten = \"off\"\n[metrics]\nlisten = \"[::1]:9\"").unwrap();
    assert_eq!((config.health.listen, config.metrics.listen), (None, "[::1]:9".parse().ok()));
}

#[test]
fn the_sample_file_holds_every_key_with_its_default() {
    let sample = include_str!("../../../config/flowgate.toml");
    let uncomment = |line: &'static str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => rest,
        _ => line,
    };
    let lines: Vec<_> = sample.lines().map(uncomment).collect();
    let full: toml::Table = toml::from_str(&lines.join("\n")).unwrap();
    for key in file::known_keys(None) {
        assert!(full.contains_key(&key), "{key} is missing in the sample");
        for inner in file::known_keys(Some(&key)) {
            let section = full[&key].as_table().unwrap();
            assert!(section.contains_key(&inner), "{key}.{inner} is missing in the sample");
        }
    }
    // These show a value where there is none by default.
    let examples = [
        "node_name = \"edge-1\"",
        "manifests = \"/etc/flowgate/manifests\"",
        "kubeconfig = \"/etc/flowgate/kubeconfig\"",
        "interfaces = [\"eth0\"]",
        "nodeport_addresses = [\"192.0.2.0/24\"]",
        "cluster_cidrs = [\"10.244.0.0/16\"]",
        "external_ips = \"safe\"",
        "addresses = [\"192.0.2.1\", \"2001:db8::1\"]",
        "cores = [1]",
        "listen = [\"127.0.0.1\"]",
    ];
    for example in examples {
        assert!(lines.contains(&example), "{example} is not in the sample");
    }
    let shown: Vec<_> = lines.iter().copied().filter(|line| !examples.contains(line)).collect();
    let shown = Sections::parse(&shown.join("\n"), "sample").unwrap();
    assert_eq!(shown, Sections::default(), "what the sample shows as default is the default");
    // The examples are values of the right type too; only the second source contradicts the first.
    Sections::parse(&lines.join("\n"), "sample").unwrap();
    let manifests = Source::Manifests("/etc/flowgate/manifests".into());
    assert_eq!(load("").unwrap().source, manifests, "this one is the default, though of no key");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_one() {
    let error = load("role = \"gateway\"\n[flows]\ncapacty = 5\n").unwrap_err();
    assert_eq!(error, "f.toml:3: unknown key `flows.capacty`: did you mean `flows.capacity`?");
    let error = load("[flow]\n").unwrap_err();
    assert_eq!(error, "f.toml:1: unknown key `flow`: did you mean `flows`?");
    let error = load("zzzzzzzz = 1\n").unwrap_err();
    assert_eq!(error, "f.toml:1: unknown key `zzzzzzzz`");
}

#[test]
fn a_wrong_value_is_named_with_what_to_write() {
    for (text, message) in [
        ("role = \"router\"", "f.toml: role: `router` is neither gateway nor node"),
        ("[snat]\nports = \"5\"", "f.toml: snat.ports: `5` is not a range of ports such as \"49152-65535\""),
        (
            "[snat]\naddresses = [\"192.0.2.1\", \"fe80::1\"]",
            "f.toml: snat.addresses: `fe80::1` is no address that packets can come from and be answered to",
        ),
        (
            "[snat]\naddresses = [\"2001:db8::1\", \"2001:db8::1\"]",
            "f.toml: snat.addresses: `2001:db8::1` is listed twice",
        ),
        ("[snat]\nports = \"9-5\"", "f.toml: snat.ports: 9 is above 5"),
        ("[rings]\nrx = 100", "f.toml: rings.rx: 100 is not a power of two from 64 to 32768"),
        ("[gateway]\ninterfaces = [\"a\", \"a\"]", "f.toml: gateway.interfaces: `a` is listed twice"),
        ("[workers]\ncount = 2\ncores = [1]", "f.toml: workers.cores: 1 cores for 2 workers"),
        (
            "[source]\nmanifests = \"/m\"\nin_cluster = true",
            "f.toml: source.in_cluster: not along with source.manifests: objects come from one place, remove one",
        ),
        ("[flows]\nudp_answered_s = 0", "f.toml: flows.udp_answered_s: 0 is not from 1 to 2073600"),
        (
            "[health]\nlisten = \"10256\"",
            "f.toml: health.listen: `10256` is neither an address with a port such as \"0.0.0.0:10256\" nor off",
        ),
        (
            "[metrics]\ndetail = \"all\"",
            "f.toml: metrics.detail: `all` is none of totals, services, backends",
        ),
        (
            "[tcp]\nmss_clamp = \"on\"",
            "f.toml: tcp.mss_clamp: `on` is neither off, auto nor a number of bytes",
        ),
        ("[flows]\nhalf_open_percent = 0", "f.toml: flows.half_open_percent: 0 is not from 1 to 100"),
        ("[flows]\nper_client_percent = 101", "f.toml: flows.per_client_percent: 101 is not from 1 to 100"),
        ("[tcp]\nmss_clamp = 500", "f.toml: tcp.mss_clamp: 500 is not from 536 to 65495"),
        ("[limits]\nvips = 0", "f.toml: limits.vips: 0 is not from 1 to 16777215"),
        (
            "[services]\nexternal_ips = \"most\"",
            "f.toml: services.external_ips: `most` is none of safe, all, none, and no range such as 203.0.113.0/24",
        ),
        (
            "[services]\nexternal_ips = [\"203.0.113.0/33\"]",
            "f.toml: services.external_ips: `203.0.113.0/33` is none of safe, all, none, and no range such as \
             203.0.113.0/24",
        ),
        (
            "[services]\nprotected_ports = [\"ssh\"]",
            "f.toml: services.protected_ports: `ssh` is no port with a protocol such as 22/tcp",
        ),
    ] {
        assert_eq!(load(text).unwrap_err(), message);
    }
    for (text, key) in [
        ("[flows]\ncapacity = \"many\"", "flows.capacity"),
        ("\nrole = true", "role"),
        ("\nrole = { gateway = {} }", "role"),
        ("[xdp]\nzero_copy = false", "xdp.zero_copy"),
        ("[xdp]\nmode = 1", "xdp.mode"),
        ("[metrics]\ndetail = [1]", "metrics.detail"),
        ("[node]\ndetect_local = 1.5", "node.detect_local"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.starts_with(&format!("f.toml:2: {key}: invalid type")), "{error}");
    }
}

#[test]
fn how_packets_are_treated_can_be_chosen() {
    // The pipeline by itself shares nothing out.
    let usual = PipelineConfig { per_client_percent: 50, ..PipelineConfig::default() };
    assert_eq!(load("").unwrap().pipeline, usual);
    assert_eq!(load("[flows]\nper_client_percent = 7").unwrap().pipeline.per_client_percent, 7);
    let text = "[tcp]\nreset_unknown = false\nmss_clamp = \"auto\"\n[icmp]\necho_vips = true";
    let chosen = PipelineConfig { reset_unknown: false, echo_vips: true, mss_clamp: MssClamp::Auto, ..usual };
    assert_eq!(load(text).unwrap().pipeline, chosen);
    assert_eq!(load("[tcp]\nmss_clamp = 1360").unwrap().pipeline.mss_clamp, MssClamp::To(1360));
}

#[test]
fn what_objects_may_ask_for_can_be_chosen() {
    let budgets = |text: &str| load(text).unwrap().compile_config(PortSet::default()).budgets;
    assert_eq!(budgets(""), Budgets::default());
    let chosen = Budgets { vips: 7, service_endpoints: 16_777_215, ..Budgets::default() };
    assert_eq!(budgets("[limits]\nvips = 7\nservice_endpoints = 16777215"), chosen);
}

#[test]
fn external_addresses_are_a_word_or_ranges_and_as_the_role_has_them_by_default() {
    let chosen =
        |value: &str| load(&format!("[services]\nexternal_ips = {value}")).unwrap().services.external_ips;
    assert_eq!(load("").unwrap().services.external_ips, None);
    assert_eq!(chosen("\"safe\""), Some(ExternalIps::Safe));
    assert_eq!(chosen("\"all\""), Some(ExternalIps::All));
    assert_eq!(chosen("\"none\""), Some(ExternalIps::Nowhere));
    assert_eq!(chosen("[]"), Some(ExternalIps::Nowhere));
    let ranges = ["203.0.113.0/24", "2001:db8::7/128"].map(|net| net.parse().unwrap()).to_vec();
    assert_eq!(chosen("[\"203.0.113.0/24\", \"2001:db8::7\"]"), Some(ExternalIps::Within(ranges)));
}

#[test]
fn the_ports_of_the_programs_own_servers_are_protected_beside_those_of_the_list() {
    let protected = |text: &str| load(text).unwrap().compile_config(PortSet::default()).protected_ports;
    let port = |addr: Option<&str>, text: &str| ProtectedPort {
        addr: addr.map(|addr| addr.parse().unwrap()),
        ..text.parse().unwrap()
    };
    let default = protected("");
    for text in ["22/tcp", "179/tcp", "10250/tcp", "10256/tcp"] {
        assert!(default.contains(&port(None, text)), "{text}");
    }
    let text = "[services]\nprotected_ports = [\"22/tcp\"]\n[health]\nlisten = \"off\"\n[metrics]\nlisten = \"off\"\n\
                [dns]\nlisten = [\"192.0.2.1\"]";
    let wanted = [port(None, "22/tcp"), port(Some("192.0.2.1"), "53/tcp"), port(Some("192.0.2.1"), "53/udp")];
    assert_eq!(protected(text), wanted);
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides {
        source: SourceOverride::Manifests("/m".into()),
        role: Some(RoleName::Node),
        node_name: Some("EDGE".into()),
        interfaces: vec!["x0".into()],
    };
    let config = Config::resolve(Sections::default(), overrides).unwrap();
    assert_eq!((config.role, config.node_name.as_str()), (Role::Node, "edge"));
    assert_eq!(
        (config.source, config.gateway.interfaces),
        (Source::Manifests("/m".into()), vec!["x0".to_owned()])
    );
}
