//! Findings about objects, worded for those who can change them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{Key, Kind};

/// The severity of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Something that an object requests is not served.
    Error,
    /// Served, or left out as the rules require, but probably not as intended.
    Warning,
}

impl Severity {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line at which its document starts, from 1; 0 means the whole file.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// An object's name in messages: `Service default/web`, `Node edge-1`, `Interface eth0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name; empty when it has none.
    pub name: String,
}

impl ObjectRef {
    /// A name from kind, namespace and name.
    pub fn new(kind: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        match self.namespace.as_str() {
            "" => write!(f, "{} {name}", self.kind),
            namespace => write!(f, "{} {namespace}/{name}", self.kind),
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The severity.
    pub severity: Severity,
    /// Where the object was read, if it was read from a file.
    pub place: Option<Place>,
    /// The object that must change, if the finding is about one.
    pub object: Option<ObjectRef>,
    /// What is wrong and, where it helps, what to write instead.
    pub reason: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.reason)
    }
}

/// All findings of one compilation, those of the source first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings.
    pub entries: Vec<Entry>,
}

impl Report {
    /// The entries of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.severity == severity)
    }

    /// Whether a Service is left out whole because it does not fit a budget.
    pub fn leaves_out(&self, service: &Key) -> bool {
        let is_about = |object: &ObjectRef| {
            (&object.namespace, &object.name) == (&service.namespace, &service.name)
                && object.kind == Kind::Service.name()
        };
        let mut entries = self.of(Severity::Error);
        entries.any(|entry| entry.reason.starts_with(LEFT_OUT) && entry.object.as_ref().is_some_and(is_about))
    }

    /// Whether there is an entry of severity error.
    pub fn has_errors(&self) -> bool {
        self.of(Severity::Error).next().is_some()
    }
}

impl fmt::Display for Report {
    /// One line per finding: severity, place, object, reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{}: {entry}", entry.severity.name())?;
        }
        Ok(())
    }
}

/// How the reason begins for which a Service is left out whole.
pub(crate) const LEFT_OUT: &str = "is not served: it wants ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_place_object_reason() {
        let place = Place { file: Arc::new("web.yaml".into()), line: 14 };
        let entry = Entry {
            severity: Severity::Error,
            place: Some(place),
            object: Some(ObjectRef::new("Service", "default", "web")),
            reason: "port 0".into(),
        };
        assert_eq!(entry.to_string(), "web.yaml:14: Service default/web: port 0");
        let report = Report { entries: vec![Entry { place: None, ..entry }] };
        assert_eq!(report.to_string(), "error: Service default/web: port 0\n");
        assert!(report.has_errors());
    }
}
