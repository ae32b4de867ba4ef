//! The text of one manifest file to objects. A document that cannot be parsed does not affect the others.

mod documents;
mod yaml;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

pub(super) use self::documents::decode;

use self::documents::{Document, each_document};
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
    pub(super) refused: HashSet<ObjectRef>,
    /// Whether a part could not be parsed: which objects it has is unknown.
    pub(super) incomplete: bool,
    /// How many objects of other kinds were ignored.
    pub(super) ignored: usize,
}

/// Reads the text of a file.
pub(super) fn parse(path: &Arc<PathBuf>, text: &str) -> Parsed {
    let mut reader = Reader { path, parsed: Parsed::default() };
    each_document(text, |Document { line, value, duplicates }| {
        for key in duplicates {
            let reason = format!("the key {key:?} is there twice: the last one counts");
            reader.note(line, Severity::Warning, reason);
        }
        match value {
            Ok(value) => reader.document(line, value),
            Err((line, reason)) => reader.unparsable(line, reason),
        }
    });
    reader.parsed
}

struct Reader<'a> {
    path: &'a Arc<PathBuf>,
    parsed: Parsed,
}

/// What the items of a typed list leave out: its own kind without `List`, and its version. Empty for a `List` of any kinds.
#[derive(Clone, Debug, Default)]
struct ItemType {
    api_version: String,
    kind: String,
}

impl Reader<'_> {
    fn document(&mut self, line: u32, value: Value) {
        match value {
            Value::Null => {}
            Value::Object(_) => self.object(line, value, &ItemType::default(), ITEMS_DEPTH_MAX),
            _ => self.unparsable(line, "not a Kubernetes object: a mapping is expected".to_owned()),
        }
    }

    fn object(&mut self, line: u32, mut value: Value, of_list: &ItemType, depth: usize) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
        let (mut api_version, mut kind) = (text("apiVersion"), text("kind"));
        if api_version.is_empty() && kind.is_empty() {
            (api_version, kind) = (of_list.api_version.clone(), of_list.kind.clone());
        }
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(items) = value.get_mut("items").map(Value::take)
        {
            let api_version = if item_kind.is_empty() { String::new() } else { api_version };
            let item_type = ItemType { api_version, kind: item_kind.to_owned() };
            match items {
                Value::Array(items) if depth > 0 => {
                    items.into_iter().for_each(|item| self.item(line, item, &item_type, depth - 1));
                }
                Value::Null => {}
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

    fn item(&mut self, line: u32, item: Value, of_list: &ItemType, depth: usize) {
        if item.is_object() {
            self.object(line, item, of_list, depth);
        } else {
            self.unparsable(
                line,
                "an item of the list is not a Kubernetes object: a mapping is expected".into(),
            );
        }
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
        self.parsed.refused.insert(object);
    }

    fn report(&mut self, line: u32, object: &ObjectRef, reasons: Vec<(Severity, String)>) {
        for (severity, reason) in reasons {
            let place = Some(self.place(line));
            self.parsed.findings.push(Entry { severity, place, object: Some(object.clone()), reason });
        }
    }

    fn unparsable(&mut self, line: u32, reason: String) {
        self.note(line, Severity::Error, reason);
        self.parsed.incomplete = true;
    }

    /// A finding about a document.
    fn note(&mut self, line: u32, severity: Severity, reason: String) {
        let place = Some(self.place(line));
        self.parsed.findings.push(Entry { severity, place, object: None, reason });
    }

    fn place(&self, line: u32) -> Place {
        Place { file: Arc::clone(self.path), line }
    }
}

/// Lists in lists are legal, but not without end.
const ITEMS_DEPTH_MAX: usize = 8;

#[cfg(test)]
mod tests;
