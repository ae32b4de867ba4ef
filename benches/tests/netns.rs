//! Namespaces are isolated from the machine and from each other, and are removed with their owner.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flowgate_benches::netns::{Namespace, guarded};

use crate::common::{eventually, require_root};

fn is_alive(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn namespaces_have_their_own_loopback_sys_and_bpffs() {
    require_root();
    let (one, two) = (Namespace::new("one").unwrap(), Namespace::new("two").unwrap());
    let listener = one.run(|| TcpListener::bind("127.0.0.1:7777")).unwrap();
    assert!(one.enter(|| TcpStream::connect("127.0.0.1:7777")).unwrap().is_ok());
    assert!(two.enter(|| TcpStream::connect("127.0.0.1:7777")).unwrap().is_err());
    assert!(TcpStream::connect("127.0.0.1:7777").is_err(), "the machine's own network is another one");
    drop(listener);

    one.ip("link add name only-in-one type bridge").unwrap();
    let sees_link = || Path::new("/sys/class/net/only-in-one").exists();
    assert!(one.enter(sees_link).unwrap() && !two.enter(sees_link).unwrap() && !sees_link());

    one.run(|| fs::create_dir("/sys/fs/bpf/mark")).unwrap();
    let sees_pin = || Path::new("/sys/fs/bpf/mark").exists();
    assert!(one.enter(sees_pin).unwrap() && !two.enter(sees_pin).unwrap() && !sees_pin());
}

#[test]
fn threads_and_children_run_inside() {
    require_root();
    let namespace = Namespace::new("inside").unwrap();
    namespace.ip("link add name mark type bridge").unwrap();
    let thread = namespace.spawn_thread("look", || Path::new("/sys/class/net/mark").exists()).unwrap();
    assert!(thread.join().unwrap());
    let mut command = Command::new("cat");
    command.arg("/sys/class/net/mark/ifindex");
    assert!(namespace.check(command).is_ok());
}

#[test]
fn a_child_dies_with_its_namespace_and_not_before() {
    require_root();
    let namespace = Namespace::new("short").unwrap();
    let mut command = guarded("sleep");
    command.arg("600");
    let mut child = namespace.spawn(command).unwrap();
    let id = child.id();
    // The child must survive the thread of a finished `enter`.
    namespace.enter(|| ()).unwrap();
    assert!(child.ended().is_none());
    drop(namespace);
    eventually("the death of the child", || child.ended().is_some());
    assert!(!is_alive(id));
}

#[test]
fn a_dropped_process_is_dead() {
    require_root();
    let namespace = Namespace::new("drop").unwrap();
    let mut command = guarded("sleep");
    command.arg("600");
    let child = namespace.spawn(command).unwrap();
    let id = child.id();
    drop(child);
    assert!(!is_alive(id));
}

#[test]
fn terminate_kills_what_does_not_listen() {
    require_root();
    let namespace = Namespace::new("deaf").unwrap();
    let mut command = guarded("sh");
    command.args(["-c", "trap '' TERM; while :; do sleep 0.05; done"]);
    let mut child = namespace.spawn(command).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let status = child.terminate(Duration::from_millis(200)).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn a_published_name_works_and_goes_with_the_namespace() {
    require_root();
    let name = format!("fgtest-{}", std::process::id());
    let path = Path::new("/run/netns").join(&name);
    let namespace = Namespace::new("named").unwrap();
    namespace.ip("link add name mark type bridge").unwrap();
    namespace.publish(&name).unwrap();
    let listed = Command::new("ip").args(["-n", &name, "link", "show", "mark"]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    drop(namespace);
    assert!(!path.exists());
}

#[test]
fn a_failed_command_says_which_and_where() {
    require_root();
    let namespace = Namespace::new("here").unwrap();
    let error = namespace.ip("link set nothing up").unwrap_err().to_string();
    assert!(error.contains("ip link set nothing up") && error.contains("here"), "{error}");
    let error = namespace.spawn(Command::new("no-such-program")).unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
}

#[test]
fn a_panic_inside_reaches_the_caller_and_the_namespace_lives_on() {
    require_root();
    let namespace = Namespace::new("panic").unwrap();
    let outcome =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| namespace.run(|| panic!("inside"))));
    assert!(outcome.is_err());
    assert_eq!(namespace.run(|| 42), 42);
}
