//! The running kernel's version, and whether Flowgate runs on it.

use std::fmt;

use nix::sys::utsname::uname;

use super::SteeringError;

/// Major and minor version.
type Version = (u32, u32);

/// The oldest on which the XDP program is tested.
const OLDEST_TESTED: Version = (6, 1);

/// The oldest that has what Flowgate needs: pointers to structures as arguments of global functions (5.13), links of XDP
/// programs (5.9), preferred busy polling (5.11). 5.15 is the first release with long-term support that has all of them.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// The running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// `release` of uname(2).
    release: String,
    /// `None` if the release cannot be parsed.
    version: Option<Version>,
}

impl Kernel {
    /// The kernel that this process runs on.
    pub(super) fn running() -> Self {
        let name = uname();
        Self::of(&name.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default())
    }

    fn of(release: &str) -> Self {
        Self { release: release.to_owned(), version: parse(release) }
    }

    /// Rejects a kernel that cannot verify the program. Returns a warning for one that is not tested.
    ///
    /// # Errors
    ///
    /// [`SteeringError::Kernel`].
    pub(super) fn check(&self) -> Result<Option<String>, SteeringError> {
        let ((tried_major, tried_minor), (major, minor)) = (OLDEST_TESTED, OLDEST_KERNEL);
        match self.version {
            Some(version) if version < OLDEST_KERNEL => Err(SteeringError::Kernel {
                kernel: self.to_string(),
                oldest: format!("{major}.{minor}"),
                tried: format!("{tried_major}.{tried_minor}"),
            }),
            Some(version) if version < OLDEST_TESTED => Ok(Some(format!(
                "{self} is older than {tried_major}.{tried_minor}, the oldest kernel that Flowgate is tried on: should \
                 it refuse the XDP program, all traffic passes"
            ))),
            Some(_) => Ok(None),
            // A custom build may name itself in any way: loading the program decides.
            None => Ok(Some(format!(
                "{self} does not say which Linux it is: Flowgate is tried on {tried_major}.{tried_minor} and newer"
            ))),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.release)
    }
}

/// The first two numbers of a release: `6.1.0-57-amd64`, `6.18-rc3`.
fn parse(release: &str) -> Option<Version> {
    let (major, rest) = release.trim().split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        for (release, version) in [
            ("6.1.0-57-amd64", Some((6, 1))),
            ("7.3.4+deb13-amd64", Some((7, 3))),
            ("6.18-rc3", Some((6, 18))),
            ("6.18.44-fc-v782", Some((6, 18))),
            ("5.15.0-1051-azure", Some((5, 15))),
            ("5.14.0-503.el9.x86_64", Some((5, 14))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            ("6.6+", Some((6, 6))),
            ("10.0", Some((10, 0))),
            ("6", None),
            ("6.", None),
            ("6.x", None),
            ("v6.1", None),
            ("", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(parse(release), version, "{release}");
        }
    }

    #[test]
    fn a_kernel_below_the_minimum_is_refused_in_one_sentence_with_both_versions() {
        let error =
            Kernel::of("5.10.0-32-amd64").check().expect_err("older than any that can work").to_string();
        for part in ["Linux 5.10.0-32-amd64 is older than 5.15", "6.1"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains('\n'), "{error}");
        assert!(Kernel::of("4.19.0").check().is_err());
        assert!(Kernel::of("5.14.0-503.el9.x86_64").check().is_err());
    }

    #[test]
    fn a_kernel_that_was_not_tried_starts_with_a_warning() {
        for release in ["5.15.0-1051-azure", "5.19.17", "6.0.19", "unknown"] {
            let warning = Kernel::of(release).check().expect("no refusal").expect("a warning");
            assert!(warning.contains(release) && warning.contains("6.1"), "{warning}");
        }
    }

    #[test]
    fn a_kernel_that_is_supported_needs_no_words() {
        for release in ["6.1.0-57-amd64", "6.12.117+deb13-amd64", "6.18-rc3", "7.3.4+deb13-amd64", "10.0"] {
            assert_eq!(Kernel::of(release).check().expect("supported"), None, "{release}");
        }
    }
}
