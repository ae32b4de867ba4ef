//! Files of flow tables, which outlive the process, and their headers (superblocks).
//!
//! The table is at the start of the file, so that it is aligned, and the header is the last page. A file is used again
//! only with the same layout and in the same boot: ticks and the addresses of this machine mean nothing in another.
//! Entries are not looked at here: what a dead process left half done is handled by [`crate::adopt`].

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use crate::hash::HashKey;
use crate::memory::OutOfMemory;

/// Where a table persists.
#[derive(Clone, Debug)]
pub struct PersistConfig {
    /// The file; in a tmpfs, best one with huge pages.
    pub path: PathBuf,
    /// The kernel's `boot_id`: ticks of different boots cannot be compared.
    pub boot: [u8; 16],
}

/// Whether a table starts empty, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was no file.
    Created,
    /// There was an incompatible file: replaced by an empty table.
    Replaced(Incompatible),
    /// An earlier process left flows: they have to be adopted before the table is used.
    Restored,
}

/// Why a file cannot be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incompatible {
    /// It has no header or a damaged one: its creation was interrupted, or it is something else.
    NoHeader,
    /// It was written by a version with another layout.
    Layout,
    /// It was written before the machine booted.
    Boot,
    /// It has another capacity.
    Capacity(
        /// Its capacity in flows.
        u32,
    ),
    /// It is a symbolic link or no regular file.
    NotAFile,
    /// Another user than root owns it, and may have written it.
    Owner(
        /// The user.
        u32,
    ),
    /// Others can write to it.
    Writable(
        /// Its mode.
        u32,
    ),
}

impl fmt::Display for Incompatible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("it is no whole flow table"),
            Self::Layout => f.write_str("another version wrote it"),
            Self::Boot => f.write_str("the machine was started anew since"),
            Self::Capacity(flows) => write!(f, "it is made for {flows} flows"),
            Self::NotAFile => f.write_str("it is a symbolic link, or no file at all"),
            Self::Owner(user) => write!(f, "it belongs to user {user}, not to root"),
            Self::Writable(mode) => write!(f, "others could write to it (mode {mode:04o})"),
        }
    }
}

/// Why a table cannot be stored in a file.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// Another process uses it.
    #[error("{}: another process uses this flow table", .0.display())]
    InUse(
        /// The file.
        PathBuf,
    ),
    /// The file system fails.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// Too little memory.
    #[error("{}: {source}", path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// How much was requested.
        #[source]
        source: OutOfMemory,
    },
}

/// What a file and a process that uses it must agree on, and the hash key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes per entry, which also tells the address families apart.
    pub(crate) entry_bytes: u32,
    pub(crate) bucket_count: u32,
    pub(crate) capacity_flows: u32,
    pub(crate) boot: [u8; 16],
    pub(crate) key: HashKey,
}

/// A file whose header was checked; locked for as long as it is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) key: HashKey,
    pub(crate) origin: Origin,
}

/// Opens or creates the file of a table with this header, `len` bytes long without it. The hash key is that of the file
/// if it is restored. A new file gets its header later, by [`write_header`], once its memory is allocated.
pub(crate) fn open(path: &Path, wanted: &Header, len: u64) -> Result<Opened, PersistError> {
    let failed = |source| PersistError::Io { path: path.to_owned(), source };
    let origin = match File::options().read(true).write(true).custom_flags(UNFOLLOWED).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Origin::Created,
        Err(error) if is_link(&error) => Origin::Replaced(Incompatible::NotAFile),
        Err(source) => return Err(failed(source)),
        Ok(file) => match untrusted(&file).map_err(failed)? {
            Some(reason) => Origin::Replaced(reason),
            None => {
                lock(&file, path)?;
                match read(&file, wanted, len).map_err(failed)? {
                    Ok(key) => return Ok(Opened { file, key, origin: Origin::Restored }),
                    Err(reason) => Origin::Replaced(reason),
                }
            }
        },
    };
    // Removed first: its memory is freed before as much is allocated again.
    if origin != Origin::Created {
        fs::remove_file(path).map_err(failed)?;
    }
    let options = File::options().read(true).write(true).create_new(true).mode(0o600).clone();
    let file = options.open(path).map_err(failed)?;
    lock(&file, path)?;
    Ok(Opened { file, key: wanted.key, origin })
}

/// Writes the header of a new file, which makes it valid.
pub(crate) fn write_header(file: &File, header: &Header, len: u64) -> io::Result<()> {
    file.write_all_at(&header.to_page(), len)
}

/// Removes a table that no process uses, if it exists.
///
/// # Errors
/// [`PersistError`]: it is in use, or the file system fails.
pub fn remove(path: &Path) -> Result<(), PersistError> {
    let failed = |source| PersistError::Io { path: path.to_owned(), source };
    match File::options().read(true).custom_flags(UNFOLLOWED).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if is_link(&error) => {}
        Err(source) => return Err(failed(source)),
        Ok(file) => lock(&file, path)?,
    }
    fs::remove_file(path).map_err(failed)
}

/// Why the content of a file cannot be taken for our own: flows in it decide where packets go.
fn untrusted(file: &File) -> io::Result<Option<Incompatible>> {
    let meta = file.metadata()?;
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    Ok(if !meta.is_file() {
        Some(Incompatible::NotAFile)
    } else if owner != 0 && owner != geteuid().as_raw() {
        Some(Incompatible::Owner(owner))
    } else if mode & 0o022 != 0 {
        Some(Incompatible::Writable(mode))
    } else {
        None
    })
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Neither follows a symbolic link nor waits for the other end of a pipe.
const UNFOLLOWED: i32 = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).bits();

fn lock(file: &File, path: &Path) -> Result<(), PersistError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => PersistError::InUse(path.to_owned()),
        TryLockError::Error(source) => PersistError::Io { path: path.to_owned(), source },
    })
}

/// The hash key of a compatible file.
fn read(file: &File, wanted: &Header, len: u64) -> io::Result<Result<HashKey, Incompatible>> {
    let file_len = file.metadata()?.len();
    let mut page = [0; HEADER_BYTES];
    let Some(offset) = file_len.checked_sub(page.len() as u64) else {
        return Ok(Err(Incompatible::NoHeader));
    };
    file.read_exact_at(&mut page, offset)?;
    Ok(match Header::from_page(&page) {
        Err(reason) => Err(reason),
        Ok(header) if header.entry_bytes != wanted.entry_bytes => Err(Incompatible::Layout),
        Ok(header) if header.boot != wanted.boot => Err(Incompatible::Boot),
        Ok(header) if header.capacity_flows != wanted.capacity_flows => {
            Err(Incompatible::Capacity(header.capacity_flows))
        }
        Ok(header) if header.bucket_count != wanted.bucket_count => Err(Incompatible::Layout),
        Ok(_) if offset != len => Err(Incompatible::NoHeader),
        Ok(header) => Ok(header.key),
    })
}

impl Header {
    fn to_page(self) -> [u8; HEADER_BYTES] {
        let Self { entry_bytes, bucket_count, capacity_flows, boot, key } = self;
        let mut page = [0; HEADER_BYTES];
        let numbers = [LAYOUT, entry_bytes, bucket_count, capacity_flows].map(u32::to_ne_bytes);
        let parts = [MAGIC.as_slice(), numbers.as_flattened(), &boot];
        let words = key.0.map(u64::to_ne_bytes);
        let bytes = parts.into_iter().flatten().chain(words.as_flattened());
        page.iter_mut().skip(CHECKSUM_BYTES).zip(bytes).for_each(|(to, from)| *to = *from);
        let sum = checksum(&page[CHECKSUM_BYTES..]);
        page[..CHECKSUM_BYTES].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    fn from_page(page: &[u8; HEADER_BYTES]) -> Result<Self, Incompatible> {
        let (sum, rest) = page.split_first_chunk().ok_or(Incompatible::NoHeader)?;
        if u64::from_ne_bytes(*sum) != checksum(rest) {
            return Err(Incompatible::NoHeader);
        }
        let mut rest = rest;
        if take(&mut rest)? != *MAGIC {
            return Err(Incompatible::NoHeader);
        }
        if u32::from_ne_bytes(take(&mut rest)?) != LAYOUT {
            return Err(Incompatible::Layout);
        }
        let mut number = || take(&mut rest).map(u32::from_ne_bytes);
        let (entry_bytes, bucket_count, capacity_flows) = (number()?, number()?, number()?);
        let boot = take(&mut rest)?;
        let mut key = HashKey::default();
        for word in &mut key.0 {
            *word = u64::from_ne_bytes(take(&mut rest)?);
        }
        Ok(Self { entry_bytes, bucket_count, capacity_flows, boot, key })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Incompatible> {
    let (first, behind) = rest.split_first_chunk().ok_or(Incompatible::NoHeader)?;
    *rest = behind;
    Ok(*first)
}

/// FNV-1a, to detect a file without a header or with a damaged one; no attacker writes these files.
// It stays although `crc32c` is at hand: another checksum makes every existing file `NoHeader`, so that the update to
// that version would lose all flows, for no gain in detection. It can change with the next change of `LAYOUT`.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// To be raised with every change of the meaning of tags or entries.
const LAYOUT: u32 = 3;

const MAGIC: &[u8; 8] = b"flowgate";
const CHECKSUM_BYTES: usize = 8;
const HEADER_BYTES: usize = crate::memory::PAGE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        entry_bytes: 64,
        bucket_count: 10,
        capacity_flows: 131,
        boot: *b"0123456789abcdef",
        key: HashKey([7; HashKey::WORDS]),
    };

    #[test]
    fn a_label_is_read_as_written_and_any_change_of_it_is_seen() {
        let page = HEADER.to_page();
        assert_eq!(Header::from_page(&page), Ok(HEADER));
        for at in 0..page.len() {
            let mut damaged = page;
            damaged[at] ^= 0x10;
            assert_eq!(Header::from_page(&damaged), Err(Incompatible::NoHeader), "byte {at}");
        }
    }

    #[test]
    fn a_file_is_used_again_only_with_the_same_layout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        let make = |header: &Header| {
            let opened = open(&path, header, 8192).unwrap();
            if opened.origin != Origin::Restored {
                write_header(&opened.file, header, 8192).unwrap();
            }
            (opened.origin, opened.key)
        };
        assert_eq!(make(&HEADER).0, Origin::Created);
        assert_eq!(
            make(&Header { key: HashKey([8; HashKey::WORDS]), ..HEADER }),
            (Origin::Restored, HashKey([7; HashKey::WORDS]))
        );
        for (header, reason) in [
            (Header { boot: [1; 16], ..HEADER }, Incompatible::Boot),
            (Header { capacity_flows: 500, boot: [1; 16], ..HEADER }, Incompatible::Capacity(131)),
            (Header { entry_bytes: 128, capacity_flows: 500, boot: [1; 16], ..HEADER }, Incompatible::Layout),
        ] {
            assert_eq!(make(&header).0, Origin::Replaced(reason));
            assert_eq!(make(&header).0, Origin::Restored);
        }
        fs::write(&path, "something else").unwrap();
        assert_eq!(make(&HEADER).0, Origin::Replaced(Incompatible::NoHeader));
    }

    #[test]
    fn a_file_that_others_can_have_written_is_replaced_and_not_adopted() {
        use std::fs::Permissions;
        use std::os::unix::fs::{PermissionsExt, chown, symlink};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        let make = || {
            let opened = open(&path, &HEADER, 8192).unwrap();
            write_header(&opened.file, &HEADER, 8192).unwrap();
            opened.origin
        };
        assert_eq!(make(), Origin::Created);
        assert_eq!(make(), Origin::Restored);

        fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
        assert_eq!(make(), Origin::Replaced(Incompatible::Writable(0o620)));
        assert_eq!(make(), Origin::Restored, "the new file is for its owner only");

        let real = folder.path().join("real");
        fs::rename(&path, &real).unwrap();
        symlink(&real, &path).unwrap();
        assert_eq!(make(), Origin::Replaced(Incompatible::NotAFile));
        assert!(fs::symlink_metadata(&path).unwrap().is_file() && real.exists(), "only the link is replaced");

        symlink(&real, folder.path().join("link")).unwrap();
        remove(&folder.path().join("link")).unwrap();
        assert!(real.exists() && !folder.path().join("link").exists());

        if geteuid().is_root() {
            chown(&path, Some(1000), None).unwrap();
            assert_eq!(make(), Origin::Replaced(Incompatible::Owner(1000)));
        }
    }

    #[test]
    fn a_file_that_is_in_use_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows");
        let opened = open(&path, &HEADER, 8192).unwrap();
        assert!(matches!(open(&path, &HEADER, 8192), Err(PersistError::InUse(_))));
        assert!(matches!(remove(&path), Err(PersistError::InUse(_))));
        drop(opened);
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }
}
