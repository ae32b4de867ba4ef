//! The bpf(2) commands for the entries of a map whose keys are a set. aya has no batch operations, and one call per key takes
//! a quarter of a second for a hundred thousand of them.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper in libc or nix")]

use std::io;
use std::os::fd::BorrowedFd;

use super::bpf::{call, call_mut, fd};

// enum bpf_cmd
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// The kernel's answer to a batch operation that this kind of map does not have (include/linux/errno.h).
const ENOTSUPP: i32 = 524;

/// Keys per system call: it copies them one after the other, and may be interrupted in between.
const BATCH_KEYS: usize = 4096;

/// What is to be done with keys. The value of an added key is a `u32` that nobody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Delete,
}

/// Adds or deletes keys in their order until one is refused; returns how many were not refused, and the kernel's answer to
/// the one that was.
pub(crate) fn change_keys<const N: usize>(
    map: BorrowedFd<'_>,
    operation: Operation,
    keys: &[[u8; N]],
) -> (usize, io::Result<()>) {
    let mut done = 0;
    for chunk in keys.chunks(BATCH_KEYS) {
        let (changed, outcome) = match change_batch(map, operation, chunk) {
            (0, Err(error)) if lacks_batches(&error) => change_each(map, operation, chunk),
            answer => answer,
        };
        done += changed;
        if outcome.is_err() {
            return (done, outcome);
        }
    }
    (done, Ok(()))
}

/// EINVAL: a kernel before 5.6. ENOTSUPP: this kind of map has no batches, such as a trie before Linux 5.13.
fn lacks_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}

fn change_batch<const N: usize>(
    map: BorrowedFd<'_>,
    operation: Operation,
    keys: &[[u8; N]],
) -> (usize, io::Result<()>) {
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let values = [0_u32; BATCH_KEYS];
    let mut attr = Attr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().expose_provenance() as u64,
        values: values.as_ptr().expose_provenance() as u64,
        count: u32::try_from(keys.len()).expect("at most BATCH_KEYS"),
        map_fd: fd(map),
        elem_flags: 0,
        flags: 0,
    };
    let command = match operation {
        Operation::Add => BPF_MAP_UPDATE_BATCH,
        Operation::Delete => BPF_MAP_DELETE_BATCH,
    };
    match call_mut(command, &mut attr) {
        Ok(_) => (keys.len(), Ok(())),
        // A command that the kernel does not have leaves the count as it was.
        Err(error) if lacks_batches(&error) => (0, Err(error)),
        // Otherwise it is the number of keys before the one that was refused (generic_map_update_batch). Should the kernel
        // have ended before it stored it, none is taken for done: the same key is refused again, by itself.
        Err(error) => {
            let done = usize::try_from(attr.count).unwrap_or(0);
            (if done < keys.len() { done } else { 0 }, Err(error))
        }
    }
}

fn change_each<const N: usize>(
    map: BorrowedFd<'_>,
    operation: Operation,
    keys: &[[u8; N]],
) -> (usize, io::Result<()>) {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let value = 0_u32;
    for (done, key) in keys.iter().enumerate() {
        let attr = Attr {
            map_fd: fd(map),
            padding: 0,
            key: key.as_ptr().expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        let command = match operation {
            Operation::Add => BPF_MAP_UPDATE_ELEM,
            Operation::Delete => BPF_MAP_DELETE_ELEM,
        };
        if let Err(error) = call(command, &attr) {
            return (done, Err(error));
        }
    }
    (keys.len(), Ok(()))
}

/// All keys of a map that nobody else changes meanwhile.
pub(crate) fn keys<const N: usize>(map: BorrowedFd<'_>) -> io::Result<Vec<[u8; N]>> {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        padding: u32,
        key: u64,
        next_key: u64,
    }
    let mut keys: Vec<[u8; N]> = Vec::new();
    loop {
        let mut next = [0; N];
        let attr = Attr {
            map_fd: fd(map),
            padding: 0,
            key: keys.last().map_or(0, |key| key.as_ptr().expose_provenance() as u64),
            next_key: (&raw mut next).expose_provenance() as u64,
        };
        match call(BPF_MAP_GET_NEXT_KEY, &attr) {
            // The kernel wrote through the address in `attr`, which the compiler cannot see.
            // SAFETY: `next` is a live local of exactly this type.
            Ok(_) => keys.push(unsafe { (&raw const next).read_volatile() }),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
            Err(error) => return Err(error),
        }
    }
}
