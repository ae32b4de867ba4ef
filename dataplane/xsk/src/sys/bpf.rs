//! The bpf(2) commands for an XDP link and its program.
//!
//! aya has them too, but falls back to a netlink attachment if the kernel returns EINVAL. Such an attachment cannot be
//! pinned, and every privileged process can clear it. These functions return a link or an error, and aya has no
//! BPF_LINK_DETACH.
#![allow(unsafe_code, reason = "bpf(2) has no wrapper in libc or nix")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

// enum bpf_cmd
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_XDP: u32 = 37; // enum bpf_attach_type
const BPF_PROG_TYPE_XDP: u32 = 6; // enum bpf_prog_type
const BPF_LINK_TYPE_XDP: u32 = 6; // enum bpf_link_type

/// The kernel's description of an XDP link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct XdpLinkInfo {
    pub(crate) program_id: u32,
    /// 0 once the device is gone.
    pub(crate) ifindex: u32,
}

/// Attaches a program to a device. It stays attached as long as the returned link or a pin of it exists.
pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let attr = Attr { prog_fd: fd(program), target_ifindex: ifindex, attach_type: BPF_XDP, flags };
    call_for_fd(BPF_LINK_CREATE, &attr)
}

/// Replaces the program of a link atomically: every packet meets the old or the new one. ENOLINK: the device is gone.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    // Without BPF_F_REPLACE the old program does not matter.
    let attr = Attr { link_fd: fd(link), new_prog_fd: fd(program), flags: 0, old_prog_fd: 0 };
    call(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Detaches a link from its device at once, even if pins or other processes still refer to it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    call(BPF_LINK_DETACH, &Attr { link_fd: fd(link) }).map(|_| ())
}

/// The smallest id of a link of any kind above `id`. Needs CAP_SYS_ADMIN.
pub(crate) fn next_link_id(id: u32) -> io::Result<Option<u32>> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    match call_mut(BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a link of any kind. Needs CAP_SYS_ADMIN.
pub(crate) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    call_for_fd(BPF_LINK_GET_FD_BY_ID, &IdAttr { id, next_id: 0, open_flags: 0 })
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Describes an XDP link; `None` if the descriptor is another kind of link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<XdpLinkInfo>> {
    /// `struct bpf_link_info` with the XDP member of its union, and room for what newer kernels add.
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        ifindex: u32,
        rest: [u32; 27],
    }
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let len = u32::try_from(size_of::<Info>()).expect("a small struct");
    let attr = Attr { bpf_fd: fd(link), info_len: len, info: (&raw mut info).expose_provenance() as u64 };
    call(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    // The kernel wrote through the address in `attr`, which the compiler cannot see.
    // SAFETY: `info` is a live local of exactly this type, plain integers that any bytes are valid for.
    let info = unsafe { (&raw const info).read_volatile() };
    Ok((info.kind == BPF_LINK_TYPE_XDP)
        .then_some(XdpLinkInfo { program_id: info.prog_id, ifindex: info.ifindex }))
}

/// The kernel's description of an XDP program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    /// The ids of the maps that it uses.
    pub(crate) map_ids: Vec<u32>,
}

/// Describes an XDP program; `None` if the descriptor is another kind of program, or uses more maps than any of ours. By
/// descriptor, since a lookup by id needs CAP_SYS_ADMIN.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<Option<ProgramInfo>> {
    const MAPS: usize = 64;
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_len: u32,
        xlated_len: u32,
        jited: u64,
        xlated: u64,
        load_time: u64,
        created_by_uid: u32,
        map_count: u32,
        map_ids: u64,
    }
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut ids = [0_u32; MAPS];
    let map_count = u32::try_from(MAPS).expect("a small number");
    let mut info = Info { map_count, map_ids: (&raw mut ids).expose_provenance() as u64, ..Info::default() };
    let len = u32::try_from(size_of::<Info>()).expect("a small struct");
    let attr = Attr { bpf_fd: fd(program), info_len: len, info: (&raw mut info).expose_provenance() as u64 };
    call(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    // The kernel wrote through the addresses in `attr` and `info`, which the compiler cannot see.
    // SAFETY: `info` is a live local of exactly this type, plain integers that any bytes are valid for.
    let info = unsafe { (&raw const info).read_volatile() };
    // SAFETY: the same of `ids`.
    let ids = unsafe { (&raw const ids).read_volatile() };
    // The kernel writes at most `MAPS` ids, but reports the full count.
    let used = usize::try_from(info.map_count).ok().and_then(|count| ids.get(..count));
    Ok(used.filter(|_| info.kind == BPF_PROG_TYPE_XDP).map(|ids| ProgramInfo { map_ids: ids.to_vec() }))
}

/// Pins an object to a path on a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    call(BPF_OBJ_PIN, &path_attr(&path, fd(object))).map(|_| ())
}

/// Opens a pinned link; `None` if the path is the pin of a map or a program.
pub(crate) fn open_pinned_link(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let object = call_for_fd(BPF_OBJ_GET, &path_attr(&path, 0))?;
    // BPF_OBJ_GET_INFO_BY_FD fills the same buffer for every kind of object, so only the name of the anonymous inode shows
    // which one this is: bpf_link for a descriptor from BPF_LINK_CREATE, bpf-link from BPF_OBJ_GET (kernel/bpf/syscall.c).
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    let kind = kind.as_os_str().as_bytes();
    Ok((kind.ends_with(b"bpf_link") || kind.ends_with(b"bpf-link")).then_some(object))
}

#[repr(C)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn path_attr(path: &CString, bpf_fd: u32) -> PathAttr {
    PathAttr { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd, file_flags: 0 }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

pub(super) fn fd(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn call_for_fd<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(call(command, attr)?).expect("the kernel hands out int descriptors");
    // SAFETY: the kernel has just created this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `attr` is the leading part of `union bpf_attr` that `command` reads; the kernel fills the rest with zeros.
pub(super) fn call<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is readable for its size. The kernel writes only through addresses inside it, and the callers
    // put there either a path that it reads or a local buffer with its length.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`call`], for commands that also write into `attr`.
pub(super) fn call_mut<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is readable and writable for its size, and of plain integers that any bytes are valid for. The kernel
    // writes into it, and through addresses inside it, which the callers take from buffers of the sizes that they state.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
