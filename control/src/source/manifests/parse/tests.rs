//! Tests of what files are read as.

use std::fmt::Write as _;

use super::*;

/// The names of the objects of a file, and what is said of it.
fn read(name: &str, text: &str) -> (Vec<String>, Vec<String>) {
    let parsed = parse(&Arc::new(name.into()), text);
    let names = parsed.objects.iter().map(|object| object.name.to_string()).collect();
    (names, parsed.findings.iter().map(ToString::to_string).collect())
}

/// A Service in JSON.
fn json(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"}},
 "spec": {{"clusterIP": "10.96.0.1", "ports": [{{"port": 80}}]}}}}"#
    )
}

/// A Service in YAML.
fn yaml(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n"
    )
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("Service default/{name}")).collect()
}

#[test]
fn the_name_of_a_file_says_nothing_of_its_form() {
    let (a, b, c) = (json("a"), json("b"), json("c"));
    for (what, text) in [
        ("JSON in a row", format!("{a}{b}\n{c}")),
        ("JSON between separators", format!("{a}\n---\n{b}\n---\n{c}\n")),
        ("JSON in a row, then a separator, then YAML", format!("{a}{b}---\n{}", yaml("c"))),
        ("the same on lines", format!("{a}\n{b}\n---\n{}", yaml("c"))),
        ("YAML, then JSON in a row", format!("{}---\n{b}\n{c}", yaml("a"))),
        ("YAML", format!("{}---\n{}...\n---\n{}", yaml("a"), yaml("b"), yaml("c"))),
        ("YAML of one line", format!("{{apiVersion: v1, kind: List, items: [{a}, {b}, {c}]}}")),
        (
            "marks at the beginning of each part",
            format!("\u{feff}{}\u{feff}---\n\u{feff}{b}\n---\n\u{feff}{}", yaml("a"), yaml("c")),
        ),
        (
            "lines of Windows",
            format!("{}---\n{b}---\n# only a comment\n---\n\n---\n{}", yaml("a"), yaml("c"))
                .replace('\n', "\r\n"),
        ),
        (
            "tabs",
            format!(
                "{}---\n\t{}\n---\t# c\n{}",
                yaml("a").replace(": ", ":\t"),
                b.replace(' ', "\t"),
                yaml("c")
            ),
        ),
    ] {
        for name in ["x.yaml", "x.json", "x.yml"] {
            let text = text.replace("}---", "}\n---");
            assert_eq!(read(name, &text), (named(&["a", "b", "c"]), vec![]), "{what} in {name}");
        }
    }
}

#[test]
fn utf_16_of_an_editor_is_read() {
    let text = yaml("a");
    for (mark, bytes) in
        [([0xff, 0xfe], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xfe, 0xff], u16::to_be_bytes)]
    {
        let bytes: Vec<u8> = mark.into_iter().chain(text.encode_utf16().flat_map(bytes)).collect();
        assert_eq!(decode(bytes).as_deref(), Ok(text.as_str()));
    }
    assert!(decode(vec![0xff, 0xfe, 0x00, 0xd8]).unwrap_err().starts_with("not UTF-16"));
    assert!(decode(vec![0xc0]).unwrap_err().starts_with("not UTF-8"));
}

#[test]
fn a_document_that_cannot_be_read_is_named_with_its_line_and_spoils_no_other() {
    let (names, findings) = read(
        "x.json",
        &format!("{}---\n{}{{\"apiVersion\": \"v1\",\n\"kind\"\n---\n{}", yaml("a"), json("b"), json("c")),
    );
    assert_eq!(names, named(&["a", "b", "c"]));
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].starts_with("x.json:9: not JSON: EOF while parsing an object at column "),
        "{findings:?}"
    );
    let (names, findings) = read("x.yaml", &format!("{{a: [1, 2\nb: }}\n---\n{}", yaml("a")));
    assert_eq!(names, named(&["a"]));
    assert!(findings[0].starts_with("x.yaml:") && findings[0].contains("not YAML: "), "{findings:?}");
    let (names, findings) = read("x.yaml", &format!("[1, 2]\n---\nnull\n---\n~\n---\n{}", yaml("a")));
    assert_eq!(names, named(&["a"]));
    assert_eq!(findings, ["x.yaml:1: not a Kubernetes object: a mapping is expected"]);
}

#[test]
fn items_of_a_typed_list_have_its_kind_and_version() {
    let item = r#"{"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}"#;
    let list = |kind: &str, version: &str| {
        read("x.json", &format!(r#"{{"kind": "{kind}", "apiVersion": "{version}", "items": [{item}]}}"#))
    };
    assert_eq!(list("ServiceList", "v1"), (named(&["a"]), vec![]));
    assert_eq!(list("PodList", "v1"), (vec![], vec![]), "of other kinds they are ignored");
    assert_eq!(list("ServiceList", "serving.knative.dev/v1"), (vec![], vec![]));
    assert_eq!(list("List", "v1").1, ["x.json:1: object a: kind is missing"]);
    for text in [
        "kind: ServiceList\napiVersion: v1\nitems: null\n",
        "kind: ServiceList\napiVersion: v1\nitems: []\n",
        "kind: ServiceList\napiVersion: v1\n",
    ] {
        assert_eq!(read("x.yaml", text), (vec![], vec![]), "{text}");
    }
    let slices = "apiVersion: discovery.k8s.io/v1\nitems:\n- metadata: {name: s}\n  addressType: IPv4\n  endpoints: null\n\
                  kind: EndpointSliceList\n";
    assert_eq!(read("x.yaml", slices).0, ["EndpointSlice default/s"]);
}

#[test]
fn of_a_key_that_is_there_twice_the_last_counts_as_for_kubectl() {
    let text = yaml("a").replace("clusterIP: 10.96.0.1", "clusterIP: None, clusterIP: 10.96.0.1");
    let (names, findings) = read("x.yaml", &text);
    assert_eq!(names, named(&["a"]));
    assert_eq!(findings, ["x.yaml:1: the key \"clusterIP\" is there twice: the last one counts"]);
}

#[test]
fn scalars_are_those_of_kubectl() {
    let spec = |port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
        )
    };
    let port = |text: &str| {
        let parsed = parse(&Arc::new("x.yaml".into()), &spec(text));
        match parsed.objects.first().map(|object| &object.object) {
            Some(Object::Service(service)) => Ok(service.ports[0].port),
            _ => Err(parsed.findings.iter().map(ToString::to_string).collect::<String>()),
        }
    };
    for (text, number) in [
        ("80", 80),
        ("80.0", 80),
        ("8e1", 80),
        ("0x50", 80),
        ("0o120", 80),
        ("0120", 80),
        ("8_080", 8080),
        ("+80", 80),
    ] {
        assert_eq!(port(text), Ok(number), "{text}");
    }
    for (text, is_read) in [("80.0", true), ("8e1", true), ("800E-1", true), ("80.5", false), ("8e10", false)]
    {
        let text = json("a").replace("\"port\": 80", &format!("\"port\": {text}"));
        let (names, findings) = read("x.json", &text);
        assert_eq!(names.len(), usize::from(is_read), "{text}: {findings:?}");
    }
    for text in ["\"80\"", "80.5", "yes", "~"] {
        assert!(port(text).is_err(), "{text}");
    }
    // Labels are texts: kubectl and the API server refuse others too.
    let labelled =
        |label: &str| yaml("a").replace("{name: a}", &format!("{{name: a, labels: {{l: {label}}}}}"));
    assert_eq!(read("x.yaml", &labelled("2026-11-30")).1, Vec::<String>::new());
    assert_eq!(read("x.yaml", &labelled("null")).1, Vec::<String>::new());
    assert!(read("x.yaml", &labelled("on")).1[0].contains("invalid type: boolean `true`, expected a string"));
}

#[test]
fn anchors_are_read_however_often_they_are_used() {
    let mut text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\nendpoints:\n\
                    - {addresses: [10.244.0.1], conditions: &up {ready: true, serving: true}}\n"
        .to_owned();
    for n in 1..5000 {
        writeln!(text, "- {{addresses: [10.244.{}.{}], conditions: *up}}", n / 250, n % 250 + 1).unwrap();
    }
    // Merge keys as well, of which the mapping's own keys count.
    write!(text, "---\ncommon: &c {{apiVersion: v1, kind: Service}}\n---\n").unwrap();
    text.push_str("{x: &c {apiVersion: v1, kind: Other}, <<: *c, kind: Service, metadata: {name: a}, spec: {clusterIP: None}}\n");
    let parsed = parse(&Arc::new("x.yaml".into()), &text);
    assert_eq!(parsed.objects.len(), 2, "{:?}", parsed.findings);
    let Object::EndpointSlice(slice) = &parsed.objects[0].object else { panic!("a slice comes first") };
    assert_eq!(slice.endpoints.len(), 5000);
}

#[test]
fn a_billion_laughs_end_with_a_sentence() {
    let levels = |entry: &dyn Fn(usize) -> String| (1..30).map(entry).collect::<String>();
    let lists = levels(&|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", ")));
    let maps = levels(&|n| {
        let entries: Vec<String> = (0..9).map(|i| format!("k{i}: *a{}", n - 1)).collect();
        format!("a{n}: &a{n} {{{}}}\n", entries.join(", "))
    });
    let merges = levels(&|n| {
        format!("a{n}: &a{n} {{<<: [{}], k{n}: x}}\n", vec![format!("*a{}", n - 1); 9].join(", "))
    });
    let twice = levels(&|n| format!("a{n}: &a{n} {{{}}}\n", vec![format!("k: *a{}", n - 1); 9].join(", ")));
    let long = format!("a0: &a0 {}\nall: [{}]\n", "x".repeat(1 << 20), vec!["*a0"; 4000].join(", "));
    for (what, text) in [
        ("lists", format!("a0: &a0 lol\n{lists}")),
        ("maps", format!("a0: &a0 lol\n{maps}")),
        ("merges", format!("a0: &a0 {{k: lol}}\n{merges}")),
        ("duplicate keys", format!("a0: &a0 lol\n{twice}")),
        ("a long text", long),
    ] {
        let many = format!("{text}---\n").repeat(if what == "lists" { 6 } else { 1 });
        let (names, findings) = read("x.yaml", &format!("{many}{}", yaml("a")));
        assert_eq!(names, named(&["a"]), "{what}");
        assert_eq!(findings.len(), many.matches("---\n").count(), "{what}: {findings:?}");
        assert!(
            findings[0].contains(": its aliases make it larger than a file of its length may be"),
            "{what}: {findings:?}"
        );
    }
}

#[test]
fn a_list_of_ten_thousand_services_is_read_as_one_document() {
    let mut text = "apiVersion: v1\nitems:\n".to_owned();
    for n in 0..10_000 {
        writeln!(
            text,
            "- apiVersion: v1\n  kind: Service\n  metadata: {{name: web-{n}, labels: {{app: web-{n}}}, creationTimestamp: '2026-01-01T00:00:00Z'}}\n  \
             spec:\n    clusterIP: 10.96.{}.{}\n    selector: {{app: web-{n}}}\n    ports:\n    - {{name: http, port: 80, protocol: TCP, targetPort: 8080}}",
            n / 250,
            n % 250 + 1
        )
        .unwrap();
    }
    text.push_str("kind: List\n");
    let (names, findings) = read("x.yaml", &text);
    assert_eq!((names.len(), findings), (10_000, vec![]));
}

#[test]
fn nesting_without_end_ends_with_a_sentence_and_that_of_schemas_is_read() {
    let nested = |depth: usize| format!("kind: Other\nx: {}{}\n", "{a: ".repeat(depth), "}".repeat(depth));
    let reading = move || {
        assert_eq!(read("x.yaml", &nested(90)), (vec![], vec![]));
        for text in
            [nested(10_000), format!("kind: Other\nx: {}", "[".repeat(10_000)), "{\"a\": ".repeat(100_000)]
        {
            let (names, findings) = read("x.yaml", &text);
            assert_eq!((names.len(), findings.len()), (0, 1), "{findings:?}");
        }
    };
    // Without optimisation a level takes 20 KiB of stack, ten times as much as in the program.
    std::thread::Builder::new().stack_size(16 << 20).spawn(reading).unwrap().join().unwrap();
}
