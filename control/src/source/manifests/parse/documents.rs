//! The documents of a file: YAML and JSON in any mixture, whatever the file's name, as kubectl takes them.
//!
//! YAML documents are separated by `---`. One that begins with `{` is tried as JSON documents in a row first, and from the
//! one on that is not JSON it is YAML: `{a: b}` is both a mapping in YAML and no JSON.

use serde_json::Value;

use super::yaml::{self, Budget};

/// One document.
#[derive(Debug)]
pub(super) struct Document {
    /// The line of the file at which it begins, from 1.
    pub(super) line: u32,
    /// Its value, or the line at which it cannot be read, and why.
    pub(super) value: Result<Value, (u32, String)>,
    /// Keys that it has twice in one mapping; the last of them count.
    pub(super) duplicates: Vec<String>,
}

/// Hands each document of a text to `found`, in order. One that cannot be read does not affect those behind the next `---`.
pub(super) fn each_document(text: &str, mut found: impl FnMut(Document)) {
    let budget = Budget::of(text);
    for chunk in split(text) {
        let rest = chunk.text.trim_start_matches(BOM);
        if rest.trim_start().starts_with('{') {
            json(Chunk { text: rest, ..chunk }, &budget, &mut found);
        } else {
            found(yaml(Chunk { text: rest, ..chunk }, &budget));
        }
    }
}

/// The text of a file: UTF-8, or UTF-16 with a byte order mark, which editors on Windows write.
pub(in crate::source::manifests) fn decode(bytes: Vec<u8>) -> Result<String, String> {
    let utf16 = |unit: fn([u8; 2]) -> u16| {
        let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).skip(1);
        let text: Result<String, _> = char::decode_utf16(units).collect();
        text.map_err(|error| format!("not UTF-16: {error}"))
    };
    match bytes.get(..2) {
        Some([0xff, 0xfe]) => utf16(u16::from_le_bytes),
        Some([0xfe, 0xff]) => utf16(u16::from_be_bytes),
        _ => String::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}")),
    }
}

/// Documents in a row, without a separator.
fn json(chunk: Chunk<'_>, budget: &Budget, found: &mut impl FnMut(Document)) {
    let Chunk { text, first_line } = chunk;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let (mut start, mut line, mut count) = (0, first_line, 0_usize);
    while let Some(value) = values.next() {
        let blank = text[start..].len() - text[start..].trim_start().len();
        line = line.saturating_add(line_breaks(&text[start..start + blank]));
        start += blank;
        match value {
            Ok(mut value) => {
                whole_numbers(&mut value);
                found(Document { line, value: Ok(value), duplicates: Vec::new() });
            }
            Err(error) => {
                let document = yaml(Chunk { text: &text[start..], first_line: line }, budget);
                // As kubectl: after two documents it is JSON for certain.
                let looks_like_json =
                    text[start..].trim_start_matches(['{', ' ', '\n', '\r', '\t']).starts_with('"');
                if count > 1 || (document.value.is_err() && (count > 0 || looks_like_json)) {
                    let at = u32::try_from(error.line()).unwrap_or(u32::MAX).saturating_sub(1);
                    // The error counts lines from the first of these documents.
                    let text = error.to_string();
                    let cause = text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause);
                    let reason = format!("not JSON: {cause} at column {}", error.column());
                    let value = Err((first_line.saturating_add(at), reason));
                    found(Document { value, ..document });
                } else {
                    found(document);
                }
                return;
            }
        }
        count += 1;
        line = line.saturating_add(line_breaks(&text[start..values.byte_offset()]));
        start = values.byte_offset();
    }
}

/// kubectl writes the JSON anew, in which 80.0 and 8e1 are 80.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().and_then(yaml::whole);
            *value = whole.map_or_else(|| value.take(), Value::from);
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

fn yaml(chunk: Chunk<'_>, budget: &Budget) -> Document {
    let Chunk { text, first_line: line } = chunk;
    let value = yaml::read(text, budget);
    let value = value.map_err(|error| (line.saturating_add(error.line.saturating_sub(1)), error.reason));
    Document { line, value, duplicates: budget.take_duplicates() }
}

/// The text between two separators, from its first content on.
#[derive(Clone, Copy, Debug)]
struct Chunk<'a> {
    text: &'a str,
    /// The line of the file that has its first content.
    first_line: u32,
}

/// Splits at `---` and `...`: each document is then parsed for itself, and a bad one spoils no other. Inside a document
/// neither can stand at the start of a line (YAML 1.2.2, 9.1.2), nor in JSON, whose texts have no line breaks.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut open: Option<(usize, u32)> = None;
    let mut start = 0;
    for (line, number) in text.split_inclusive('\n').zip(1u32..) {
        let end = start + line.len();
        // Files that were put together may have a mark at each beginning.
        let bare = line.trim_start_matches(BOM);
        let separator = ["---", "..."].into_iter().find_map(|separator| {
            bare.strip_prefix(separator)
                .filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        if separator.is_some() {
            chunks
                .extend(open.take().map(|(from, first_line)| Chunk { text: &text[from..start], first_line }));
        }
        // A separator may be followed by content.
        let content = separator.unwrap_or(bare);
        let trimmed = content.trim();
        let is_directive = open.is_none() && trimmed.starts_with('%');
        if open.is_none() && !(trimmed.is_empty() || trimmed.starts_with('#') || is_directive) {
            open = Some((end - content.len(), number));
        }
        start = end;
    }
    chunks.extend(open.map(|(from, first_line)| Chunk { text: &text[from..], first_line }));
    chunks
}

fn line_breaks(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|&byte| byte == b'\n').count()).unwrap_or(u32::MAX)
}

const BOM: char = '\u{feff}';
