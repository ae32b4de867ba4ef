//! The system calls of a worker (seccomp(2)). A worker reads packets of strangers; should one of them ever take it over, it can
//! open no file, no socket and no process.
//!
//! What is not listed fails with EPERM. Nothing is killed by it: a kernel or C library that makes another call than today's would
//! otherwise take the gateway down (docs/decisions, "Least privilege").

use std::collections::BTreeMap;
use std::sync::OnceLock;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Restricts the calling thread. Where the kernel has no seccomp it goes on without, with a warning.
pub(crate) fn install() {
    static FILTER: OnceLock<Result<BpfProgram, String>> = OnceLock::new();
    let filter = FILTER.get_or_init(|| compile().map_err(|error| error.to_string()));
    let installed = match filter {
        Ok(filter) => seccompiler::apply_filter(filter).map_err(|error| error.to_string()),
        Err(error) => Err(error.clone()),
    };
    if let Err(error) = installed {
        tracing::warn!("a worker runs without a filter of system calls (privileges.seccomp): {error}");
    }
}

fn compile() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Memory that cannot be executed: `prot` is the third argument of both.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let prot_exec = u64::from(libc::PROT_EXEC.unsigned_abs());
        let not_executable = SeccompCmpOp::MaskedEq(prot_exec);
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, not_executable, 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    // abort(3), with which the standard library ends a process that panics while it panics.
    let abort = u64::from(libc::SIGABRT.unsigned_abs());
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, abort)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![condition])?]);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    filter.try_into()
}

/// Calls without regard to their arguments, by what makes them.
const ALLOWED: &[i64] = &[
    // AF_XDP: wakeups, waiting, statistics; closing and unmapping after a panic.
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_ppoll,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_munmap,
    // Locks and channels; the control thread is woken by an eventfd.
    libc::SYS_futex,
    libc::SYS_write,
    libc::SYS_sched_yield,
    // The message of a panic goes to standard error.
    libc::SYS_writev,
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, where the vDSO has none, and sleeping; a call that a signal has interrupted is restarted.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    // Seeds of hash tables, and which thread and core this is.
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getcpu,
    libc::SYS_sched_getaffinity,
    libc::SYS_rseq,
    // The end of a thread or, by abort(3), of the process.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::net::UdpSocket;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_worker_allocates_locks_logs_sleeps_and_panics_but_opens_and_starts_nothing() {
        let (sender, receiver) = mpsc::channel();
        let worker = thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            install();
            let refused = |what: &str, error: Option<ErrorKind>| {
                assert_eq!(error, Some(ErrorKind::PermissionDenied), "{what}");
            };
            refused("a file", File::open("/etc/passwd").err().map(|error| error.kind()));
            refused("a socket", UdpSocket::bind("127.0.0.1:0").err().map(|error| error.kind()));
            refused("a program", Command::new("/bin/true").status().err().map(|error| error.kind()));
            thread::sleep(Duration::from_millis(1));
            let memory: Vec<u8> = vec![1; 64 << 20];
            eprintln!("{} bytes", memory.len());
            sender.send(memory.len()).unwrap();
            panic!("as a worker may");
        });
        assert_eq!(receiver.recv().unwrap(), 64 << 20);
        let panic = worker.join().unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"as a worker may"));
        File::open("/etc/passwd").expect("other threads are not restricted");
    }
}
