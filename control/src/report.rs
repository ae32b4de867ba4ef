//! Findings about objects, worded for those who can change them.
//!
//! Names, reasons and paths may hold whatever a stranger wrote into an object or a folder. They are shown by [`Shown`],
//! so that nothing of them acts on a terminal or begins a line of its own, and so that none floods the log.

use std::error::Error;
use std::fmt::{self, Write as _};
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
        let file = self.file.to_string_lossy();
        match self.line {
            0 => write!(f, "{}", Shown(&file)),
            line => write!(f, "{}:{line}", Shown(&file)),
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
        let (kind, name) = (Shown(&self.kind), if self.name.is_empty() { "(no name)" } else { &self.name });
        match self.namespace.as_str() {
            "" => write!(f, "{kind} {}", Shown(name)),
            namespace => write!(f, "{kind} {}/{}", Shown(namespace), Shown(name)),
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
        write!(f, "{}", Shown(&self.reason))
    }
}

/// The text of an error followed by those of its causes, each once: many errors repeat their cause in their own text.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// How many others a finding is about too, as the end of what it names: ` (and 3 more)`, or nothing.
pub(crate) fn and_more(others: usize) -> String {
    if others > 0 { format!(" (and {others} more)") } else { String::new() }
}

/// A text of foreign origin on one line: control characters, and those that are invisible or turn the direction of
/// writing, are shown as escapes such as `\u{1b}`; of a very long text the beginning is shown.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl Shown<'_> {
    /// Whether the text is shown as it is.
    pub fn is_plain(&self) -> bool {
        self.0.len() <= SHOWN_CHARS_MAX && !self.0.chars().any(|c| c.is_control() || is_deceptive(c))
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.char_indices().nth(SHOWN_CHARS_MAX).map_or(self.0.len(), |(end, _)| end);
        for c in self.0[..end].chars() {
            match c {
                '\n' | '\r' | '\t' => write!(f, "{}", c.escape_default())?,
                _ if c.is_control() || is_deceptive(c) => write!(f, "{}", c.escape_unicode())?,
                _ => f.write_char(c)?,
            }
        }
        match self.0[end..].chars().count() {
            0 => Ok(()),
            more => write!(f, "... ({more} more characters)"),
        }
    }
}

/// Characters that are not seen, or that make others be seen in another order (Unicode Technical Report 36, 3.5).
const fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Added to the reason for which a new version of an object is refused. Traffic that flowed a moment ago goes on: the version
/// before is out of date, but ending it would be worse than serving it.
pub(crate) const RETAINED: &str =
    " (its last accepted version stays in force until this is mended or the object is deleted)";

/// Longer than any list of reasons that is meant to be read.
const SHOWN_CHARS_MAX: usize = 2000;

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

    #[test]
    fn nothing_of_a_finding_acts_on_a_terminal_or_begins_a_line() {
        let place = Place { file: Arc::new("we\u{1b}[2Jb.yaml\n".into()), line: 1 };
        let entry = Entry {
            severity: Severity::Error,
            place: Some(place),
            object: Some(ObjectRef::new("Ser\u{7}vice", "def\u{9b}31mault", "we\nb\u{202e}x\u{200b}")),
            reason: "port\r\u{85}\u{2028} 0\t\u{2066}é 好 \\u".into(),
        };
        let shown = Report { entries: vec![entry] }.to_string();
        assert_eq!(
            shown,
            "error: we\\u{1b}[2Jb.yaml\\n:1: Ser\\u{7}vice def\\u{9b}31mault/we\\nb\\u{202e}x\\u{200b}: \
             port\\r\\u{85}\\u{2028} 0\\t\\u{2066}é 好 \\u\n"
        );
    }

    #[test]
    fn a_very_long_text_is_shown_by_its_beginning() {
        let long = "é".repeat(SHOWN_CHARS_MAX + 5);
        let shown = Shown(&long).to_string();
        assert!(shown.ends_with("é... (5 more characters)"), "{shown}");
        assert_eq!(shown.chars().filter(|c| *c == 'é').count(), SHOWN_CHARS_MAX);
        assert_eq!(Shown(&"x".repeat(SHOWN_CHARS_MAX)).to_string().len(), SHOWN_CHARS_MAX);
    }
}
