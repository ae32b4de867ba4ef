//! The text of one manifest file to objects. A document that cannot be parsed does not affect the others.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::model::{Key, Kind, Object};
use crate::report::{Entry, ObjectRef, Place, Severity};
use crate::source::convert;

/// An object with its name and place.
#[derive(Clone, Debug)]
pub(super) struct ParsedObject {
    pub(super) name: ObjectRef,
    pub(super) key: Key,
    pub(super) object: Object,
    pub(super) place: Place,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<ParsedObject>,
    pub(super) findings: Vec<Entry>,
    /// Objects of the file that were refused.
    pub(super) refused: Vec<ObjectRef>,
    /// Whether a part could not be parsed: which objects it has is unknown.
    pub(super) incomplete: bool,
    /// How many objects of other kinds were ignored.
    pub(super) ignored: usize,
}

/// Reads the text of a file; its name says whether it is JSON.
pub(super) fn parse(path: &Arc<PathBuf>, text: &str) -> Parsed {
    let mut reader = Reader { path, parsed: Parsed::default() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if path.extension().is_some_and(|extension| extension == "json") {
        reader.json(text);
    } else {
        reader.yaml(text);
    }
    reader.parsed
}

struct Reader<'a> {
    path: &'a Arc<PathBuf>,
    parsed: Parsed,
}

impl Reader<'_> {
    fn yaml(&mut self, text: &str) {
        for document in split_yaml(text) {
            let value: Result<Value, _> = serde_saphyr::from_str(&document.text);
            match value {
                Ok(value) => self.document(document.first_line, value),
                Err(error) => {
                    let line = error.location().map_or(document.first_line, |location| {
                        let line = u32::try_from(location.line()).unwrap_or(u32::MAX);
                        document.first_line.saturating_add(line.saturating_sub(1))
                    });
                    let reason = error.without_snippet().to_string();
                    self.unparsable(line, format!("not YAML: {}", reason.lines().next().unwrap_or("")));
                }
            }
        }
    }

    fn json(&mut self, text: &str) {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut start = 0;
        while let Some(value) = values.next() {
            let blank = text[start..].len() - text[start..].trim_start().len();
            let line = line_of(text, start + blank);
            match value {
                Ok(value) => self.document(line, value),
                Err(error) => {
                    let line = u32::try_from(error.line()).unwrap_or(u32::MAX);
                    self.unparsable(line, format!("not JSON: {error}"));
                }
            }
            start = values.byte_offset();
        }
    }

    fn document(&mut self, line: u32, value: Value) {
        match value {
            Value::Null => {}
            Value::Object(_) => self.object(line, value, ITEMS_DEPTH_MAX),
            _ => self.unparsable(line, "not a Kubernetes object: a mapping is expected".to_owned()),
        }
    }

    fn object(&mut self, line: u32, mut value: Value, depth: usize) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if kind.ends_with("List") && value.get("items").is_some() {
            match value.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) if depth > 0 => {
                    items.into_iter().for_each(|item| self.object(line, item, depth - 1));
                }
                Some(Value::Null) => {}
                _ => self.unparsable(line, format!("{kind}: items is not a list of objects")),
            }
            return;
        }
        let metadata =
            |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str).unwrap_or("");
        let name = metadata("name").to_owned();
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let group_of = |kind: Kind| kind.api_version().rsplit_once('/').map_or("", |wanted| wanted.0);
        let Some(known) = Kind::from_name(&kind).filter(|kind| group_of(*kind) == group) else {
            if kind.is_empty() {
                let object = ObjectRef::new("object", "", name);
                self.refuse(line, object, vec![(Severity::Error, "kind is missing".into())]);
            } else {
                self.parsed.ignored += 1;
            }
            return;
        };
        let namespace = match metadata("namespace") {
            _ if !known.is_namespaced() => "",
            "" => "default",
            namespace => namespace,
        };
        let object = ObjectRef::new(kind, namespace, name);
        let wanted = known.api_version();
        if api_version != wanted {
            let found = if version.is_empty() { "missing".into() } else { format!("{api_version:?}") };
            let reason = format!("apiVersion is {found}: write {wanted}");
            self.refuse(line, object, vec![(Severity::Error, reason)]);
            return;
        }
        self.known(line, object, known, value);
    }

    /// Converts an object of a kind that matters.
    fn known(&mut self, line: u32, name: ObjectRef, kind: Kind, value: Value) {
        let (object, findings) = convert::object(kind, &name, value);
        match object {
            Some(object) => {
                let place = self.place(line);
                self.report(line, &name, findings);
                let key = Key::new(&name.namespace, &name.name);
                self.parsed.objects.push(ParsedObject { name, key, object, place });
            }
            None => self.refuse(line, name, findings),
        }
    }

    fn refuse(&mut self, line: u32, object: ObjectRef, reasons: Vec<(Severity, String)>) {
        self.report(line, &object, reasons);
        self.parsed.refused.push(object);
    }

    fn report(&mut self, line: u32, object: &ObjectRef, reasons: Vec<(Severity, String)>) {
        for (severity, reason) in reasons {
            let place = Some(self.place(line));
            self.parsed.findings.push(Entry { severity, place, object: Some(object.clone()), reason });
        }
    }

    fn unparsable(&mut self, line: u32, reason: String) {
        let place = Some(self.place(line));
        self.parsed.findings.push(Entry { severity: Severity::Error, place, object: None, reason });
        self.parsed.incomplete = true;
    }

    fn place(&self, line: u32) -> Place {
        Place { file: Arc::clone(self.path), line }
    }
}

/// Lists in lists are legal, but not without end.
const ITEMS_DEPTH_MAX: usize = 8;

/// One document of a YAML file.
struct Document {
    /// Its text from its first content on.
    text: String,
    /// The line of the file that has its first content.
    first_line: u32,
}

/// Splits at `---` and `...`: each document is then parsed for itself, and a bad one spoils no other.
/// Inside a document neither can stand at the start of a line (YAML 1.2.2, 9.1.2).
fn split_yaml(text: &str) -> Vec<Document> {
    let mut documents: Vec<Document> = Vec::new();
    let mut open: Option<Document> = None;
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let marker = ["---", "..."].into_iter().find(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        let content = if marker.is_some() {
            documents.extend(open.take());
            // The marker may be followed by content; columns stay right.
            format!("   {}", &line[3..])
        } else {
            line.to_owned()
        };
        let bare = content.trim();
        let blank = bare.is_empty() || bare.starts_with('#') || (open.is_none() && bare.starts_with('%'));
        match &mut open {
            Some(document) => document.text.push_str(&content),
            None if blank => {}
            None => open = Some(Document { text: content, first_line: number }),
        }
    }
    documents.extend(open);
    documents
}

fn line_of(text: &str, offset: usize) -> u32 {
    let before = text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count();
    u32::try_from(before + 1).unwrap_or(u32::MAX)
}
