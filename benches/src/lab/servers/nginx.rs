//! The installed nginx as a backend, with configuration and files in a temporary folder.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use tempfile::TempDir;

use super::http::BACKEND_HEADER;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::scratch;
use crate::netns::{Namespace, Process, find_program, guarded};
use crate::pattern::Pattern;

const READY_LIMIT: Duration = Duration::from_secs(5);

/// A running nginx; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    folder: TempDir,
    _process: Process,
}

impl Nginx {
    /// Starts nginx on every address of a namespace. `/` returns the name of the backend; `/bytes/N` exists for each of `sizes`.
    pub fn start(namespace: &Namespace, name: &str, port: u16, sizes: &[usize]) -> Result<Self> {
        let program = find_program("nginx")
            .ok_or_else(|| Error::MissingProgram { program: "nginx".into(), package: "nginx-light" })?;
        let folder = scratch::folder(name)?;
        write_files(folder.path(), name, port, sizes)
            .map_err(Error::io(format!("write the files of {name} in {}", folder.path().display())))?;
        let mut command = guarded(program);
        command.arg("-p").arg(folder.path()).args(["-e", "error.log", "-c", "nginx.conf"]);
        let mut server = Self { _process: namespace.spawn(command)?, folder };
        server.wait_until_ready(namespace, name, port)?;
        Ok(server)
    }

    fn wait_until_ready(&mut self, namespace: &Namespace, name: &str, port: u16) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = clock::now() + READY_LIMIT;
        while namespace.enter(|| TcpStream::connect(address).is_err())? {
            let ended = self._process.ended();
            if ended.is_some() || clock::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default();
                return Err(Error::Timeout {
                    what: format!("the start of nginx as {name} on port {port}"),
                    after: READY_LIMIT,
                    hint: format!("its log ends with: {}", log.trim()),
                });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn write_files(folder: &Path, name: &str, port: u16, sizes: &[usize]) -> std::io::Result<()> {
    fs::create_dir_all(folder.join("html/bytes"))?;
    fs::write(folder.join("html/index.html"), format!("{name}\n"))?;
    for size in sizes {
        fs::write(folder.join(format!("html/bytes/{size}")), Pattern::HTTP.bytes(0, *size))?;
    }
    fs::write(folder.join("nginx.conf"), config(name, port))
}

/// A single process without a master: a killed master would leave its workers behind.
fn config(name: &str, port: u16) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path tmp_{kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\nworker_rlimit_nofile 65536;\npid nginx.pid;\nevents {{ worker_connections \
         16384; }}\nhttp {{\n  access_log off;\n  tcp_nodelay on;\n  keepalive_timeout 3600;\n  keepalive_requests \
         1000000000;\n{temporary}  server {{\n    listen {port} backlog=4096;\n    listen [::]:{port} ipv6only=on backlog=4096;\n    root html;\n    default_type \
         text/plain;\n    add_header {BACKEND_HEADER} {name} always;\n  }}\n}}\n"
    )
}
