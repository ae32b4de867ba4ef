//! The files of a directory as last scanned, with the last good version of each object.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::Snapshot;
use super::ScanOutcome;
use super::parse::{Parsed, ParsedObject, decode, parse};
use crate::model::Desired;
use crate::report::{Entry, ObjectRef, Place, RETAINED, Severity};

/// A directory as it was at the last scan.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

/// A file as it was at the last scan.
#[derive(Debug)]
struct File {
    text: Result<String, String>,
    parsed: Parsed,
}

impl Directory {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, files: BTreeMap::new() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all files; those with the same text as before are not parsed again.
    pub(super) fn scan(&mut self) -> io::Result<ScanOutcome> {
        let mut files = BTreeMap::new();
        let mut outcome = ScanOutcome::Unchanged;
        for name in manifest_names(&self.path)? {
            let path = self.path.join(&name);
            let text = match read_file(&path) {
                Ok(text) => text,
                // Deleted since the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(format!("cannot be read: {error}")),
            };
            let before = self.files.remove(&name);
            let file = match before {
                Some(file) if file.text == text => file,
                before => {
                    outcome = ScanOutcome::Changed;
                    let path = Arc::new(path);
                    let parsed = match &text {
                        Ok(text) => parse(&path, text),
                        Err(reason) => unreadable(&path, reason.clone()),
                    };
                    File { parsed: retain_last_good(&path, before, parsed, text.as_deref()), text }
                }
            };
            files.insert(name, file);
        }
        // Files that are gone: those still there were removed above.
        if !self.files.is_empty() {
            outcome = ScanOutcome::Changed;
        }
        self.files = files;
        Ok(outcome)
    }

    /// All objects of all files; of several with one name the first counts.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut desired = Desired::default();
        let mut findings = Vec::new();
        let mut first: HashMap<&ObjectRef, &Place> = HashMap::new();
        for file in self.files.values() {
            findings.extend(file.parsed.findings.iter().cloned());
            for ParsedObject { name, key, object, place } in &file.parsed.objects {
                if let Some(other) = first.get(name) {
                    let reason = format!("{other} has it already and counts; remove one");
                    findings.push(Entry {
                        severity: Severity::Error,
                        place: Some(place.clone()),
                        object: Some(name.clone()),
                        reason,
                    });
                    continue;
                }
                first.insert(name, place);
                desired.apply(key.clone(), object.clone(), Some(place.clone()));
            }
        }
        let ignored = self.files.values().map(|file| file.parsed.ignored).sum();
        Snapshot { desired, findings, ignored }
    }
}

fn manifest_names(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
        let extension = name.extension().and_then(|extension| extension.to_str());
        let wanted = !hidden && matches!(extension, Some("yaml" | "yml" | "json"));
        // `metadata` follows symbolic links. Folders are left out, and pipes, which would block the reader.
        if wanted && fs::metadata(dir.join(&name)).map_or(true, |metadata| metadata.is_file()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The text of a file, or what is wrong with it.
fn read_file(path: &Path) -> io::Result<Result<String, String>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Ok(Err(format!("is larger than {} MiB: split it", FILE_BYTES_MAX >> 20)));
    }
    Ok(decode(bytes))
}

/// Three times what `kubectl get` writes of the largest clusters. A file is in memory while it is read.
const FILE_BYTES_MAX: u64 = 256 << 20;

fn unreadable(path: &Arc<PathBuf>, reason: String) -> Parsed {
    let place = Place { file: Arc::clone(path), line: 0 };
    let entry = Entry { severity: Severity::Error, place: Some(place), object: None, reason };
    Parsed { findings: vec![entry], incomplete: true, ..Parsed::default() }
}

/// Adds to a file's new content the objects that it had before and has lost by an error: a new version was refused, or
/// a part of the file could not be parsed.
fn retain_last_good(
    path: &Arc<PathBuf>,
    before: Option<File>,
    mut parsed: Parsed,
    text: Result<&str, &String>,
) -> Parsed {
    let Some(before) = before else { return parsed };
    // Some editors and tools truncate a file before they write it anew.
    if text.is_ok_and(|text| text.trim().is_empty()) && !before.parsed.objects.is_empty() {
        let reason = "is empty, as if half-written; delete the file to remove its objects";
        parsed = unreadable(path, reason.to_owned());
    }
    let named: HashSet<ObjectRef> = parsed.objects.iter().map(|object| object.name.clone()).collect();
    let mut first_finding: HashMap<ObjectRef, usize> = HashMap::new();
    for (entry, at) in parsed.findings.iter().zip(0..) {
        if let Some(object) = entry.object.as_ref().filter(|_| entry.severity == Severity::Error) {
            first_finding.entry(object.clone()).or_insert(at);
        }
    }
    let mut retained = 0;
    for object in before.parsed.objects {
        let refused = parsed.refused.contains(&object.name);
        if named.contains(&object.name) || !(refused || parsed.incomplete) {
            continue;
        }
        retained += 1;
        if refused && let Some(at) = first_finding.get(&object.name) {
            parsed.findings[*at].reason.push_str(RETAINED);
        }
        parsed.objects.push(object);
    }
    if parsed.incomplete && retained > 0 {
        let reason = format!("{retained} object(s) that it held before stay in force");
        let place = Place { file: Arc::clone(path), line: 0 };
        parsed.findings.push(Entry { severity: Severity::Warning, place: Some(place), object: None, reason });
    }
    parsed
}
