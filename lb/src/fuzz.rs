//! Fuzz targets: the text of a configuration, and lines on the admin socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use flowgate_control::descriptors::{DescriptorBudget, DescriptorLimits};
use flowgate_fuzz::{Feature, Rng, Target, feature};

use crate::admin::{AdminServer, Handler, Request, Response};
use crate::config::{Config, Overrides};

const KEYS: &[&[u8]] = &[
    b"[flows]\n",
    b"capacity = ",
    b"capacity_v6 = ",
    b"[snat]\n",
    b"ports = \"49152-65535\"\n",
    b"addresses = [\"192.0.2.1\"]\n",
    b"[gateway]\n",
    b"interfaces = [\"up0\"]\n",
    b"[dns]\n",
    b"listen = [\"off\"]\n",
    b"role = \"node\"\n",
    b"-1",
    b"true",
    b"9223372036854775807",
    b"\"\"",
    b"[]",
    b"{}",
    b"nan",
    b"1979-05-27",
    b"[rings]\n",
    b"rx = ",
    b"[workers]\n",
    b"cores = [0]\n",
    b"hang_ms = ",
    b"tcp_reset_s = ",
    b"[xdp]\n",
    b"mode = \"skb\"\n",
    b"[source]\n",
    b"manifests = \"/x\"\n",
    b"[metrics]\n",
];

#[test]
fn whatever_a_configuration_holds_it_is_taken_or_refused_with_place_and_reason() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let sample = include_bytes!("../../config/flowgate.toml");
    let make = |random: &mut Rng| match random.u8(..4) {
        0 => sample.to_vec(),
        _ => (0..random.usize(1..9)).flat_map(|_| KEYS[random.usize(..KEYS.len())]).copied().collect(),
    };
    Target::new("config", env!("CARGO_MANIFEST_DIR"))
        .dictionary(KEYS)
        .run(make, |text| load(file.path(), text));
}

fn load(path: &Path, text: &[u8]) -> Feature {
    std::fs::write(path, text).unwrap();
    match Config::load(Some(path), Overrides::default()) {
        Ok(_) => feature(&"taken"),
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains(&path.display().to_string()), "without its place: {words}");
            let kind: String = words.chars().filter(|c| c.is_ascii_alphabetic()).rev().take(30).collect();
            feature(&kind)
        }
    }
}

/// Responds with the request itself, as an error.
struct EchoHandler;

impl Handler for EchoHandler {
    async fn handle(&self, request: Request) -> Response {
        Response::Error(format!("{request:?}"))
    }
}

#[test]
fn whatever_is_asked_on_the_admin_socket_each_line_gets_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let (bound, is_bound) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let served = std::thread::spawn({
        let path = path.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let server = async {
                let server = AdminServer::bind(&path).unwrap();
                bound.send(()).unwrap();
                let budget = DescriptorBudget::new(DescriptorLimits::default());
                tokio::select! { () = server.serve(Rc::new(EchoHandler), budget) => {}, _ = ended => {} }
            };
            tokio::task::LocalSet::new().block_on(&runtime, server);
        }
    });
    is_bound.recv_timeout(Duration::from_secs(5)).unwrap();
    let words: &[&[u8]] =
        &[b"{\"show\":\"flows\",\"limit\":", b"{\"show\":\"drops\"}\n", b"\n", b"}", b"null", b"\xff"];
    let make = |random: &mut Rng| {
        (0..random.usize(1..4)).flat_map(|_| words[random.usize(..words.len())]).copied().collect()
    };
    Target::new("admin", env!("CARGO_MANIFEST_DIR")).run(make, |input| ask(&path, input));
    end.send(()).unwrap();
    served.join().unwrap();
}

fn ask(path: &Path, input: &[u8]) -> Feature {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(input).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the server answers and closes");
    // Bytes that are not UTF-8 end the connection.
    let asked = std::str::from_utf8(input).map(|text| text.lines().count());
    let answers: Vec<&str> = text.lines().collect();
    if let Ok(asked) = asked {
        assert_eq!(answers.len(), asked, "an answer for each line");
    }
    let shape = |line: &&str| {
        let Ok(Response::Error(words)) = serde_json::from_str(line) else { panic!("no answer: {line}") };
        words.chars().filter(|c| c.is_ascii_alphabetic()).take(40).collect::<String>()
    };
    feature(&answers.iter().map(shape).collect::<Vec<_>>())
}
