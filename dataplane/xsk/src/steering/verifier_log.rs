//! Errors of a program that the verifier rejects. The verifier's log has thousands of lines: it goes into a file, and the error
//! names that file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aya::programs::ProgramError;

use super::SteeringError;
use super::kernel::Kernel;

/// Writes verifier logs of this kernel into a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct VerifierLog<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) dir: &'a Path,
}

impl VerifierLog<'_> {
    /// The error for a program that was not loaded. An empty log means that the program was not the cause, but for example a
    /// missing capability.
    pub(super) fn explain(&self, program: &'static str, error: ProgramError) -> SteeringError {
        match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                if log.trim().is_empty() {
                    return ProgramError::LoadError { io_error, verifier_log }.into();
                }
                SteeringError::Refused {
                    kernel: self.kernel.to_string(),
                    program,
                    log: self.save(program, &log),
                    source: io_error,
                }
            }
            other => other.into(),
        }
    }

    /// Returns where the log is, or the verifier's reason if the log cannot be written.
    fn save(&self, program: &str, log: &str) -> String {
        let path = self.dir.join(format!("{program}.verifier.log"));
        match self.write(&path, log) {
            Ok(()) => format!("the verifier's log in {}", path.display()),
            Err(error) => format!(
                "the verifier's words `{}` (all of its log cannot be written to {}: {error})",
                reason_in(log),
                path.display()
            ),
        }
    }

    fn write(&self, path: &Path, log: &str) -> io::Result<()> {
        fs::create_dir_all(self.dir)?;
        // A symbolic link is replaced and not followed: others may be able to write to the directory.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", self.kernel)?;
        file.write_all(log.as_bytes())
    }
}

/// The line with the reason: the last one before the verifier's statistics.
fn reason_in(log: &str) -> &str {
    const STATISTICS: [&str; 4] = ["verification time", "stack depth", "insns processed", "processed "];
    let is_reason =
        |line: &&str| !line.trim().is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word));
    log.lines().rev().find(is_reason).unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;
    use std::path::PathBuf;
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::unistd::geteuid;

    use super::*;
    use crate::steering::{
        InterfaceConfig, LinkOrigin, SetLimits, Steering, SteeringConfig, XdpModePolicy, program,
    };
    use crate::sys::netlink::device_xdp;

    /// The steering program's object with a first instruction that no verifier lets pass: it ends the program without
    /// a result.
    fn refused_object() -> Vec<u8> {
        const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let mut object = program::OBJECT.to_vec();
        let number = |at: usize, len: usize| {
            program::OBJECT[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        // ELF-64: e_shoff, e_shentsize, e_shnum, e_shstrndx; sh_name, sh_offset.
        let (sections, len, count, names) =
            (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
        let section = |index: usize| sections + index * len;
        let name = |index: usize| number(section(names) + 0x18, 8) + number(section(index), 4);
        let code = (0..count)
            .find(|index| program::OBJECT[name(*index)..].starts_with(b"xdp\0"))
            .expect("a section for the program");
        let first = number(section(code) + 0x18, 8);
        object[first..first + EXIT.len()].copy_from_slice(&EXIT);
        object
    }

    /// Runs in namespaces that vanish afterwards, with an empty `/mnt`.
    fn apart(work: impl FnOnce() + Send + 'static) {
        assert!(geteuid().is_root(), "this test loads XDP programs: run it as root");
        let inside = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).expect("a private /mnt");
            work();
        });
        inside.join().unwrap_or_else(|panic| resume_unwind(panic));
    }

    fn config() -> SteeringConfig {
        SteeringConfig {
            pin_dir: "/mnt/bpf/flowgate".into(),
            log_dir: "/mnt/run/flowgate".into(),
            interfaces: vec![InterfaceConfig { name: "lo".into(), mode: XdpModePolicy::Auto }],
            limits: SetLimits::default(),
        }
    }

    fn pins() -> Option<Vec<PathBuf>> {
        let entries = fs::read_dir(config().pin_dir).ok()?;
        let mut pins: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
        pins.sort();
        Some(pins)
    }

    fn refusal(config: &SteeringConfig) -> String {
        let error = Steering::attach_object(config, refused_object().leak()).expect_err("refused");
        assert!(matches!(error, SteeringError::Refused { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn a_refused_program_is_one_sentence_and_a_file_and_nothing_else_is_left() {
        apart(|| {
            let said = refusal(&config());
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
            for part in [release.trim(), "flowgate_steer", "/mnt/run/flowgate/flowgate_steer.verifier.log"] {
                assert!(said.contains(part), "{part}: {said}");
            }
            assert!(!said.contains('\n'), "{said}");
            let log = fs::read_to_string("/mnt/run/flowgate/flowgate_steer.verifier.log").expect("the log");
            assert!(log.starts_with("Linux ") && log.lines().count() > 1, "{log}");
            assert_eq!(pins(), None, "no pin, and no directory for them");
            assert_eq!(device_xdp(1).expect("lo").any, None, "nothing is attached");
            // What is in the way of the next log is replaced, not followed.
            fs::write("/mnt/precious", "precious").expect("a file");
            fs::remove_file("/mnt/run/flowgate/flowgate_steer.verifier.log").expect("removed");
            std::os::unix::fs::symlink("/mnt/precious", "/mnt/run/flowgate/flowgate_steer.verifier.log")
                .expect("a link");
            refusal(&config());
            assert_eq!(fs::read_to_string("/mnt/precious").expect("a file"), "precious");
        });
    }

    #[test]
    fn a_refused_program_leaves_that_of_an_earlier_process_in_its_place() {
        apart(|| {
            drop(Steering::attach(&config()).expect("attach"));
            let before = (pins(), device_xdp(1).expect("lo"));
            assert!(before.1.any.is_some());
            refusal(&config());
            assert_eq!((pins(), device_xdp(1).expect("lo")), before);
            let again = Steering::attach(&config()).expect("attach again");
            assert_eq!(again.report()[0].link, LinkOrigin::Reused);
            again.detach().expect("detach");
            assert_eq!((pins(), device_xdp(1).expect("lo").any), (None, None));
        });
    }

    #[test]
    fn a_log_that_cannot_be_written_is_quoted() {
        apart(|| {
            fs::write("/mnt/run", "in the way").expect("a file");
            let said = refusal(&config());
            assert!(said.contains("cannot be written to /mnt/run/flowgate/"), "{said}");
            assert!(!said.contains('\n') && said.len() < 600, "{said}");
        });
    }

    #[test]
    fn the_last_words_of_the_verifier_are_those_before_its_statistics() {
        let log =
            "0: (95) exit\nR0 !read_ok\nverification time 9 usec\nprocessed 1 insns (limit 1000000)\n\n";
        assert_eq!(reason_in(log), "R0 !read_ok");
        assert_eq!(reason_in(""), "");
    }
}
